//! Claims of running VMs that are exchanged for others (`updateVolumesStrategy: Migration`), with their content.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, VMS, condition, items, vm, vm_path, vmi_path};

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
const KUBEVIRT: &str = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";

async fn claim(cluster: &Cluster, name: &str, class: &str) {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "64Mi"}}}});
    cluster.call(Method::POST, CLAIMS, claim).await.unwrap();
}

/// A running VM `v` on the claim `old`, which cannot be shared.
async fn start() -> Cluster {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    claim(&cluster, "old", "standard").await;
    let mut given = vm("v", "Always");
    given["spec"]["template"]["spec"]["volumes"][0] =
        json!({"name": "root", "persistentVolumeClaim": {"claimName": "old"}});
    cluster.call(Method::POST, VMS, given).await.unwrap();
    cluster.printable("v", "Running").await;
    cluster
}

/// Names another claim in the VM's template.
async fn name_claim(cluster: &Cluster, claim: &str) {
    let volumes = json!([{"name": "root", "persistentVolumeClaim": {"claimName": claim}}]);
    let patch =
        json!({"spec": {"updateVolumesStrategy": "Migration", "template": {"spec": {"volumes": volumes}}}});
    cluster.call(Method::PATCH, &vm_path("v"), patch).await.unwrap();
}

fn claim_of(vmi: &Value) -> &str {
    vmi.pointer("/spec/volumes/0/persistentVolumeClaim/claimName").and_then(Value::as_str).unwrap()
}

/// Memory goes over so slowly that a migration never ends by itself.
async fn slow(cluster: &Cluster) {
    let patch = json!({"spec": {"configuration": {"migrations":
        {"bandwidthPerMigration": "1Mi", "completionTimeoutPerGiB": 1_000_000}}}});
    cluster.call(Method::PATCH, KUBEVIRT, patch).await.unwrap();
}

async fn is_moving(cluster: &Cluster) {
    let running = |list: Option<&Value>| {
        list.is_some_and(|list| items(list).iter().any(|one| one["status"]["phase"] == "Running"))
    };
    cluster.wait(MIGRATIONS, "under way", running).await;
}

