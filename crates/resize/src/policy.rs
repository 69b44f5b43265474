//! Who wants what of a resize: annotations of the VM, of its namespace, policy objects of the
//! namespace and of the cluster, and the default of the installation, in this order.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `Enabled` or `Disabled`.
pub const IN_PLACE: &str = "vm-feature-manager.io/in-place-resize";
/// `Wait`, `Migrate` or `Revert`.
pub const FALLBACK: &str = "vm-feature-manager.io/resize-fallback";
/// How long kubelet and guest may take: `30s`, `5m`, `1h`.
pub const DEADLINE: &str = "vm-feature-manager.io/resize-deadline";

/// The policy object of a namespace (`vm-feature-manager.io/v1alpha1`); the one with the name
/// [`POLICY_NAME`] counts.
pub const NAMESPACE_KIND: &str = "ResizePolicy";
/// The policy object of the cluster.
pub const CLUSTER_KIND: &str = "ClusterResizePolicy";
/// The one name that a policy object may have, so that there is never a second one to compare with.
pub const POLICY_NAME: &str = "default";

/// The longest deadline, seconds: a week.
pub const MAX_DEADLINE: u32 = 7 * 24 * 3600;
/// The shortest deadline, seconds: below it, ordinary kubelets would be given up on.
pub const MIN_DEADLINE: u32 = 5;

/// What happens when the node cannot give what a resize needs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Fallback {
    /// Keep asking for as long as it takes. What kubelet will not retry by itself is taken back, so
    /// that no quota is held, and asked for again later.
    Wait,
    /// Let KubeVirt do it as it would without us: a live migration. A VM that cannot migrate is put
    /// back instead.
    #[default]
    Migrate,
    /// Put the pod back and keep the VM as it is until its owner asks for something else.
    Revert,
}

/// How one VM is resized.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// In place at all; otherwise everything is KubeVirt's.
    pub in_place: bool,
    /// What to do when it does not work.
    pub fallback: Fallback,
    /// How long a step may take before the fallback, seconds. `Wait` has no deadline.
    pub deadline: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { in_place: false, fallback: Fallback::Migrate, deadline: 300 }
    }
}

/// Something that says nothing that is understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Where it stands: an annotation, or a field of a policy object.
    pub place: String,
    /// What it says.
    pub value: String,
    /// What it may say.
    pub accepted: &'static str,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, value, accepted } = self;
        write!(f, "{place} is \"{value}\": write {accepted}")
    }
}

impl std::error::Error for Mistake {}

/// Everything that may say something about one VM. Objects that are not known, or not there, are
/// null.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The VM, for its annotations.
    pub vm: &'a Value,
    /// Its namespace, for its annotations.
    pub namespace: &'a Value,
    /// The [`NAMESPACE_KIND`] of the namespace.
    pub namespace_policy: &'a Value,
    /// The [`CLUSTER_KIND`].
    pub cluster_policy: &'a Value,
}

impl Default for Sources<'_> {
    fn default() -> Self {
        let none = &Value::Null;
        Self { vm: none, namespace: none, namespace_policy: none, cluster_policy: none }
    }
}

impl Policy {
    /// The policy of a VM. Each of its three parts comes from the first that says something about
    /// it: annotations of the VM, annotations of the namespace, the namespace's `ResizePolicy`, the
    /// `ClusterResizePolicy`, the installation's default.
    ///
    /// # Errors
    /// The first thing that is not understood. Callers treat the VM as `Disabled` then: a mistyped
    /// wish must not choose a path by itself.
    pub fn of(sources: &Sources<'_>, default: Self) -> Result<Self, Mistake> {
        let cluster = Said::in_spec(sources.cluster_policy, CLUSTER_KIND)?;
        let namespace = Said::in_spec(sources.namespace_policy, NAMESPACE_KIND)?;
        let annotated = Said::in_annotations(sources.namespace)?;
        let own = Said::in_annotations(sources.vm)?;
        Ok(default.overlaid(cluster).overlaid(namespace).overlaid(annotated).overlaid(own))
    }

    fn overlaid(self, said: Said) -> Self {
        Self {
            in_place: said.in_place.unwrap_or(self.in_place),
            fallback: said.fallback.unwrap_or(self.fallback),
            deadline: said.deadline.unwrap_or(self.deadline),
        }
    }
}

/// What one source says; what it leaves open is said by the next one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Said {
    in_place: Option<bool>,
    fallback: Option<Fallback>,
    deadline: Option<u32>,
}

