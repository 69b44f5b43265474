//! Volumes of a VM, joined with the claims behind them.

use serde::Serialize;
use serde_json::Value;

use super::detail::Disk;
use super::json::{list, some, text};
use super::summary::bytes;

/// A volume of a VM.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The disk.
    #[serde(flatten)]
    pub disk: Disk,
    /// Its claim, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

/// A `PersistentVolumeClaim`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// `Bound`, `Pending` or `Lost`; `Missing` when there is none.
    pub phase: String,
    /// What it has, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// What it asks for, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_bytes: Option<u64>,
    /// Its storage class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// As in `ReadWriteMany`.
    pub access_modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub mode: String,
}

impl Claim {
    /// Reads a claim.
    pub fn of(claim: &Value) -> Self {
        let modes = list(claim, "/spec/accessModes").iter().filter_map(Value::as_str);
        Self {
            name: text(claim, "/metadata/name").into(),
            phase: some(claim, "/status/phase").unwrap_or("Pending".into()),
            capacity_bytes: bytes(text(claim, "/status/capacity/storage")),
            requested_bytes: bytes(text(claim, "/spec/resources/requests/storage")),
            storage_class: some(claim, "/spec/storageClassName"),
            access_modes: modes.map(str::to_owned).collect(),
            mode: some(claim, "/spec/volumeMode").unwrap_or("Filesystem".into()),
        }
    }

    /// One that is not there.
    pub fn missing(name: &str) -> Self {
        Self {
            name: name.into(),
            phase: "Missing".into(),
            capacity_bytes: None,
            requested_bytes: None,
            storage_class: None,
            access_modes: Vec::new(),
            mode: String::new(),
        }
    }
}

/// The claim behind a volume; that of a data volume has its name (CDI).
pub fn claim_name(disk: &Disk) -> Option<&str> {
    let backed = matches!(disk.source.as_str(), "persistentVolumeClaim" | "dataVolume" | "ephemeral");
    backed.then_some(disk.reference.as_str()).filter(|name| !name.is_empty())
}

/// Joins disks with claims of the namespace.
pub fn join(disks: Vec<Disk>, claims: &[Value]) -> Vec<Volume> {
    disks
        .into_iter()
        .map(|disk| {
            let claim = claim_name(&disk).map(|name| {
                let found = claims.iter().find(|claim| text(claim, "/metadata/name") == name);
                found.map_or_else(|| Claim::missing(name), Claim::of)
            });
            Volume { disk, claim }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::VmDetail;
    use super::*;

    #[test]
    fn volumes_show_the_claims_behind_them() {
        let vm = json!({"spec": {"template": {"spec": {"volumes": [
            {"name": "root", "dataVolume": {"name": "web-root"}}, {"name": "data", "persistentVolumeClaim": {"claimName": "gone"}},
            {"name": "image", "containerDisk": {"image": "x"}}]}}}});
        let claims = [json!({"metadata": {"name": "web-root"}, "spec": {"accessModes": ["ReadWriteMany"],
            "storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}})];
        let found = join(VmDetail::of(&vm, None, &[], &[]).disks, &claims);
        let root = found[0].claim.as_ref().unwrap();
        assert_eq!((root.capacity_bytes, root.requested_bytes), (Some(1 << 30), Some(2 << 30)));
        assert_eq!((root.mode.as_str(), root.storage_class.as_deref()), ("Filesystem", Some("fast")));
        assert_eq!(found[1].claim.as_ref().unwrap().phase, "Missing");
        assert_eq!(found[2].claim, None);
    }
}
