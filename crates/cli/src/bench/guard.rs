//! `virt-steward bench guard`: how long a verdict about an attachment pod takes over HTTPS, live reads and the record
//! included, in a cluster with many VMs.
//!
//! ```text
//! this process: Sandbox with VMs, launchers, attachment pods ◄── reads, records ── child: virt-steward operator
//!               one review after the other ──────── HTTPS ────────────────────────►
//! ```

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::child;
use super::histogram::Histogram;
use crate::cli::FAILED;
use crate::cluster::Cluster;
use crate::output::print;

/// VMs in a namespace, and on a node.
const TOGETHER: u32 = 50;

/// Reviews before it is measured.
const WARM_UP: u64 = 50;

const CONFIG: &str = "hotplug: {guard: true, gate: true}\n";

/// Arguments of `bench guard`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward bench guard
  virt-steward bench guard --vms 200 --requests 500 -o json

Half of the deletes are of a pod that another one covers (allowed, with a write of the record), half of one that
is the guest's only one (denied). The API server is the sandbox's, in the same process as the load.

Exit status: 0 every verdict was as expected, 1 one was not.")]
pub struct Args {
    /// Virtual machines in the cluster, 50 in a namespace and on a node
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vms: u32,

    /// Reviews to send
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,

    /// Output: text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Makes the cluster, asks, prints.
pub async fn run(args: Args) -> Result<ExitCode> {
    let operator = child::Operator::start_with(CONFIG).await?;
    let result = measure(&args, &operator).await;
    operator.end().await;
    let (latencies, wrong, verdicts) = result?;
    let micros = |permyriad: u64| latencies.quantile(permyriad).as_secs_f64() * 1e6;
    let report = json!({
        "vms": args.vms, "verdicts": verdicts, "wrong": wrong,
        "latencyMicroseconds": {"p50": micros(5000), "p90": micros(9000), "p99": micros(9900),
            "max": latencies.max().as_secs_f64() * 1e6},
    });
    if args.output == "json" {
        print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        print(&format!(
            "{verdicts} verdicts of the guard over HTTPS, {} VMs, {wrong} wrong\np50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms\n",
            args.vms,
            micros(5000) / 1e3,
            micros(9000) / 1e3,
            micros(9900) / 1e3,
            latencies.max().as_secs_f64() * 1e3,
        ))?;
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A VM of the cluster: its covered pod, and its only one of another VM.
struct Machine {
    namespace: String,
    covered: Value,
    only: Value,
}

async fn measure(args: &Args, operator: &child::Operator) -> Result<(Histogram, u64, u64)> {
    let machines = populate(&operator.cluster, args.vms).await?;
    let target = operator.target.clone().with_path("/guard");
    let mut connection = target.connect().await.map_err(anyhow::Error::msg)?;
    let (mut latencies, mut wrong, mut drawn) = (Histogram::default(), 0, 1_u64);
    for number in 0..args.requests + WARM_UP {
        // Knuth's multiplier: any order will do, as long as it is not theirs.
        drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from(drawn >> 33).unwrap_or_default() % machines.len();
        let machine = &machines[index];
        let covered = number % 2 == 0;
        let pod = if covered { &machine.covered } else { &machine.only };
        let body = review(number, &machine.namespace, pod);
        let begun = Instant::now();
        let answer = connection.post(body).await.map_err(anyhow::Error::msg)?;
        if number >= WARM_UP {
            latencies.record(begun.elapsed());
        }
        let answer: Value = serde_json::from_slice(&answer)?;
        wrong += u64::from(answer["response"]["allowed"] != covered);
    }
    Ok((latencies, wrong, args.requests))
}

fn review(number: u64, namespace: &str, pod: &Value) -> String {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": format!("00000000-0000-4000-8000-{number:012x}"), "operation": "DELETE", "namespace": namespace,
        "name": pod["metadata"]["name"], "resource": {"group": "", "version": "v1", "resource": "pods"},
        "kind": {"group": "", "version": "v1", "kind": "Pod"}, "oldObject": pod, "object": null, "dryRun": false,
        "userInfo": {"username": "system:serviceaccount:kubevirt:kubevirt-controller"},
        "options": {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 0}}})
    .to_string()
}

