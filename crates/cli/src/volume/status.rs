//! `virt-steward volume status`: where each volume stands, and what it waits for, in words.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use provider::VmId;
use provider::cluster::volume_failure;
use volumes::{Machine, Report};

use crate::connection::problem;
use crate::output::print;
use crate::table;

/// Prints it; exit status 0 also while something is waited for.
pub(super) async fn run(machine: &Machine, vm: &VmId, output: &str) -> Result<ExitCode> {
    let doing = format!("reading the volumes of VM `{vm}`");
    let report = machine.report().await.map_err(|error| problem(volume_failure(&doing, vm, error)))?;
    let text = match output {
        "json" => format!("{}\n", serde_json::to_string_pretty(&report)?),
        "yaml" => serde_saphyr::to_string(&report)?,
        _ => words(&machine.label(), &report, output == "wide"),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn words(label: &str, report: &Report, wide: bool) -> String {
    if !report.running && report.volumes.is_empty() {
        return format!("{label} does not run; volumes are attached when it starts.\n");
    }
    let mut head = vec!["VOLUME", "CLAIM", "PHASE", "TARGET", "POD"];
    head.extend(wide.then_some("MESSAGE"));
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for volume in &report.volumes {
        let claim = if volume.claim.is_empty() { "(removed)" } else { &volume.claim };
        let mut row: Vec<String> =
            [&volume.name, claim, &volume.phase, &volume.target, &volume.pod].map(str::to_owned).into();
        row.extend(wide.then(|| volume.message.clone()));
        rows.push(row);
    }
    let mut text = table::fit(&rows);
    let mut line = |words: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    if report.waits.is_empty() && report.holds.is_empty() {
        line("Settled: nothing is waited for.".into());
    }
    for hold in &report.holds {
        line(format!("On hold: {}.", hold.words()));
    }
    for wait in &report.waits {
        line(format!("Waiting: {}.", wait.words()));
    }
    for pod in &report.pods {
        line(format!("Attachment pod {pod}."));
    }
    text
}
