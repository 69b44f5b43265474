//! Names, labels, annotations and finalizers (`k8s.io/apimachinery` `util/validation`, `api/validation`, 1.33).

use crate::tree::{Map, Value};

use crate::field_error::{FieldError, FieldErrorKind};

/// Longest DNS-1123 label, label value and name part of a qualified name.
pub const LABEL_MAX: usize = 63;
/// Longest DNS-1123 subdomain.
pub const SUBDOMAIN_MAX: usize = 253;
/// All keys and values of an object's annotations together, in bytes.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

/// How the names of a kind are checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameRule {
    /// Most kinds.
    Subdomain,
    /// Namespaces and others that become a DNS label.
    Label,
    /// Services: a label that starts with a letter.
    Label1035,
    /// RBAC kinds: whatever fits into one segment of a URL.
    PathSegment,
}

const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED_RULE: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// What is wrong with a DNS-1123 subdomain; empty when nothing is.
pub fn dns1123_subdomain(name: &str) -> Vec<String> {
    let mut errors = too_long(name, SUBDOMAIN_MAX);
    if !name.split('.').all(is_dns_label) {
        errors.push(SUBDOMAIN_RULE.into());
    }
    errors
}

/// What is wrong with a DNS-1123 label; empty when nothing is.
pub fn dns1123_label(name: &str) -> Vec<String> {
    let mut errors = too_long(name, LABEL_MAX);
    if !is_dns_label(name) {
        errors.push(LABEL_RULE.into());
    }
    errors
}

/// What is wrong with a DNS-1035 label; empty when nothing is.
pub fn dns1035_label(name: &str) -> Vec<String> {
    let mut errors = too_long(name, LABEL_MAX);
    if !is_dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        errors.push(LABEL_1035_RULE.into());
    }
    errors
}

/// What is wrong with one segment of a URL path; empty when nothing is.
pub fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    let bad = ['/', '%'].into_iter().filter(|c| name.contains(*c));
    bad.map(|c| format!("may not contain '{c}'")).collect()
}

/// What is wrong with a label key, annotation key or finalizer; empty when nothing is.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = name.split('/').collect();
    let part = match parts.as_slice() {
        [part] => *part,
        [prefix, part] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(dns1123_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            *part
        }
        _ => {
            errors.push(QUALIFIED_RULE.into());
            return errors;
        }
    };
    if part.is_empty() {
        errors.push("name part must be non-empty".into());
    } else {
        errors.extend(too_long(part, LABEL_MAX).into_iter().map(|e| format!("name part {e}")));
    }
    if !is_name_part(part) {
        errors.push(format!("name part {NAME_PART_RULE}"));
    }
    errors
}

/// What is wrong with a label's value; empty when nothing is.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = too_long(value, LABEL_MAX);
    if !value.is_empty() && !is_name_part(value) {
        errors.push(LABEL_VALUE_RULE.into());
    }
    errors
}

/// Checks `metadata`: name or generateName, labels, annotations, finalizers, owner references.
pub fn object_meta(meta: &Map, rule: NameRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(prefix) = text(meta, "generateName") {
        // the server appends a suffix, so a trailing dash is fine
        let checked = prefix.strip_suffix('-').map_or(prefix.into(), |stem| format!("{stem}a"));
        let wrong = name_errors(&checked, rule);
        errors.extend(wrong.into_iter().map(|e| FieldError::invalid("metadata.generateName", prefix, e)));
    }
    match text(meta, "name") {
        None => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        Some(name) => {
            let wrong = name_errors(name, rule);
            errors.extend(wrong.into_iter().map(|e| FieldError::invalid("metadata.name", name, e)));
        }
    }
    errors.extend(labels(meta.get("labels"), "metadata.labels"));
    errors.extend(annotations(meta.get("annotations"), "metadata.annotations"));
    errors.extend(owner_references(meta.get("ownerReferences")));
    errors.extend(finalizers(meta.get("finalizers")));
    errors
}

/// What is wrong with a name under a rule; empty when nothing is.
pub fn name_errors(name: &str, rule: NameRule) -> Vec<String> {
    match rule {
        NameRule::Subdomain => dns1123_subdomain(name),
        NameRule::Label => dns1123_label(name),
        NameRule::Label1035 => dns1035_label(name),
        NameRule::PathSegment => path_segment(name),
    }
}

/// Checks a map of labels.
pub fn labels(labels: Option<&Value>, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(qualified_name(key).into_iter().map(|e| FieldError::invalid(field, key.as_str(), e)));
        match value.as_str() {
            Some(value) => {
                errors.extend(label_value(value).into_iter().map(|e| FieldError::invalid(field, value, e)));
            }
            None => errors.push(FieldError::invalid(field, value.clone(), "must be a string")),
        }
    }
    errors
}

/// Checks a map of annotations.
pub fn annotations(annotations: Option<&Value>, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // keys are compared in lower case: upper case prefixes were always allowed here
        let wrong = qualified_name(&key.to_lowercase());
        errors.extend(wrong.into_iter().map(|e| FieldError::invalid(field, key.as_str(), e)));
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        let detail = format!("may not be more than {ANNOTATIONS_MAX} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, field, "", detail));
    }
    errors
}

