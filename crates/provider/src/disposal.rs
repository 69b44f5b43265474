//! What happens to the disks of a VM that is deleted.
//!
//! ```text
//!                      with-vm (default)    keep                      all
//!  data volume of
//!  the VM's templates  goes with the VM     stays, VM must be off     goes with the VM
//!  other claim, DV     stays                stays                     deleted after the VM
//!  used by another VM  stays                stays                     stays
//!  in the pod only     goes with the VM     goes with the VM          goes with the VM
//! ```
//!
//! Data volumes of `dataVolumeTemplates` are owned by the VM, so garbage collection takes them
//! (`pkg/storage/types/dv.go`, v1.9). They are kept by orphaning what the VM owns, which would leave a
//! running instance behind: hence the VM must be off.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::view::detail::source;
use crate::view::{list, text};

/// What the person wants for the disks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disks {
    /// What belongs to the VM goes with it, the rest stays.
    #[default]
    WithVm,
    /// Everything stays.
    Keep,
    /// Everything goes that no other VM uses.
    All,
}

/// What happens to one disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Deleted, with its data.
    Deleted,
    /// Stays, with its data.
    Kept,
    /// Has no data that outlives the VM's pod, or is no disk of its own.
    NoData,
}

/// A disk and what happens to it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disposal {
    /// The volume's name in the VM.
    pub volume: String,
    /// `dataVolume` or `persistentVolumeClaim`, or what else it is.
    pub source: String,
    /// The data volume or claim.
    pub reference: String,
    /// What happens to it.
    pub fate: Fate,
    /// Why.
    pub why: String,
    /// It goes only when it is deleted by name; otherwise garbage collection takes it.
    pub by_name: bool,
}

/// What is deleted, and under which identity, so that nothing else is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The VM's UID.
    pub uid: String,
    /// The VM's resource version that the plan was made for.
    pub resource_version: String,
    /// What the VM owns is left alone.
    pub orphan: bool,
    /// Its disks.
    pub disks: Vec<Disposal>,
}

/// Why a plan cannot be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Keeping disks of templates orphans the instance.
    #[error("its disks can be kept only while it is off")]
    MustBeOff,
}

/// Decides about each disk; `others` are the other VMs of the namespace.
pub fn plan(vm: &Value, vmi: Option<&Value>, others: &[Value], wish: Disks) -> Result<Plan, Refusal> {
    let owned: Vec<&str> =
        list(vm, "/spec/dataVolumeTemplates").iter().map(|one| text(one, "/metadata/name")).collect();
    let disks: Vec<Disposal> = list(vm, "/spec/template/spec/volumes")
        .iter()
        .map(|volume| {
            let (kind, reference) = source(volume);
            let (fate, why, by_name) = fate(&kind, &reference, &owned, others, wish);
            Disposal { volume: text(volume, "/name").into(), source: kind, reference, fate, why, by_name }
        })
        .collect();
    let orphan = wish == Disks::Keep && !owned.is_empty();
    if orphan && vmi.is_some() {
        return Err(Refusal::MustBeOff);
    }
    Ok(Plan {
        uid: text(vm, "/metadata/uid").into(),
        resource_version: text(vm, "/metadata/resourceVersion").into(),
        orphan,
        disks,
    })
}

fn fate(kind: &str, reference: &str, owned: &[&str], others: &[Value], wish: Disks) -> (Fate, String, bool) {
    if !matches!(kind, "dataVolume" | "persistentVolumeClaim") {
        return (Fate::NoData, "has no data of its own".into(), false);
    }
    // a claim has the name of its data volume, so either may name the other
    let user = others.iter().find(|other| {
        list(other, "/spec/template/spec/volumes").iter().any(|volume| {
            let (kind, name) = source(volume);
            matches!(kind.as_str(), "dataVolume" | "persistentVolumeClaim") && name == reference
        })
    });
    let is_owned = owned.contains(&reference);
    match (wish, is_owned, user) {
        (Disks::Keep, ..) => (Fate::Kept, "as asked".into(), false),
        (_, true, Some(user)) => {
            let why =
                format!("belongs to the VM, although VM `{}` uses it too", text(user, "/metadata/name"));
            (Fate::Deleted, why, false)
        }
        (_, true, None) => (Fate::Deleted, "belongs to the VM".into(), false),
        (_, false, Some(user)) => {
            (Fate::Kept, format!("VM `{}` uses it too", text(user, "/metadata/name")), false)
        }
        (Disks::All, false, None) => (Fate::Deleted, "as asked".into(), true),
        (Disks::WithVm, false, None) => (Fate::Kept, "does not belong to the VM".into(), false),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_disk_has_a_fate() {
        let vm = json!({"metadata": {"name": "web", "uid": "u", "resourceVersion": "7"}, "spec": {
            "dataVolumeTemplates": [{"metadata": {"name": "root"}}],
            "template": {"spec": {"volumes": [
                {"name": "a", "dataVolume": {"name": "root"}},
                {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "shared"}},
                {"name": "d", "containerDisk": {"image": "x"}}]}}}});
        let others = [json!({"metadata": {"name": "db"}, "spec": {"template": {"spec": {"volumes": [
            {"name": "z", "dataVolume": {"name": "shared"}}]}}}})];
        let fates = |wish: Disks| -> Vec<(Fate, bool)> {
            let plan = plan(&vm, None, &others, wish).unwrap();
            plan.disks.iter().map(|disk| (disk.fate, disk.by_name)).collect()
        };
        let (gone, kept, none) = ((Fate::Deleted, false), (Fate::Kept, false), (Fate::NoData, false));
        assert_eq!(fates(Disks::WithVm), [gone, kept, kept, none]);
        assert_eq!(fates(Disks::Keep), [kept, kept, kept, none]);
        assert_eq!(fates(Disks::All), [gone, (Fate::Deleted, true), kept, none]);
        assert!(plan(&vm, None, &others, Disks::Keep).unwrap().orphan);
        assert!(!plan(&vm, None, &others, Disks::All).unwrap().orphan);
        // orphaning would leave the instance running
        assert_eq!(plan(&vm, Some(&json!({})), &others, Disks::Keep), Err(Refusal::MustBeOff));
    }
}
