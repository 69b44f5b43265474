//! Where an export goes.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::export::job::retention::{Kept, to_remove};
use ::export::run::{self, Job, Listener, Report, Settings};
use ::export::store::{Store, Web};
use ::export::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::Args;
use crate::problem::Problem;

/// A place for results.
pub enum Destination {
    Pipe,
    Directory(PathBuf),
    Store(Arc<Store>),
    Web(Arc<Web>),
}

impl Destination {
    /// The place that `--output` names.
    pub fn open(args: &Args) -> anyhow::Result<Self> {
        let env = |name: &str| std::env::var(name).ok();
        let output = args.output.as_str();
        let scheme = output.split_once("://").map(|(scheme, _)| scheme);
        let opened = match scheme {
            None if output == "-" => return Ok(Self::Pipe),
            None => {
                if args.mkdir {
                    std::fs::create_dir_all(output).map_err(|error| {
                        Problem::new(format!("making the directory `{output}`"), error, "check the path")
                    })?;
                }
                return Ok(Self::Directory(output.into()));
            }
            Some("http" | "https") => Web::open(output, &env).map(|web| Self::Web(Arc::new(web))),
            Some(_) => Store::open(output, &env).map(|store| Self::Store(Arc::new(store))),
        };
        let remedy = "give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or https://HOST/PATH, \
                      and keys in the environment";
        Ok(opened.map_err(|error| Problem::new("choosing the destination", error, remedy))?)
    }

    /// Whether an earlier run finished: its report, which comes last, is there.
    pub async fn is_whole(&self, args: &Args) -> Result<bool> {
        let given = args.vm.as_deref().or(args.vm_flag.as_deref()).unwrap_or_default();
        let vm = given.rsplit('/').next().unwrap_or_default();
        let Some(name) = args.name.as_deref().or((!vm.is_empty()).then_some(vm)) else { return Ok(false) };
        let report = format!("{name}.export.json");
        match self {
            Self::Pipe => Ok(false),
            Self::Directory(directory) => Ok(directory.join(report).exists()),
            Self::Store(store) => Ok(store.size(&store.key(&report)).await?.is_some()),
            Self::Web(web) => Ok(web.size(&report).await?.is_some()),
        }
    }

    /// Exports.
    pub async fn write(
        &self,
        job: &Job,
        settings: &Settings,
        listener: Listener,
        stop: CancellationToken,
    ) -> Result<Report> {
        match self {
            Self::Pipe => {
                let sink = BufWriter::with_capacity(256 << 10, std::io::stdout());
                run::to_pipe(job, sink, settings, listener, stop).await
            }
            Self::Directory(directory) => run::to_directory(job, directory, settings, listener, stop).await,
            Self::Store(store) => run::to_store(job, store.clone(), settings, listener, stop).await,
            Self::Web(web) => run::to_web(job, web, settings, listener, stop).await,
        }
    }

    /// Removes older exports beside this one but the newest; answers their names.
    pub async fn prune(&self, name: &str, keep: u32) -> Result<Vec<String>> {
        let report = format!("{name}.export.json");
        match self {
            Self::Directory(directory) => prune_directories(directory, &report, keep),
            Self::Store(store) => prune_prefixes(store, &report, keep).await,
            Self::Pipe | Self::Web(_) => {
                Err(Error::Request("older exports cannot be listed there: leave --keep-last out".into()))
            }
        }
    }
}

/// Directories beside this one that hold a whole export of the same name.
fn prune_directories(directory: &Path, report: &str, keep: u32) -> Result<Vec<String>> {
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::File { doing, path: path.clone(), source }
    };
    let own = directory.canonicalize().map_err(failed("reading", directory))?;
    let Some(parent) = own.parent() else { return Ok(Vec::new()) };
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(failed("reading", parent))? {
        let path = entry.map_err(failed("reading", parent))?.path();
        let Ok(text) = std::fs::read(path.join(report)) else { continue };
        runs.extend(path.file_name().and_then(|id| id.to_str()).map(|id| kept(id, &text)));
    }
    let gone = to_remove(&runs, keep as usize);
    for id in &gone {
        let path = parent.join(id);
        // The report first: what is left when this breaks off is no whole export.
        std::fs::remove_file(path.join(report)).map_err(failed("removing", &path))?;
        std::fs::remove_dir_all(&path).map_err(failed("removing", &path))?;
    }
    Ok(gone)
}

/// Prefixes beside this one that hold a whole export of the same name.
async fn prune_prefixes(store: &Store, report: &str, keep: u32) -> Result<Vec<String>> {
    let own = store.key("");
    let own = own.trim_end_matches('/');
    let parent = own.rsplit_once('/').map_or("", |(parent, _)| parent);
    let parent = if parent.is_empty() { String::new() } else { format!("{parent}/") };
    let keys = store.list(&parent).await?;
    let mut runs = Vec::new();
    for key in &keys {
        let id = key.strip_prefix(&parent).and_then(|rest| rest.strip_suffix(report)?.strip_suffix('/'));
        if let Some(id) = id.filter(|id| !id.contains('/') && !id.is_empty()) {
            runs.push(Kept { id: id.to_owned(), base: None });
        }
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
    let report: serde_json::Value = serde_json::from_slice(report).unwrap_or_default();
    Kept { id: id.to_owned(), base: report["base"].as_str().map(str::to_owned) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_whole_exports_beside_this_one_are_removed() {
        let home = tempfile::tempdir().unwrap();
        for id in ["20260101", "20260102", "20260103", "notes"] {
            std::fs::create_dir(home.path().join(id)).unwrap();
            std::fs::write(home.path().join(id).join("disk.qcow2"), "x").unwrap();
            if id != "notes" {
                std::fs::write(home.path().join(id).join("web.export.json"), "{}").unwrap();
            }
        }
        let destination = Destination::Directory(home.path().join("20260103"));
        let Destination::Directory(directory) = &destination else { return };
        let gone = prune_directories(directory, "web.export.json", 2).unwrap();
        assert_eq!(gone, ["20260101"]);
        assert!(home.path().join("notes/disk.qcow2").exists());
        assert!(!home.path().join("20260101").exists());
    }
}
