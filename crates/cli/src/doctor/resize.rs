//! `virt-steward doctor resize`: every part that an in-place resize needs, looked at from outside.

use std::process::ExitCode;

use ::resize::checkup::{self, Finding, Machine, State};
use anyhow::Result;
use serde_json::json;

use super::{gather, probe};
use crate::cli::DENIED;
use crate::cluster::Cluster;
use crate::connection::Scope;
use crate::output::print;
use crate::presented::{Document, document};
use crate::style::{Style, Tone};
use crate::table;

/// VMs with something in their way that are shown without `-o`.
const SHOWN: usize = 30;

/// Arguments of `doctor resize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward doctor resize
  virt-steward doctor resize -n team --probe team/db
  virt-steward doctor resize -o json | jq '.findings[] | select(.state == \"failed\")'

Nothing is changed. --probe sends a patch of virt-controller's kind in a dry run, to see that the webhook is
called; it needs the right to impersonate virt-controller, which cluster administrators have.

Exit status: 0 it works, maybe with notes; 1 the cluster cannot be read; 2 something keeps it from working.")]
pub struct Args {
    #[command(flatten)]
    scope: Scope,

    /// Call the webhook about this VM, in a dry run
    #[arg(long, value_name = "NAMESPACE/VM", value_parser = probe::Target::parse)]
    probe: Option<probe::Target>,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Examines a cluster, all namespaces unless one is given.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster =
        Cluster::connect(args.scope.cluster.kubeconfig.as_deref(), args.scope.cluster.context.clone())
            .await?;
    let mut facts = gather::facts(&cluster, args.scope.namespace.as_deref()).await?;
    if let Some(target) = &args.probe {
        facts.answered = Some(probe::run(&cluster, target, &facts).await?);
    }
    let (findings, machines) = (checkup::findings(&facts), checkup::machines(&facts));
    let verdict = checkup::verdict(&findings);
    match args.output {
        Some(format) => {
            document(format, &json!({"state": verdict, "findings": findings, "virtualMachines": machines}))?;
        }
        None => print(&page(&findings, &machines, Style::of_stdout()))?,
    }
    Ok(if verdict == State::Failed { ExitCode::from(DENIED) } else { ExitCode::SUCCESS })
}

const fn tone(state: State) -> Tone {
    match state {
        State::Ok => Tone::Good,
        State::Note | State::Unknown => Tone::Caution,
        State::Failed => Tone::Bad,
    }
}

fn page(findings: &[Finding], machines: &[Machine], style: Style) -> String {
    let mut rows = vec![vec!["STATE".to_owned(), "CHECK".into(), "WHAT".into()]];
    for finding in findings {
        rows.push(vec![finding.state.name().into(), finding.check.into(), finding.what.clone()]);
        if !finding.remedy.is_empty() && finding.state != State::Ok {
            rows.push(vec![String::new(), String::new(), format!("try: {}", finding.remedy)]);
        }
    }
    let mut text = String::new();
    for (line, row) in table::render(&rows).lines().zip(&rows) {
        let state = row.first().map(String::as_str).unwrap_or_default();
        let found = findings.iter().find(|finding| finding.state.name() == state);
        match (line.strip_prefix(state), found) {
            (Some(rest), Some(finding)) => {
                text.push_str(&style.paint(tone(finding.state), state));
                text.push_str(rest);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text.push_str(&of_machines(machines));
    text
}

fn of_machines(machines: &[Machine]) -> String {
    let able = |of: fn(&Machine) -> &Vec<String>| machines.iter().filter(|one| of(one).is_empty()).count();
    let mut text = format!(
        "\n{} VMs run: {} can get CPUs in place, {} memory; for {} of them that is switched on\n",
        machines.len(),
        able(|one| &one.cpu),
        able(|one| &one.memory),
        machines.iter().filter(|one| one.in_force).count(),
    );
    let hindered: Vec<&Machine> =
        machines.iter().filter(|one| !one.cpu.is_empty() || !one.memory.is_empty()).collect();
    if hindered.is_empty() {
        return text;
    }
    let mut rows = vec![vec![String::new(), "VM".into(), "WANTS".into(), "WHY NOT".into()]];
    for machine in hindered.iter().take(SHOWN) {
        let name = format!("{}/{}", machine.namespace, machine.name);
        for (what, why) in [("CPUs", &machine.cpu), ("memory", &machine.memory)] {
            rows.extend(why.iter().map(|why| vec![String::new(), name.clone(), what.into(), why.clone()]));
        }
    }
    text.push('\n');
    text.push_str(&table::render(&rows));
    if hindered.len() > SHOWN {
        text.extend(["  and ", &(hindered.len() - SHOWN).to_string(), " more VMs: see -o json\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_what_to_do_and_who_cannot() {
        let finding = |check, state, what: &str, remedy: &str| Finding {
            check,
            state,
            what: what.into(),
            remedy: remedy.into(),
        };
        let findings = [
            finding("kubernetes", State::Ok, "1.36", "not shown"),
            finding("agents", State::Failed, "none", "install the chart"),
        ];
        let machine = |name: &str, why: &[&str]| Machine {
            namespace: "d".into(),
            name: name.into(),
            in_force: true,
            cpu: why.iter().map(|&why| why.into()).collect(),
            memory: Vec::new(),
        };
        let machines = [machine("a", &[]), machine("b", &["it is pinned"])];
        assert_eq!(
            page(&findings, &machines, Style::PLAIN),
            "STATE   CHECK       WHAT\n\
             ok      kubernetes  1.36\n\
             failed  agents      none\n\
             \u{20}                   try: install the chart\n\
             \n2 VMs run: 1 can get CPUs in place, 2 memory; for 2 of them that is switched on\n\
             \n  VM   WANTS  WHY NOT\n\
             \u{20} d/b  CPUs   it is pinned\n"
        );
    }
}
