//! What in-place resize is for.

use serde_json::json;

use super::stage::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_grows_in_its_own_pod_without_a_migration() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let before = stage.launchers("db").await;
    stage.grow("db", 4, "2Gi").await;
    let vmi = stage.wait_vmi("db", "grown", is_grown).await;
    let after = stage.launchers("db").await;
    assert_eq!(after.len(), 1);
    assert_eq!(before[0]["metadata"]["uid"], after[0]["metadata"]["uid"], "the same launcher");
    // What virt-controller renders for this size, recorded.
    assert_eq!(requests(&after[0]), asks("400m", "2360Mi"));
    let guest = stage.guest("db").await.unwrap();
    assert_eq!((guest.vcpus, guest.requested, guest.current), (4, 2 << 30, 2 << 30));
    assert_eq!(stage.migrations().await, 0);
    assert!(condition(&vmi, "HotVCPUChange").is_none() && condition(&vmi, "HotMemoryChange").is_none());
    let events = "/api/v1/namespaces/default/events";
    stage.wait(events, "told", |found| found.to_string().contains("ResizeDone")).await;
    assert_eq!(stage.events("db").await, ["ResizeDone", "ResizeStarted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_goes_down_in_place_and_vcpus_stay() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    stage.grow("db", 4, "2Gi").await;
    stage.wait_vmi("db", "grown", is_grown).await;
    let before = stage.launchers("db").await;
    stage.grow("db", 4, "1Gi").await;
    stage.wait_vmi("db", "smaller", |vmi| has_size(vmi, 4, "1Gi")).await;
    let after = stage.launchers("db").await;
    assert_eq!(before[0]["metadata"]["uid"], after[0]["metadata"]["uid"], "the same launcher");
    assert_eq!(requests(&after[0]), asks("400m", "1336Mi"), "two vCPUs more than at the start");
    let guest = stage.guest("db").await.unwrap();
    assert_eq!((guest.vcpus, guest.current), (4, 1 << 30));
    assert_eq!(stage.migrations().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_right_after_a_resize_renders_a_target_of_the_new_size() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let before = stage.launchers("db").await.remove(0);
    stage.grow("db", 4, "2Gi").await;
    stage.wait_vmi("db", "grown", is_grown).await;
    stage.migrate("db").await;
    let vmi = stage.wait_vmi("db", "grown", is_grown).await;
    let pods = stage.launchers("db").await;
    let target = pods.iter().find(|pod| pod["spec"]["nodeName"] == vmi["status"]["nodeName"]).unwrap();
    assert_ne!(target["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(requests(target), asks("400m", "2360Mi"));
    let guest = stage.guest("db").await.unwrap();
    assert_eq!((guest.vcpus, guest.current), (4, 2 << 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn vcpus_and_with_the_grant_memory_of_a_vm_that_cannot_migrate_grow_without_a_restart() {
    let (stage, _steward) = Stage::with_steward(Setup { declare_memory: true, ..Setup::default() }).await;
    let methods =
        json!({"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate", "Evict"]}}});
    stage.patch("/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt", methods).await;
    let vmi = stage.vm_with("db", Some("Enabled"), json!({}), false).await;
    stage.grow("db", 4, "2Gi").await;
    let grown = stage.wait_vmi("db", "grown", is_grown).await;
    assert_eq!(vmi["metadata"]["uid"], grown["metadata"]["uid"], "never restarted");
    assert_eq!(requests(&stage.launchers("db").await[0]), asks("400m", "2360Mi"));
    let guest = stage.guest("db").await.unwrap();
    assert_eq!((guest.vcpus, guest.current), (4, 2 << 30));
    let path = format!("{VMS}/db");
    stage.wait(&path, "content", |vm| condition(vm, "RestartRequired").is_none()).await;
    assert_eq!(stage.migrations().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_grant_only_the_vcpus_of_a_vm_that_cannot_migrate_grow() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    let vmi = stage.vm_with("db", Some("Enabled"), json!({}), false).await;
    stage.grow("db", 4, "1Gi").await;
    stage.wait_vmi("db", "larger", |vmi| has_size(vmi, 4, "1Gi")).await;
    stage.grow("db", 4, "2Gi").await;
    let path = format!("{VMS}/db");
    stage.wait(&path, "waiting for a restart", |vm| condition(vm, "RestartRequired").is_some()).await;
    let same = stage.get(&format!("{VMIS}/db")).await;
    assert!(has_size(&same, 4, "1Gi") && same["metadata"]["uid"] == vmi["metadata"]["uid"]);
}
