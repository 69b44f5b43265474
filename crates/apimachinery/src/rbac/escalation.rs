//! No one may give what they do not have: writes of roles and bindings
//! (`pkg/registry/rbac/{role,rolebinding}/policybased`, Kubernetes 1.33).

use crate::tree::Value;

use super::{Attributes, MASTERS, Policy, Rule, User};
use crate::Status;
use crate::field_error::quote;

/// Most combinations of verb, group, resource and name that are compared for one write.
const PARTS_MAX: usize = 100_000;
const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a write of a Role or `ClusterRole`: the user has every rule of it already, or may `escalate`.
pub fn grants_of_role(policy: &Policy, user: &User, role: &Value) -> Result<(), Status> {
    let namespace = text(&role["metadata"]["namespace"]);
    let plural = if role["kind"] == "ClusterRole" { "clusterroles" } else { "roles" };
    let name = text(&role["metadata"]["name"]);
    let attributes = Attributes {
        verb: "escalate",
        group: GROUP,
        resource: plural,
        namespace,
        name,
        ..Attributes::default()
    };
    // an aggregated role may only be written by those who could write any role
    let everything = Rule::everything();
    let rules = if super::is_aggregated(role) { everything.to_vec() } else { Rule::list(&role["rules"]) };
    check(policy, user, &attributes, &rules, namespace)
}

/// Checks a write of a `RoleBinding` or `ClusterRoleBinding`: the user has every rule of the role that it gives,
/// or may `bind` that role.
pub fn grants_of_binding(policy: &Policy, user: &User, binding: &Value) -> Result<(), Status> {
    let namespace = text(&binding["metadata"]["namespace"]);
    let reference = &binding["roleRef"];
    let name = text(&reference["name"]);
    let (plural, role_namespace) =
        if reference["kind"] == "ClusterRole" { ("clusterroles", "") } else { ("roles", namespace) };
    let attributes =
        Attributes { verb: "bind", group: GROUP, resource: plural, namespace, name, ..Attributes::default() };
    let Some(rules) = policy.role(role_namespace, name) else {
        if is_master(user) || policy.allowed(user, &attributes).allowed {
            return Ok(());
        }
        return Err(Status::not_found(GROUP, plural, name));
    };
    let written = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    check(policy, user, &attributes, rules, namespace).map_err(|mut status| {
        let object = text(&binding["metadata"]["name"]);
        status.message =
            status.message.replacen(plural, written, 1).replacen(&quote(name), &quote(object), 1);
        status.about(GROUP, written, object)
    })
}

fn check(
    policy: &Policy,
    user: &User,
    attributes: &Attributes<'_>,
    rules: &[Rule],
    namespace: &str,
) -> Result<(), Status> {
    if is_master(user) || policy.allowed(user, attributes).allowed {
        return Ok(());
    }
    if rules.iter().map(Rule::parts).fold(0, usize::saturating_add) > PARTS_MAX {
        let message =
            format!("the rules allow more than {PARTS_MAX} combinations; split the role to have it checked");
        return Err(Status::new(403, "Forbidden", message).about(
            GROUP,
            attributes.resource,
            attributes.name,
        ));
    }
    let owned = policy.rules_for(user, namespace);
    let missing: Vec<String> = rules
        .iter()
        .flat_map(Rule::breakdown)
        .filter(|small| !owned.iter().any(|rule| rule.covers(small)))
        .map(|rule| rule.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|group| quote(group)).collect();
    let why = format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(&user.name),
        groups.join(" "),
        missing.join("\n")
    );
    let message = format!("{}.{GROUP} {} is forbidden: {why}", attributes.resource, quote(attributes.name));
    Err(Status::new(403, "Forbidden", message).about(GROUP, attributes.resource, attributes.name))
}

fn is_master(user: &User) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
