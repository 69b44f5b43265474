//! `virt-steward volume`: hotplugged volumes of a VM, many at once.
//!
//! Each verb is a change that the library `volumes` carries out; here are arguments and words.

mod expand;
mod list;
mod status;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use hotplug::plan::{Addition, Bus, DiskKind, Source};
use provider::VmId;
use provider::cluster::volume_failure;
use volumes::{Change, Machine, Outcome};

use crate::cli::FAILED;
use crate::connection::{Scope, duration, problem};
use crate::output::print;
use crate::problem::Problem;

/// Arguments of `volume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach volumes to a VM, all in one change
    Add(Add),
    /// Make the claim of a volume larger
    Expand(expand::Args),
    /// List the volumes of a VM, with the claims behind them
    List(list::Args),
    /// Detach volumes from a VM, all in one change
    Remove(Remove),
    /// Detach volumes, wait until they have left, and attach others
    Swap(Swap),
    /// Say where each volume stands and what it waits for
    Status(Status),
}

/// Which VM, in which cluster.
#[derive(Debug, clap::Args)]
struct Target {
    /// The virtual machine, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,

    #[command(flatten)]
    scope: Scope,
}

/// How a change is carried out.
#[derive(Debug, clap::Args)]
struct Pace {
    /// How long additions have to get into the guest, as in `90s` or `5m`; what did not is taken back then
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = limit)]
    timeout: i64,

    /// Return when the change is written, without waiting for the guest
    #[arg(long)]
    no_wait: bool,

    /// Show the patch, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Reads the time for additions in seconds, from 5 seconds to a day: what is taken back sooner had no chance.
fn limit(text: &str) -> Result<i64, String> {
    let seconds = duration(text)?.as_secs();
    let seconds = i64::try_from(seconds).ok().filter(|seconds| (5..=86_400).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is not from 5s to 24h"))
}

/// What is attached, and how.
#[derive(Debug, clap::Args)]
struct Disks {
    /// A claim to attach, as NAME or NAME=CLAIM; several times
    #[arg(long = "volume", value_name = "NAME[=CLAIM]")]
    volumes: Vec<String>,

    /// A `DataVolume` to attach, as NAME or NAME=DATAVOLUME; several times
    #[arg(long = "data-volume", value_name = "NAME[=DATAVOLUME]")]
    data_volumes: Vec<String>,

    /// scsi, virtio, or sata for a CD-ROM
    #[arg(long)]
    bus: Option<Bus>,

    /// disk, lun or cdrom; a cdrom goes into the drive of its name
    #[arg(long, default_value = "disk", value_parser = ["disk", "lun", "cdrom"])]
    disk_type: String,

    /// Serial number, for a single volume
    #[arg(long)]
    serial: Option<String>,

    /// none, writethrough or writeback
    #[arg(long, value_parser = ["none", "writethrough", "writeback"])]
    cache: Option<String>,

    /// The guest may not write
    #[arg(long)]
    read_only: bool,
}

/// Arguments of `volume add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume add web --volume data --volume logs --volume scratch
  virt-steward volume add web --volume data=pvc-7 --bus virtio --serial D7
  virt-steward volume add web --data-volume iso=installer --disk-type cdrom
  virt-steward volume add web --volume data --dry-run

Waits for a migration, snapshot or handoff that is under way. When a batch does not settle in time, what
never reached the guest is taken back, and the bad volumes are found and named; the others stay attached.")]
struct Add {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    disks: Disks,
    /// Detach all other hotplugged volumes first, and attach all in one change: for drivers that cannot serve a volume to two
    /// pods of a node; the guest is without its volumes meanwhile
    #[arg(long)]
    detach_others: bool,
    #[command(flatten)]
    pace: Pace,
}

/// Arguments of `volume remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume remove web --volume data --volume logs
  virt-steward volume remove web --volume cd

A CD-ROM drive stays when its medium is removed.")]
struct Remove {
    #[command(flatten)]
    target: Target,
    /// The volumes, by name; several times
    #[arg(long = "volume", value_name = "NAME", required = true)]
    volumes: Vec<String>,
    #[command(flatten)]
    pace: Pace,
}

/// Arguments of `volume swap`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume swap web --remove old --volume new
  virt-steward volume swap web --remove cd --data-volume cd=next-iso --disk-type cdrom")]
struct Swap {
    #[command(flatten)]
    target: Target,
    /// A volume to detach, by name; several times
    #[arg(long = "remove", value_name = "NAME", required = true)]
    remove: Vec<String>,
    #[command(flatten)]
    disks: Disks,
    /// Detach all other hotplugged volumes as well, and attach them again with the new ones
    #[arg(long)]
    detach_others: bool,
    #[command(flatten)]
    pace: Pace,
}

/// Arguments of `volume status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume status web
  virt-steward volume status web -o wide
  virt-steward volume status web -o yaml")]
struct Status {
    #[command(flatten)]
    target: Target,
    /// Output: table, wide, json or yaml
    #[arg(short, long, default_value = "table", value_parser = ["table", "wide", "json", "yaml"])]
    output: String,
}

/// Finds the VM that a command is about.
async fn connect(target: Target) -> Result<(Machine, VmId)> {
    let (provider, vm) = target.scope.connect_for(&target.vm).await?;
    Ok((Machine::new(provider.client(), vm.namespace(), vm.name()), vm))
}

/// Characters that may go into a path as they are.
fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(legal)
}

