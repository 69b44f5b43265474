//! Webhook configurations and admission policies, checked when they are written
//! (`pkg/apis/admissionregistration/validation`, Kubernetes 1.36). Whoever registers a webhook learns
//! here of what would otherwise fail every request later.

use std::collections::BTreeSet;

use apimachinery::FieldError;
use apimachinery::cel::Program;
use apimachinery::selector::LabelSelector;
use apimachinery::tree::{List, Value};
use apimachinery::validation::{dns1123_subdomain, qualified_name};

/// Conditions of one webhook or policy (`kubernetes` allows as many).
const CONDITIONS_MAX: usize = 64;
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

type Errors = Vec<FieldError>;

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], List::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn words(value: &Value) -> Vec<&str> {
    items(value).iter().map(text).collect()
}

/// A word of a list of words, if it is there.
fn one_of(errors: &mut Errors, field: String, value: &Value, supported: &[&str]) {
    if let Some(word) = value.as_str().filter(|word| !supported.contains(word)) {
        errors.push(FieldError::not_supported(field, word, supported));
    }
}

/// What is wrong with a `MutatingWebhookConfiguration` or `ValidatingWebhookConfiguration`.
pub fn webhooks(object: &Value, mutating: bool) -> Errors {
    let mut errors = Errors::new();
    let mut names = BTreeSet::new();
    for (index, webhook) in items(&object["webhooks"]).iter().enumerate() {
        let path = format!("webhooks[{index}]");
        check_webhook(&mut errors, webhook, &path, mutating);
        let name = text(&webhook["name"]);
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    errors
}

fn check_webhook(errors: &mut Errors, webhook: &Value, path: &str, mutating: bool) {
    let at = |field: &str| format!("{path}.{field}");
    errors.extend(fully_qualified(&at("name"), text(&webhook["name"])));
    versions(errors, &at("admissionReviewVersions"), &webhook["admissionReviewVersions"]);
    for (index, rule) in items(&webhook["rules"]).iter().enumerate() {
        check_rule(errors, rule, &format!("{path}.rules[{index}]"));
    }
    one_of(errors, at("failurePolicy"), &webhook["failurePolicy"], &["Fail", "Ignore"]);
    one_of(errors, at("matchPolicy"), &webhook["matchPolicy"], &["Equivalent", "Exact"]);
    if mutating {
        one_of(errors, at("reinvocationPolicy"), &webhook["reinvocationPolicy"], &["IfNeeded", "Never"]);
    }
    match webhook["sideEffects"].as_str() {
        None => {
            errors.push(FieldError::required(at("sideEffects"), "must specify one of None, NoneOnDryRun"));
        }
        Some(_) => one_of(errors, at("sideEffects"), &webhook["sideEffects"], &["None", "NoneOnDryRun"]),
    }
    let timeout = &webhook["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
        let message = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(at("timeoutSeconds"), timeout.clone(), message));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        selector(errors, &at(field), &webhook[field]);
    }
    client_config(errors, &webhook["clientConfig"], &at("clientConfig"));
    conditions(errors, &webhook["matchConditions"], &at("matchConditions"));
}

/// `IsFullyQualifiedName`
fn fully_qualified(field: &str, name: &str) -> Option<FieldError> {
    if name.is_empty() {
        return Some(FieldError::required(field, ""));
    }
    if let Some(wrong) = dns1123_subdomain(name).into_iter().next() {
        return Some(FieldError::invalid(field, name, wrong));
    }
    let message = "should be a domain with at least three segments separated by dots";
    (name.split('.').count() < 3).then(|| FieldError::invalid(field, name, message))
}

fn versions(errors: &mut Errors, field: &str, value: &Value) {
    let all = words(value);
    if all.is_empty() {
        return errors.push(FieldError::required(field, "must specify one of v1, v1beta1"));
    }
    let mut seen = BTreeSet::new();
    for (index, version) in all.iter().enumerate() {
        if !seen.insert(*version) {
            errors.push(FieldError::invalid(format!("{field}[{index}]"), *version, "duplicate version"));
        }
    }
    if !all.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        errors.push(FieldError::invalid(field, value.clone(), "must include at least one of v1, v1beta1"));
    }
}

