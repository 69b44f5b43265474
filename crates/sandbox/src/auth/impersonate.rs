//! Impersonation: one user asks as another (`k8s.io/apiserver pkg/endpoints/filters/impersonation`, 1.36).

use std::collections::BTreeMap;

use apimachinery::Status;
use http::HeaderMap;

use super::authorize::Authorizer;
use super::token::service_account;
use crate::attributes::{Attributes, User};

const EXTRA: &str = "impersonate-extra-";

/// The user that the headers ask for; `None` without any.
///
/// # Errors
/// 403 for whom `user` may not impersonate; 500 for groups, extra or uid without a user, as a real API server answers.
pub fn impersonated(
    authorizer: &Authorizer,
    user: &User,
    headers: &HeaderMap,
) -> Result<Option<User>, Status> {
    let name = all(headers, "impersonate-user").into_iter().next().unwrap_or_default();
    let (groups, uid) = (all(headers, "impersonate-group"), all(headers, "impersonate-uid").pop());
    let extra = extra(headers);
    if name.is_empty() {
        if groups.is_empty() && uid.is_none() && extra.is_empty() {
            return Ok(None);
        }
        let why =
            format!("requested groups={groups:?}, extra={extra:?}, uid={uid:?} without impersonating a user");
        return Err(Status::internal(&why));
    }
    let may = |attributes: Attributes| {
        authorizer.require(&Attributes { user: user.clone(), verb: "impersonate".into(), ..attributes })
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => may(resource("", "serviceaccounts", namespace, account))?,
        None => may(resource("", "users", "", &name))?,
    }
    for group in &groups {
        may(resource("", "groups", "", group))?;
    }
    for (key, values) in &extra {
        for value in values {
            let attributes = resource("authentication.k8s.io", "userextras", "", value);
            may(Attributes { subresource: key.clone(), ..attributes })?;
        }
    }
    if let Some(uid) = &uid {
        may(resource("authentication.k8s.io", "uids", "", uid))?;
    }
    let mut groups = groups;
    if let (true, Some((namespace, account))) = (groups.is_empty(), account) {
        groups = service_account(namespace, account).groups;
    }
    complete(&name, &mut groups);
    Ok(Some(User { name, uid: uid.unwrap_or_default(), groups, extra }))
}

/// Everyone is in one of the two groups.
fn complete(name: &str, groups: &mut Vec<String>) {
    let group = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    let placed = |given: &String| given == "system:unauthenticated" || given == "system:authenticated";
    if !groups.iter().any(placed) {
        groups.push(group.into());
    }
}

fn resource(group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
}

/// `Impersonate-Extra-Some%2FKey: value`; header names lose their case, so keys are lower case.
fn extra(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            out.entry(decoded(key)).or_default().push(value.to_owned());
        }
    }
    out
}

/// Undoes percent-encoding; what is no encoding stays.
fn decoded(key: &str) -> String {
    let mut out = Vec::new();
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |bytes: &[u8]| u8::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok();
        if let (b'%', Some(byte)) = (first, tail.get(..2).and_then(hex)) {
            out.push(byte);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
