//! The built-in plugins.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use sandbox::admission::{Admission, Notes, Operation, REQUEST_TIMEOUT, Request, quota_status};
use sandbox::attributes::Attributes;
use tokio::time::Instant;

use crate::memory::Memory;

fn cluster() -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    memory.put("", "namespaces", json!({"metadata": {"name": "golden"}, "status": {"phase": "Active"}}));
    memory.put("", "serviceaccounts", json!({"metadata": {"name": "default", "namespace": "golden"}}));
    memory
}

fn chain(memory: &Arc<Memory>) -> Admission {
    Admission::new(Arc::clone(memory) as _, Arc::new(|| "01234567-89ab-4cde-8f01-23456789abcd".into()))
}

struct Ask {
    operation: Operation,
    resource: &'static str,
    subresource: &'static str,
    old: Option<Value>,
}

impl Ask {
    fn create(resource: &'static str) -> Self {
        Self { operation: Operation::Create, resource, subresource: "", old: None }
    }

    async fn run(self, chain: &Admission, object: Value) -> Result<Value, Status> {
        let subject = self.old.as_ref().unwrap_or(&object);
        let text = |field: &str| subject["metadata"][field].as_str().unwrap_or_default().to_owned();
        let attributes = Attributes {
            version: "v1".into(),
            resource: self.resource.into(),
            subresource: self.subresource.into(),
            namespace: text("namespace"),
            name: text("name"),
            ..Attributes::default()
        };
        let options = json!({});
        let request = Request {
            attributes: &attributes,
            operation: self.operation,
            old: self.old.as_ref(),
            options: &options,
            deadline: Instant::now() + REQUEST_TIMEOUT,
        };
        let mut notes = Notes::default();
        let (object, _) = chain.mutate(&request, object, &mut notes).await?;
        let reserved = chain.validate(&request, &object, &mut notes).await?;
        drop(reserved);
        Ok(object)
    }
}

fn pod(name: &str, resources: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "golden"},
        "spec": {"containers": [{"name": "compute", "resources": resources}]}})
}

#[tokio::test]
async fn nothing_new_enters_a_namespace_that_ends() {
    let memory = cluster();
    memory.put(
        "",
        "namespaces",
        json!({"metadata": {"name": "golden", "deletionTimestamp": "2026-11-21T01:16:23Z"}}),
    );
    let late =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late", "namespace": "golden"}});
    let status = Ask::create("configmaps").run(&chain(&memory), late).await.unwrap_err();
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
        "message": "configmaps \"late\" is forbidden: unable to create new content in namespace golden because it is being terminated",
        "reason": "Forbidden", "details": {"name": "late", "kind": "configmaps", "causes": [
            {"reason": "NamespaceTerminating", "message": "namespace golden is being terminated", "field": "metadata.namespace"}]}});
    assert_eq!(status.to_json(), want);
    let nowhere = json!({"metadata": {"name": "x", "namespace": "absent"}});
    let status = Ask::create("configmaps").run(&chain(&memory), nowhere).await.unwrap_err();
    assert_eq!((status.code, status.message.as_str()), (404, "namespaces \"absent\" not found"));
    let system = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "kube-system"}});
    let delete = Ask { operation: Operation::Delete, old: Some(system), ..Ask::create("namespaces") };
    let status = delete.run(&chain(&memory), Value::Null).await.unwrap_err();
    assert_eq!(status.message, "namespaces \"kube-system\" is forbidden: this namespace may not be deleted");
}

#[tokio::test]
async fn pods_get_the_token_of_their_service_account_unless_they_decline() {
    let memory = cluster();
    let chain = chain(&memory);
    let spec = Ask::create("pods").run(&chain, pod("p", &json!({}))).await.unwrap()["spec"].clone();
    assert_eq!(spec["serviceAccountName"], "default");
    let name = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    let mount =
        json!({"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    assert_eq!(spec["containers"][0]["volumeMounts"], json!([mount]));
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3607
    );
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));

    let mut declined = pod("p", &json!({}));
    declined["spec"]["automountServiceAccountToken"] = false.into();
    let spec = Ask::create("pods").run(&chain, declined).await.unwrap()["spec"].clone();
    assert!(spec["volumes"].is_null());

    let mut other = pod("p", &json!({}));
    other["spec"]["serviceAccountName"] = "absent".into();
    let status = Ask::create("pods").run(&chain, other).await.unwrap_err();
    assert_eq!(
        status.message,
        "pods \"p\" is forbidden: error looking up service account golden/absent: serviceaccount \"absent\" not found"
    );
}