/// The rules of webhooks and of policies.
fn check_rule(errors: &mut Errors, rule: &Value, path: &str) {
    let at = |field: &str| format!("{path}.{field}");
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        let all = words(&rule[field]);
        if all.is_empty() {
            errors.push(FieldError::required(at(field), ""));
        }
        if field != "resources" && all.len() > 1 && all.contains(&"*") {
            let message = match field {
                "operations" => "if '*' is present, must not specify other operations",
                "apiGroups" => "if '*' is present, must not specify other API groups",
                _ => "if '*' is present, must not specify other API versions",
            };
            errors.push(FieldError::invalid(at(field), rule[field].clone(), message));
        }
    }
    for (index, operation) in items(&rule["operations"]).iter().enumerate() {
        one_of(errors, format!("{path}.operations[{index}]"), operation, &OPERATIONS);
    }
    for (index, version) in words(&rule["apiVersions"]).iter().enumerate() {
        if version.is_empty() {
            errors.push(FieldError::required(format!("{path}.apiVersions[{index}]"), ""));
        }
    }
    resources(errors, &at("resources"), &words(&rule["resources"]));
    one_of(errors, at("scope"), &rule["scope"], &SCOPES);
}

/// `validateResources`: a wildcard leaves no room for what it covers.
fn resources(errors: &mut Errors, field: &str, all: &[&str]) {
    let everything = all.contains(&"*/*");
    for (index, resource) in all.iter().enumerate() {
        let at = format!("{field}[{index}]");
        if resource.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let (name, subresource) = resource.split_once('/').unwrap_or((*resource, ""));
        let message = if everything && all.len() > 1 {
            if *resource == "*/*" {
                continue;
            }
            "if '*/*' is present, must not specify other resources".to_owned()
        } else if name != "*" && all.contains(&"*") && subresource.is_empty() {
            "if '*' is present, must not specify other resources without subresources".to_owned()
        } else if !subresource.is_empty() && subresource != "*" && all.contains(&format!("{name}/*").as_str())
        {
            format!("if '{name}/*' is present, must not specify {resource}")
        } else if !subresource.is_empty() && name != "*" && all.contains(&format!("*/{subresource}").as_str())
        {
            format!("if '*/{subresource}' is present, must not specify {resource}")
        } else {
            continue;
        };
        errors.push(FieldError::invalid(at, *resource, message));
    }
}

fn selector(errors: &mut Errors, field: &str, value: &Value) {
    if value.is_object()
        && let Err(wrong) = LabelSelector::from_object(value)
    {
        errors.push(FieldError::invalid(field, value.clone(), wrong.to_string()));
    }
}

fn client_config(errors: &mut Errors, config: &Value, path: &str) {
    match (config["url"].as_str(), config["service"].is_object()) {
        (Some(url), false) => url_of(errors, &format!("{path}.url"), url),
        (None, true) => service(errors, &format!("{path}.service"), &config["service"]),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

/// `ValidateWebhookURL`
fn url_of(errors: &mut Errors, field: &str, url: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut wrong = |message: &str| errors.push(FieldError::invalid(field, url, message));
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong(&format!("'https' is the only allowed URL scheme{FORM}"));
    };
    if scheme != "https" {
        wrong(&format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.rsplit('@').next().unwrap_or_default().is_empty() {
        wrong(&format!("host must be specified{FORM}"));
    }
    if authority.contains('@') {
        wrong(&format!("user information is not permitted in the URL{FORM}"));
    }
    if tail.contains('#') {
        wrong(&format!("fragments are not permitted in the URL{FORM}"));
    }
    if tail.split('#').next().is_some_and(|tail| tail.contains('?')) {
        wrong(&format!("query parameters are not permitted in the URL{FORM}"));
    }
}

fn service(errors: &mut Errors, path: &str, service: &Value) {
    for (field, message) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if text(&service[field]).is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}"), message));
        }
    }
    if service["port"].as_i64().is_some_and(|port| !(1..=65535).contains(&port)) {
        let message = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(format!("{path}.port"), service["port"].clone(), message));
    }
    let field = format!("{path}.path");
    let Some(at) = service["path"].as_str().filter(|at| !at.is_empty() && *at != "/") else { return };
    if !at.starts_with('/') {
        return errors.push(FieldError::invalid(field, at, "must start with a '/'"));
    }
    let inner = at.trim_start_matches('/');
    for (index, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            let message = format!("segment[{index}] may not be empty");
            errors.push(FieldError::invalid(field.clone(), at, message));
            continue;
        }
        for wrong in dns1123_subdomain(step) {
            errors.push(FieldError::invalid(field.clone(), at, format!("segment[{index}]: {wrong}")));
        }
    }
}

fn conditions(errors: &mut Errors, list: &Value, path: &str) {
    let list = items(list);
    if list.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, list.len(), CONDITIONS_MAX));
    }
    let mut names = BTreeSet::new();
    for (index, condition) in list.iter().enumerate() {
        let at = |field: &str| format!("{path}[{index}].{field}");
        let name = text(&condition["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(at("name"), ""));
        } else {
            for wrong in qualified_name(name) {
                errors.push(FieldError::invalid(at("name"), name, wrong));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(at("name"), name));
            }
        }
        expression(errors, at("expression"), &condition["expression"], "");
    }
}

