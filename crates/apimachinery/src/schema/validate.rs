//! Checks values against a schema; errors as `kube-openapi` `validation/errors` words them.

use std::collections::HashSet;

use crate::tree::{Map, Value};

use super::{Kind, List, Node, child, format, item_key, old_items};
use crate::{FieldError, FieldErrorKind};

/// More errors than this are not collected.
const MAX_ERRORS: usize = 100;

pub(super) fn validate(root: &Node, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(root, object, old, "", &mut errors);
    errors
}

fn check(node: &Node, value: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    // what was there before does not have to become right now
    if errors.len() >= MAX_ERRORS || old == Some(value) {
        return;
    }
    if value.is_null() && node.nullable {
        return;
    }
    if let Some(expected) = wrong_type(node, value) {
        let got = type_name(value);
        let detail = format!("{path} in body must be of type {expected}: \"{got}\"");
        errors.push(FieldError::new(FieldErrorKind::TypeInvalid, path, got, detail));
        return;
    }
    scalar(node, value, path, errors);
    match value {
        Value::Array(items) => array(node, items, old, path, errors),
        Value::Object(fields) => object(node, fields, old, path, errors),
        _ => {}
    }
    composed(node, value, path, errors);
}

/// The type that a value should have and has not.
fn wrong_type(node: &Node, value: &Value) -> Option<&'static str> {
    if node.int_or_string {
        return (!(value.is_string() || is_integer(value))).then_some("integer,string");
    }
    let kind = node.kind?;
    let fits = match kind {
        Kind::Object => value.is_object(),
        Kind::Array => value.is_array(),
        Kind::String => value.is_string(),
        Kind::Integer => is_integer(value),
        Kind::Number => value.is_number(),
        Kind::Boolean => value.is_boolean(),
    };
    (!fits).then(|| kind.name())
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn scalar(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let rules = &node.constraints;
    let mut invalid = |what: String| {
        errors.push(FieldError::invalid(path, value.clone(), format!("{path} in body {what}")));
    };
    if let Some(number) = value.as_f64() {
        if let Some(least) = rules.minimum {
            if rules.exclusive_minimum && number <= least {
                invalid(format!("should be greater than {least}"));
            } else if number < least {
                invalid(format!("should be greater than or equal to {least}"));
            }
        }
        if let Some(most) = rules.maximum {
            if rules.exclusive_maximum && number >= most {
                invalid(format!("should be less than {most}"));
            } else if number > most {
                invalid(format!("should be less than or equal to {most}"));
            }
        }
        if let Some(of) = rules.multiple_of.filter(|of| (number / of).fract() != 0.0) {
            invalid(format!("should be a multiple of {of}"));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        if let Some(least) = rules.min_length.filter(|least| length < *least) {
            invalid(format!("should be at least {least} chars long"));
        }
        if let Some(pattern) = rules.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            invalid(format!("should match '{pattern}'"));
        }
        if let Some(most) = rules.max_length.filter(|most| length > *most) {
            let unit = if most == 1 { "byte" } else { "bytes" };
            let detail = format!("may not be more than {most} {unit}");
            errors.push(FieldError::new(FieldErrorKind::TooLong, path, text, detail));
        }
    }
    if let Some(format) = rules.format.as_ref().filter(|format| !format::fits(format, value)) {
        let detail = format!("{path} in body must be of type {format}: {value}");
        errors.push(FieldError::new(FieldErrorKind::TypeInvalid, path, value.clone(), detail));
    }
    if let Some(allowed) = rules.allowed.as_ref().filter(|allowed| !allowed.contains(value)) {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let allowed: Vec<String> = allowed.iter().map(text).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &allowed));
    }
}

