//! `ServiceAccount` tokens: JWTs (RFC 7519) signed with ES256, with the claims of a real API server
//! (`pkg/serviceaccount/claims.go`, Kubernetes 1.36).

use std::collections::BTreeMap;

use apimachinery::tree::{Value, json};
use apimachinery::{FieldError, Status};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};

use crate::attributes::User;
use crate::clock::seconds;
use crate::objects::Objects;

/// `iss`, and the audience of tokens that name none.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Seconds a token is good for when the request does not say.
const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST_SECONDS: i64 = 600;
const LONGEST_SECONDS: i64 = 1 << 32;
/// Longer tokens are not looked at.
const TOKEN_MAX: usize = 16 * 1024;

/// No signing key could be made.
#[derive(Debug, thiserror::Error)]
#[error("make the key that signs service account tokens")]
pub struct NoKey;

/// What signs and checks tokens. The key lives as long as the sandbox.
#[derive(Debug)]
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

/// For whom, for what and how long (`TokenRequest.spec`), checked.
#[derive(Clone, Debug)]
struct Grant {
    audiences: Vec<String>,
    seconds: i64,
    /// `pod`, `secret` or `node`, with name and uid; for a pod that has one, its node as well
    /// (`ServiceAccountTokenPodNodeInfo`, Kubernetes 1.32).
    bound: Vec<(String, Value)>,
}

