//! `virt-steward volume status`: where each volume stands, and what it waits for, in words.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use hotplug::plan::{Seen, holds, unsettled};
use hotplug::settle::why_not_ready;
use hotplug::view::PodPhase;
use serde_json::{Value, json};

use super::Vm;
use crate::output::print;
use crate::table;

/// Prints it; exit status 0 also while something is waited for.
pub(super) async fn run(vm: &Vm, output: &str) -> Result<ExitCode> {
    let snapshot = vm.provider.observe_volumes(&vm.id, &[]).await.map_err(crate::connection::problem)?;
    let seen = snapshot.seen();
    let text = if output == "json" {
        format!("{}\n", serde_json::to_string_pretty(&report(&seen))?)
    } else {
        words(&vm.id.to_string(), &seen)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn report(seen: &Seen<'_>) -> Value {
    let Some(instance) = &seen.instance else {
        return json!({"running": false, "settled": true, "volumes": [], "waits": [], "holds": []});
    };
    let waits = unsettled(seen.vm, instance, &seen.pods);
    let volumes: Vec<Value> = instance
        .status
        .iter()
        .map(|status| {
            json!({"name": status.name, "phase": status.phase.name(), "target": status.target,
                "attachmentPodUID": status.attach_pod, "message": status.message})
        })
        .collect();
    json!({
        "running": instance.running, "settled": waits.is_empty(), "volumes": volumes, "waits": waits,
        "holds": holds(instance, &seen.circumstances),
    })
}

fn words(label: &str, seen: &Seen<'_>) -> String {
    let Some(instance) = &seen.instance else {
        return format!("{label} does not run; volumes are attached when it starts.\n");
    };
    let mut rows = vec![["VOLUME", "CLAIM", "PHASE", "TARGET", "POD"].map(str::to_owned).to_vec()];
    let mut names: Vec<&str> = instance.hotplugged().map(|volume| volume.name).collect();
    names.extend(instance.status.iter().map(|status| status.name));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let claim =
            instance.volumes.iter().find(|volume| volume.name == name).map_or("", |volume| volume.claim);
        let status = instance.status_of(name);
        let pod = status
            .and_then(|status| seen.pods.iter().find(|pod| pod.uid == status.attach_pod))
            .map_or("", |pod| pod.name);
        rows.push(vec![
            name.to_owned(),
            if claim.is_empty() { "(removed)".to_owned() } else { claim.to_owned() },
            status.map_or("requested", |status| status.phase.name()).to_owned(),
            status.map_or("", |status| status.target).to_owned(),
            pod.to_owned(),
        ]);
    }
    let mut text = table::render(&rows);
    let mut line = |words: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    let waits = unsettled(seen.vm, instance, &seen.pods);
    let holds = holds(instance, &seen.circumstances);
    if waits.is_empty() && holds.is_empty() {
        line("Settled: nothing is waited for.".into());
    }
    for hold in &holds {
        line(format!("On hold: {}.", hold.words()));
    }
    for wait in &waits {
        line(format!("Waiting: {}.", wait.words()));
    }
    for pod in seen.pods.iter().filter(|pod| pod.phase != PodPhase::Running) {
        line(format!("Attachment pod {}: {}.", pod.name, why_not_ready(pod)));
    }
    text
}
