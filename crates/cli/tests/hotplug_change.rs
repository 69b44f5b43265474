//! Changes of volumes by the command and by the library that the REST service uses: what goes first, what is attached, and
//! whose turn it is with a claim.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod live;

use std::time::Duration;

use live::{CLAIMS, Cluster, VMIS, VMS, items, name_of};
use provider::cluster::VolumeChange;
use provider::{Kind, VmId};
use sandbox::sim::hotplug::{BROKEN, KEEPS};
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};

fn config() -> SimConfig {
    let mut config = SimConfig { nodes: 2, release: Release::Main, ..SimConfig::default() };
    config.feature_gates.push("IncrementalBackup".into());
    config
}

/// A VM `v` on a cluster with the operator, and claims of a driver that forgives everything.
async fn start(claims: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(config()).await;
    for claim in claims {
        cluster.claim(claim, "busy-check", "Block", "ReadWriteMany").await;
    }
    cluster.vm("v", None).await;
    cluster.operate().await;
    cluster
}

const BACKUPS: &str = "/apis/backup.kubevirt.io/v1alpha1/namespaces/default/virtualmachinebackups";
/// On a claim: what its driver does with snapshots.
const SNAPSHOT_BEHAVIOUR: &str = "sandbox.vm-feature-manager.io/snapshot";
const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshots";

