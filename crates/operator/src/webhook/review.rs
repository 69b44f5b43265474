//! The wire form of admission: `AdmissionReview` in, `AdmissionReview` out.
//!
//! `admission.k8s.io/v1` and `v1beta1` (the same fields; API servers before 1.22 may be told to
//! send it) are each answered in kind. The objects in a review are of a type that the caller chooses:
//! read in the same pass, or skipped when nothing in the body can concern us.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Serialize};

/// The versions of `AdmissionReview` that are answered.
const VERSIONS: [&str; 2] = ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"];

/// Why a body is not a review that can be answered; always the caller's fault (HTTP 400).
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or a field of the wrong kind.
    #[error("the body is not a valid AdmissionReview: {0}")]
    Malformed(serde_json::Error),
    /// JSON of another kind.
    #[error("the body is a {0:?}, not an AdmissionReview")]
    WrongKind(String),
    /// A version from the future.
    #[error(
        "AdmissionReview version {0:?} is not known; accepted: admission.k8s.io/v1, admission.k8s.io/v1beta1"
    )]
    UnknownVersion(String),
    /// A review without a request, such as an answer sent back to us.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct Review<'a, O> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<AdmissionRequest<'a, O>>,
}

/// The parts of an `AdmissionRequest` (KEP-492, `k8s.io/api/admission/v1`) that are looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
pub struct AdmissionRequest<'a, O> {
    /// Ties answer, logs and audit together.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    /// What kind the object is.
    #[serde(borrow, default)]
    pub kind: GroupVersionKind<'a>,
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`
    #[serde(borrow, default)]
    pub operation: Cow<'a, str>,
    /// Empty with `generateName`.
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    /// Where it lives.
    #[serde(borrow, default)]
    pub namespace: Cow<'a, str>,
    /// For example `status`; empty for the object itself.
    #[serde(borrow, default)]
    pub sub_resource: Cow<'a, str>,
    /// Who asks.
    #[serde(borrow, default)]
    pub user_info: UserInfo<'a>,
    /// The object as it would be stored; absent on DELETE.
    pub object: Option<O>,
    /// The object as it is stored; absent on CREATE.
    pub old_object: Option<O>,
    /// Nothing will be stored.
    #[serde(default, deserialize_with = "null_is_false")]
    pub dry_run: bool,
}

/// `metav1.GroupVersionKind`
#[derive(Debug, Default, Deserialize)]
pub struct GroupVersionKind<'a> {
    /// For example `kubevirt.io`.
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    /// For example `VirtualMachine`.
    #[serde(borrow, default)]
    pub kind: Cow<'a, str>,
}

/// `authentication/v1.UserInfo`, as far as policies look.
#[derive(Debug, Default, Deserialize)]
pub struct UserInfo<'a> {
    /// For example `system:serviceaccount:default:deployer`.
    #[serde(borrow, default)]
    pub username: Cow<'a, str>,
    /// For example `system:authenticated`; what `null` stands for has none.
    #[serde(borrow, default)]
    pub groups: Option<Vec<Cow<'a, str>>>,
}

fn null_is_false<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(Option::<bool>::deserialize(from)?.unwrap_or_default())
}

/// A body as text. Checked once as a whole: string by string, as `serde_json::from_slice` does it,
/// takes several times as long.
pub fn text(body: &[u8]) -> Result<&str, ReviewError> {
    std::str::from_utf8(body).map_err(|error| ReviewError::Malformed(Error::custom(error)))
}

/// Reads a review, its objects as `O`: `Value`, `Relevant`, or `IgnoredAny` to skip them. The first part of the
/// result is the version to answer in.
pub fn parse<'a, O: Deserialize<'a>>(
    text: &'a str,
) -> Result<(&'static str, AdmissionRequest<'a, O>), ReviewError> {
    let review: Review<'_, O> = serde_json::from_str(text).map_err(ReviewError::Malformed)?;
    if review.kind != "AdmissionReview" {
        return Err(ReviewError::WrongKind(shorten(&review.kind)));
    }
    let version = VERSIONS
        .into_iter()
        .find(|version| *version == review.api_version)
        .ok_or_else(|| ReviewError::UnknownVersion(shorten(&review.api_version)))?;
    Ok((version, review.request.ok_or(ReviewError::NoRequest)?))
}

/// Enough of a stranger's text to recognise it in an error.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What is answered.
#[derive(Debug, Default)]
pub struct Answer {
    /// Why the request is denied; `None`: it is allowed.
    pub denial: Option<String>,
    /// A JSON patch, serialised; `None`: nothing changes.
    pub patch: Option<Vec<u8>>,
    /// Shown to the user by kubectl and other clients.
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status<'a> {
    #[serde(rename = "status")]
    outcome: &'static str,
    code: u16,
    reason: &'static str,
    message: &'a str,
}

/// Writes the answer. A denial always carries a status: without one an API server makes it HTTP
/// 400 (seen with 1.36), with 403 `Forbidden` clients show the message and do not try again.
pub fn write(version: &'static str, uid: &str, answer: &Answer) -> Result<Vec<u8>, serde_json::Error> {
    let status = answer.denial.as_deref().map(|message| Status {
        outcome: "Failure",
        code: 403,
        reason: "Forbidden",
        message,
    });
    let patch = answer.patch.as_ref().filter(|_| answer.denial.is_none()).map(|patch| STANDARD.encode(patch));
    let response = Response {
        uid,
        allowed: answer.denial.is_none(),
        status,
        patch_type: patch.is_some().then_some("JSONPatch"),
        patch,
        warnings: &answer.warnings,
    };
    serde_json::to_vec(&Written { api_version: version, kind: "AdmissionReview", response })
}
