//! One side: a cluster with VMs, a change of all of them, and a look until nothing moves any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use ::resize::ledger::{LEDGER, POLICY};
use ::resize::{Size, view};
use anyhow::{Context as _, Result};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Args, Tally, audit};
use crate::cluster::Cluster;
use crate::problem::Problem;

const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const MIGRATIONS: &str = "/apis/kubevirt.io/v1/virtualmachineinstancemigrations";
const KUBEVIRT: &str = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
const MERGE: &str = "application/merge-patch+json";
/// VMs that are made or changed at once.
const AT_ONCE: usize = 16;
/// How often all VMs are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A VM that only waits for its owner is taken for that after so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// What every VM is changed to.
const WANTED: Size = Size { sockets: 4, guest: 2 << 30 };

/// Who changes the VMs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Side {
    /// KubeVirt alone.
    Stock,
    /// The operator, with an agent on each node.
    InPlace,
}

impl Side {
    /// In JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::InPlace => "inPlace",
        }
    }

    /// For people who wait.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Stock => "KubeVirt alone:",
            Self::InPlace => "in place:",
        }
    }
}

/// Runs one side from start to end.
pub async fn run(side: Side, args: &Args) -> Result<Tally> {
    let directory = tempfile::tempdir()?;
    let (kubeconfig, log) = (directory.path().join("kubeconfig"), directory.path().join("audit.jsonl"));
    let root = directory.path().join("kubelet");
    let options = ::sandbox::Options {
        kubeconfig_out: Some(kubeconfig.clone()),
        seed: args.seed,
        nodes: args.nodes as usize,
        audit_log: Some(log.clone()),
        kubelet_root: Some(root.clone()),
        ..::sandbox::Options::default()
    };
    let sandbox = ::sandbox::Sandbox::start(options)
        .await
        .map_err(|error| Problem::new("starting a sandbox", error, "see `virt-steward sandbox --help`"))?;
    let stop = CancellationToken::new();
    let _ends_with_us = stop.clone().drop_guard();
    let cluster = Cluster::connect(Some(&kubeconfig), None).await?;
    let methods =
        json!({"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate", "Evict"]}}});
    cluster.send(Method::PATCH, KUBEVIRT, MERGE, &methods).await?.object("configuring KubeVirt")?;
    let operator = match side {
        Side::Stock => None,
        Side::InPlace => Some(steward(&kubeconfig, &root, &stop).await?),
    };
    let tally = compare(side, args, &cluster, &log).await;
    if let Some(operator) = operator {
        operator.end().await?;
    }
    stop.cancel();
    sandbox.shutdown().await;
    tally
}

async fn steward(kubeconfig: &Path, root: &Path, stop: &CancellationToken) -> Result<super::super::Running> {
    super::super::agents::start(kubeconfig, &root.join("pods"), stop).await?;
    let configure = |config: &mut ::operator::Config| {
        config.resize.enabled = true;
        config.resize.in_place = true;
        config.resize.declare_memory = true;
    };
    let started = super::super::start_operator(kubeconfig, configure, stop).await?;
    started.context("starting the operator: stopped before it was up")
}

async fn compare(side: Side, args: &Args, cluster: &Cluster, log: &Path) -> Result<Tally> {
    let names: BTreeMap<String, bool> = (1..=args.vms)
        .map(|number| (format!("vm-{number}"), true))
        .chain((1..=args.stuck).map(|number| (format!("stuck-{number}"), false)))
        .collect();
    stream::iter(&names)
        .map(|(name, migratable)| async move {
            let vm = machine(name, *migratable);
            cluster.send(Method::POST, VMS, "application/json", &vm).await?.object("making a VM")
        })
        .buffer_unordered(AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let uids = running(side, args, cluster, names.len()).await?;
    eprintln!("  {} VMs run", names.len());
    let (since, begun) = (Timestamp::now(), Instant::now());
    let domain = json!({"cpu": {"sockets": WANTED.sockets}, "memory": {"guest": "2Gi"}});
    let change = json!({"spec": {"template": {"spec": {"domain": domain}}}});
    let mut started = BTreeMap::new();
    for name in names.keys() {
        started.insert(name.clone(), begun.elapsed());
        cluster
            .send(Method::PATCH, &format!("{VMS}/{name}"), MERGE, &change)
            .await?
            .object("changing a VM")?;
    }
    let took = settled(args, cluster, &names, &started, begun).await?;
    let writes = audit::writes(log, since)?;
    tally(cluster, &names, &uids, took, writes).await
}

fn machine(name: &str, migratable: bool) -> Value {
    let interface = if migratable { "masquerade" } else { "bridge" };
    let mut network = json!({"name": "default"});
    network[interface] = json!({});
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "domain": {"cpu": {"sockets": 2, "cores": 1, "threads": 1}, "memory": {"guest": "1Gi"},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}], "interfaces": [network]}},
            "networks": [{"name": "default", "pod": {}}], "terminationGracePeriodSeconds": 5,
            "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}}]}}}})
}

