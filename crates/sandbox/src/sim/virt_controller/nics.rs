//! Interfaces of a running VM (`pkg/network/controllers/vm.go`, `pkg/network/vmliveupdate`, `pkg/network/migration`,
//! v1.9): bridges and SR-IOV on secondary networks come and go, links go up and down, everything else waits for a
//! restart. What comes needs a pod with that network, so the VMI migrates; what goes leaves the guest at once, and the
//! pod with the migration.
//!
//! ```text
//!  VM: interface added ──► VMI ──no status for 15 s (SR-IOV: at once)──► MigrationRequired ──► migrated: in the guest
//!  VM: state absent ─────► VMI ──guest lets go──► MigrationRequired ──► migrated: gone from VMI, then from the VM
//! ```

use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use super::migration::decide::is_migrating;
use crate::sim::json::{self, condition, has_condition, list, text};

const INTERFACES: &str = "/domain/devices/interfaces";
const NETWORKS: &str = "/networks";
/// How long the cluster's own controller for pod networks is waited for (`DynamicNetworkControllerGracePeriod`).
const GRACE: SignedDuration = SignedDuration::from_secs(15);
/// How soon a VMI that waits is looked at again.
pub const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
const MIGRATION_REQUIRED: &str = "MigrationRequired";

fn named<'a>(list: &'a [Value], name: &Value) -> Option<&'a Value> {
    list.iter().find(|one| one["name"] == *name)
}

fn is_absent(interface: &Value) -> bool {
    text(interface, "/state") == "absent"
}

/// Whether virt-handler or Multus tells of an interface.
fn is_known(vmi: &Value, name: &Value) -> bool {
    named(list(vmi, "/status/interfaces"), name).is_some()
}

fn without_state(interface: &Value) -> Value {
    let mut plain = interface.clone();
    json::remove(&mut plain, &["state"]);
    plain
}

/// Interfaces that were there at the start and are changed otherwise than by their state, or are gone without having
/// been unplugged; networks likewise (`IsRestartRequired`).
pub fn need_restart(started: &Value, wanted: &Value, vmi: &Value) -> bool {
    let (old, new) = (list(started, INTERFACES), list(wanted, INTERFACES));
    let in_guest = list(&vmi["spec"], INTERFACES);
    let changed = old.iter().any(|one| match named(new, &one["name"]) {
        Some(now) => without_state(now) != without_state(one),
        // What was unplugged is pruned from the VM.
        None => named(in_guest, &one["name"]).is_some(),
    });
    let hotplugged = in_guest.iter().filter(|one| named(old, &one["name"]).is_none());
    let dropped = |one: &&Value| named(new, &one["name"]).is_none() && !old.is_empty();
    if changed || hotplugged.clone().any(|one| dropped(&one)) {
        return true;
    }
    let (old, new) = (list(started, NETWORKS), list(wanted, NETWORKS));
    let pod_network = |networks: &[Value]| networks.iter().any(|one| one.get("pod").is_some());
    let migratable = has_condition(vmi, "LiveMigratable", "True");
    let plain = |network: &Value| {
        let mut plain = network.clone();
        // The attachment definition can be exchanged by a migration (`LiveUpdateNADRef`).
        if migratable && plain.get("multus").is_some() {
            json::remove(&mut plain, &["multus", "networkName"]);
        }
        plain
    };
    let changed = old.iter().any(|one| named(new, &one["name"]).is_some_and(|now| plain(now) != plain(one)));
    changed || (pod_network(new) && !pod_network(old) && !old.is_empty())
}

/// The patch that brings the VMI's interfaces and networks to what the VM wants; `None`: nothing differs.
pub fn patch(wanted: &Value, vmi: &Value) -> Option<Value> {
    let spec = &vmi["spec"];
    let mut interfaces = list(spec, INTERFACES).to_vec();
    let mut networks = list(spec, NETWORKS).to_vec();
    for interface in list(wanted, INTERFACES) {
        let plugs = interface.get("bridge").is_some() || interface.get("sriov").is_some();
        match interfaces.iter_mut().find(|one| one["name"] == interface["name"]) {
            None if plugs && !is_absent(interface) => {
                interfaces.push(interface.clone());
                networks.extend(named(list(wanted, NETWORKS), &interface["name"]).cloned());
            }
            Some(have) if !is_absent(have) && have.get("state") != interface.get("state") => {
                match interface.get("state") {
                    Some(state) => have["state"] = state.clone(),
                    None => json::remove(have, &["state"]),
                }
            }
            _ => {}
        }
    }
    interfaces.retain(|one| !is_absent(one) || is_known(vmi, &one["name"]));
    networks.retain(|network| named(&interfaces, &network["name"]).is_some());
    if has_condition(vmi, "LiveMigratable", "True") {
        for network in &mut networks {
            let name = named(list(wanted, NETWORKS), &network["name"])
                .and_then(|wanted| wanted.pointer("/multus/networkName"))
                .cloned();
            if let Some(name) = name
                && network.pointer("/multus/networkName").is_some()
            {
                network["multus"]["networkName"] = name;
            }
        }
    }
    if interfaces.as_slice() == list(spec, INTERFACES) && networks.as_slice() == list(spec, NETWORKS) {
        return None;
    }
    let old = |pointer: &str| spec.pointer(pointer).cloned().unwrap_or_default();
    Some(json!([
        {"op": "test", "path": "/spec/networks", "value": old(NETWORKS)},
        {"op": "add", "path": "/spec/networks", "value": networks},
        {"op": "test", "path": "/spec/domain/devices/interfaces", "value": old(INTERFACES)},
        {"op": "add", "path": "/spec/domain/devices/interfaces", "value": interfaces},
    ]))
}

