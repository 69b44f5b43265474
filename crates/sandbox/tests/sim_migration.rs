//! Live migrations, evictions and what follows from them, seen through the API alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{Cluster, PODS, VMS, condition, items, vm, vmi_path};

const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";

fn migratable(name: &str, strategy: &str) -> Value {
    let mut vm = vm(name, "Always");
    vm["spec"]["template"]["spec"]["evictionStrategy"] = strategy.into();
    vm
}

fn migration(name: &str, vmi: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration", "metadata": {"name": name},
        "spec": {"vmiName": vmi}})
}

async fn start(nodes: u32) -> Cluster {
    Cluster::start(SimConfig { nodes, ..SimConfig::default() }).await
}

async fn run(cluster: &Cluster, vm: Value) -> String {
    let name = vm["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.call(Method::POST, VMS, vm).await.unwrap();
    cluster.printable(&name, "Running").await;
    node_of(cluster, &name).await
}

async fn node_of(cluster: &Cluster, name: &str) -> String {
    cluster.get(&vmi_path(name)).await.unwrap()["status"]["nodeName"].as_str().unwrap().to_owned()
}

async fn ends(cluster: &Cluster, name: &str, phase: &str) -> Value {
    let is = |one: Option<&Value>| one.is_some_and(|one| one["status"]["phase"] == phase);
    cluster.wait(&format!("{MIGRATIONS}/{name}"), phase, is).await.unwrap()
}

/// Slows every migration down.
async fn slow(cluster: &Cluster, bandwidth: &str) {
    let path = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
    let patch = json!({"spec": {"configuration": {"migrations": {"bandwidthPerMigration": bandwidth}}}});
    cluster.call(Method::PATCH, path, patch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_to_another_node_and_back() {
    let cluster = start(2).await;
    let first = run(&cluster, migratable("web", "LiveMigrate")).await;
    cluster.call(Method::POST, MIGRATIONS, migration("there", "web")).await.unwrap();
    let done = ends(&cluster, "there", "Succeeded").await;
    let phases: Vec<&str> = done["status"]["phaseTransitionTimestamps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["phase"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        ["Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Succeeded"]
    );
    let tidy = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["metadata"]["labels"].get("kubevirt.io/migrationTargetNodeName").is_none()
                && condition(vmi, "Ready").is_some_and(|ready| ready["status"] == "True")
        })
    };
    let vmi = cluster.wait(&vmi_path("web"), "tidy", tidy).await.unwrap();
    let second = vmi["status"]["nodeName"].as_str().unwrap();
    assert_ne!(second, first);
    assert_eq!(vmi["metadata"]["labels"]["kubevirt.io/nodeName"], second);
    let state = &vmi["status"]["migrationState"];
    assert_eq!((&state["completed"], &state["mode"]), (&json!(true), &json!("PreCopy")));
    assert_eq!((&state["sourceNode"], &state["targetNode"]), (&json!(first), &json!(second)));
    assert_eq!(state["migrationConfiguration"]["parallelMigrationsPerCluster"], 5);
    let old = format!("{PODS}/{}", state["sourcePod"].as_str().unwrap());
    let ended = |pod: Option<&Value>| pod.is_some_and(|pod| pod["status"]["phase"] == "Succeeded");
    cluster.wait(&old, "over", ended).await;
    assert_eq!(vmi["status"]["interfaces"][0]["name"], "default");

    // To a node by name, through virt-api.
    let path = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/migrate";
    let selector = json!({"addedNodeSelector": {"kubernetes.io/hostname": first}});
    assert_eq!(cluster.raw(Method::PUT, path, selector).await.0, 202);
    let back = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["status"]["nodeName"] == first.as_str() && tidy(Some(vmi)))
    };
    cluster.wait(&vmi_path("web"), "back", back).await;
    let list = cluster.get(MIGRATIONS).await.unwrap();
    assert!(items(&list).iter().any(|one| {
        one["metadata"]["generateName"] == "kubevirt-migrate-vm-"
            && one["metadata"]["labels"]["kubevirt.io/vmi-name"] == "web"
    }));
    cluster.printable("web", "Running").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_cancelled_by_its_deletion() {
    let cluster = start(2).await;
    let node = run(&cluster, migratable("web", "LiveMigrate")).await;
    slow(&cluster, "1Mi").await;
    cluster.call(Method::POST, MIGRATIONS, migration("slow", "web")).await.unwrap();
    ends(&cluster, "slow", "Running").await;
    cluster.printable("web", "Migrating").await;
    let error = cluster.call(Method::POST, MIGRATIONS, migration("second", "web")).await.unwrap_err();
    assert!(error.to_string().contains("in-flight migration detected"), "{error}");
    let (code, answer) = cluster
        .raw(
            Method::PUT,
            "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/web/pause",
            json!({}),
        )
        .await;
    assert_eq!(code, 409, "{answer}");
    cluster.call(Method::DELETE, &format!("{MIGRATIONS}/slow"), Value::Null).await.unwrap();
    cluster.wait(&format!("{MIGRATIONS}/slow"), "gone", |one| one.is_none()).await;
    let failed =
        |vmi: Option<&Value>| vmi.is_some_and(|vmi| vmi["status"]["migrationState"]["failed"] == true);
    let vmi = cluster.wait(&vmi_path("web"), "stopped migrating", failed).await.unwrap();
    let state = &vmi["status"]["migrationState"];
    assert_eq!((&state["abortRequested"], &state["abortStatus"]), (&json!(true), &json!("Succeeded")));
    assert_eq!(state["failureReason"], "Live migration has been aborted");
    assert_eq!(vmi["status"]["nodeName"], node.as_str());
    let target = format!("{PODS}/{}", state["targetPod"].as_str().unwrap());
    let over = |pod: Option<&Value>| pod.is_none_or(|pod| pod["status"]["phase"] == "Succeeded");
    cluster.wait(&target, "over", over).await;
    cluster.printable("web", "Running").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_without_a_place_waits_and_fails_with_its_pod() {
    let cluster = start(1).await;
    run(&cluster, migratable("web", "LiveMigrate")).await;
    let mut hasty = migration("hasty", "web");
    hasty["metadata"]["annotations"] = json!({"kubevirt.io/migrationUnschedulablePodTimeoutSeconds": "1"});
    cluster.call(Method::POST, MIGRATIONS, hasty).await.unwrap();
    ends(&cluster, "hasty", "Failed").await;
    let none_left = |pods: Option<&Value>| pods.is_some_and(|pods| items(pods).len() == 1);
    cluster.wait(PODS, "without the target", none_left).await;
    let error = cluster.call(Method::POST, MIGRATIONS, migration("stray", "nobody")).await.unwrap_err();
    assert!(error.to_string().contains("the VMI \"default/nobody\" does not exist"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_two_leave_a_node_at_once() {
    let cluster = start(2).await;
    let cordon = json!({"spec": {"unschedulable": true}});
    cluster.call(Method::PATCH, "/api/v1/nodes/node02", cordon).await.unwrap();
    slow(&cluster, "2Gi").await;
    for index in 0..4 {
        assert_eq!(run(&cluster, migratable(&format!("v{index}"), "LiveMigrate")).await, "node01");
    }
    let open = json!({"spec": {"unschedulable": false}});
    cluster.call(Method::PATCH, "/api/v1/nodes/node02", open).await.unwrap();
    for index in 0..4 {
        let name = format!("v{index}");
        cluster.call(Method::POST, MIGRATIONS, migration(&name, &name)).await.unwrap();
    }
    let most = std::sync::atomic::AtomicUsize::new(0);
    let all_over = |list: Option<&Value>| {
        let list = items(list.unwrap());
        let busy = list.iter().filter(|one| {
            !matches!(one["status"]["phase"].as_str(), None | Some("Pending" | "Succeeded" | "Failed"))
        });
        most.fetch_max(busy.count(), std::sync::atomic::Ordering::SeqCst);
        list.iter().all(|one| one["status"]["phase"] == "Succeeded")
    };
    cluster.wait(MIGRATIONS, "all over", all_over).await;
    let most = most.into_inner();
    assert!((1..=2).contains(&most), "{most} at once");
    cluster.stop().await;
}

async fn evict(cluster: &Cluster, pod: &str) -> (u16, Value) {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}});
    cluster.raw(Method::POST, &format!("{PODS}/{pod}/eviction"), eviction).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_moves_the_guest_and_then_takes_the_pod() {
    let cluster = start(2).await;
    let node = run(&cluster, migratable("web", "LiveMigrate")).await;
    let pods = cluster.get(PODS).await.unwrap();
    let pod = items(&pods)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let (code, answer) = evict(&cluster, &pod).await;
    assert_eq!(code, 429, "{answer}");
    assert_eq!(
        answer["message"],
        "admission webhook \"virt-launcher-eviction-interceptor.kubevirt.io\" denied the request: Eviction triggered \
         evacuation of VMI \"default/web\""
    );
    let moved = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["nodeName"] != node.as_str() && vmi["status"]["migrationState"]["completed"] == true
        })
    };
    let vmi = cluster.wait(&vmi_path("web"), "elsewhere", moved).await.unwrap();
    assert_eq!(vmi["status"].get("evacuationNodeName"), None);
    let list = cluster.get(MIGRATIONS).await.unwrap();
    let [made] = items(&list) else { panic!("one migration: {list:#}") };
    assert_eq!(made["metadata"]["annotations"]["kubevirt.io/evacuationMigration"], node.as_str());
    assert_eq!(made["spec"]["priority"], "system-critical");
    let path = format!("{PODS}/{pod}");
    let over = |pod: Option<&Value>| pod.is_some_and(|pod| pod["status"]["phase"] == "Succeeded");
    cluster.wait(&path, "over", over).await;
    assert_eq!(evict(&cluster, &pod).await.0, 201);
    cluster.wait(&path, "gone", |pod| pod.is_none()).await;

    // Who cannot migrate stays, and says so.
    let mut stuck = migratable("stuck", "LiveMigrate");
    stuck["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0] =
        json!({"name": "default", "bridge": {}});
    run(&cluster, stuck).await;
    let pods = cluster.get(&format!("{PODS}?labelSelector=app%3Dstuck")).await.unwrap();
    let (code, answer) = evict(&cluster, items(&pods)[0]["metadata"]["name"].as_str().unwrap()).await;
    assert_eq!(code, 429);
    assert!(answer["message"].as_str().unwrap().ends_with("but is not live-migratable"), "{answer}");
    cluster.stop().await;
}
