//! Which calls a task needs. Pure.

use resize::ledger::{self, LEDGER, Ledger};
use resize::size::Size;
use resize::view::Guest;
use serde_json::Value;

use crate::complete::CompleteVmi;

/// One call to a launcher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Call {
    /// `SyncVirtualMachineMemory`: more or less memory.
    Memory(Size),
    /// `SyncVirtualMachineCPUs`: more vCPUs, never fewer.
    Cpus(Size),
}

/// Why a VMI is not served here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The VMI runs on another node.
    #[error("the VMI runs on another node")]
    OtherNode,
    /// The ledger's pod is not one of the VMI's pods on this node.
    #[error("pod {0} does not belong to the VMI on this node: nothing was sent to it")]
    OtherPod(String),
}

/// The ledger of a VMI that has something to do, or to look at, on a node.
///
/// # Errors
/// Why this node has nothing to do with it.
pub fn order(vmi: &Value, node: &str) -> Result<Option<Ledger>, Refused> {
    let asked = |ledger: &Ledger| ledger.asks_for_a_report();
    let Some(ledger) = ledger::read::<Ledger>(vmi, LEDGER).ok().flatten().filter(asked) else {
        return Ok(None);
    };
    let text = |pointer: &str| vmi.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/status/nodeName") != node {
        return Err(Refused::OtherNode);
    }
    let on = vmi.pointer("/status/activePods").and_then(|pods| pods.get(&ledger.pod)?.as_str());
    if on != Some(node) {
        return Err(Refused::OtherPod(ledger.pod));
    }
    Ok(Some(ledger))
}

/// The next call for a task, from what the guest has; nothing when it has been asked for all of it.
/// vCPUs wait until the memory is there.
pub fn plan(vmi: &CompleteVmi, task: Option<Size>, guest: &Guest) -> Option<Call> {
    let task = task?;
    if guest.requested != task.guest {
        return Some(Call::Memory(task));
    }
    (guest.current == task.guest && guest.vcpus < vmi.vcpus(task)).then_some(Call::Cpus(task))
}

/// Whether a guest still has to follow a task.
pub fn is_moving(vmi: &CompleteVmi, task: Option<Size>, guest: &Guest) -> bool {
    guest.requested != guest.current || plan(vmi, task, guest).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::complete::tests::vmi;

    const GI: u64 = 1 << 30;

    fn guest(vcpus: u32, requested: u64, current: u64) -> Guest {
        Guest { vcpus, requested: requested * GI, current: current * GI }
    }

    #[test]
    fn memory_first_then_vcpus_and_never_fewer_of_them() {
        let vmi = CompleteVmi::new(vmi()).unwrap();
        let task = Size { sockets: 3, guest: 2 * GI };
        for (guest, expected) in [
            (guest(4, 1, 1), Some(Call::Memory(task))),
            (guest(4, 2, 1), None),
            (guest(4, 2, 2), Some(Call::Cpus(task))),
            (guest(6, 2, 2), None),
            (guest(8, 2, 2), None),
            (guest(8, 3, 3), Some(Call::Memory(task))),
        ] {
            assert_eq!(plan(&vmi, Some(task), &guest), expected, "{guest:?}");
        }
        assert_eq!(plan(&vmi, None, &guest(1, 1, 1)), None, "only a look");
        assert!(is_moving(&vmi, None, &guest(1, 2, 1)));
    }

    #[test]
    fn a_pod_of_another_vmi_or_node_is_left_alone() {
        let ledger = |pod: &str| {
            format!(
                r#"{{"phase":"Plugging","pod":"{pod}","touched":true,"since":0,
                "task":{{"sockets":3,"guest":1073741824}},
                "from":{{"size":{{"sockets":2,"guest":1073741824}},"pod":{{"cpu":{{"request":1}},"memory":{{"request":1}}}}}},
                "to":{{"size":{{"sockets":3,"guest":1073741824}},"pod":{{"cpu":{{"request":1}},"memory":{{"request":1}}}}}}}}"#
            )
        };
        let with = |pod: &str| {
            let mut vmi = vmi();
            vmi["metadata"]["annotations"][LEDGER] = ledger(pod).into();
            vmi
        };
        assert_eq!(order(&with("aaaa-1"), "node01").unwrap().unwrap().task.unwrap().sockets, 3);
        assert_eq!(order(&with("bbbb-2"), "node01"), Err(Refused::OtherPod("bbbb-2".into())));
        assert_eq!(order(&with("aaaa-1"), "node02"), Err(Refused::OtherNode));
        assert_eq!(order(&vmi(), "node01"), Ok(None));
    }
}