/// The VM without the interfaces that are absent and gone (`clearDetachedIfacesFromVM`); `None`: there are none.
pub fn pruned(vm: &Value, vmi: Option<&Value>) -> Option<Value> {
    let spec = vm.pointer("/spec/template/spec")?;
    let gone = |one: &Value| {
        is_absent(one)
            && vmi.is_none_or(|vmi| {
                named(list(&vmi["spec"], INTERFACES), &one["name"]).is_none() && !is_known(vmi, &one["name"])
            })
    };
    let all = list(spec, INTERFACES);
    if !all.iter().any(gone) {
        return None;
    }
    let kept: Vec<Value> = all.iter().filter(|one| !gone(one)).cloned().collect();
    let networks: Vec<Value> =
        list(spec, NETWORKS).iter().filter(|one| named(&kept, &one["name"]).is_some()).cloned().collect();
    let mut vm = vm.clone();
    json::put(&mut vm, &["spec", "template", "spec", "domain", "devices", "interfaces"], kept);
    json::put(&mut vm, &["spec", "template", "spec", "networks"], networks);
    Some(vm)
}

/// Sets `MigrationRequired` where only another pod has the networks that the VMI asks for
/// (`syncMigrationRequiredCondition`).
pub fn require_migration(vmi: &Value, conditions: &mut Vec<Value>, now: Timestamp) {
    if is_migrating(vmi) {
        return;
    }
    let existing = condition(vmi, "/status/conditions", MIGRATION_REQUIRED).cloned();
    let mut needed = None;
    for interface in list(&vmi["spec"], INTERFACES) {
        let secondary = named(list(&vmi["spec"], NETWORKS), &interface["name"])
            .is_some_and(|network| network.get("multus").is_some() && network["multus"]["default"] != true);
        if !secondary {
            continue;
        }
        let status = named(list(vmi, "/status/interfaces"), &interface["name"]);
        let source = status.map_or("", |status| text(status, "/infoSource"));
        let comes = !is_absent(interface) && status.is_none();
        let goes = is_absent(interface) && source.contains("multus-status") && !source.contains("domain");
        if comes && interface.get("sriov").is_some() {
            needed = Some(true);
            break;
        }
        if comes || goes {
            let waited = existing.as_ref().filter(|one| one["status"] == "False").is_some_and(|one| {
                let since: Timestamp = text(one, "/lastTransitionTime").parse().unwrap_or(now);
                now.duration_since(since) > GRACE
            });
            needed = Some(waited);
            break;
        }
    }
    match needed {
        None => json::remove_condition(conditions, MIGRATION_REQUIRED),
        Some(_) if existing.as_ref().is_some_and(|one| one["status"] == "True") => {}
        Some(at_once) => {
            let (status, reason) = if at_once {
                ("True", "AutoMigrationDueToLiveUpdate")
            } else {
                ("False", "AutoMigrationPending")
            };
            let mut wanted = json::new_condition(MIGRATION_REQUIRED, status, reason, "", now);
            wanted["lastProbeTime"] = Value::Null;
            json::update_condition(conditions, wanted);
        }
    }
}

