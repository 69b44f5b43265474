//! Snapshots and restores: what is created, and what their status says (`snapshot/v1beta1/types.go`, v1.9).

use serde::Serialize;
use serde_json::{Value, json};

use crate::view::condition;
use crate::view::{list, text};
use crate::wait::Progress;
use crate::{Error, Kind, VmId};

/// A snapshot in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The VM.
    pub vm: String,
    /// `InProgress`, `Succeeded`, `Failed`, `Deleting`, or `Pending` before the controller has seen it.
    pub phase: String,
    /// Whether it can be restored from.
    pub ready: bool,
    /// Volumes in it.
    pub included: Vec<String>,
    /// Volumes that are not: a restore does not bring them back.
    pub excluded: Vec<String>,
    /// How it was taken: `Online`, `GuestAgent`, `NoGuestAgent`, `QuiesceTimeout`, `Paused`.
    pub indications: Vec<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created: String,
}

impl Snapshot {
    /// Reads a `VirtualMachineSnapshot`.
    pub fn of(snapshot: &Value) -> Self {
        let words = |pointer: &str| -> Vec<String> {
            list(snapshot, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let phase = text(snapshot, "/status/phase");
        let indications = list(snapshot, "/status/sourceIndications").iter();
        Self {
            namespace: text(snapshot, "/metadata/namespace").into(),
            name: text(snapshot, "/metadata/name").into(),
            vm: text(snapshot, "/spec/source/name").into(),
            phase: if phase.is_empty() { "Pending" } else { phase }.into(),
            ready: snapshot.pointer("/status/readyToUse") == Some(&Value::Bool(true)),
            included: words("/status/snapshotVolumes/includedVolumes"),
            excluded: words("/status/snapshotVolumes/excludedVolumes"),
            indications: indications.map(|one| text(one, "/indication").to_owned()).collect(),
            error: Some(text(snapshot, "/status/error/message"))
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            created: text(snapshot, "/metadata/creationTimestamp").into(),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match (self.phase.as_str(), self.ready) {
            ("Succeeded", true) => Progress::Done,
            ("Failed", _) => {
                Progress::Failed(self.error.clone().unwrap_or("it failed without a reason".into()))
            }
            (phase, _) => Progress::Waiting(match &self.error {
                Some(error) => format!("{phase}: {error}"),
                None => phase.into(),
            }),
        }
    }
}

/// The snapshot to create; without a name the API server makes one from the VM's.
pub fn snapshot(vm: &VmId, name: Option<&str>) -> Value {
    named(
        json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
            "metadata": {"namespace": vm.namespace()},
            "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": vm.name()}}}),
        name,
        vm.name(),
    )
}

/// Whether KubeVirt says that at least one volume with data of its own can be snapshotted, if there is one; a
/// snapshot without any would succeed and bring nothing back (`status.volumeSnapshotStatuses`, v1.9).
pub fn possible(vm: &Value, doing: &str) -> Result<(), Error> {
    let has_data = |name: &str| {
        list(vm, "/spec/template/spec/volumes").iter().any(|volume| {
            text(volume, "/name") == name
                && (volume.get("dataVolume").is_some() || volume.get("persistentVolumeClaim").is_some())
        })
    };
    let volumes: Vec<&Value> = list(vm, "/status/volumeSnapshotStatuses")
        .iter()
        .filter(|one| has_data(text(one, "/name")))
        .collect();
    let can = |one: &Value| one.pointer("/enabled") == Some(&Value::Bool(true));
    if volumes.is_empty() || volumes.iter().any(|one| can(one)) {
        return Ok(());
    }
    let why: Vec<String> =
        volumes.iter().map(|one| format!("{}: {}", text(one, "/name"), text(one, "/reason"))).collect();
    let wrong = format!("none of its volumes can be snapshotted ({})", why.join("; "));
    let remedy = "move a disk to a storage class that has a VolumeSnapshotClass: `virt-steward capabilities`";
    Err(Error::new(Kind::MissingCapability, doing, wrong, remedy))
}

