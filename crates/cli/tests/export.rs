//! `virt-steward export` from a simulated cluster, over HTTPS, to real files.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sandbox::sim::Release;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

struct Cluster {
    sandbox: Sandbox,
    client: kube::Client,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// A cluster with a stopped VM `web` of two disks.
    async fn start() -> Self {
        Self::of(Release::default()).await
    }

    /// The same with a release of KubeVirt.
    async fn of(release: Release) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig_out = Some(dir.path().join("kubeconfig"));
        let options = Options { nodes: 1, kubeconfig_out, release, ..Options::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let client = sandbox::sim::connect(&sandbox.kubeconfig()).await.unwrap();
        let cluster = Self { sandbox, client, dir };
        // Not a whole number of chunks, clusters or grains; the plain file system offers only `dir`.
        cluster.claim("web-root", "67113472", "ext4", "20Mi", true).await;
        cluster.claim("web-data", "9Mi", "random", "3Mi", false).await;
        cluster.create("/apis/kubevirt.io/v1/namespaces/default/virtualmachines", vm()).await;
        std::fs::create_dir(cluster.out()).unwrap();
        cluster
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    async fn create(&self, path: &str, object: Value) {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(object.to_string().into_bytes()).unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }

    async fn send(&self, method: &str, path: &str, body: &Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.client.request::<Value>(request.body(body).unwrap()).await.unwrap();
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request(request).await.ok()
    }

    async fn claim(&self, name: &str, size: &str, content: &str, data: &str, block: bool) {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default", "annotations": {
                "sandbox.vm-feature-manager.io/content": content,
                "sandbox.vm-feature-manager.io/data": data}},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}},
                "volumeMode": if block { "Block" } else { "Filesystem" }}});
        self.create("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt-steward"));
        command.arg("export").args(arguments).env("KUBECONFIG", self.dir.path().join("kubeconfig"));
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    /// Runs the program to its end, beside the sandbox.
    async fn export(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn succeeds(&self, arguments: &[&str]) -> Output {
        let done = self.export(arguments).await;
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        done
    }

    /// What the claims really hold, from the sandbox's own files.
    fn original(&self, claim: &str) -> PathBuf {
        let disks = self.sandbox.simulation().unwrap().disks();
        disks.join(format!("default_{claim}"))
    }

    fn same(&self, image: &Path, claim: &str) {
        let open = |path: &Path| image::open(std::fs::File::open(path).unwrap()).unwrap().0;
        let difference = image::compare(&*open(image), &*open(&self.original(claim))).unwrap();
        assert_eq!(difference, None, "{} is not {claim}", image.display());
    }
}

