//! `virt-steward vm resize` and `resize-status`: the plan, the one write that starts it, and how
//! far it is.

mod correct;
mod progress;
mod read;
mod shape;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::resize::Fallback;
use ::resize::machine::Wanted;
use ::resize::plan::Plan;
use ::resize::quantity::{bytes, show_bytes, show_cpu};
use ::resize::size::{Amount, Compute};
use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use crate::cli::DENIED;
use crate::cluster::Cluster;
use crate::output::print;
use crate::presented::{Document, document};
use crate::problem::Problem;
use crate::table;
use read::Found;

/// Which VM, in which cluster.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// The VM
    name: String,
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// A kubeconfig file; without one what kubectl would use
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// A context in it
    #[arg(long)]
    context: Option<String>,
}

/// Arguments of `vm resize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm resize db --sockets 4 --memory 8Gi --dry-run
  virt-steward vm resize db --sockets 4 --dry-run -o json
  virt-steward vm resize db --sockets 4 --wait --timeout 5m
  virt-steward vm resize db --limit-memory 12Gi --wait
  virt-steward vm resize db --request-memory 6Gi --limit-cpu 4

Requests and limits alone change the running pod and neither guest nor VM.

Exit status: 0 done or planned, 1 error, 2 it cannot be done in place.")]
pub struct Args {
    #[command(flatten)]
    of: Where,
    /// Sockets of the guest
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    sockets: Option<u32>,
    /// Memory of the guest, such as 8Gi
    #[arg(long)]
    memory: Option<String>,
    #[command(flatten)]
    corrections: correct::Corrections,
    /// Print the plan, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until guest, pod and VMI have the new size
    #[arg(long)]
    wait: bool,
    /// How long to wait: 30s, 5m
    #[arg(long, default_value = "10m", value_parser = duration)]
    timeout: Duration,
    /// Form of the plan
    #[arg(long, short, value_enum)]
    output: Option<Document>,
}

/// Arguments of `vm resize-status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm resize-status db
  virt-steward vm resize-status db -n team
  virt-steward vm resize-status db -o json")]
pub struct StatusArgs {
    #[command(flatten)]
    of: Where,
    /// Form of the answer
    #[arg(long, short, value_enum)]
    output: Option<Document>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a time such as 30s or 5m".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a time such as 30s or 5m".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(factor).min(7 * 24 * 3600)))
}

/// Plans, and unless it is a dry run, starts a resize.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = Cluster::connect(args.of.kubeconfig.as_deref(), args.of.context.clone()).await?;
    let found = read::find(&cluster, &args.of).await?;
    if args.corrections.are_asked_for() {
        let way = correct::Way {
            dry_run: args.dry_run,
            wait: args.wait,
            timeout: args.timeout,
            output: args.output,
        };
        return correct::run(&cluster, &args.of, &found, &args.corrections, way).await;
    }
    let wanted = wanted(&args, &found)?;
    let plan = found.plan(&wanted);
    match args.output {
        Some(format) => document(format, &shape::plan(&args.of, &plan, &found))?,
        None => print(&shown(&plan, &found))?,
    }
    if args.dry_run || plan.from == plan.to {
        let refused = !plan.obstacles.is_empty() && plan.from != plan.to;
        return Ok(if refused { ExitCode::from(DENIED) } else { ExitCode::SUCCESS });
    }
    change(&cluster, &args, &found, &wanted).await?;
    if args.wait {
        return progress::follow(&cluster, &args.of, wanted.size, args.timeout).await;
    }
    eprintln!("changed; see `virt-steward vm resize-status {} -n {}`", args.of.name, args.of.namespace);
    Ok(ExitCode::SUCCESS)
}

