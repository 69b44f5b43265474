//! Snapshots, restores and clones of VMs, with what is on their disks.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail as tests do

mod sim;

use std::fs::File;
use std::os::unix::fs::FileExt;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, condition, items, vm, vm_path, vmi_path};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshots";
const CONTENTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshotcontents";
const RESTORES: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinerestores";
const CLONES: &str = "/apis/clone.kubevirt.io/v1beta1/namespaces/default/virtualmachineclones";
const VOLUME_SNAPSHOTS: &str = "/apis/snapshot.storage.k8s.io/v1/namespaces/default/volumesnapshots";
const DATA_VOLUMES: &str = "/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes";
/// Where these tests write on a disk.
const AT: u64 = 5 << 20;

async fn cluster() -> Cluster {
    Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await
}

fn claim(name: &str, class: Option<&str>) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default",
            "annotations": {"sandbox.vm-feature-manager.io/data": "1Mi", "cdi.kubevirt.io/storage.contentType": "kubevirt"}},
        "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block", "resources": {"requests": {"storage": "16Mi"}}}});
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

/// A VM whose disks are claims, named after them.
fn vm_on(name: &str, strategy: &str, claims: &[&str]) -> Value {
    let mut vm = vm(name, strategy);
    let spec = &mut vm["spec"]["template"]["spec"];
    spec["volumes"] = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    spec["domain"]["devices"]["disks"] =
        claims.iter().map(|claim| json!({"name": claim, "disk": {}})).collect();
    spec["domain"]["firmware"] = json!({"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223", "serial": "old"});
    vm
}

impl Cluster {
    async fn make(&self, path: &str, object: Value) -> Value {
        self.call(Method::POST, path, object).await.unwrap()
    }

    async fn bound(&self, name: &str) -> Value {
        let is = |claim: Option<&Value>| claim.is_some_and(|claim| claim["status"]["phase"] == "Bound");
        self.wait(&format!("{CLAIMS}/{name}"), "bound", is).await.unwrap()
    }

    async fn phase(&self, path: &str, phase: &str) -> Value {
        self.wait(path, phase, |one| one.is_some_and(|one| one["status"]["phase"] == phase)).await.unwrap()
    }

    async fn snapshot(&self, name: &str, vm: &str) -> Value {
        self.make(SNAPSHOTS, snapshot(name, vm)).await;
        let path = format!("{SNAPSHOTS}/{name}");
        let ready = |one: Option<&Value>| {
            one.is_some_and(|one| {
                one["status"]["readyToUse"] == true && one["status"]["phase"] == "Succeeded"
            })
        };
        self.wait(&path, "ready", ready).await.unwrap()
    }

    async fn restored(&self, name: &str) -> Value {
        let done = |one: Option<&Value>| one.is_some_and(|one| one["status"]["complete"] == true);
        self.wait(&format!("{RESTORES}/{name}"), "complete", done).await.unwrap()
    }

    fn disk(&self, claim: &str) -> File {
        let path = self.simulation.disks().join(format!("default_{claim}"));
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn write(&self, claim: &str, words: &str) {
        self.disk(claim).write_all_at(words.as_bytes(), AT).unwrap();
    }

    fn read(&self, claim: &str, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.disk(claim).read_exact_at(&mut bytes, AT).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    async fn reasons(&self, object: &str) -> Vec<String> {
        let events = self.get("/api/v1/namespaces/default/events").await.unwrap();
        let about = items(&events).iter().filter(|event| event["involvedObject"]["name"] == object);
        about.map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

fn snapshot(name: &str, vm: &str) -> Value {
    json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": vm}}})
}

fn restore(name: &str, vm: &str, snapshot: &str) -> Value {
    json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineRestore",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": vm},
            "virtualMachineSnapshotName": snapshot}})
}

