//! `AdmissionReview`: what a webhook is asked and what its answer means
//! (`k8s.io/apiserver pkg/admission/plugin/webhook/{request,errors}`, 1.36).

use std::collections::BTreeMap;

use apimachinery::Status;
use apimachinery::apply::sealed::Whole;
use apimachinery::field_error::quote;
use apimachinery::tree::{Value, json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::admission::{Request, Resource};
use crate::attributes::User;

/// The version of the review that both sides speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// `admission.k8s.io/v1`
    V1,
    /// `admission.k8s.io/v1beta1`: uid and kind of the answer are not checked.
    V1Beta1,
}

impl Version {
    /// The first of `admissionReviewVersions` that this server speaks too.
    pub fn choose(versions: &Value) -> Option<Self> {
        versions.as_array()?.iter().find_map(|version| match version.as_str()? {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1Beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// Group, version and kind, as reviews spell them.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
pub struct Kind {
    group: String,
    version: String,
    kind: String,
}

impl Kind {
    /// Of an object.
    pub fn of(object: &Value) -> Self {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = object["kind"].as_str().unwrap_or_default();
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    fn value(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }

    fn at(&self, version: &str) -> Self {
        Self { version: version.into(), ..self.clone() }
    }
}

#[derive(Clone, Copy, Serialize)]
struct Plural<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UserInfo<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
}

impl<'a> From<&'a User> for UserInfo<'a> {
    fn from(user: &'a User) -> Self {
        Self { username: &user.name, uid: &user.uid, groups: &user.groups, extra: &user.extra }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    uid: &'a str,
    kind: Kind,
    resource: Plural<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_resource: &'a str,
    request_kind: Kind,
    request_resource: Plural<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_sub_resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    operation: &'static str,
    user_info: UserInfo<'a>,
    object: Whole<'a>,
    old_object: Whole<'a>,
    dry_run: bool,
    options: &'a Value,
}

#[derive(Serialize)]
struct Review<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    request: Question<'a>,
}

/// One version of an object that a webhook asked for by `matchPolicy: Equivalent`.
pub struct Seen<'a> {
    /// The version that the webhook sees.
    pub version: &'a str,
    /// The new object; null on delete.
    pub object: &'a Value,
    /// The stored object; null on create.
    pub old: &'a Value,
}

fn question<'a>(
    request: &'a Request<'_>,
    resource: Resource<'a>,
    seen: &Seen<'a>,
    uid: &'a str,
) -> Question<'a> {
    let subject = if seen.object.is_null() { seen.old } else { seen.object };
    let kind = Kind::of(subject);
    // another version changes the kind of the object itself only: subresources have kinds of their own
    let (requested, plural) = (
        Plural { group: resource.group, version: resource.version, resource: resource.resource },
        Plural { group: resource.group, version: seen.version, resource: resource.resource },
    );
    let request_kind =
        if resource.version == seen.version { kind.clone() } else { kind.at(resource.version) };
    Question {
        uid,
        kind,
        resource: plural,
        sub_resource: resource.subresource,
        request_kind,
        request_resource: requested,
        request_sub_resource: resource.subresource,
        name: resource.name,
        namespace: resource.namespace,
        operation: request.operation.as_str(),
        user_info: (&request.attributes.user).into(),
        object: Whole(seen.object),
        old_object: Whole(seen.old),
        dry_run: request.attributes.dry_run,
        options: request.options,
    }
}

/// The body of the call.
pub fn encode(
    version: Version,
    request: &Request<'_>,
    resource: Resource<'_>,
    seen: &Seen<'_>,
    uid: &str,
) -> Result<Vec<u8>, serde_json::Error> {
    let request = question(request, resource, seen, uid);
    serde_json::to_vec(&Review { kind: "AdmissionReview", api_version: version.api_version(), request })
}

