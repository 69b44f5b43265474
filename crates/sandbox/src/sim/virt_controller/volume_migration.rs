//! Claims of a running VM that are exchanged for others, with what is in them (`watch/volume-migration`,
//! `handleVolumeUpdateRequest`, `syncVolumeMigration`, v1.9).
//!
//! ```text
//!  VM names other claims ─► status.migratedVolumes ─► VMI spec.volumes ─► VolumesChange ─► migration ─► done
//!                                   └──── the VM names the old ones again: cancelled ────┘
//! ```
//!
//! Pure functions; each pass makes one step, as the real one does, whose view of the VMI is that of before its writes.

use std::fmt::Write as _;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::launcher_pod::claim_of;
use super::vm::is_final;
use super::vm_status::SyncError;
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, condition, has_condition, list, text};
use crate::sim::resource::VMIS;
use crate::sim::storage::StorageCaches;
use crate::sim::write::{Op, Write};

/// The condition of VMI and VM while volumes move.
const CHANGE: &str = "VolumesChange";
const RECOVERY: &str = "ManualRecoveryRequired";
const CANCELLED: &str = "VolumesChangeCancellation";

/// What follows for a running VM.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    /// `status.volumeUpdateState.volumeMigrationState.migratedVolumes` of the VM.
    pub moving: Option<Vec<Value>>,
    /// The message of the `RestartRequired` condition.
    pub restart: Option<String>,
    pub error: Option<SyncError>,
}

impl Plan {
    /// The reason of the `Failure` condition, and what its message begins with.
    pub fn failed(why: &str) -> SyncError {
        let message = format!("error encountered while handling volumes update requests: {why}");
        SyncError { reason: "VolumesUpdateError", message }
    }
}

/// The VM wants its volumes to move.
pub fn moves(vm: &Value) -> bool {
    text(vm, "/spec/updateVolumesStrategy") == "Migration"
}

/// There may be something to do although the template is the one that the VMI was started with.
pub fn concerns(vm: &Value, vmi: &Value) -> bool {
    moves(vm) || !migrated(vmi).is_empty()
}

fn migrated(vmi: &Value) -> &[Value] {
    list(vmi, "/status/migratedVolumes")
}

/// Volumes that both have, with the claim that the VM names now, where that is another.
fn updated<'v>(vm: &'v Value, vmi: &Value) -> Vec<(&'v str, &'v str)> {
    let of_vmi =
        |name: &Value| list(vmi, "/spec/volumes").iter().find(|one| one["name"] == *name).and_then(claim_of);
    list(vm, "/spec/template/spec/volumes")
        .iter()
        .filter_map(|volume| {
            let (claim, old) = (claim_of(volume)?, of_vmi(&volume["name"])?);
            (claim != old).then(|| (text(volume, "/name"), claim))
        })
        .collect()
}

/// The next step for a VM whose VMI is there.
pub fn decide(
    vm: &Value,
    vmi: &Value,
    storage: &StorageCaches,
    config: &ClusterConfig,
    now: Timestamp,
) -> Plan {
    let updated = updated(vm, vmi);
    let touched = migrated(vmi).iter().any(|one| updated.iter().any(|(name, _)| one["volumeName"] == *name));
    if has_condition(vmi, CHANGE, "True") && touched {
        return cancel(vm, vmi, &updated, now);
    }
    match text(vm, "/spec/updateVolumesStrategy") {
        "" | "Replacement" => Plan::default(),
        "Migration" if updated.is_empty() || !served(config) => Plan::default(),
        "Migration" => begin(vm, vmi, &updated, storage, now),
        other => Plan {
            error: Some(Plan::failed(&format!("updateVolumes strategy not recognized: {other}"))),
            ..Plan::default()
        },
    }
}

/// GA in v1.5; before, behind two gates.
fn served(config: &ClusterConfig) -> bool {
    config.release.migrates_volumes()
        || (config.gate("VolumesUpdateStrategy") && config.gate("VolumeMigration"))
}