/// An expression that has to be there and to compile.
fn expression(errors: &mut Errors, field: String, value: &Value, absent: &str) {
    let source = text(value).trim();
    if source.is_empty() {
        return errors.push(FieldError::required(field, absent));
    }
    if let Err(wrong) = Program::compile(source) {
        errors.push(FieldError::invalid(field, source, format!("compilation failed: {wrong}")));
    }
}

/// What is wrong with a `ValidatingAdmissionPolicy`.
pub fn policy(object: &Value) -> Errors {
    let spec = &object["spec"];
    let mut errors = Errors::new();
    one_of(&mut errors, "spec.failurePolicy".into(), &spec["failurePolicy"], &["Fail", "Ignore"]);
    if spec["paramKind"].is_object() {
        for field in ["apiVersion", "kind"] {
            if text(&spec["paramKind"][field]).is_empty() {
                errors.push(FieldError::required(format!("spec.paramKind.{field}"), ""));
            }
        }
    }
    match_resources(&mut errors, spec, "spec.matchConstraints");
    let mut names = BTreeSet::new();
    for (index, variable) in items(&spec["variables"]).iter().enumerate() {
        let (field, name) = (format!("spec.variables[{index}].name"), text(&variable["name"]));
        if name.is_empty() {
            errors.push(FieldError::required(field, "name is not specified"));
        } else if !is_identifier(name) {
            errors.push(FieldError::invalid(field, name, "name is not a valid CEL identifier"));
        } else if !names.insert(name) {
            errors.push(FieldError::duplicate(field, name));
        }
        let field = format!("spec.variables[{index}].expression");
        expression(&mut errors, field, &variable["expression"], "expression is not specified");
    }
    conditions(&mut errors, &spec["matchConditions"], "spec.matchConditions");
    let (validations, annotations) = (items(&spec["validations"]), items(&spec["auditAnnotations"]));
    if validations.is_empty() && annotations.is_empty() {
        let message = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required("spec.validations", message));
        errors.push(FieldError::required("spec.auditAnnotations", message));
    }
    for (index, validation) in validations.iter().enumerate() {
        let at = |field: &str| format!("spec.validations[{index}].{field}");
        expression(&mut errors, at("expression"), &validation["expression"], "expression is not specified");
        if !text(&validation["messageExpression"]).is_empty() {
            expression(&mut errors, at("messageExpression"), &validation["messageExpression"], "");
        }
        one_of(&mut errors, at("reason"), &validation["reason"], &REASONS);
    }
    for (index, annotation) in annotations.iter().enumerate() {
        let at = |field: &str| format!("spec.auditAnnotations[{index}].{field}");
        if text(&annotation["key"]).is_empty() {
            errors.push(FieldError::required(at("key"), ""));
        }
        let field = at("valueExpression");
        expression(&mut errors, field, &annotation["valueExpression"], "valueExpression is not specified");
    }
    errors
}

