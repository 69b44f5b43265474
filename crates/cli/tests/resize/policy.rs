//! Policy objects, and the checkup.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::program::{SandboxProgram, virt_steward};
use super::stage::*;

const GROUP: &str = "/apis/vm-feature-manager.io/v1alpha1";
const DEFINITIONS: [&str; 2] = [
    include_str!("../../../../charts/virt-steward/crds/resizepolicies.yaml"),
    include_str!("../../../../charts/virt-steward/crds/clusterresizepolicies.yaml"),
];

fn policy(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_objects_decide_for_namespaces_and_for_the_cluster() {
    let stage = Stage::start().await;
    for text in DEFINITIONS {
        let definition: Value = serde_saphyr::from_str(text).unwrap();
        stage.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    }
    let cluster = format!("{GROUP}/clusterresizepolicies");
    let namespaced = format!("{GROUP}/namespaces/default/resizepolicies");
    stage.wait(&cluster, "served", |found| found["items"].is_array()).await;
    stage.wait(&namespaced, "served", |found| found["items"].is_array()).await;
    let _steward = stage.steward(&Setup::default()).await;
    // What the API server refuses.
    for (path, kind, name, spec, words) in [
        (
            &cluster,
            "ClusterResizePolicy",
            "other",
            json!({"inPlace": "Enabled"}),
            "the name has to be `default`",
        ),
        (
            &cluster,
            "ClusterResizePolicy",
            "default",
            json!({"fallback": "Evict"}),
            "Unsupported value: \"Evict\"",
        ),
        (&namespaced, "ResizePolicy", "default", json!({"deadlineSeconds": 1}), "greater than or equal to 5"),
        (&namespaced, "ResizePolicy", "default", json!({}), "at least 1"),
    ] {
        let error = stage.send(Method::POST, path, &policy(kind, name, &spec)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    stage.vm("db", None).await;
    let in_force =
        |expected: Value| move |vmi: &Value| annotation(vmi, "resize-policy").unwrap_or_default() == expected;
    stage
        .create(
            &cluster,
            policy("ClusterResizePolicy", "default", &json!({"inPlace": "Enabled", "deadlineSeconds": 60})),
        )
        .await;
    let all = json!({"inPlace": true, "fallback": "Revert", "deadline": 60});
    stage.wait_vmi("db", "served by the cluster's policy", in_force(all)).await;
    stage.create(&namespaced, policy("ResizePolicy", "default", &json!({"fallback": "Wait"}))).await;
    let mine = json!({"inPlace": true, "fallback": "Wait", "deadline": 60});
    stage.wait_vmi("db", "served by the namespace's policy", in_force(mine)).await;
    let annotated =
        json!({"metadata": {"annotations": {"vm-feature-manager.io/in-place-resize": "Disabled"}}});
    stage.patch(&format!("{VMS}/db"), annotated).await;
    stage.wait_vmi("db", "left alone", in_force(Value::Null)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_is_missing_and_calls_the_webhook() {
    let run = |sandbox: &SandboxProgram, line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.extend(["--kubeconfig", sandbox.kubeconfig.to_str().unwrap()]);
        virt_steward(&words, "")
    };
    let bare = SandboxProgram::start(&["--nodes", "2", "--no-operator"]);
    let found = run(&bare, "doctor resize");
    assert_eq!(found.status, 2, "{}{}", found.stdout, found.stderr);
    assert!(found.stdout.contains("not registered"), "{}", found.stdout);
    assert!(found.stdout.contains("try: install the chart with resize.enabled=true"), "{}", found.stdout);
    drop(bare);
    let whole = SandboxProgram::start(&["--nodes", "2", "--vms", "6", "--resize"]);
    for _ in 0..200 {
        let vm = run(&whole, "doctor resize -o json");
        let found: Value = serde_json::from_str(&vm.stdout).unwrap();
        let machines = found["virtualMachines"].as_array().unwrap().clone();
        if machines.iter().filter(|machine| machine["inForce"] == true).count() == 6 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let found = run(&whole, "doctor resize -n default --probe default/vm-2 -o json");
    let json: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found.status, 0, "{}{}", found.stdout, found.stderr);
    let probe =
        json["findings"].as_array().unwrap().iter().find(|one| one["check"] == "webhook answers").unwrap();
    assert_eq!(probe["state"], "ok");
    assert!(probe["what"].as_str().unwrap().contains("in a dry run"), "{probe}");
    let agents = json["findings"].as_array().unwrap().iter().find(|one| one["check"] == "agents").unwrap();
    assert_eq!(agents["state"], "ok", "{agents}");
    let small = json["virtualMachines"].to_string();
    assert!(small.contains("guests with less than 1Gi"), "{small}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_asks_whether_the_operator_has_the_grant() {
    let stage = Stage::start().await;
    stage.vm_with("stuck", None, json!({}), false).await;
    stage.vm("free", None).await;
    let run = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.extend(["--kubeconfig", stage.kubeconfig.to_str().unwrap()]);
        virt_steward(&words, "")
    };
    let plan = |name: &str| {
        let planned = run(&format!("vm resize {name} --memory 2Gi --dry-run -o json"));
        let plan: Value = serde_json::from_str(&planned.stdout).unwrap();
        (planned.status, plan["way"].clone(), plan.get("declareMemoryGranted").cloned())
    };
    // Nobody is registered, so nobody knows whose right it would be.
    assert_eq!(plan("stuck"), (2, json!("not-in-place"), Some(Value::Null)));
    assert_eq!(plan("free"), (0, json!("migration"), None));
    let core = "/api/v1/namespaces/default";
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "steward"},
        "spec": {"selector": {"app": "steward"}, "ports": [{"port": 443}]}});
    stage.create(&format!("{core}/services"), service).await;
    let webhook = json!({"name": "resize.vm-feature-manager.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "failurePolicy": "Ignore", "clientConfig": {"service": {"namespace": "default", "name": "steward", "path": "/resize"}},
        "rules": [{"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nothing"]}]});
    let registered = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "00-virt-steward-resize"}, "webhooks": [webhook]});
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    stage.create(configurations, registered).await;
    // The agents' account may not act as virt-controller, the operator's may.
    for (account, expected) in [
        ("agent", (2, json!("not-in-place"), Some(json!(false)))),
        ("operator", (0, json!("restart"), Some(json!(true)))),
    ] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "steward", "labels": {"app": "steward"}},
            "spec": {"serviceAccountName": account, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "steward", "image": "registry.example/steward:1"}]}});
        stage.create(&format!("{core}/pods"), pod).await;
        assert_eq!(plan("stuck"), expected, "{account}");
        let pod = format!("{core}/pods/steward");
        stage.send(Method::DELETE, &pod, &Value::Null).await.unwrap();
        stage.wait(&pod, "gone", Value::is_null).await;
    }
    let shown = run("vm resize-status stuck -o yaml");
    assert_eq!(shown.status, 0, "{}", shown.stderr);
    assert!(
        shown.stdout.contains("inPlace: false") && shown.stdout.contains("sockets: 2"),
        "{}",
        shown.stdout
    );
    let corrected = run("vm resize free --request-memory 2Gi --dry-run -o json");
    let corrected: Value = serde_json::from_str(&corrected.stdout).unwrap();
    assert_eq!(corrected["pod"]["then"]["requests"]["memory"], "2Gi");
}
