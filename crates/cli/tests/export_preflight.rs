//! `virt-steward export --dry-run` against a simulated cluster: each obstacle is found there, and nothing is made.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod live;
mod web;

use std::path::PathBuf;

use live::{CLAIMS, Cluster, PODS, VMIS, VMS};
use sandbox::sim::SimConfig;
use serde_json::{Value, json};

struct Stage {
    cluster: Cluster,
    home: tempfile::TempDir,
}

impl Stage {
    /// A stopped VM `web` whose one disk is a claim of this size.
    async fn with(size: &str) -> Self {
        let cluster = Cluster::start(SimConfig { nodes: 1, ..SimConfig::default() }).await;
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "web-root", "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": size}}}});
        cluster.create(CLAIMS, &claim).await;
        let mut vm = live::vm("web");
        vm["spec"]["runStrategy"] = "Halted".into();
        vm["spec"]["template"]["spec"]["volumes"] = json!([
            {"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}},
            {"name": "init", "cloudInitNoCloud": {"userData": "#cloud-config"}}]);
        vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"] =
            json!([{"name": "root", "disk": {"bus": "virtio"}}, {"name": "init", "disk": {"bus": "virtio"}}]);
        cluster.create(VMS, &vm).await;
        Self { cluster, home: tempfile::tempdir().unwrap() }
    }

    /// The findings, and the exit status. Nothing is made.
    async fn look(&self, more: &str, kubeconfig: Option<PathBuf>) -> (Value, i32) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.args(["export", "web", "--dry-run", "-o", "json"]).args(more.split_whitespace());
        if !more.contains("--output") {
            command.arg("--output").arg(self.home.path());
        }
        let kubeconfig = kubeconfig.unwrap_or_else(|| self.cluster.kubeconfig().to_path_buf());
        let output = command.arg("--kubeconfig").arg(kubeconfig).env_remove("KUBECONFIG").output().await;
        let output = output.unwrap();
        let exports = "/apis/export.kubevirt.io/v1/namespaces/default/virtualmachineexports";
        let secrets = "/api/v1/namespaces/default/secrets";
        for path in [exports, secrets] {
            assert_eq!(live::items(&self.cluster.get(path).await.unwrap()).len(), 0, "{more}: {path}");
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{more}: {said}"));
        (findings, output.status.code().unwrap())
    }
}

/// Grade and words of a finding.
fn of<'a>(findings: &'a Value, check: &str) -> (&'a str, &'a str) {
    let found = findings.as_array().unwrap().iter().find(|one| one["check"] == check).unwrap();
    (found["grade"].as_str().unwrap(), found["detail"].as_str().unwrap())
}

