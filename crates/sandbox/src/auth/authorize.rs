//! Authorisation by RBAC, compiled once per change of a role or binding.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::rbac::{
    self, Decision, MASTERS, Policy, aggregated_rules, grants_of_binding, grants_of_role,
};
use apimachinery::tree::Value;
use arc_swap::ArcSwap;

use crate::attributes::{Attributes, User};
use crate::objects::Objects;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Roles that aggregate roles that aggregate roles … deeper than this are cut.
const AGGREGATION_DEPTH: usize = 8;
const KINDS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// Decides who may do what.
pub struct Authorizer {
    objects: Arc<dyn Objects>,
    current: ArcSwap<([u64; 4], Policy)>,
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer").field("revisions", &self.current.load().0).finish_non_exhaustive()
    }
}

impl Authorizer {
    /// Over the roles and bindings of a store.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, current: ArcSwap::from_pointee(([0; 4], Policy::default())) }
    }

    /// The policy as the store has it now.
    pub fn policy(&self) -> Arc<([u64; 4], Policy)> {
        let revisions = KINDS.map(|kind| self.objects.revision(GROUP, kind));
        let current = self.current.load_full();
        if current.0 == revisions {
            return current;
        }
        let mut objects: Vec<Arc<Value>> =
            KINDS.iter().flat_map(|kind| self.objects.list(GROUP, kind)).collect();
        aggregate(&mut objects);
        let policy = Policy::new(objects.iter().map(AsRef::as_ref));
        let compiled = Arc::new((revisions, policy));
        self.current.store(Arc::clone(&compiled));
        compiled
    }

    /// Whether a request may be made.
    pub fn decide(&self, attributes: &Attributes) -> Decision {
        if is_master(&attributes.user) {
            return Decision { allowed: true, reason: String::new() };
        }
        self.policy().1.allowed(&rbac_user(&attributes.user), &rbac_attributes(attributes))
    }

    /// Refuses a request that may not be made.
    ///
    /// # Errors
    /// 403, worded as a real API server words it.
    pub fn require(&self, attributes: &Attributes) -> Result<(), Status> {
        if self.decide(attributes).allowed {
            return Ok(());
        }
        Err(rbac_attributes(attributes).forbidden(&rbac_user(&attributes.user)))
    }

    /// Refuses a write of a role or binding that gives more than its author has. Other objects pass. On update `old`
    /// is the stored object: what does not change what is given passes.
    ///
    /// # Errors
    /// 403 with the missing rules; 404 when the role that is bound is not there.
    pub fn may_grant(&self, user: &User, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        let given = |object: &Value| {
            let part = |field: &str| object[field].clone();
            (part("rules"), part("aggregationRule"), part("roleRef"), part("subjects"))
        };
        if is_master(user) || old.is_some_and(|old| given(old) == given(object)) {
            return Ok(());
        }
        match object["kind"].as_str() {
            Some("Role" | "ClusterRole") => grants_of_role(&self.policy().1, &rbac_user(user), object),
            Some("RoleBinding" | "ClusterRoleBinding") => {
                grants_of_binding(&self.policy().1, &rbac_user(user), object)
            }
            _ => Ok(()),
        }
    }
}

/// Gives aggregated cluster roles their rules, as a cluster's controller does: `admin` has those of `edit`, which has
/// those of `view`. Roles that aggregate each other settle, as rules are only added.
fn aggregate(objects: &mut [Arc<Value>]) {
    for _ in 0..AGGREGATION_DEPTH {
        let before = objects.to_vec();
        let roles = || before.iter().map(AsRef::as_ref).filter(|object| object["kind"] == "ClusterRole");
        let mut changed = false;
        for object in objects.iter_mut().filter(|object| object["kind"] == "ClusterRole") {
            if let Some(rules) = aggregated_rules(object, roles())
                && rules != object["rules"]
            {
                Arc::make_mut(object)["rules"] = rules;
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

fn is_master(user: &User) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
}

/// The part of a user that RBAC looks at.
pub(super) fn rbac_user(user: &User) -> rbac::User {
    rbac::User { name: user.name.clone(), groups: user.groups.clone() }
}

fn rbac_attributes(attributes: &Attributes) -> rbac::Attributes<'_> {
    rbac::Attributes {
        verb: &attributes.verb,
        group: &attributes.group,
        resource: &attributes.resource,
        subresource: &attributes.subresource,
        namespace: &attributes.namespace,
        name: &attributes.name,
        path: &attributes.path,
    }
}