#[tokio::test]
async fn priority_comes_from_the_class() {
    let memory = cluster();
    memory.put(
        "scheduling.k8s.io",
        "priorityclasses",
        json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"}),
    );
    let chain = chain(&memory);
    let with = |name: &str, priority: Value| {
        let mut pod = pod("p", &json!({}));
        pod["spec"]["priorityClassName"] = name.into();
        if !priority.is_null() {
            pod["spec"]["priority"] = priority;
        }
        pod
    };
    let spec = Ask::create("pods").run(&chain, with("high", Value::Null)).await.unwrap()["spec"].clone();
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(7), &json!("Never")));
    let spec =
        Ask::create("pods").run(&chain, with("system-node-critical", Value::Null)).await.unwrap()["spec"]
            .clone();
    assert_eq!(spec["priority"], 2_000_001_000);
    for (pod, want) in [
        (with("absent", Value::Null), "no PriorityClass with name absent was found"),
        (
            with("high", json!(8)),
            "the integer value of priority (8) must not be provided in pod spec; priority admission controller computed 7",
        ),
    ] {
        let status = Ask::create("pods").run(&chain, pod).await.unwrap_err();
        assert!(status.code == 403 && status.message.contains(want), "{status}");
    }
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let memory = cluster();
    memory.put("", "limitranges", json!({"metadata": {"name": "l", "namespace": "golden"}, "spec": {"limits": [
        {"type": "Container", "default": {"memory": "512Mi"}, "defaultRequest": {"cpu": "100m"}, "max": {"memory": "1Gi"}},
        {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}]}}));
    let chain = chain(&memory);
    let admitted = Ask::create("pods").run(&chain, pod("p", &json!({}))).await.unwrap();
    let want = json!({"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "512Mi"}});
    assert_eq!(admitted["spec"]["containers"][0]["resources"], want);
    assert_eq!(
        admitted["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container compute; memory limit for container compute"
    );
    let large = pod("p", &json!({"limits": {"memory": "2Gi"}}));
    let status = Ask::create("pods").run(&chain, large).await.unwrap_err();
    assert_eq!(
        status.message,
        "pods \"p\" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi"
    );
    let claim = json!({"metadata": {"name": "c", "namespace": "golden"}, "spec": {"resources": {"requests": {"storage": "500Mi"}}}});
    let status = Ask::create("persistentvolumeclaims").run(&chain, claim).await.unwrap_err();
    assert_eq!(
        status.message,
        "persistentvolumeclaims \"c\" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi"
    );
    for odd in [json!("text"), json!([1]), json!({"limits": "text"})] {
        let _ = Ask::create("pods").run(&chain, pod("p", &odd)).await;
    }
}

#[tokio::test]
async fn a_resize_over_quota_is_answered_as_recorded() {
    let memory = cluster();
    memory.put(
        "",
        "resourcequotas",
        json!({"metadata": {"name": "q", "namespace": "golden"}, "spec": {"hard": {"requests.cpu": "500m"}}}),
    );
    let old = pod("p1", &json!({"requests": {"cpu": "400m", "memory": "96Mi"}}));
    memory.put("", "pods", old.clone());
    let new = pod("p1", &json!({"requests": {"cpu": "900m", "memory": "96Mi"}}));
    let resize =
        Ask { operation: Operation::Update, subresource: "resize", old: Some(old), ..Ask::create("pods") };
    let status = resize.run(&chain(&memory), new).await.unwrap_err();
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
        "message": "pods \"p1\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=400m, limited: requests.cpu=500m",
        "reason": "Forbidden", "details": {"name": "p1", "kind": "pods"}});
    assert_eq!(status.to_json(), want);
    let unnamed = Ask::create("pods").run(&chain(&memory), pod("p2", &json!({}))).await.unwrap_err();
    assert_eq!(
        unnamed.message,
        "pods \"p2\" is forbidden: failed quota: q: must specify requests.cpu for: compute"
    );
}

#[tokio::test]
async fn two_requests_never_share_the_last_of_a_quota() {
    let memory = cluster();
    let quota = json!({"metadata": {"name": "q", "namespace": "golden"}, "spec": {"hard": {"configmaps": "3", "count/configmaps": "3"}}});
    memory.put("", "resourcequotas", quota.clone());
    let chain = Arc::new(chain(&memory));
    let mut tasks = Vec::new();
    for index in 0..10 {
        let (chain, memory) = (Arc::clone(&chain), Arc::clone(&memory));
        tasks.push(tokio::spawn(async move {
            let object = json!({"metadata": {"name": format!("c{index}"), "namespace": "golden"}});
            let attributes = Attributes {
                resource: "configmaps".into(),
                namespace: "golden".into(),
                ..Attributes::default()
            };
            let options = json!({});
            let request = Request {
                attributes: &attributes,
                operation: Operation::Create,
                old: None,
                options: &options,
                deadline: Instant::now() + REQUEST_TIMEOUT,
            };
            let Ok(reserved) = chain.validate(&request, &object, &mut Notes::default()).await else {
                return false;
            };
            tokio::task::yield_now().await;
            memory.put("", "configmaps", object);
            drop(reserved);
            true
        }));
    }
    let mut admitted = 0;
    for task in tasks {
        admitted += usize::from(task.await.unwrap());
    }
    assert_eq!(admitted, 3);
    assert_eq!(
        quota_status(memory.as_ref(), &quota)["used"],
        json!({"configmaps": "3", "count/configmaps": "3"})
    );
}