fn says(findings: &Value, check: &str, grade: &str, part: &str) {
    let (found, detail) = of(findings, check);
    assert!(found == grade && detail.contains(part), "{check}: {found}: {detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn size_format_time_and_space_are_those_of_the_claims() {
    let stage = Stage::with("3Ti").await;
    for format in ["vmdk", "ova", "ovf"] {
        let (findings, status) = stage.look(&format!("--format {format}"), None).await;
        assert_eq!(status, 2, "{format}");
        says(&findings, "format", "blocked", "root is larger than the 2 TiB of a vmdk; use qcow2 or raw");
    }
    let (findings, status) = stage.look("--ttl 1", None).await;
    assert_eq!(status, 0, "warnings block nothing: {findings}");
    says(&findings, "format", "ok", "qcow2");
    says(&findings, "volumes", "warning", "init not on a claim: left out");
    says(
        &findings,
        "time",
        "warning",
        "at 50 MiB/s it takes 62914 s, and the export lives 3600 s: give a longer --ttl",
    );
    says(&findings, "space", "warning", "up to 3145728 MiB needed");
    let (findings, _) = stage.look("--ttl 24", None).await;
    says(&findings, "time", "ok", "the export lives 86400 s");
    // What is read twice takes twice the time.
    let (findings, _) = stage.look("--ttl 24 --output -", None).await;
    says(&findings, "time", "warning", "it takes 125829 s");
    says(&findings, "format", "warning", "read twice");
    let new = stage.home.path().join("monday/web");
    let (findings, _) = stage.look(&format!("--mkdir --output {}", new.display()), None).await;
    says(&findings, "space", "warning", "MiB free");
    assert!(!new.exists(), "a look makes no directory");
    stage.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_runs_and_a_claim_that_is_used_are_in_use() {
    let stage = Stage::with("8Mi").await;
    let (findings, status) = stage.look("", None).await;
    assert_eq!((status, of(&findings, "source").0), (0, "ok"), "{findings}");
    stage.cluster.merge(&format!("{VMS}/web"), &json!({"spec": {"runStrategy": "Always"}})).await;
    let running = |vmi: Option<&Value>| vmi.is_some_and(|vmi| vmi["status"]["phase"] == "Running");
    stage.cluster.wait(&format!("{VMIS}/web"), "running", running).await;
    let (findings, status) = stage.look("--no-snapshot", None).await;
    assert_eq!(status, 2);
    says(&findings, "source", "blocked", "VirtualMachine default/web is Running: stop it");
    let (findings, status) = stage.look("", None).await;
    assert_eq!(status, 0, "{findings}");
    says(&findings, "source", "ok", "a snapshot is taken");
    let launcher = live::items(&stage.cluster.get(PODS).await.unwrap())[0]["metadata"]["name"].clone();
    let line = format!("export --pvc web-root --dry-run --output {}", stage.home.path().display());
    let claim = stage.cluster.run(&line).await;
    assert_eq!(claim.status, 2, "{}", claim.stdout);
    let says = format!("is used by {}", launcher.as_str().unwrap());
    assert!(claim.stdout.contains(&says), "{}", claim.stdout);
    stage.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_may_not_do_is_named_right_by_right() {
    let stage = Stage::with("8Mi").await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}});
    stage.cluster.create(accounts, &account).await;
    let rules = json!([{"apiGroups": ["kubevirt.io"], "resources": ["virtualmachines"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get"]},
        {"apiGroups": ["export.kubevirt.io"], "resources": ["virtualmachineexports"], "verbs": ["create", "get"]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "reader", "namespace": "default"}, "rules": rules});
    stage.cluster.create(&format!("{rbac}/roles"), &role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "reader", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}]});
    stage.cluster.create(&format!("{rbac}/rolebindings"), &binding).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = stage.cluster.create(&format!("{accounts}/reader/token"), &review).await;
    let text = std::fs::read_to_string(stage.cluster.kubeconfig()).unwrap();
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({"token": token["status"]["token"]});
    let reader = stage.home.path().join("reader");
    std::fs::write(&reader, config.to_string()).unwrap();
    let (findings, status) = stage.look("", Some(reader)).await;
    assert_eq!(status, 2);
    let denied = "you may not create secrets, delete virtualmachineexports; ask for a role that allows it";
    says(&findings, "permissions", "blocked", denied);
    let (findings, _) = stage.look("", None).await;
    says(&findings, "permissions", "ok", "");
    stage.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_or_has_the_file_is_found_out_before() {
    let stage = Stage::with("8Mi").await;
    let (files, url) = web::Files::start().await;
    let (findings, status) = stage.look(&format!("--format raw --output {url}/up"), None).await;
    assert_eq!(status, 2);
    says(&findings, "destination", "blocked", "403");
    // Whoever replaces what is there need not be allowed to look.
    let (findings, status) = stage.look(&format!("--format raw --output {url}/up --force"), None).await;
    assert_eq!(status, 0);
    says(&findings, "destination", "warning", "may not be looked at");
    assert!(files.all().is_empty());
    // Whoever knows the secret is told what is there.
    let look = async |more: &str| {
        let line = format!("export web --dry-run --format raw --output {url}/up {more}");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.args(line.split_whitespace()).arg("--kubeconfig").arg(stage.cluster.kubeconfig());
        command.env("HTTP_AUTHORIZATION", web::AUTHORIZATION).env_remove("KUBECONFIG");
        let output = command.output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (status, said) = look("").await;
    assert!(status == 0 && said.contains("nothing is in the way"), "{said}");
    files.all().insert("/up/web-root.raw".into(), "precious".into());
    let (status, said) = look("").await;
    assert!(status == 2 && said.contains("`web-root.raw` exists already"), "{said}");
    let (status, said) = look("--force").await;
    assert!(status == 0 && said.contains("`web-root.raw` will be replaced"), "{said}");
    assert_eq!(files.all()["/up/web-root.raw"], "precious");
    stage.cluster.stop().await;
}
