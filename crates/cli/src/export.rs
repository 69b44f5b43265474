//! `virt-steward export`: the disks of a VM out of the cluster.

mod backup;
mod destination;
mod job;
mod local;
mod meter;
mod preflight;
mod relay;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::export::run::{self, Report, Settings, Target};
use ::export::{Error, Throttle, Window};
use anyhow::Result;
use clap::ValueEnum;
use image::qcow2::Compression;

use self::destination::Destination;
use crate::cli::DENIED;
use crate::connection::{ClusterArgs, Scope};
use crate::problem::Problem;
use crate::shutdown;

/// Arguments of `export`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:
  virt-steward export web --format qcow2 --output /backups
  virt-steward export shop/web --format ova --output . --verify
  virt-steward export --provider kubevirt --vm default/my-vm --output /backups
  virt-steward export web --snapshot nightly --format vmdk --output - | ssh esxi 'cat > web.vmdk'
  virt-steward export web --format ova --output s3://backups/nightly
  virt-steward export web --output az://backups/nightly
  virt-steward export web --format vmdk --disk root --output https://files.example/upload
  virt-steward export web --output /backups --resume
  virt-steward export web --output /backups --dry-run
  virt-steward export web --incremental --output /backups/web/2026-11-30 --mkdir
  virt-steward export --pvc web-root --format raw --output /backups
  virt-steward export --file /dev/vg0/web --format qcow2 --output /backups
  virt-steward export --jobs jobs.json
  virt-steward export job submit nightly.json

While an export runs, results are named NAME.partial beside a journal; after a failure, or a kill,
--resume goes on from the last checkpoint. When all is whole, NAME.export.json holds the digests.
A VM that runs is exported from a snapshot that is taken for it and removed afterwards; where KubeVirt tracks
its changes, from a backup, which --incremental needs.
Keys of stores come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google: GS_…, HMAC keys),
AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_KEY, and HTTP_AUTHORIZATION.

Exit status: 0 done, 1 failed, 2 the pre-flight found something that would make it fail.")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// The VM, as NAME or NAMESPACE/NAME
    #[arg(value_name = "VM", conflicts_with_all = ["vm_flag", "file", "pvc"])]
    vm: Option<String>,
    /// The VM, as NAME or NAMESPACE/NAME
    #[arg(long = "vm", value_name = "VM", conflicts_with_all = ["file", "pvc"])]
    vm_flag: Option<String>,
    /// A claim instead of a VM, as NAME or NAMESPACE/NAME; nothing may use it meanwhile
    #[arg(long, value_name = "CLAIM", conflicts_with_all = ["file", "snapshot", "disk"])]
    pvc: Option<String>,
    /// Do the exports of a job file here, one after the other: one job, an array, or `{"jobs": […]}`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vm", "vm_flag", "file", "pvc", "output", "resume"])]
    jobs: Option<PathBuf>,
    /// Where VMs come from
    #[arg(long, value_enum, default_value_t = Provider::Kubevirt)]
    provider: Provider,
    /// Export a snapshot of the VM instead of the stopped VM
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    snapshot: Option<String>,
    /// Export a raw file or block device of this machine instead of a VM
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Only this volume; can be given several times
    #[arg(long, value_name = "NAME")]
    disk: Vec<String>,
    /// What to make
    #[arg(short, long, value_enum, default_value_t = FormatName::Qcow2)]
    format: FormatName,
    /// How disks are compressed: qcow2 by none, deflate or zstd; vmdk, ova and ovf are always deflated, raw never is
    #[arg(short, long, value_enum)]
    compress: Option<CompressName>,
    /// The compressor's level: deflate 1-9 (vmdk 1-12), zstd 1-19
    #[arg(long)]
    level: Option<i32>,
    /// A directory, also as `file:///PATH`; a store as `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX` (with
    /// `?endpoint=URL` for other servers); `https://HOST/PATH` of a server that takes PUT; or `-` for standard
    /// output
    #[arg(
        short = 'O',
        long,
        value_name = "DIRECTORY|URL|-",
        required_unless_present = "jobs",
        default_value = "",
        hide_default_value = true
    )]
    output: String,
    /// The beginning of file names; by default the VM's name
    #[arg(long)]
    name: Option<String>,
    /// Go on with an earlier run
    #[arg(long)]
    resume: bool,
    /// Replace results that are there, and forget earlier runs
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Read the result again and compare its digests with what was read
    #[arg(long)]
    verify: bool,
    /// Look whether it would work, and say so
    #[arg(long)]
    dry_run: bool,
    /// Leave the export object in the cluster
    #[arg(long)]
    keep: bool,
    /// Refuse a VM that runs instead of taking a snapshot of it
    #[arg(long, conflicts_with = "snapshot")]
    no_snapshot: bool,
    /// Only what changed since the newest export beside this one (each in a directory or prefix of its own below a
    /// common parent), as qcow2 images that build on it; everything, with the reason, when that is not known
    #[arg(long, conflicts_with_all = ["file", "pvc", "snapshot", "no_snapshot", "no_backup"])]
    incremental: bool,
    /// With --incremental: every Nth export holds everything
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=31))]
    full_every: u32,
    /// A claim with a file system for what a guest overwrites while it is backed up; by default one is made
    #[arg(long, value_name = "CLAIM")]
    scratch: Option<String>,
    /// Take a snapshot of a VM that runs even where KubeVirt could back it up
    #[arg(long)]
    no_backup: bool,
    /// Make the directory
    #[arg(long)]
    mkdir: bool,
    /// Afterwards, remove older whole exports beside this one but the newest N, this one included; each is a
    /// directory (or prefix) of its own below a common parent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    keep_last: Option<u32>,
    /// Tell this `VMExportJob` in the VM's namespace about progress
    #[arg(long, value_name = "NAME", hide = true)]
    job: Option<String>,
    /// How long the export object lives, in hours; it cannot be extended
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=720))]
    ttl: u16,
    /// How long the export may take to become ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// A checkpoint after so many MiB of a disk, or after 5 s
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65536))]
    checkpoint: u64,
    /// Threads that compress; by default one for each processor
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// The most streams from the server at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=16))]
    streams: u8,
    /// The limit on what is read, in MiB a second
    #[arg(long, value_name = "MIB")]
    limit_rate: Option<u64>,
    /// How to report: text on standard error, or events as lines of JSON on standard output
    #[arg(short, long = "report", visible_alias = "events", value_enum, default_value_t = Output::Text)]
    o: Output,
    /// Say nothing while working
    #[arg(short, long)]
    quiet: bool,
    /// The namespace of a VM that is given without one
    #[arg(short, long)]
    namespace: Option<String>,
    /// The kubeconfig file
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
    /// A file with `provider: {type, metadata: {namespace, kubeconfig, storageClass}}`; flags win
    #[arg(long, value_name = "FILE", alias = "config")]
    provider_config: Option<PathBuf>,
    /// The storage class of what is made in the cluster
    #[arg(skip)]
    storage_class: Option<String>,
}

