//! The races that were seen on a real control plane.

use std::time::Duration;

use agent::Call;
use resize::Size;
use serde_json::{Value, json};

use super::stage::*;

/// R2: the plug raises what virt-controller computes its delta from, so its own limit would stay.
#[tokio::test(flavor = "multi_thread")]
async fn limits_follow_the_guest_though_virt_controller_counts_from_what_is_plugged() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    let limits = json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}});
    stage.vm_with("db", Some("Enabled"), limits, true).await;
    let before = stage.launchers("db").await.remove(0);
    stage.grow("db", 4, "2Gi").await;
    let vmi = stage.wait_vmi("db", "grown", is_grown).await;
    let resources_of_vmi = &vmi["spec"]["domain"]["resources"];
    assert_eq!(resources_of_vmi["requests"]["memory"], "2Gi");
    assert_eq!(resources_of_vmi["limits"]["memory"], "3Gi");
    let after = stage.launchers("db").await.remove(0);
    let limit = |pod| resize::quantity::bytes(&resources(pod)["limits"]["memory"]).unwrap();
    // A GiB, two vCPUs, and the page tables of a GiB that is requested.
    assert_eq!(limit(&after) - limit(&before), (1 << 30) + (16 << 20) + (2 << 20));
    stage.migrate("db").await;
    let vmi = stage.wait_vmi("db", "grown", is_grown).await;
    let pods = stage.launchers("db").await;
    let target = pods.iter().find(|pod| pod["spec"]["nodeName"] == vmi["status"]["nodeName"]).unwrap();
    assert_eq!(resources(target), resources(&after), "the target is rendered as the pod was resized");
}

/// R1: the guest has been plugged and not declared when a migration carries it into a pod that is
/// rendered for the old size.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_carried_away_before_it_is_declared_is_done_again_in_the_new_pod() {
    let stage = Stage::start().await;
    let _steward = stage.steward(&Setup::default()).await;
    let vmi = stage.vm("db", Some("Enabled")).await;
    let old = stage.launchers("db").await.remove(0);
    stage.grow("db", 4, "2Gi").await;
    stage.wait_phase("db", "Plugging").await;
    // There is no agent: what it would do is done by hand, and not reported.
    let launcher = stage.launcher(&vmi, &old).await.unwrap();
    let size = Size { sockets: 4, guest: 2 << 30 };
    launcher.make(Call::Memory(size)).await.unwrap();
    launcher.make(Call::Cpus(size)).await.unwrap();
    while launcher.guest().await.unwrap().current != 2 << 30 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The reconciler asks for more as soon as the migration is over; kubelets show what was there before.
    let kubelets = async |fault: Value| {
        let fault = json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": fault}}});
        for node in ["node01", "node02"] {
            stage.patch(&format!("/api/v1/nodes/{node}"), fault.clone()).await;
        }
    };
    kubelets("Slow".into()).await;
    stage.migrate("db").await;
    let moved =
        stage.wait_vmi("db", "moved", |vmi| vmi["status"]["nodeName"] != old["spec"]["nodeName"]).await;
    let pods = stage.launchers("db").await;
    let new = pods.iter().find(|pod| pod["spec"]["nodeName"] == moved["status"]["nodeName"]).unwrap();
    assert_eq!(allocated(new), asks("200m", "1320Mi"), "rendered for the old size: the race is there");
    kubelets(Value::Null).await;
    stage.agents().await;
    stage.wait_vmi("db", "grown", is_grown).await;
    let pods = stage.launchers("db").await;
    let new = pods.iter().find(|pod| pod["spec"]["nodeName"] == moved["status"]["nodeName"]).unwrap();
    assert_eq!(requests(new), asks("400m", "2360Mi"));
    let guest = stage.guest("db").await.unwrap();
    assert_eq!((guest.vcpus, guest.current), (4, 2 << 30));
}

/// A drain begins while kubelet has not got to the resize yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_begins_while_the_pod_is_resized_is_waited_for() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let old = stage.launchers("db").await.remove(0);
    let node = format!("/api/v1/nodes/{}", old["spec"]["nodeName"].as_str().unwrap());
    let slow = json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": "Slow"}}});
    stage.patch(&node, slow).await;
    stage.grow("db", 4, "2Gi").await;
    stage.wait_phase("db", "Preparing").await;
    stage.migrate("db").await;
    let vmi = stage.wait_vmi("db", "grown", is_grown).await;
    assert_ne!(vmi["status"]["nodeName"], old["spec"]["nodeName"]);
    let pods = stage.launchers("db").await;
    let new = pods.iter().find(|pod| pod["spec"]["nodeName"] == vmi["status"]["nodeName"]).unwrap();
    assert_eq!(requests(new), asks("400m", "2360Mi"));
}

/// The owner takes it back while kubelet waits for room: the pod is put back, and nothing remains.
#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_is_taken_back_leaves_nothing() {
    let (stage, _steward) = Stage::with_steward(Setup::default()).await;
    stage.vm("db", Some("Enabled")).await;
    let before = stage.launchers("db").await.remove(0);
    let node = format!("/api/v1/nodes/{}", before["spec"]["nodeName"].as_str().unwrap());
    let full = json!({"metadata": {"annotations": {"sandbox.vm-feature-manager.io/resize": "Defer"}}});
    stage.patch(&node, full).await;
    stage.grow("db", 4, "2Gi").await;
    let pods = "/api/v1/namespaces/default/pods";
    stage.wait(pods, "asked for", |found| found.to_string().contains("PodResizePending")).await;
    stage.grow("db", 2, "1Gi").await;
    let vmi = stage.wait_vmi("db", "as before", |vmi| {
        has_size(vmi, 2, "1Gi") && annotation(vmi, "resize-wish").is_none()
    });
    let vmi = vmi.await;
    assert!(annotation(&vmi, "resize-guest").is_none());
    let after = stage.launchers("db").await.remove(0);
    assert_eq!(resources(&after), resources(&before));
}
