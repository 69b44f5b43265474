//! CEL as the API server offers it to admission: webhook `matchConditions` and
//! `ValidatingAdmissionPolicy` expressions, over raw JSON objects.
//!
//! A real API server counts the cost of an evaluation while it runs. Here the cost is bounded before:
//! loops can only run over what the variables hold, so length and depth of loops give an upper bound.

mod cost;
mod optional;
mod reach;
mod value;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::tree::Value;
use kube_cel::KubeCelExt;
use kube_cel::cel;
use kube_cel::cel::objects::{Key, Map};

pub use reach::Reach;
pub(crate) use value::{Typed, is_duration};

/// Longest expression, in bytes.
pub const EXPRESSION_MAX: usize = 16 * 1024;
/// Deepest nesting of brackets in an expression: the parser recurses.
pub const NESTING_MAX: usize = 48;
/// Deepest syntax tree: evaluation recurses. Chains of `&&` and `||` count once, a chain of `+` by its length.
pub const TREE_MAX: usize = 256;
/// Trees up to this deep are evaluated on the stack of the caller: evaluation takes up to 32 KiB a level in
/// an unoptimized build.
const TREE_INLINE: usize = 24;
/// What the parser may recurse on: it takes 100 KiB a level in an unoptimized build.
const DEEP_STACK: usize = 64 * 1024 * 1024;
/// Most steps that an evaluation may take, by the upper bound of [`Program`].
pub const COST_MAX: u64 = 10_000_000;

/// An expression that could not be compiled or evaluated.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CelError {
    /// The expression is no CEL, or too large.
    #[error("compilation failed: {0}")]
    Compile(String),
    /// The expression failed on these variables.
    #[error("{0}")]
    Evaluate(String),
    /// The expression gave something that is no boolean.
    #[error("expression '{expression}' gave a {got}, not a boolean")]
    NotBool {
        /// The expression.
        expression: String,
        /// The type of the result.
        got: &'static str,
    },
    /// The expression could take too long on these variables.
    #[error("call cost exceeds limit: up to {cost} steps, {COST_MAX} allowed")]
    TooExpensive {
        /// The upper bound of steps.
        cost: u64,
    },
}

/// A compiled expression.
///
/// ```
/// use apimachinery::cel::{Program, Variables};
/// use apimachinery::tree::json;
/// let program = Program::compile("object.spec.replicas <= 5 && !has(object.spec.paused)").unwrap();
/// let mut variables = Variables::default();
/// variables.bind("object", &json!({"spec": {"replicas": 3}}));
/// assert!(program.evaluate_bool(&variables).unwrap());
/// ```
#[derive(Debug)]
pub struct Program {
    tree: cel::IdedExpr,
    source: String,
    shape: cost::Shape,
}

impl Program {
    /// Compiles an expression.
    pub fn compile(expression: &str) -> Result<Self, CelError> {
        cost::check_source(expression).map_err(CelError::Compile)?;
        let (tree, shape) = on_deep_stack(|| {
            let parser = cel::parser::Parser::new().enable_optional_syntax(true);
            let mut tree = parser.parse(expression).map_err(|e| CelError::Compile(e.to_string()))?;
            let shape = cost::Shape::of(&tree).map_err(CelError::Compile)?;
            optional::rewrite(&mut tree);
            Ok((tree, shape))
        })?;
        Ok(Self { tree, source: expression.into(), shape })
    }