/// Whether a VMI waits for its time to migrate.
pub fn waits(vmi: &Value) -> bool {
    has_condition(vmi, MIGRATION_REQUIRED, "False")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(interfaces: &[Value]) -> Value {
        let networks: Vec<Value> = interfaces
            .iter()
            .map(|one| {
                if one.get("masquerade").is_some() {
                    json!({"name": one["name"], "pod": {}})
                } else {
                    json!({"name": one["name"], "multus": {"networkName": "nad"}})
                }
            })
            .collect();
        json!({"domain": {"devices": {"interfaces": interfaces}}, "networks": networks})
    }

    fn pod_network() -> Value {
        json!({"name": "default", "masquerade": {}})
    }

    fn bridge(state: &str) -> Value {
        if state.is_empty() {
            json!({"name": "blue", "bridge": {}})
        } else {
            json!({"name": "blue", "bridge": {}, "state": state})
        }
    }

    fn vmi(interfaces: &[Value], known: &[(&str, &str)]) -> Value {
        let status: Vec<Value> =
            known.iter().map(|(name, source)| json!({"name": name, "infoSource": source})).collect();
        json!({"spec": spec(interfaces), "status": {"interfaces": status,
            "conditions": [{"type": "LiveMigratable", "status": "True"}]}})
    }

    #[test]
    fn bridges_come_states_follow_and_the_rest_waits() {
        let one = vmi(&[pod_network()], &[("default", "domain")]);
        let added = patch(&spec(&[pod_network(), bridge("")]), &one).unwrap();
        assert_eq!(added[3]["value"][1]["name"], "blue");
        assert_eq!(added[1]["value"][1], json!({"name": "blue", "multus": {"networkName": "nad"}}));
        let masqueraded = json!({"name": "red", "masquerade": {}});
        assert_eq!(patch(&spec(&[pod_network(), masqueraded]), &one), None);
        let two =
            vmi(&[pod_network(), bridge("")], &[("default", "domain"), ("blue", "domain, multus-status")]);
        let down = patch(&spec(&[pod_network(), bridge("down")]), &two).unwrap();
        assert_eq!(down[3]["value"][1]["state"], "down");
        assert_eq!(patch(&spec(&[pod_network(), bridge("")]), &two), None);
    }

    #[test]
    fn what_is_absent_goes_when_nobody_tells_of_it_any_more() {
        let absent = vmi(&[pod_network(), bridge("absent")], &[("default", "domain")]);
        let gone = patch(&spec(&[pod_network(), bridge("absent")]), &absent).unwrap();
        assert_eq!(
            (gone[3]["value"].as_array().unwrap().len(), gone[1]["value"].as_array().unwrap().len()),
            (1, 1)
        );
        let vm = json!({"spec": {"template": {"spec": spec(&[pod_network(), bridge("absent")])}}});
        assert_eq!(pruned(&vm, Some(&absent)), None, "the VMI still has it");
        let clean = vmi(&[pod_network()], &[("default", "domain")]);
        for vmi in [Some(&clean), None] {
            let pruned = pruned(&vm, vmi).unwrap();
            assert_eq!(pruned["spec"]["template"]["spec"], spec(&[pod_network()]));
        }
    }

    #[test]
    fn who_migrates_at_once_who_later_and_who_never() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let sriov = json!({"name": "blue", "sriov": {}});
        let both = [("default", "domain"), ("blue", "domain, multus-status")];
        let left = [("default", "domain"), ("blue", "multus-status")];
        for (vmi, after, status) in [
            (vmi(&[pod_network()], &both[..1]), 0, ""),
            (vmi(&[pod_network(), bridge("")], &both), 0, ""),
            (vmi(&[pod_network(), bridge("")], &both[..1]), 0, "False"),
            (vmi(&[pod_network(), bridge("")], &both[..1]), 16, "True"),
            (vmi(&[pod_network(), sriov], &both[..1]), 0, "True"),
            (vmi(&[pod_network(), bridge("absent")], &both), 0, ""),
            (vmi(&[pod_network(), bridge("absent")], &left), 0, "False"),
        ] {
            let mut vmi = vmi;
            for now in [start, start + SignedDuration::from_secs(after)] {
                let mut conditions = list(&vmi, "/status/conditions").to_vec();
                require_migration(&vmi, &mut conditions, now);
                json::put(&mut vmi, &["status", "conditions"], conditions);
            }
            let condition = condition(&vmi, "/status/conditions", MIGRATION_REQUIRED);
            assert_eq!(condition.map_or("", |one| text(one, "/status")), status, "{vmi}");
        }
    }

    #[test]
    fn what_needs_a_restart() {
        let started = spec(&[pod_network(), bridge("")]);
        let running = vmi(&[pod_network(), bridge("")], &[]);
        let changed = json!({"name": "blue", "bridge": {}, "model": "e1000"});
        for (wanted, restart) in [
            (vec![pod_network(), bridge("")], false),
            (vec![pod_network(), bridge("absent")], false),
            (vec![pod_network(), bridge("down"), json!({"name": "red", "bridge": {}})], false),
            (vec![pod_network()], true),
            (vec![pod_network(), changed], true),
        ] {
            assert_eq!(need_restart(&started, &spec(&wanted), &running), restart, "{wanted:?}");
        }
        let unplugged = vmi(&[pod_network()], &[]);
        assert!(
            !need_restart(&started, &spec(&[pod_network()]), &unplugged),
            "pruned after it was unplugged"
        );
        let mut other = spec(&[pod_network(), bridge("")]);
        other["networks"][1]["multus"]["networkName"] = "another".into();
        assert!(!need_restart(&started, &other, &running), "a migration brings it");
        let mut fixed = running;
        fixed["status"]["conditions"] = json!([]);
        assert!(need_restart(&started, &other, &fixed));
    }
}
