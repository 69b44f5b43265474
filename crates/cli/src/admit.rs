//! `virt-steward admit`: the features code, offline.
//!
//! ```text
//! files ─► Inventory ─► for each VM: needs ─► lookups ─► admit ─► Admission ─► report
//! ```

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use features::{ClusterFacts, Config, Lookup, Lookups, Request, Verdict};
use serde_json::Value;

use crate::cli::DENIED;
use crate::cluster::Cluster;
use crate::documents;
use crate::inventory::{Inventory, name};
use crate::problem::Problem;

/// Arguments of `admit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward admit -f vm.yaml --facts cluster.yaml
  virt-steward admit -f vm.yaml --live
  virt-steward admit -f new.yaml --old stored.yaml --facts cluster.yaml -o patch
  kustomize build . | virt-steward admit -f - --facts cluster.yaml -o yaml > admitted.yaml

Facts are Kubernetes objects (Node, KubeVirt, NodeInventory, Plugin, PCIDevice, PCIDeviceClaim), for example from
  kubectl get nodes,kubevirts -A -o yaml > cluster.yaml
or a mapping with `nodes`, `kubevirt`, `pciDevices`, `hosts` and `plugins`. ConfigMaps and Secrets in any of the
files answer what a VM asks for by name.

Exit status: 0 every VM is allowed, 1 usage or IO error, 2 at least one VM is denied.")]
pub struct Args {
    /// File with VirtualMachine objects, `-` for standard input; may be given several times
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    /// File with facts about the cluster; may be given several times
    #[arg(long, value_name = "FILE")]
    facts: Vec<PathBuf>,

    /// File with the stored VirtualMachine objects, to decide updates instead of creations
    #[arg(long, value_name = "FILE")]
    old: Option<PathBuf>,

    /// Configuration file, as the operator reads it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,

    /// Read facts, and ConfigMaps and Secrets that are in no file, from the current cluster
    #[arg(long)]
    live: bool,

    /// Kubeconfig file for `--live`
    #[arg(long, value_name = "FILE", requires = "live")]
    kubeconfig: Option<PathBuf>,

    /// Kubeconfig context for `--live`
    #[arg(long, value_name = "NAME", requires = "live")]
    context: Option<String>,

    /// What to print
    #[arg(short, long, value_enum, default_value = "diff")]
    output: Output,
}

/// What `admit` prints.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// The verdict, warnings and a unified diff of each VM
    Diff,
    /// The RFC 6902 patch of each VM, one line per VM
    Patch,
    /// All objects as they would be stored; verdicts on standard error
    Yaml,
    /// Verdict, warnings, outcomes and patch of each VM
    Json,
}

/// One VM, decided.
struct Admission {
    namespace: String,
    /// The VM as it was given.
    before: Value,
    /// The VM with the patch applied; as given when it is denied.
    after: Value,
    verdict: Verdict,
}

impl Admission {
    /// For example `default/vm1`.
    fn key(&self) -> String {
        format!("{}/{}", self.namespace, name(&self.before))
    }
}

/// Reads, decides, prints.
pub async fn run(args: Args) -> Result<ExitCode> {
    let config = match &args.config {
        Some(path) => read_config(path)?,
        None => Config::default(),
    };
    let mut inventory = Inventory::default();
    let mut others = Vec::new();
    for path in &args.filename {
        for object in documents::read(path)? {
            if args.output == Output::Yaml && object["kind"] != "VirtualMachine" {
                others.push(object.clone());
            }
            inventory.add(object, &args.namespace, &path.display().to_string())?;
        }
    }
    let machines = std::mem::take(&mut inventory.machines);
    if machines.is_empty() {
        return Err(Problem::new(
            "looking for VirtualMachines in the files",
            "there is none of apiVersion `kubevirt.io/…`",
            "give a file with a VirtualMachine with `-f`",
        )
        .into());
    }
    for path in &args.facts {
        for object in documents::read(path)? {
            inventory.add(object, &args.namespace, &path.display().to_string())?;
        }
        inventory.machines.clear();
    }
    let stored = match &args.old {
        Some(path) => documents::read(path)?,
        None => Vec::new(),
    };
    let cluster = if args.live {
        let cluster = Cluster::connect(args.kubeconfig.as_deref(), args.context.clone()).await?;
        cluster.read_facts(&mut inventory).await?;
        Some(cluster)
    } else {
        None
    };
    let facts = inventory.cluster_facts();
    let mut admissions = Vec::with_capacity(machines.len());
    for machine in machines {
        let namespace = namespace_of(&machine, &args.namespace).to_owned();
        let old = stored.iter().find(|stored| {
            stored["kind"] == "VirtualMachine"
                && name(stored) == name(&machine)
                && namespace_of(stored, &args.namespace) == namespace
        });
        let request = Request { namespace: &namespace, object: &machine, old_object: old };
        let lookups = look_up(&request, &config, &inventory, cluster.as_ref()).await;
        admissions.push(decide(request, &facts, &lookups, &config)?);
    }
    report::print(args.output, &others, &admissions)?;
    let denied = admissions.iter().any(|admission| admission.verdict.denial.is_some());
    Ok(if denied { ExitCode::from(DENIED) } else { ExitCode::SUCCESS })
}

fn namespace_of<'a>(object: &'a Value, default: &'a str) -> &'a str {
    object["metadata"]["namespace"].as_str().unwrap_or(default)
}

/// Reads what the VM asks for, and what that asks for in turn.
async fn look_up(
    request: &Request<'_>,
    config: &Config,
    inventory: &Inventory,
    cluster: Option<&Cluster>,
) -> Lookups {
    let mut lookups = Lookups::new();
    loop {
        let mut needs = features::needs(request, config, &lookups);
        needs.retain(|need| !lookups.contains_key(need));
        if needs.is_empty() {
            return lookups;
        }
        for need in needs {
            let answer = match (inventory.lookup(request.namespace, &need), cluster) {
                (Some(found), _) => found,
                (None, Some(cluster)) => cluster.lookup(request.namespace, &need).await,
                (None, None) => Lookup::Failed(
                    "it is in none of the given files: add it with `-f` or `--facts`, or use `--live`".into(),
                ),
            };
            lookups.insert(need, answer);
        }
    }
}

fn decide(
    request: Request<'_>,
    facts: &ClusterFacts,
    lookups: &Lookups,
    config: &Config,
) -> Result<Admission> {
    let verdict = features::admit(&request, facts, lookups, config);
    let mut after = request.object.clone();
    if verdict.denial.is_none() {
        json_patch::patch(&mut after, &verdict.patch).map_err(|error| {
            Problem::new(
                format!("patching VirtualMachine `{}/{}`", request.namespace, name(request.object)),
                error,
                "check that the object is a valid VirtualMachine; if it is, report this as a defect",
            )
        })?;
    }
    Ok(Admission { namespace: request.namespace.to_owned(), before: request.object.clone(), after, verdict })
}

/// Takes the `features` section of the operator's configuration file. The environment of the
/// operator does not count here: a pipeline decides by what it was given.
fn read_config(path: &Path) -> Result<Config> {
    let config = operator::Config::load(&operator::OperatorArgs::default(), &|_| None, Some(path));
    config.map(|config| config.features).map_err(|error| {
        let doing = "reading the configuration for `--config`";
        Problem::new(doing, error, "see `virt-steward operator --print-config` for the keys").into()
    })
}