fn moves(vm: &Value) -> bool {
    vm.pointer("/status/volumeUpdateState/volumeMigrationState").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_takes_its_volume_along_into_another_claim() {
    let cluster = start().await;
    let before = cluster.get(&vmi_path("v")).await.unwrap();
    assert_eq!(condition(&before, "LiveMigratable").unwrap()["reason"], "DisksNotLiveMigratable");
    claim(&cluster, "new", "local").await;
    name_claim(&cluster, "new").await;
    let moved = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            claim_of(vmi) == "new"
                && vmi["status"]["nodeName"] != before["status"]["nodeName"]
                && vmi["status"]["migrationState"]["completed"] == true
                && vmi["status"].get("migratedVolumes").is_none()
                && condition(vmi, "VolumesChange").is_none()
        })
    };
    let after = cluster.wait(&vmi_path("v"), "moved", moved).await.unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "the guest went on");
    assert_eq!(after["status"]["migrationMethod"], "BlockMigration");
    let list = cluster.get(MIGRATIONS).await.unwrap();
    assert_eq!(items(&list)[0]["metadata"]["labels"]["kubevirt.io/volume-update-in-progress"], "v");
    let vm = cluster.get(&vm_path("v")).await.unwrap();
    let volume = &vm["status"]["volumeUpdateState"]["volumeMigrationState"]["migratedVolumes"][0];
    assert_eq!(
        (&volume["sourcePVCInfo"]["claimName"], &volume["destinationPVCInfo"]["claimName"]),
        (&json!("old"), &json!("new"))
    );
    assert!(condition(&vm, "RestartRequired").is_none(), "{vm:#}");
    let content =
        |claim: &str| std::fs::read(cluster.simulation.disks().join(format!("default_{claim}"))).unwrap();
    let (old, new) = (content("old"), content("new"));
    assert_eq!(old.len(), 64 << 20);
    assert!(old == new && old.iter().any(|byte| *byte != 0), "the content was copied");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn naming_the_old_claims_again_cancels() {
    let cluster = start().await;
    slow(&cluster).await;
    let node = cluster.get(&vmi_path("v")).await.unwrap()["status"]["nodeName"].clone();
    for name in ["new", "third"] {
        claim(&cluster, name, "standard").await;
    }
    name_claim(&cluster, "new").await;
    is_moving(&cluster).await;

    name_claim(&cluster, "third").await;
    let failing = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "Failure").is_some());
    let vm = cluster.wait(&vm_path("v"), "refused", failing).await.unwrap();
    let why = condition(&vm, "Failure").unwrap();
    assert_eq!(why["reason"], "VolumesUpdateError");
    assert_eq!(
        why["message"],
        "error encountered while handling volumes update requests: The volume can only be reverted to the previous \
         version during the update"
    );

    name_claim(&cluster, "old").await;
    let cancelled = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            claim_of(vmi) == "old"
                && condition(vmi, "VolumesChange").is_some_and(|one| {
                    one["status"] == "False" && one["reason"] == "VolumesChangeCancellation"
                })
                && vmi["status"]["migrationState"]["abortStatus"] == "Succeeded"
        })
    };
    let vmi = cluster.wait(&vmi_path("v"), "cancelled", cancelled).await.unwrap();
    assert_eq!(vmi["status"]["nodeName"], node);
    let still = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            !moves(vm) && condition(vm, "Failure").is_none() && vm["status"]["printableStatus"] == "Running"
        })
    };
    cluster.wait(&vm_path("v"), "as it was", still).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_not_there_is_waited_for_and_a_lun_needs_a_restart() {
    let cluster = start().await;
    name_claim(&cluster, "later").await;
    let waits = |vmi: Option<&Value>| vmi.is_some_and(|vmi| condition(vmi, "VolumesChange").is_some());
    let vmi = cluster.wait(&vmi_path("v"), "waiting", waits).await.unwrap();
    let why = condition(&vmi, "VolumesChange").unwrap();
    assert_eq!((&why["status"], claim_of(&vmi)), (&json!("False"), "old"));
    assert_eq!(why["message"], "One of the destination volumes doesn't exist: the pvc later doesn't exist");
    claim(&cluster, "later", "standard").await;
    let moved = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| claim_of(vmi) == "later" && condition(vmi, "VolumesChange").is_none())
    };
    cluster.wait(&vmi_path("v"), "moved", moved).await;

    let mut given = vm("lun", "Always");
    let spec = &mut given["spec"]["template"]["spec"];
    spec["volumes"][0] = json!({"name": "root", "persistentVolumeClaim": {"claimName": "old"}});
    spec["domain"]["devices"]["disks"][0] = json!({"name": "root", "lun": {"bus": "scsi"}});
    cluster.call(Method::POST, VMS, given).await.unwrap();
    cluster.printable("lun", "Running").await;
    claim(&cluster, "other", "standard").await;
    let volumes = json!([{"name": "root", "persistentVolumeClaim": {"claimName": "other"}}]);
    let patch =
        json!({"spec": {"updateVolumesStrategy": "Migration", "template": {"spec": {"volumes": volumes}}}});
    cluster.call(Method::PATCH, &vm_path("lun"), patch).await.unwrap();
    let asked = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "RestartRequired").is_some());
    let vm = cluster.wait(&vm_path("lun"), "to be restarted", asked).await.unwrap();
    assert_eq!(
        condition(&vm, "RestartRequired").unwrap()["message"],
        "invalid volumes to update with migration: luns: [root]"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_lost_on_the_way_is_not_started_on_half_a_volume() {
    let cluster = start().await;
    slow(&cluster).await;
    claim(&cluster, "new", "standard").await;
    name_claim(&cluster, "new").await;
    is_moving(&cluster).await;
    // virt-controller starts a VM that always runs at once, before it knows: v1.9 does so too.
    let manual = json!({"spec": {"runStrategy": "Manual"}});
    cluster.call(Method::PATCH, &vm_path("v"), manual).await.unwrap();
    let verb =
        |verb: &str| format!("/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/v/{verb}");
    assert_eq!(cluster.raw(Method::PUT, &verb("stop"), json!({"gracePeriod": 0})).await.0, 202);
    let lost = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            condition(vm, "ManualRecoveryRequired").is_some_and(|one| one["status"] == "True")
                && vm["status"].get("created").is_none()
        })
    };
    let vm = cluster.wait(&vm_path("v"), "lost", lost).await.unwrap();
    assert_eq!(
        condition(&vm, "ManualRecoveryRequired").unwrap()["reason"],
        "VMI was removed or was final during the volume migration"
    );
    let (code, answer) = cluster.raw(Method::PUT, &verb("start"), json!({})).await;
    assert_eq!(code, 409);
    assert!(answer["message"].as_str().unwrap().contains("VM recovery required: Volume migration failed"));

    name_claim(&cluster, "old").await;
    let recovered =
        |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "ManualRecoveryRequired").is_none());
    cluster.wait(&vm_path("v"), "recovered", recovered).await;
    assert_eq!(cluster.raw(Method::PUT, &verb("start"), json!({})).await.0, 202);
    let vm = cluster.printable("v", "Running").await;
    assert!(condition(&vm, "ManualRecoveryRequired").is_none() && !moves(&vm));
    assert_eq!(claim_of(&cluster.get(&vmi_path("v")).await.unwrap()), "old");
    cluster.stop().await;
}
