//! What a resize would change, before anything is changed.

use serde_json::Value;

use crate::eligibility::{self, Obstacle, Surroundings};
use crate::machine::Wanted;
use crate::resources::{Demand, Rules, asked_at, resized};
use crate::size::{Compute, Size};
use crate::view;

/// The way from a VMI's size to another one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The VMI's size now.
    pub from: Size,
    /// The wanted size.
    pub to: Size,
    /// What the launcher's container has now.
    pub now: Compute,
    /// What it has while the guest changes: enough for both sizes.
    pub larger: Compute,
    /// What it has in the end.
    pub last: Compute,
    /// What stands in the way; with none it is done in place.
    pub obstacles: Vec<Obstacle>,
}

/// Plans a resize of a running VMI. Without a launcher pod only the VMI itself is judged.
pub fn plan(vmi: &Value, wanted: &Wanted, rules: &Rules, around: &Surroundings<'_>) -> Plan {
    let seen = view::vmi(vmi);
    let demand = |size, asked| Demand {
        size,
        vcpus_per_socket: seen.vcpus_per_socket,
        asked,
        overcommit_overhead: seen.overcommit_overhead,
    };
    let old = demand(seen.size, seen.asked);
    let asked = asked_at(&old, wanted.size, wanted.follows, rules);
    let now = view::pod_compute(around.pod);
    let last = resized(now, &old, &demand(wanted.size, asked), rules);
    let larger = now.max(last);
    let mut obstacles = eligibility::of_vmi(vmi, wanted.size);
    if !around.pod.is_null() {
        obstacles.extend(eligibility::of_surroundings(&seen, wanted.size, (larger, last), around));
    }
    Plan { from: seen.size, to: wanted.size, now, larger, last, obstacles }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::Follows;

    #[test]
    fn a_plan_names_both_pods_and_what_stands_in_the_way() {
        let vmi = json!({"metadata": {}, "spec": {"architecture": "amd64", "domain": {
                "cpu": {"sockets": 2, "cores": 1, "threads": 1, "maxSockets": 8},
                "memory": {"guest": "2Gi", "maxGuest": "8Gi"}}},
            "status": {"phase": "Running", "memory": {"guestAtBoot": "1Gi"},
                "conditions": [{"type": "LiveMigratable", "status": "True"}]}});
        let resources = json!({"requests": {"cpu": "200m", "memory": "2344Mi"}});
        let pod = json!({"spec": {"containers": [{"name": "compute", "resources": resources}]},
            "status": {"containerStatuses": [{"name": "compute", "resources": resources}]}});
        let around = Surroundings {
            pod: &pod,
            node: &Value::Null,
            kubernetes_minor: 36,
            live_update: true,
            may_declare: false,
        };
        let wanted = |sockets, guest| Wanted { size: Size { sockets, guest }, follows: Follows::default() };
        let mixed = plan(&vmi, &wanted(4, 1 << 30), &Rules::default(), &around);
        assert_eq!(mixed.obstacles, []);
        assert_eq!(mixed.larger.memory.request, 2344 << 20, "memory goes last");
        assert_eq!(mixed.larger.cpu.request, 400);
        assert_eq!(mixed.last.memory.request, (1320 + 16) << 20);
        let over = plan(&vmi, &wanted(9, 2 << 30), &Rules::default(), &around);
        assert_eq!(over.obstacles, [Obstacle::AboveMaxSockets(8)]);
    }
}
