//! Hotplugged volumes in a simulated cluster, without any help: what KubeVirt does, release by release, and what
//! becomes of guests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use std::time::Duration;

use http::Method;
use sandbox::sim::hotplug::{BROKEN, KEEPS, Timing};
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};
use sim::{Cluster, PODS, items, vm, vm_path, vmi_path};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

/// A release, with the gate that lets it hotplug at all.
fn config(release: Release) -> SimConfig {
    let mut config = SimConfig { nodes: 2, release, ..SimConfig::default() };
    let gate = if release < Release::V1_6 { "HotplugVolumes" } else { "DeclarativeHotplugVolumes" };
    config.feature_gates.push(gate.into());
    config
}

async fn claim(cluster: &Cluster, name: &str, class: &str, mode: &str) {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteMany"], "volumeMode": mode,
            "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.call(Method::POST, CLAIMS, claim).await.unwrap();
}

/// The VM with these volumes beside its root disk.
fn with_volumes(names: &[&str]) -> Value {
    let mut volumes = vec![json!({"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}})];
    let mut disks = vec![json!({"name": "root", "disk": {"bus": "virtio"}})];
    for name in names {
        volumes
            .push(json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": true}}));
        disks.push(json!({"name": name, "disk": {"bus": "scsi"}}));
    }
    json!({"spec": {"template": {"spec": {"volumes": volumes, "domain": {"devices": {"disks": disks}}}}}})
}

/// Declares the volumes of a VM; with the older gate by one call for each.
async fn want(cluster: &Cluster, name: &str, volumes: &[&str]) {
    let kubevirt = cluster.get("/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt").await.unwrap();
    if !kubevirt["spec"]["configuration"]["developerConfiguration"].to_string().contains("\"HotplugVolumes\"")
    {
        cluster.call(Method::PATCH, &vm_path(name), with_volumes(volumes)).await.unwrap();
        return;
    }
    let vm = cluster.get(&vm_path(name)).await.unwrap();
    let spec = vm.pointer("/spec/template/spec/volumes").and_then(Value::as_array).unwrap();
    let have: Vec<&str> =
        spec.iter().map(|one| one["name"].as_str().unwrap()).filter(|one| *one != "root").collect();
    let at = format!("/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/{name}");
    for removed in have.iter().filter(|one| !volumes.contains(one)) {
        let (code, answer) =
            cluster.raw(Method::PUT, &format!("{at}/removevolume"), json!({"name": removed})).await;
        assert_eq!(code, 202, "{answer}");
    }
    for added in volumes.iter().filter(|one| !have.contains(one)) {
        let options = json!({"name": added, "disk": {"disk": {"bus": "scsi"}},
            "volumeSource": {"persistentVolumeClaim": {"claimName": added}}});
        let (code, answer) = cluster.raw(Method::PUT, &format!("{at}/addvolume"), options).await;
        assert_eq!(code, 202, "{answer}");
    }
}

/// `name phase target`, without the root disk.
fn volumes(vmi: &Value) -> Vec<String> {
    let of = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let all = vmi["status"]["volumeStatus"].as_array().into_iter().flatten();
    all.filter(|one| one["name"] != "root")
        .map(|one| format!("{} {} {}", of(one, "name"), of(one, "phase"), of(one, "target")))
        .collect()
}

async fn settle(cluster: &Cluster, name: &str, expected: &[&str]) -> Value {
    let is = |vmi: Option<&Value>| vmi.is_some_and(|vmi| volumes(vmi) == expected);
    cluster.wait(&vmi_path(name), &expected.join(", "), is).await.unwrap()
}

async fn attachments(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.get(&format!("{PODS}?labelSelector=kubevirt.io%3Dhotplug-disk")).await.unwrap();
    items(&list).to_vec()
}

async fn wait_for_pods(cluster: &Cluster, count: usize) -> Vec<Value> {
    let path = format!("{PODS}?labelSelector=kubevirt.io%3Dhotplug-disk");
    let is = |list: Option<&Value>| list.is_some_and(|list| items(list).len() == count);
    items(&cluster.wait(&path, &format!("{count} attachment pods"), is).await.unwrap()).to_vec()
}

/// A running VM `v`, and claims of a class.
async fn start(config: SimConfig, class: &str, names: &[&str], mode: &str) -> Cluster {
    let cluster = Cluster::start(config).await;
    for name in names {
        claim(&cluster, name, class, mode).await;
    }
    cluster.call(Method::POST, sim::VMS, vm("v", "Always")).await.unwrap();
    cluster.printable("v", "Running").await;
    cluster
}

async fn paused_by_io_error(cluster: &Cluster) {
    let is = |vmi: Option<&Value>| {
        vmi.and_then(|vmi| sim::condition(vmi, "Paused")).is_some_and(|one| one["reason"] == "PausedIOError")
    };
    let vmi = cluster.wait(&vmi_path("v"), "paused", is).await.unwrap();
    let paused = sim::condition(&vmi, "Paused").unwrap();
    assert_eq!(paused["message"], "VMI was paused, low-level IO error detected");
    let told = |list: Option<&Value>| {
        list.is_some_and(|list| items(list).iter().any(|event| event["reason"] == "IOerror"))
    };
    cluster.wait("/api/v1/namespaces/default/events", "told", told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_volumes_come_from_one_pod_and_leave_again() {
    let cluster = start(config(Release::Main), "busy-check", &["a", "b", "c", "d"], "Block").await;
    want(&cluster, "v", &["a", "b", "c", "d"]).await;
    settle(&cluster, "v", &["a Ready sda", "b Ready sdb", "c Ready sdc", "d Ready sdd"]).await;
    let pods = attachments(&cluster).await;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["spec"]["containers"][0]["volumeDevices"].as_array().unwrap().len(), 4);
    assert_eq!(pods[0]["metadata"]["annotations"]["kubevirt.io/owner-vmi-name"], "v");
    let attached = cluster.get("/apis/storage.k8s.io/v1/volumeattachments").await.unwrap();
    assert_eq!(items(&attached).len(), 4);
    want(&cluster, "v", &[]).await;
    settle(&cluster, "v", &[]).await;
    wait_for_pods(&cluster, 0).await;
    let none = |list: Option<&Value>| list.is_some_and(|list| items(list).is_empty());
    cluster.wait("/apis/storage.k8s.io/v1/volumeattachments", "detached", none).await;
    assert!(cluster.simulation.volumes().io_errors().is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_release_replaces_the_pod_and_a_gentle_driver_forgives_all_of_them() {
    for rules in Release::ALL {
        let cluster = start(config(rules), "busy-check", &["a", "b"], "Block").await;
        want(&cluster, "v", &["a"]).await;
        settle(&cluster, "v", &["a Ready sda"]).await;
        let first = wait_for_pods(&cluster, 1).await;
        want(&cluster, "v", &["a", "b"]).await;
        settle(&cluster, "v", &["a Ready sda", "b Ready sdb"]).await;
        let second = wait_for_pods(&cluster, 1).await;
        assert_ne!(first[0]["metadata"]["name"], second[0]["metadata"]["name"], "{rules:?}");
        want(&cluster, "v", &["b"]).await;
        settle(&cluster, "v", &["b Ready sdb"]).await;
        assert!(cluster.simulation.volumes().io_errors().is_empty(), "{rules:?}");
        cluster.stop().await;
    }
}

/// W4: the old pod goes when the new one runs, ready or not; the volume is then published by nobody that is ready, which
/// is harmless. It is not with a driver that makes a device for each publication, and with filesystem volumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_volume_costs_the_guest_its_first() {
    for (class, mode) in [("per-publish-device", "Block"), ("force-teardown", "Filesystem")] {
        let cluster = start(config(Release::Main), class, &["a", "b"], mode).await;
        want(&cluster, "v", &["a"]).await;
        settle(&cluster, "v", &["a Ready sda"]).await;
        want(&cluster, "v", &["a", "b"]).await;
        paused_by_io_error(&cluster).await;
        let errors = cluster.simulation.volumes().io_errors();
        assert_eq!((errors[0].volume.as_str(), errors[0].vmi.as_str()), ("a", "default/v"), "{class}");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_volume_of_1_3_goes_before_the_guest_has_let_go() {
    let slow = Timing { unplug: Duration::from_secs(2), ..Timing::default() };
    for (rules, breaks) in [(Release::V1_3, true), (Release::V1_6, false)] {
        let cluster =
            start(SimConfig { timing: slow, ..config(rules) }, "force-teardown", &["a"], "Block").await;
        want(&cluster, "v", &["a"]).await;
        settle(&cluster, "v", &["a Ready sda"]).await;
        want(&cluster, "v", &[]).await;
        if breaks {
            paused_by_io_error(&cluster).await;
        } else {
            settle(&cluster, "v", &[]).await;
        }
        assert_eq!(!cluster.simulation.volumes().io_errors().is_empty(), breaks, "{rules:?}");
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_deletes_the_pod_that_a_guest_needs() {
    let cluster = start(config(Release::Main), "force-teardown", &["a"], "Block").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    let pods = wait_for_pods(&cluster, 1).await;
    let path = format!("{PODS}/{}", pods[0]["metadata"]["name"].as_str().unwrap());
    cluster.call(Method::DELETE, &path, Value::Null).await.unwrap();
    paused_by_io_error(&cluster).await;
    cluster.stop().await;
}

/// W5, and what heals it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pod_is_never_replaced_until_somebody_deletes_it() {
    let cluster = start(config(Release::Main), "busy-check", &["a"], "Block").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    let pods = wait_for_pods(&cluster, 1).await;
    let path = format!("{PODS}/{}", pods[0]["metadata"]["name"].as_str().unwrap());
    cluster
        .call(Method::PATCH, &format!("{path}/status"), json!({"status": {"phase": "Failed"}}))
        .await
        .unwrap();
    // Something happens, so that virt-controller has looked at it.
    let touch = json!({"metadata": {"labels": {"touched": "true"}}});
    cluster.call(Method::PATCH, &path, touch).await.unwrap();
    cluster.wait(&path, "failed", |pod| pod.is_some_and(|pod| pod["status"]["phase"] == "Failed")).await;
    assert_eq!(attachments(&cluster).await.len(), 1);
    cluster.call(Method::DELETE, &path, Value::Null).await.unwrap();
    let other = |list: Option<&Value>| {
        list.is_some_and(|list| {
            items(list).iter().any(|pod| pod["metadata"]["uid"] != pods[0]["metadata"]["uid"])
        })
    };
    cluster.wait(&format!("{PODS}?labelSelector=kubevirt.io%3Dhotplug-disk"), "replaced", other).await;
    cluster.stop().await;
}

/// R1: KubeVirt waits for a pod that waits for the pod that KubeVirt keeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_publishes_once_stalls_the_handoff() {
    let cluster = start(config(Release::Main), "exclusive-publish", &["a", "b"], "Block").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    want(&cluster, "v", &["a", "b"]).await;
    let refused = |list: Option<&Value>| {
        list.is_some_and(|list| {
            items(list).iter().any(|event| {
                event["reason"] == "FailedMapVolume"
                    && event["message"].as_str().is_some_and(|text| text.contains("already published"))
            })
        })
    };
    cluster.wait("/api/v1/namespaces/default/events", "refused", refused).await;
    settle(&cluster, "v", &["a Ready sda", "b AttachedToNode "]).await;
    assert_eq!(attachments(&cluster).await.len(), 2);
    cluster.stop().await;
}

/// The mixed-readiness trap: one volume that cannot come stalls the others, and nothing that is there is hurt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_volume_stalls_a_batch_and_its_removal_frees_it() {
    let cluster = start(config(Release::Main), "busy-check", &["a", "b", "bad"], "Block").await;
    let broken = json!({"metadata": {"annotations": {BROKEN: "true"}}});
    cluster.call(Method::PATCH, &format!("{CLAIMS}/bad"), broken).await.unwrap();
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    want(&cluster, "v", &["a", "b", "bad"]).await;
    settle(&cluster, "v", &["a Ready sda", "b AttachedToNode ", "bad AttachedToNode "]).await;
    want(&cluster, "v", &["a", "b"]).await;
    settle(&cluster, "v", &["a Ready sda", "b Ready sdb"]).await;
    wait_for_pods(&cluster, 1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_keeps_a_disk_keeps_its_pod() {
    let cluster = Cluster::start(config(Release::Main)).await;
    claim(&cluster, "a", "busy-check", "Block").await;
    let mut object = vm("v", "Always");
    object["spec"]["template"]["metadata"]["annotations"] = json!({KEEPS: "*"});
    cluster.call(Method::POST, sim::VMS, object).await.unwrap();
    cluster.printable("v", "Running").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    want(&cluster, "v", &[]).await;
    let left = |vmi: Option<&Value>| vmi.is_some_and(|vmi| items_of(vmi, "/spec/volumes") == 1);
    cluster.wait(&vmi_path("v"), "without a", left).await;
    let vmi = cluster.get(&vmi_path("v")).await.unwrap();
    assert_eq!((volumes(&vmi), attachments(&cluster).await.len()), (vec!["a Ready sda".into()], 1));
    cluster.stop().await;
}

fn items_of(object: &Value, pointer: &str) -> usize {
    object.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_starts_with_its_volumes_and_moves_with_them() {
    let cluster = start(config(Release::Main), "force-teardown", &["a", "b"], "Block").await;
    want(&cluster, "v", &["a", "b"]).await;
    settle(&cluster, "v", &["a Ready sda", "b Ready sdb"]).await;
    let before = cluster.get(&vmi_path("v")).await.unwrap();
    let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": "m", "namespace": "default"}, "spec": {"vmiName": "v"}});
    let migrations = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
    cluster.call(Method::POST, migrations, migration).await.unwrap();
    let done = |one: Option<&Value>| one.is_some_and(|one| one["status"]["phase"] == "Succeeded");
    cluster.wait(&format!("{migrations}/m"), "done", done).await;
    let vmi = settle(&cluster, "v", &["a Ready sda", "b Ready sdb"]).await;
    assert_ne!(vmi["status"]["nodeName"], before["status"]["nodeName"]);
    assert!(vmi["status"]["migrationState"]["targetAttachmentPodUID"].is_string());
    let pods = wait_for_pods(&cluster, 1).await;
    assert_eq!(pods[0]["spec"]["nodeName"], vmi["status"]["nodeName"]);
    // A restart: the guest starts only when its volumes are there.
    cluster.call(Method::DELETE, &vmi_path("v"), Value::Null).await.unwrap();
    let again = |new: Option<&Value>| {
        new.is_some_and(|new| {
            new["metadata"]["uid"] != vmi["metadata"]["uid"] && volumes(new) == ["a Ready sda", "b Ready sdb"]
        })
    };
    cluster.wait(&vmi_path("v"), "started again", again).await;
    assert!(cluster.simulation.volumes().io_errors().is_empty());
    cluster.stop().await;
}

/// The older gate: virt-api notes requests, virt-controller serves them one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_older_gate_reach_the_guest_and_the_template() {
    let cluster = start(config(Release::V1_3), "busy-check", &["a"], "Block").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a Ready sda"]).await;
    let done = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            vm["status"].get("volumeRequests").is_none() && items_of(vm, "/spec/template/spec/volumes") == 2
        })
    };
    cluster.wait(&vm_path("v"), "done", done).await;
    want(&cluster, "v", &[]).await;
    settle(&cluster, "v", &[]).await;
    cluster.stop().await;
}

/// A cache that is behind by more than the time between two changes: virt-controller acts on what was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_lags_ends_at_the_same_place() {
    let timing = Timing { informer_lag: Duration::from_millis(300), ..Timing::default() };
    let cluster =
        start(SimConfig { timing, ..config(Release::Main) }, "busy-check", &["a", "b", "c"], "Block").await;
    for volumes in [&["a"][..], &["a", "b"], &["b", "c"]] {
        want(&cluster, "v", volumes).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let both = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            let all = volumes(vmi);
            all.len() == 2 && all[0].starts_with("b Ready sd") && all[1].starts_with("c Ready sd")
        })
    };
    cluster.wait(&vmi_path("v"), "b and c", both).await;
    wait_for_pods(&cluster, 1).await;
    cluster.stop().await;
}

/// W7: a change while a disk is on its way in sets its phase back, for virt-controller's cache does not know the new pod
/// yet; virt-launcher takes the disk out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_the_wrong_moment_unplugs_a_disk_that_is_wanted() {
    let timing = Timing {
        plug: Duration::from_millis(700),
        informer_lag: Duration::from_millis(50),
        ..Timing::default()
    };
    let cluster =
        start(SimConfig { timing, ..config(Release::Main) }, "busy-check", &["a", "b"], "Block").await;
    want(&cluster, "v", &["a"]).await;
    settle(&cluster, "v", &["a MountedToPod "]).await;
    want(&cluster, "v", &["a", "b"]).await;
    settle_with(&cluster, "v", &["a", "b"]).await;
    assert_eq!(cluster.simulation.volumes().unplugged()[0].volume, "a");
    cluster.stop().await;
}

/// All of these are in the guest, under any name.
async fn settle_with(cluster: &Cluster, name: &str, expected: &[&str]) {
    let is = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            let all = volumes(vmi);
            all.len() == expected.len()
                && expected
                    .iter()
                    .all(|one| all.iter().any(|have| have.starts_with(&format!("{one} Ready sd"))))
        })
    };
    cluster.wait(&vmi_path(name), &expected.join(", "), is).await;
}

