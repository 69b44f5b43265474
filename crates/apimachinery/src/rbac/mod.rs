//! RBAC (`rbac.authorization.k8s.io/v1`): who may do what, from Role, `ClusterRole`, `RoleBinding` and
//! `ClusterRoleBinding` objects as they are stored (`plugin/pkg/auth/authorizer/rbac`, Kubernetes 1.33).
//!
//! ```text
//! Policy::new(roles, bindings) ──► allowed(user, attributes) ──► Decision
//!                             ├──► rules_for(user, namespace)   (SelfSubjectRulesReview)
//!                             └──► may_grant(user, role, …)     (no one gives what they do not have)
//! ```

mod aggregate;
mod escalation;
mod rule;

use std::collections::HashMap;

use crate::tree::Value;

use crate::Status;
use crate::field_error::quote;

pub use aggregate::{aggregated_rules, is_aggregated};
pub use escalation::{grants_of_binding, grants_of_role};
pub use rule::Rule;

/// The group whose members may do everything, whatever the roles say.
pub const MASTERS: &str = "system:masters";

/// Who asks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// For example `system:serviceaccount:ns:name`.
    pub name: String,
    /// For example `system:authenticated`.
    pub groups: Vec<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, …
    pub verb: &'a str,
    /// The API group, empty for core.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// For example `status`; empty: none.
    pub subresource: &'a str,
    /// Empty: cluster-wide.
    pub namespace: &'a str,
    /// Empty: no single object.
    pub name: &'a str,
    /// The path of a request for no resource, for example `/healthz`; empty: a resource is asked for.
    pub path: &'a str,
}

impl Attributes<'_> {
    /// `resource` or `resource/subresource`.
    pub fn qualified_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.into()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The `403 Forbidden` of a request that `user` may not make.
    pub fn forbidden(&self, user: &User) -> Status {
        let who = quote(&user.name);
        if !self.path.is_empty() {
            let message = format!("forbidden: User {who} cannot {} path {}", self.verb, quote(self.path));
            let mut status = Status::new(403, "Forbidden", message);
            status.details = Some(crate::tree::json!({}));
            return status;
        }
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", quote(self.namespace))
        };
        let what = if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        };
        let name = if self.name.is_empty() { String::new() } else { format!(" {}", quote(self.name)) };
        let message = format!(
            "{what}{name} is forbidden: User {who} cannot {} resource {} in API group {} {place}",
            self.verb,
            quote(&self.qualified_resource()),
            quote(self.group),
        );
        Status::new(403, "Forbidden", message).about(self.group, self.resource, self.name)
    }
}

/// Whether a request may be made, and which binding said so.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// For `SubjectAccessReview` and the audit log; empty when nothing allows it or nothing had to.
    pub reason: String,
}

#[derive(Clone, Debug)]
struct Binding {
    name: String,
    /// empty: a `ClusterRoleBinding`
    namespace: String,
    role: RoleKey,
    subjects: Vec<Subject>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct RoleKey {
    /// empty: a `ClusterRole`
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Subject {
    User(String),
    Group(String),
}

/// All roles and bindings of a cluster, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    roles: HashMap<RoleKey, Vec<Rule>>,
    cluster: Vec<Binding>,
    namespaced: HashMap<String, Vec<Binding>>,
}

impl Policy {
    /// Reads Role, `ClusterRole`, `RoleBinding` and `ClusterRoleBinding` objects, in any order; others are
    /// passed over. Aggregated cluster roles count with the rules that [`aggregated_rules`] gives them.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut policy = Self::default();
        let mut cluster_roles = Vec::new();
        for object in objects {
            match object["kind"].as_str().unwrap_or_default() {
                "Role" => policy.add_role(object, Rule::list(&object["rules"])),
                "ClusterRole" => cluster_roles.push(object),
                "RoleBinding" => policy.add_binding(object, text(&object["metadata"]["namespace"])),
                "ClusterRoleBinding" => policy.add_binding(object, ""),
                _ => {}
            }
        }
        for role in &cluster_roles {
            let rules = match aggregated_rules(role, cluster_roles.iter().copied()) {
                Some(rules) => Rule::list(&rules),
                None => Rule::list(&role["rules"]),
            };
            policy.add_role(role, rules);
        }
        policy
    }

    fn add_role(&mut self, object: &Value, rules: Vec<Rule>) {
        let meta = &object["metadata"];
        let namespace = if object["kind"] == "Role" { text(&meta["namespace"]) } else { "" };
        let key = RoleKey { namespace: namespace.into(), name: text(&meta["name"]).into() };
        self.roles.insert(key, rules);
    }

