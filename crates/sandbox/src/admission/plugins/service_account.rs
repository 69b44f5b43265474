//! Every pod runs as a service account and gets its token (`plugin/pkg/admission/serviceaccount`, Kubernetes 1.36).
//! KubeVirt relies on it: it tells attachment pods by the token's volume.

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use super::{containers, each_container};
use crate::admission::{MakeUid, Request};
use crate::objects::Objects;

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Seconds; the seven tell tokens that were asked for by this plugin.
const EXPIRATION: u64 = 3607;
/// The letters of `k8s.io/apimachinery/pkg/util/rand`.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Sets the service account of a new pod, and mounts its token where the pod does not decline.
///
/// # Errors
/// 403 when the account is not there.
pub fn add(
    objects: &dyn Objects,
    make_uid: &MakeUid,
    request: &Request<'_>,
    pod: &mut Value,
) -> Result<(), Status> {
    if !pod["spec"].is_object() || pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Ok(());
    }
    let named = pod["spec"]["serviceAccountName"].as_str().or(pod["spec"]["serviceAccount"].as_str());
    let name = named.filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
    let namespace = &request.attributes.namespace;
    let Some(account) = objects.get("", "serviceaccounts", namespace, &name) else {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        );
        return Err(request.forbidden(pod, &why));
    };
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.into();
    let wanted = pod["spec"]["automountServiceAccountToken"].as_bool();
    if wanted.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount(make_uid, pod);
    }
    let none = pod["spec"]["imagePullSecrets"].as_array().is_none_or(|list| list.is_empty());
    if none && account["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty()) {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

fn is_mounted(container: &Value) -> bool {
    container["volumeMounts"].as_array().into_iter().flatten().any(|mount| mount["mountPath"] == MOUNT)
}

fn mount(make_uid: &MakeUid, pod: &mut Value) {
    if containers(pod).all(is_mounted) {
        return;
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut names = volumes.filter_map(|volume| volume["name"].as_str());
    let existing = names.find(|name| name.starts_with(VOLUME)).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME}{}", suffix(&make_uid())));
    each_container(pod, |_, container| {
        if !is_mounted(container) {
            push(container, "volumeMounts", json!({"name": name, "readOnly": true, "mountPath": MOUNT}));
        }
    });
    if existing.is_none() {
        push(&mut pod["spec"], "volumes", volume(&name));
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}})
}

fn push(parent: &mut Value, list: &str, item: Value) {
    match parent[list].as_array_mut() {
        Some(items) => items.push(item),
        None => parent[list] = json!([item]),
    }
}

/// Five letters from a random id.
fn suffix(uid: &str) -> String {
    let digits: Vec<usize> = uid.bytes().rev().filter(u8::is_ascii_alphanumeric).map(usize::from).collect();
    let letter = |pair: &[usize]| {
        char::from(LETTERS[pair.iter().fold(0, |sum, digit| sum * 31 + digit) % LETTERS.len()])
    };
    digits.chunks(2).take(5).map(letter).collect()
}
