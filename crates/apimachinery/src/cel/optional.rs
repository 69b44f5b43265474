//! Optional field access, `a.?b.c` and `a[?b]`, as cel-go evaluates it.
//!
//! The interpreter of `cel` 0.13 fails on a missing first field and wraps a missing second one, so such
//! accesses are rewritten to a function of our own.

use std::sync::Arc;

use kube_cel::cel::common::ast::{CallExpr, Expr, LiteralValue, operators};
use kube_cel::cel::objects::{Key, OptionalValue};
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Value};

/// No name that an expression can spell.
const GET: &str = "@optional_get";

pub(super) fn register(context: &mut Context<'_>) {
    context.add_function(GET, |target: Value, key: Value| get(&target, &key));
}

/// Rewrites optional accesses, and the plain ones that follow them. Runs where the parser runs, on its stack.
pub(super) fn rewrite(node: &mut IdedExpr) {
    match &mut node.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => call.target.as_deref_mut().into_iter().chain(&mut call.args).for_each(rewrite),
        Expr::List(list) => list.elements.iter_mut().for_each(rewrite),
        Expr::Select(select) => rewrite(&mut select.operand),
        Expr::Map(map) => map.entries.iter_mut().for_each(rewrite_entry),
        Expr::Struct(object) => object.entries.iter_mut().for_each(rewrite_entry),
        Expr::Comprehension(each) => {
            let parts = [&mut each.iter_range, &mut each.accu_init, &mut each.loop_cond];
            parts.into_iter().chain([&mut each.loop_step, &mut each.result]).for_each(rewrite);
        }
    }
    match &mut node.expr {
        Expr::Call(call)
            if call.func_name == operators::OPT_SELECT || call.func_name == operators::OPT_INDEX =>
        {
            call.func_name = GET.into();
        }
        Expr::Call(call)
            if call.func_name == operators::INDEX && call.args.first().is_some_and(is_optional) =>
        {
            call.func_name = GET.into();
        }
        Expr::Select(select) if !select.test && is_optional(&select.operand) => {
            let field = Expr::Literal(LiteralValue::String(std::mem::take(&mut select.field).into()));
            let operand = std::mem::take(&mut *select.operand);
            let args = vec![operand, IdedExpr { id: node.id, expr: field }];
            node.expr = Expr::Call(CallExpr { func_name: GET.into(), target: None, args });
        }
        _ => {}
    }
}

fn rewrite_entry(entry: &mut kube_cel::cel::common::ast::IdedEntryExpr) {
    use kube_cel::cel::common::ast::EntryExpr;
    match &mut entry.expr {
        EntryExpr::StructField(field) => rewrite(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            rewrite(&mut entry.key);
            rewrite(&mut entry.value);
        }
    }
}

fn is_optional(node: &IdedExpr) -> bool {
    matches!(&node.expr, Expr::Call(call) if call.func_name == GET)
}

fn get(target: &Value, key: &Value) -> Result<Value, ExecutionError> {
    let target = match <&OptionalValue>::try_from(target) {
        Ok(optional) => optional.value(),
        Err(_) => Some(target),
    };
    let found = match (target, key) {
        (None, _) => None,
        (Some(Value::Map(map)), Value::String(key)) => map.get(&Key::String(key.clone())),
        (Some(Value::Map(map)), Value::Int(key)) => map.get(&Key::Int(*key)),
        (Some(Value::Map(map)), Value::Bool(key)) => map.get(&Key::Bool(*key)),
        (Some(Value::List(list)), Value::Int(index)) => {
            usize::try_from(*index).ok().and_then(|i| list.get(i))
        }
        _ => return Err(ExecutionError::NoSuchOverload),
    };
    let optional = found.map_or_else(OptionalValue::none, |value| OptionalValue::of(value.clone()));
    Ok(Value::Opaque(Arc::new(optional)))
}
