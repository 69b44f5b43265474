//! What verbs about one kind of object share: a list, one of them, a change, the end of one.

use std::time::Duration;

use anyhow::Result;
use provider::{Provider, VmId};
use serde::Serialize;
use serde_json::json;

use crate::connection::Scope;
use crate::output::print;
use crate::presented::{Document, Format, document};
use crate::vm::Patience;

/// What a list takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Listing {
    #[command(flatten)]
    pub scope: Scope,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

impl Listing {
    /// Connects; of which namespace things are listed, or none for all.
    pub async fn place(&self) -> Result<(Provider, Option<String>)> {
        let (provider, namespace) = self.scope.connect().await?;
        Ok((provider, (!self.all_namespaces).then_some(namespace)))
    }

    /// Whether more columns are wanted.
    pub fn is_wide(&self) -> bool {
        self.output == Some(Format::Wide)
    }

    /// Shows what was found; `what` names it where nothing was, and `name` is an object as kubectl names it.
    pub fn show<T: Serialize>(
        &self,
        what: &str,
        found: &[T],
        name: impl Fn(&T) -> String,
        table: impl FnOnce(&[T]) -> String,
    ) -> Result<()> {
        match self.output {
            Some(Format::Json) => document(Document::Json, &json!({"items": found})),
            Some(Format::Yaml) => document(Document::Yaml, &json!({"items": found})),
            Some(Format::Name) => print(&found.iter().map(|one| name(one) + "\n").collect::<String>()),
            Some(Format::Wide) | None if found.is_empty() => {
                eprintln!("No {what} found.");
                Ok(())
            }
            Some(Format::Wide) | None => print(&table(found)),
        }
    }
}

/// What it takes to show one thing.
#[derive(Clone, Debug, clap::Args)]
pub struct Showing {
    #[command(flatten)]
    pub scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Document>,
}

impl Showing {
    /// Shows it.
    pub fn show<T: Serialize>(&self, found: &T, page: impl FnOnce(&T) -> String) -> Result<()> {
        match self.output {
            Some(format) => document(format, found),
            None => print(&page(found)),
        }
    }
}

/// What a change takes that may last.
#[derive(Debug, clap::Args)]
pub struct How {
    #[command(flatten)]
    pub scope: Scope,
    #[command(flatten)]
    pub patience: Patience,
    /// Only let the API server check it
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Document>,
}

impl How {
    /// How long its end is waited for, if at all.
    pub fn waits(&self) -> Option<Duration> {
        (self.patience.wait && !self.dry_run).then_some(self.patience.timeout)
    }

    /// Says what was done, as in `virtualmachine.kubevirt.io/web cloned`.
    pub fn tell(&self, done: &str, answer: &impl Serialize) -> Result<()> {
        if let Some(format) = self.output {
            return document(format, answer);
        }
        let accepted = if self.patience.wait || self.dry_run { "" } else { " (accepted)" };
        print(&format!("{done}{accepted}{}\n", dry(self.dry_run)))
    }
}

/// What a change takes that is done at once.
#[derive(Clone, Debug, clap::Args)]
pub struct AtOnce {
    #[command(flatten)]
    pub scope: Scope,
    /// Only let the API server check it
    #[arg(long)]
    pub dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Document>,
}

impl AtOnce {
    /// Says that a thing of this resource is deleted.
    pub fn deleted(&self, resource: &str, id: &VmId) -> Result<()> {
        let answer = json!({"namespace": id.namespace(), "name": id.name(), "dryRun": self.dry_run});
        self.tell(&format!("{resource}/{} deleted", id.name()), &answer)
    }

    /// Says what was done.
    pub fn tell(&self, done: &str, answer: &impl Serialize) -> Result<()> {
        match self.output {
            Some(format) => document(format, answer),
            None => print(&format!("{done}{}\n", dry(self.dry_run))),
        }
    }
}

/// What stands behind an answer that nothing was done for.
pub const fn dry(dry_run: bool) -> &'static str {
    if dry_run { " (server dry run)" } else { "" }
}
