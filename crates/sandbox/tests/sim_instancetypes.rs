//! Instance types and preferences in a simulated cluster: what is copied of them, what counts afterwards, and what
//! virt-api refuses.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use http::Method;
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};
use sim::{Cluster, VMS, condition, items, vm, vm_path, vmi_path};

const GROUP: &str = "/apis/instancetype.kubevirt.io/v1beta1";
const EXPAND: &str = "/apis/subresources.kubevirt.io/v1/namespaces/default/expand-vm-spec";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const CDI: &str = "/apis/cdi.kubevirt.io/v1beta1/namespaces/default";

fn types() -> String {
    format!("{GROUP}/virtualmachineclusterinstancetypes")
}

/// An instance type of the cluster.
async fn size(cluster: &Cluster, name: &str, vcpus: u32, memory: &str) -> Value {
    let object = json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachineClusterInstancetype",
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {"cpu": {"guest": vcpus}, "memory": {"guest": memory}}});
    cluster.call(Method::POST, &types(), object).await.unwrap()
}

/// A preference of the namespace.
async fn preference(cluster: &Cluster, name: &str, spec: Value) {
    let object = json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachinePreference",
        "metadata": {"name": name}, "spec": spec});
    let path = format!("{GROUP}/namespaces/default/virtualmachinepreferences");
    cluster.call(Method::POST, &path, object).await.unwrap();
}

/// A VM that leaves its size to an instance type.
fn sized(name: &str, strategy: &str) -> Value {
    let mut given = vm(name, strategy);
    for key in ["cpu", "memory"] {
        given["spec"]["template"]["spec"]["domain"].as_object_mut().unwrap().remove(key);
    }
    given
}

/// A VM with a size of its own.
fn of_type(name: &str, strategy: &str, instancetype: &str) -> Value {
    let mut given = sized(name, strategy);
    given["spec"]["instancetype"] = json!({"name": instancetype});
    given
}

