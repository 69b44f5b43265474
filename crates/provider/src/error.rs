//! What can go wrong with an operation, in the words of the person who asked for it.

use http::StatusCode;
use serde::Serialize;

/// The kinds of failure. Their names in kebab-case are the stable codes of the REST service.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request itself is wrong.
    InvalidArgument,
    /// No identity, or one that the cluster does not know.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    /// There is no such object.
    NotFound,
    /// An object of this name is there already.
    AlreadyExists,
    /// The VM is not in a state that allows it.
    WrongState,
    /// Somebody else changed the object in between; nothing was written.
    Conflict,
    /// Admission or validation refused it.
    Refused,
    /// The cluster lacks what the operation needs.
    MissingCapability,
    /// A list took so long that its pages are gone.
    Expired,
    /// Too many requests.
    TooManyRequests,
    /// It did not get there in time. What was asked for may still happen.
    Timeout,
    /// The cluster failed or could not be reached. A write may or may not have been done.
    Cluster,
}

/// Every kind, in the order of the REST document.
pub const KINDS: [Kind; 13] = [
    Kind::InvalidArgument,
    Kind::Unauthenticated,
    Kind::Forbidden,
    Kind::NotFound,
    Kind::AlreadyExists,
    Kind::WrongState,
    Kind::Conflict,
    Kind::Refused,
    Kind::MissingCapability,
    Kind::Expired,
    Kind::TooManyRequests,
    Kind::Timeout,
    Kind::Cluster,
];

impl Kind {
    /// The stable code, as in `not-found`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid-argument",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::WrongState => "wrong-state",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::MissingCapability => "missing-capability",
            Self::Expired => "expired",
            Self::TooManyRequests => "too-many-requests",
            Self::Timeout => "timeout",
            Self::Cluster => "cluster",
        }
    }

    /// The HTTP status of the REST service.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::WrongState | Self::Conflict => StatusCode::CONFLICT,
            Self::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::MissingCapability => StatusCode::NOT_IMPLEMENTED,
            Self::Expired => StatusCode::GONE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Cluster => StatusCode::BAD_GATEWAY,
        }
    }
}

/// What was being done to which object, what is wrong, and what to do about it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{doing}: {wrong}")]
pub struct Error {
    /// The kind of failure.
    pub kind: Kind,
    /// What was being done to which object, as in "starting VM `default/web`".
    pub doing: String,
    /// What is wrong.
    pub wrong: String,
    /// What to do, as an instruction.
    pub remedy: String,
}

impl Error {
    /// A failure in full.
    pub fn new(
        kind: Kind,
        doing: impl Into<String>,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { kind, doing: doing.into(), wrong: wrong.into(), remedy: remedy.into() }
    }

    /// A refusal of the API server: the HTTP status, and `reason` and `message` of its `Status`.
    pub fn refused(doing: &str, code: u16, reason: &str, message: &str) -> Self {
        let kind = kind_of(code, reason, message);
        let message = if message.is_empty() { "the API server gave no reason" } else { message };
        Self::new(kind, doing, message, remedy_of(kind))
    }
}

/// Which kind an answer of the API server is.
fn kind_of(code: u16, reason: &str, message: &str) -> Kind {
    match (code, reason) {
        (400, _) => Kind::InvalidArgument,
        (401, _) => Kind::Unauthenticated,
        (403, _) => Kind::Forbidden,
        (404, _) => Kind::NotFound,
        (409, "AlreadyExists") => Kind::AlreadyExists,
        // virt-api says 409 Conflict for both; only the text tells them apart
        // (pkg/virt-api/rest/lifecycle.go, v1.9)
        (409, _)
            if message.contains("test operation does not apply")
                || message.contains("has been modified")
                || message.contains("Precondition failed") =>
        {
            Kind::Conflict
        }
        (409, _) => Kind::WrongState,
        (410, _) => Kind::Expired,
        (422, _) => Kind::Refused,
        (429, _) => Kind::TooManyRequests,
        // the guest agent subresources answer 500 with plain text for what is not there (v1.9)
        (500, _) if message.ends_with("not found") => Kind::NotFound,
        (504, _) => Kind::Timeout,
        _ => Kind::Cluster,
    }
}

/// What to do about it, when nothing more is known.
fn remedy_of(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument | Kind::Refused => "correct what the message names",
        Kind::Unauthenticated => "log in again, or check the token of the kubeconfig",
        Kind::Forbidden => "ask for the right, or check `virt-steward capabilities` for what you may do",
        Kind::NotFound => "check the name and the namespace: `virt-steward vm list -A`",
        Kind::AlreadyExists => "choose another name",
        Kind::WrongState => "look at its state: `virt-steward vm describe`",
        Kind::Conflict => "somebody else changed it meanwhile and nothing was written: look, then try again",
        Kind::MissingCapability => "see `virt-steward capabilities`",
        Kind::Expired => "list again",
        Kind::TooManyRequests => "wait a little, then try again",
        Kind::Timeout => "give it more time with `--timeout`; it may still happen",
        Kind::Cluster => "check `kubectl cluster-info`; look at the object before you try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_api_server_have_a_kind() {
        for (code, reason, message, kind) in [
            (404, "NotFound", "virtualmachine.kubevirt.io \"web\" not found", Kind::NotFound),
            (403, "Forbidden", "cannot", Kind::Forbidden),
            (409, "Conflict", "VM is already running", Kind::WrongState),
            (409, "Conflict", "jsonpatch test operation does not apply: x", Kind::Conflict),
            (409, "Conflict", "the object has been modified; please apply", Kind::Conflict),
            (409, "AlreadyExists", "exists", Kind::AlreadyExists),
            (500, "", "virtualmachineinstance.kubevirt.io \"x\" not found", Kind::NotFound),
            (500, "InternalError", "boom", Kind::Cluster),
            (503, "ServiceUnavailable", "", Kind::Cluster),
        ] {
            assert_eq!(Error::refused("x", code, reason, message).kind, kind, "{code} {message}");
        }
    }

    #[test]
    fn codes_are_the_names_of_the_kinds() {
        for kind in KINDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.code());
        }
    }
}
