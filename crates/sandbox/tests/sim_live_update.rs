//! Changes of a running VM: what reaches the guest, what migrates for it, and what waits for a restart.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, VMS, condition, items, vm, vm_path, vmi_path};

const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
const KUBEVIRT: &str = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";

async fn start(vm: Value) -> Cluster {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    cluster.call(Method::POST, VMS, vm).await.unwrap();
    cluster.printable("web", "Running").await;
    cluster
}

fn domain(change: impl Into<Value>) -> Value {
    let change: Value = change.into();
    json!({"spec": {"template": {"spec": {"domain": change}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_and_memory_arrive_by_a_migration() {
    let cluster = start(vm("web", "Always")).await;
    let node = cluster.get(&vmi_path("web")).await.unwrap()["status"]["nodeName"].clone();
    let change = domain(json!({"cpu": {"sockets": 4}, "memory": {"guest": "2Gi"}}));
    cluster.call(Method::PATCH, &vm_path("web"), change).await.unwrap();
    let waits = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            condition(vmi, "HotVCPUChange").is_some() && condition(vmi, "HotMemoryChange").is_some()
        })
    };
    let vmi = cluster.wait(&vmi_path("web"), "waiting for the change", waits).await.unwrap();
    assert_eq!(vmi["spec"]["domain"]["cpu"]["sockets"], 4);
    assert_eq!(vmi["status"]["currentCPUTopology"]["sockets"], 2);
    let done = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["currentCPUTopology"]["sockets"] == 4
                && vmi["status"]["memory"]["guestCurrent"] == "2Gi"
        })
    };
    let vmi = cluster.wait(&vmi_path("web"), "grown", done).await.unwrap();
    assert_ne!(vmi["status"]["nodeName"], node);
    assert_eq!(vmi["status"]["memory"]["guestRequested"], "2Gi");
    assert!(condition(&vmi, "HotVCPUChange").is_none() && condition(&vmi, "HotMemoryChange").is_none());
    let list = cluster.get(MIGRATIONS).await.unwrap();
    let [made] = items(&list) else { panic!("one migration: {list:#}") };
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("kubevirt-workload-update-"));
    assert_eq!(made["spec"], json!({"priority": "user-triggered", "vmiName": "web"}));
    let pods =
        cluster.get(&format!("{}?labelSelector=kubevirt.io%2FmigrationJobUID", sim::PODS)).await.unwrap();
    let requests = &items(&pods)[0]["spec"]["containers"][0]["resources"]["requests"];
    // As recorded: two more vCPUs, one more GiB, and the overhead that goes with them.
    assert_eq!((&requests["cpu"], &requests["memory"]), (&json!("400m"), &json!("2360Mi")));
    assert!(condition(&cluster.get(&vm_path("web")).await.unwrap(), "RestartRequired").is_none());
    // The template that it was started with asks for less than it has by now.
    let change = domain(json!({"cpu": {"sockets": 2}, "memory": {"guest": "1Gi"}}));
    cluster.call(Method::PATCH, &vm_path("web"), change).await.unwrap();
    let stuck = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "RestartRequired").is_some());
    cluster.wait(&vm_path("web"), "waiting for a restart", stuck).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_follow_asks_for_a_restart() {
    let cluster = start(vm("web", "Always")).await;
    let marked = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "RestartRequired").is_some());
    for (change, back, message) in [
        (
            json!({"cpu": {"cores": 2}}),
            json!({"cpu": {"cores": 1}}),
            "a non-live-updatable field was changed in the template spec",
        ),
        (
            json!({"cpu": {"sockets": 1}}),
            json!({"cpu": {"sockets": 2}}),
            "Reduction of CPU socket count requires a restart",
        ),
        (
            json!({"memory": {"guest": "512Mi"}}),
            json!({"memory": {"guest": "1Gi"}}),
            "memory hotplug not supported, Memory hotplug is only available for VMs with at least 1Gi of guest memory",
        ),
    ] {
        cluster.call(Method::PATCH, &vm_path("web"), domain(change)).await.unwrap();
        let vm = cluster.wait(&vm_path("web"), "marked", marked).await.unwrap();
        assert_eq!(condition(&vm, "RestartRequired").unwrap()["message"], message);
        cluster.call(Method::PATCH, &vm_path("web"), domain(back)).await.unwrap();
        cluster.wait(&vm_path("web"), "taken back", |vm| !marked(vm)).await;
    }
    // A restart brings the change, and takes the mark away.
    cluster.call(Method::PATCH, &vm_path("web"), domain(json!({"cpu": {"cores": 2}}))).await.unwrap();
    cluster.wait(&vm_path("web"), "marked", marked).await;
    let path = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/restart";
    assert_eq!(cluster.raw(Method::PUT, path, json!({})).await.0, 202);
    let new = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["phase"] == "Running" && vmi["spec"]["domain"]["cpu"]["cores"] == 2
        })
    };
    cluster.wait(&vmi_path("web"), "another", new).await;
    cluster.wait(&vm_path("web"), "clean", |vm| !marked(vm)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_cannot_migrate_keeps_its_cpus_waiting_or_is_evicted() {
    let mut stuck = vm("web", "Always");
    stuck["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0] =
        json!({"name": "default", "bridge": {}});
    let cluster = start(stuck).await;
    let first = cluster.get(&vmi_path("web")).await.unwrap()["metadata"]["uid"].clone();
    cluster.call(Method::PATCH, &vm_path("web"), domain(json!({"memory": {"guest": "2Gi"}}))).await.unwrap();
    let marked = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "RestartRequired").is_some());
    let vm = cluster.wait(&vm_path("web"), "marked", marked).await.unwrap();
    assert_eq!(
        condition(&vm, "RestartRequired").unwrap()["message"],
        "memory updated in template spec. Memory-hotplug is only available for migratable VMs"
    );
    let back = domain(json!({"memory": {"guest": "1Gi"}, "cpu": {"sockets": 3}}));
    cluster.call(Method::PATCH, &vm_path("web"), back).await.unwrap();
    let waits = |vmi: Option<&Value>| vmi.is_some_and(|vmi| condition(vmi, "HotVCPUChange").is_some());
    cluster.wait(&vmi_path("web"), "waiting", waits).await;
    // Another change has to wait behind the first, and says so.
    cluster.call(Method::PATCH, &vm_path("web"), domain(json!({"cpu": {"sockets": 4}}))).await.unwrap();
    let failing = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "Failure").is_some());
    let vm = cluster.wait(&vm_path("web"), "failing", failing).await.unwrap();
    let failure = condition(&vm, "Failure").unwrap();
    assert_eq!(failure["reason"], "HotPlugCPUError");
    assert_eq!(
        failure["message"],
        "Error encountered while handling CPU change request: another CPU hotplug is in progress"
    );
    let methods =
        json!({"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate", "Evict"]}}});
    cluster.call(Method::PATCH, KUBEVIRT, methods).await.unwrap();
    let replaced = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["metadata"]["uid"] != first
                && vmi["status"]["phase"] == "Running"
                && vmi["status"]["currentCPUTopology"]["sockets"] == 4
        })
    };
    cluster.wait(&vmi_path("web"), "started again", replaced).await;
    cluster.stop().await;
}
