//! The `DataVolumes` and claims of VMs: templates become `DataVolumes` before a VM starts (`handleDataVolumes`), and
//! whoever waits for a claim hears of it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use apimachinery::tree::{Value, json};

use super::launcher_pod::{claim_of, is_hotpluggable};
use super::snapshot::{self, claims_of};
use super::vm_status::SyncError;
use crate::sim::cache::Change;
use crate::sim::client::ClientError;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, map, text};
use crate::sim::resource::DATA_VOLUMES;
use crate::sim::storage::StorageCaches;
use crate::sim::storage::data_volumes::is_usable;
use crate::sim::write::{Write, Writer};

/// What the volumes of a VM are at, for its status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volumes {
    /// `status.volumeSnapshotStatuses`
    pub snapshots: Vec<Value>,
    /// A `DataVolume` cannot be filled.
    pub broken: bool,
    /// A `DataVolume` is being filled.
    pub provisioning: bool,
    /// A claim is not bound.
    pub unbound: bool,
}

impl Volumes {
    /// Of a VM, as the caches show them.
    pub fn of(vm: &Value, storage: &StorageCaches) -> Self {
        let mut volumes = Self { snapshots: snapshot::volume_statuses(vm, storage), ..Self::default() };
        let namespace = json::namespace(vm);
        for (_, name) in claims_of(vm) {
            let key = json::join_key(namespace, name);
            if let Some(volume) = storage.data_volumes.get(&key) {
                let failing = json::condition(&volume, "/status/conditions", "Running")
                    .is_some_and(|running| running["reason"] == "Error");
                volumes.broken |= failing || text(&volume, "/status/phase") == "Failed";
                volumes.provisioning |= !is_usable(&volume);
            }
            if let Some(claim) = storage.claims.get(&key) {
                volumes.unbound |= text(&claim, "/status/phase") != "Bound";
            }
        }
        volumes
    }
}

/// The `DataVolume` of a template (`GenerateDataVolumeFromTemplate`).
pub fn of_template(template: &Value, namespace: &str) -> Value {
    let mut labels = map(template, "/metadata/labels").cloned().unwrap_or_default();
    let mut annotations = map(template, "/metadata/annotations").cloned().unwrap_or_default();
    labels.remove("");
    annotations.insert("cdi.kubevirt.io/allowClaimAdoption".into(), "true".into());
    json!({"apiVersion": DATA_VOLUMES.api_version(), "kind": DATA_VOLUMES.kind,
        "metadata": {"name": text(template, "/metadata/name"), "namespace": namespace, "labels": labels,
            "annotations": annotations},
        "spec": template["spec"]})
}

/// Makes what is missing. `Ok(true)`: all are there and can be used.
///
/// # Errors
/// `Err`: no answer; the inner error is what was refused.
pub async fn ensure(
    vm: &Value,
    storage: &StorageCaches,
    (writer, recorder, who): (&Writer, &Recorder, &Identity),
) -> Result<Result<bool, SyncError>, ClientError> {
    let mut ready = true;
    for template in list(vm, "/spec/dataVolumeTemplates") {
        let name = text(template, "/metadata/name");
        let note = |note: Note| recorder.note(who, super::COMPONENT, note);
        let Some(volume) = storage.data_volumes.get(&json::join_key(json::namespace(vm), name)) else {
            ready = false;
            let mut volume = of_template(template, json::namespace(vm));
            json::put(&mut volume, &["metadata", "labels", "kubevirt.io/created-by"], json::uid(vm));
            volume["metadata"]["ownerReferences"] = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                "name": json::name(vm), "uid": json::uid(vm), "controller": true, "blockOwnerDeletion": true}]);
            match writer.write(who, &Write::create(&DATA_VOLUMES, volume)).await {
                Ok(_) => {
                    note(Note::normal(
                        vm,
                        "SuccessfulDataVolumeCreate",
                        format!("Created DataVolume {name}"),
                    ));
                }
                Err(error) if error.code() == 409 => {}
                Err(error) if error.code() != 0 => {
                    let message = format!("Error creating DataVolume {name}: {}", error.message());
                    note(Note::warning(vm, "FailedDataVolumeCreate", message));
                    let message = format!(
                        "failure while starting VMI: failed to create DataVolume: {}",
                        error.message()
                    );
                    return Ok(Err(SyncError { reason: "FailedCreate", message }));
                }
                Err(error) => return Err(error),
            }
            continue;
        };
        if text(&volume, "/status/phase") == "Failed" {
            let message = format!("DataVolume {name} failed to import disk image");
            note(Note::warning(vm, "FailedDataVolumeImport", message));
        }
        ready &= is_usable(&volume);
    }
    Ok(Ok(ready))
}

/// Whether the claims of a VMI are such that its launcher can be made.
#[derive(Debug, PartialEq)]
pub enum Prepared {
    Yes,
    /// A `DataVolume` is filled when a pod uses its claim.
    FirstConsumer,
    /// A `DataVolume` is still being filled.
    NotYet,
    /// A claim is not there.
    No(SyncError),
}

/// Looks at the claims that a VMI starts with (`handleSyncDataVolumes`, `addPVCToLaunchManifest`).
pub fn for_launcher(vmi: &Value, storage: &StorageCaches) -> Prepared {
    let (mut missing, mut waits) = (None, false);
    for volume in list(vmi, "/spec/volumes").iter().filter(|volume| !is_hotpluggable(volume)) {
        let Some(claim) = claim_of(volume) else { continue };
        let key = json::join_key(json::namespace(vmi), claim);
        if storage.claims.get(&key).is_none() {
            missing = missing.or(Some(claim));
        } else if let Some(volume) = storage.data_volumes.get(&key) {
            if !is_usable(&volume) {
                return Prepared::NotYet;
            }
            waits |= text(&volume, "/status/phase") == "WaitForFirstConsumer";
        }
    }
    let there = if waits { Prepared::FirstConsumer } else { Prepared::Yes };
    missing.map_or(there, |claim| {
        let message = format!("failed to render launch manifest: didn't find PVC {claim}");
        Prepared::No(SyncError { reason: "FailedPvcNotFound", message })
    })
}