fn owner_references(references: Option<&Value>) -> Vec<FieldError> {
    let Some(list) = references.and_then(Value::as_array) else { return Vec::new() };
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for (index, reference) in list.iter().enumerate() {
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if reference[key].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{index}].{key}"),
                    "",
                    detail,
                ));
            }
        }
        if reference["controller"] != true {
            continue;
        }
        let text = |key: &str| reference[key].as_str().unwrap_or_default().to_owned();
        let name = format!("{}/{}", text("kind"), text("name"));
        if let Some(first) = &controller {
            let detail = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
            );
            errors.push(FieldError::invalid("metadata.ownerReferences", list.clone(), detail));
        } else {
            controller = Some(name);
        }
    }
    errors
}

/// Checks `metadata.finalizers`: each a qualified name.
pub fn finalizers(finalizers: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for name in names(finalizers) {
        let wrong = qualified_name(name);
        errors.extend(wrong.into_iter().map(|e| FieldError::invalid("metadata.finalizers", name, e)));
    }
    errors
}

/// Checks `metadata.finalizers` of the kinds of `pkg/apis`, beside [`finalizers`]: each has a domain, but for the few
/// that are older than that rule. Definitions of custom kinds and their objects are free of it.
pub fn standard_finalizers(finalizers: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, name) in names(finalizers).enumerate() {
        let legacy = matches!(name, "orphan" | "foregroundDeletion" | "kubernetes");
        if qualified_name(name).is_empty() && !legacy && !name.contains('/') {
            errors.push(FieldError::invalid(
                format!("metadata.finalizers[{index}]"),
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

fn names(finalizers: Option<&Value>) -> impl Iterator<Item = &str> {
    let list = finalizers.and_then(Value::as_array).into_iter().flatten();
    list.map(|finalizer| finalizer.as_str().unwrap_or_default())
}

fn text<'a>(meta: &'a Map, key: &str) -> Option<&'a str> {
    meta.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn too_long(text: &str, max: usize) -> Vec<String> {
    if text.len() > max { vec![format!("must be no more than {max} bytes")] } else { Vec::new() }
}

fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    ends_and_middle(text, alphanumeric, |b| alphanumeric(b) || b == b'-')
}

fn is_name_part(text: &str) -> bool {
    ends_and_middle(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn ends_and_middle(text: &str, end: impl Fn(u8) -> bool, middle: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => end(*one),
        [first, rest @ .., last] => end(*first) && end(*last) && rest.iter().all(|b| middle(*b)),
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::json;

    use super::*;
    use crate::Status;

    fn errors(meta: &Value) -> Vec<String> {
        object_meta(meta.as_object().unwrap(), NameRule::Subdomain).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bad_name_is_refused_in_the_words_of_the_api() {
        let meta = json!({"name": "Not_Valid"});
        let wrong = object_meta(meta.as_object().unwrap(), NameRule::Subdomain);
        let status = Status::invalid("", "ConfigMap", "Not_Valid", &wrong);
        assert_eq!(status.code, 422);
        assert_eq!(
            status.message,
            r#"ConfigMap "Not_Valid" is invalid: metadata.name: Invalid value: "Not_Valid": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"#
        );
        assert_eq!(status.causes[0].field, "metadata.name");
        assert_eq!(status.causes[0].reason, "FieldValueInvalid");
    }

    #[test]
    fn names() {
        for (name, rule, good) in [
            ("a", NameRule::Subdomain, true),
            ("a.b-c.0", NameRule::Subdomain, true),
            ("a..b", NameRule::Subdomain, false),
            ("-a", NameRule::Subdomain, false),
            ("", NameRule::Subdomain, false),
            ("a.b", NameRule::Label, false),
            ("0a", NameRule::Label, true),
            ("0a", NameRule::Label1035, false),
            ("system:node:x", NameRule::PathSegment, true),
            ("a/b", NameRule::PathSegment, false),
            ("..", NameRule::PathSegment, false),
        ] {
            assert_eq!(name_errors(name, rule).is_empty(), good, "{name} {rule:?}");
        }
        assert!(!dns1123_subdomain(&"a".repeat(254)).is_empty());
        assert!(dns1123_subdomain(&"a".repeat(253)).is_empty());
    }

    #[test]
    fn metadata_is_checked_field_by_field() {
        assert_eq!(
            errors(&json!({"name": "a", "labels": {"a.b/c": "D_e"}, "finalizers": ["a.b/c"]})),
            [""; 0]
        );
        assert_eq!(errors(&json!({})), ["metadata.name: Required value: name or generateName is required"]);
        let label = errors(&json!({"name": "a", "labels": {"a": "b c"}}));
        assert!(label[0].starts_with(r#"metadata.labels: Invalid value: "b c": a valid label must be"#));
        assert_eq!(errors(&json!({"name": "a", "finalizers": ["plain"]})), [""; 0]);
        let finalizer = standard_finalizers(Some(&json!(["plain", "orphan"])));
        assert_eq!(
            finalizer.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                r#"metadata.finalizers[0]: Invalid value: "plain": name is neither a standard finalizer name nor is it fully qualified"#
            ]
        );
        let big = errors(&json!({"name": "a", "annotations": {"a": "x".repeat(ANNOTATIONS_MAX)}}));
        assert_eq!(big, ["metadata.annotations: Too long: may not be more than 262144 bytes"]);
        let owner = errors(
            &json!({"name": "a", "ownerReferences": [{"kind": "Pod", "apiVersion": "v1", "uid": "u"}]}),
        );
        assert_eq!(owner, [r#"metadata.ownerReferences[0].name: Invalid value: "": must not be empty"#]);
    }
}
