//! One operation on some VMs: which, whether they are meant, how many at once, and what came of it.

use std::future::Future;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use futures::stream::{self, StreamExt as _};
use provider::select::Selection;
use provider::{Error, Provider, VmId};
use serde_json::{Value, json};

use crate::cli::FAILED;
use crate::connection::{Scope, VM, duration, object, problem};
use crate::output::print;
use crate::presented::{Document, document};
use crate::problem::Problem;

/// Which VMs, and how to go about it.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct Bulk {
    /// VMs, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms(), required_unless_present_any = ["selector", "all"], conflicts_with_all = ["selector", "all"])]
    pub names: Vec<String>,

    /// All VMs with these labels, as in `app=web`
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,

    /// All VMs of the namespace
    #[arg(long)]
    pub all: bool,

    /// With a selector or `--all`: in every namespace
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    pub all_namespaces: bool,

    #[command(flatten)]
    pub scope: Scope,

    /// Only say whether it would be done
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(short = 'y', long)]
    pub yes: bool,

    /// How many VMs at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Document>,
}

/// Whether to wait, and for how long.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Patience {
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,

    /// How long to wait, as in `90s` or `5m`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// What is shown while something is being done, on standard error.
pub struct Progress {
    prefix: String,
    last: String,
}

impl Progress {
    /// For a thing of this name.
    pub fn of(what: impl std::fmt::Display) -> Self {
        Self { prefix: what.to_string(), last: String::new() }
    }

    /// Says where it stands, unless that was said already.
    pub fn note(&mut self, standing: &str) {
        if self.last != standing {
            standing.clone_into(&mut self.last);
            eprintln!("{}: {standing}", self.prefix);
        }
    }
}

impl Bulk {
    /// Connects, and finds out which VMs are meant.
    pub async fn targets(&self) -> Result<(Provider, Vec<VmId>)> {
        let (provider, namespace) = self.scope.connect().await?;
        if !self.names.is_empty() {
            let mut vms = Vec::new();
            for name in &self.names {
                let vm = object(VM, name, &namespace)?;
                if !vms.contains(&vm) {
                    vms.push(vm);
                }
            }
            return Ok((provider, vms));
        }
        let selection = Selection {
            namespace: (!self.all_namespaces).then_some(namespace),
            label_selector: self.selector.clone(),
            ..Selection::default()
        };
        let found = provider.list_all(selection).await.map_err(problem)?;
        let vms: Result<Vec<VmId>, Error> =
            found.iter().map(|vm| VmId::new(&vm.namespace, &vm.name)).collect();
        Ok((provider, vms.map_err(problem)?))
    }

    /// Whether the VMs that a selector found are meant; those that were named are.
    pub fn confirm(&self, verb: &str, vms: &[VmId]) -> Result<bool> {
        if self.yes || self.dry_run || !self.names.is_empty() || vms.is_empty() {
            return Ok(true);
        }
        let names: Vec<String> = vms.iter().take(10).map(ToString::to_string).collect();
        let more = if vms.len() > 10 { ", …" } else { "" };
        ask(&format!("{verb} {} ({}{more})?", many(vms.len()), names.join(", ")))
    }

    /// Does one thing to each VM, some at a time, and says what came of it. `operation` names it in the
    /// answer, as in `started`.
    pub async fn each<F: Future<Output = Result<(), Error>>>(
        &self,
        operation: &str,
        vms: &[VmId],
        act: impl Fn(VmId) -> F,
    ) -> Result<ExitCode> {
        if vms.is_empty() {
            eprintln!("No VMs found.");
        }
        let dry = if self.dry_run { " (server dry run)" } else { "" };
        let outcomes = stream::iter(vms.iter().cloned())
            .map(|vm| {
                let outcome = act(vm.clone());
                async move { (vm, outcome.await) }
            })
            .buffer_unordered(usize::from(self.concurrency));
        futures::pin_mut!(outcomes);
        let (mut answers, mut failed): (Vec<(VmId, Value)>, usize) = (Vec::new(), 0);
        while let Some((vm, outcome)) = outcomes.next().await {
            let mut answer = json!({"namespace": vm.namespace(), "name": vm.name()});
            match outcome {
                Ok(()) => {
                    answer["result"] = operation.into();
                    if self.output.is_none() {
                        print(&format!("{VM}/{} {operation}{dry}\n", vm.name()))?;
                    }
                }
                Err(error) => {
                    failed += 1;
                    answer["error"] = json!({"code": error.kind, "message": error.wrong});
                    eprintln!("error: {:#}", problem(error));
                }
            }
            answers.push((vm, answer));
        }
        if let Some(format) = self.output {
            answers.sort_by(|(a, _), (b, _)| a.cmp(b));
            let items: Vec<Value> = answers.into_iter().map(|(_, answer)| answer).collect();
            document(format, &json!({"items": items, "dryRun": self.dry_run}))?;
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
    }
}

/// As in `3 VMs`.
pub fn many(count: usize) -> String {
    format!("{count} VM{}", if count == 1 { "" } else { "s" })
}

/// Asks a person. Where nobody can answer, that is an error: nothing is done by silence.
pub fn ask(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Problem::new(
            "asking for confirmation",
            format!("`{question}` cannot be answered, standard input is no terminal"),
            "give `--yes` when it is meant, or `--dry-run` to see what it would do",
        )
        .into());
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let yes = matches!(line.trim(), "y" | "Y" | "yes");
    if !yes {
        eprintln!("Nothing was done.");
    }
    Ok(yes)
}
