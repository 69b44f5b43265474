//! `virt-steward export job`: exports that the cluster carries out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::provider::jobs::Job;
use ::provider::{Provider, VmId};
use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use crate::cli::FAILED;
use crate::connection::{Scope, duration, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none, size};
use crate::problem::Problem;
use crate::table;
use crate::verbs::{AtOnce, Listing, Showing, dry};
use crate::vm::Progress;

/// As kubectl names them.
const RESOURCE: &str = "vmexportjob.vm-feature-manager.io";

/// How often a job is looked at that is waited for.
const POLL: Duration = Duration::from_secs(1);

/// Arguments of `export job`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Make jobs from a job file
    Submit(SubmitArgs),
    /// List jobs
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a job with each of its VMs
    #[command(visible_alias = "describe")]
    Get(GetArgs),
    /// Wait until a job is over
    Wait(WaitArgs),
    /// Show what the pods of a job said
    Logs(LogsArgs),
    /// End what a job is doing; it can be resumed
    Cancel(CancelArgs),
    /// Let a cancelled job go on where it was
    Resume(ResumeArgs),
    /// Delete a job; what it exported stays
    Delete(DeleteArgs),
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job submit nightly.json
  virt-steward export job submit nightly.yaml --wait
  echo '{\"vm_path\": \"default/web\", \"output_dir\": \"s3://backups\", \"metadata\": {\"secret\": \"s3\"}}' |
    virt-steward export job submit -

