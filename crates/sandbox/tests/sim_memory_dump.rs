//! Dumps of a guest's memory into a claim, from the call to the file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};
use sim::{Cluster, PODS, VMS, items, vm, vm_path, vmi_path};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

fn verb(verb: &str) -> String {
    format!("/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/v/{verb}")
}

/// A running VM `v` and a claim `dump`.
async fn start(size: &str, mode: &str) -> Cluster {
    let mut config = SimConfig { nodes: 2, ..SimConfig::default() };
    config.feature_gates.push("DeclarativeHotplugVolumes".into());
    let cluster = Cluster::start(config).await;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "dump"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "resources": {"requests": {"storage": size}}}});
    cluster.call(Method::POST, CLAIMS, claim).await.unwrap();
    cluster.call(Method::POST, VMS, vm("v", "Always")).await.unwrap();
    cluster.printable("v", "Running").await;
    cluster
}

async fn ask(cluster: &Cluster, what: &str, body: Value) -> (u16, String) {
    let (code, answer) = cluster.raw(Method::PUT, &verb(what), body).await;
    (code, answer["message"].as_str().unwrap_or_default().to_owned())
}

async fn reaches(cluster: &Cluster, phase: &str) -> Value {
    let is = |vm: Option<&Value>| {
        vm.is_some_and(|vm| vm["status"]["memoryDumpRequest"]["phase"].as_str().unwrap_or("gone") == phase)
    };
    cluster.wait(&vm_path("v"), phase, is).await.unwrap()
}

async fn no_attachment(cluster: &Cluster) {
    let path = format!("{PODS}?labelSelector=kubevirt.io%3Dhotplug-disk");
    cluster.wait(&path, "empty", |list| list.is_some_and(|list| items(list).is_empty())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_ends_as_a_file_in_the_claim_and_lets_go_of_it() {
    let cluster = start("2Gi", "Filesystem").await;
    assert_eq!(
        ask(&cluster, "memorydump", json!({})).await,
        (400, "Memory dump requires claim name to be set".into())
    );
    assert_eq!(ask(&cluster, "memorydump", json!({"claimName": "dump"})).await.0, 202);
    let (code, message) = ask(&cluster, "memorydump", json!({"claimName": "other"})).await;
    assert_eq!(code, 409);
    assert!(message.contains("can't request memory dump for pvc [other] while pvc [dump]"), "{message}");

    let done = reaches(&cluster, "Completed").await;
    let request = &done["status"]["memoryDumpRequest"];
    let file = request["fileName"].as_str().unwrap();
    assert!(file.starts_with("v-dump-") && file.ends_with(".memory.dump"), "{file}");
    assert!(request["startTimestamp"].as_str() <= request["endTimestamp"].as_str(), "{request}");
    let claim = cluster.get(&format!("{CLAIMS}/dump")).await.unwrap();
    assert_eq!(claim["metadata"]["annotations"]["kubevirt.io/memory-dump"], file);
    let path = cluster.simulation.disks().join("claims/default_dump").join(file);
    assert!(std::fs::metadata(&path).unwrap().len() > 1 << 30, "the memory of the guest");
    assert_eq!(&std::fs::read(&path).unwrap()[..4], b"\x7fELF");

    let volume = json!({"name": "dump", "memoryDump": {"claimName": "dump", "hotpluggable": true}});
    let volumes = |object: &Value, pointer: &str| {
        object.pointer(pointer).and_then(Value::as_array).unwrap().contains(&volume)
    };
    assert!(volumes(&done, "/spec/template/spec/volumes"), "the VM stays associated with the claim");
    let vmi = cluster.get(&vmi_path("v")).await.unwrap();
    assert!(!volumes(&vmi, "/spec/volumes"), "the guest's pod does not");
    no_attachment(&cluster).await;

    assert_eq!(ask(&cluster, "memorydump", json!({})).await.0, 202, "again, into the same claim");
    let again = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            let request = &vm["status"]["memoryDumpRequest"];
            request["phase"] == "Completed"
                && request["startTimestamp"]
                    != *done.pointer("/status/memoryDumpRequest/startTimestamp").unwrap()
        })
    };
    cluster.wait(&vm_path("v"), "dumped again", again).await;
    let dumps = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(dumps, 1, "the older one is gone");

    assert_eq!(ask(&cluster, "removememorydump", Value::Null).await.0, 202);
    let vm = reaches(&cluster, "gone").await;
    assert!(!volumes(&vm, "/spec/template/spec/volumes"));
    let (code, message) = ask(&cluster, "removememorydump", Value::Null).await;
    assert_eq!(code, 409);
    assert!(
        message.contains("can't remove memory dump association for vm v, no association found"),
        "{message}"
    );
    cluster.stop().await;
}

/// virt-api counts what the VMI requests, and a guest may have more: the launcher finds out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_that_does_not_fit_fails_and_says_so() {
    let cluster = start("200Mi", "Filesystem").await;
    assert_eq!(ask(&cluster, "memorydump", json!({"claimName": "dump"})).await.0, 202);
    let failed = reaches(&cluster, "Failed").await;
    let message = failed["status"]["memoryDumpRequest"]["message"].as_str().unwrap();
    assert!(message.starts_with("Memory dump to pvc dump failed: Domain memory dump failed: "), "{message}");
    assert!(message.contains("No space left on device"), "{message}");
    let is = |claim: Option<&Value>| {
        claim.is_some_and(|claim| {
            claim["metadata"]["annotations"]["kubevirt.io/memory-dump"] == "Memory dump failed"
        })
    };
    cluster.wait(&format!("{CLAIMS}/dump"), "marked", is).await;
    no_attachment(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_take_a_dump_is_refused_as_virt_api_does() {
    let cluster = start("10Mi", "Filesystem").await;
    let block = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "block"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "resources": {"requests": {"storage": "2Gi"}}}});
    cluster.call(Method::POST, CLAIMS, block).await.unwrap();
    let about = "Operation cannot be fulfilled on persistentvolumeclaim.kubevirt.io";
    for (claim, expected) in [
        ("dump", (409, format!("{about} \"dump\": pvc size [10486k] should be bigger then [106Mi]"))),
        ("block", (409, format!("{about} \"block\": pvc should be filesystem pvc"))),
        ("nowhere", (404, "persistentvolumeclaim.kubevirt.io \"nowhere\" not found".into())),
    ] {
        assert_eq!(ask(&cluster, "memorydump", json!({"claimName": claim})).await, expected);
    }
    let halt = json!({"spec": {"runStrategy": "Halted"}});
    cluster.call(Method::PATCH, &vm_path("v"), halt).await.unwrap();
    cluster.wait(&vmi_path("v"), "gone", |vmi| vmi.is_none()).await;
    assert_eq!(ask(&cluster, "memorydump", json!({"claimName": "block"})).await.0, 404, "there is no VMI");
    cluster.stop().await;
    let cluster = Cluster::start(SimConfig { release: Release::V1_5, ..SimConfig::default() }).await;
    let (code, message) = ask(&cluster, "memorydump", json!({"claimName": "dump"})).await;
    assert_eq!(
        (code, message.as_str()),
        (400, "Enable DeclarativeHotplugVolumes or HotplugVolumes feature gate to use this API.")
    );
    cluster.stop().await;
}