fn indications(snapshot: &Value) -> Vec<&str> {
    let all = snapshot["status"]["sourceIndications"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(|one| one["indication"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_is_frozen_snapshotted_and_restored_with_what_was_on_its_disk() {
    let cluster = cluster().await;
    cluster.make(CLAIMS, claim("web-root", None)).await;
    let bound = cluster.bound("web-root").await;
    assert_eq!(bound["spec"]["storageClassName"], "standard");
    cluster.make(sim::VMS, vm_on("web", "Always", &["web-root"])).await;
    cluster.printable("web", "Running").await;
    // What is read first is made first.
    let first = cluster.snapshot("first", "web").await;
    assert_eq!(indications(&first), ["GuestAgent", "Online"]);
    assert_eq!(first["status"]["snapshotVolumes"], json!({"includedVolumes": ["web-root"]}));
    assert_eq!(condition(&first, "Ready").unwrap()["status"], "True");
    cluster.write("web-root", "before");
    cluster.snapshot("second", "web").await;
    cluster.write("web-root", "after!");

    let thawed = |vmi: Option<&Value>| vmi.is_some_and(|vmi| vmi["status"].get("fsFreezeStatus").is_none());
    cluster.wait(&vmi_path("web"), "thawed", thawed).await;
    let unlocked = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            vm["status"].get("snapshotInProgress").is_none()
                && vm["metadata"]["finalizers"] == json!(["kubevirt.io/virtualMachineControllerFinalize"])
        })
    };
    cluster.wait(&vm_path("web"), "unlocked", unlocked).await;
    let snapshots = cluster.get(VOLUME_SNAPSHOTS).await.unwrap();
    assert_eq!(items(&snapshots).len(), 2);
    assert_eq!(items(&snapshots)[0]["spec"]["volumeSnapshotClassName"], "standard-snapshots");

    // A running target is waited for.
    cluster.make(RESTORES, restore("back", "web", "second")).await;
    let waits = |one: Option<&Value>| {
        let ready = one.and_then(|one| condition(one, "Ready"));
        ready.is_some_and(|ready| {
            ready["reason"].as_str().unwrap().starts_with("Waiting for target VM to be powered off")
        })
    };
    cluster.wait(&format!("{RESTORES}/back"), "waiting", waits).await;
    let stop = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/stop";
    assert_eq!(cluster.raw(Method::PUT, stop, json!({})).await.0, 202);
    let done = cluster.restored("back").await;
    assert_eq!(condition(&done, "Progressing").unwrap()["reason"], "Operation complete");
    let restored = done["status"]["restores"][0]["persistentVolumeClaimName"].as_str().unwrap().to_owned();
    assert_eq!(restored, format!("restore-{}-web-root", done["metadata"]["uid"].as_str().unwrap()));
    let vm = cluster.get(&vm_path("web")).await.unwrap();
    let volumes = &vm["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["persistentVolumeClaim"]["claimName"], restored.as_str());
    assert_eq!((&vm["spec"]["runStrategy"], vm["status"].get("restoreInProgress")), (&json!("Halted"), None));
    cluster.bound(&restored).await;
    assert_eq!((cluster.read(&restored, 6), cluster.read("web-root", 6)), ("before".into(), "after!".into()));
    assert!(cluster.reasons("back").await.contains(&"VirtualMachineRestoreComplete".to_owned()));
    assert!(
        cluster.reasons("second").await.contains(&"SuccessfulVirtualMachineSnapshotContentCreate".to_owned())
    );

    // What is deleted takes its content along, and the copies on disk.
    cluster.call(Method::DELETE, &format!("{SNAPSHOTS}/first"), Value::Null).await.unwrap();
    let one_left = |list: Option<&Value>| list.is_some_and(|list| items(list).len() == 1);
    cluster.wait(SNAPSHOTS, "one", one_left).await;
    cluster.wait(CONTENTS, "one", one_left).await;
    cluster.wait(VOLUME_SNAPSHOTS, "one", one_left).await;
    let copies = || std::fs::read_dir(cluster.simulation.disks().join("snapshots")).unwrap().count();
    assert_eq!(copies(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_becomes_another_vm_with_patches() {
    let cluster = cluster().await;
    cluster.make(CLAIMS, claim("db-root", None)).await;
    cluster.make(CLAIMS, claim("db-local", Some("local"))).await;
    cluster.bound("db-root").await;
    let mut source = vm_on("db", "Manual", &["db-root", "db-local"]);
    source["metadata"]["labels"] = json!({"tier": "db", "keep": "yes"});
    cluster.make(sim::VMS, source).await;
    let known = |vm: Option<&Value>| {
        let statuses = vm.and_then(|vm| vm["status"]["volumeSnapshotStatuses"].as_array());
        statuses.is_some_and(|all| all.len() == 2 && all[0]["enabled"] == true && all[1]["enabled"] == false)
    };
    let vm = cluster.wait(&vm_path("db"), "looked at", known).await.unwrap();
    assert_eq!(
        vm["status"]["volumeSnapshotStatuses"][1]["reason"],
        "No VolumeSnapshotClass: Volume snapshots are not configured for this StorageClass [local] [db-local]"
    );
    // A claim that no pod uses is not bound: the VM cannot be locked.
    cluster.make(SNAPSHOTS, snapshot("early", "db")).await;
    let says = |one: Option<&Value>| {
        let progressing = one.and_then(|one| condition(one, "Progressing"));
        progressing.is_some_and(|one| {
            one["reason"] == "Source not locked source default/db volume not bound: db-local"
        })
    };
    cluster.wait(&format!("{SNAPSHOTS}/early"), "waiting", says).await;
    cluster.call(Method::DELETE, &format!("{SNAPSHOTS}/early"), Value::Null).await.unwrap();
    let start = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/db/start";
    assert_eq!(cluster.raw(Method::PUT, start, json!({})).await.0, 202);
    cluster.printable("db", "Running").await;
    cluster.bound("db-local").await;
    let taken = cluster.snapshot("partial", "db").await;
    assert_eq!(taken["status"]["snapshotVolumes"]["excludedVolumes"], json!(["db-local"]));
    assert!(indications(&taken).contains(&"PartialSnapshot"));

    let mut new = restore("copy", "db2", "partial");
    new["spec"]["volumeRestorePolicy"] = "PrefixTargetName".into();
    new["spec"]["patches"] = json!([
        r#"{"op": "replace", "path": "/spec/template/spec/domain/firmware/serial", "value": "new"}"#,
        r#"{"op": "remove", "path": "/metadata/labels/tier"}"#,
    ]);
    cluster.make(RESTORES, new).await;
    cluster.restored("copy").await;
    let vm = cluster.get(&vm_path("db2")).await.unwrap();
    assert_eq!(
        (&vm["spec"]["runStrategy"], &vm["metadata"]["labels"]),
        (&json!("Halted"), &json!({"keep": "yes"}))
    );
    let spec = &vm["spec"]["template"]["spec"];
    assert_eq!(spec["domain"]["firmware"]["serial"], "new");
    assert_eq!(spec["volumes"][0]["persistentVolumeClaim"]["claimName"], "db2-db-root");
    cluster.bound("db2-db-root").await;
    // There is a VM of that name now, and it is not the source.
    cluster.make(RESTORES, restore("again", "db2", "partial")).await;
    let refused = |one: Option<&Value>| {
        let ready = one.and_then(|one| condition(one, "Ready"));
        ready.is_some_and(|one| {
            one["reason"]
                == "restore source and restore target are different but restore target already exists"
        })
    };
    cluster.wait(&format!("{RESTORES}/again"), "refused", refused).await;
    // An Event follows what it tells of.
    let told = |events: Option<&Value>| {
        items(events.unwrap_or(&Value::Null)).iter().any(|event| {
            event["involvedObject"]["name"] == "again" && event["reason"] == "VirtualMachineRestoreError"
        })
    };
    cluster.wait("/api/v1/namespaces/default/events", "told of", told).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_in_place_keeps_the_names_and_stops_the_vm_itself() {
    let cluster = cluster().await;
    let mut vm = vm_on("app", "Always", &["app-root"]);
    vm["spec"]["dataVolumeTemplates"] = json!([{"metadata": {"name": "app-root"}, "spec": {"source": {"blank": {}},
        "storage": {"resources": {"requests": {"storage": "16Mi"}}}}}]);
    vm["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "app-root", "dataVolume": {"name": "app-root"}}]);
    cluster.make(sim::VMS, vm).await;
    cluster.printable("app", "Running").await;
    let volume = cluster.get(&format!("{DATA_VOLUMES}/app-root")).await.unwrap();
    assert_eq!(
        (&volume["status"]["phase"], &volume["status"]["progress"]),
        (&json!("Succeeded"), &json!("100.0%"))
    );
    let old = cluster.bound("app-root").await;
    assert_eq!(
        (&old["spec"]["volumeMode"], &old["spec"]["accessModes"]),
        (&json!("Block"), &json!(["ReadWriteMany"]))
    );
    cluster.write("app-root", "kept");
    cluster.snapshot("s", "app").await;
    cluster.write("app-root", "lost");
    let mut back = restore("r", "app", "s");
    back["spec"]["volumeRestorePolicy"] = "InPlace".into();
    back["spec"]["targetReadinessPolicy"] = "StopTarget".into();
    cluster.make(RESTORES, back).await;
    let done = cluster.restored("r").await;
    assert_eq!(done["status"]["restores"][0]["persistentVolumeClaimName"], "app-root");
    assert_eq!(done["status"]["restores"][0]["dataVolumeName"], "app-root");
    let new = cluster.bound("app-root").await;
    assert_ne!(new["metadata"]["uid"], old["metadata"]["uid"]);
    assert_eq!(cluster.read("app-root", 4), "kept");
    let owned = |claim: Option<&Value>| {
        claim.is_some_and(|claim| claim["metadata"]["ownerReferences"][0]["kind"] == "DataVolume")
    };
    cluster.wait(&format!("{CLAIMS}/app-root"), "the data volume's again", owned).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_another_vm_with_the_same_content() {
    let cluster = cluster().await;
    cluster.make(CLAIMS, claim("gold-root", None)).await;
    cluster.bound("gold-root").await;
    let mut source = vm_on("gold", "Halted", &["gold-root"]);
    source["metadata"]["annotations"] = json!({"note/one": "1", "secret/two": "2"});
    source["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] =
        "02:00:00:00:00:01".into();
    cluster.make(sim::VMS, source).await;
    let known = |vm: Option<&Value>| {
        vm.is_some_and(|vm| vm["status"]["volumeSnapshotStatuses"][0]["enabled"] == true)
    };
    cluster.wait(&vm_path("gold"), "known", known).await;
    let clone = |name: &str, kind: &str, group: &str, source: &str, target: &str| {
        json!({"apiVersion": "clone.kubevirt.io/v1beta1", "kind": "VirtualMachineClone",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"source": {"apiGroup": group, "kind": kind, "name": source},
                "target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": target}}})
    };
    let mut first = clone("c", "VirtualMachine", "kubevirt.io", "gold", "silver");
    first["spec"]["annotationFilters"] = json!(["*", "!secret/*"]);
    // With colons the restore would be refused, see below.
    first["spec"]["newMacAddresses"] = json!({"default": "02-00-00-00-00-02"});
    first["spec"]["newSMBiosSerial"] = "another".into();
    cluster.make(CLONES, first).await;
    let done = cluster.phase(&format!("{CLONES}/c"), "Succeeded").await;
    assert_eq!(done["status"]["targetName"], "silver");
    let vm = cluster.get(&vm_path("silver")).await.unwrap();
    let domain = &vm["spec"]["template"]["spec"]["domain"];
    assert_eq!(domain["devices"]["interfaces"][0]["macAddress"], "02-00-00-00-00-02");
    assert_eq!(domain["firmware"]["serial"], "another");
    assert_ne!(domain["firmware"]["uuid"], "5d307ca9-b3ef-428c-8861-06e72d69f223");
    let annotations = vm["metadata"]["annotations"].as_object().unwrap();
    assert!(annotations.contains_key("note/one") && !annotations.contains_key("secret/two"));
    let gone = |list: Option<&Value>| list.is_some_and(|list| items(list).is_empty());
    cluster.wait(SNAPSHOTS, "tidied up", gone).await;
    cluster.wait(RESTORES, "tidied up", gone).await;
    let claim =
        vm["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"].as_str().unwrap();
    cluster.bound(claim).await;
    let (one, two) = (cluster.disk("gold-root"), cluster.disk(claim));
    let read = |file: &File| {
        let mut bytes = vec![0; 16 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read(&one) == read(&two), "the disks differ");

    cluster.snapshot("s", "gold").await;
    let from = clone("d", "VirtualMachineSnapshot", "snapshot.kubevirt.io", "s", "bronze");
    cluster.make(CLONES, from).await;
    cluster.phase(&format!("{CLONES}/d"), "Succeeded").await;
    assert!(cluster.get(&format!("{SNAPSHOTS}/s")).await.is_some(), "a snapshot that was there stays");
    let reasons = cluster.reasons("d").await;
    for reason in ["SnapshotReady", "RestoreCreated", "RestoreReady", "TargetVMCreated"] {
        assert!(reasons.contains(&reason.to_owned()), "{reason} of {reasons:?}");
    }

    // virt-api splits patches at colons (v1.9): such an address never gets through.
    let mut colons = clone("stuck", "VirtualMachineSnapshot", "snapshot.kubevirt.io", "s", "tin");
    colons["spec"]["newMacAddresses"] = json!({"default": "02:00:00:00:00:03"});
    cluster.make(CLONES, colons).await;
    cluster.phase(&format!("{CLONES}/stuck"), "RestoreInProgress").await;
    let failed = tokio::time::timeout(sim::BOUND, async {
        while !cluster.reasons("stuck").await.contains(&"RestoreCreationFailed".to_owned()) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    assert!(failed.await.is_ok(), "the clone does not say why it is stuck");

    cluster.make(CLONES, clone("lost", "VirtualMachine", "kubevirt.io", "nobody", "x")).await;
    let waits = |one: Option<&Value>| {
        let ready = one.and_then(|one| condition(one, "Ready"));
        ready.is_some_and(|one| one["reason"] == "Source doesnt exist: VirtualMachine default/nobody")
    };
    cluster.wait(&format!("{CLONES}/lost"), "waiting", waits).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_without_agents_are_snapshotted_as_they_are_and_those_that_refuse_are_not() {
    let cluster = cluster().await;
    for name in ["mute", "stubborn"] {
        cluster.make(CLAIMS, claim(&format!("{name}-root"), None)).await;
        cluster.bound(&format!("{name}-root")).await;
        let mut vm = vm_on(name, "Always", &[&format!("{name}-root")]);
        let manner = if name == "mute" { "no-agent" } else { "refuses-freeze" };
        vm["spec"]["template"]["metadata"]["annotations"] =
            json!({"sandbox.vm-feature-manager.io/guest": manner});
        cluster.make(sim::VMS, vm).await;
        cluster.printable(name, "Running").await;
    }
    let taken = cluster.snapshot("mute", "mute").await;
    assert_eq!(indications(&taken), ["NoGuestAgent", "Online"]);
    cluster.make(SNAPSHOTS, snapshot("stubborn", "stubborn")).await;
    let refused = |one: Option<&Value>| {
        let message = one.and_then(|one| one["status"]["error"]["message"].as_str());
        message.is_some_and(|message| message.contains("guest-fsfreeze-freeze"))
    };
    let waits = cluster.wait(&format!("{SNAPSHOTS}/stubborn"), "refused", refused).await.unwrap();
    assert_eq!(
        (&waits["status"]["phase"], &waits["status"]["readyToUse"]),
        (&json!("InProgress"), &json!(false))
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_a_snapshot_is_what_was_on_the_disk_then() {
    let cluster = cluster().await;
    cluster.make(CLAIMS, claim("old-root", None)).await;
    cluster.bound("old-root").await;
    cluster.make(sim::VMS, vm_on("old", "Always", &["old-root"])).await;
    cluster.printable("old", "Running").await;
    cluster.snapshot("first", "old").await;
    cluster.write("old-root", "then");
    cluster.snapshot("s", "old").await;
    cluster.write("old-root", "late");
    cluster
        .make(
            "/api/v1/namespaces/default/secrets",
            json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "t", "namespace": "default"}, "stringData": {"token": "secret"}}),
        )
        .await;
    let exports = "/apis/export.kubevirt.io/v1/namespaces/default/virtualmachineexports";
    cluster
        .make(
            exports,
            json!({"apiVersion": "export.kubevirt.io/v1", "kind": "VirtualMachineExport",
            "metadata": {"name": "e", "namespace": "default"}, "spec": {"tokenSecretRef": "t", "source": {
                "apiGroup": "snapshot.kubevirt.io", "kind": "VirtualMachineSnapshot", "name": "s"}}}),
        )
        .await;
    let ready = cluster.phase(&format!("{exports}/e"), "Ready").await;
    assert_eq!(ready["status"]["links"]["external"]["volumes"][0]["name"], "e-old-root");
    assert_eq!((cluster.read("e-old-root", 4), cluster.read("old-root", 4)), ("then".into(), "late".into()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_cut_fails_at_its_deadline_and_frees_the_vm() {
    let cluster = cluster().await;
    let mut broken = claim("bad-root", None);
    broken["metadata"]["annotations"]["sandbox.vm-feature-manager.io/snapshot"] = "fail".into();
    cluster.make(CLAIMS, broken).await;
    cluster.bound("bad-root").await;
    cluster.make(sim::VMS, vm_on("bad", "Halted", &["bad-root"])).await;
    let mut hasty = snapshot("s", "bad");
    hasty["spec"]["failureDeadline"] = "2s".into();
    cluster.make(SNAPSHOTS, hasty).await;
    let path = format!("{SNAPSHOTS}/s");
    let failing = |one: Option<&Value>| {
        let message = one.and_then(|one| one["status"]["error"]["message"].as_str());
        message.is_some_and(|message| message.contains("no space left for snapshots"))
    };
    cluster.wait(&path, "in error", failing).await;
    let failed = cluster.phase(&path, "Failed").await;
    assert_eq!(condition(&failed, "Failure").unwrap()["reason"], "snapshot deadline exceeded");
    let free = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"].get("snapshotInProgress").is_none());
    cluster.wait(&vm_path("bad"), "free", free).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_grow_and_data_volumes_are_cloned_and_fail_as_told() {
    let cluster = cluster().await;
    cluster.make(CLAIMS, claim("src", None)).await;
    cluster.bound("src").await;
    let volume = |name: &str, source: Value| {
        json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": name, "namespace": "default"},
            "spec": {"source": source, "storage": {"resources": {"requests": {"storage": "16Mi"}}}}})
    };
    cluster.make(DATA_VOLUMES, volume("copy", json!({"pvc": {"namespace": "default", "name": "src"}}))).await;
    cluster.phase(&format!("{DATA_VOLUMES}/copy"), "Succeeded").await;
    cluster.make(DATA_VOLUMES, volume("up", json!({"upload": {}}))).await;
    cluster.phase(&format!("{DATA_VOLUMES}/up"), "UploadReady").await;
    let mut away = volume("away", json!({"http": {"url": "http://images.example/fedora.qcow2"}}));
    away["metadata"]["annotations"] = json!({"sandbox.vm-feature-manager.io/import": "fail"});
    cluster.make(DATA_VOLUMES, away).await;
    let failing = |one: Option<&Value>| {
        one.is_some_and(|one| condition(one, "Running").is_some_and(|one| one["reason"] == "Error"))
    };
    cluster.wait(&format!("{DATA_VOLUMES}/away"), "failing", failing).await;

    let larger = json!({"spec": {"resources": {"requests": {"storage": "32Mi"}}}});
    cluster.call(Method::PATCH, &format!("{CLAIMS}/copy"), larger).await.unwrap();
    let grown =
        |claim: Option<&Value>| claim.is_some_and(|claim| claim["status"]["capacity"]["storage"] == "32Mi");
    cluster.wait(&format!("{CLAIMS}/copy"), "larger", grown).await;
    assert_eq!(cluster.disk("copy").metadata().unwrap().len(), 32 << 20);
    let name = cluster.get(&format!("{CLAIMS}/copy")).await.unwrap()["spec"]["volumeName"]
        .as_str()
        .unwrap()
        .to_owned();
    let volume = cluster.get(&format!("/api/v1/persistentvolumes/{name}")).await.unwrap();
    assert_eq!(
        (&volume["spec"]["capacity"]["storage"], &volume["status"]["phase"]),
        (&json!("32Mi"), &json!("Bound"))
    );
    cluster.call(Method::DELETE, &format!("{DATA_VOLUMES}/copy"), Value::Null).await.unwrap();
    cluster.wait(&format!("/api/v1/persistentvolumes/{name}"), "gone", |one| one.is_none()).await;
    assert!(!cluster.simulation.disks().join("default_copy").exists());
    cluster.stop().await;
}