fn match_resources(errors: &mut Errors, spec: &Value, path: &str) {
    let constraints = &spec["matchConstraints"];
    if !constraints.is_object() {
        return errors.push(FieldError::required(path, ""));
    }
    let rules = items(&constraints["resourceRules"]);
    if rules.is_empty() {
        errors.push(FieldError::required(format!("{path}.resourceRules"), ""));
    }
    for (index, rule) in rules.iter().enumerate() {
        check_rule(errors, rule, &format!("{path}.resourceRules[{index}]"));
    }
    one_of(errors, format!("{path}.matchPolicy"), &constraints["matchPolicy"], &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        selector(errors, &format!("{path}.{field}"), &constraints[field]);
    }
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What is wrong with a `ValidatingAdmissionPolicyBinding`.
pub fn binding(object: &Value) -> Errors {
    let spec = &object["spec"];
    let mut errors = Errors::new();
    if text(&spec["policyName"]).is_empty() {
        errors.push(FieldError::required("spec.policyName", ""));
    }
    let actions = words(&spec["validationActions"]);
    if actions.is_empty() {
        errors.push(FieldError::required("spec.validationActions", ""));
    }
    let mut seen = BTreeSet::new();
    for (index, action) in items(&spec["validationActions"]).iter().enumerate() {
        let field = format!("spec.validationActions[{index}]");
        one_of(&mut errors, field.clone(), action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(text(action)) {
            errors.push(FieldError::duplicate(field, text(action)));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let message = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        let value = spec["validationActions"].clone();
        errors.push(FieldError::invalid("spec.validationActions", value, message));
    }
    let param = &spec["paramRef"];
    if param.is_object() && param["name"].is_string() == param["selector"].is_object() {
        let message = "one of name or selector must be specified";
        errors.push(FieldError::required("spec.paramRef", message));
    }
    errors
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    type Change = fn(&mut Value);

    fn webhook(change: impl FnOnce(&mut Value)) -> Value {
        let mut webhook = json!({"name": "a.b.example.com", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "timeoutSeconds": 10, "failurePolicy": "Fail",
            "clientConfig": {"url": "https://127.0.0.1:1/x"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
        change(&mut webhook);
        json!({"webhooks": [webhook]})
    }

    #[test]
    fn webhooks_that_could_never_be_called_are_refused() {
        assert_eq!(webhooks(&webhook(|_| {}), true), []);
        let cases: [(Change, &str); 16] = [
            (
                |w| w["name"] = json!("short"),
                "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three segments separated by dots",
            ),
            (
                |w| w["admissionReviewVersions"] = json!([]),
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ),
            (
                |w| w["admissionReviewVersions"] = json!(["v9"]),
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1",
            ),
            (
                |w| w["sideEffects"] = Value::Null,
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                |w| w["sideEffects"] = json!("Some"),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                |w| w["timeoutSeconds"] = json!(31),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                |w| w["failurePolicy"] = json!("Maybe"),
                "webhooks[0].failurePolicy: Unsupported value: \"Maybe\": supported values: \"Fail\", \"Ignore\"",
            ),
            (
                |w| w["clientConfig"]["service"] = json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                |w| w["clientConfig"]["url"] = json!("http://h/"),
                "webhooks[0].clientConfig.url: Invalid value: \"http://h/\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            (
                |w| w["clientConfig"]["url"] = json!("https://h/?a=b"),
                "webhooks[0].clientConfig.url: Invalid value: \"https://h/?a=b\": query parameters are not permitted in the URL; desired format: https://host[/path]",
            ),
            (
                |w| w["clientConfig"] = json!({"service": {"name": "s", "namespace": "n", "path": "x"}}),
                "webhooks[0].clientConfig.service.path: Invalid value: \"x\": must start with a '/'",
            ),
            (
                |w| w["clientConfig"] = json!({"service": {"namespace": "n"}}),
                "webhooks[0].clientConfig.service.name: Required value: service name is required",
            ),
            (
                |w| w["rules"][0]["operations"] = json!(["READ"]),
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            (
                |w| w["rules"][0]["apiGroups"] = json!(["*", "apps"]),
                "webhooks[0].rules[0].apiGroups: Invalid value: [\"*\",\"apps\"]: if '*' is present, must not specify other API groups",
            ),
            (
                |w| w["rules"][0]["resources"] = json!(["pods/*", "pods/exec"]),
                "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/exec\": if 'pods/*' is present, must not specify pods/exec",
            ),
            (
                |w| w["matchConditions"] = json!([{"name": "", "expression": "true"}]),
                "webhooks[0].matchConditions[0].name: Required value",
            ),
        ];
        for (change, message) in cases {
            let got: Vec<String> = webhooks(&webhook(change), true).iter().map(ToString::to_string).collect();
            assert_eq!(got, [message]);
        }
        let mut twice = webhook(|_| {});
        twice["webhooks"] = json!([twice["webhooks"][0], twice["webhooks"][0]]);
        let got: Vec<String> = webhooks(&twice, false).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["webhooks[1].name: Duplicate value: \"a.b.example.com\""]);
    }

    #[test]
    fn policies_and_bindings_are_checked() {
        let rules = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
        let good = json!({"spec": {"matchConstraints": rules, "validations": [{"expression": "object.metadata.name != 'x'"}]}});
        assert_eq!(policy(&good), []);
        let fields = |errors: Errors| errors.iter().map(|error| error.field.clone()).collect::<Vec<_>>();
        assert_eq!(
            fields(policy(&json!({"spec": {}}))),
            ["spec.matchConstraints", "spec.validations", "spec.auditAnnotations"]
        );
        let mut broken = good.clone();
        broken["spec"]["validations"][0] = json!({"expression": "object.", "reason": "Because"});
        broken["spec"]["variables"] = json!([{"name": "1a", "expression": "1"}]);
        assert_eq!(
            fields(policy(&broken)),
            ["spec.variables[0].name", "spec.validations[0].expression", "spec.validations[0].reason"]
        );
        let bound = json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}});
        assert_eq!(binding(&bound), []);
        let both = json!({"spec": {"validationActions": ["Deny", "Warn", "Deny"]}});
        assert_eq!(
            fields(binding(&both)),
            ["spec.policyName", "spec.validationActions[2]", "spec.validationActions"]
        );
    }
}
