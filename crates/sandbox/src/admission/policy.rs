//! `ValidatingAdmissionPolicy` and its bindings (`k8s.io/apiserver pkg/admission/plugin/policy/validating`, 1.36).

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::apply::sealed;
use apimachinery::cel::{Program, Reach, Variables};
use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Value, json};
use apimachinery::{Cause, Status};

use super::cache::Cached;
use super::matcher::{Conditions, Matcher, compile, failed, items};
use super::webhook::{cel_request, is_exempt};
use super::{Notes, Request};
use crate::objects::Objects;

const GROUP: &str = "admissionregistration.k8s.io";
const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";
/// The longest message that a `messageExpression` may make (Kubernetes: 5 KiB).
const MESSAGE_MAX: usize = 5 * 1024;

/// All policies of a cluster, compiled.
pub(super) struct Policies {
    objects: Arc<dyn Objects>,
    compiled: Cached<Vec<Policy>, 2>,
}

struct Policy {
    name: String,
    matcher: Matcher,
    conditions: Conditions,
    variables: Vec<(String, Result<Program, String>)>,
    validations: Vec<Validation>,
    annotations: Vec<(String, Result<Program, String>)>,
    fails_closed: bool,
    param_kind: Value,
    bindings: Vec<Binding>,
    uses: Uses,
}

/// Variables of expressions.
const VARIABLES: [&str; 5] = ["object", "oldObject", "request", "params", "namespaceObject"];

/// Those that the expressions of a policy refer to: the others need not be made.
#[derive(Default)]
struct Uses(BTreeMap<&'static str, Reach>);

impl Uses {
    fn note(&mut self, program: &Program) {
        for variable in VARIABLES.into_iter().filter(|variable| program.uses(variable)) {
            program.reach(variable, self.0.entry(variable).or_default());
        }
    }
}

struct Validation {
    program: Result<Program, String>,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

struct Binding {
    name: String,
    matcher: Matcher,
    param: Value,
    actions: Vec<String>,
}

/// What a validation that does not hold says.
struct Failure {
    index: usize,
    message: String,
    reason: String,
}

impl Policy {
    fn new(policy: &Value, bindings: &[Arc<Value>]) -> Self {
        let spec = &policy["spec"];
        let name = text(&policy["metadata"]["name"]);
        let bound = bindings.iter().filter(|binding| binding["spec"]["policyName"] == name.as_str());
        let mut policy = Self {
            matcher: Matcher::of_policy(&spec["matchConstraints"]),
            conditions: Conditions::new(&spec["matchConditions"]),
            variables: items(&spec["variables"])
                .map(|v| (text(&v["name"]), compile(&v["expression"])))
                .collect(),
            validations: items(&spec["validations"]).map(Validation::new).collect(),
            annotations: items(&spec["auditAnnotations"])
                .map(|a| (text(&a["key"]), compile(&a["valueExpression"])))
                .collect(),
            fails_closed: spec["failurePolicy"] != "Ignore",
            param_kind: spec["paramKind"].clone(),
            bindings: bound.map(|binding| Binding::new(binding)).collect(),
            name,
            uses: Uses::default(),
        };
        let mut uses = Uses::default();
        policy.conditions.programs().for_each(|program| uses.note(program));
        let named = policy.variables.iter().chain(&policy.annotations);
        named.filter_map(|(_, program)| program.as_ref().ok()).for_each(|program| uses.note(program));
        for validation in &policy.validations {
            validation
                .program
                .iter()
                .chain(&validation.message_program)
                .for_each(|program| uses.note(program));
        }
        policy.uses = uses;
        policy
    }

    /// The variables of its expressions about a request.
    fn variables(
        &self,
        request: &Request<'_>,
        object: &Value,
        param: &Value,
        objects: &dyn Objects,
    ) -> Variables {
        let mut variables = Variables::default();
        for (name, reach) in &self.uses.0 {
            let mut bind = |value: &Value| {
                variables.bind(name, &sealed::opened(&reach.of(value)));
            };
            match *name {
                "object" => bind(object),
                "oldObject" => bind(request.old.unwrap_or(&Value::Null)),
                "request" => bind(&cel_request(request, object)),
                "params" => bind(param),
                _ => {
                    let namespace = objects.get("", "namespaces", "", request.resource(object).namespace);
                    bind(namespace.as_deref().unwrap_or(&Value::Null));
                }
            }
        }
        variables
    }
}

impl Validation {
    fn new(validation: &Value) -> Self {
        let message = text(&validation["message"]);
        let expression = text(&validation["expression"]);
        Self {
            program: compile(&validation["expression"]),
            message: if message.is_empty() {
                format!("failed expression: {}", expression.trim())
            } else {
                message
            },
            message_program: validation["messageExpression"]
                .as_str()
                .and_then(|text| Program::compile(text).ok()),
            reason: text(&validation["reason"]),
        }
    }

    fn judge(&self, index: usize, variables: &Variables, fails_closed: bool) -> Option<Failure> {
        let broken =
            |message: String| fails_closed.then_some(Failure { index, message, reason: String::new() });
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return broken(why.clone()),
        };
        match program.evaluate_bool(variables) {
            Ok(true) => None,
            Ok(false) => {
                Some(Failure { index, message: self.message(variables), reason: self.reason.clone() })
            }
            Err(error) => broken(failed(program, &error)),
        }
    }

    /// An expression that gives no usable text gives way to the fixed message.
    fn message(&self, variables: &Variables) -> String {
        let made = self.message_program.as_ref().and_then(|program| program.evaluate(variables).ok());
        let made = made.as_ref().and_then(Value::as_str).map(str::trim);
        let usable = |text: &&str| !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
        made.filter(usable).map_or_else(|| self.message.clone(), str::to_owned)
    }
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: text(&binding["metadata"]["name"]),
            matcher: Matcher::of_policy(&spec["matchResources"]),
            param: spec["paramRef"].clone(),
            actions: items(&spec["validationActions"]).map(text).collect(),
        }
    }

    fn does(&self, action: &str) -> bool {
        self.actions.iter().any(|own| own == action)
    }
}