/// VMs in pairs of a namespace: of each pair one is in a handoff, its old pod covered by a new one, and one is at rest.
async fn populate(cluster: &Cluster, vms: u32) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    for group in 0..vms.div_ceil(TOGETHER) {
        let (namespace, node) = (format!("bench-{group}"), format!("bench-node-{group}"));
        create(cluster, "/api/v1/namespaces", &named("v1", "Namespace", &namespace, &json!({}))).await?;
        // Pods need it, and its controller may be a moment behind.
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = named("v1", "ServiceAccount", "default", &json!({}));
        let reply = cluster.send(Method::POST, &accounts, "application/json", &account).await?;
        if reply.status != StatusCode::CONFLICT {
            reply.object("making the cluster to measure in")?;
        }
        create(cluster, "/api/v1/nodes", &named("v1", "Node", &node, &json!({}))).await?;
        // On a node that does not report, nothing is denied.
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        patch(cluster, &format!("/api/v1/nodes/{node}/status"), &ready).await?;
        for number in 0..TOGETHER.min(vms - group * TOGETHER) {
            let resting = machine(cluster, &namespace, &node, &format!("rest-{number}"), &["a"]).await?;
            let moving = machine(cluster, &namespace, &node, &format!("move-{number}"), &["a", "b"]).await?;
            machines.push(Machine {
                namespace: namespace.clone(),
                covered: moving.first().cloned().unwrap_or_default(),
                only: resting.first().cloned().unwrap_or_default(),
            });
        }
    }
    Ok(machines)
}

fn named(version: &str, kind: &str, name: &str, rest: &Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
    if let (Some(object), Some(rest)) = (object.as_object_mut(), rest.as_object()) {
        object.extend(rest.clone());
    }
    object
}

async fn create(cluster: &Cluster, collection: &str, object: &Value) -> Result<Value> {
    let reply = cluster.send(Method::POST, collection, "application/json", object).await?;
    reply.object("making the cluster to measure in")
}

/// A VMI with volume `a` in its guest, its launcher, and an attachment pod for each of `pods`, each with `a`.
async fn machine(
    cluster: &Cluster,
    namespace: &str,
    node: &str,
    name: &str,
    pods: &[&str],
) -> Result<Vec<Value>> {
    let volume = json!({"name": "a", "persistentVolumeClaim": {"claimName": format!("{name}-a"), "hotpluggable": true}});
    let vmis = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances");
    let spec = json!({"spec": {"domain": {"devices": {}}, "volumes": [volume]}});
    let vmi = create(cluster, &vmis, &named("kubevirt.io/v1", "VirtualMachineInstance", name, &spec)).await?;
    let collection = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = |name: &str, kind: &str, owner: Value, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name,
            "labels": {"kubevirt.io": kind, "kubevirt.io/created-by": vmi["metadata"]["uid"]},
            "ownerReferences": [owner]}, "spec": spec})
    };
    let owner = |object: &Value, version: &str, kind: &str| {
        json!({"apiVersion": version, "kind": kind, "name": object["metadata"]["name"],
            "uid": object["metadata"]["uid"], "controller": true})
    };
    let container = json!({"nodeName": node, "containers": [{"name": "compute", "image": "x"}]});
    let of_vmi = owner(&vmi, "kubevirt.io/v1", "VirtualMachineInstance");
    let launcher = create(
        cluster,
        &collection,
        &pod(&format!("virt-launcher-{name}-x7k2p"), "virt-launcher", of_vmi, container),
    )
    .await?;
    run_pod(cluster, &collection, &launcher, "compute").await?;
    let mut made = Vec::new();
    for suffix in pods {
        let spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": format!("{name}-a")}}],
            "containers": [{"name": "hotplug-disk", "image": "x", "volumeDevices": [{"name": "a", "devicePath": "/path/a"}]}]});
        let object =
            pod(&format!("hp-volume-{name}-{suffix}"), "hotplug-disk", owner(&launcher, "v1", "Pod"), spec);
        let object = create(cluster, &collection, &object).await?;
        made.push(run_pod(cluster, &collection, &object, "hotplug-disk").await?);
    }
    let uid = made.first().map(|pod| pod["metadata"]["uid"].clone()).unwrap_or_default();
    let status = json!({"status": {"phase": "Running", "nodeName": node, "volumeStatus": [
        {"name": "a", "phase": "Ready", "target": "sda", "hotplugVolume": {"attachPodUID": uid}}]}});
    patch(cluster, &format!("{vmis}/{name}"), &status).await?;
    Ok(made)
}

async fn run_pod(cluster: &Cluster, collection: &str, pod: &Value, container: &str) -> Result<Value> {
    let status = json!({"status": {"phase": "Running", "containerStatuses": [
        {"name": container, "ready": true, "restartCount": 0, "image": "x", "imageID": "x"}]}});
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    patch(cluster, &format!("{collection}/{name}/status"), &status).await
}

async fn patch(cluster: &Cluster, path: &str, body: &Value) -> Result<Value> {
    let reply = cluster.send(Method::PATCH, path, "application/merge-patch+json", body).await?;
    reply.object("making the cluster to measure in")
}