impl Said {
    fn in_annotations(object: &Value) -> Result<Self, Mistake> {
        let read = |name: &'static str| {
            let text = object.get("metadata")?.get("annotations")?.get(name)?.as_str()?.trim();
            Some((format!("the annotation {name}"), text))
        };
        let deadline = |(place, text): (String, &str)| {
            seconds(text).filter(|seconds| is_deadline(*seconds)).ok_or_else(|| wrong_deadline(&place, &text))
        };
        Ok(Self {
            in_place: read(IN_PLACE).map(in_place).transpose()?,
            fallback: read(FALLBACK).map(fallback).transpose()?,
            deadline: read(DEADLINE).map(deadline).transpose()?,
        })
    }

    /// The API server has checked such an object already, unless its definition is somebody else's.
    fn in_spec(object: &Value, kind: &str) -> Result<Self, Mistake> {
        let Some(spec) = object.get("spec") else { return Ok(Self::default()) };
        let read = |name: &str| spec.get(name).map(|value| (format!("spec.{name} of the {kind}"), value));
        let text = |(place, value): (String, &Value)| (place, value.as_str().unwrap_or_default().to_owned());
        let deadline = |(place, value): (String, &Value)| {
            let seconds = value.as_u64().and_then(|seconds| u32::try_from(seconds).ok());
            seconds.filter(|seconds| is_deadline(*seconds)).ok_or_else(|| wrong_deadline(&place, value))
        };
        Ok(Self {
            in_place: read("inPlace").map(text).map(|(place, text)| in_place((place, &text))).transpose()?,
            fallback: read("fallback").map(text).map(|(place, text)| fallback((place, &text))).transpose()?,
            deadline: read("deadlineSeconds").map(deadline).transpose()?,
        })
    }
}

fn in_place((place, text): (String, &str)) -> Result<bool, Mistake> {
    match text {
        "Enabled" | "enabled" | "true" => Ok(true),
        "Disabled" | "disabled" | "false" => Ok(false),
        _ => Err(mistake(&place, &text, "Enabled or Disabled")),
    }
}

fn fallback((place, text): (String, &str)) -> Result<Fallback, Mistake> {
    match text {
        "Wait" | "wait" => Ok(Fallback::Wait),
        "Migrate" | "migrate" => Ok(Fallback::Migrate),
        "Revert" | "revert" => Ok(Fallback::Revert),
        _ => Err(mistake(&place, &text, "Wait, Migrate or Revert")),
    }
}

fn is_deadline(seconds: u32) -> bool {
    (MIN_DEADLINE..=MAX_DEADLINE).contains(&seconds)
}

fn wrong_deadline(place: &str, value: &dyn fmt::Display) -> Mistake {
    mistake(place, value, "a time between 5s and 168h, such as 90s or 5m (deadlineSeconds: a number)")
}

fn mistake(place: &str, value: &dyn fmt::Display, accepted: &'static str) -> Mistake {
    Mistake { place: place.to_owned(), value: value.to_string().chars().take(60).collect(), accepted }
}

/// `90s`, `5m`, `1h`; a bare number counts seconds.
fn seconds(text: &str) -> Option<u32> {
    let (number, factor) = match text.char_indices().last()? {
        (end, 's') => (text.get(..end)?, 1),
        (end, 'm') => (text.get(..end)?, 60),
        (end, 'h') => (text.get(..end)?, 3600),
        _ => (text, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn annotated(pairs: &[(&str, &str)]) -> Value {
        let map: serde_json::Map<String, Value> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        json!({"metadata": {"annotations": map}})
    }

    #[test]
    fn the_vm_outranks_its_namespace_which_outranks_policies_and_the_default() {
        let default = Policy::default();
        let cluster = json!({"spec": {"inPlace": "Enabled", "fallback": "Revert", "deadlineSeconds": 60}});
        let mine = json!({"spec": {"fallback": "Wait"}});
        let namespace = annotated(&[(DEADLINE, "2m")]);
        let vm = annotated(&[(IN_PLACE, "Disabled")]);
        let policy = |in_place, fallback, deadline| Ok(Policy { in_place, fallback, deadline });
        let mut sources = Sources::default();
        assert_eq!(Policy::of(&sources, default), Ok(default));
        sources.cluster_policy = &cluster;
        assert_eq!(Policy::of(&sources, default), policy(true, Fallback::Revert, 60));
        sources.namespace_policy = &mine;
        assert_eq!(Policy::of(&sources, default), policy(true, Fallback::Wait, 60));
        sources.namespace = &namespace;
        assert_eq!(Policy::of(&sources, default), policy(true, Fallback::Wait, 120));
        sources.vm = &vm;
        assert_eq!(Policy::of(&sources, default), policy(false, Fallback::Wait, 120));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (name, value) in [
            (IN_PLACE, "yes please"),
            (FALLBACK, "Evict"),
            (DEADLINE, "soon"),
            (DEADLINE, "1s"),
            (DEADLINE, "9999999h"),
            (DEADLINE, ""),
        ] {
            let vm = annotated(&[(name, value)]);
            let error =
                Policy::of(&Sources { vm: &vm, ..Sources::default() }, Policy::default()).unwrap_err();
            assert!(error.place.ends_with(name), "{error}");
            assert!(error.to_string().contains("write "), "{error}");
        }
        for (field, value) in [
            ("inPlace", json!(7)),
            ("fallback", json!("Evict")),
            ("deadlineSeconds", json!("5m")),
            ("deadlineSeconds", json!(4)),
        ] {
            let object = json!({"spec": {field: value}});
            let sources = Sources { cluster_policy: &object, ..Sources::default() };
            let error = Policy::of(&sources, Policy::default()).unwrap_err();
            assert_eq!(error.place, format!("spec.{field} of the ClusterResizePolicy"));
        }
        assert_eq!(seconds("1h"), Some(3600));
        assert_eq!(seconds("15"), Some(15));
        assert_eq!(seconds("ü"), None);
    }
}