impl Policies {
    pub(super) fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, compiled: Cached::default() }
    }

    /// Asks every policy through each of its bindings.
    pub(super) fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
    ) -> Result<(), Status> {
        if is_exempt(&request.resource(object)) {
            return Ok(());
        }
        let objects = self.objects.as_ref();
        let revisions = [objects.revision(GROUP, POLICIES), objects.revision(GROUP, BINDINGS)];
        let compiled = self.compiled.at(revisions, |_| {
            let bindings = objects.list(GROUP, BINDINGS);
            objects.list(GROUP, POLICIES).iter().map(|policy| Policy::new(policy, &bindings)).collect()
        });
        let mut denied = Vec::new();
        for policy in compiled.1.iter().filter(|policy| !policy.bindings.is_empty()) {
            if policy.matcher.matches(request, object, objects)?.is_none() {
                continue;
            }
            for binding in &policy.bindings {
                if binding.matcher.matches(request, object, objects)?.is_some() {
                    self.ask(policy, binding, request, object, notes, &mut denied);
                }
            }
        }
        refusal(request, object, denied)
    }

    fn ask(
        &self,
        policy: &Policy,
        binding: &Binding,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
        denied: &mut Vec<(String, String)>,
    ) {
        let params = match self.params(policy, binding, request) {
            Ok(params) => params,
            Err(why) if policy.fails_closed => {
                let what = format!("failed to configure binding: {why}");
                denied.push((denial(policy, binding, &what), String::new()));
                return;
            }
            Err(_) => return,
        };
        for param in params {
            let mut variables = policy.variables(request, object, &param, self.objects.as_ref());
            match policy.conditions.hold(&variables) {
                Ok(true) => {}
                Err(why) if policy.fails_closed => {
                    denied.push((denial(policy, binding, &why), String::new()));
                    continue;
                }
                Ok(false) | Err(_) => continue,
            }
            for (name, program) in &policy.variables {
                if let Ok(program) = program {
                    // one that fails is missing: only the expressions that use it fail then
                    let _ = variables.compose(name, program);
                }
            }
            let validations = policy.validations.iter().enumerate();
            let failures: Vec<Failure> = validations
                .filter_map(|(index, v)| v.judge(index, &variables, policy.fails_closed))
                .collect();
            record(policy, binding, &failures, notes, denied);
            annotate(policy, &variables, notes);
        }
    }

    /// What `params` stands for: one evaluation each. Without a kind of parameters it is null.
    fn params(
        &self,
        policy: &Policy,
        binding: &Binding,
        request: &Request<'_>,
    ) -> Result<Vec<Value>, String> {
        if policy.param_kind.is_null() || binding.param.is_null() {
            return Ok(vec![Value::Null]);
        }
        let kind = text(&policy.param_kind["kind"]);
        let api_version = text(&policy.param_kind["apiVersion"]);
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let plural = self.plural(group, &kind);
        let (name, namespace) = (text(&binding.param["name"]), text(&binding.param["namespace"]));
        let namespace = if namespace.is_empty() { request.attributes.namespace.clone() } else { namespace };
        let found: Vec<Value> = if name.is_empty() {
            let selector =
                LabelSelector::from_object(&binding.param["selector"]).map_err(|e| e.to_string())?;
            let all = self.objects.list(group, &plural);
            let here = |object: &&Arc<Value>| {
                let own = &object["metadata"]["namespace"];
                (own.is_null() || own == namespace.as_str()) && selector.matches_object(object)
            };
            all.iter().filter(here).map(|object| (**object).clone()).collect()
        } else {
            let get = |namespace: &str| self.objects.get(group, &plural, namespace, &name);
            get(&namespace).or_else(|| get("")).map(|object| (*object).clone()).into_iter().collect()
        };
        match binding.param["parameterNotFoundAction"].as_str() {
            Some("Deny") if found.is_empty() => {
                Err("no params found for policy binding with `Deny` parameterNotFoundAction".into())
            }
            _ => Ok(found),
        }
    }

    /// The plural of a kind: as its definition says; built-in kinds follow the rule of English.
    fn plural(&self, group: &str, kind: &str) -> String {
        let definitions = self.objects.list("apiextensions.k8s.io", "customresourcedefinitions");
        let found = definitions.iter().find(|definition| {
            definition["spec"]["group"] == group && definition["spec"]["names"]["kind"] == kind
        });
        found
            .and_then(|definition| definition["spec"]["names"]["plural"].as_str())
            .map_or_else(|| format!("{}s", kind.to_lowercase()), str::to_owned)
    }
}