/// The message and the first cause's field of a refusal.
async fn refused(cluster: &Cluster, method: Method, path: &str, body: Value) -> (u16, String, String) {
    let (code, answer) = cluster.raw(method, path, body).await;
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (code, text("/message"), text("/details/causes/0/field"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_type_and_a_preference_make_the_guest() {
    let cluster = Cluster::start(SimConfig::default()).await;
    size(&cluster, "small", 2, "2Gi").await;
    let liked = json!({"cpu": {"preferredCPUTopology": "cores"}, "devices": {"preferredDiskBus": "virtio"}});
    preference(&cluster, "small", liked).await;
    let mut given = sized("web", "Always");
    given["spec"]["instancetype"] = json!({"name": "small"});
    given["spec"]["preference"] = json!({"name": "small", "kind": "VirtualMachinePreference"});
    given["spec"]["template"]["spec"]["domain"]["devices"]["disks"] = json!([{"name": "root", "disk": {}}]);
    let (code, answer) = cluster.raw(Method::PUT, EXPAND, given.clone()).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["spec"]["template"]["spec"]["domain"]["cpu"]["cores"], 2);
    cluster.call(Method::POST, VMS, given.clone()).await.unwrap();
    cluster.printable("web", "Running").await;
    let vmi = cluster.get(&vmi_path("web")).await.unwrap();
    let domain = &vmi["spec"]["domain"];
    assert_eq!((&domain["cpu"]["sockets"], &domain["cpu"]["cores"]), (&json!(1), &json!(2)));
    assert_eq!(
        (&domain["memory"]["guest"], &domain["devices"]["disks"][0]["disk"]["bus"]),
        (&json!("2Gi"), &json!("virtio"))
    );
    assert_eq!(vmi["metadata"]["annotations"]["kubevirt.io/cluster-instancetype-name"], "small");
    assert_eq!(vmi["metadata"]["annotations"]["kubevirt.io/preference-name"], "small");
    let stored = cluster.get(&vm_path("web")).await.unwrap();
    assert!(
        stored["spec"]["template"]["spec"]["domain"].get("memory").is_none(),
        "the VM itself stays as it is"
    );
    let (_, expanded) = cluster
        .raw(
            Method::GET,
            &format!("/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/expand-spec"),
            Value::Null,
        )
        .await;
    assert_eq!(expanded["spec"].get("instancetype"), None);
    assert_eq!(expanded["spec"]["template"]["spec"]["domain"]["memory"]["guest"], "2Gi");

    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_counts_and_not_what_became_of_the_instance_type() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let small = size(&cluster, "small", 1, "1Gi").await;
    cluster.call(Method::POST, VMS, of_type("web", "Halted", "small")).await.unwrap();
    let named = |vm: Option<&Value>| {
        vm.is_some_and(|vm| vm["status"]["instancetypeRef"]["controllerRevisionRef"]["name"].is_string())
    };
    let stored = cluster.wait(&vm_path("web"), "with a revision", named).await.unwrap();
    let uid = small["metadata"]["uid"].as_str().unwrap();
    let name = format!("web-small-v1beta1-{uid}-1");
    assert_eq!(
        stored["status"]["instancetypeRef"],
        json!({"name": "small", "controllerRevisionRef": {"name": name}})
    );
    assert_eq!(stored["spec"]["instancetype"], json!({"name": "small"}), "the spec stays as it was written");
    let revision = cluster.get(&format!("{REVISIONS}/{name}")).await.unwrap();
    assert_eq!(
        revision["metadata"]["labels"],
        json!({"instancetype.kubevirt.io/object-generation": "1",
            "instancetype.kubevirt.io/object-kind": "VirtualMachineClusterInstancetype",
            "instancetype.kubevirt.io/object-name": "small",
            "instancetype.kubevirt.io/object-uid": uid,
            "instancetype.kubevirt.io/object-version": "v1beta1"})
    );
    let owner = &revision["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("VirtualMachine"), &stored["metadata"]["uid"]));
    assert_eq!(revision["data"]["spec"], small["spec"]);
    assert_eq!(revision["data"]["metadata"].get("labels"), None);

    let grown = json!({"spec": {"cpu": {"guest": 4}, "memory": {"guest": "4Gi"}}});
    cluster.call(Method::PATCH, &format!("{}/small", types()), grown).await.unwrap();
    let start = json!({"spec": {"runStrategy": "Always"}});
    cluster.call(Method::PATCH, &vm_path("web"), start).await.unwrap();
    cluster.printable("web", "Running").await;
    let vmi = cluster.get(&vmi_path("web")).await.unwrap();
    assert_eq!(vmi["spec"]["domain"]["memory"]["guest"], "1Gi");
    assert_eq!(vmi["spec"]["domain"]["cpu"]["sockets"], 1);
    let path = format!("{REVISIONS}/{}", vmi["status"]["virtualMachineRevisionName"].as_str().unwrap());
    let started = cluster.get(&path).await.unwrap();
    assert_eq!(
        started["data"]["spec"]["instancetype"],
        json!({"name": "small", "revisionName": name}),
        "what it was started with can be told later"
    );
    cluster.call(Method::DELETE, &format!("{}/small", types()), Value::Null).await.unwrap();
    cluster.call(Method::DELETE, &vmi_path("web"), Value::Null).await.unwrap();
    let again = |new: Option<&Value>| {
        new.is_some_and(|new| {
            new["metadata"]["uid"] != vmi["metadata"]["uid"] && new["status"]["phase"] == "Running"
        })
    };
    let again = cluster.wait(&vmi_path("web"), "running again without its original", again).await.unwrap();
    assert_eq!(again["spec"]["domain"]["memory"]["guest"], "1Gi");

    cluster.call(Method::DELETE, &vm_path("web"), Value::Null).await.unwrap();
    let empty = |list: Option<&Value>| list.is_some_and(|list| items(list).is_empty());
    cluster.wait(REVISIONS, "gone with its VM", empty).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_release_1_5_the_spec_names_the_revision() {
    let cluster = Cluster::start(SimConfig { release: Release::V1_4, ..SimConfig::default() }).await;
    let small = size(&cluster, "small", 1, "1Gi").await;
    cluster.call(Method::POST, VMS, of_type("web", "Always", "small")).await.unwrap();
    cluster.printable("web", "Running").await;
    let stored = cluster.get(&vm_path("web")).await.unwrap();
    let name = format!("web-small-v1beta1-{}-1", small["metadata"]["uid"].as_str().unwrap());
    assert_eq!(stored["spec"]["instancetype"], json!({"name": "small", "revisionName": name}));
    assert_eq!(stored["status"].get("instancetypeRef"), None);
    size(&cluster, "big", 4, "4Gi").await;
    let renamed = json!({"spec": {"instancetype": {"name": "big"}}});
    let error = cluster.call(Method::PATCH, &vm_path("web"), renamed).await.unwrap_err().to_string();
    assert!(error.contains("the Matcher Name has been updated without updating the RevisionName"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_larger_instance_type_reaches_the_running_guest() {
    let cluster = Cluster::start(SimConfig { nodes: 2, ..SimConfig::default() }).await;
    size(&cluster, "small", 1, "1Gi").await;
    let big = size(&cluster, "big", 2, "2Gi").await;
    cluster.call(Method::POST, VMS, of_type("web", "Always", "small")).await.unwrap();
    cluster.printable("web", "Running").await;
    let larger = json!({"spec": {"instancetype": {"name": "big"}}});
    cluster.call(Method::PATCH, &vm_path("web"), larger).await.unwrap();
    let grown = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["currentCPUTopology"]["sockets"] == 2
                && vmi["status"]["memory"]["guestCurrent"] == "2Gi"
        })
    };
    cluster.wait(&vmi_path("web"), "of the larger size", grown).await;
    let stored = cluster.get(&vm_path("web")).await.unwrap();
    let name = format!("web-big-v1beta1-{}-1", big["metadata"]["uid"].as_str().unwrap());
    assert_eq!(
        stored["status"]["instancetypeRef"],
        json!({"name": "big", "controllerRevisionRef": {"name": name}})
    );
    assert!(condition(&stored, "RestartRequired").is_none(), "{stored:#}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_preference_requires_is_refused_below_it() {
    let cluster = Cluster::start(SimConfig::default()).await;
    size(&cluster, "small", 1, "1Gi").await;
    let demanding = json!({"requirements": {"cpu": {"guest": 2}, "memory": {"guest": "2Gi"}}});
    preference(&cluster, "demanding", demanding).await;
    preference(&cluster, "arm", json!({"requirements": {"architecture": "arm64"}})).await;
    let with = |mut vm: Value, preference: &str| {
        vm["spec"]["preference"] = json!({"name": preference, "kind": "VirtualMachinePreference"});
        vm
    };
    let prefix = "admission webhook \"virtualmachine-validator.kubevirt.io\" denied the request: ";
    for (object, field, why) in [
        (
            with(of_type("a", "Always", "small"), "demanding"),
            "spec.instancetype",
            "failure checking preference requirements: insufficient CPU resources of 1 vCPU provided by instance type, \
             preference requires 2 vCPU",
        ),
        (
            with(vm("b", "Always"), "demanding"),
            "spec.template.spec.domain.memory",
            "failure checking preference requirements: insufficient Memory resources of 1Gi provided by VirtualMachine, \
             preference requires 2Gi",
        ),
        (
            with(vm("c", "Always"), "arm"),
            "spec.template.spec.architecture",
            "failure checking preference requirements: preference requires architecture arm64 but amd64 is being requested",
        ),
        (
            {
                let mut clash = of_type("d", "Always", "small");
                clash["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"sockets": 4});
                clash
            },
            "spec.template.spec.domain.cpu.sockets",
            "VM field(s) spec.template.spec.domain.cpu.sockets conflicts with selected instance type",
        ),
    ] {
        let (code, message, blamed) = refused(&cluster, Method::POST, VMS, object).await;
        assert_eq!(
            (code, message.as_str(), blamed.as_str()),
            (422, format!("{prefix}{why}").as_str(), field)
        );
    }
    let nothing = refused(&cluster, Method::POST, VMS, {
        let mut empty = sized("e", "Always");
        empty["spec"]["instancetype"] = json!({"kind": "VirtualMachineInstancetype"});
        empty
    })
    .await;
    assert_eq!(
        nothing,
        (
            422,
            "admission webhook \"virtualmachines-mutator.kubevirt.io\" denied the request: Either Name or \
             InferFromVolume should be provided within the InstancetypeMatcher"
                .into(),
            "spec.instancetype".into()
        )
    );
    // What is not there yet may come: the VM is taken, and says what it waits for.
    cluster.call(Method::POST, VMS, of_type("early", "Always", "later")).await.unwrap();
    let failing = |vm: Option<&Value>| vm.is_some_and(|vm| condition(vm, "Failure").is_some());
    let early = cluster.wait(&vm_path("early"), "waiting", failing).await.unwrap();
    let why = condition(&early, "Failure").unwrap();
    assert_eq!(why["reason"], "FailedFindInstancetype");
    assert_eq!(
        why["message"],
        "virtualmachineclusterinstancetypes.instancetype.kubevirt.io \"later\" not found"
    );
    size(&cluster, "later", 1, "1Gi").await;
    cluster.printable("early", "Running").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_name_instance_type_and_preference_by_their_labels() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let labels = json!({"instancetype.kubevirt.io/default-instancetype": "small",
        "instancetype.kubevirt.io/default-preference": "liked",
        "instancetype.kubevirt.io/default-preference-kind": "VirtualMachinePreference"});
    size(&cluster, "small", 1, "1Gi").await;
    preference(&cluster, "liked", json!({"machine": {"preferredMachineType": "pc-q35-rhel9.4.0"}})).await;
    for (name, labels) in [("golden", labels.clone()), ("plain", json!({}))] {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "labels": labels},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}});
        cluster.call(Method::POST, CLAIMS, claim).await.unwrap();
    }
    let source = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataSource", "metadata": {"name": "golden"},
        "spec": {"source": {"pvc": {"namespace": "default", "name": "golden"}}}});
    cluster.call(Method::POST, &format!("{CDI}/datasources"), source).await.unwrap();

    let with = |name: &str, volume: Value, policy: Option<&str>| {
        let mut given = sized(name, "Halted");
        let spec = &mut given["spec"];
        spec["template"]["spec"]["volumes"][0] = volume;
        for key in ["instancetype", "preference"] {
            spec[key] = json!({"inferFromVolume": "root"});
            if let Some(policy) = policy {
                spec[key]["inferFromVolumeFailurePolicy"] = policy.into();
            }
        }
        given
    };
    let claim = |name: &str| json!({"name": "root", "persistentVolumeClaim": {"claimName": name}});
    let mut templated = with("templated", json!({"name": "root", "dataVolume": {"name": "copy"}}), None);
    templated["spec"]["dataVolumeTemplates"] = json!([{"metadata": {"name": "copy"}, "spec": {
        "sourceRef": {"kind": "DataSource", "name": "golden"},
        "storage": {"resources": {"requests": {"storage": "1Gi"}}}}}]);
    let mut generous = with("generous", claim("golden"), Some("Ignore"));
    generous["spec"]["template"]["spec"]["domain"]["memory"] = json!({"guest": "512Mi"});
    for given in [with("claimed", claim("golden"), None), templated, generous] {
        let made = cluster.call(Method::POST, VMS, given).await.unwrap();
        assert_eq!(made["spec"]["instancetype"], json!({"name": "small"}));
        assert_eq!(made["spec"]["preference"], json!({"name": "liked", "kind": "VirtualMachinePreference"}));
        let template = &made["spec"]["template"]["spec"];
        assert_eq!(template["domain"]["machine"]["type"], "pc-q35-rhel9.4.0", "the preference decides early");
        assert_eq!(template["domain"].get("memory"), None, "the instance type decides about memory");
    }
    let mut careless = with("careless", claim("plain"), Some("Ignore"));
    careless["spec"]["template"]["spec"]["domain"]["memory"] = json!({"guest": "512Mi"});
    let made = cluster.call(Method::POST, VMS, careless).await.unwrap();
    assert_eq!((made["spec"].get("instancetype"), made["spec"].get("preference")), (None, None));
    assert_eq!(made["spec"]["template"]["spec"]["domain"]["memory"]["guest"], "512Mi");

    let prefix = "admission webhook \"virtualmachines-mutator.kubevirt.io\" denied the request: ";
    for (given, why) in [
        (
            with("x", claim("plain"), None),
            "unable to find required instancetype.kubevirt.io/default-instancetype label on the volume",
        ),
        (with("x", claim("nowhere"), Some("Ignore")), "persistentvolumeclaims \"nowhere\" not found"),
        (
            with("x", json!({"name": "root", "containerDisk": {"image": "a"}}), Some("Reject")),
            "unable to infer defaults from volume root as type is not supported",
        ),
        (
            with("x", json!({"name": "other", "containerDisk": {"image": "a"}}), Some("Ignore")),
            "unable to find volume root to infer defaults",
        ),
    ] {
        let (code, message, _) = refused(&cluster, Method::POST, VMS, given).await;
        assert_eq!((code, message), (400, format!("{prefix}{why}")));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_expands_keeps_neither_matchers_nor_revisions() {
    let cluster = Cluster::start(SimConfig::default()).await;
    size(&cluster, "small", 2, "2Gi").await;
    cluster.call(Method::POST, VMS, of_type("web", "Halted", "small")).await.unwrap();
    let named = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"].get("instancetypeRef").is_some());
    cluster.wait(&vm_path("web"), "with a revision", named).await;
    let policy = json!({"spec": {"configuration": {"instancetype": {"referencePolicy": "expandAll"}}}});
    let kubevirt = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
    cluster.call(Method::PATCH, kubevirt, policy).await.unwrap();
    let touch = json!({"metadata": {"annotations": {"touched": "1"}}});
    cluster.call(Method::PATCH, &vm_path("web"), touch).await.unwrap();
    let expanded = |vm: Option<&Value>| {
        vm.is_some_and(|vm| {
            vm["spec"].get("instancetype").is_none() && vm["status"].get("instancetypeRef").is_none()
        })
    };
    let vm = cluster.wait(&vm_path("web"), "expanded", expanded).await.unwrap();
    assert_eq!(vm["spec"]["template"]["spec"]["domain"]["memory"]["guest"], "2Gi");
    let empty = |list: Option<&Value>| list.is_some_and(|list| items(list).is_empty());
    cluster.wait(REVISIONS, "empty", empty).await;
    cluster.stop().await;
}