    /// The expression.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.tree.references().has_variable(variable)
    }

    /// Adds what the expression looks at of a variable.
    pub fn reach(&self, variable: &str, reach: &mut Reach) {
        reach.add(&self.tree, variable);
    }

    /// Steps that an evaluation takes at most.
    pub(crate) fn cost(&self, variables: &Variables) -> u64 {
        self.shape.cost(variables.largest, variables.longest)
    }

    /// Evaluates to any JSON value; timestamps and durations become strings.
    pub fn evaluate(&self, variables: &Variables) -> Result<Value, CelError> {
        let result = self.run(variables)?;
        value::to_json(&result)
            .ok_or_else(|| CelError::Evaluate(format!("a {} has no JSON form", value::type_name(&result))))
    }

    /// Evaluates to a boolean.
    pub fn evaluate_bool(&self, variables: &Variables) -> Result<bool, CelError> {
        match self.run(variables)? {
            cel::Value::Bool(result) => Ok(result),
            other => {
                Err(CelError::NotBool { expression: self.source.clone(), got: value::type_name(&other) })
            }
        }
    }

    fn run(&self, variables: &Variables) -> Result<cel::Value, CelError> {
        let cost = self.cost(variables);
        if cost > COST_MAX {
            return Err(CelError::TooExpensive { cost });
        }
        if self.shape.depth > TREE_INLINE {
            return on_deep_stack(|| self.resolve(variables));
        }
        self.resolve(variables)
    }

    fn resolve(&self, variables: &Variables) -> Result<cel::Value, CelError> {
        variables.context.resolve(&self.tree).map_err(|e| CelError::Evaluate(value::describe(&e)))
    }
}

/// What an expression can refer to: `object`, `oldObject`, `request`, `params`, `namespaceObject`,
/// and the composed `variables`. Objects are converted once for all programs that run over them.
pub struct Variables {
    context: cel::Context<'static>,
    composed: HashMap<Key, cel::Value>,
    /// items in the largest list or map
    largest: usize,
    /// bytes of the longest string
    longest: usize,
}

/// Every function that expressions may call: dozens, and the same for all of them.
static FUNCTIONS: LazyLock<cel::Context<'static>> = LazyLock::new(|| {
    let mut context = cel::Context::default().with_all();
    optional::register(&mut context);
    context
});

impl Default for Variables {
    fn default() -> Self {
        Self { context: FUNCTIONS.new_inner_scope(), composed: HashMap::new(), largest: 8, longest: 0 }
    }
}

impl Variables {
    /// The variables of an admission request. What is `null` is there and null: `oldObject` on create,
    /// `object` on delete.
    pub fn admission(object: &Value, old_object: &Value, request: &Value) -> Self {
        let mut variables = Self::default();
        variables.bind("object", object);
        variables.bind("oldObject", old_object);
        variables.bind("request", request);
        variables
    }

    /// Binds a name to a JSON value.
    pub fn bind(&mut self, name: &str, value: &Value) {
        self.measure(value);
        self.context.add_variable_from_value(name, value::from_json(value));
    }

    /// Binds a name to a value as its schema types it.
    pub(crate) fn bind_typed<T: Typed>(&mut self, name: &str, value: &Value, ty: &T) {
        self.measure(value);
        self.context.add_variable_from_value(name, value::from_typed(value, ty));
    }

    /// Binds a name to an optional value.
    pub(crate) fn bind_optional<T: Typed>(&mut self, name: &str, value: Option<&Value>, ty: &T) {
        if let Some(value) = value {
            self.measure(value);
        }
        let value = value::optional(value.map(|value| value::from_typed(value, ty)));
        self.context.add_variable_from_value(name, value);
    }

    fn measure(&mut self, value: &Value) {
        let (largest, longest) = value::extent(value);
        self.largest = self.largest.max(largest);
        self.longest = self.longest.max(longest);
    }

    /// Evaluates a variable of a policy (`spec.variables`) for the expressions that come after it, as
    /// `variables.<name>`. One that fails is left out: only expressions that use it fail then.
    pub fn compose(&mut self, name: &str, program: &Program) -> Result<(), CelError> {
        let value = program.run(self)?;
        self.largest = self.largest.max(value::items(&value));
        self.composed.insert(Key::String(Arc::new(name.into())), value);
        let map = cel::Value::Map(Map { map: Arc::new(self.composed.clone()) });
        self.context.add_variable_from_value("variables", map);
        Ok(())
    }
}

/// Runs the parser, or a rare deep evaluation, on a thread of its own with the stack that the deepest
/// allowed input needs.
pub(crate) fn on_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, CelError> + Send,
) -> Result<T, CelError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(DEEP_STACK).spawn_scoped(scope, work);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CelError::Compile("the interpreter failed on this expression".into())),
            Err(error) => Err(CelError::Compile(format!("cannot start a thread for it: {error}"))),
        }
    })
}

#[cfg(test)]
mod tests;
