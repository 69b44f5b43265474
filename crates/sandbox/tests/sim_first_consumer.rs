//! `DataVolumes` in classes that bind with the first pod: virt-controller makes a pod for nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, PODS, VMS, items, vm, vm_path, vmi_path};

const CDI: &str = "/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const TEMPORARY: &str = "kubevirt.io/ephemeral-provisioning";

fn data_volume(name: &str, class: &str) -> Value {
    json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": name},
        "spec": {"source": {"blank": {}}, "pvc": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "64Mi"}}}}})
}

async fn start() -> Cluster {
    let mut config = SimConfig { nodes: 3, ..SimConfig::default() };
    config.feature_gates.push("DeclarativeHotplugVolumes".into());
    Cluster::start(config).await
}

/// What was told about a VMI, by reason and message.
async fn told(cluster: &Cluster, message: &str) {
    let is = |list: Option<&Value>| {
        list.is_some_and(|list| {
            items(list).iter().any(|one| one["message"].as_str().unwrap_or_default().starts_with(message))
        })
    };
    cluster.wait(EVENTS, message, is).await;
}

async fn no_temporary_pod(cluster: &Cluster) {
    let none = |list: Option<&Value>| {
        list.is_some_and(|list| {
            items(list).iter().all(|pod| pod["metadata"]["annotations"].get(TEMPORARY).is_none())
        })
    };
    cluster.wait(PODS, "without temporary pods", none).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hotplugged_volume_gets_its_first_consumer_from_a_trigger_pod() {
    let cluster = start().await;
    cluster.call(Method::POST, VMS, vm("v", "Always")).await.unwrap();
    cluster.printable("v", "Running").await;
    cluster.call(Method::POST, CDI, data_volume("late", "first-consumer")).await.unwrap();
    let waits = |one: Option<&Value>| one.is_some_and(|one| one["status"]["phase"] == "WaitForFirstConsumer");
    cluster.wait(&format!("{CDI}/late"), "waiting", waits).await;
    let claim = cluster.get(&format!("{CLAIMS}/late")).await.unwrap();
    assert_eq!(claim["status"]["phase"], "Pending", "nobody has used it");

    let options = json!({"name": "late", "disk": {"disk": {"bus": "scsi"}},
        "volumeSource": {"dataVolume": {"name": "late"}}});
    let add = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/v/addvolume";
    assert_eq!(cluster.raw(Method::PUT, add, options).await.0, 202);
    told(&cluster, "Created hotplug trigger pod for volume late").await;
    told(&cluster, "Deleted WaitForFirstConsumer temporary pod hp-volume-").await;
    let ready = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            let all = vmi["status"]["volumeStatus"].as_array().unwrap();
            all.iter().any(|one| one["name"] == "late" && one["phase"] == "Ready" && one["target"] == "sda")
        })
    };
    cluster.wait(&vmi_path("v"), "with its disk", ready).await;
    let filled = cluster.get(&format!("{CDI}/late")).await.unwrap();
    assert_eq!(filled["status"]["phase"], "Succeeded");
    no_temporary_pod(&cluster).await;
    assert!(cluster.simulation.volumes().io_errors().is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_starts_when_a_pod_without_a_guest_has_got_its_volume_filled() {
    let cluster = start().await;
    let mut given = vm("v", "Always");
    given["spec"]["template"]["spec"]["volumes"][0] =
        json!({"name": "root", "dataVolume": {"name": "root-disk"}});
    let mut template = data_volume("root-disk", "local");
    template.as_object_mut().unwrap().retain(|key, _| key == "metadata" || key == "spec");
    given["spec"]["dataVolumeTemplates"] = json!([template]);
    cluster.call(Method::POST, VMS, given).await.unwrap();
    told(&cluster, "Deleted WaitForFirstConsumer temporary pod virt-launcher-v-").await;
    cluster.printable("v", "Running").await;
    let filled = cluster.get(&format!("{CDI}/root-disk")).await.unwrap();
    assert_eq!(filled["status"]["phase"], "Succeeded", "the guest found it filled");
    no_temporary_pod(&cluster).await;
    let vmi = cluster.get(&vmi_path("v")).await.unwrap();
    assert!(sim::condition(&vmi, "Provisioning").is_none(), "{vmi:#}");
    let phases: Vec<&str> = vmi["status"]["phaseTransitionTimestamps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["Pending", "Scheduling", "Scheduled", "Running"]);
    let ready = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["ready"] == true);
    cluster.wait(&vm_path("v"), "ready", ready).await;
    cluster.stop().await;
}
