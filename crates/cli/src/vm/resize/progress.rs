//! How far a resize is.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::resize::Size;
use ::resize::ledger::{self, LEDGER, Ledger, Phase, REPORT, Report, WISH, Wish};
use ::resize::quantity::show_bytes;
use ::resize::view;
use anyhow::Result;
use serde_json::Value;

use super::Where;
use super::read::Found;
use crate::cli::DENIED;
use crate::cluster::Cluster;
use crate::problem::Problem;
use crate::table;

/// How often the VMI is looked at.
const LOOK: Duration = Duration::from_millis(500);

fn show(size: Size) -> String {
    format!("{} sockets, {}", size.sockets, show_bytes(size.guest))
}

/// One line about a ledger.
fn phase(ledger: &Ledger) -> String {
    let what = match ledger.phase {
        Phase::Preparing => "the pod is being resized",
        Phase::Plugging => "the guest is being changed",
        Phase::Declaring => "virt-controller is about to write the new size",
        Phase::Trimming => "the pod gives up what is no longer needed",
        Phase::Returning => "everything goes back",
        Phase::Open => "left to KubeVirt",
        Phase::Stopped => "given up",
    };
    match &ledger.reason {
        Some(reason) => format!("{what} ({reason})"),
        None => what.to_owned(),
    }
}

/// The state of a VM's size in words.
pub fn describe(found: &Found) -> Result<String> {
    let vmi = view::vmi(&found.vmi);
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let mut rows = vec![row("VMI", show(vmi.size))];
    if let Some(wanted) = view::wanted(&found.vm) {
        rows.insert(0, row("VM", show(wanted.size)));
    }
    if let Some(wish) = ledger::read::<Wish>(&found.vmi, WISH)? {
        let sockets = wish.sockets.map(|sockets| format!("{sockets} sockets"));
        let parts: Vec<String> = sockets.into_iter().chain(wish.guest.map(show_bytes)).collect();
        rows.push(row("held", parts.join(", ")));
    }
    if let Some(report) = ledger::read::<Report>(&found.vmi, REPORT)? {
        let mut guest = format!("{} vCPUs, {}", report.vcpus, show_bytes(report.current));
        if report.current != report.requested {
            guest = format!("{guest} of {}", show_bytes(report.requested));
        }
        if let Some(trouble) = report.trouble {
            guest = format!("{guest} ({trouble})");
        }
        rows.push(row("guest", guest));
    }
    rows.push(row("state", state(found)?));
    Ok(table::render(&rows))
}

/// How far it is, in a line.
pub fn state(found: &Found) -> Result<String> {
    Ok(match ledger::read::<Ledger>(&found.vmi, LEDGER)? {
        Some(ledger) => phase(&ledger),
        None if view::vmi(&found.vmi).stock_at_work => "KubeVirt is at it, by migration".into(),
        None if found.policy.is_some() => "nothing under way".into(),
        None => "in-place resize is not in force for this VM".into(),
    })
}

/// Waits until VMI and status have a size, and tells on standard error what changes.
pub async fn follow(cluster: &Cluster, of: &Where, wanted: Size, timeout: Duration) -> Result<ExitCode> {
    let (begun, path) = (Instant::now(), of.path("virtualmachineinstances"));
    let mut told = String::new();
    loop {
        let object: Value = cluster.get(&path).await.map_err(|error| {
            Problem::new(format!("reading `{path}`"), error, "check that the VM still runs")
        })?;
        let (vmi, ledger) = (view::vmi(&object), ledger::read::<Ledger>(&object, LEDGER)?);
        if vmi.size == wanted && vmi.status == wanted && ledger.is_none() && !vmi.stock_at_work {
            eprintln!("done after {} s: {}", begun.elapsed().as_secs(), show(wanted));
            return Ok(ExitCode::SUCCESS);
        }
        let now = match &ledger {
            Some(ledger) => phase(ledger),
            None if vmi.stock_at_work => "KubeVirt migrates the VM".into(),
            None => "waiting for virt-controller".into(),
        };
        if now != told {
            eprintln!("{now}");
            told = now;
        }
        if ledger.is_some_and(|ledger| ledger.phase == Phase::Stopped && ledger.to.size == wanted) {
            return Ok(ExitCode::from(DENIED));
        }
        if begun.elapsed() >= timeout {
            return Err(Problem::new(
                format!("waiting for the VM `{}` to be resized", of.name),
                format!("not done after {} s: {told}", timeout.as_secs()),
                format!("see `virt-steward vm resize-status {}`, or wait longer with --timeout", of.name),
            )
            .into());
        }
        tokio::time::sleep(LOOK).await;
    }
}