/// What copies the disks goes first, and is named; afterwards the change goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_a_snapshot_are_waited_for() {
    let cluster = start(&["a", "b"]).await;
    let source = json!({"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "v"});
    let backup = json!({"apiVersion": "backup.kubevirt.io/v1alpha1", "kind": "VirtualMachineBackup",
        "metadata": {"name": "nightly", "namespace": "default"}, "spec": {"source": source, "mode": "Push", "pvcName": "target"}});
    cluster.create(BACKUPS, &backup).await;
    let shown = cluster.ok("volume add v --volume a --dry-run").await;
    assert!(shown.stdout.is_empty(), "{}", shown.stdout);
    assert!(shown.stderr.contains("backup nightly is being taken"), "{}", shown.stderr);
    let late = cluster.run("volume add v --volume a --timeout 5").await;
    assert!(late.status == 1 && late.stderr.contains("backup nightly is being taken"), "{}", late.stderr);
    let vm = cluster.get(&format!("{VMS}/v")).await.unwrap();
    assert_eq!(vm["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 1);
    cluster.delete(&format!("{BACKUPS}/nightly")).await;
    cluster.ok("volume add v --volume a").await;
    // A snapshot of `a` stays under way for as long as its driver does not answer.
    let held = |on: Value| json!({"metadata": {"annotations": {SNAPSHOT_BEHAVIOUR: on}}});
    cluster.merge(&format!("{CLAIMS}/a"), &held("hold".into())).await;
    let snapshot = json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
        "metadata": {"name": "before", "namespace": "default"}, "spec": {"source": source}});
    cluster.create(SNAPSHOTS, &snapshot).await;
    let late = cluster.run("volume add v --volume b --timeout 5").await;
    assert!(late.status == 1 && late.stderr.contains("snapshot before is being taken"), "{}", late.stderr);
    let vm = cluster.get(&format!("{VMS}/v")).await.unwrap();
    assert_eq!(vm["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 2);
    // The change that waits goes on by itself when the snapshot has been taken.
    let ready = |one: Option<&Value>| one.is_some_and(|one| one["status"]["readyToUse"] == true);
    let taken = async {
        cluster.merge(&format!("{CLAIMS}/a"), &held(Value::Null)).await;
        cluster.wait(&format!("{SNAPSHOTS}/before"), "taken", ready).await;
    };
    tokio::join!(cluster.ok("volume add v --volume b"), taken);
    cluster.settle("v", &["a", "b"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// A `DataVolume` is waited for until it is filled, and attached under its own kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_volume_is_attached_when_it_has_been_filled() {
    let cluster = start(&[]).await;
    let blank = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume",
        "metadata": {"name": "filled", "namespace": "default"}, "spec": {"source": {"blank": {}},
            "pvc": {"storageClassName": "busy-check", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}}}});
    cluster.create("/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes", &blank).await;
    cluster.ok("volume add v --data-volume data=filled --cache none").await;
    let vmi = cluster.settle("v", &["data"]).await;
    let spec = vmi["spec"]["volumes"].as_array().unwrap().iter().find(|one| one["name"] == "data").unwrap();
    assert_eq!(spec["dataVolume"]["name"], "filled", "{spec}");
    let disks = vmi["spec"]["domain"]["devices"]["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["name"] == "data").unwrap();
    assert_eq!(disk["cache"], "none", "{disk}");
    cluster.ok("volume remove v --volume data").await;
    cluster.settle("v", &[]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// The gate holds a VM whose guest does not let go of a volume. Its neighbour on the same node gets volumes meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_is_held_holds_no_other_one() {
    let mut cluster = Cluster::start(config()).await;
    for claim in ["a", "b", "c", "d"] {
        cluster.claim(claim, "busy-check", "Block", "ReadWriteMany").await;
    }
    let nodes: Vec<String> =
        items(&cluster.get("/api/v1/nodes").await.unwrap()).iter().map(name_of).collect();
    let mut keeping = live::vm("keeping");
    let template = &mut keeping["spec"]["template"];
    template["metadata"]["annotations"] = json!({KEEPS: "a"});
    template["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": nodes[0]});
    cluster.started(&keeping).await;
    cluster.vm("free", Some(&nodes[0])).await;
    cluster.operate().await;
    cluster.ok("volume add keeping --volume a").await;
    cluster.declare("keeping", &[]).await;
    let without_a = |vmi: Option<&Value>| vmi.is_some_and(|vmi| !names(vmi).contains(&"a".to_owned()));
    cluster.wait(&format!("{VMIS}/keeping"), "without a", without_a).await;
    cluster.declare("keeping", &["b"]).await;
    let held = |vm: Option<&Value>| {
        let conditions = vm.map(|vm| vm["status"]["conditions"].to_string()).unwrap_or_default();
        conditions.contains("the guest has not let go of volume a")
    };
    cluster.wait(&format!("{VMS}/keeping"), "held", held).await;
    cluster.ok("volume add free --volume c --volume d").await;
    let free = cluster.get(&format!("{VMIS}/free")).await.unwrap();
    assert!(["c", "d"].iter().all(|name| names(&free).contains(&(*name).to_owned())), "{:?}", names(&free));
    let keeping = cluster.get(&format!("{VMIS}/keeping")).await.unwrap();
    assert!(!names(&keeping).contains(&"b".to_owned()), "it was held all the time: {:?}", names(&keeping));
    cluster.is_unharmed();
    cluster.stop().await;
}

/// The volumes of a VMI's spec.
fn names(vmi: &Value) -> Vec<String> {
    let volumes = vmi["spec"]["volumes"].as_array().unwrap();
    volumes.iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
}

/// A change of one volume, as REST takes it.
fn attach(claim: &str) -> VolumeChange {
    let add = serde_json::from_value(json!([{"name": claim}])).unwrap();
    VolumeChange { add, ..VolumeChange::default() }
}

fn detach(name: &str) -> VolumeChange {
    VolumeChange { remove: vec![name.to_owned()], ..VolumeChange::default() }
}

/// What REST does without `wait`: each call is a step. The lock of a claim for one node goes from the write to the end of the
/// change, so another VM gets it neither meanwhile nor afterwards, until the first has let go of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_two_vms_take_turns_with_a_claim() {
    let cluster = Cluster::start(config()).await;
    cluster.claim("p", "force-teardown", "Block", "ReadWriteOnce").await;
    let nodes: Vec<String> =
        items(&cluster.get("/api/v1/nodes").await.unwrap()).iter().map(name_of).collect();
    cluster.vm("v", Some(&nodes[0])).await;
    cluster.vm("w", Some(&nodes[1])).await;
    let provider = cluster.provider().await;
    let step = async |vm: &str, change: &VolumeChange| {
        provider.step_volumes(&VmId::new("default", vm).unwrap(), change, false).await.unwrap()
    };
    let until_done = async |vm: &str, change: &VolumeChange| {
        let done = tokio::time::timeout(Duration::from_mins(2), async {
            while step(vm, change).await.state != "done" {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(done.await.is_ok(), "{vm} never was done");
    };
    let lock = async || {
        let lease =
            cluster.get("/apis/coordination.k8s.io/v1/namespaces/default/leases/hotplug-claim-p").await;
        lease.map(|lease| lease["spec"]["holderIdentity"].clone())
    };
    assert_eq!(step("v", &attach("p")).await.state, "written");
    assert_eq!(lock().await, Some(json!("default/v (step by step)")));
    let held = step("w", &attach("p")).await;
    assert_eq!(held.state, "held");
    let why = held.waits.join("; ");
    assert!(why.contains("is being moved by default/v") || why.contains("VM v"), "{why}");
    until_done("v", &attach("p")).await;
    assert_eq!(lock().await, None, "given back");
    let held = step("w", &attach("p")).await;
    assert!(held.waits.join("; ").contains("it is ReadWriteOnce and VM v"), "{held:?}");
    until_done("v", &detach("p")).await;
    until_done("w", &attach("p")).await;
    cluster.settle("w", &["p"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// What REST does with `wait`: it ends as the command does. The bad volume is named, the others are attached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_waited_for_names_the_bad_volume() {
    let cluster = Cluster::start(config()).await;
    for claim in ["a", "bad"] {
        cluster.claim(claim, "busy-check", "Block", "ReadWriteMany").await;
    }
    let broken = json!({"metadata": {"annotations": {BROKEN: "true"}}});
    cluster.merge(&format!("{CLAIMS}/bad"), &broken).await;
    cluster.vm("v", None).await;
    let vm = VmId::new("default", "v").unwrap();
    let add =
        serde_json::from_value(json!([{"name": "a", "bus": "virtio", "cache": "none"}, {"name": "bad"}]));
    let change = VolumeChange { add: add.unwrap(), ..VolumeChange::default() };
    let provider = cluster.provider().await;
    let error =
        provider.change_volumes(&vm, &change, Duration::from_secs(15), &mut |_| ()).await.unwrap_err();
    assert_eq!((error.kind, error.doing.as_str()), (Kind::Timeout, "changing the volumes of VM `default/v`"));
    assert!(error.wrong.contains("volume bad did not reach the guest within 15 s"), "{error}");
    cluster.settle("v", &["a"]).await;
    let wrong = VolumeChange {
        add: serde_json::from_value(json!([{"name": "x", "cache": "fast"}])).unwrap(),
        ..change
    };
    let error = provider.step_volumes(&vm, &wrong, false).await.unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    cluster.is_unharmed();
    cluster.stop().await;
}