/// The `request` variable of CEL expressions: the question without its objects.
pub fn cel_request(request: &Request<'_>, object: &Value) -> Value {
    let resource = request.resource(object);
    let subject = if object.is_null() { request.old.unwrap_or(&Value::Null) } else { object };
    let user = &request.attributes.user;
    let plural = json!({"group": resource.group, "version": resource.version, "resource": resource.resource});
    let kind = Kind::of(subject).value();
    json!({"kind": kind, "requestKind": kind, "resource": plural, "requestResource": plural,
        "subResource": resource.subresource, "requestSubResource": resource.subresource,
        "name": resource.name, "namespace": resource.namespace, "operation": request.operation.as_str(),
        "userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra},
        "dryRun": request.attributes.dry_run, "options": request.options})
}

/// What a webhook said.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// The verdict.
    pub allowed: bool,
    /// Why not: a `metav1.Status`.
    pub status: Option<Value>,
    /// JSON patch, with its type; from mutating webhooks only.
    pub patch: Option<(String, Vec<u8>)>,
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub audit_annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireReview {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    response: Option<WireResponse>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireResponse {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    allowed: bool,
    status: Option<Value>,
    patch: Option<String>,
    patch_type: Option<String>,
    #[serde(default)]
    audit_annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// An answer that is none: the text after `failed calling webhook "…": `.
pub fn decode(version: Version, mutating: bool, uid: &str, body: &[u8]) -> Result<Answer, String> {
    let undecodable = |error: &dyn std::fmt::Display| format!("failed to call webhook: {error}");
    let review: Value = serde_json::from_slice(body)
        .map_err(|e| undecodable(&format!("couldn't get version/kind; json parse error: {e}")))?;
    let review: WireReview = apimachinery::tree::from_value(&review).map_err(|e| undecodable(&e))?;
    if review.api_version.is_empty() || review.kind.is_empty() {
        let missing = if review.kind.is_empty() { "Kind" } else { "apiVersion" };
        return Err(undecodable(&format!("Object '{missing}' is missing in '{}'", excerpt(body))));
    }
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    let response = review.response.ok_or_else(|| invalid("webhook response was absent".into()))?;
    if version == Version::V1 {
        if response.uid != uid {
            return Err(invalid(format!(
                "expected response.uid={}, got {}",
                quote(uid),
                quote(&response.uid)
            )));
        }
        if review.api_version != "admission.k8s.io/v1" || review.kind != "AdmissionReview" {
            let got = format!("{}, Kind={}", review.api_version, review.kind);
            return Err(invalid(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {got}"
            )));
        }
    }
    let patch = response.patch.filter(|patch| !patch.is_empty());
    let patch = patch_of(version, mutating, patch, response.patch_type).map_err(invalid)?;
    let patch = patch
        .map(|(kind, text)| STANDARD.decode(text).map(|bytes| (kind, bytes)))
        .transpose()
        .map_err(|e| undecodable(&format!("illegal base64 data in response.patch: {e}")))?;
    Ok(Answer {
        allowed: response.allowed,
        status: response.status,
        patch,
        warnings: response.warnings.unwrap_or_default(),
        audit_annotations: response.audit_annotations.unwrap_or_default(),
    })
}

fn patch_of(
    version: Version,
    mutating: bool,
    patch: Option<String>,
    kind: Option<String>,
) -> Result<Option<(String, String)>, String> {
    if !mutating {
        return match (patch, kind) {
            _ if version == Version::V1Beta1 => Ok(None),
            (Some(_), _) => Err("validating webhook may not return response.patch".into()),
            (None, Some(_)) => Err("validating webhook may not return response.patchType".into()),
            (None, None) => Ok(None),
        };
    }
    match (patch, kind) {
        (Some(patch), _) if version == Version::V1Beta1 => Ok(Some(("JSONPatch".into(), patch))),
        (None, _) if version == Version::V1Beta1 => Ok(None),
        (Some(_), None) => Err("webhook returned response.patch but not response.patchType".into()),
        (None, Some(_)) => Err("webhook returned response.patchType but not response.patch".into()),
        (Some(_), Some(kind)) if kind.is_empty() => {
            Err("webhook returned invalid response.patchType of \"\"".into())
        }
        (patch, kind) => Ok(kind.zip(patch)),
    }
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(256).collect()
}

/// The answer for the client when a webhook said no.
pub fn denial(webhook: &str, status: Option<&Value>) -> Status {
    let denied = format!("admission webhook {} denied the request", quote(webhook));
    let empty = json!({});
    let status = status.unwrap_or(&empty);
    let reason = status["reason"].as_str().unwrap_or_default();
    let message = match (status["message"].as_str().unwrap_or_default(), reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    // codes below 400 cannot refuse; above 599 they are no HTTP
    let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
    let details = status["details"].as_object().map(|details| Value::Object(details.clone()));
    Status { details, ..Status::new(code, reason.to_owned(), message) }
}

/// Whether a webhook's own requests are never sent to webhooks (`IsExemptAdmissionConfigurationResource`).
pub fn is_exempt(resource: &Resource<'_>) -> bool {
    resource.group == "admissionregistration.k8s.io"
        && matches!(
            resource.resource,
            "mutatingwebhookconfigurations"
                | "validatingwebhookconfigurations"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
                | "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(mutating: bool, response: &Value) -> Result<Answer, String> {
        let body =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        decode(Version::V1, mutating, "u", body.to_string().as_bytes())
    }

    #[test]
    fn wrong_answers_are_named_as_the_api_names_them() {
        for (mutating, response, want) in [
            (true, Value::Null, "received invalid webhook response: webhook response was absent"),
            (
                true,
                json!({"uid": "x"}),
                r#"received invalid webhook response: expected response.uid="u", got "x""#,
            ),
            (
                true,
                json!({"uid": "u", "patch": "W10="}),
                "received invalid webhook response: webhook returned response.patch but not response.patchType",
            ),
            (
                true,
                json!({"uid": "u", "patchType": "JSONPatch"}),
                "received invalid webhook response: webhook returned response.patchType but not response.patch",
            ),
            (
                true,
                json!({"uid": "u", "patch": "W10=", "patchType": ""}),
                "received invalid webhook response: webhook returned invalid response.patchType of \"\"",
            ),
            (
                false,
                json!({"uid": "u", "patch": "W10="}),
                "received invalid webhook response: validating webhook may not return response.patch",
            ),
            (
                false,
                json!({"uid": "u", "patchType": "JSONPatch"}),
                "received invalid webhook response: validating webhook may not return response.patchType",
            ),
        ] {
            assert_eq!(answer(mutating, &response).unwrap_err(), want);
        }
        let other = json!({"apiVersion": "v1", "kind": "Pod", "response": {"uid": "u"}}).to_string();
        assert_eq!(
            decode(Version::V1, true, "u", other.as_bytes()).unwrap_err(),
            "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got v1, Kind=Pod"
        );
        assert!(decode(Version::V1, true, "u", b"garbage").unwrap_err().contains("json parse error"));
        assert!(
            decode(Version::V1, true, "u", b"{}").unwrap_err().contains("Object 'Kind' is missing in '{}'")
        );
    }

    #[test]
    fn v1beta1_answers_need_no_uid_and_no_patch_type() {
        let body = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview",
            "response": {"allowed": true, "patch": "W10="}});
        let answer = decode(Version::V1Beta1, true, "u", body.to_string().as_bytes()).unwrap();
        assert_eq!(answer.patch, Some(("JSONPatch".into(), b"[]".to_vec())));
    }

    #[test]
    fn denials_keep_what_the_webhook_said() {
        for (status, code, reason, message) in [
            (json!({"code": 403, "reason": "Forbidden", "message": "no"}), 403, "Forbidden", ": no"),
            (json!({"code": 409, "reason": "Conflict", "message": "not now"}), 409, "Conflict", ": not now"),
            (Value::Null, 400, "", " without explanation"),
            (json!({"code": 200, "status": "Success"}), 400, "", " without explanation"),
            (json!({"reason": "Teapot"}), 400, "Teapot", ": Teapot"),
            (json!({"message": "json: cannot"}), 400, "", ": json: cannot"),
        ] {
            let got = denial("w.example", Some(&status));
            assert_eq!((got.code, got.reason.as_ref()), (code, reason));
            assert_eq!(got.message, format!("admission webhook \"w.example\" denied the request{message}"));
        }
        let details = json!({"causes": [{"field": "spec.x"}]});
        assert_eq!(denial("w", Some(&json!({"details": details}))).to_json()["details"], details);
    }
}