/// Exports that the cluster carries out.
#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Exports as objects of the cluster: schedules, many VMs, retention
    Job(job::Args),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Provider {
    Kubevirt,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FormatName {
    /// Sparse files
    Raw,
    Qcow2,
    /// VMware streamOptimized
    Vmdk,
    /// One archive with a descriptor
    Ova,
    /// A descriptor beside the disks
    Ovf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum CompressName {
    None,
    /// Read by every qcow2 reader
    Deflate,
    /// Faster, checksummed; needs QEMU 5.1 or newer (the default for qcow2)
    Zstd,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Args {
    fn target(&self) -> Target {
        match self.format {
            FormatName::Raw => Target::Raw,
            FormatName::Qcow2 => Target::Qcow2,
            FormatName::Vmdk => Target::Vmdk,
            FormatName::Ova => Target::Ova,
            FormatName::Ovf => Target::Ovf,
        }
    }

    /// What the provider's configuration file says, where no flag says something else.
    fn read_provider_config(&mut self) -> Result<()> {
        let Some(path) = &self.provider_config else { return Ok(()) };
        let flags = Scope {
            cluster: ClusterArgs { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() },
            namespace: self.namespace.clone(),
            provider_config: None,
        };
        let metadata = crate::provider_config::read(path)?;
        self.storage_class.clone_from(&metadata.storage_class);
        let scope = metadata.under(&flags);
        (self.kubeconfig, self.namespace) = (scope.cluster.kubeconfig, scope.namespace);
        Ok(())
    }

    /// The VM that is named.
    fn vm_name(&self) -> Option<&str> {
        self.vm.as_deref().or(self.vm_flag.as_deref())
    }

    fn pipe(&self) -> bool {
        self.output == "-"
    }

    /// What is asked for, if the format can have it: nothing is compressed otherwise than somebody said.
    fn compression(&self) -> Result<Compression> {
        let wanted = match (self.format, self.compress) {
            (FormatName::Qcow2, None | Some(CompressName::Zstd)) => Ok(Compression::Zstd),
            (FormatName::Qcow2, Some(CompressName::Deflate)) => Ok(Compression::Deflate),
            (FormatName::Qcow2 | FormatName::Raw, Some(CompressName::None)) | (FormatName::Raw, None) => {
                Ok(Compression::None)
            }
            (FormatName::Raw, Some(_)) => Err("a raw disk is what the guest wrote, and never compressed"),
            // The format's own way; `Compression` is about qcow2.
            (_, None | Some(CompressName::Deflate)) => Ok(Compression::None),
            (_, Some(_)) => Err("a VMDK is always deflated"),
        };
        wanted.map_err(|wrong| {
            let remedy = "leave --compress out, or use --format qcow2";
            Problem::new("choosing how to write the disks", wrong, remedy).into()
        })
    }

    fn settings(&self) -> Result<Settings> {
        if self.incremental && self.format != FormatName::Qcow2 {
            let doing = "choosing how to write the disks";
            let wrong = "an incremental export is a qcow2 image over an earlier one";
            return Err(Problem::new(doing, wrong, "use --format qcow2").into());
        }
        let compression = self.compression()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let window = Window {
            most_streams: usize::from(self.streams),
            streams: usize::from(self.streams).min(4),
            throttle: Arc::new(Throttle::new(self.limit_rate.map(|mib| mib << 20))),
            ..Window::default()
        };
        Ok(Settings {
            compression,
            level: self.level,
            workers: self.workers.map_or(processors, usize::from),
            window,
            verify: self.verify,
            resume: self.resume,
            force: self.force,
            checkpoint_bytes: self.checkpoint << 20,
            ..Settings::new(self.target())
        })
    }
}

/// Exports, or says whether it would work.
pub async fn run(mut args: Args) -> Result<ExitCode> {
    if let Some(Action::Job(job)) = args.action {
        return job::run(job).await;
    }
    args.read_provider_config()?;
    if let Some(file) = args.jobs.take() {
        return local::run(&args, &file).await;
    }
    let Some(name) = args.job.take() else { return export(args, None).await };
    let relay = relay::Relay::start(&args, name).await?;
    let outcome = export(args, Some(relay.clone())).await;
    let failure = outcome.as_ref().err().map(|error| format!("{error:#}"));
    relay.end(failure).await;
    outcome
}

async fn export(args: Args, relay: Option<relay::Relay>) -> Result<ExitCode> {
    let settings = args.settings()?;
    let destination = Destination::open(&args)?;
    // Each run of a job has a place of its own, so a report there is that of this very export.
    if args.resume && relay.is_some() && destination.is_whole(&args).await? {
        eprintln!("everything is there already: an earlier run finished it");
        return Ok(ExitCode::SUCCESS);
    }
    let subject = subject::find(&args).await?;
    let findings = preflight::look(&args, &subject, &destination, args.target()).await?;
    if args.dry_run {
        return preflight::show(&args, &findings);
    }
    if let Some(blocked) = preflight::refuse(&args, &findings) {
        if let Some(relay) = &relay {
            relay.fail(&blocked);
        }
        return Ok(ExitCode::from(DENIED));
    }
    let stop = shutdown::token()?;
    let opened = subject::open(&args, subject, &destination).await?;
    let meter = meter::Meter::new(&args);
    let total = opened.job.disks.iter().map(|disk| disk.source.size()).sum();
    let listener: run::Listener = {
        let (meter, relay) = (meter.clone(), relay.clone());
        Arc::new(move |event| {
            if let Some(relay) = &relay {
                relay.event(&event, total);
            }
            meter.event(&event);
        })
    };
    let outcome = destination.write(&opened.job, &settings, listener, stop).await;
    meter.clear();
    let report = outcome.map_err(|error| failed(&args, &opened.job.source, &error))?;
    if !args.keep {
        // The disks are safe: what is left in the cluster goes with its TTL, or is named here.
        if let Some(export) = &opened.export
            && let Err(error) = export.delete().await
        {
            eprintln!("warning: {error}");
        }
        if let Some(snapshot) = &opened.snapshot
            && let Err(error) = snapshot.delete().await
        {
            eprintln!("warning: {error}");
        }
        if let Some(backup) = &opened.backup {
            backup::finish(backup, &opened.job.lineage).await;
        }
    }
    if let Some(keep) = args.keep_last {
        for gone in destination
            .prune(&opened.job.name, keep)
            .await
            .map_err(|error| failed(&args, &opened.job.source, &error))?
        {
            eprintln!("removed the older export {gone}");
        }
    }
    if let Some(relay) = &relay {
        relay.finished(&report);
    }
    say(&args, &report);
    Ok(ExitCode::SUCCESS)
}

fn failed(args: &Args, source: &str, error: &Error) -> Problem {
    let remedy = match error {
        Error::Journal { .. } | Error::Request(_) => "see above",
        _ if args.pipe() => "what went into the pipe is no image: export again",
        Error::SizeChanged { .. } | Error::Verify { .. } => "export again with --force; export a snapshot",
        _ => "the same command with --resume goes on from there",
    };
    Problem::new(format!("exporting {source}"), error, remedy)
}

fn say(args: &Args, report: &Report) {
    if args.o == Output::Json {
        let text = serde_json::json!({"event": "done", "source": report.source, "files": report.files,
            "disks": report.disks.iter().map(|disk| serde_json::json!({"name": disk.name, "file": disk.file,
                "virtualSize": disk.virtual_size, "data": disk.data, "content": disk.content}))
                .collect::<Vec<_>>(), "warnings": report.warnings, "base": report.lineage.base,
            "fullBecause": report.lineage.full_because});
        meter::line(args.pipe(), &text.to_string());
    } else if !args.quiet {
        for file in &report.files {
            eprintln!("{}  {:.1} MiB", file.name, crate::progress::mib(file.size));
        }
    }
}

/// The time for [`export::source::vmexport::Setup`].
fn hours(hours: u16) -> Duration {
    Duration::from_secs(u64::from(hours) * 3600)
}
