//! What is answered to a review.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Why, in one word, for metrics.
    pub reason: &'static str,
    /// Why it is denied; `None`: it is allowed.
    pub denial: Option<String>,
    code: u16,
    patch: Option<Value>,
}

impl Answer {
    pub(super) const fn allow(reason: &'static str) -> Self {
        Self { reason, denial: None, code: 200, patch: None }
    }

    pub(super) const fn deny(reason: &'static str, code: u16, message: String) -> Self {
        Self { reason, denial: Some(message), code, patch: None }
    }

    pub(super) const fn patch(reason: &'static str, patch: Value) -> Self {
        Self { reason, denial: None, code: 200, patch: Some(patch) }
    }

    /// Whether it is allowed.
    pub fn is_allowed(&self) -> bool {
        self.denial.is_none()
    }

    /// The review that carries it. A denial has a status: without one an API server makes it 400.
    pub fn review(&self, asked: &Value) -> Value {
        let uid = asked.pointer("/request/uid").cloned().unwrap_or_default();
        let mut response = json!({"uid": uid, "allowed": self.is_allowed()});
        if let Some(message) = &self.denial {
            let reason = if self.code == 429 { "TooManyRequests" } else { "Forbidden" };
            response["status"] =
                json!({"status": "Failure", "code": self.code, "reason": reason, "message": message});
        }
        if let Some(patch) = &self.patch {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch.to_string()).into();
        }
        json!({"apiVersion": asked["apiVersion"], "kind": "AdmissionReview", "response": response})
    }
}
