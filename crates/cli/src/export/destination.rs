//! Where an export goes.

use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::Arc;

use ::export::beside;
use ::export::lineage::Base;
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
        let output = args.output.strip_prefix("file://").filter(|path| path.starts_with('/'));
        let output = output.unwrap_or(&args.output);
        let scheme = output.split_once("://").map(|(scheme, _)| scheme);
        let opened = match scheme {
            None if output == "-" => return Ok(Self::Pipe),
            None => {
                // A look makes nothing.
                if args.mkdir && !args.dry_run {
                    std::fs::create_dir_all(output).map_err(|error| {
                        Problem::new(format!("making the directory `{output}`"), error, "check the path")
                    })?;
                }
                return Ok(Self::Directory(output.into()));
            }
            Some("http" | "https") => Web::open(output, &env).map(|web| Self::Web(Arc::new(web))),
            Some(_) => Store::open(output, &env).map(|store| Self::Store(Arc::new(store))),
        };
        let remedy = "give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, https://HOST/PATH or \
                      file:///PATH, and keys in the environment";
        Ok(opened.map_err(|error| Problem::new("choosing the destination", error, remedy))?)
    }

    /// Whether an earlier run finished: its report, which comes last, is there.
    pub async fn is_whole(&self, args: &Args) -> Result<bool> {
        let given = args.vm_name().unwrap_or_default();
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

    /// Which of these are in a store, or on a server that tells.
    pub async fn existing(&self, files: &[String]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for file in files {
            let size = match self {
                Self::Pipe | Self::Directory(_) => None,
                Self::Store(store) => store.size(&store.key(file)).await?,
                Self::Web(web) => web.size(file).await?,
            };
            found.extend(size.map(|_| file.clone()));
        }
        Ok(found)
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

    /// What exports of a chain have in common: everything but the last part of their place.
    pub fn parent(&self) -> String {
        match self {
            Self::Directory(directory) => {
                let own = directory.canonicalize().unwrap_or_else(|_| directory.clone());
                own.parent().unwrap_or(&own).display().to_string()
            }
            Self::Store(store) => beside::parent_key(store).0,
            Self::Pipe | Self::Web(_) => String::new(),
        }
    }

    /// The whole exports of that name beside this one.
    pub async fn beside(&self, name: &str) -> Result<Vec<Base>> {
        let report = format!("{name}.export.json");
        match self {
            Self::Directory(directory) => beside::in_directory(directory, &report),
            Self::Store(store) => beside::in_store(store, &report).await,
            Self::Pipe | Self::Web(_) => {
                let wrong = "earlier exports cannot be listed there: an incremental export needs a directory or a store";
                Err(Error::Request(wrong.into()))
            }
        }
    }

    /// Removes older exports beside this one but the newest; answers their names.
    pub async fn prune(&self, name: &str, keep: u32) -> Result<Vec<String>> {
        let report = format!("{name}.export.json");
        match self {
            Self::Directory(directory) => beside::prune_directory(directory, &report, keep),
            Self::Store(store) => beside::prune_store(store, &report, keep).await,
            Self::Pipe | Self::Web(_) => {
                Err(Error::Request("older exports cannot be listed there: leave --keep-last out".into()))
            }
        }
    }
}