A job file is one job, an array of jobs, or {\"jobs\": […]}; docs/export.md explains the fields.")]
struct SubmitArgs {
    /// The job file, JSON or YAML; `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    scope: Scope,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
    /// Wait until every job is over; exit status 1 when one failed
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// How long to wait, as `90s`, `5m` or `1h30m`
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h", requires = "wait")]
    timeout: Duration,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job list
  virt-steward export job list -A -o json")]
struct ListArgs {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job get nightly
  virt-steward export job get shop/nightly -o yaml")]
struct GetArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job wait nightly --timeout 2h

Exit status: 0 it is complete, 1 it failed, was cancelled, or is not over in time.")]
struct WaitArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// How long to wait, as `90s`, `5m` or `1h30m`
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
    timeout: Duration,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job logs nightly
  virt-steward export job logs shop/nightly")]
struct LogsArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job cancel nightly
  virt-steward export job cancel shop/nightly --dry-run")]
struct CancelArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    how: AtOnce,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job resume nightly
  virt-steward export job resume shop/nightly --dry-run -o json")]
struct ResumeArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    how: AtOnce,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward export job delete nightly
  virt-steward export job delete nightly --dry-run")]
struct DeleteArgs {
    /// The job, as `name` or `namespace/name`
    #[arg(value_name = "JOB")]
    name: String,
    #[command(flatten)]
    how: AtOnce,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Submit(args) => return submit(args).await,
        Verb::Wait(args) => {
            let (provider, id) = args.scope.connect_to(RESOURCE, &args.name).await?;
            let over = wait(&provider, &[id], args.timeout).await?;
            return Ok(verdict(&over));
        }
        Verb::List(args) => list(&args).await?,
        Verb::Get(args) => get(&args).await?,
        Verb::Logs(args) => logs(&args).await?,
        Verb::Cancel(args) => suspend(&args.name, &args.how, true).await?,
        Verb::Resume(args) => suspend(&args.name, &args.how, false).await?,
        Verb::Delete(DeleteArgs { name, how }) => {
            let (provider, id) = how.scope.connect_to(RESOURCE, &name).await?;
            provider.delete_job(id.namespace(), id.name(), how.dry_run).await.map_err(problem)?;
            how.deleted(RESOURCE, &id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn submit(args: SubmitArgs) -> Result<ExitCode> {
    let requests = super::local::read(&args.file)?;
    let (provider, namespace) = args.scope.connect().await?;
    let mut made = Vec::new();
    for mut request in requests {
        request.metadata.namespace.get_or_insert_with(|| namespace.clone());
        let job = provider.submit_job(&request, args.dry_run).await.map_err(problem)?;
        if args.output.is_none() {
            print(&format!("{RESOURCE}/{} created{}\n", job.name, dry(args.dry_run)))?;
        }
        made.push(job);
    }
    if args.wait {
        let ids: Result<Vec<VmId>, _> = made.iter().map(|job| VmId::new(&job.namespace, &job.name)).collect();
        made = wait(&provider, &ids.map_err(problem)?, args.timeout).await?;
    }
    if let Some(format) = args.output {
        document(format, &json!({"items": made}))?;
    }
    Ok(if args.wait { verdict(&made) } else { ExitCode::SUCCESS })
}

/// Waits until jobs are over, and says how far they are.
async fn wait(provider: &Provider, ids: &[VmId], within: Duration) -> Result<Vec<Job>> {
    let end = tokio::time::Instant::now() + within;
    let mut said: BTreeMap<&VmId, Progress> = BTreeMap::new();
    loop {
        let mut found = Vec::new();
        for id in ids {
            let job = provider.job(id.namespace(), id.name()).await.map_err(problem)?;
            said.entry(id).or_insert_with(|| Progress::of(id)).note(&standing(&job));
            found.push(job);
        }
        // Between two runs a schedule is never over: one run is what is waited for.
        if found.iter().all(|job| job.is_over() || (job.status == "scheduled" && job.completed.is_some())) {
            return Ok(found);
        }
        if tokio::time::Instant::now() >= end {
            let doing = "waiting for export jobs";
            let remedy = "give it more time with --timeout; the jobs go on";
            return Err(Problem::new(doing, format!("not over after {} s", within.as_secs()), remedy).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn verdict(jobs: &[Job]) -> ExitCode {
    let good =
        jobs.iter().all(|job| matches!(job.status, "completed" | "scheduled") && job.progress.failed == 0);
    if good { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// `running 43 %, 1 of 3 VMs, 28 s left`
fn standing(job: &Job) -> String {
    let progress = &job.progress;
    let mut line = job.status.to_owned();
    if progress.vms > 0 {
        let _ = write!(line, " {} %, {} of {} VMs", progress.percent, progress.succeeded, progress.vms);
    }
    if let (Some(eta), "running") = (progress.eta_seconds.filter(|eta| *eta > 0), job.status) {
        let _ = write!(line, ", {eta} s left");
    }
    match &job.message {
        Some(message) => format!("{line}: {message}"),
        None => line,
    }
}

async fn list(ListArgs { listing }: &ListArgs) -> Result<()> {
    let (provider, namespace) = listing.place().await?;
    let jobs = provider.jobs(namespace.as_deref()).await.map_err(problem)?;
    let table = |jobs: &[Job]| present(jobs, listing.is_wide());
    listing.show("export jobs", &jobs, |job| format!("{RESOURCE}/{}", job.name), table)
}

fn present(jobs: &[Job], wide: bool) -> String {
    let now = Timestamp::now();
    let mut header = vec!["NAMESPACE", "NAME", "STATUS", "DONE", "VMS", "FAILED", "ETA", "SCHEDULE", "AGE"];
    if wide {
        header.extend(["FORMAT", "DESTINATION", "STORED", "NEXT", "MESSAGE"]);
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for job in jobs {
        let mut row = vec![
            job.namespace.clone(),
            job.name.clone(),
            job.status.to_owned(),
            format!("{} %", job.progress.percent),
            job.progress.vms.to_string(),
            job.progress.failed.to_string(),
            or_none(job.progress.eta_seconds.filter(|eta| *eta > 0).map(|eta| format!("{eta} s"))),
            or_none(job.schedule.clone()),
            age(&job.created, now),
        ];
        if wide {
            row.extend([
                job.format.clone(),
                place(job),
                size(job.progress.stored_bytes),
                or_none(job.next.clone()),
                or_none(job.message.clone()),
            ]);
        }
        rows.push(row);
    }
    table::fit(&rows)
}

fn place(job: &Job) -> String {
    match (job.destination["url"].as_str(), job.destination["claim"]["name"].as_str()) {
        (Some(url), _) => url.to_owned(),
        (None, Some(claim)) => {
            format!("claim {claim}/{}", job.destination["claim"]["path"].as_str().unwrap_or_default())
        }
        (None, None) => String::new(),
    }
}

async fn get(GetArgs { name, showing }: &GetArgs) -> Result<()> {
    let (provider, id) = showing.scope.connect_to(RESOURCE, name).await?;
    let job = provider.job(id.namespace(), id.name()).await.map_err(problem)?;
    showing.show(&job, page)
}

/// A job, with each of its VMs.
fn page(job: &Job) -> String {
    let mut out = format!("{}/{}  {}\n", job.namespace, job.name, standing(job));
    let _ = write!(out, "Destination  {}\nFormat       {}\n", place(job), job.format);
    if let Some(schedule) = &job.schedule {
        let _ = writeln!(out, "Schedule     {schedule}, next {}", or_none(job.next.clone()));
    }
    let mut rows =
        vec![["VM", "PHASE", "DONE", "RATE", "ETA", "STORED", "MESSAGE"].map(str::to_owned).to_vec()];
    for (vm, export) in job.exports.as_object().into_iter().flatten() {
        let progress = &export["progress"];
        let number = |key: &str| progress[key].as_u64();
        rows.push(vec![
            vm.clone(),
            export["phase"].as_str().unwrap_or_default().to_owned(),
            or_none(number("percent").map(|percent| format!("{percent} %"))),
            or_none(number("bytesPerSecond").map(|rate| format!("{}/s", size(rate)))),
            or_none(number("etaSeconds").filter(|eta| *eta > 0).map(|eta| format!("{eta} s"))),
            or_none(number("stored").map(size)),
            or_none(export["message"].as_str().or_else(|| progress["error"].as_str()).map(str::to_owned)),
        ]);
    }
    if rows.len() > 1 {
        out += "\n";
        out += &table::fit(&rows);
    }
    out
}

async fn logs(args: &LogsArgs) -> Result<()> {
    let (provider, id) = args.scope.connect_to(RESOURCE, &args.name).await?;
    for (pod, text) in provider.job_logs(id.namespace(), id.name()).await.map_err(problem)? {
        print(&format!("==> {pod}\n{text}"))?;
    }
    Ok(())
}

async fn suspend(name: &str, how: &AtOnce, suspend: bool) -> Result<()> {
    let (provider, id) = how.scope.connect_to(RESOURCE, name).await?;
    let job = provider.suspend_job(id.namespace(), id.name(), suspend, how.dry_run).await.map_err(problem)?;
    let done = if suspend { "cancelled" } else { "resumed" };
    how.tell(&format!("{RESOURCE}/{} {done}", job.name), &job)
}
