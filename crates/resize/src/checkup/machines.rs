//! VMs that run, one by one.

use serde::Serialize;
use serde_json::Value;

use super::Facts;
use super::steward::{Who, sources};
use crate::eligibility::Surroundings;
use crate::json::text;
use crate::ledger::{self, POLICY};
use crate::machine::Wanted;
use crate::plan::plan;
use crate::policy::Policy;
use crate::resources::Follows;
use crate::size::Size;
use crate::view;

/// How much memory is asked for in thought, bytes.
const MORE: u64 = 1 << 30;

/// What can be done for one VM that runs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Of the VMI.
    pub namespace: String,
    /// Of the VMI.
    pub name: String,
    /// The reconciler has put the policy in force.
    pub in_force: bool,
    /// What keeps it from getting one more socket.
    pub cpu: Vec<String>,
    /// What keeps it from getting more memory.
    pub memory: Vec<String>,
}

/// The policy that the reconciler has written on a VMI.
pub(super) fn in_force(vmi: &Value) -> bool {
    ledger::read::<Policy>(vmi, POLICY).ok().flatten().is_some_and(|policy| policy.in_place)
}

pub(super) fn machines(facts: &Facts) -> Vec<Machine> {
    facts.vmis.iter().flatten().map(|vmi| machine(vmi, facts)).collect()
}

fn machine(vmi: &Value, facts: &Facts) -> Machine {
    let (namespace, name) = (text(vmi, "/metadata/namespace"), text(vmi, "/metadata/name"));
    let none = &Value::Null;
    let pod = facts.pods.iter().flatten().find(|pod| view::is_active_launcher(pod, vmi)).unwrap_or(none);
    let node = text(pod, "/spec/nodeName");
    let nodes = facts.nodes.iter().flatten();
    let node = nodes.into_iter().find(|one| text(one, "/metadata/name") == node).unwrap_or(none);
    let may_declare = facts.rights.iter().any(|right| {
        right.who == Who::Operator && right.verb == "impersonate" && right.allowed == Some(true)
    });
    let around = Surroundings {
        pod,
        node,
        kubernetes_minor: facts.minor().unwrap_or(u32::MAX),
        live_update: view::is_live_update(facts.kubevirt()),
        may_declare,
    };
    let rules = view::rules(facts.kubevirt());
    let is = view::spec_size(vmi);
    let against = |size: Size| -> Vec<String> {
        let wanted = Wanted { size, follows: Follows::default() };
        plan(vmi, &wanted, &rules, &around).obstacles.iter().map(ToString::to_string).collect()
    };
    let vms = facts.vms.iter().flatten();
    let vm = vms
        .into_iter()
        .find(|vm| text(vm, "/metadata/namespace") == namespace && text(vm, "/metadata/name") == name);
    let mut cpu = against(Size { sockets: is.sockets.saturating_add(1), ..is });
    let mut memory = against(Size { guest: is.guest.saturating_add(MORE), ..is });
    if let Some(Err(mistake)) = vm.map(|vm| Policy::of(&sources(facts, namespace, vm), Policy::default())) {
        cpu.push(mistake.to_string());
        memory.push(mistake.to_string());
    }
    Machine { namespace: namespace.to_owned(), name: name.to_owned(), in_force: in_force(vmi), cpu, memory }
}