/// Back to the old claims: all that move, and no others (`VolumeMigrationCancel`).
fn cancel(vm: &Value, vmi: &Value, updated: &[(&str, &str)], now: Timestamp) -> Plan {
    let back = |one: &Value| {
        let old = text(one, "/sourcePVCInfo/claimName");
        !old.is_empty() && updated.contains(&(text(one, "/volumeName"), old))
    };
    if !migrated(vmi).iter().all(back) || migrated(vmi).len() != updated.len() {
        let why = "The volume can only be reverted to the previous version during the update";
        return Plan { error: Some(Plan::failed(why)), ..Plan::default() };
    }
    let mut conditions = list(vmi, "/status/conditions").to_vec();
    let mut cancelled = json::new_condition(CHANGE, "False", CANCELLED, "", now);
    cancelled["lastProbeTime"] = Value::Null;
    json::update_condition(&mut conditions, cancelled);
    let mut patch: Vec<Value> =
        Write::test_and_replace("/status/conditions", &vmi["status"]["conditions"], &conditions.into())
            .into();
    let null = Value::Null;
    patch.extend(Write::test_and_replace(
        "/status/migratedVolumes",
        &vmi["status"]["migratedVolumes"],
        &null,
    ));
    let mut writes: Vec<Write> = volumes_patch(vm, vmi).into_iter().collect();
    writes.push(Write::to(&VMIS, vmi, "", Op::JsonPatch(patch.into())));
    Plan { writes, ..Plan::default() }
}

fn begin(vm: &Value, vmi: &Value, updated: &[(&str, &str)], storage: &StorageCaches, now: Timestamp) -> Plan {
    match valid(vm, vmi, updated, storage) {
        Err(Invalid::Missing(why)) => {
            let message = format!("One of the destination volumes doesn't exist: {why}");
            let mut conditions = list(vmi, "/status/conditions").to_vec();
            let mut waits = json::new_condition(CHANGE, "False", "", &message, now);
            waits["lastProbeTime"] = Value::Null;
            json::update_condition(&mut conditions, waits);
            return Plan {
                writes: conditions_patch(vmi, conditions).into_iter().collect(),
                ..Plan::default()
            };
        }
        Err(Invalid::Volumes(why)) => return Plan { restart: Some(why), ..Plan::default() },
        Ok(()) => {}
    }
    let mut writes = Vec::new();
    if condition(vmi, "/status/conditions", CHANGE).is_some_and(|one| one["status"] != "True") {
        let mut conditions = list(vmi, "/status/conditions").to_vec();
        json::remove_condition(&mut conditions, CHANGE);
        writes.extend(conditions_patch(vmi, conditions));
    }
    let moving = moving(vm, vmi, updated, storage);
    if let Some(why) = cannot_move(vmi, &moving) {
        return Plan { writes, restart: Some(why), ..Plan::default() };
    }
    if migrated(vmi).is_empty() {
        let path = "/status/migratedVolumes";
        let old = vmi.pointer(path).unwrap_or(&Value::Null);
        let patch = Write::test_and_replace(path, old, &moving.clone().into());
        writes.push(Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(patch))));
    }
    writes.extend(volumes_patch(vm, vmi));
    Plan { writes, moving: Some(moving), ..Plan::default() }
}

fn conditions_patch(vmi: &Value, conditions: Vec<Value>) -> Option<Write> {
    let (old, new) = (&vmi["status"]["conditions"], Value::from(conditions));
    let patch = Write::test_and_replace("/status/conditions", old, &new);
    (*old != new).then(|| Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(patch))))
}

/// The volumes that move, as the VM has them (`PatchVMIVolumes`).
fn volumes_patch(vm: &Value, vmi: &Value) -> Option<Write> {
    let old = &vmi["spec"]["volumes"];
    let moves = |name: &Value| migrated(vmi).iter().any(|one| one["volumeName"] == *name);
    let wanted = |volume: &Value| {
        list(vm, "/spec/template/spec/volumes").iter().find(|one| one["name"] == volume["name"]).cloned()
    };
    let new: Value = list(vmi, "/spec/volumes")
        .iter()
        .map(|volume| wanted(volume).filter(|_| moves(&volume["name"])).unwrap_or_else(|| volume.clone()))
        .collect();
    let patch = Write::test_and_replace("/spec/volumes", old, &new);
    (*old != new).then(|| Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(patch))))
}

/// Why volumes cannot move.
enum Invalid {
    /// A claim is not there yet.
    Missing(String),
    Volumes(String),
}

