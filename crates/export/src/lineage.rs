//! What an export builds on: whether it may hold only what changed, and why not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a backup ended.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The `VirtualMachineBackupTracker` that remembers it.
    pub tracker: String,
    /// Its name there.
    pub name: String,
}

/// The place of an export in its chain.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lineage {
    /// The export that this one builds on: the name of its directory, beside this one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How many exports it builds on in all.
    #[serde(skip_serializing_if = "is_zero")]
    pub depth: u32,
    /// Where it ends; the next one may begin there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Why it holds everything although only changes were wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_because: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A whole export that another one could build on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Base {
    /// The name of its directory.
    pub id: String,
    /// Its own place.
    pub lineage: Lineage,
    /// File and size of each disk, by the volume's name.
    pub disks: BTreeMap<String, (String, u64)>,
}

impl Base {
    /// Reads the report of an export; `None`: it has no disk, or a file is not there as the report says.
    /// `length` answers how long a file is.
    pub fn read(id: &str, report: &[u8], length: &dyn Fn(&str) -> Option<u64>) -> Option<Self> {
        let report: Value = serde_json::from_slice(report).ok()?;
        let files = report["files"].as_array()?;
        let whole = |file: &str| {
            let stated = files.iter().find(|entry| entry["name"] == file)?["size"].as_u64()?;
            (length(file) == Some(stated)).then_some(())
        };
        let mut disks = BTreeMap::new();
        for disk in report["disks"].as_array()? {
            let file = disk["file"].as_str()?;
            whole(file)?;
            disks.insert(disk["name"].as_str()?.to_owned(), (file.to_owned(), disk["virtualSize"].as_u64()?));
        }
        let lineage = serde_json::from_value(report).ok()?;
        (!disks.is_empty()).then(|| Self { id: id.to_owned(), lineage, disks })
    }
}

/// The export to build on, among those beside this one; `Err`: why there is none.
///
/// `latest` is where the last backup with this tracker ended. If that is not where an export here ends,
/// nobody knows what changed since.
///
/// # Errors
/// Says why the export has to hold everything.
pub fn base<'a>(
    beside: &'a [Base],
    tracker: &str,
    latest: Option<&str>,
    volumes: &[String],
    full_every: u32,
) -> Result<&'a Base, String> {
    let tracked = |base: &&Base| base.lineage.checkpoint.as_ref().is_some_and(|one| one.tracker == tracker);
    let Some(newest) = beside.iter().filter(tracked).max_by(|a, b| a.id.cmp(&b.id)) else {
        return Err("there is no earlier whole export with change tracking beside it".into());
    };
    let ends_at =
        |base: &Base| base.lineage.checkpoint.as_ref().map(|one| one.name.clone()).unwrap_or_default();
    let Some(latest) = latest else {
        let why =
            "KubeVirt has no checkpoint any more: it was lost, or could not be taken over by a new guest";
        return Err(format!("{why} (the export `{}` ends at {})", newest.id, ends_at(newest)));
    };
    let Some(base) = beside.iter().filter(tracked).find(|base| ends_at(base) == latest) else {
        return Err(format!(
            "the last backup ended at {latest}, and the export `{}` at {}: one in between was not kept",
            newest.id,
            ends_at(newest)
        ));
    };
    if let Some(missing) = volumes.iter().find(|volume| !base.disks.contains_key(*volume)) {
        return Err(format!("the export `{}` does not hold the volume {missing}", base.id));
    }
    if base.lineage.depth + 1 >= full_every {
        return Err(format!("every {full_every}th export holds everything"));
    }
    Ok(base)
}

/// Whether a disk may build on one of the base: it has to have the same size.
///
/// # Errors
/// Says why not.
pub fn same_size(base: &Base, volume: &str, size: u64) -> Result<String, String> {
    match base.disks.get(volume) {
        Some((file, before)) if *before == size => Ok(file.clone()),
        Some((_, before)) => Err(format!("the volume {volume} has {size} bytes and had {before}")),
        None => Err(format!("the export `{}` does not hold the volume {volume}", base.id)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(id: &str, checkpoint: &str, depth: u32) -> Base {
        let checkpoint = Some(Checkpoint { tracker: "t".into(), name: checkpoint.into() });
        let disks = BTreeMap::from([("root".into(), ("web-root.qcow2".into(), 100))]);
        Base { id: id.into(), lineage: Lineage { depth, checkpoint, ..Lineage::default() }, disks }
    }

    #[test]
    fn an_export_builds_on_the_one_that_ends_at_the_trackers_checkpoint() {
        let beside = [one("1", "c1", 0), one("2", "c2", 1), Base { id: "3".into(), ..Base::default() }];
        let root = ["root".to_owned()];
        let found = |latest| base(&beside, "t", latest, &root, 7).map(|base| base.id.clone());
        assert_eq!(found(Some("c2")), Ok("2".into()));
        assert_eq!(found(Some("c1")), Ok("1".into()), "what came later is no matter");
        for (latest, tracker, volumes, every, why) in [
            (None, "t", &root[..], 7, "KubeVirt has no checkpoint"),
            (Some("c9"), "t", &root[..], 7, "not kept"),
            (Some("c2"), "another", &root[..], 7, "no earlier"),
            (Some("c2"), "t", &["data".to_owned()][..], 7, "does not hold the volume data"),
            (Some("c2"), "t", &root[..], 2, "every 2th"),
        ] {
            let wrong = base(&beside, tracker, latest, volumes, every).unwrap_err();
            assert!(wrong.contains(why), "{wrong}");
        }
        assert_eq!(same_size(&beside[0], "root", 100), Ok("web-root.qcow2".into()));
        assert!(same_size(&beside[0], "root", 200).is_err());
    }

    #[test]
    fn a_report_is_a_base_when_its_files_are_there_as_it_says() {
        let report = json!({"files": [{"name": "web-root.qcow2", "size": 7}],
            "disks": [{"name": "root", "file": "web-root.qcow2", "virtualSize": 100}],
            "checkpoint": {"tracker": "t", "name": "c1"}})
        .to_string();
        let read = |length| Base::read("1", report.as_bytes(), &|_| length);
        assert_eq!(read(Some(7)), Some(one("1", "c1", 0)));
        assert_eq!(read(Some(6)), None, "another length");
        assert_eq!(read(None), None, "it is gone");
        assert_eq!(Base::read("1", b"{", &|_| Some(7)), None);
        let text = serde_json::to_value(one("1", "c1", 0).lineage).unwrap();
        assert_eq!(text, json!({"checkpoint": {"tracker": "t", "name": "c1"}}));
    }
}
