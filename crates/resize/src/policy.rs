//! Who wants what of a resize: annotations of the VM, of its namespace, and the default of the
//! installation, in this order.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `Enabled` or `Disabled`.
pub const IN_PLACE: &str = "vm-feature-manager.io/in-place-resize";
/// `Wait`, `Migrate` or `Revert`.
pub const FALLBACK: &str = "vm-feature-manager.io/resize-fallback";
/// How long kubelet and guest may take: `30s`, `5m`, `1h`.
pub const DEADLINE: &str = "vm-feature-manager.io/resize-deadline";

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

/// An annotation that says nothing that is understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The annotation's name.
    pub annotation: &'static str,
    /// What it says.
    pub value: String,
    /// What it may say.
    pub accepted: &'static str,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { annotation, value, accepted } = self;
        write!(f, "the annotation {annotation} is \"{value}\": write {accepted}")
    }
}

impl std::error::Error for Mistake {}

impl Policy {
    /// The policy of a VM: what its own annotations say, else those of the namespace, else the
    /// default. Objects that are not known are null.
    ///
    /// # Errors
    /// The first annotation that is not understood. Callers treat the VM as `Disabled` then: a
    /// mistyped wish must not choose a path by itself.
    pub fn of(vm: &Value, namespace: &Value, default: Self) -> Result<Self, Mistake> {
        default.overlaid(namespace)?.overlaid(vm)
    }

    fn overlaid(self, object: &Value) -> Result<Self, Mistake> {
        let read = |name: &'static str| {
            object.get("metadata")?.get("annotations")?.get(name)?.as_str().map(|text| (name, text.trim()))
        };
        let mut policy = self;
        if let Some((annotation, text)) = read(IN_PLACE) {
            policy.in_place = match text {
                "Enabled" | "enabled" | "true" => true,
                "Disabled" | "disabled" | "false" => false,
                _ => return Err(mistake(annotation, text, "Enabled or Disabled")),
            };
        }
        if let Some((annotation, text)) = read(FALLBACK) {
            policy.fallback = match text {
                "Wait" | "wait" => Fallback::Wait,
                "Migrate" | "migrate" => Fallback::Migrate,
                "Revert" | "revert" => Fallback::Revert,
                _ => return Err(mistake(annotation, text, "Wait, Migrate or Revert")),
            };
        }
        if let Some((annotation, text)) = read(DEADLINE) {
            policy.deadline = seconds(text)
                .filter(|seconds| (MIN_DEADLINE..=MAX_DEADLINE).contains(seconds))
                .ok_or_else(|| mistake(annotation, text, "a time between 5s and 168h, such as 90s or 5m"))?;
        }
        Ok(policy)
    }
}

fn mistake(annotation: &'static str, value: &str, accepted: &'static str) -> Mistake {
    Mistake { annotation, value: value.chars().take(60).collect(), accepted }
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
    fn the_vm_outranks_its_namespace_which_outranks_the_default() {
        let default = Policy::default();
        let namespace = annotated(&[(IN_PLACE, "Enabled"), (FALLBACK, "Wait")]);
        let of = |vm: &Value| Policy::of(vm, &namespace, default).unwrap();
        assert_eq!(of(&Value::Null), Policy { in_place: true, fallback: Fallback::Wait, deadline: 300 });
        let vm = annotated(&[(IN_PLACE, "Disabled"), (DEADLINE, "2m")]);
        assert_eq!(of(&vm), Policy { in_place: false, fallback: Fallback::Wait, deadline: 120 });
        assert_eq!(Policy::of(&Value::Null, &Value::Null, default), Ok(default));
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
            let error =
                Policy::of(&annotated(&[(name, value)]), &Value::Null, Policy::default()).unwrap_err();
            assert_eq!(error.annotation, name);
            assert!(error.to_string().contains("write "), "{error}");
        }
        assert_eq!(seconds("1h"), Some(3600));
        assert_eq!(seconds("15"), Some(15));
        assert_eq!(seconds("ü"), None);
    }
}