/// Two VMs on two nodes want a claim that one node may have: the second waits until the first has let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_for_one_node_is_attached_to_one_node_at_a_time() {
    let cluster = start(config(Release::Main), "force-teardown", &[], "Block").await;
    let object = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "once", "namespace": "default"},
        "spec": {"storageClassName": "force-teardown", "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.call(Method::POST, CLAIMS, object).await.unwrap();
    let first = cluster.get(&vmi_path("v")).await.unwrap();
    let here = first["status"]["nodeName"].as_str().unwrap().to_owned();
    let nodes = cluster.get("/api/v1/nodes").await.unwrap();
    let there = items(&nodes).iter().find(|node| node["metadata"]["name"] != here.as_str()).unwrap();
    let mut other = vm("w", "Always");
    other["spec"]["template"]["spec"]["nodeSelector"] =
        json!({"kubernetes.io/hostname": there["metadata"]["name"]});
    cluster.call(Method::POST, sim::VMS, other).await.unwrap();
    cluster.printable("w", "Running").await;
    want(&cluster, "v", &["once"]).await;
    settle(&cluster, "v", &["once Ready sda"]).await;
    want(&cluster, "w", &["once"]).await;
    let refused = |list: Option<&Value>| {
        list.is_some_and(|list| items(list).iter().any(|event| event["reason"] == "FailedAttachVolume"))
    };
    cluster.wait("/api/v1/namespaces/default/events", "refused", refused).await;
    want(&cluster, "v", &[]).await;
    settle(&cluster, "w", &["once Ready sda"]).await;
    assert!(cluster.simulation.volumes().io_errors().is_empty());
    cluster.stop().await;
}
