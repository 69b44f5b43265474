//! Which requests a webhook or policy is about: rules, selectors, conditions.

use apimachinery::Status;
use apimachinery::apply::sealed;
use apimachinery::cel::{Program, Variables};
use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Value, json};

use super::rules::Rule;
use super::webhook::cel_request;
use super::{Operation, Request, Resource};
use crate::objects::Objects;

/// `rules` of a webhook, or `matchConstraints` and `matchResources` of policies.
#[derive(Debug)]
pub struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    equivalent: bool,
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
}

impl Matcher {
    /// Of an entry of `webhooks`.
    pub fn of_webhook(webhook: &Value) -> Self {
        Self::new(webhook, items(&webhook["rules"]).map(Rule::parse).collect(), Vec::new())
    }

    /// Of `matchConstraints` or `matchResources`; without rules (bindings need none) every resource matches.
    pub fn of_policy(resources: &Value) -> Self {
        let mut rules: Vec<Rule> = items(&resources["resourceRules"]).map(Rule::parse).collect();
        if rules.is_empty() {
            rules.push(Rule::parse(
                &json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}),
            ));
        }
        let excluded = items(&resources["excludeResourceRules"]).map(Rule::parse).collect();
        Self::new(resources, rules, excluded)
    }

    fn new(from: &Value, rules: Vec<Rule>, excluded: Vec<Rule>) -> Self {
        Self {
            rules,
            excluded,
            equivalent: from["matchPolicy"] != "Exact",
            namespaces: selector(&from["namespaceSelector"]),
            objects: selector(&from["objectSelector"]),
        }
    }

    /// Whether a request matches: the version in which its object is wanted.
    ///
    /// # Errors
    /// 404 when the namespace is not there; 500 for a selector that cannot be read.
    pub fn matches(
        &self,
        request: &Request<'_>,
        object: &Value,
        objects: &dyn Objects,
    ) -> Result<Option<String>, Status> {
        let resource = request.resource(object);
        if self.excluded.iter().any(|rule| rule.matches(request.operation, &resource)) {
            return Ok(None);
        }
        let Some(version) = self.version_for(request, &resource, objects) else { return Ok(None) };
        let old = request.old.unwrap_or(&Value::Null);
        let labels = self.objects.as_ref().map_err(|why| Status::internal(why))?;
        let labelled = |object: &Value| object.is_object() && labels.matches_object(object);
        if !labels.is_everything() && !labelled(object) && !labelled(old) {
            return Ok(None);
        }
        Ok(self.matches_namespace(request, &resource, object, objects)?.then_some(version))
    }

    fn version_for(
        &self,
        request: &Request<'_>,
        resource: &Resource<'_>,
        objects: &dyn Objects,
    ) -> Option<String> {
        if self.rules.iter().any(|rule| rule.matches(request.operation, resource)) {
            return Some(resource.version.to_owned());
        }
        let close = |rule: &&Rule| self.equivalent && rule.matches_but_version(request.operation, resource);
        let mut close = self.rules.iter().filter(close).peekable();
        close.peek()?;
        let served = served_versions(objects, resource);
        close.find_map(|rule| rule.equivalent(request.operation, resource, &served)).map(str::to_owned)
    }

    fn matches_namespace(
        &self,
        request: &Request<'_>,
        resource: &Resource<'_>,
        object: &Value,
        objects: &dyn Objects,
    ) -> Result<bool, Status> {
        let selector = self.namespaces.as_ref().map_err(|why| Status::internal(why))?;
        if selector.is_everything() || resource.namespace.is_empty() {
            return Ok(true);
        }
        // a namespace that is being written matches by the labels that it will have
        let written = matches!(request.operation, Operation::Create | Operation::Update);
        if resource.is_namespace() && resource.subresource.is_empty() && written {
            return Ok(selector.matches_object(object));
        }
        let namespace = objects.get("", "namespaces", "", resource.namespace);
        let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", resource.namespace))?;
        Ok(selector.matches_object(&namespace))
    }
}

/// `matchConditions`
#[derive(Debug)]
pub struct Conditions {
    programs: Vec<Result<Program, String>>,
}

impl Conditions {
    /// Compiles a list of conditions.
    pub fn new(list: &Value) -> Self {
        Self { programs: items(list).map(|condition| compile(&condition["expression"])).collect() }
    }

    /// Those that compile.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.iter().filter_map(|program| program.as_ref().ok())
    }

    /// Whether there is anything to evaluate.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Whether all conditions hold: one that is false decides.
    ///
    /// # Errors
    /// The messages of those that could not be evaluated, when none is false.
    pub fn hold(&self, variables: &Variables) -> Result<bool, String> {
        let mut errors = Vec::new();
        for program in &self.programs {
            match program {
                Err(why) => errors.push(why.clone()),
                Ok(program) => match program.evaluate_bool(variables) {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    Err(e) => errors.push(failed(program, &e)),
                },
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(apimachinery::field_error::aggregate(errors)) }
    }
}

/// The variables of expressions about a request.
pub fn variables(request: &Request<'_>, object: &Value) -> Variables {
    let old = request.old.unwrap_or(&Value::Null);
    Variables::admission(&sealed::opened(object), &sealed::opened(old), &cel_request(request, object))
}

/// Compiles an expression.
///
/// # Errors
/// What is wrong with it.
pub fn compile(expression: &Value) -> Result<Program, String> {
    let expression = expression.as_str().unwrap_or_default();
    Program::compile(expression).map_err(|e| format!("compilation of {expression:?} failed: {e}"))
}

/// The message of an expression that could not be evaluated.
pub fn failed(program: &Program, error: &dyn std::fmt::Display) -> String {
    format!("expression '{}' resulted in error: {error}", program.source())
}

/// The items of a list; none when it is no list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn selector(object: &Value) -> Result<LabelSelector, String> {
    if object.is_null() {
        return Ok(LabelSelector::everything());
    }
    LabelSelector::from_object(object).map_err(|e| e.to_string())
}

/// The versions in which a custom resource is served, the preferred ones first; built-in kinds have one here.
fn served_versions(objects: &dyn Objects, resource: &Resource<'_>) -> Vec<String> {
    let name = format!("{}.{}", resource.resource, resource.group);
    let Some(definition) = objects.get("apiextensions.k8s.io", "customresourcedefinitions", "", &name) else {
        return vec![resource.version.to_owned()];
    };
    let served = items(&definition["spec"]["versions"]).filter(|version| version["served"] != json!(false));
    served.filter_map(|version| version["name"].as_str()).map(str::to_owned).collect()
}