/// Does what a binding wants done with failures.
fn record(
    policy: &Policy,
    binding: &Binding,
    failures: &[Failure],
    notes: &mut Notes,
    denied: &mut Vec<(String, String)>,
) {
    for failure in failures {
        if binding.does("Deny") {
            denied.push((denial(policy, binding, &failure.message), failure.reason.clone()));
        }
        if binding.does("Warn") {
            let (policy, binding, message) = (&policy.name, &binding.name, &failure.message);
            notes.warn(&format!("Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"));
        }
    }
    if binding.does("Audit") && !failures.is_empty() {
        let list: Vec<Value> = failures
            .iter()
            .map(|failure| {
                json!({"message": failure.message, "policy": policy.name, "binding": binding.name,
                    "expressionIndex": failure.index, "validationActions": binding.actions})
            })
            .collect();
        let key = "validation.policy.admission.k8s.io/validation_failure".to_owned();
        notes.audit_annotations.insert(key, Value::from(list).to_string());
    }
}

fn annotate(policy: &Policy, variables: &Variables, notes: &mut Notes) {
    for (key, program) in &policy.annotations {
        let value = program.as_ref().ok().and_then(|program| program.evaluate(variables).ok());
        if let Some(Value::String(value)) = value {
            notes.audit_annotations.insert(format!("{}/{key}", policy.name), value.into());
        }
    }
}

fn denial(policy: &Policy, binding: &Binding, message: &str) -> String {
    let (policy, binding) = (&policy.name, &binding.name);
    format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}")
}

/// The answer to a request that was denied: worded after the first reason, with all as causes.
fn refusal(request: &Request<'_>, object: &Value, denied: Vec<(String, String)>) -> Result<(), Status> {
    let Some((first, reason)) = denied.first().cloned() else { return Ok(()) };
    let mut status = request.forbidden(object, &first);
    (status.code, status.reason) = match reason.as_str() {
        "Unauthorized" => (401, "Unauthorized".into()),
        "Forbidden" => (403, "Forbidden".into()),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge".into()),
        _ => (422, "Invalid".into()),
    };
    let cause = |(message, _)| Cause { message, ..Cause::default() };
    status.causes = denied.into_iter().map(cause).collect();
    Err(status)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