/// Which VMs have a claim among their volumes; empty while no VM has any.
#[derive(Debug, Default)]
pub struct Users(Mutex<Uses>);

/// The same, from both sides.
#[derive(Debug, Default)]
struct Uses {
    vms: HashMap<String, BTreeSet<String>>,
    claims: HashMap<String, BTreeSet<String>>,
}

impl Users {
    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM came, changed or went; its volumes are at this pointer.
    pub fn changed(&self, change: &Change<'_>, volumes: &str) {
        let vm = change.new.map_or(&Value::Null, |vm| vm);
        let claims = list(vm, volumes).iter().filter_map(claim_of);
        let new: BTreeSet<String> = claims.map(|claim| json::join_key(json::namespace(vm), claim)).collect();
        let mut uses = self.uses();
        let old = uses.claims.remove(change.key).unwrap_or_default();
        for gone in old.difference(&new) {
            if let Some(vms) = uses.vms.get_mut(gone) {
                vms.remove(change.key);
                if vms.is_empty() {
                    uses.vms.remove(gone);
                }
            }
        }
        for claim in new.difference(&old) {
            uses.vms.entry(claim.clone()).or_default().insert(change.key.to_owned());
        }
        if !new.is_empty() {
            uses.claims.insert(change.key.to_owned(), new);
        }
    }

    /// The keys of all VMs with claims.
    pub fn everybody(&self) -> BTreeSet<String> {
        self.uses().claims.keys().cloned().collect()
    }

    /// The keys of the VMs with a claim.
    pub fn of(&self, claim: &str) -> Vec<String> {
        self.uses().vms.get(claim).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn users_follow_the_volumes_of_vms() {
        let vm = |claim: &str| {
            Arc::new(
                json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"template": {"spec": {"volumes": [
                {"name": "d", "persistentVolumeClaim": {"claimName": claim}}, {"name": "c", "containerDisk": {}}]}}}}),
            )
        };
        let users = Users::default();
        let changed = |change: Change<'_>| users.changed(&change, "/spec/template/spec/volumes");
        let (one, two) = (vm("a"), vm("b"));
        changed(Change { key: "n/v", old: None, new: Some(&one) });
        assert_eq!(users.of("n/a"), ["n/v"]);
        changed(Change { key: "n/v", old: None, new: Some(&two) });
        assert_eq!((users.of("n/a").len(), users.of("n/b").len()), (0, 1));
        changed(Change { key: "n/v", old: None, new: None });
        assert!(users.uses().vms.is_empty() && users.everybody().is_empty());
    }

    #[test]
    fn a_launcher_waits_for_what_its_vmi_starts_with() {
        let storage = StorageCaches::new();
        let vmi = json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"volumes": [
            {"name": "c", "containerDisk": {}}, {"name": "d", "dataVolume": {"name": "dv"}},
            {"name": "h", "persistentVolumeClaim": {"claimName": "absent", "hotpluggable": true}}]}});
        let observe = |cache: &crate::sim::cache::Cache, version: u64, status: Value| {
            let metadata = json!({"name": "dv", "namespace": "n", "resourceVersion": version.to_string()});
            cache.observe(json!({"metadata": metadata, "status": status}));
        };
        let Prepared::No(error) = for_launcher(&vmi, &storage) else { panic!("the claim is missing") };
        assert_eq!(error.reason, "FailedPvcNotFound");
        assert!(error.message.ends_with("didn't find PVC dv"), "{}", error.message);
        observe(&storage.claims, 1, json!({}));
        observe(&storage.data_volumes, 2, json!({"phase": "ImportInProgress"}));
        assert_eq!(for_launcher(&vmi, &storage), Prepared::NotYet);
        observe(&storage.data_volumes, 3, json!({"phase": "Succeeded"}));
        assert_eq!(for_launcher(&vmi, &storage), Prepared::Yes);
    }

    #[test]
    fn a_vm_shows_what_its_data_volumes_are_at() {
        let storage = StorageCaches::new();
        let vm = json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"template": {"spec": {"volumes": [
            {"name": "d", "dataVolume": {"name": "dv"}}]}}}});
        let observe = |cache: &crate::sim::cache::Cache, version: u64, status: Value| {
            cache.observe(
                json!({"metadata": {"name": "dv", "namespace": "n", "resourceVersion": version.to_string()},
                "spec": {"storageClassName": "none"}, "status": status}),
            );
        };
        observe(&storage.claims, 1, json!({"phase": "Pending"}));
        observe(
            &storage.data_volumes,
            2,
            json!({"phase": "ImportInProgress",
            "conditions": [{"type": "Running", "status": "False", "reason": "Error"}]}),
        );
        let seen = Volumes::of(&vm, &storage);
        assert_eq!((seen.broken, seen.provisioning, seen.unbound), (true, true, true));
        assert_eq!(seen.snapshots[0]["enabled"], false);
        observe(&storage.claims, 3, json!({"phase": "Bound"}));
        observe(&storage.data_volumes, 4, json!({"phase": "Succeeded"}));
        let seen = Volumes::of(&vm, &storage);
        assert_eq!((seen.broken, seen.provisioning, seen.unbound), (false, false, false));
    }
}