    fn add_binding(&mut self, object: &Value, namespace: &str) {
        let reference = &object["roleRef"];
        let role_namespace = if reference["kind"] == "Role" { namespace } else { "" };
        let binding = Binding {
            name: text(&object["metadata"]["name"]).into(),
            namespace: namespace.into(),
            role: RoleKey { namespace: role_namespace.into(), name: text(&reference["name"]).into() },
            subjects: object["subjects"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|s| subject(s, namespace))
                .collect(),
        };
        if namespace.is_empty() {
            self.cluster.push(binding);
        } else {
            self.namespaced.entry(namespace.into()).or_default().push(binding);
        }
    }

    /// Whether a user may make a request.
    pub fn allowed(&self, user: &User, attributes: &Attributes<'_>) -> Decision {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Decision { allowed: true, reason: String::new() };
        }
        for (binding, subject) in self.bindings_of(user, attributes.namespace) {
            if self.rules_of(binding).iter().any(|rule| rule.allows(attributes)) {
                return Decision { allowed: true, reason: binding.reason(subject) };
            }
        }
        Decision::default()
    }

    /// The rules that apply to a user in a namespace (`""`: cluster-wide only).
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<&Rule> {
        self.bindings_of(user, namespace).flat_map(|(binding, _)| self.rules_of(binding)).collect()
    }

    /// The `status` of a `SelfSubjectRulesReview`.
    pub fn rules_review(&self, user: &User, namespace: &str) -> Value {
        let everything = Rule::everything();
        let rules = if user.groups.iter().any(|group| group == MASTERS) {
            everything.iter().collect()
        } else {
            self.rules_for(user, namespace)
        };
        let (paths, resources): (Vec<&Rule>, Vec<&Rule>) =
            rules.into_iter().partition(|rule| rule.is_for_paths());
        crate::tree::json!({
            "resourceRules": resources.iter().map(|rule| rule.to_json()).collect::<Vec<_>>(),
            "nonResourceRules": paths.iter().map(|rule| rule.to_json()).collect::<Vec<_>>(),
            "incomplete": false,
        })
    }

    /// The rules of a role or cluster role (namespace `""`); `None`: there is no such role.
    pub fn role(&self, namespace: &str, name: &str) -> Option<&[Rule]> {
        self.roles.get(&RoleKey { namespace: namespace.into(), name: name.into() }).map(Vec::as_slice)
    }

    fn rules_of(&self, binding: &Binding) -> &[Rule] {
        self.roles.get(&binding.role).map_or(&[], Vec::as_slice)
    }

    fn bindings_of<'a>(
        &'a self,
        user: &'a User,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Binding, &'a Subject)> {
        let here = self.namespaced.get(namespace).map_or(&[][..], Vec::as_slice);
        self.cluster.iter().chain(here).filter_map(|binding| {
            let subject = binding.subjects.iter().find(|subject| subject.is(user))?;
            Some((binding, subject))
        })
    }
}

impl Binding {
    fn reason(&self, subject: &Subject) -> String {
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", self.name.clone())
        } else {
            ("RoleBinding", format!("{}/{}", self.name, self.namespace))
        };
        let role = if self.role.namespace.is_empty() { "ClusterRole" } else { "Role" };
        format!("RBAC: allowed by {kind} {} of {role} {} to {subject}", quote(&name), quote(&self.role.name))
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => *name == user.name,
            Self::Group(name) => user.groups.iter().any(|group| group == name),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Group(name) => write!(f, "Group {}", quote(name)),
            Self::User(name) => match service_account(name) {
                Some((namespace, name)) => {
                    write!(f, "ServiceAccount {}", quote(&format!("{name}/{namespace}")))
                }
                None => write!(f, "User {}", quote(name)),
            },
        }
    }
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn subject(value: &Value, binding_namespace: &str) -> Option<Subject> {
    let name = text(&value["name"]);
    match value["kind"].as_str()? {
        "User" => Some(Subject::User(name.into())),
        "Group" => Some(Subject::Group(name.into())),
        "ServiceAccount" => {
            let namespace = match text(&value["namespace"]) {
                "" => binding_namespace,
                namespace => namespace,
            };
            // a ClusterRoleBinding has no namespace to fall back on
            (!namespace.is_empty())
                .then(|| Subject::User(format!("system:serviceaccount:{namespace}:{name}")))
        }
        _ => None,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