impl Tokens {
    /// A new key.
    ///
    /// # Errors
    /// When the machine gives no randomness.
    pub fn new() -> Result<Self, NoKey> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| NoKey)?;
        Ok(Self { key, random: SystemRandom::new() })
    }

    /// Answers a POST on `serviceaccounts/token`: the request with its status.
    ///
    /// # Errors
    /// 404 without the account; 409 for a bound object that is not there or is another; 422 for a bad duration.
    pub fn request(
        &self,
        objects: &dyn Objects,
        (namespace, name): (&str, &str),
        mut request: Value,
        now: Timestamp,
        id: &str,
    ) -> Result<Value, Status> {
        if ["metadata", "spec"].iter().any(|part| !request[part].is_object() && !request[part].is_null()) {
            return Err(Status::bad_request("metadata and spec of a TokenRequest are objects"));
        }
        let account = objects.get("", "serviceaccounts", namespace, name);
        let account = account.ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
        let grant = grant(objects, namespace, &request["spec"])?;
        let expires = now + SignedDuration::from_secs(grant.seconds);
        let mut kubernetes = json!({"namespace": namespace,
            "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]}});
        for (kind, bound) in &grant.bound {
            kubernetes[kind] = bound.clone();
        }
        let claims = json!({"iss": ISSUER, "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "aud": grant.audiences, "iat": now.as_second(), "nbf": now.as_second(), "exp": expires.as_second(),
            "jti": id, "kubernetes.io": kubernetes});
        let token = self.sign(&claims)?;
        request["spec"]["audiences"] = json!(grant.audiences);
        request["spec"]["expirationSeconds"] = grant.seconds.into();
        request["metadata"]["name"] = name.into();
        request["metadata"]["namespace"] = namespace.into();
        request["metadata"]["creationTimestamp"] = seconds(now).into();
        request["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
        Ok(request)
    }

    fn sign(&self, claims: &Value) -> Result<String, Status> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", part(&json!({"alg": "ES256", "kid": "sandbox", "typ": "JWT"})), part(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| Status::internal("signing a service account token failed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// Who a token is, and for which of the wanted audiences it was made.
    ///
    /// # Errors
    /// What is wrong with it, for people; never the token.
    pub fn verify(
        &self,
        objects: &dyn Objects,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(User, Vec<String>), String> {
        let claims = self.claims(token)?;
        if claims["iss"] != ISSUER {
            return Err("token was issued by someone else".into());
        }
        let second = now.as_second();
        if claims["exp"].as_i64().is_none_or(|expires| expires <= second) {
            return Err("service account token has expired".into());
        }
        if claims["nbf"].as_i64().is_some_and(|start| start > second) {
            return Err("service account token is not valid yet".into());
        }
        let own = strings(&claims["aud"]);
        let matching: Vec<String> =
            audiences.iter().filter(|audience| own.contains(audience)).cloned().collect();
        if matching.is_empty() {
            return Err(format!("token audiences {own:?} is invalid for the target audiences {audiences:?}"));
        }
        Ok((user(objects, &claims)?, matching))
    }

    fn claims(&self, token: &str) -> Result<Value, String> {
        let malformed = || "token is no JWT".to_owned();
        if token.len() > TOKEN_MAX {
            return Err(malformed());
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or_else(malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed());
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| malformed())?;
        if header["alg"] != "ES256" {
            return Err("token is signed with another algorithm than ES256".into());
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| "token signature is invalid".to_owned())?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| malformed())
    }
}

fn grant(objects: &dyn Objects, namespace: &str, spec: &Value) -> Result<Grant, Status> {
    let mut audiences = strings(&spec["audiences"]);
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let complaint = match seconds {
        ..SHORTEST_SECONDS => Some("may not specify a duration less than 10 minutes"),
        SHORTEST_SECONDS..=LONGEST_SECONDS => None,
        _ => Some("may not specify a duration larger than 2^32 seconds"),
    };
    if let Some(complaint) = complaint {
        let error = FieldError::invalid("spec.expirationSeconds", seconds, complaint);
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    let reference = &spec["boundObjectRef"];
    let bound = if reference.is_object() { bound(objects, namespace, reference)? } else { Vec::new() };
    Ok(Grant { audiences, seconds, bound })
}

fn bound(objects: &dyn Objects, namespace: &str, reference: &Value) -> Result<Vec<(String, Value)>, Status> {
    let name = reference["name"].as_str().unwrap_or_default();
    let (claim, plural, namespace) = match reference["kind"].as_str() {
        Some("Pod") => ("pod", "pods", namespace),
        Some("Secret") => ("secret", "secrets", namespace),
        Some("Node") => ("node", "nodes", ""),
        other => {
            let kind = other.unwrap_or_default();
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount to object kind {kind:?}"
            )));
        }
    };
    let object = objects.get("", plural, namespace, name);
    let object = object.ok_or_else(|| Status::not_found("", plural, name))?;
    let uid = &object["metadata"]["uid"];
    if let Some(wanted) = reference["uid"].as_str().filter(|wanted| !wanted.is_empty() && uid != wanted) {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    let mut bound = vec![(claim.to_owned(), json!({"name": name, "uid": uid}))];
    if claim == "pod"
        && let Some(node) = object["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
    {
        let uid =
            objects.get("", "nodes", "", node).map_or(Value::Null, |node| node["metadata"]["uid"].clone());
        bound.push(("node".to_owned(), json!({"name": node, "uid": uid})));
    }
    Ok(bound)
}

/// The user of a token whose signature holds: as long as the account, and what it is bound to, are those it was made
/// for.
fn user(objects: &dyn Objects, claims: &Value) -> Result<User, String> {
    let own = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, account) = (text(&own["namespace"]), &own["serviceaccount"]);
    let (name, uid) = (text(&account["name"]), text(&account["uid"]));
    let alive = |plural: &str, namespace: &str, reference: &Value| {
        let object = objects.get("", plural, namespace, reference["name"].as_str().unwrap_or_default());
        object.is_some_and(|object| object["metadata"]["uid"] == reference["uid"])
    };
    if !alive("serviceaccounts", &namespace, account) {
        return Err("service account token has been invalidated".into());
    }
    let mut extra = BTreeMap::new();
    for (claim, plural, scope) in
        [("pod", "pods", namespace.as_str()), ("secret", "secrets", &namespace), ("node", "nodes", "")]
    {
        let reference = &own[claim];
        if reference.is_null() {
            continue;
        }
        // The node of a pod is only told: the token lives as long as the pod.
        let of_pod = claim == "node" && !own["pod"].is_null();
        if !of_pod && !alive(plural, scope, reference) {
            return Err(format!("service account token has been invalidated: its {claim} is gone"));
        }
        if claim != "secret" {
            extra
                .insert(format!("authentication.kubernetes.io/{claim}-name"), vec![text(&reference["name"])]);
            let uid = text(&reference["uid"]);
            if !uid.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{claim}-uid"), vec![uid]);
            }
        }
    }
    extra.insert(
        "authentication.kubernetes.io/credential-id".into(),
        vec![format!("JTI={}", text(&claims["jti"]))],
    );
    Ok(User { uid, extra, ..service_account(&namespace, &name) })
}

/// The user that a service account is, without uid.
pub fn service_account(namespace: &str, name: &str) -> User {
    User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
        ..User::default()
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
