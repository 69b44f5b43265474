//! The examples, applied: what each VM becomes, and that it runs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::cluster::{Cluster, Reply};
use crate::output::print;
use crate::style::{Style, Tone};
use crate::{diff, documents, inventory, table};

/// How long the simulation may take to start all VMs.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often it is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(200);

const JSON: &str = "application/json";
const NAMESPACE: &str = "/apis/kubevirt.io/v1/namespaces/default";

/// What the cluster needs for the examples.
const CLUSTER: &str = include_str!("../../../../examples/cluster/kubevirt.yaml");

/// The configuration of the operator for the examples.
pub const CONFIG: &str = include_str!("../../../../examples/config/operator.yaml");

/// The examples, in the order in which they are shown.
const EXAMPLES: [(&str, &str); 21] = [
    ("vms/nested-virt.yaml", include_str!("../../../../examples/vms/nested-virt.yaml")),
    ("vms/pci-passthrough.yaml", include_str!("../../../../examples/vms/pci-passthrough.yaml")),
    ("vms/vfio-passthrough.yaml", include_str!("../../../../examples/vms/vfio-passthrough.yaml")),
    ("vms/usb-passthrough.yaml", include_str!("../../../../examples/vms/usb-passthrough.yaml")),
    ("vms/gpu-device-plugin.yaml", include_str!("../../../../examples/vms/gpu-device-plugin.yaml")),
    ("vms/vgpu.yaml", include_str!("../../../../examples/vms/vgpu.yaml")),
    ("vms/dra-claims.yaml", include_str!("../../../../examples/vms/dra-claims.yaml")),
    ("vms/sriov.yaml", include_str!("../../../../examples/vms/sriov.yaml")),
    ("vms/cpu-pinning.yaml", include_str!("../../../../examples/vms/cpu-pinning.yaml")),
    ("vms/hugepages.yaml", include_str!("../../../../examples/vms/hugepages.yaml")),
    ("vms/numa.yaml", include_str!("../../../../examples/vms/numa.yaml")),
    ("vms/realtime.yaml", include_str!("../../../../examples/vms/realtime.yaml")),
    ("vms/vbios.yaml", include_str!("../../../../examples/vms/vbios.yaml")),
    ("vms/igd-opregion.yaml", include_str!("../../../../examples/vms/igd-opregion.yaml")),
    ("vms/kvm-hidden.yaml", include_str!("../../../../examples/vms/kvm-hidden.yaml")),
    ("vms/qemu-arguments.yaml", include_str!("../../../../examples/vms/qemu-arguments.yaml")),
    ("vms/igpu-workstation.yaml", include_str!("../../../../examples/vms/igpu-workstation.yaml")),
    ("vms/gpu-cluster-node.yaml", include_str!("../../../../examples/vms/gpu-cluster-node.yaml")),
    ("vms/cloud-init.yaml", include_str!("../../../../examples/vms/cloud-init.yaml")),
    ("vms/labels.yaml", include_str!("../../../../examples/vms/labels.yaml")),
    ("denied/unknown-device.yaml", include_str!("../../../../examples/denied/unknown-device.yaml")),
];

/// Sets the cluster up as the examples need it: gates and permitted devices of KubeVirt.
pub async fn prepare(cluster: &Cluster) -> Result<()> {
    for object in documents::parse(CLUSTER, "cluster/kubevirt.yaml")? {
        let name = inventory::name(&object);
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("kubevirt");
        let collection = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/kubevirts");
        let path = format!("{collection}/{name}");
        let reply = cluster.send(Method::PATCH, &path, "application/merge-patch+json", &object).await?;
        if reply.status == StatusCode::NOT_FOUND {
            cluster.send(Method::POST, &collection, JSON, &object).await?.object("creating KubeVirt")?;
        } else {
            reply.object("setting up KubeVirt")?;
        }
    }
    Ok(())
}