/// The restore to create: of a snapshot, onto a VM. KubeVirt makes the VM when it is not there; it must
/// be off when it is, unless it may be stopped.
pub fn restore(target: &VmId, snapshot: &str, stop: bool) -> Value {
    let policy = if stop { "StopTarget" } else { "FailImmediate" };
    named(
        json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineRestore",
            "metadata": {"namespace": target.namespace()},
            "spec": {"target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target.name()},
                "virtualMachineSnapshotName": snapshot, "targetReadinessPolicy": policy}}),
        None,
        target.name(),
    )
}

/// How far a restore is.
pub fn restore_progress(restore: &Value) -> Progress {
    if restore.pointer("/status/complete") == Some(&Value::Bool(true)) {
        return Progress::Done;
    }
    if let Some(why) = condition::message(restore, "Failure") {
        return Progress::Failed(why.into());
    }
    let conditions = list(restore, "/status/conditions");
    let last = conditions.iter().rev().map(|one| text(one, "/reason")).find(|reason| !reason.is_empty());
    Progress::Waiting(last.unwrap_or("not seen by KubeVirt yet").into())
}

/// Gives an object a name, or has the API server make one.
pub(crate) fn named(mut object: Value, name: Option<&str>, stem: &str) -> Value {
    if let Some(name) = name {
        object["metadata"]["name"] = name.into();
    } else {
        // five characters are added, and a name has at most 253 (RFC 1123)
        let stem: String = stem.chars().take(240).collect();
        object["metadata"]["generateName"] = format!("{stem}-").into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_those_of_the_api() {
        let vm = VmId::new("prod", "web").unwrap();
        let made = snapshot(&vm, Some("before"));
        assert_eq!(made["metadata"], json!({"namespace": "prod", "name": "before"}));
        assert_eq!(snapshot(&vm, None)["metadata"]["generateName"], "web-");
        assert_eq!(restore(&vm, "before", false)["spec"]["targetReadinessPolicy"], "FailImmediate");
        assert_eq!(restore(&vm, "before", true)["spec"]["virtualMachineSnapshotName"], "before");
    }

    #[test]
    fn a_snapshot_without_any_data_is_refused_where_there_is_data() {
        let vm = |enabled: bool| {
            json!({"spec": {"template": {"spec": {"volumes": [{"name": "image", "containerDisk": {}},
                    {"name": "root", "dataVolume": {"name": "r"}}, {"name": "data", "persistentVolumeClaim": {}}]}}},
                "status": {"volumeSnapshotStatuses": [{"name": "image", "enabled": false, "reason": "x"},
                    {"name": "root", "enabled": false, "reason": "no class"}, {"name": "data", "enabled": enabled}]}})
        };
        assert_eq!(possible(&vm(true), "x"), Ok(()));
        let error = possible(&vm(false), "x").unwrap_err();
        assert!(error.wrong.contains("root: no class") && !error.wrong.contains("image"), "{error}");
        let diskless = json!({"spec": {"template": {"spec": {"volumes": [{"name": "image", "containerDisk": {}}]}}},
            "status": {"volumeSnapshotStatuses": [{"name": "image", "enabled": false}]}});
        assert_eq!(possible(&diskless, "x"), Ok(()), "there is nothing to lose");
    }

    #[test]
    fn progress_is_read_from_the_status() {
        let of = |status: Value| Snapshot::of(&json!({"status": status})).progress();
        assert_eq!(of(json!({"phase": "Succeeded", "readyToUse": true})), Progress::Done);
        assert_eq!(of(json!({"phase": "Succeeded"})), Progress::Waiting("Succeeded".into()));
        assert_eq!(of(json!({"phase": "Failed", "error": {"message": "m"}})), Progress::Failed("m".into()));
        assert_eq!(of(Value::Null), Progress::Waiting("Pending".into()));
        assert_eq!(restore_progress(&json!({"status": {"complete": true}})), Progress::Done);
        let failed =
            json!({"status": {"conditions": [{"type": "Failure", "status": "True", "message": "gone"}]}});
        assert_eq!(restore_progress(&failed), Progress::Failed("gone".into()));
    }
}