/// Looks at the new claims (`ValidateVolumes`).
fn valid(vm: &Value, vmi: &Value, updated: &[(&str, &str)], storage: &StorageCaches) -> Result<(), Invalid> {
    let key = |name: &str| json::join_key(json::namespace(vm), name);
    let no_claim = |name: &str| Invalid::Missing(format!("the pvc {name} doesn't exist"));
    let (mut filesystems, mut shareable, mut luns, mut unpopulated) = (vec![], vec![], vec![], vec![]);
    for (name, claim) in updated {
        let of = |pointer: &str| list(vmi, pointer).iter().find(|one| one["name"] == *name);
        if of("/spec/domain/devices/filesystems").is_some() {
            filesystems.push(*name);
            continue;
        }
        let Some(disk) = of("/spec/domain/devices/disks") else { continue };
        if disk["shareable"] == true {
            shareable.push(*name);
        } else if disk.get("lun").is_some() {
            luns.push(*name);
        } else if of_data_volume(vm, name) {
            let Some(volume) = storage.data_volumes.get(&key(claim)) else {
                return Err(Invalid::Missing(format!("the datavolume {claim} doesn't exist")));
            };
            if text(&volume, "/status/phase") == "Succeeded" {
                continue;
            }
            let made = storage.claims.get(&key(claim)).ok_or_else(|| no_claim(claim))?;
            if made["spec"].get("dataSourceRef").is_none() {
                unpopulated.push(*name);
            }
        } else if storage.claims.get(&key(claim)).is_none() {
            return Err(no_claim(claim));
        }
    }
    let mut why = String::new();
    for (what, names) in [
        ("filesystems", filesystems),
        ("shareable", shareable),
        ("luns", luns),
        ("DV storage class isn't a CSI or not using volume populators", unpopulated),
    ] {
        if !names.is_empty() {
            let _ = write!(why, " {what}: [{}]", names.join(" "));
        }
    }
    if why.is_empty() {
        Ok(())
    } else {
        Err(Invalid::Volumes(format!("invalid volumes to update with migration:{why}")))
    }
}

fn of_data_volume(vm: &Value, name: &str) -> bool {
    list(vm, "/spec/template/spec/volumes")
        .iter()
        .any(|volume| volume["name"] == name && volume.get("dataVolume").is_some())
}

/// What moves, from where to where (`GenerateMigratedVolumes`).
fn moving(vm: &Value, vmi: &Value, updated: &[(&str, &str)], storage: &StorageCaches) -> Vec<Value> {
    let info = |name: &str| {
        let mut info = json!({"claimName": name});
        if let Some(claim) = storage.claims.get(&json::join_key(json::namespace(vm), name)) {
            for (key, pointer) in [
                ("volumeMode", "/spec/volumeMode"),
                ("accessModes", "/spec/accessModes"),
                ("requests", "/spec/resources/requests"),
                ("capacity", "/status/capacity"),
            ] {
                if let Some(value) = claim.pointer(pointer) {
                    info[key] = value.clone();
                }
            }
        }
        info
    };
    updated
        .iter()
        .map(|(name, claim)| {
            let old = list(vmi, "/spec/volumes").iter().find(|one| one["name"] == *name).and_then(claim_of);
            json!({"volumeName": name, "destinationPVCInfo": info(claim),
                "sourcePVCInfo": info(old.unwrap_or_default())})
        })
        .collect()
}

/// Why a VMI cannot take its volumes along (`ValidateVolumesUpdateMigration`).
pub fn cannot_move(vmi: &Value, moving: &[Value]) -> Option<String> {
    if let Some(stuck) =
        condition(vmi, "/status/conditions", "StorageLiveMigratable").filter(|one| one["status"] == "False")
    {
        let why = text(stuck, "/message");
        return Some(format!("cannot migrate the volumes as the VMI isn't migratable: {why}"));
    }
    let left = list(vmi, "/status/volumeStatus").iter().find(|status| {
        list(status, "/persistentVolumeClaimInfo/accessModes").iter().any(|mode| mode == "ReadWriteOnce")
            && moving.iter().all(|one| one["volumeName"] != status["name"])
    })?;
    let name = text(left, "/name");
    Some(format!("cannot migrate the VM. The volume {name} is RWO and not included in the migration volumes"))
}