/// Applies every example and shows what became of it; returns whether all went as it should.
pub async fn run(cluster: &Cluster, operator: bool, style: Style) -> Result<bool> {
    let mut as_expected = true;
    let mut started = Vec::new();
    for (file, text) in EXAMPLES {
        print(&format!("\n{}\n", style.paint(Tone::Strong, &format!("examples/{file}"))))?;
        for object in documents::parse(text, file)? {
            let kind = object["kind"].as_str().unwrap_or_default();
            let reply = cluster.send(Method::POST, collection(kind)?, JSON, &object).await?;
            if kind != "VirtualMachine" {
                reply.object(&format!("creating a {kind}"))?;
                continue;
            }
            let allowed = reply.status.is_success();
            // without the operator nothing denies
            as_expected &= allowed != (operator && file.starts_with("denied/"));
            if allowed {
                started.push(inventory::name(&object).to_owned());
            }
            print(&account(&object, reply, style)?)?;
        }
    }
    print(&format!("\n{}\n", style.paint(Tone::Strong, "The simulation starts them")))?;
    let (rows, all_run) = watch(cluster, &started).await?;
    print(&table::render(&rows))?;
    Ok(as_expected && all_run)
}

/// Where objects of the examples are created.
fn collection(kind: &str) -> Result<&'static str> {
    Ok(match kind {
        "VirtualMachine" => "/apis/kubevirt.io/v1/namespaces/default/virtualmachines",
        "ConfigMap" => "/api/v1/namespaces/default/configmaps",
        "NetworkAttachmentDefinition" => {
            "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions"
        }
        "ResourceClaimTemplate" => "/apis/resource.k8s.io/v1/namespaces/default/resourceclaimtemplates",
        other => anyhow::bail!("the examples hold a {other}, which the demo does not know"),
    })
}

/// What a VM was, what it is stored as, and what was said about it.
fn account(written: &Value, reply: Reply, style: Style) -> Result<String> {
    let name = inventory::name(written);
    let Reply { status, body, warnings } = reply;
    if !status.is_success() {
        let word = style.paint(Tone::Bad, "denied");
        let message = body["message"].as_str().unwrap_or_default();
        return Ok(format!("VirtualMachine {name}: {word}\n  {message}\n"));
    }
    let before = diff::yaml(&comparable(written.clone()))?;
    let after = diff::yaml(&comparable(body))?;
    let word = if before == after { "allowed, unchanged" } else { "allowed, changed" };
    let mut text = format!("VirtualMachine {name}: {}\n", style.paint(Tone::Good, word));
    for warning in warnings {
        writeln!(text, "  {} {warning}", style.paint(Tone::Caution, "warning:"))?;
    }
    text.push_str(&diff::unified(("as written", "as stored"), &before, &after, style));
    Ok(text)
}

/// Without what every API server adds to every object.
fn comparable(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in ["uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "namespace"]
        {
            metadata.remove(key);
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}

/// Waits until all VMs run, or patience ends; one row for each, and whether all run.
async fn watch(cluster: &Cluster, names: &[String]) -> Result<(Vec<Vec<String>>, bool)> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut rows = vec![vec!["NAME".to_owned(), "STATUS".to_owned(), "NODE".to_owned()]];
        let mut all_run = true;
        for name in names {
            let machine = cluster.get(&format!("{NAMESPACE}/virtualmachines/{name}")).await?;
            let status = machine["status"]["printableStatus"].as_str().unwrap_or("unknown").to_owned();
            all_run &= status == "Running";
            let instance = cluster.get(&format!("{NAMESPACE}/virtualmachineinstances/{name}")).await;
            let instance = instance.unwrap_or_default();
            let node = instance["status"]["nodeName"].as_str().unwrap_or_default().to_owned();
            rows.push(vec![name.clone(), status, node]);
        }
        if all_run || Instant::now() > end {
            return Ok((rows, all_run));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_shown() {
        let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let mut found = Vec::new();
        for folder in ["vms", "denied"] {
            for entry in std::fs::read_dir(examples.join(folder)).unwrap() {
                found.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        let mut shown: Vec<String> = EXAMPLES.iter().map(|(file, _)| (*file).to_owned()).collect();
        found.sort();
        shown.sort();
        assert_eq!(shown, found);
    }
}
