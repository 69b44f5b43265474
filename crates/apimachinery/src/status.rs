//! Errors as the Kubernetes API answers them: a `Status` object (`meta/v1`), and the code.

use std::borrow::Cow;

use crate::tree::{Value, json};

/// One reason inside [`Status::causes`] (`metav1.StatusCause`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cause {
    /// Machine-readable, for example `FieldValueInvalid`; empty: left out.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The field that it is about, for example `spec.running`; empty: left out.
    pub field: String,
}

/// A failed request.
#[derive(Clone, Debug, Default, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`; empty: left out (a real API server does so for some 400s). Webhooks may answer
    /// any reason.
    pub reason: Cow<'static, str>,
    /// What kubectl prints.
    pub message: String,
    /// `details`, without the causes: name, group, kind, uid, retryAfterSeconds.
    /// `None` and no causes: no `details` at all.
    pub details: Option<Value>,
    /// `details.causes`
    pub causes: Vec<Cause>,
}

impl Status {
    /// A failure with no details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), ..Self::default() }
    }

    /// `404 <resource> "<name>" not found`; `resource` is `plural` or `plural.group`.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(group, plural)))
            .about(group, plural, name)
    }

    /// `409 AlreadyExists`
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", qualified(group, plural)))
            .about(group, plural, name)
    }

    /// `409 Conflict`: `why` follows the usual `Operation cannot be fulfilled on …`.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural));
        Self::new(409, "Conflict", message).about(group, plural, name)
    }

    /// `400 BadRequest`
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// `500 InternalError` with the prefix that a real API server writes.
    pub fn internal(message: &str) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.causes.push(Cause { message: message.into(), ..Cause::default() });
        status
    }

    /// Names the object that the failure is about.
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let mut details = crate::tree::Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        self.details = Some(Value::Object(details));
        self
    }

    /// Adds a cause.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.causes.push(cause);
        self
    }

    /// The object that goes over the wire.
    pub fn to_json(&self) -> Value {
        let mut out = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code});
        if !self.reason.is_empty() {
            out["reason"] = self.reason.as_ref().into();
        }
        let mut details = self.details.clone();
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(cause_json).collect();
            details.get_or_insert_with(|| json!({}))["causes"] = causes.into();
        }
        if let Some(details) = details {
            out["details"] = details;
        }
        out
    }
}

fn cause_json(cause: &Cause) -> Value {
    let mut out = crate::tree::Map::new();
    for (key, value) in [("reason", &cause.reason), ("message", &cause.message), ("field", &cause.field)] {
        if !value.is_empty() {
            out.insert(key.into(), value.as_str().into());
        }
    }
    Value::Object(out)
}

fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}") }
}
