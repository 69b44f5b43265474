//! Field selectors: `metadata.name=a,status.phase!=Running`, over the fields that each kind allows.

use std::fmt;

use crate::tree::Value;

use super::{SELECTOR_MAX, SelectorError};
use crate::field_error::quote;

#[derive(Clone, Debug, Eq, PartialEq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

/// Fields that an object must have: all terms hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Parses a selector without looking at which fields it names. Empty: everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_MAX {
            return Err(SelectorError(format!("field selector is longer than {SELECTOR_MAX} bytes")));
        }
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = split_term(part) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            terms.push(Term { field: field.into(), value: unescape(value)?, equal });
        }
        Ok(Self { terms })
    }

    /// Parses a selector for a kind, refusing fields that it cannot be selected by. `selectable` are the
    /// JSON paths of a CRD's `selectableFields` (with or without the leading dot).
    pub fn for_kind(
        text: &str,
        group: &str,
        kind: &str,
        selectable: &[String],
    ) -> Result<Self, SelectorError> {
        let mut selector = Self::parse(text)?;
        let known = fields_of(group, kind);
        for term in &mut selector.terms {
            if (group, kind, term.field.as_str()) == ("", "Pod", "spec.host") {
                term.field = "spec.nodeName".into();
            }
            let field = term.field.as_str();
            let mut extra = selectable.iter().map(|path| path.trim_start_matches('.'));
            let generic = matches!(field, "metadata.name" | "metadata.namespace");
            if generic || known.contains(&field) || extra.any(|path| path == field) {
                continue;
            }
            return Err(SelectorError(if known.is_empty() {
                format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    quote(field)
                )
            } else {
                format!("field label not supported: {field}")
            }));
        }
        Ok(selector)
    }

    /// Whether no requirement is made at all.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, when the selector asks for exactly one (`metadata.name=a`);
    /// lets a store answer from an index.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// Whether an object fulfils every term. A missing field is the empty string.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| (value_of(object, &term.field) == term.value) == term.equal)
    }

    /// As [`FieldSelector::matches`], for a caller that has the values of the fields at hand
    /// without the object.
    pub fn matches_by<'a>(&self, value: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|term| (value(&term.field) == term.value) == term.equal)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

/// The fields beside `metadata.name` and `metadata.namespace` that objects of a built-in kind can be
/// selected by (`pkg/apis/*/v1/conversion.go`, Kubernetes 1.33).
pub fn fields_of(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("" | "events.k8s.io", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec.signerName"],
        _ => &[],
    }
}

/// The value of a field as selectors compare it: defaults filled in, lists joined; missing: empty.
pub fn value_of(object: &Value, field: &str) -> String {
    match field {
        // defaults that the API server fills in before it compares
        "spec.unschedulable" | "spec.hostNetwork" => {
            return (lookup(object, field) == &Value::Bool(true)).to_string();
        }
        "source" => {
            let component = text(lookup(object, "source.component"));
            return if component.is_empty() { text(lookup(object, "reportingComponent")) } else { component };
        }
        // an events.k8s.io/v1 Event spells these differently
        _ if field.starts_with("involvedObject.") && object.get("regarding").is_some() => {
            return text(lookup(object, &field.replacen("involvedObject", "regarding", 1)));
        }
        "reportingComponent" if object.get("reportingController").is_some() => {
            return text(lookup(object, "reportingController"));
        }
        "status.podIPs" => {
            let list = lookup(object, field).as_array();
            let ips = list.into_iter().flatten().filter_map(|ip| ip["ip"].as_str());
            return ips.collect::<Vec<_>>().join(",");
        }
        "status.successful" => return number_or_zero(lookup(object, "status.succeeded")),
        "status.replicas" => return number_or_zero(lookup(object, field)),
        _ => {}
    }
    text(lookup(object, field))
}

fn lookup<'a>(object: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(object, |value, key| &value[key])
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn number_or_zero(value: &Value) -> String {
    value.as_i64().unwrap_or_default().to_string()
}

/// Cuts at commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == ',' {
            terms.push(&text[start..index]);
            start = index + 1;
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let position = term.find(['=', '!'])?;
    let (field, rest) = term.split_at(position);
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Some((field, equal, value));
        }
    }
    None
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}
