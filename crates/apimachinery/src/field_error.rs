//! Field errors as the Kubernetes API words them (`k8s.io/apimachinery` `util/validation/field`, 1.33):
//! what is wrong with which field, and the `422 Invalid` that carries a list of them.

use std::fmt;

use crate::tree::Value;

use crate::{Cause, Status};

/// What kind of thing is wrong with a field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldErrorKind {
    /// The value is missing.
    Required,
    /// The value occurs twice where it must be unique.
    Duplicate,
    /// The value breaks a rule.
    Invalid,
    /// The value is not of the expected type.
    TypeInvalid,
    /// The value is not one of a closed set.
    NotSupported,
    /// The value may not be set here, or not by this caller.
    Forbidden,
    /// The value names something that is not there.
    NotFound,
    /// The value has too many bytes.
    TooLong,
    /// The value has too many items.
    TooMany,
    /// The rule itself could not be evaluated.
    Internal,
}

impl FieldErrorKind {
    fn label(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::Internal)
    }
}

/// One field that is wrong. Displayed as `spec.x: Invalid value: "y": why`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What kind of thing is wrong.
    pub kind: FieldErrorKind,
    /// The path, for example `spec.containers[0].name`.
    pub field: String,
    /// The offending value; shown only for the kinds where the API shows it.
    pub value: Value,
    /// Why; may be empty.
    pub detail: String,
}

impl FieldError {
    /// Any kind of error.
    pub fn new(
        kind: FieldErrorKind,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), value: value.into(), detail: detail.into() }
    }

    /// `field: Invalid value: …: detail`
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, field, value, detail)
    }

    /// `field: Required value: detail`
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, field, Value::Null, detail)
    }

    /// `field: Forbidden: detail`
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, Value::Null, detail)
    }

    /// `field: Duplicate value: …`
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, field, value, "")
    }

    /// `field: Too many: N: must have at most M items`
    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        Self::new(FieldErrorKind::TooMany, field, count, format!("must have at most {limit} items"))
    }

    /// `field: Unsupported value: …: supported values: "a", "b"`
    pub fn not_supported<S: AsRef<str>>(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[S],
    ) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s.as_ref())).collect();
        let detail =
            if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(FieldErrorKind::NotSupported, field, value, detail)
    }

    /// The message without the field.
    pub fn body(&self) -> String {
        let mut out = self.kind.label().to_owned();
        if self.kind.shows_value() {
            out.push_str(": ");
            match &self.value {
                Value::String(text) => out.push_str(&quote(text)),
                other => out.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    /// The entry of `details.causes` for this error.
    pub fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().into(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Joins messages as Go's `utilerrors.Aggregate` does: one alone, several in brackets, each once.
pub fn aggregate<I: IntoIterator<Item = String>>(messages: I) -> String {
    let mut unique: Vec<String> = Vec::new();
    for message in messages {
        if !unique.contains(&message) {
            unique.push(message);
        }
    }
    match unique.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

impl Status {
    /// `422 Invalid`: `Kind.group "name" is invalid: …` with one cause per error. `kind` is the Kind, not the plural.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let all = aggregate(errors.iter().take(MAX_LISTED).map(ToString::to_string));
        let message = format!("{qualified} {} is invalid: {all}", quote(name));
        let mut status = Self::new(422, "Invalid", message).about(group, kind, name);
        status.causes = errors.iter().take(MAX_LISTED).map(FieldError::cause).collect();
        status
    }
}

/// More errors than this are not listed: bounds the answer to an object that is wrong all over.
const MAX_LISTED: usize = 100;

/// A string as Go's `%q` prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.extend(format!("\\x{:02x}", c as u32).chars()),
            c if c.is_control() => out.extend(format!("\\u{:04x}", c as u32).chars()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use crate::tree::json;

    use super::*;

    #[test]
    fn invalid_says_each_thing_once_but_lists_every_cause() {
        let error = FieldError::invalid("metadata.uid", "0000", "field is immutable");
        let status = Status::invalid("", "ConfigMap", "p", &[error.clone(), error]);
        assert_eq!(
            status.message,
            r#"ConfigMap "p" is invalid: metadata.uid: Invalid value: "0000": field is immutable"#
        );
        assert_eq!(status.causes.len(), 2);
        assert_eq!(status.to_json()["details"]["kind"], "ConfigMap");
    }

    #[test]
    fn each_kind_is_worded_as_the_api_words_it() {
        for (error, want) in [
            (FieldError::required("spec.x", ""), "spec.x: Required value"),
            (FieldError::invalid("spec.x", 7, "must be even"), "spec.x: Invalid value: 7: must be even"),
            (
                FieldError::not_supported("spec.x", "c", &["a", "b"]),
                r#"spec.x: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (FieldError::forbidden("spec", "no"), "spec: Forbidden: no"),
            (
                FieldError::new(FieldErrorKind::Duplicate, "l[1]", json!({"a": 1}), ""),
                r#"l[1]: Duplicate value: {"a":1}"#,
            ),
        ] {
            assert_eq!(error.to_string(), want);
        }
    }
}
