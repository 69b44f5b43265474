//! Export jobs end to end: the program submits them, the operator makes Jobs, the sandbox's nodes run the
//! program in their pods, and real files come out.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod web;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use operator::config::{LogLevel, RegisterMode};
use operator::{Config, Operator};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const CRD: &str = include_str!("../../../charts/virt-steward/crds/vmexportjobs.yaml");

struct Cluster {
    sandbox: Sandbox,
    client: kube::Client,
    dir: tempfile::TempDir,
    stop: CancellationToken,
    operator: tokio::task::JoinHandle<()>,
    metrics: std::net::SocketAddr,
}

impl Cluster {
    /// A cluster with an operator that carries export jobs out, and stopped VMs of one small disk each.
    async fn start(vms: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let sandbox = Sandbox::start(Options {
            nodes: 2,
            kubeconfig_out: Some(kubeconfig.clone()),
            program_binary: Some(env!("CARGO_BIN_EXE_virt-steward").into()),
            ..Options::default()
        })
        .await
        .unwrap();
        let client = sandbox::sim::connect(&sandbox.kubeconfig()).await.unwrap();
        let mut config = Config::default();
        config.kubernetes.kubeconfig = Some(kubeconfig);
        config.exports.enabled = true;
        config.register.mode = RegisterMode::Url;
        config.server.port = 0;
        config.telemetry.metrics_bind_address = "127.0.0.1:0".into();
        config.telemetry.log_level = LogLevel::Warn;
        let definition: Value = serde_saphyr::from_str(CRD).unwrap();
        post(&client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
        for vm in vms {
            let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": format!("{vm}-root"), "namespace": "default",
                    "annotations": {"sandbox.vm-feature-manager.io/data": "3Mi"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                    "resources": {"requests": {"storage": "9Mi"}}}});
            post(&client, "/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
            let spec = json!({"domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [
                    {"name": "root", "disk": {"bus": "virtio"}}]}},
                "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": format!("{vm}-root")}}]});
            let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                "metadata": {"name": vm, "namespace": "default", "labels": {"tier": "shop"}},
                "spec": {"runStrategy": "Halted", "template": {"spec": spec}}});
            post(&client, "/apis/kubevirt.io/v1/namespaces/default/virtualmachines", &vm).await;
        }
        account(&client).await;
        let operator = Operator::start(config).await.unwrap();
        let metrics = operator.metrics_address().unwrap();
        let stop = CancellationToken::new();
        let operator = tokio::spawn(operator.serve(stop.clone()));
        Self { sandbox, client, dir, stop, operator, metrics }
    }

    async fn get(&self, path: &str) -> Value {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.unwrap()
    }

    async fn patch(&self, path: &str, patch: &Value) {
        let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
        let request = request.body(patch.to_string().into_bytes()).unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    async fn wait(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let end = std::time::Instant::now() + Duration::from_mins(4);
        loop {
            let found = self.get(path).await;
            if holds(&found) {
                return found;
            }
            assert!(std::time::Instant::now() < end, "{path} never was {what}: {found:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn program(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.args(arguments).env("KUBECONFIG", self.dir.path().join("kubeconfig"));
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn succeeds(&self, arguments: &[&str]) -> String {
        let done = self.program(arguments).await;
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success(), "{arguments:?}: {out}{err}");
        out
    }

    /// The directories of a VM's runs on a claim, in order.
    fn runs(&self, claim: &str, vm: &str) -> Vec<PathBuf> {
        let claim = self.sandbox.simulation().unwrap().claim("default", claim).unwrap();
        let entries = std::fs::read_dir(claim.join("nightly").join(vm)).into_iter().flatten();
        let mut runs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        runs.sort();
        runs
    }

    fn same(&self, image: &std::path::Path, vm: &str) {
        let original = self.sandbox.simulation().unwrap().disks().join(format!("default_{vm}-root"));
        let open = |path: &std::path::Path| image::open(std::fs::File::open(path).unwrap()).unwrap().0;
        assert_eq!(image::compare(&*open(image), &*open(&original)).unwrap(), None, "{}", image.display());
    }

    async fn end(self) {
        self.stop.cancel();
        let _ = self.operator.await;
        self.sandbox.shutdown().await;
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn post(client: &kube::Client, path: &str, object: &Value) {
    let request = http::Request::post(path).header("content-type", "application/json");
    client.request::<Value>(request.body(object.to_string().into_bytes()).unwrap()).await.unwrap();
}

/// The account for pods, with the rights that the chart gives it.
async fn account(client: &kube::Client) {
    let rule = |group: &str, resources: Value, verbs: Value| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
    "metadata": {"name": "virt-steward-exporter"}, "rules": [
        rule("kubevirt.io", json!(["virtualmachines", "virtualmachineinstances"]), json!(["get"])),
        rule("", json!(["persistentvolumeclaims"]), json!(["get", "create"])),
        rule("backup.kubevirt.io", json!(["virtualmachinebackups"]), json!(["create", "get", "delete"])),
        rule("backup.kubevirt.io", json!(["virtualmachinebackuptrackers"]), json!(["create", "get"])),
        rule("export.kubevirt.io", json!(["virtualmachineexports"]), json!(["create", "get", "delete"])),
        rule("", json!(["secrets"]), json!(["create", "get", "delete"])),
        rule("snapshot.kubevirt.io", json!(["virtualmachinesnapshots"]), json!(["create", "get", "delete"])),
        rule("vm-feature-manager.io", json!(["vmexportjobs/status"]), json!(["patch"])),
    ]});
    post(client, "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
        "name": "virt-steward-export", "namespace": "default",
        "labels": {"vm-feature-manager.io/export-jobs": "true"}}});
    post(client, "/api/v1/namespaces/default/serviceaccounts", &account).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "virt-steward-export", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "virt-steward-exporter"},
        "subjects": [{"kind": "ServiceAccount", "name": "virt-steward-export", "namespace": "default"}]});
    post(client, "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_exports_every_vm_that_a_selector_matches_to_a_claim() {
    let cluster = Cluster::start(&["web", "db"]).await;
    std::fs::write(
        cluster.dir.path().join("job.json"),
        json!({"output_dir": "/nightly", "name": "nightly", "format": "qcow2", "provider": "kubevirt",
            "metadata": {"claim": "backups", "selector": {"matchLabels": {"tier": "shop"}},
                "concurrency": 1, "verify": true}})
        .to_string(),
    )
    .unwrap();
    let out = cluster
        .succeeds(&["export", "job", "submit", "job.json", "--wait", "--timeout", "3m", "-o", "json"])
        .await;
    let jobs: Value = serde_json::from_str(&out).unwrap();
    let jobs = &jobs["items"];
    assert_eq!((&jobs[0]["status"], &jobs[0]["progress"]["percent"]), (&json!("completed"), &json!(100)));
    for vm in ["web", "db"] {
        let runs = cluster.runs("backups", vm);
        assert_eq!(runs.len(), 1, "{vm}");
        cluster.same(&runs[0].join(format!("{vm}-root.qcow2")), vm);
        assert_eq!(jobs[0]["exports"][vm]["phase"], "Succeeded");
        assert_eq!(jobs[0]["exports"][vm]["progress"]["done"], 9 << 20);
    }
    let logs = cluster.succeeds(&["export", "job", "logs", "nightly"]).await;
    assert!(logs.contains("\"event\":\"done\""), "{logs}");
    let table = cluster.succeeds(&["export", "job", "list", "-o", "wide"]).await;
    assert!(table.contains("completed") && table.contains("claim backups/nightly"), "{table}");
    let events = cluster.get("/api/v1/namespaces/default/events").await;
    let reasons: Vec<&str> =
        events["items"].as_array().unwrap().iter().filter_map(|e| e["reason"].as_str()).collect();
    for reason in ["RunStarted", "ExportSucceeded", "RunSucceeded"] {
        assert!(reasons.contains(&reason), "{reasons:?}");
    }
    let metrics = metrics(cluster.metrics).await;
    assert!(metrics.contains("export_jobs{phase=\"Succeeded\"} 1"), "{metrics}");
    assert!(metrics.contains("export_events_total{reason=\"ExportSucceeded\"} 2"), "{metrics}");
    cluster.succeeds(&["export", "job", "delete", "nightly"]).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_reaches_its_destination_with_the_keys_of_a_secret_alone() {
    let cluster = Cluster::start(&["web"]).await;
    let (files, url) = web::Files::start().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": "default"},
        "stringData": {"HTTP_AUTHORIZATION": web::AUTHORIZATION}});
    post(&cluster.client, "/api/v1/namespaces/default/secrets", &secret).await;
    let path = "/apis/vm-feature-manager.io/v1alpha1/namespaces/default/vmexportjobs";
    for (name, destination, reached) in [
        ("with", json!({"url": format!("{url}/up"), "secretRef": {"name": "keys"}}), true),
        ("without", json!({"url": format!("{url}/up")}), false),
    ] {
        let job = json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "VMExportJob",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"source": {"virtualMachine": "web"}, "format": "ovf", "compression": "deflate", "retries": 0,
                "destination": destination}});
        post(&cluster.client, path, &job).await;
        let over = |job: &Value| ["Succeeded", "Failed"].iter().any(|phase| job["status"]["phase"] == *phase);
        let job = cluster.wait(&format!("{path}/{name}"), "over", over).await;
        assert_eq!(job["status"]["phase"] == "Succeeded", reached, "{job:#}");
        let message = job["status"]["exports"]["web"]["message"].as_str().unwrap_or_default();
        assert!(reached || message.contains("403"), "{message}");
        // The secret is in the pod's environment, and nowhere that many may read.
        assert!(!job.to_string().contains("of-this-test"));
    }
    let package = cluster.dir.path().join("package");
    std::fs::create_dir(&package).unwrap();
    for (path, content) in files.all().iter() {
        let (place, name) = path.rsplit_once('/').unwrap();
        assert!(place.starts_with("/up/web/"), "{path}");
        std::fs::write(package.join(name), content).unwrap();
    }
    let ovf = image::ovf::Package::open_descriptor(&package.join("web.ovf")).unwrap();
    assert_eq!(ovf.check_manifest().unwrap(), Vec::<String>::new());
    cluster.same(&package.join("web-root.vmdk"), "web");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_is_told_with_its_reason_and_one_without_a_right_never_starts() {
    let cluster = Cluster::start(&["web"]).await;
    let job = |name: &str, more: &Value| {
        let mut spec = json!({"source": {"virtualMachine": "web"}, "retries": 0,
            "destination": {"claim": {"name": "backups", "path": "nightly"}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "VMExportJob",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec})
    };
    let path = "/apis/vm-feature-manager.io/v1alpha1/namespaces/default/vmexportjobs";
    post(&cluster.client, path, &job("nobody", &json!({"source": {"virtualMachine": "nobody"}}))).await;
    post(&cluster.client, path, &job("account", &json!({"serviceAccountName": "default"}))).await;
    let failed = cluster.program(&["export", "job", "wait", "nobody", "--timeout", "2m"]).await;
    assert_eq!(failed.status.code(), Some(1));
    let found = cluster.get(&format!("{path}/nobody")).await;
    let message = found["status"]["exports"]["nobody"]["message"].as_str().unwrap();
    assert!(message.contains("VirtualMachine default/nobody"), "{message}");
    cluster.program(&["export", "job", "wait", "account", "--timeout", "1m"]).await;
    let found = cluster.get(&format!("{path}/account")).await;
    assert_eq!(found["status"]["phase"], "Invalid");
    let conditions = found["status"]["conditions"].to_string();
    assert!(conditions.contains("ServiceAccountNotAllowed"), "{conditions}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_submitted_followed_and_cancelled_over_rest() {
    let cluster = Cluster::start(&["web"]).await;
    let config = kube::Config::from_custom_kubeconfig(
        kube::config::Kubeconfig::from_yaml(&cluster.sandbox.kubeconfig()).unwrap(),
        &kube::config::KubeConfigOptions::default(),
    )
    .await
    .unwrap();
    let own = provider::cluster::connect(config.clone()).unwrap();
    let anonymous = provider::cluster::connect_without_identity(config).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let ended = stop.clone();
    let service =
        provider::rest::Config { anonymous, own_identity: Some(own), impersonation: None, prometheus: None };
    let serving = tokio::spawn(async move {
        provider::rest::serve(listener, service, async move { ended.cancelled().await }).await
    });
    let (status, answer) = call(
        &base,
        "POST",
        "/jobs/submit",
        &json!({"jobs": [
            {"vm_path": "default/web", "output_dir": "/nightly", "provider": "kubevirt", "name": "one",
                "metadata": {"namespace": "default", "claim": "backups"}},
            {"vm_path": "default/web", "output_dir": "/backups", "provider": "kubevirt"},
        ]}),
    )
    .await;
    assert_eq!((status, &answer["accepted"], &answer["rejected"]), (202, &json!(1), &json!(1)), "{answer}");
    assert!(answer["errors"][0]["remedy"].as_str().unwrap().contains("metadata.claim"), "{answer}");
    let id = answer["job_ids"][0].as_str().unwrap().to_owned();
    let end = std::time::Instant::now() + Duration::from_mins(2);
    loop {
        let (_, job) = call(&base, "GET", &format!("/jobs/{id}"), &Value::Null).await;
        assert_ne!(job["status"], "failed", "{job}");
        if job["status"] == "completed" {
            break;
        }
        assert!(std::time::Instant::now() < end, "{job}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.same(&cluster.runs("backups", "web")[0].join("web-root.qcow2"), "web");
    let (_, progress) = call(&base, "GET", &format!("/jobs/progress/{id}"), &Value::Null).await;
    assert_eq!(progress["progress"]["percent"], 100);
    let (_, logs) = call(&base, "GET", &format!("/jobs/logs/{id}"), &Value::Null).await;
    assert!(logs["logs"][0]["log"].as_str().unwrap().contains("done"), "{logs}");
    let (_, list) = call(&base, "POST", "/jobs/query", &json!({"status": ["completed"]})).await;
    assert_eq!(list["total"], 1);
    // what is over has nothing to be cancelled; a schedule has, and one job that is not there stops no other
    let (status, problem) = call(&base, "POST", "/jobs/cancel", &json!({"job_ids": [id]})).await;
    assert_eq!((status, &problem["detail"]), (409, &json!("it is over: completed")), "{problem}");
    let yearly = json!({"vm_path": "default/web", "output_dir": "/nightly", "name": "yearly",
        "metadata": {"claim": "backups", "schedule": "0 0 1 1 *"}});
    call(&base, "POST", "/jobs/submit", &yearly).await;
    let both = json!({"job_ids": ["default.yearly", "default.nobody"]});
    for (verb, done) in [("cancel", "cancelled"), ("resume", "resumed"), ("delete", "deleted")] {
        let (status, answer) = call(&base, "POST", &format!("/jobs/{verb}"), &both).await;
        let seen = (status, &answer[done], &answer["errors"][0]["code"]);
        assert_eq!(seen, (202, &json!(["default.yearly"]), &json!("not-found")), "{answer}");
    }
    let (status, problem) = call(&base, "GET", "/jobs/default.nobody", &Value::Null).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not-found")));
    stop.cancel();
    let _ = serving.await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_job_makes_up_for_what_it_missed_exports_what_changed_and_keeps_what_that_needs() {
    let cluster = Cluster::start(&["web"]).await;
    let kubevirt = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
    let configuration = cluster.get(kubevirt).await["spec"]["configuration"].clone();
    let mut gates =
        configuration["developerConfiguration"]["featureGates"].as_array().cloned().unwrap_or_default();
    gates.push("IncrementalBackup".into());
    let selectors = json!({"virtualMachineLabelSelector": {"matchLabels": {"tier": "shop"}}});
    let configured = json!({"developerConfiguration": {"featureGates": gates},
        "changedBlockTrackingLabelSelectors": selectors});
    cluster.patch(kubevirt, &json!({"spec": {"configuration": configured}})).await;
    let vms = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/web";
    cluster.patch(vms, &json!({"spec": {"runStrategy": "Always"}})).await;
    let tracked = |vm: &Value| vm["status"]["changedBlockTracking"]["state"] == "Enabled";
    cluster.wait(vms, "tracked", tracked).await;
    // A slot that was missed some minutes ago, and none that comes soon.
    let slot = |minutes_ago: i64| {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes_ago);
        format!("{} * * * *", at.strftime("%M").to_string().parse::<u32>().unwrap())
    };
    let path = "/apis/vm-feature-manager.io/v1alpha1/namespaces/default/vmexportjobs";
    let job = json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "VMExportJob",
        "metadata": {"name": "hourly", "namespace": "default"},
        "spec": {"source": {"virtualMachine": "web"}, "schedule": slot(9), "suspend": true, "retries": 1,
            "incremental": {}, "retention": {"keepLast": 1}, "verify": true,
            "destination": {"claim": {"name": "backups", "path": "nightly"}}}});
    post(&cluster.client, path, &job).await;
    let own = format!("{path}/hourly");
    let long_ago =
        (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(30)).strftime("%Y-%m-%dT%H:%M:%SZ");
    cluster
        .patch(&format!("{own}/status"), &json!({"status": {"lastScheduleTime": long_ago.to_string()}}))
        .await;
    let runs = |count: usize| {
        move |job: &Value| {
            let over = job["status"]["history"].as_array().cloned().unwrap_or_default();
            let failed = over.iter().any(|run| run["phase"] == "Failed");
            assert!(!failed, "{job:#}");
            over.len() == count && job["status"]["phase"] == "Scheduled"
        }
    };
    cluster.patch(&own, &json!({"spec": {"suspend": false}})).await;
    let first = cluster.wait(&own, "over once", runs(1)).await;
    let because = &first["status"]["exports"]["web"]["progress"]["fullBecause"];
    assert!(because.as_str().unwrap().contains("no earlier whole export"), "{because}");
    let disk = cluster.sandbox.simulation().unwrap().disks().join("default_web-root");
    let disk = std::fs::File::options().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"changed", 5 << 20).unwrap();
    cluster.patch(&own, &json!({"spec": {"schedule": slot(6)}})).await;
    let second = cluster.wait(&own, "over twice", runs(2)).await;
    let found = cluster.runs("backups", "web");
    assert_eq!(found.len(), 2, "the second builds on the first, which stays: {found:?}");
    let base = found[0].file_name().unwrap().to_str().unwrap();
    assert_eq!(second["status"]["exports"]["web"]["progress"]["base"], base);
    let image = found[1].join("web-root.qcow2");
    let (chain, info) = image::open_path(&image).unwrap();
    assert_eq!(info.backing, Some(format!("../{base}/web-root.qcow2")));
    let original = cluster.sandbox.simulation().unwrap().disks().join("default_web-root");
    let (original, _) = image::open(std::fs::File::open(original).unwrap()).unwrap();
    assert_eq!(image::compare(&*chain, &*original).unwrap(), None);
    let without = json!({"spec": {"schedule": slot(3), "incremental": null}});
    cluster.patch(&own, &without).await;
    cluster.wait(&own, "over three times", runs(3)).await;
    let left = cluster.runs("backups", "web");
    assert_eq!(left.len(), 1, "one that holds everything needs none of the others: {left:?}");
    cluster.same(&left[0].join("web-root.qcow2"), "web");
    cluster.end().await;
}

async fn call(base: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    use http_body_util::BodyExt as _;
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(format!("{base}{path}"));
    let request = request
        .header("content-type", "application/json")
        .body(http_body_util::Full::<bytes::Bytes>::from(body))
        .unwrap();
    let response: http::Response<hyper::body::Incoming> = client.request(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn metrics(address: std::net::SocketAddr) -> String {
    use http_body_util::BodyExt as _;
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = http::Request::get(format!("http://{address}/metrics"));
    let request = request.body(http_body_util::Full::<bytes::Bytes>::default()).unwrap();
    let response = client.request(request).await.unwrap();
    text(&response.into_body().collect().await.unwrap().to_bytes())
}
