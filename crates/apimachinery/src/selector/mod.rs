//! Label and field selectors: parse, print, match (`k8s.io/apimachinery` `pkg/labels`, `pkg/fields`, 1.33).

mod field;
mod parse;

use std::fmt;

use crate::tree::{Map, Value};

use crate::Status;
use crate::field_error::FieldError;
use crate::validation;

pub use field::{FieldSelector, fields_of, value_of};

/// Selectors longer than this are refused: nothing real comes near, and matching is linear in it.
pub const SELECTOR_MAX: usize = 64 * 1024;

/// A selector that cannot be understood; the message is the one a real API server gives.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl From<SelectorError> for Status {
    fn from(error: SelectorError) -> Self {
        Self::bad_request(error.0)
    }
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`; also true without the label.
    NotIn,
    /// `key=a`
    Equals,
    /// `key==a`
    DoubleEquals,
    /// `key!=a`; also true without the label.
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`; integers only.
    GreaterThan,
    /// `key<1`; integers only.
    LessThan,
}

/// One comparison.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    /// sorted, each once
    values: Vec<String>,
}

/// Labels that an object must have: all requirements hold.
///
/// ```
/// # use apimachinery::selector::LabelSelector;
/// let selector = LabelSelector::parse("app in (a,b),!old").unwrap();
/// assert!(selector.matches_object(&apimachinery::tree::json!({"metadata": {"labels": {"app": "a"}}})));
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    /// A requirement, checked as the API checks it; `path` is the field that it came from
    /// (`None`: a query string).
    pub fn new(
        key: &str,
        operator: Operator,
        values: Vec<String>,
        path: Option<&str>,
    ) -> Result<Self, FieldError> {
        let child = |name: &str| path.map_or(name.to_owned(), |path| format!("{path}.{name}"));
        check_key(key, &child("key"))?;
        let integers = matches!(operator, Operator::GreaterThan | Operator::LessThan);
        let complaint = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            _ if integers && values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(complaint) = complaint {
            return Err(FieldError::invalid(child("values"), values, complaint));
        }
        for (index, value) in values.iter().enumerate() {
            let field = format!("{}[{index}]", child("values"));
            if integers && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                return Err(FieldError::invalid(field, value.as_str(), detail));
            }
            let wrong = validation::label_value(value);
            if !wrong.is_empty() {
                return Err(FieldError::invalid(format!("{field}[{key}]"), value.as_str(), wrong.join("; ")));
            }
        }
        let mut values = values;
        values.sort_unstable();
        values.dedup();
        Ok(Self { key: key.into(), operator, values })
    }

    fn matches(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => label.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => self.compare(label, |label, value| label > value),
            Operator::LessThan => self.compare(label, |label, value| label < value),
        }
    }

    fn compare(&self, label: Option<&str>, test: fn(i64, i64) -> bool) -> bool {
        let label = label.and_then(|label| label.parse().ok());
        let value = self.values.first().and_then(|value| value.parse().ok());
        label.zip(value).is_some_and(|(label, value)| test(label, value))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the form of query strings: `a=b,c in (d,e),!f`. Empty: everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_MAX {
            return Err(SelectorError(format!("label selector is longer than {SELECTOR_MAX} bytes")));
        }
        let mut requirements = parse::requirements(text)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). `null`: nothing; `{}`: everything.
    pub fn from_object(object: &Value) -> Result<Self, SelectorError> {
        let object = match object {
            Value::Null => return Ok(Self::nothing()),
            Value::Object(object) => object,
            other => return Err(SelectorError(format!("a label selector must be an object, not {other}"))),
        };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            requirements.push(requirement(key, Operator::Equals, values)?);
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let other = crate::field_error::quote(other);
                    return Err(SelectorError(format!("{other} is not a valid label selector operator")));
                }
            };
            let strings = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let values = strings.map(str::to_owned).collect();
            requirements.push(requirement(expression["key"].as_str().unwrap_or_default(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Whether no requirement is made at all.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether a map of labels fulfils every requirement.
    pub fn matches(&self, labels: &Map) -> bool {
        self.matches_by(|key| labels.get(key).and_then(Value::as_str))
    }

    /// As [`LabelSelector::matches`], for labels that are kept in another form than a map.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether the labels in `metadata.labels` of an object fulfil every requirement.
    pub fn matches_object(&self, object: &Value) -> bool {
        match object["metadata"]["labels"].as_object() {
            Some(labels) => self.matches(labels),
            None => self.matches(&Map::new()),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

fn requirement(key: &str, operator: Operator, values: Vec<String>) -> Result<Requirement, SelectorError> {
    Requirement::new(key, operator, values, None).map_err(|error| SelectorError(error.to_string()))
}

fn check_key(key: &str, field: &str) -> Result<(), FieldError> {
    let wrong = validation::qualified_name(key);
    if wrong.is_empty() { Ok(()) } else { Err(FieldError::invalid(field, key, wrong.join("; "))) }
}

#[cfg(test)]
mod tests;
