//! Reads a schema, and says what is wrong with it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::tree::Value;
use regex::{Regex, RegexBuilder};

use super::rules::Rule;
use super::{Additional, Constraints, Kind, List, Node, child};
use crate::FieldError;
use crate::depth::MAX_DEPTH;

/// More nodes than this are refused; the schema of a KubeVirt `VirtualMachine` has about 3,000.
const NODES_MAX: usize = 100_000;
/// Largest compiled pattern, in bytes.
const PATTERN_MAX: usize = 1 << 20;
/// More errors than this are not collected.
const ERRORS_MAX: usize = 100;

pub(super) struct Parser {
    pub patterns: HashMap<String, Arc<Regex>>,
    pub errors: Vec<FieldError>,
    pub nodes: usize,
    /// whether there are rules
    pub has_rules: bool,
}

impl Parser {
    pub fn root(&mut self, schema: &Value, field: &str) -> Node {
        if !schema.is_object() {
            self.error(FieldError::required(field, "schemas are required"));
            return Node::default();
        }
        if schema["type"] != "object" {
            let kind = schema["type"].as_str().unwrap_or_default();
            self.error(FieldError::invalid(child(field, "type"), kind, "must be object at the root"));
        }
        let mut root = self.node(schema, field, MAX_DEPTH, true);
        // what every object has is not for the schema to say
        for name in ["apiVersion", "kind", "metadata"] {
            root.properties.remove(name);
        }
        root.embedded = true;
        root
    }

    fn error(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    /// `structural`: not below `allOf`, `anyOf`, `oneOf`, `not`, where types are not said again.
    fn node(&mut self, schema: &Value, field: &str, depth: usize, structural: bool) -> Node {
        self.nodes += 1;
        let Some(depth) = depth.checked_sub(1).filter(|_| self.nodes <= NODES_MAX) else {
            self.error(FieldError::forbidden(field, "the schema is too deep or too large"));
            return Node::default();
        };
        let flag = |name: &str| schema[name] == true;
        let mut node = Node {
            kind: self.kind(schema, field, structural),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            default: schema.get("default").cloned(),
            list: list(schema),
            ..Node::default()
        };
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{field}.properties[{name}]");
            node.properties.insert(name.to_string(), self.node(property, &at, depth, structural));
        }
        node.additional = match &schema["additionalProperties"] {
            value @ Value::Object(_) => {
                let at = format!("{field}.additionalProperties");
                Additional::Schema(Box::new(self.node(value, &at, depth, structural)))
            }
            Value::Bool(true) => Additional::Any,
            _ => Additional::No,
        };
        if schema["items"].is_object() {
            let items = self.node(&schema["items"], &format!("{field}.items"), depth, structural);
            node.items = Some(Box::new(items));
        } else if node.kind == Some(Kind::Array) && structural {
            self.error(FieldError::required(format!("{field}.items"), "must be specified"));
        }
        node.required = strings(&schema["required"]);
        node.constraints = self.constraints(schema, field, depth);
        for (index, rule) in schema["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
            match Rule::compile(rule, &format!("{field}.x-kubernetes-validations[{index}]")) {
                Ok(rule) => node.rules.push(rule),
                Err(error) => self.error(error),
            }
            self.has_rules = true;
        }
        node
    }

    fn kind(&mut self, schema: &Value, field: &str, structural: bool) -> Option<Kind> {
        let untyped = schema["x-kubernetes-int-or-string"] == true
            || schema["x-kubernetes-preserve-unknown-fields"] == true;
        match schema["type"].as_str().unwrap_or_default() {
            "object" => Some(Kind::Object),
            "array" => Some(Kind::Array),
            "string" => Some(Kind::String),
            "integer" => Some(Kind::Integer),
            "number" => Some(Kind::Number),
            "boolean" => Some(Kind::Boolean),
            "" => {
                if structural && !untyped {
                    let detail = "must not be empty for specified object fields";
                    self.error(FieldError::required(child(field, "type"), detail));
                }
                None
            }
            other => {
                let known = ["array", "boolean", "integer", "number", "object", "string"];
                self.error(FieldError::not_supported(child(field, "type"), other, &known));
                None
            }
        }
    }

    fn constraints(&mut self, schema: &Value, field: &str, depth: usize) -> Constraints {
        let number = |name: &str| schema[name].as_f64();
        let count = |name: &str| schema[name].as_u64();
        let flag = |name: &str| schema[name] == true;
        let mut out = Constraints {
            allowed: schema["enum"].as_array().map(|allowed| allowed.to_vec()),
            format: schema["format"].as_str().map(str::to_owned),
            minimum: number("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: number("multipleOf").filter(|of| *of > 0.0),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            ..Constraints::default()
        };
        if let Some(pattern) = schema["pattern"].as_str() {
            out.pattern = self.pattern(pattern, &child(field, "pattern"));
        }
        for (name, list) in
            [("allOf", &mut out.all_of), ("anyOf", &mut out.any_of), ("oneOf", &mut out.one_of)]
        {
            for (index, part) in schema[name].as_array().into_iter().flatten().enumerate() {
                list.push(self.node(part, &format!("{field}.{name}[{index}]"), depth, false));
            }
        }
        if schema["not"].is_object() {
            out.not = Some(Box::new(self.node(&schema["not"], &child(field, "not"), depth, false)));
        }
        out
    }

    fn pattern(&mut self, pattern: &str, field: &str) -> Option<Arc<Regex>> {
        if let Some(known) = self.patterns.get(pattern) {
            return Some(known.clone());
        }
        match RegexBuilder::new(pattern).size_limit(PATTERN_MAX).build() {
            Ok(regex) => {
                let regex = Arc::new(regex);
                self.patterns.insert(pattern.into(), regex.clone());
                Some(regex)
            }
            Err(error) => {
                let detail = format!("must be a valid regular expression, but isn't: {error}");
                self.error(FieldError::invalid(field, pattern, detail));
                None
            }
        }
    }
}

fn list(schema: &Value) -> List {
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => List::Set,
        Some("map") => List::Map(strings(&schema["x-kubernetes-list-map-keys"])),
        _ => List::Atomic,
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