/// virt-controller notes that the volumes of a VMI have changed (`requireVolumesUpdate`).
pub fn has_changed(vmi: &Value) -> bool {
    let from = |claim: &str| migrated(vmi).iter().any(|one| text(one, "/sourcePVCInfo/claimName") == claim);
    !migrated(vmi).is_empty()
        && condition(vmi, "/status/conditions", CHANGE).is_none()
        && list(vmi, "/spec/volumes").iter().filter_map(claim_of).any(|claim| !from(claim))
}

/// Follows a volume migration in the status of the VM (`syncVolumeMigration`); `vm` is the VM as it was read.
pub fn sync(status: &mut Value, vm: &Value, vmi: Option<&Value>, now: Timestamp) {
    let path = ["volumeUpdateState", "volumeMigrationState"];
    let Some(state) = status.pointer("/volumeUpdateState/volumeMigrationState").filter(|one| one.is_object())
    else {
        return;
    };
    let recovered = list(vm, "/spec/template/spec/volumes").iter().all(|volume| {
        let moved = list(state, "/migratedVolumes").iter().find(|one| one["volumeName"] == volume["name"]);
        let old = moved.map(|one| text(one, "/sourcePVCInfo/claimName")).filter(|old| !old.is_empty());
        old.is_none_or(|old| claim_of(volume) == Some(old))
    });
    let mut conditions = list(status, "/conditions").to_vec();
    if recovered || !moves(vm) {
        json::remove(status, &path);
        for kind in [CHANGE, RECOVERY] {
            json::remove_condition(&mut conditions, kind);
        }
        status["conditions"] = conditions.into();
        return;
    }
    let Some(vmi) = vmi.filter(|vmi| !is_final(vmi)) else {
        if conditions.iter().any(|one| one["type"] == CHANGE && one["status"] == "True") {
            let reason = "VMI was removed or was final during the volume migration";
            let mut lost = json::new_condition(RECOVERY, "True", reason, "", now);
            for key in ["lastProbeTime", "lastTransitionTime"] {
                lost[key] = Value::Null;
            }
            json::remove(&mut lost, &["message"]);
            json::update_condition(&mut conditions, lost);
            status["conditions"] = conditions.into();
        }
        return;
    };
    let cancelled = condition(vmi, "/status/conditions", CHANGE)
        .is_some_and(|one| one["status"] == "False" && one["reason"] == CANCELLED);
    if cancelled {
        json::remove(status, &path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(claims: &[&str]) -> StorageCaches {
        let storage = StorageCaches::new();
        for name in claims {
            storage
                .claims
                .observe(json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": "1"},
                "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}}));
        }
        storage
    }

    fn volumes(claim: &str) -> Value {
        json!([{"name": "root", "persistentVolumeClaim": {"claimName": claim}}, {"name": "init", "cloudInitNoCloud": {}}])
    }

    fn vm(claim: &str) -> Value {
        json!({"metadata": {"name": "v", "namespace": "n"},
            "spec": {"updateVolumesStrategy": "Migration", "template": {"spec": {"volumes": volumes(claim)}}}})
    }

    fn vmi(claim: &str) -> Value {
        json!({"metadata": {"name": "v", "namespace": "n"},
            "spec": {"volumes": volumes(claim), "domain": {"devices": {"disks": [{"name": "root", "disk": {}}]}}},
            "status": {"conditions": [], "volumeStatus": [{"name": "root",
                "persistentVolumeClaimInfo": {"accessModes": ["ReadWriteOnce"]}}]}})
    }

    fn step(vm: &Value, vmi: &Value, storage: &StorageCaches) -> Plan {
        decide(vm, vmi, storage, &ClusterConfig::of(&Value::Null), Timestamp::UNIX_EPOCH)
    }

    fn paths(plan: &Plan) -> Vec<String> {
        let of = |write: &Write| match &write.op {
            Op::JsonPatch(patch) => text(&patch[0], "/path").to_owned(),
            other => format!("{other:?}"),
        };
        plan.writes.iter().map(of).collect()
    }

    #[test]
    fn first_the_status_then_the_spec_then_the_condition() {
        let (storage, wanted) = (caches(&["old", "new"]), vm("new"));
        let mut guest = vmi("old");
        let first = step(&wanted, &guest, &storage);
        assert_eq!(paths(&first), ["/status/migratedVolumes"]);
        let moving = first.moving.unwrap();
        assert_eq!(text(&moving[0], "/sourcePVCInfo/claimName"), "old");
        assert_eq!(text(&moving[0], "/destinationPVCInfo/volumeMode"), "Block");
        guest["status"]["migratedVolumes"] = moving.into();
        assert!(!has_changed(&guest), "the guest has its old claim still");
        assert_eq!(paths(&step(&wanted, &guest, &storage)), ["/spec/volumes"]);
        guest["spec"]["volumes"] = volumes("new");
        assert!(has_changed(&guest));
        guest["status"]["conditions"] = json!([{"type": CHANGE, "status": "True"}]);
        assert!(!has_changed(&guest));
        assert_eq!(step(&wanted, &guest, &storage), Plan::default());

        let cancelled = step(&vm("old"), &guest, &storage);
        assert_eq!(paths(&cancelled), ["/spec/volumes", "/status/conditions"]);
        let other = step(&vm("third"), &guest, &storage).error.unwrap();
        assert!(
            other.message.ends_with("only be reverted to the previous version during the update"),
            "{other:?}"
        );
    }

    #[test]
    fn what_cannot_move_waits_or_needs_a_restart() {
        let storage = caches(&["old", "new"]);
        let missing = step(&vm("later"), &vmi("old"), &storage);
        assert_eq!(paths(&missing), ["/status/conditions"]);
        let disk = |disk: Value| {
            let mut guest = vmi("old");
            guest["spec"]["domain"]["devices"]["disks"][0] = disk;
            guest
        };
        let mut left = vmi("old");
        left["status"]["volumeStatus"][0]["name"] = "other".into();
        let mut stuck = vmi("old");
        stuck["status"]["conditions"] =
            json!([{"type": "StorageLiveMigratable", "status": "False", "message": "why"}]);
        for (guest, expected) in [
            (
                disk(json!({"name": "root", "disk": {}, "shareable": true})),
                "invalid volumes to update with migration: shareable: [root]",
            ),
            (
                disk(json!({"name": "root", "lun": {}})),
                "invalid volumes to update with migration: luns: [root]",
            ),
            (
                left,
                "cannot migrate the VM. The volume other is RWO and not included in the migration volumes",
            ),
            (stuck, "cannot migrate the volumes as the VMI isn't migratable: why"),
        ] {
            assert_eq!(step(&vm("new"), &guest, &storage).restart.as_deref(), Some(expected));
        }
        let mut replacing = vm("new");
        replacing["spec"]["updateVolumesStrategy"] = "Replacement".into();
        assert_eq!(step(&replacing, &vmi("old"), &storage), Plan::default());
    }

    #[test]
    fn a_vmi_that_is_lost_on_the_way_needs_somebody_to_look() {
        let moved = json!([{"volumeName": "root", "sourcePVCInfo": {"claimName": "old"}}]);
        let status = json!({"volumeUpdateState": {"volumeMigrationState": {"migratedVolumes": moved}},
            "conditions": [{"type": CHANGE, "status": "True"}]});
        let after = |vm: &Value, vmi: Option<&Value>| {
            let mut after = status.clone();
            sync(&mut after, vm, vmi, Timestamp::UNIX_EPOCH);
            let kinds: Vec<String> =
                list(&after, "/conditions").iter().map(|one| text(one, "/type").to_owned()).collect();
            (kinds.join(" "), after.pointer("/volumeUpdateState/volumeMigrationState").is_some())
        };
        assert_eq!(after(&vm("new"), None), (format!("{CHANGE} {RECOVERY}"), true));
        assert_eq!(after(&vm("old"), None), (String::new(), false), "recovered");
        let mut cancelled = vmi("old");
        cancelled["status"]["conditions"] = json!([{"type": CHANGE, "status": "False", "reason": CANCELLED}]);
        assert_eq!(after(&vm("new"), Some(&cancelled)), (CHANGE.into(), false));
        assert_eq!(after(&vm("new"), Some(&vmi("new"))), (CHANGE.into(), true));
    }
}