impl Disks {
    fn additions(&self) -> Result<Vec<Addition>> {
        let claims = self.volumes.iter().map(|text| (text, false));
        let data_volumes = self.data_volumes.iter().map(|text| (text, true));
        let all: Vec<(&String, bool)> = claims.chain(data_volumes).collect();
        let doing = "reading what to attach";
        if all.is_empty() {
            return Err(Problem::new(doing, "nothing is named", "give `--volume` or `--data-volume`").into());
        }
        if self.serial.is_some() && all.len() > 1 {
            let wrong = "one serial number for several volumes";
            return Err(Problem::new(doing, wrong, "add the volumes with serial numbers one by one").into());
        }
        all.into_iter()
            .map(|(text, data_volume)| {
                let (name, source) = text.split_once('=').unwrap_or((text, text));
                if !is_name(source) {
                    let wrong = format!("`{source}` is not the name of a claim");
                    return Err(Problem::new(doing, wrong, "see `kubectl get pvc`").into());
                }
                Ok(Addition {
                    name: name.to_owned(),
                    source: if data_volume {
                        Source::DataVolume(source.to_owned())
                    } else {
                        Source::Claim(source.to_owned())
                    },
                    kind: match self.disk_type.as_str() {
                        "lun" => DiskKind::Lun,
                        "cdrom" => DiskKind::Cdrom,
                        _ => DiskKind::Disk,
                    },
                    bus: self.bus,
                    serial: self.serial.clone(),
                    cache: self.cache.clone(),
                    read_only: self.read_only,
                    given: None,
                })
            })
            .collect()
    }
}

/// Carries a verb out.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Add(add) => {
            let change =
                Change { add: add.disks.additions()?, detach_others: add.detach_others, ..Change::default() };
            carry_out(add.target, change, &add.pace).await
        }
        Verb::Expand(args) => expand::run(args).await,
        Verb::List(args) => list::run(args).await,
        Verb::Remove(remove) => {
            let change = Change { remove: remove.volumes, ..Change::default() };
            carry_out(remove.target, change, &remove.pace).await
        }
        Verb::Swap(swap) => {
            let add = swap.disks.additions()?;
            let change = Change { add, remove: swap.remove, detach_others: swap.detach_others };
            carry_out(swap.target, change, &swap.pace).await
        }
        Verb::Status(wanted) => {
            let (machine, vm) = connect(wanted.target).await?;
            status::run(&machine, &vm, &wanted.output).await
        }
    }
}

async fn carry_out(target: Target, change: Change, pace: &Pace) -> Result<ExitCode> {
    let (machine, vm) = connect(target).await?;
    let pace = volumes::Pace {
        limit: pace.timeout,
        wait: !pace.no_wait,
        dry_run: pace.dry_run,
        holder: holder(&machine),
        ..volumes::Pace::default()
    };
    let outcome = machine.change(change, &pace, &mut |news| eprintln!("{news}")).await.map_err(|error| {
        problem(volume_failure(&format!("changing the volumes of VM `{vm}`"), &vm, error))
    })?;
    match outcome {
        Outcome::Done => Ok(ExitCode::SUCCESS),
        Outcome::Planned(patch) => {
            if !patch.is_null() {
                print(&format!("{}\n", serde_json::to_string_pretty(&patch)?))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::TakenBack(volumes) => {
            eprintln!(
                "error: attaching to VM `{vm}`: volume {} did not reach the guest within {} s and was taken back\n  \
                 try: `kubectl describe pod -l kubevirt.io=hotplug-disk` while it is tried again, or a longer `--timeout`",
                volumes.join(", "),
                pace.limit
            );
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// Whose locks of claims these are: the VM that wants them, and a number that no other process has.
fn holder(machine: &Machine) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{} ({:x}-{:x})", machine.label(), std::process::id(), since.as_nanos())
}
