//! `virt-steward bench volumes`: from the request until every volume is in the guest, in one change and one after the other,
//! on a simulated cluster in which an attachment pod takes a second to start, as it was recorded.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ::sandbox::sim::hotplug::Timing;
use ::sandbox::sim::{Release, SimConfig, Simulation, connect};
use ::sandbox::{Options, Sandbox};
use ::volumes::{Change, Machine, Pace};
use anyhow::{Context, Result};
use hotplug::plan::Addition;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::output::print;
use crate::table;

/// How long the VM may take to start.
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `bench volumes`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward bench volumes
  virt-steward bench volumes --count 1 --count 4 -o json")]
pub struct Args {
    /// How many volumes are attached; several times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64), default_values_t = [1, 3, 8, 16])]
    count: Vec<u8>,

    /// Output: table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

/// Measures, prints.
pub async fn run(args: Args) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("making a temporary directory")?;
    let kubeconfig = folder.path().join("kubeconfig");
    let options =
        Options { kubeconfig_out: Some(kubeconfig.clone()), release: Release::Main, ..Options::default() };
    let sandbox = Sandbox::start(options).await.context("starting the sandbox")?;
    let timing =
        Timing { start_after: Duration::from_secs(1), plug: Duration::from_millis(600), ..Timing::default() };
    let config = SimConfig { nodes: 1, release: Release::Main, timing, ..SimConfig::default() };
    let simulation = Simulation::start(connect(&sandbox.kubeconfig()).await?, config).await?;
    let cluster = Cluster::connect(Some(&kubeconfig), None).await?;
    let most = args.count.iter().copied().max().unwrap_or(1);
    prepare(&cluster, most).await?;
    let machine = Machine::new(cluster.client(), "default", "bench");
    let pace = Pace { interval: Duration::from_millis(50), ..Pace::default() };
    let mut rows = vec![["VOLUMES", "IN-ONE-CHANGE", "ONE-AFTER-THE-OTHER"].map(str::to_owned).to_vec()];
    let mut list = Vec::new();
    for count in &args.count {
        let names: Vec<String> = (0..*count).map(|number| format!("data-{number}")).collect();
        let mut taken = Vec::new();
        for batch in [names.len(), 1] {
            let begun = Instant::now();
            for names in names.chunks(batch) {
                let add = names.iter().map(|name| Addition::claim(name)).collect();
                machine.change(Change { add, ..Change::default() }, &pace, &mut |_| {}).await?;
            }
            taken.push(begun.elapsed().as_secs_f64());
            let remove = Change { remove: names.clone(), ..Change::default() };
            machine.change(remove, &pace, &mut |_| {}).await?;
        }
        rows.push(vec![count.to_string(), format!("{:.1} s", taken[0]), format!("{:.1} s", taken[1])]);
        list.push(
            json!({"volumes": count, "inOneChangeSeconds": taken[0], "oneAfterTheOtherSeconds": taken[1]}),
        );
    }
    if args.output == "json" {
        print(&format!("{}\n", serde_json::to_string_pretty(&list)?))?;
    } else {
        print(&table::render(&rows))?;
    }
    drop(simulation);
    sandbox.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// A running VM `bench`, and claims.
async fn prepare(cluster: &Cluster, claims: u8) -> Result<()> {
    const JSON: &str = "application/json";
    for number in 0..claims {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("data-{number}")},
            "spec": {"storageClassName": "force-teardown", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}}});
        let path = "/api/v1/namespaces/default/persistentvolumeclaims";
        cluster.send(Method::POST, path, JSON, &claim).await?.object("creating a claim")?;
    }
    let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "bench"},
        "spec": {"runStrategy": "Always", "template": {"spec": {
            "domain": {"memory": {"guest": "256Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}},
            "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}}});
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
    cluster.send(Method::POST, path, JSON, &vm).await?.object("creating a VM")?;
    let begun = Instant::now();
    while cluster.get(&format!("{path}/bench")).await?["status"]["ready"] != true {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the VM did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bound = |claim: &Value| claim["status"]["phase"] == "Bound";
    for number in 0..claims {
        let path = format!("/api/v1/namespaces/default/persistentvolumeclaims/data-{number}");
        while !bound(&cluster.get(&path).await?) {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "a claim was not bound");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