fn wanted(args: &Args, found: &Found) -> Result<Wanted> {
    let problem = |wrong: &str, remedy: &str| {
        Problem::new(format!("resizing the VM `{}`", args.of.name), wrong, remedy)
    };
    if args.sockets.is_none() && args.memory.is_none() {
        return Err(problem(
            "nothing is asked for",
            "give --sockets, --memory, or requests and limits such as --limit-memory",
        )
        .into());
    }
    if found.vm["spec"].get("instancetype").is_some_and(Value::is_object) {
        return Err(
            problem("its size comes from an instancetype", "point the VM at another instancetype").into()
        );
    }
    let Some(mut wanted) = ::resize::view::wanted(&found.vm) else {
        return Err(problem("its template names no memory.guest", "set it, and restart the VM once").into());
    };
    if let Some(sockets) = args.sockets {
        wanted.size.sockets = sockets;
    }
    if let Some(memory) = &args.memory {
        wanted.size.guest = amount(memory)?;
    }
    Ok(wanted)
}

fn amount(text: &str) -> Result<u64> {
    bytes(&json!(text)).filter(|bytes| *bytes > 0).ok_or_else(|| {
        Problem::new(
            format!("reading the amount `{text}`"),
            "it is no amount of memory",
            "write it as 8Gi or 512Mi",
        )
        .into()
    })
}

fn line(amount: Amount, show: fn(u64) -> String) -> String {
    match amount.limit {
        Some(limit) => format!("{} (limit {})", show(amount.request), show(limit)),
        None => show(amount.request),
    }
}

/// The plan as a table, and how it is done.
fn shown(plan: &Plan, found: &Found) -> String {
    let row = |what: &str, now: String, then: String| vec![what.to_owned(), now, then];
    let mut rows = vec![
        row("", "NOW".into(), "THEN".into()),
        row("sockets", plan.from.sockets.to_string(), plan.to.sockets.to_string()),
        row("guest memory", show_bytes(plan.from.guest), show_bytes(plan.to.guest)),
    ];
    if !found.pod.is_null() {
        let pod = |compute: Compute| (line(compute.cpu, show_cpu), line(compute.memory, show_bytes));
        let ((cpu, memory), (cpu_then, memory_then)) = (pod(plan.now), pod(plan.last));
        rows.push(row("pod CPU", cpu, cpu_then));
        rows.push(row("pod memory", memory, memory_then));
    }
    format!("{}\n{}{}", table::render(&rows), how(plan, found), grant(plan, found))
}

/// How it comes about, in words.
fn how(plan: &Plan, found: &Found) -> String {
    match way(plan, found) {
        Way::Nothing => "nothing changes\n".into(),
        Way::InPlace => format!("in place: pod, then guest, then VMI; no migration\n{}", otherwise(found)),
        Way::Migration => format!("by live migration: {NOT_IN_FORCE}"),
        Way::Restart => format!("at the next start, for the VM cannot migrate: {NOT_IN_FORCE}"),
        Way::NotInPlace => {
            let obstacles = plan.obstacles.iter().map(|obstacle| format!("  {obstacle}\n"));
            format!("not in place:\n{}", obstacles.collect::<String>())
        }
    }
}

/// Whether memory may be written as KubeVirt itself, where that is needed.
fn grant(plan: &Plan, found: &Found) -> &'static str {
    match found.grant {
        _ if !asks_for_the_grant(plan, found) => "",
        Some(true) => "the operator may write memory of VMs that cannot migrate (resize.declareMemory)\n",
        Some(false) => {
            "the operator may not write memory of VMs that cannot migrate (resize.declareMemory)\n"
        }
        None => {
            "whether the operator may write memory of VMs that cannot migrate could not be asked about: taken as no\n"
        }
    }
}

const NOT_IN_FORCE: &str = "in-place resize is not in force for this VM; annotate it with\n  vm-feature-manager.io/in-place-resize: Enabled\n";

/// How a resize comes about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Nothing,
    InPlace,
    /// KubeVirt's own.
    Migration,
    /// KubeVirt's own, for what cannot migrate.
    Restart,
    /// Something stands in the way.
    NotInPlace,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::InPlace => "in-place",
            Self::Migration => "migration",
            Self::Restart => "restart",
            Self::NotInPlace => "not-in-place",
        }
    }
}

fn way(plan: &Plan, found: &Found) -> Way {
    if plan.from == plan.to {
        Way::Nothing
    } else if !plan.obstacles.is_empty() {
        Way::NotInPlace
    } else if found.policy.is_some() {
        Way::InPlace
    } else if found.migratable {
        Way::Migration
    } else {
        Way::Restart
    }
}