async fn items(cluster: &Cluster, path: &str) -> Result<Vec<Value>> {
    Ok(cluster.list(path).await?.unwrap_or_default())
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn condition(object: &Value, kind: &str) -> Option<bool> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|one| one["type"] == kind).map(|one| one["status"] == "True")
}

fn late(what: &str, timeout: Duration) -> anyhow::Error {
    let wrong = format!("not done after {} s", timeout.as_secs());
    Problem::new(what, wrong, "give --timeout, or fewer VMs").into()
}

/// Waits until every VM runs, and gives their VMIs' uids.
async fn running(
    side: Side,
    args: &Args,
    cluster: &Cluster,
    count: usize,
) -> Result<BTreeMap<String, String>> {
    let begun = Instant::now();
    loop {
        let vmis = items(cluster, VMIS).await?;
        let ready = |vmi: &&Value| {
            let stamped = vmi["metadata"]["annotations"].get(POLICY).is_some();
            vmi["status"]["phase"] == "Running"
                && condition(vmi, "LiveMigratable").is_some()
                && stamped == (side == Side::InPlace)
        };
        if vmis.iter().filter(ready).count() == count {
            let uid = |vmi: &Value| vmi["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            return Ok(vmis.iter().map(|vmi| (name(vmi).to_owned(), uid(vmi))).collect());
        }
        if begun.elapsed() > args.timeout {
            return Err(late("waiting for the VMs to run", args.timeout));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The VMI has the size in spec and status, and nothing is left of the way.
fn has_size(vmi: &Value) -> bool {
    let seen = view::vmi(vmi);
    seen.size == WANTED
        && seen.status == WANTED
        && !seen.stock_at_work
        && vmi["status"]["phase"] == "Running"
        && vmi["metadata"]["annotations"].get(LEDGER).is_none()
        && condition(vmi, "HotMemoryChange").is_none()
}

/// Waits until every VM has the new size, or waits for its owner. How long each took that has it.
async fn settled(
    args: &Args,
    cluster: &Cluster,
    names: &BTreeMap<String, bool>,
    started: &BTreeMap<String, Duration>,
    begun: Instant,
) -> Result<Vec<f64>> {
    let mut done: BTreeMap<String, f64> = BTreeMap::new();
    loop {
        for vmi in items(cluster, VMIS).await?.iter().filter(|vmi| has_size(vmi)) {
            let from = started.get(name(vmi)).copied().unwrap_or_default();
            let took = begun.elapsed().saturating_sub(from).as_secs_f64();
            done.entry(name(vmi).to_owned()).or_insert(took);
        }
        let mut open: BTreeSet<&str> =
            names.keys().map(String::as_str).filter(|name| !done.contains_key(*name)).collect();
        if !open.is_empty() && begun.elapsed() > PATIENCE {
            for vm in items(cluster, VMS).await? {
                if condition(&vm, "RestartRequired") == Some(true) {
                    open.remove(name(&vm));
                }
            }
        }
        if open.is_empty() {
            eprintln!("  settled after {:.1} s", begun.elapsed().as_secs_f64());
            return Ok(done.into_values().collect());
        }
        if begun.elapsed() > args.timeout {
            return Err(late("waiting for the VMs to be resized", args.timeout));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn tally(
    cluster: &Cluster,
    names: &BTreeMap<String, bool>,
    uids: &BTreeMap<String, String>,
    mut took: Vec<f64>,
    writes: audit::Writes,
) -> Result<Tally> {
    took.sort_by(f64::total_cmp);
    let mut tally = Tally {
        migrations: items(cluster, MIGRATIONS).await?.len(),
        writes: writes.objects,
        our_writes_in_flight_per_vm: writes.most_of_ours,
        events: writes.events,
        p50_seconds: took.get(took.len() / 2).copied().unwrap_or_default(),
        last_seconds: took.last().copied().unwrap_or_default(),
        ..Tally::default()
    };
    for vmi in items(cluster, VMIS).await? {
        let same = uids.get(name(&vmi)).map(String::as_str) == vmi["metadata"]["uid"].as_str();
        match names.get(name(&vmi)) {
            Some(true) => tally.resized += usize::from(has_size(&vmi)),
            Some(false) => {
                tally.stuck_resized += usize::from(has_size(&vmi));
                tally.restarted += usize::from(!same);
            }
            None => {}
        }
    }
    for vm in items(cluster, VMS).await? {
        let waits = condition(&vm, "RestartRequired") == Some(true);
        tally.waiting_for_restart += usize::from(waits);
    }
    #[allow(clippy::cast_precision_loss, reason = "counts of a few thousand")]
    {
        tally.writes_per_resize = tally.writes as f64 / names.len().max(1) as f64;
    }
    Ok(tally)
}
