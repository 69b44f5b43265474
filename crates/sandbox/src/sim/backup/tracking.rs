//! Whether changes of a VM's disks are tracked (`pkg/storage/cbt/cbt.go`, v1.9).

use apimachinery::selector::LabelSelector;
use apimachinery::tree::Value;

use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, list, put, text};
use crate::sim::resource::VMIS;
use crate::sim::write::{Op, Write};

const PENDING: &str = "PendingRestart";
pub const INITIALIZING: &str = "Initializing";
pub const ENABLED: &str = "Enabled";
const DISABLED: &str = "Disabled";
const GATE_OFF: &str = "IncrementalBackupFeatureGateDisabled";
pub const GATE: &str = "IncrementalBackup";

/// The state that an object shows; empty: none.
pub fn state(object: &Value) -> &str {
    text(object, "/status/changedBlockTracking/state")
}

/// Whether the labels of a VM, or of its namespace, ask for tracking.
pub fn is_selected(vm: &Value, namespace: Option<&Value>, config: &ClusterConfig) -> bool {
    let selectors = config.change_tracking();
    let matches = |selector: &Value, object: &Value| {
        LabelSelector::from_object(selector).is_ok_and(|selector| selector.matches_object(object))
    };
    matches(&selectors["virtualMachineLabelSelector"], vm)
        || namespace.is_some_and(|namespace| matches(&selectors["namespaceLabelSelector"], namespace))
}

/// The state that a VM has after `old`, with the state of its VMI where there is one
/// (`SyncVMChangedBlockTrackingState`); empty: none.
#[allow(clippy::match_same_arms, reason = "in the order of the rules")]
pub fn of_vm<'a>(old: &'a str, vmi: Option<&str>, gate: bool, selected: bool) -> &'a str {
    let off = vmi.is_none_or(|state| matches!(state, "" | DISABLED));
    match (gate, selected, old) {
        (false, _, GATE_OFF) => old,
        (false, true, _) if off => GATE_OFF,
        (false, false, _) if off => "",
        (false, _, INITIALIZING | ENABLED) => PENDING,
        (false, ..) => old,
        (true, false, "" | DISABLED) => old,
        (true, false, PENDING | INITIALIZING | ENABLED | GATE_OFF) => {
            if off {
                DISABLED
            } else {
                PENDING
            }
        }
        (true, true, "" | GATE_OFF) if vmi.is_some() => PENDING,
        (true, true, PENDING | DISABLED) if vmi.is_some() => match vmi {
            Some(INITIALIZING) => INITIALIZING,
            Some(ENABLED) => ENABLED,
            _ => PENDING,
        },
        (true, true, INITIALIZING | ENABLED) if vmi.is_some() => {
            if vmi == Some(ENABLED) {
                ENABLED
            } else {
                INITIALIZING
            }
        }
        (true, true, ENABLED) => ENABLED,
        (true, true, "" | PENDING | INITIALIZING | DISABLED | GATE_OFF) => INITIALIZING,
        // What nobody knows is reset.
        (true, ..) => "",
    }
}

/// The same in a VM's status on its way.
pub fn sync(
    status: &mut Value,
    vm: &Value,
    vmi: Option<&Value>,
    namespace: Option<&Value>,
    config: &ClusterConfig,
) {
    let selected = is_selected(vm, namespace, config);
    let new = of_vm(state(vm), vmi.map(state), config.gate(GATE), selected).to_owned();
    if new.is_empty() {
        json::remove(status, &["changedBlockTracking"]);
    } else {
        put(status, &["changedBlockTracking", "state"], new);
    }
}

/// Marks a VMI that is about to be made (`SetChangedBlockTrackingOnVMI`).
pub fn mark(writes: &mut [Write], vm: &Value, namespace: Option<&Value>, config: &ClusterConfig) {
    if !config.gate(GATE) {
        return;
    }
    let new = match is_selected(vm, namespace, config) {
        true => INITIALIZING,
        false if !state(vm).is_empty() => DISABLED,
        false => return,
    };
    for write in writes.iter_mut().filter(|write| write.resource == &VMIS) {
        if let Op::Create(vmi) = &mut write.op {
            put(vmi, &["status", "changedBlockTracking", "state"], new);
        }
    }
}

/// The volumes whose changes can be tracked: name and claim (`IsCBTEligibleVolume`; host disks are not simulated).
pub fn volumes(vmi: &Value) -> Vec<(String, String)> {
    let volumes = list(vmi, "/spec/volumes").iter().filter_map(|volume| {
        let claim = match text(volume, "/persistentVolumeClaim/claimName") {
            "" => text(volume, "/dataVolume/name"),
            claim => claim,
        };
        (!claim.is_empty()).then(|| (text(volume, "/name").to_owned(), claim.to_owned()))
    });
    volumes.collect()
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn a_vm_is_tracked_from_its_next_start() {
        for (old, vmi, gate, selected, new) in [
            // Nobody asked.
            ("", None, true, false, ""),
            ("", Some(""), false, false, ""),
            // A stopped VM is ready to be, a running one has to be restarted.
            ("", None, true, true, INITIALIZING),
            ("", Some(""), true, true, PENDING),
            (PENDING, Some(""), true, true, PENDING),
            (PENDING, None, true, true, INITIALIZING),
            (INITIALIZING, Some(INITIALIZING), true, true, INITIALIZING),
            (INITIALIZING, Some(ENABLED), true, true, ENABLED),
            (ENABLED, None, true, true, ENABLED),
            (ENABLED, Some(INITIALIZING), true, true, INITIALIZING),
            // Labels taken away.
            (ENABLED, Some(ENABLED), true, false, PENDING),
            (PENDING, Some(DISABLED), true, false, DISABLED),
            (ENABLED, None, true, false, DISABLED),
            // The gate turned off.
            (ENABLED, Some(ENABLED), false, true, PENDING),
            (PENDING, None, false, true, GATE_OFF),
            (GATE_OFF, Some(""), false, true, GATE_OFF),
            (PENDING, None, false, false, ""),
            ("Odd", None, true, true, ""),
        ] {
            assert_eq!(of_vm(old, vmi, gate, selected), new, "{old} {vmi:?} {gate} {selected}");
        }
    }

    #[test]
    fn labels_of_the_vm_or_of_its_namespace_select_it() {
        let config = |selectors: Value| {
            ClusterConfig::of(
                &json!({"spec": {"configuration": {"changedBlockTrackingLabelSelectors": selectors}}}),
            )
        };
        let vm = json!({"metadata": {"labels": {"backup": "yes"}}});
        let namespace = json!({"metadata": {"labels": {"team": "a"}}});
        for (selectors, selected) in [
            (Value::Null, false),
            (json!({"virtualMachineLabelSelector": {"matchLabels": {"backup": "yes"}}}), true),
            (json!({"virtualMachineLabelSelector": {"matchLabels": {"backup": "no"}}}), false),
            (json!({"namespaceLabelSelector": {"matchLabels": {"team": "a"}}}), true),
        ] {
            assert_eq!(
                is_selected(&vm, Some(&namespace), &config(selectors.clone())),
                selected,
                "{selectors}"
            );
        }
    }
}