fn vm() -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
    "metadata": {"name": "web", "namespace": "default", "labels": {"kubevirt.io/os": "fedora"}},
    "spec": {"runStrategy": "Halted", "template": {"spec": {
        "domain": {
            "cpu": {"cores": 2},
            "memory": {"guest": "1Gi"},
            "devices": {
                "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "data", "disk": {"bus": "sata"}}],
                "interfaces": [{"name": "default", "masquerade": {}}],
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [
            {"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "web-data"}},
        ],
    }}}})
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// qemu-img's opinion of an image.
fn qemu_agrees(raw: &Path, image: &Path, format: &str) {
    let run =
        |arguments: &[&str], files: &[&Path]| Command::new("qemu-img").args(arguments).args(files).output();
    let Ok(same) = run(&["compare", "-f", "raw", "-F", format], &[raw, image]) else {
        eprintln!("SKIPPED: qemu-img is not installed, its opinion is not asked");
        return;
    };
    assert!(same.status.success(), "{}", text(&same.stdout));
    if format == "qcow2" {
        let check = run(&["check", "-f", "qcow2"], &[image]).unwrap();
        assert!(text(&check.stdout).contains("No errors"), "{check:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_exported_to_every_format_bit_for_bit() {
    let cluster = Cluster::start().await;
    for (format, extension, driver) in
        [("qcow2", "qcow2", "qcow2"), ("raw", "raw", "raw"), ("vmdk", "vmdk", "vmdk")]
    {
        let out = cluster.dir.path().join(format);
        std::fs::create_dir(&out).unwrap();
        let arguments = ["web", "--format", format, "--output", out.to_str().unwrap(), "--verify", "--quiet"];
        cluster.succeeds(&arguments).await;
        for (disk, claim) in [("root", "web-root"), ("data", "web-data")] {
            let image = out.join(format!("web-{disk}.{extension}"));
            cluster.same(&image, claim);
            qemu_agrees(&cluster.original(claim), &image, driver);
        }
        let report: Value =
            serde_json::from_slice(&std::fs::read(out.join("web.export.json")).unwrap()).unwrap();
        assert_eq!(report["disks"][0]["virtualSize"], 67_113_472);
        let sum = Command::new("sha256sum").arg(out.join(format!("web-root.{extension}"))).output().unwrap();
        assert!(text(&sum.stdout).starts_with(report["files"][0]["sha256"].as_str().unwrap()));
        let left: Vec<String> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".partial") || name.ends_with(".journal"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    // Nothing is left in the cluster.
    let exports = cluster.get("/apis/export.kubevirt.io/v1/virtualmachineexports").await.unwrap();
    assert_eq!(exports["items"], json!([]));
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ova_and_an_ovf_hold_the_machine_and_a_pipe_gives_the_same_ova() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let output = out.to_str().unwrap();
    cluster
        .succeeds(&[
            "--provider",
            "kubevirt",
            "--vm",
            "default/web",
            "-f",
            "ova",
            "--output",
            output,
            "--verify",
        ])
        .await;
    cluster.succeeds(&["web", "-f", "ovf", "--output", output, "--verify"]).await;
    let piped = cluster.succeeds(&["web", "-f", "ova", "--output", "-", "--quiet"]).await;
    let ova = std::fs::read(out.join("web.ova")).unwrap();
    let first = piped.stdout.iter().zip(&ova).position(|(a, b)| a != b);
    assert_eq!((first, piped.stdout.len()), (None, ova.len()));
    for package in [
        image::ovf::Package::open_archive(std::sync::Arc::new(ova)).unwrap(),
        image::ovf::Package::open_descriptor(&out.join("web.ovf")).unwrap(),
    ] {
        assert_eq!((package.machine.cpus, package.machine.memory_mib), (2, 1024));
        assert_eq!(package.machine.os.vmware, "fedora64Guest");
        assert_eq!(package.check_manifest().unwrap(), Vec::<String>::new());
        for (number, claim) in ["web-root", "web-data"].iter().enumerate() {
            let disk = package.disk(number).unwrap().unwrap();
            let (original, _) = image::open(std::fs::File::open(cluster.original(claim)).unwrap()).unwrap();
            assert_eq!(image::compare(&*disk.disk, &*original).unwrap(), None);
        }
    }
    let raw = cluster.succeeds(&["web", "-f", "raw", "--disk", "data", "-O", "-", "--quiet"]).await;
    assert!(raw.stdout == std::fs::read(cluster.original("web-data")).unwrap());
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ova_describes_what_an_instance_type_gives() {
    let cluster = Cluster::start().await;
    let kind = json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachineClusterInstancetype",
        "metadata": {"name": "medium"}, "spec": {"cpu": {"guest": 4}, "memory": {"guest": "3Gi"}}});
    let group = "/apis/instancetype.kubevirt.io/v1beta1";
    cluster.create(&format!("{group}/virtualmachineclusterinstancetypes"), kind).await;
    // As `virtctl create vm` writes it: no disk is listed, its volume becomes one.
    let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "sized", "namespace": "default"},
        "spec": {"runStrategy": "Halted", "instancetype": {"name": "medium"},
            "template": {"spec": {"domain": {"devices": {}},
                "volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "web-data"}}]}}}});
    cluster.create("/apis/kubevirt.io/v1/namespaces/default/virtualmachines", vm).await;
    let out = cluster.out();
    cluster.succeeds(&["sized", "-f", "ova", "-O", out.to_str().unwrap(), "--quiet"]).await;
    let archive = std::fs::read(out.join("sized.ova")).unwrap();
    let text = String::from_utf8_lossy(&archive).into_owned();
    assert!(text.contains("\"instancetype\": {"), "the manifest that travels along is the VM's own");
    let package = image::ovf::Package::open_archive(std::sync::Arc::new(archive)).unwrap();
    assert_eq!((package.machine.cpus, package.machine.memory_mib), (4, 3072));
    assert_eq!(package.machine.disks.len(), 1);
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_the_jobs_of_a_file_are_exported_with_the_providers_configuration() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    // Nothing but the configuration says where the cluster is.
    let kubeconfig = cluster.dir.path().join("kubeconfig");
    let config = format!(
        "provider:\n  type: kubevirt\n  metadata:\n    namespace: default\n    kubeconfig: {}\n",
        kubeconfig.display()
    );
    std::fs::write(cluster.dir.path().join("provider.yaml"), config).unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = cluster.command(&[arguments, &["--provider-config", "provider.yaml"]].concat());
        command.env("KUBECONFIG", "/nowhere");
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let done = run(&["--pvc", "web-data", "-f", "raw", "-O", out.to_str().unwrap()]).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    cluster.same(&out.join("web-data-web-data.raw"), "web-data");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "image": "b"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "web-root"}}]}});
    cluster.create("/api/v1/namespaces/default/pods", pod).await;
    let used = run(&["--pvc", "web-root", "-O", out.to_str().unwrap()]).await;
    assert_eq!(used.status.code(), Some(2));
    assert!(text(&used.stderr).contains("is used by user"), "{}", text(&used.stderr));
    cluster.send("DELETE", "/api/v1/namespaces/default/pods/user", &Value::Null).await;
    let jobs = json!({"jobs": [
        {"vm_path": "web", "output_dir": "one", "provider": "kubevirt", "metadata": {"namespace": "default"}},
        {"vm_path": "default/nobody", "output_dir": "two"},
        {"vm_path": "default/web", "output_dir": "three", "format": "vmdk"},
    ]});
    std::fs::write(cluster.dir.path().join("jobs.json"), jobs.to_string()).unwrap();
    let done = run(&["--jobs", "jobs.json", "--verify"]).await;
    assert_eq!(done.status.code(), Some(1), "one of them fails, and the others are done");
    assert!(text(&done.stderr).contains("1 of 3 jobs failed"), "{}", text(&done.stderr));
    for (file, claim) in [("one/web-root.qcow2", "web-root"), ("three/web-data.vmdk", "web-data")] {
        cluster.same(&cluster.dir.path().join(file), claim);
    }
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_survives_a_pod_swap_and_cut_connections() {
    let cluster = Cluster::start().await;
    let exports = cluster.sandbox.simulation().unwrap().exports().unwrap().clone();
    exports.cut_after(5 << 20);
    let out = cluster.out();
    let mut command = cluster.command(&["web", "--limit-rate", "24", "-O", out.to_str().unwrap(), "--quiet"]);
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while exports.sent() < 16 << 20 && std::time::Instant::now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    exports.swap_pods().unwrap();
    let done = running.await.unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    cluster.same(&out.join("web-root.qcow2"), "web-root");
    cluster.same(&out.join("web-data.qcow2"), "web-data");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_killed_goes_on_and_is_the_same() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let whole = cluster.dir.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    for format in ["qcow2", "ova"] {
        cluster.succeeds(&["web", "-f", format, "-O", whole.to_str().unwrap(), "--quiet", "--force"]).await;
        let arguments = ["web", "-f", format, "-O", out.to_str().unwrap(), "--quiet"];
        let mut command = cluster.command(&arguments);
        command.args(["--limit-rate", "16", "--checkpoint", "4"]);
        let mut child = command.spawn().unwrap();
        // Kill it when a second checkpoint is in the journal.
        let name = if format == "ova" { "web.ova.1.journal" } else { "web-root.qcow2.journal" };
        let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
        let lines = || std::fs::read_to_string(out.join(name)).map_or(0, |text| text.lines().count());
        while lines() < 3 && std::time::Instant::now() < end {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lines() >= 3, "{format}: it ended too early");
        let refused = cluster.export(&arguments).await;
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains("--resume"), "{}", text(&refused.stderr));
        let sent = cluster.sandbox.simulation().unwrap().exports().unwrap().sent();
        cluster.succeeds(&[&arguments[..], &["--resume", "--verify"]].concat()).await;
        let again = cluster.sandbox.simulation().unwrap().exports().unwrap().sent() - sent;
        assert!(again < 67_113_472 + (9 << 20) - (4 << 20), "{format}: {again} bytes were read again");
        let files = if format == "ova" { vec!["web.ova"] } else { vec!["web-root.qcow2", "web-data.qcow2"] };
        for file in files {
            let same = std::fs::read(out.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap();
            assert!(same, "{file} differs from the one that was made in one go");
        }
    }
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_goes_on_when_its_object_ends_and_its_token_changes() {
    let cluster = Cluster::start().await;
    let exports = cluster.sandbox.simulation().unwrap().exports().unwrap().clone();
    let out = cluster.out();
    let mut command = cluster.command(&["web", "--limit-rate", "16", "-O", out.to_str().unwrap(), "--quiet"]);
    let running = tokio::task::spawn_blocking(move || command.output().unwrap());
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let sent = async |bytes: u64| {
        while exports.sent() < bytes && std::time::Instant::now() < end {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let all = "/apis/export.kubevirt.io/v1/namespaces/default/virtualmachineexports";
    sent(8 << 20).await;
    let found = cluster.get(all).await.unwrap();
    let name = found["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    // What its TTL does.
    let first = found["items"][0]["metadata"]["uid"].clone();
    cluster.send("DELETE", &format!("{all}/{name}"), &Value::Null).await;
    sent(24 << 20).await;
    let again = cluster.get(&format!("{all}/{name}")).await.unwrap();
    assert_ne!(again["metadata"]["uid"], first, "it was made again");
    let token = json!({"stringData": {"token": "another-token"}});
    cluster.send("PATCH", &format!("/api/v1/namespaces/default/secrets/{name}"), &token).await;
    let done = running.await.unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    cluster.same(&out.join("web-root.qcow2"), "web-root");
    cluster.same(&out.join("web-data.qcow2"), "web-data");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_runs_is_exported_from_a_snapshot_that_goes_afterwards() {
    let cluster = Cluster::start().await;
    let vms = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/web";
    cluster.send("PATCH", vms, &json!({"spec": {"runStrategy": "Always"}})).await;
    let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/web";
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while cluster.get(vmi).await.is_none_or(|vmi| vmi["status"]["phase"] != "Running") {
        assert!(std::time::Instant::now() < end, "it does not start");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let out = cluster.out();
    let output = out.to_str().unwrap();
    let refused = cluster.export(&["web", "-O", output, "--no-snapshot"]).await;
    assert_eq!(refused.status.code(), Some(2));
    let dry = cluster.succeeds(&["web", "-O", output, "--dry-run"]).await;
    assert!(text(&dry.stdout).contains("a snapshot is taken"), "{}", text(&dry.stdout));
    let done = cluster.succeeds(&["web", "-O", output, "--verify", "--quiet"]).await;
    assert!(done.stderr.is_empty(), "{}", text(&done.stderr));
    cluster.same(&out.join("web-root.qcow2"), "web-root");
    let all = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshots";
    assert_eq!(cluster.get(all).await.unwrap()["items"], json!([]), "the snapshot is gone");
    let exports = cluster.get("/apis/export.kubevirt.io/v1/virtualmachineexports").await.unwrap();
    assert_eq!(exports["items"], json!([]));
    assert_eq!(cluster.get(vmi).await.unwrap()["status"]["phase"], "Running", "nobody stopped it");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pre_flight_names_what_is_in_the_way() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let output = out.to_str().unwrap();
    let dry = cluster.succeeds(&["web", "-O", output, "--dry-run"]).await;
    assert!(text(&dry.stdout).contains("source       ok"), "{}", text(&dry.stdout));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    let exports = cluster.get("/apis/export.kubevirt.io/v1/virtualmachineexports").await.unwrap();
    assert_eq!(exports["items"], json!([]), "a dry run makes nothing");
    std::fs::write(out.join("web-root.qcow2"), "precious").unwrap();
    let refused = cluster.export(&["web", "-O", output, "--dry-run", "-o", "json"]).await;
    assert_eq!(refused.status.code(), Some(2));
    let findings: Value = serde_json::from_slice(&refused.stdout).unwrap();
    let blocked = findings.as_array().unwrap().iter().find(|finding| finding["grade"] == "blocked").unwrap();
    assert_eq!(blocked["check"], "destination");
    let unknown = cluster.export(&["nobody", "-O", output]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("VirtualMachine default/nobody"), "{}", text(&unknown.stderr));
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_releases_are_spoken_to_in_the_version_that_they_serve() {
    for (release, version) in [(Release::V1_3, "v1beta1"), (Release::V1_8, "v1beta1"), (Release::V1_9, "v1")]
    {
        let cluster = Cluster::of(release).await;
        let out = cluster.out();
        let arguments = ["web", "--disk", "data", "-O", out.to_str().unwrap(), "--quiet", "--keep"];
        if release < Release::V1_9 {
            let refused = cluster.export(&arguments).await;
            assert_eq!(refused.status.code(), Some(2), "{release}: {}", text(&refused.stderr));
            assert!(text(&refused.stderr).contains("the gate VMExport is off"), "{}", text(&refused.stderr));
            let kubevirts = "/apis/kubevirt.io/v1/kubevirts";
            let found = cluster.get(kubevirts).await.unwrap()["items"][0]["metadata"].clone();
            let of = |key: &str| found[key].as_str().unwrap().to_owned();
            let path =
                format!("/apis/kubevirt.io/v1/namespaces/{}/kubevirts/{}", of("namespace"), of("name"));
            let gates = json!({"spec": {"configuration": {"developerConfiguration": {
                "featureGates": ["HostDevices", "Sidecar", "VMExport"]}}}});
            cluster.send("PATCH", &path, &gates).await;
        }
        let dry = cluster.succeeds(&[&arguments[..], &["--dry-run"]].concat()).await;
        assert!(
            text(&dry.stdout).contains(&format!("VirtualMachineExport {version}")),
            "{}",
            text(&dry.stdout)
        );
        cluster.succeeds(&arguments).await;
        cluster.same(&out.join("web-data.qcow2"), "web-data");
        let exports = format!("/apis/export.kubevirt.io/{version}/virtualmachineexports");
        let made = cluster.get(&exports).await.unwrap()["items"][0].clone();
        assert_eq!(made["apiVersion"], format!("export.kubevirt.io/{version}"), "{release}");
        cluster.sandbox.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_lines_of_json() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let done = cluster.succeeds(&["web", "-O", out.to_str().unwrap(), "-o", "json"]).await;
    let events: Vec<Value> =
        text(&done.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("started", "done"));
    let last = events.iter().rfind(|event| event["event"] == "progress" && event["disk"] == "root").unwrap();
    assert_eq!(last["done"], last["size"]);
    assert!(last["data"].as_u64() < last["size"].as_u64(), "zeros are not data: {last}");
    cluster.sandbox.shutdown().await;
}

#[test]
fn a_file_of_this_machine_is_exported_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("disk.raw")).unwrap();
    file.set_len(30 << 20).unwrap();
    file.write_all_at(b"here", 17 << 20).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(["export", "--file", "disk.raw", "-f", "vmdk", "-O", ".", "--verify", "--quiet"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    qemu_agrees(&dir.path().join("disk.raw"), &dir.path().join("disk-disk.vmdk"), "vmdk");
}