/// Memory of a VM that cannot migrate is written as KubeVirt itself, or not at all.
fn asks_for_the_grant(plan: &Plan, found: &Found) -> bool {
    !found.migratable && plan.from.guest != plan.to.guest
}

/// What happens when node, quota or guest say no.
fn otherwise(found: &Found) -> String {
    let Some(policy) = &found.policy else { return String::new() };
    let what = match policy.fallback {
        Fallback::Wait => {
            return "if that is refused: asked for again until it works (resize-fallback Wait)\n".into();
        }
        Fallback::Migrate if found.migratable => "by live migration (resize-fallback Migrate)",
        Fallback::Migrate => "everything goes back (resize-fallback Migrate, and the VM cannot migrate)",
        Fallback::Revert => "everything goes back (resize-fallback Revert)",
    };
    format!("if that is refused, or not done in {} s: {what}\n", policy.deadline)
}

/// The one write of a resize: the VM's template, as it was read.
async fn change(cluster: &Cluster, args: &Args, found: &Found, wanted: &Wanted) -> Result<()> {
    let mut domain = json!({});
    if args.sockets.is_some() {
        domain["cpu"] = json!({"sockets": wanted.size.sockets});
    }
    if args.memory.is_some() {
        domain["memory"] = json!({"guest": show_bytes(wanted.size.guest)});
    }
    let patch = json!({"metadata": {"resourceVersion": found.vm["metadata"]["resourceVersion"]},
        "spec": {"template": {"spec": {"domain": domain}}}});
    let path = args.of.path("virtualmachines");
    let reply = cluster.send(Method::PATCH, &path, "application/merge-patch+json", &patch).await?;
    reply.object(&format!("changing the VM `{}`", args.of.name))?;
    Ok(())
}

/// Shows how far a resize is.
pub async fn status(args: StatusArgs) -> Result<ExitCode> {
    let cluster = Cluster::connect(args.of.kubeconfig.as_deref(), args.of.context.clone()).await?;
    let found = read::find(&cluster, &args.of).await?;
    match args.output {
        Some(format) => document(format, &shape::status(&args.of, &found)?)?,
        None => print(&progress::describe(&found)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert!(duration("soon").is_err());
        assert!(duration("5d").is_err());
    }

    #[test]
    fn a_plan_says_what_and_how() {
        let size = |sockets, gib: u64| ::resize::Size { sockets, guest: gib << 30 };
        let compute = |cpu, mib: u64| Compute {
            cpu: Amount { request: cpu, limit: None },
            memory: Amount { request: mib << 20, limit: None },
        };
        let mut plan = Plan {
            from: size(2, 1),
            to: size(4, 2),
            now: compute(200, 1320),
            larger: compute(400, 2360),
            last: compute(400, 2360),
            obstacles: Vec::new(),
        };
        let policy = ::resize::Policy { in_place: true, ..::resize::Policy::default() };
        let found = Found { pod: json!({}), policy: Some(policy), migratable: true, ..Found::default() };
        assert_eq!(
            shown(&plan, &found),
            "              NOW     THEN\n\
             sockets       2       4\n\
             guest memory  1Gi     2Gi\n\
             pod CPU       200m    400m\n\
             pod memory    1320Mi  2360Mi\n\
             \nin place: pod, then guest, then VMI; no migration\n\
             if that is refused, or not done in 300 s: by live migration (resize-fallback Migrate)\n"
        );
        let stuck = Found { migratable: false, ..found };
        assert!(shown(&plan, &stuck).contains("could not be asked about: taken as no"));
        assert!(shown(&plan, &stuck).contains("and the VM cannot migrate)"));
        assert!(
            shown(&plan, &Found { grant: Some(true), ..stuck }).contains("the operator may write memory")
        );
        let found = Found::default();
        assert!(
            shown(&plan, &found).contains("\nat the next start, for the VM cannot migrate: in-place resize")
        );
        plan.obstacles.push(::resize::Obstacle::DedicatedCpus);
        assert!(shown(&plan, &found).contains("\nnot in place:\n  dedicatedCpuPlacement"));
    }
}
