//! The life of virtual machines in the simulated cluster, seen through the API alone.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail as tests do

mod sim;

use std::time::Duration;

use http::{Method, Request};
use sandbox::sim::{SimConfig, connect};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use sim::{BOUND, Cluster, PODS, VMIS, VMS, condition, items, vm, vm_path, vmi_path};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_runs_and_goes_without_a_trace() {
    let cluster = Cluster::start(SimConfig::default()).await;
    cluster.call(Method::POST, VMS, vm("web", "Always")).await.unwrap();
    let ready = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["ready"] == true);
    let vm = cluster.wait(&vm_path("web"), "ready", ready).await.unwrap();
    assert_eq!(vm["status"]["printableStatus"], "Running");
    assert_eq!(vm["status"]["created"], true);
    assert_eq!(vm["status"]["runStrategy"], "Always");

    let vmi = cluster.get(&vmi_path("web")).await.unwrap();
    assert_eq!(vmi["status"]["phase"], "Running");
    let node = vmi["status"]["nodeName"].as_str().unwrap();
    assert_eq!(vmi["metadata"]["labels"]["kubevirt.io/nodeName"], node);
    let phases: Vec<_> = vmi["status"]["phaseTransitionTimestamps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["Pending", "Scheduling", "Scheduled", "Running"]);

    let pods = cluster.get(&format!("{PODS}?labelSelector=kubevirt.io%3Dvirt-launcher")).await.unwrap();
    let [pod] = items(&pods) else { panic!("one launcher: {pods:#}") };
    assert_eq!(pod["spec"]["nodeName"], node);
    assert_eq!(pod["status"]["phase"], "Running");
    let requests = &pod["spec"]["containers"][0]["resources"]["requests"];
    // The recorded requests of a VM with two vCPUs and 1 GiB.
    assert_eq!((&requests["cpu"], &requests["memory"]), (&json!("200m"), &json!("1320Mi")));
    assert_eq!(vmi["status"]["interfaces"][0]["ipAddress"], pod["status"]["podIP"]);

    cluster.call(Method::DELETE, &vm_path("web"), Value::Null).await.unwrap();
    cluster.wait(&vm_path("web"), "gone", |vm| vm.is_none()).await;
    cluster.wait(&vmi_path("web"), "gone", |vmi| vmi.is_none()).await;
    cluster.wait(PODS, "empty", |pods| pods.is_some_and(|pods| items(pods).is_empty())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_fits_nowhere_says_why_and_runs_when_there_is_room() {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    let mut picky = vm("picky", "Always");
    picky["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "fast"});
    cluster.call(Method::POST, VMS, picky).await.unwrap();
    let vm = cluster.printable("picky", "ErrorUnschedulable").await;
    let condition = vm["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["type"] == "PodScheduled")
        .unwrap();
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(
        condition["message"],
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes are \
         available: 2 Preemption is not helpful for scheduling."
    );
    let events = "/api/v1/namespaces/default/events";
    let told = |list: Option<&Value>| {
        list.is_some_and(|list| items(list).iter().any(|event| event["reason"] == "FailedScheduling"))
    };
    cluster.wait(events, "told", told).await;

    let label = json!({"metadata": {"labels": {"disk": "fast"}}});
    cluster.call(Method::PATCH, "/api/v1/nodes/node02", label).await.unwrap();
    cluster.printable("picky", "Running").await;
    let vmi = cluster.get(&vmi_path("picky")).await.unwrap();
    assert_eq!(vmi["status"]["nodeName"], "node02");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_strategies_decide_what_follows_the_end_of_a_guest() {
    let cluster = Cluster::start(SimConfig::default()).await;
    for (name, strategy) in
        [("always", "Always"), ("rerun", "RerunOnFailure"), ("once", "Once"), ("off", "Halted")]
    {
        cluster.call(Method::POST, VMS, vm(name, strategy)).await.unwrap();
    }
    cluster.printable("off", "Stopped").await;
    let mut first = Vec::new();
    for name in ["always", "rerun", "once"] {
        cluster.printable(name, "Running").await;
        first.push(cluster.get(&vmi_path(name)).await.unwrap()["metadata"]["uid"].clone());
    }
    for (name, crashed) in [("always", false), ("rerun", true), ("once", true)] {
        assert!(cluster.simulation.end_guest("default", name, crashed), "{name} runs");
    }
    for (name, uid) in ["always", "rerun"].into_iter().zip(&first) {
        let again = |vmi: Option<&Value>| {
            vmi.is_some_and(|vmi| vmi["metadata"]["uid"] != *uid && vmi["status"]["phase"] == "Running")
        };
        cluster.wait(&vmi_path(name), "running again", again).await;
    }
    let failed = |vmi: Option<&Value>| vmi.is_some_and(|vmi| vmi["status"]["phase"] == "Failed");
    let vmi = cluster.wait(&vmi_path("once"), "failed", failed).await.unwrap();
    assert_eq!(vmi["metadata"]["uid"], first[2], "not started again");

    let halt = json!({"spec": {"runStrategy": "Halted"}});
    cluster.call(Method::PATCH, &vm_path("always"), halt).await.unwrap();
    cluster.printable("always", "Stopped").await;
    cluster.wait(&vmi_path("always"), "gone", |vmi| vmi.is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulated_virt_api_refuses_and_completes_as_the_real_one() {
    let cluster = Cluster::start(SimConfig { feature_gates: Vec::new(), ..SimConfig::default() }).await;
    let mut hooked = vm("hooked", "Always");
    hooked["spec"]["template"]["metadata"]["annotations"] = json!({"hooks.kubevirt.io/hookSidecars": "[]"});
    let mut gpu = vm("gpu", "Always");
    gpu["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"] =
        json!([{"name": "d", "deviceName": "a.com/b"}]);
    let mut astray = vm("astray", "Always");
    astray["spec"]["template"]["spec"]["domain"]["devices"]["disks"][0]["name"] = "other".into();
    for (object, hook, why) in [
        (
            hooked,
            "virtualmachine-validator.kubevirt.io",
            "sidecar feature gate is not enabled in kubevirt-config, invalid entry \
             spec.template.metadata.annotations.hooks.kubevirt.io/hookSidecars",
        ),
        (
            gpu,
            "virtualmachine-validator.kubevirt.io",
            "Host Devices feature gate is not enabled in kubevirt-config",
        ),
        (
            astray,
            "virtualmachine-validator.kubevirt.io",
            "spec.template.spec.domain.devices.disks[0].Name 'other' not found.",
        ),
    ] {
        let error = cluster.call(Method::POST, VMS, object).await.unwrap_err();
        let kube::Error::Api(status) = error else { panic!("{error}") };
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        assert_eq!(status.message, format!("admission webhook \"{hook}\" denied the request: {why}"));
    }

    cluster.call(Method::POST, VMS, vm("plain", "Always")).await.unwrap();
    let stored = cluster.printable("plain", "Running").await;
    let template = &stored["spec"]["template"];
    assert_eq!(template["spec"]["architecture"], "amd64");
    assert_eq!(template["spec"]["domain"]["machine"]["type"], "q35");
    assert!(template["spec"]["domain"]["firmware"]["uuid"].is_string());
    let vmi = cluster.get(&vmi_path("plain")).await.unwrap();
    assert_eq!(vmi["spec"]["domain"]["cpu"]["maxSockets"], 8);
    assert_eq!(vmi["spec"]["domain"]["memory"]["maxGuest"], "4Gi");

    let resize = json!({"spec": {"domain": {"cpu": {"sockets": 4}}}});
    let error = cluster.call(Method::PATCH, &vmi_path("plain"), resize).await.unwrap_err();
    assert!(error.to_string().contains("update of VMI object is restricted"), "{error}");
    let status = json!({"status": {"phase": "Failed"}});
    let vmi = cluster.call(Method::PATCH, &vmi_path("plain"), status).await.unwrap();
    assert_eq!(vmi["status"]["phase"], "Running", "answered with success, and reverted");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_what_the_cluster_permits() {
    let cluster = Cluster::start(SimConfig { nodes: 1, devices_per_node: 1, ..SimConfig::default() }).await;
    let with_device = |name: &str, device: &str| {
        let mut vm = vm(name, "Always");
        vm["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] =
            json!([{"name": "g", "deviceName": device}]);
        vm
    };
    cluster.call(Method::POST, VMS, with_device("forbidden", "a.com/B")).await.unwrap();
    let refused = |vmi: Option<&Value>| vmi.is_some_and(|vmi| condition(vmi, "Synchronized").is_some());
    let vmi = cluster.wait(&vmi_path("forbidden"), "refused", refused).await.unwrap();
    assert_eq!(
        condition(&vmi, "Synchronized").unwrap()["message"],
        "failed to render launch manifest: GPU a.com/B is not permitted in permittedHostDevices configuration"
    );

    let permitted = "nvidia.com/TU104GL_Tesla_T4";
    cluster.call(Method::POST, VMS, with_device("first", permitted)).await.unwrap();
    cluster.printable("first", "Running").await;
    let vmi = cluster.get(&vmi_path("first")).await.unwrap();
    assert_eq!(condition(&vmi, "LiveMigratable").unwrap()["reason"], "HostDeviceNotLiveMigratable");
    cluster.call(Method::POST, VMS, with_device("second", permitted)).await.unwrap();
    let vm = cluster.printable("second", "ErrorUnschedulable").await;
    let message = condition(&vm, "PodScheduled").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("1 Insufficient nvidia.com/TU104GL_Tesla_T4"), "{message}");
    cluster.call(Method::DELETE, &vm_path("first"), Value::Null).await.unwrap();
    cluster.printable("second", "Running").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_starts_with_nodes_and_vms() {
    let sandbox = Sandbox::start(Options { nodes: 2, vms: 20, ..Options::default() }).await.unwrap();
    let client = connect(&sandbox.kubeconfig()).await.unwrap();
    let running = async {
        loop {
            let request = Request::get(VMS).body(Vec::new()).unwrap();
            let list: Value = client.request(request).await.unwrap();
            let count = items(&list).iter().filter(|vm| vm["status"]["printableStatus"] == "Running").count();
            if count == 20 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, running).await.unwrap();
    sandbox.shutdown().await;
}

/// Without any look that no event asked for: what is deleted goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_vms_go_at_once_and_none_stays_terminating() {
    let many = 40;
    let cluster = Cluster::start(SimConfig { nodes: 2, vms: many, ..SimConfig::default() }).await;
    let count = |list: Option<&Value>| list.map_or(0, |list| list["items"].as_array().unwrap().len());
    cluster
        .wait(VMS, "all ready", |list| {
            let ready = |vm: &&Value| vm["status"]["ready"] == true;
            list.is_some_and(|list| {
                list["items"].as_array().unwrap().iter().filter(ready).count() == many as usize
            })
        })
        .await;
    cluster.call(Method::DELETE, VMS, Value::Null).await.unwrap();
    for path in [VMS, VMIS, PODS] {
        cluster.wait(path, "empty", |list| count(list) == 0).await;
    }
    cluster.stop().await;
}

/// What a seed decides of a cluster: hardware and labels of its nodes, and the VMs that it starts
/// with. Real time decides the order of writes, so versions and times differ, and ids that are drawn
/// as they are needed: those of firmware.
async fn drawn(seed: u64) -> Value {
    let options = Options { nodes: 3, vms: 6, seed, ..Options::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    let client = connect(&sandbox.kubeconfig()).await.unwrap();
    let list = async |path: &str| -> Value {
        client.request(Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
    };
    let (nodes, vms) = (list("/api/v1/nodes").await, list(VMS).await);
    sandbox.shutdown().await;
    let node = |node: &Value| {
        json!([node["metadata"]["name"], node["metadata"]["labels"], node["status"]["nodeInfo"]])
    };
    let vm = |vm: &Value| {
        let mut spec = vm["spec"].clone();
        spec["template"]["spec"]["domain"]["firmware"].take();
        json!([vm["metadata"]["name"], spec])
    };
    json!({"nodes": items(&nodes).iter().map(node).collect::<Vec<_>>(),
        "vms": items(&vms).iter().map(vm).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_seed_gives_the_same_cluster() {
    let first = drawn(7).await;
    assert_eq!(first["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(first["vms"].as_array().map(Vec::len), Some(6));
    assert_eq!(drawn(7).await, first);
    assert_ne!(drawn(8).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_claim_is_named_and_the_vm_starts_when_it_is_there() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let mut needy = vm("needy", "Always");
    let spec = &mut needy["spec"]["template"]["spec"];
    spec["volumes"][0] = json!({"name": "root", "persistentVolumeClaim": {"claimName": "later"}});
    cluster.call(Method::POST, VMS, needy).await.unwrap();
    cluster.printable("needy", "ErrorPvcNotFound").await;
    let vmi = cluster.get(&vmi_path("needy")).await.unwrap();
    let why = condition(&vmi, "Synchronized").unwrap();
    assert_eq!(why["reason"], "FailedPvcNotFound");
    assert_eq!(why["message"], "failed to render launch manifest: didn't find PVC later");
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "later"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    cluster.call(Method::POST, claims, claim).await.unwrap();
    cluster.printable("needy", "Running").await;
    cluster.stop().await;
}