fn array(node: &Node, items: &[Value], old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let rules = &node.constraints;
    let length = items.len() as u64;
    if let Some(least) = rules.min_items.filter(|least| length < *least) {
        let detail = format!("{path} in body should have at least {least} items");
        errors.push(FieldError::invalid(path, length, detail));
    }
    if let Some(most) = rules.max_items.filter(|most| length > *most) {
        too_many(path, length, most, errors);
    }
    if rules.unique_items {
        let mut seen = HashSet::new();
        if !items.iter().all(|item| seen.insert(item.to_string())) {
            errors.push(FieldError::invalid(
                path,
                "",
                format!("{path} in body shouldn't contain duplicates"),
            ));
        }
    }
    duplicates(node, items, path, errors);
    let Some(of) = &node.items else { return };
    let old = old_items(node, old);
    for (index, item) in items.iter().enumerate() {
        let before = match &node.list {
            List::Map(keys) => old.get(&item_key(keys, item)).copied(),
            List::Atomic | List::Set => None,
        };
        check(of, item, before, &format!("{path}[{index}]"), errors);
    }
}

fn duplicates(node: &Node, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let shown = match &node.list {
            List::Atomic => return,
            List::Set => item.clone(),
            List::Map(keys) => {
                let keyed = keys.iter().filter_map(|key| Some((key.as_str(), item.get(key)?.clone())));
                Value::Object(keyed.collect())
            }
        };
        if !seen.insert(shown.to_string()) && errors.len() < MAX_ERRORS {
            errors.push(FieldError::new(FieldErrorKind::Duplicate, format!("{path}[{index}]"), shown, ""));
        }
    }
}

fn object(node: &Node, fields: &Map, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let rules = &node.constraints;
    let length = fields.len() as u64;
    if let Some(least) = rules.min_properties.filter(|least| length < *least) {
        let detail = format!("{path} in body should have at least {least} properties");
        errors.push(FieldError::invalid(path, length, detail));
    }
    if let Some(most) = rules.max_properties.filter(|most| length > *most) {
        too_many(path, length, most, errors);
    }
    for name in node.required.iter().filter(|name| !fields.contains_key(name)) {
        errors.push(FieldError::required(child(path, name), ""));
    }
    if node.embedded && !path.is_empty() {
        for name in ["apiVersion", "kind"] {
            if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                errors.push(FieldError::required(child(path, name), "must not be empty"));
            }
        }
    }
    for (name, value) in fields {
        if let Some(property) = node.field(name) {
            check(property, value, old.and_then(|old| old.get(name)), &child(path, name), errors);
        }
    }
}

fn too_many(path: &str, length: u64, most: u64, errors: &mut Vec<FieldError>) {
    let unit = if most == 1 { "item" } else { "items" };
    let detail = format!("must have at most {most} {unit}");
    errors.push(FieldError::new(FieldErrorKind::TooMany, path, length, detail));
}

/// `allOf`, `anyOf`, `oneOf`, `not`. The API server gives these errors no field.
fn composed(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let rules = &node.constraints;
    let failures = |part: &Node| {
        let mut errors = Vec::new();
        check(part, value, None, path, &mut errors);
        errors
    };
    let mut fail = |what: String, closest: Vec<FieldError>| {
        errors.push(FieldError::invalid("<nil>", "", format!("\"{path}\" must {what}")));
        errors.extend(closest);
        errors.truncate(MAX_ERRORS);
    };
    let best = |failed: Vec<Vec<FieldError>>| failed.into_iter().min_by_key(Vec::len).unwrap_or_default();
    if !rules.any_of.is_empty() {
        let failed: Vec<_> = rules.any_of.iter().map(failures).collect();
        if failed.iter().all(|errors| !errors.is_empty()) {
            fail("validate at least one schema (anyOf)".into(), best(failed));
        }
    }
    if !rules.one_of.is_empty() {
        let failed: Vec<_> = rules.one_of.iter().map(failures).collect();
        match failed.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => fail("validate one and only one schema (oneOf). Found none valid".into(), best(failed)),
            many => {
                let what =
                    format!("validate one and only one schema (oneOf). Found {many} valid alternatives");
                fail(what, Vec::new());
            }
        }
    }
    let failed: Vec<FieldError> = rules.all_of.iter().flat_map(failures).collect();
    if !failed.is_empty() {
        fail("validate all the schemas (allOf)".into(), failed);
    }
    if rules.not.as_ref().is_some_and(|not| failures(not).is_empty()) {
        fail("not validate the schema (not)".into(), Vec::new());
    }
}
