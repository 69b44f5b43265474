//! The exports beside this one: each in a directory, or below a prefix, of its own with a common parent.
//!
//! ```text
//!  PARENT/20260101-020000/web.export.json      its report makes an export whole
//!  PARENT/20260102-020000/…                    ◄─ this one may build on it, and retention removes the oldest
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use crate::job::retention::{Kept, to_remove};
use crate::lineage::{Base, Lineage};
use crate::store::Store;
use crate::{Error, Result};

/// The whole exports beside a directory, of which `report` is the report's name.
///
/// # Errors
/// When the parent cannot be read.
pub fn in_directory(directory: &Path, report: &str) -> Result<Vec<Base>> {
    let own = directory.canonicalize().map_err(Error::file("reading", directory))?;
    let mut found = Vec::new();
    for (id, path, text) in reports(&own, report)?.into_iter().filter(|(_, path, _)| *path != own) {
        let length = |file: &str| Some(std::fs::metadata(path.join(file)).ok()?.len());
        found.extend(Base::read(&id, &text, &length));
    }
    Ok(found)
}

/// Name, place and report of each whole export with the parent of a directory.
fn reports(own: &Path, report: &str) -> Result<Vec<(String, std::path::PathBuf, Vec<u8>)>> {
    let Some(parent) = own.parent() else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(Error::file("reading", parent))? {
        let path = entry.map_err(Error::file("reading", parent))?.path();
        let Ok(text) = std::fs::read(path.join(report)) else { continue };
        if let Some(id) = path.file_name().and_then(|id| id.to_str()).map(str::to_owned) {
            out.push((id, path, text));
        }
    }
    Ok(out)
}

/// Removes the exports beside a directory but the newest `keep`, that one included, and what these build on;
/// answers their names.
///
/// # Errors
/// What cannot be read or removed.
pub fn prune_directory(directory: &Path, report: &str, keep: u32) -> Result<Vec<String>> {
    let own = directory.canonicalize().map_err(Error::file("reading", directory))?;
    let all = reports(&own, report)?;
    let runs: Vec<Kept> = all.iter().map(|(id, _, text)| kept(id, text)).collect();
    let gone = to_remove(&runs, keep as usize);
    for (_, path, _) in all.iter().filter(|(id, _, _)| gone.contains(id)) {
        // The report first: what is left when this breaks off is no whole export.
        std::fs::remove_file(path.join(report)).map_err(Error::file("removing", path))?;
        std::fs::remove_dir_all(path).map_err(Error::file("removing", path))?;
    }
    Ok(gone)
}

/// The prefix that the exports beside a store's have in common, and its own part.
pub fn parent_key(store: &Store) -> (String, String) {
    let own = store.key("");
    let own = own.trim_end_matches('/');
    match own.rsplit_once('/') {
        Some((parent, id)) => (format!("{parent}/"), id.to_owned()),
        None => (String::new(), own.to_owned()),
    }
}

/// The ids of whole exports among keys below a prefix.
fn ids<'a>(keys: &'a [String], parent: &str, report: &str) -> Vec<&'a str> {
    let id = |key: &'a String| {
        let id = key.strip_prefix(parent)?.strip_suffix(report)?.strip_suffix('/')?;
        (!id.is_empty() && !id.contains('/')).then_some(id)
    };
    keys.iter().filter_map(id).collect()
}

async fn report_of(store: &Store, key: &str) -> Result<Vec<u8>> {
    match store.size(key).await? {
        None | Some(0) => Ok(Vec::new()),
        Some(length) => Ok(store.read(key, 0, length).await?.to_vec()),
    }
}

/// The whole exports beside one in a store.
///
/// # Errors
/// What the store refuses.
pub async fn in_store(store: &Store, report: &str) -> Result<Vec<Base>> {
    let (parent, own) = parent_key(store);
    let keys = store.list(&parent).await?;
    let mut found = Vec::new();
    for id in ids(&keys, &parent, report).into_iter().filter(|id| *id != own) {
        let prefix = format!("{parent}{id}/");
        let text = report_of(store, &format!("{prefix}{report}")).await?;
        let mut lengths = BTreeMap::new();
        for key in &keys {
            let Some(name) = key.strip_prefix(&prefix).filter(|name| *name != report) else { continue };
            lengths.extend(store.size(key).await?.map(|length| (name, length)));
        }
        found.extend(Base::read(id, &text, &|file| lengths.get(file).copied()));
    }
    Ok(found)
}

/// [`prune_directory`] for prefixes of a store.
///
/// # Errors
/// What the store refuses.
pub async fn prune_store(store: &Store, report: &str, keep: u32) -> Result<Vec<String>> {
    let (parent, _) = parent_key(store);
    let keys = store.list(&parent).await?;
    let mut runs = Vec::new();
    for id in ids(&keys, &parent, report) {
        runs.push(kept(id, &report_of(store, &format!("{parent}{id}/{report}")).await?));
    }
    let gone = to_remove(&runs, keep as usize);
    for id in &gone {
        let prefix = format!("{parent}{id}/");
        let last = format!("{prefix}{report}");
        store.delete(&last).await?;
        for key in keys.iter().filter(|key| key.starts_with(&prefix) && **key != last) {
            store.delete(key).await?;
        }
    }
    Ok(gone)
}

/// A run as its report tells.
fn kept(id: &str, report: &[u8]) -> Kept {
    let lineage: Lineage = serde_json::from_slice(report).unwrap_or_default();
    Kept { id: id.to_owned(), base: lineage.base }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_whole_exports_beside_this_one_are_removed() {
        let home = tempfile::tempdir().unwrap();
        for (id, report) in [
            ("20260101", "{}"),
            ("20260102", "{}"),
            ("20260103", "{\"base\": \"20260102\"}"),
            ("20260104", "{}"),
            ("notes", ""),
        ] {
            std::fs::create_dir(home.path().join(id)).unwrap();
            std::fs::write(home.path().join(id).join("disk.qcow2"), "x").unwrap();
            if id != "notes" {
                std::fs::write(home.path().join(id).join("web.export.json"), report).unwrap();
            }
        }
        let own = home.path().join("20260104");
        assert_eq!(prune_directory(&own, "web.export.json", 2).unwrap(), ["20260101"]);
        assert!(home.path().join("notes/disk.qcow2").exists());
        assert!(home.path().join("20260102/disk.qcow2").exists(), "the third builds on it");
        assert!(!home.path().join("20260101").exists());
        let mut gone = prune_directory(&own, "web.export.json", 1).unwrap();
        gone.sort();
        assert_eq!(gone, ["20260102", "20260103"]);
    }
}
