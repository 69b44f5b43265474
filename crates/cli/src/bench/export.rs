//! `virt-steward bench export`: exports of a VM, against what people do today.
//!
//! ```text
//!  ours:  export server ──ranges──► virt-steward export ──► image
//!  today: export server ──────────► curl ──► disk.raw ──► qemu-img convert ──► image
//! ```
//!
//! The sandbox's export server serves both, one after the other in each round, from the same disk. Times and
//! memory are those of the clients; the server runs in a process of its own.
//!
//! The floor is the time that no client goes below whose library for TLS is curl's and whose compressors are ours: the
//! processor time of serving the disk, of receiving it and of converting it where it lies, on all processors at once.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ::export::source::http::Directory as _;
use ::export::source::vmexport::{Setup, Subject, VmExport};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::process;
use crate::cluster::Cluster;
use crate::output::print;
use crate::problem::Problem;
use crate::table;

/// How long the sandbox may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A kind of image: its name, our arguments, and qemu-img's.
type Way = (&'static str, &'static [&'static str], &'static [&'static str]);

const WAYS: [Way; 6] = [
    ("vmdk", &["--format", "vmdk"], &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ("ova", &["--format", "ova"], &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    (
        "qcow2-zstd",
        &["--format", "qcow2", "--compress", "zstd"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
    ),
    ("qcow2-deflate", &["--format", "qcow2", "--compress", "deflate"], &["-O", "qcow2", "-c"]),
    // What each recommends who wants a compressed qcow2: qemu-img knows no other default than deflate.
    ("qcow2-usual", &["--format", "qcow2", "--compress", "zstd"], &["-O", "qcow2", "-c"]),
    ("raw", &["--format", "raw"], &["-O", "raw"]),
];

/// Arguments of `bench export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward bench export
  virt-steward bench export --mib 4096 --rounds 3 --only vmdk --only qcow2-zstd

Needs curl and qemu-img, and room for the disk twice. Compare ratios, not seconds: what else the machine does
counts for both.")]
pub struct Args {
    /// The size of the disk in MiB; a third of it is data
    #[arg(long, default_value_t = 1536, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    mib: u64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// Only this kind: vmdk, ova, qcow2-zstd, qcow2-deflate, qcow2-usual (zstd against qemu-img -c) or raw; can be given several times
    #[arg(long, value_name = "KIND")]
    only: Vec<String>,
    /// Where images go; by default the temporary directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What one way took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    wall_seconds: f64,
    cpu_seconds: f64,
    peak_rss_mib: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: &'static str,
    ours: Cost,
    today: Cost,
    /// How many times faster.
    wall_ratio: f64,
    cpu_ratio: f64,
    /// What all processors need for serving, receiving and converting alone.
    floor_seconds: f64,
    ours_bytes: u64,
    today_bytes: u64,
}

/// Measures, prints.
pub async fn run(args: Args) -> Result<ExitCode> {
    if let Some(unknown) = args.only.iter().find(|only| !WAYS.iter().any(|(name, ..)| only == name)) {
        let names: Vec<&str> = WAYS.iter().map(|(name, ..)| *name).collect();
        let wrong = format!("there is no kind `{unknown}`");
        return Err(
            Problem::new("choosing what to measure", wrong, format!("use {}", names.join(", "))).into()
        );
    }
    let home = match &args.directory {
        Some(directory) => tempfile::tempdir_in(directory),
        None => tempfile::tempdir(),
    };
    let home = home.context("making a directory for images")?;
    let mut server = Server::start(home.path(), args.mib).await?;
    let outcome = measure(&args, home.path(), &server).await;
    server.end();
    let rows = outcome?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&rows)?))?;
    } else {
        print(&show(&rows, &args))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args, home: &Path, server: &Server) -> Result<Vec<Row>> {
    let (curl, url) = server.download(home).await?;
    // The first read writes the disk, and fills the page cache.
    let mut receive = Command::new("curl");
    receive.arg("-sfK").arg(&curl).args(["-o", "/dev/null", &url]);
    time(&mut receive)?;
    let transport = server.cost_of(|| time(&mut receive))?;
    let mut rows = Vec::new();
    for (kind, ours, qemu) in WAYS
        .into_iter()
        .filter(|(kind, ..)| args.only.is_empty() || args.only.iter().any(|only| only == kind))
    {
        let (mut us, mut them) = (Vec::new(), Vec::new());
        let (mut ours_bytes, mut today_bytes, mut floor) = (0, 0, 0.0);
        for round in 0..args.rounds {
            let out = fresh(&home.join("ours"))?;
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("export").arg("default/web").args(ours).arg("--output").arg(&out);
            command.args(["--quiet", "--keep"]).env("KUBECONFIG", &server.kubeconfig);
            us.push(time(&mut command)?);
            let today = fresh(&home.join("today"))?;
            let (raw, image) = (today.join("disk.raw"), today.join("image"));
            let download = time(Command::new("curl").arg("-sfK").arg(&curl).arg("-o").arg(&raw).arg(&url))?;
            let mut convert = Command::new("qemu-img");
            convert.args(["convert", "-m", "16", "-W", "-f", "raw"]).args(qemu).arg(&raw).arg(&image);
            let mut both = download.then(time(&mut convert)?);
            if kind == "ova" {
                let mut tar = Command::new("tar");
                both = both
                    .then(time(tar.arg("cf").arg(today.join("web.ova")).arg("-C").arg(&today).arg("image"))?);
            }
            them.push(both);
            let first = std::fs::read_dir(&out)?.filter_map(|entry| Some(entry.ok()?.path()));
            let first = first.into_iter().find(|path| path.extension().is_some_and(|e| e != "json"));
            let first = first.context("the export left no image")?;
            (ours_bytes, today_bytes) = (blocks(&first)?, blocks(&image)?);
            if round == 0 {
                let converted = fresh(&home.join("converted"))?.join(format!("image.{}", format_of(ours)));
                let mut convert = Command::new(std::env::current_exe()?);
                convert.args(["image", "convert", "--quiet"]).arg(&raw).arg(&converted).args(ours);
                floor = (transport + time(&mut convert)?.cpu_seconds) / processors();
            }
            if round == 0 && kind != "ova" {
                let same = Command::new("qemu-img").arg("compare").arg(&first).arg(&raw).output()?;
                let wrong = String::from_utf8_lossy(&same.stdout).trim().to_owned();
                if !same.status.success() {
                    return Err(Problem::new(format!("comparing the {kind}"), wrong, "report this").into());
                }
            }
        }
        let (ours, today) = (median(us), median(them));
        rows.push(Row {
            kind,
            ours,
            today,
            wall_ratio: today.wall_seconds / ours.wall_seconds.max(0.001),
            cpu_ratio: today.cpu_seconds / ours.cpu_seconds.max(0.001),
            floor_seconds: floor,
            ours_bytes,
            today_bytes,
        });
    }
    Ok(rows)
}

/// The value of `--format`.
fn format_of(arguments: &[&'static str]) -> &'static str {
    arguments.get(1).copied().unwrap_or("raw")
}

#[expect(clippy::cast_precision_loss, reason = "a few processors")]
fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    std::fs::create_dir(path)?;
    Ok(path.to_path_buf())
}

fn blocks(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

impl Cost {
    fn then(self, next: Self) -> Self {
        Self {
            wall_seconds: self.wall_seconds + next.wall_seconds,
            cpu_seconds: self.cpu_seconds + next.cpu_seconds,
            peak_rss_mib: self.peak_rss_mib.max(next.peak_rss_mib),
        }
    }
}

fn median(mut costs: Vec<Cost>) -> Cost {
    let mut of = |part: fn(&Cost) -> f64| {
        costs.sort_by(|a, b| part(a).total_cmp(&part(b)));
        costs.get(costs.len() / 2).map_or(0.0, part)
    };
    Cost {
        wall_seconds: of(|cost| cost.wall_seconds),
        cpu_seconds: of(|cost| cost.cpu_seconds),
        peak_rss_mib: of(|cost| cost.peak_rss_mib),
    }
}

/// Runs a process to its end and watches what it takes.
fn time(command: &mut Command) -> Result<Cost> {
    let name = format!("running {}", command_name(command));
    let remedy = "install curl and qemu-img (qemu-utils)";
    let started = Instant::now();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = spawned.map_err(|error| Problem::new(name.clone(), error, remedy))?;
    let mut cost = Cost::default();
    loop {
        if let Ok(usage) = process::usage(child.id()) {
            cost.cpu_seconds = cost.cpu_seconds.max(usage.cpu.as_secs_f64());
            cost.peak_rss_mib = cost.peak_rss_mib.max(mib(usage.peak_rss));
        }
        if let Some(status) = child.try_wait()? {
            cost.wall_seconds = started.elapsed().as_secs_f64();
            if status.success() {
                return Ok(cost);
            }
            return Err(Problem::new(name, status.to_string(), "run it by hand to see why").into());
        }
        std::thread::sleep(LOOK);
    }
}

fn command_name(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[expect(clippy::cast_precision_loss, reason = "shown to a person with few digits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn show(rows: &[Row], args: &Args) -> String {
    let gib = mib(args.mib << 20) / 1024.0;
    let mut out = format!(
        "{} MiB disk, a third data, median of {} rounds. Today: curl, then qemu-img convert -m 16 -W.\n",
        args.mib, args.rounds
    );
    let header = [
        "KIND",
        "S",
        "TODAY",
        "FASTER",
        "FLOOR",
        "CPU S/GIB",
        "TODAY",
        "RATIO",
        "RSS MIB",
        "TODAY",
        "TEMP MIB",
        "TODAY",
        "MIB",
        "TODAY",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for row in rows {
        table.push(vec![
            row.kind.to_owned(),
            format!("{:.2}", row.ours.wall_seconds),
            format!("{:.2}", row.today.wall_seconds),
            format!("{:.2}", row.wall_ratio),
            format!("{:.2}", row.floor_seconds),
            format!("{:.2}", row.ours.cpu_seconds / gib),
            format!("{:.2}", row.today.cpu_seconds / gib),
            format!("{:.2}", row.cpu_ratio),
            format!("{:.0}", row.ours.peak_rss_mib),
            format!("{:.0}", row.today.peak_rss_mib),
            "0".into(),
            args.mib.to_string(),
            format!("{:.0}", mib(row.ours_bytes)),
            format!("{:.0}", mib(row.today_bytes)),
        ]);
    }
    out += &table::render(&table);
    out
}

/// A sandbox in a process of its own, with a stopped VM of one disk.
struct Server {
    child: Child,
    kubeconfig: PathBuf,
    cluster: Cluster,
}

impl Server {
    async fn start(home: &Path, mib: u64) -> Result<Self> {
        let kubeconfig = home.join("kubeconfig");
        let mut child = Command::new(std::env::current_exe().context("finding the program itself")?)
            .args(["sandbox", "--no-operator", "--nodes", "1", "--kubeconfig-out"])
            .arg(&kubeconfig)
            // The sandbox keeps its disks there.
            .env("TMPDIR", home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the sandbox")?;
        match Self::furnish(&kubeconfig, mib).await {
            Ok(cluster) => Ok(Self { child, kubeconfig, cluster }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    async fn furnish(kubeconfig: &Path, mib: u64) -> Result<Cluster> {
        let end = Instant::now() + PATIENCE;
        let cluster = loop {
            if let Ok(cluster) = Cluster::connect(Some(kubeconfig), None).await
                && cluster.get("/apis/kubevirt.io/v1/virtualmachines").await.is_ok()
            {
                break cluster;
            }
            if Instant::now() > end {
                let wrong = format!("it is not ready after {} s", PATIENCE.as_secs());
                return Err(Problem::new(
                    "starting the sandbox",
                    wrong,
                    "start `virt-steward sandbox` by hand",
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "web", "namespace": "default",
                "annotations": {"sandbox.vm-feature-manager.io/data": format!("{}Mi", mib / 3)}},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "resources": {"requests": {"storage": format!("{mib}Mi")}}}});
        let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"runStrategy": "Halted", "template": {"spec": {
                "domain": {"memory": {"guest": "1Gi"},
                    "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}},
                "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "web"}}]}}}});
        for (path, object) in [
            ("/api/v1/namespaces/default/persistentvolumeclaims", claim),
            ("/apis/kubevirt.io/v1/namespaces/default/virtualmachines", vm),
        ] {
            let reply = cluster.send(http::Method::POST, path, "application/json", &object).await?;
            reply.object("making the VM to export")?;
        }
        Ok(cluster)
    }

    /// Processor seconds of the server and of a client while it does something.
    fn cost_of(&self, client: impl FnOnce() -> Result<Cost>) -> Result<f64> {
        let before = process::usage(self.child.id())?.cpu;
        let client = client()?.cpu_seconds;
        let after = process::usage(self.child.id())?.cpu;
        Ok(client + after.saturating_sub(before).as_secs_f64())
    }

    /// A configuration of curl that may download the disk, and its URL.
    async fn download(&self, home: &Path) -> Result<(PathBuf, String)> {
        let setup = Setup {
            namespace: "default".into(),
            name: "bench".into(),
            subject: Subject::VirtualMachine("web".into()),
            ttl: Duration::from_hours(24),
            ready_within: PATIENCE,
            inside: false,
        };
        let export = VmExport::start(self.cluster.client(), setup).await?;
        let access = export.access("web").await?;
        let (authority, config) = (home.join("ca.pem"), home.join("curlrc"));
        std::fs::write(&authority, &access.ca)?;
        let mut text = format!("cacert = \"{}\"\n", authority.display());
        for (name, value) in &access.headers {
            let _ = writeln!(text, "header = \"{name}: {}\"", value.0);
        }
        std::fs::write(&config, text)?;
        Ok((config, access.url))
    }

    fn end(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
