//! `virt-steward export` from a simulated cluster, over HTTPS, to real files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

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
    cluster.run_web().await;
    let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/web";
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

impl Cluster {
    /// The VM `web` runs.
    async fn run_web(&self) {
        let vms = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/web";
        self.send("PATCH", vms, &json!({"spec": {"runStrategy": "Always"}})).await;
        let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/web";
        let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
        while self.get(vmi).await.is_none_or(|vmi| vmi["status"]["phase"] != "Running") {
            assert!(std::time::Instant::now() < end, "it does not start");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// The guest writes to its first disk; what the disk held before is kept in a file.
    fn write(&self, data: &[u8], offset: u64) -> PathBuf {
        let kept = self.dir.path().join("before.raw");
        std::fs::copy(self.original("web-root"), &kept).unwrap();
        let disk = std::fs::File::options().write(true).open(self.original("web-root")).unwrap();
        disk.write_all_at(data, offset).unwrap();
        kept
    }
}

fn holds(image: &Path, raw: &Path) {
    let open = |path: &Path| image::open(std::fs::File::open(path).unwrap()).unwrap().0;
    assert_eq!(image::compare(&*open(raw), &*open(image)).unwrap(), None, "{}", image.display());
}

const SNAPSHOTS: &str = "/apis/snapshot.kubevirt.io/v1beta1/namespaces/default/virtualmachinesnapshots";

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_exported_by_its_name_and_stays() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let output = out.to_str().unwrap();
    // The disks are written when somebody reads them first.
    let plain = ["--provider", "kubevirt", "--vm", "default/web", "--output", output, "--quiet"];
    cluster.succeeds(&plain).await;
    cluster.same(&out.join("web-root.qcow2"), "web-root");
    let snapshot = json!({"apiVersion": "snapshot.kubevirt.io/v1beta1", "kind": "VirtualMachineSnapshot",
        "metadata": {"name": "nightly", "namespace": "default"},
        "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "web"}}});
    cluster.create(SNAPSHOTS, snapshot).await;
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let path = format!("{SNAPSHOTS}/nightly");
    while cluster.get(&path).await.is_none_or(|found| found["status"]["readyToUse"] != true) {
        assert!(std::time::Instant::now() < end, "it is not ready");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let before = cluster.write(b"written after the snapshot", 1 << 20);
    cluster.run_web().await;
    let place = cluster.dir.path().join("snapshot");
    std::fs::create_dir(&place).unwrap();
    let line = ["web", "--format", "qcow2", "--compress", "zstd", "--output", place.to_str().unwrap()];
    let line = [&line[..], &["--snapshot", "nightly", "--resume", "--verify"]].concat();
    let dry = cluster.succeeds(&[&line[..], &["--dry-run"]].concat()).await;
    assert!(
        text(&dry.stdout).contains("VirtualMachine default/web from a snapshot"),
        "{}",
        text(&dry.stdout)
    );
    cluster.succeeds(&line).await;
    holds(&place.join("web-root.qcow2"), &before);
    let report: Value =
        serde_json::from_slice(&std::fs::read(place.join("web.export.json")).unwrap()).unwrap();
    assert_eq!(report["source"], "VirtualMachine default/web snapshot nightly");
    assert!(cluster.get(&path).await.is_some(), "somebody else took it");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_a_vm_that_runs_goes_on_with_its_snapshot_after_a_kill() {
    let cluster = Cluster::start().await;
    cluster.run_web().await;
    let out = cluster.out();
    let arguments = ["web", "--no-backup", "-O", out.to_str().unwrap(), "--quiet"];
    let mut command = cluster.command(&arguments);
    let mut child = command.args(["--limit-rate", "16", "--checkpoint", "4"]).spawn().unwrap();
    let journal = out.join("web-root.qcow2.journal");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while lines() < 3 && std::time::Instant::now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines() >= 3, "it ended too early");
    let taken = cluster.get(SNAPSHOTS).await.unwrap();
    assert_eq!(taken["items"].as_array().unwrap().len(), 1, "what the journal is about");
    let before = cluster.write(b"the guest goes on", 60 << 20);
    cluster.succeeds(&[&arguments[..], &["--resume", "--verify"]].concat()).await;
    holds(&out.join("web-root.qcow2"), &before);
    assert_eq!(cluster.get(SNAPSHOTS).await.unwrap()["items"], json!([]), "the snapshot is gone");
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

/// The events of progress of a disk.
fn progress<'a>(events: &'a [Value], disk: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == "progress" && event["disk"] == disk).collect()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_lines_of_json_with_rate_time_zeros_and_ratio_of_each_disk() {
    let cluster = Cluster::start().await;
    let out = cluster.out();
    let done = cluster.succeeds(&["web", "-O", out.to_str().unwrap(), "-o", "json"]).await;
    let events = lines(&done.stdout);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("started", "done"));
    for (disk, size) in [("root", 67_113_472), ("data", 9 << 20)] {
        let all = progress(&events, disk);
        let last = all[all.len() - 1];
        assert_eq!((&last["done"], &last["size"]), (&json!(size), &json!(size)));
        assert_eq!(
            (&last["percent"], &last["etaSeconds"], &last["passesLeft"]),
            (&json!(100), &json!(0), &json!(0))
        );
        let number = |key: &str| last[key].as_u64().unwrap_or_else(|| panic!("{key}: {last}"));
        assert!(number("bytesPerSecond") > 0, "{last}");
        assert_eq!(number("zeros"), size - number("data"), "{last}");
        assert!(number("zeros") > size / 2, "zeros are skipped: {last}");
        let ratio = last["ratio"].as_f64().unwrap();
        assert!(disk == "data" || ratio > 1.0, "text is compressed: {last}");
        assert!(all.iter().all(|event| event["percent"].as_u64() <= Some(100)));
    }
    // Into a pipe, each disk is measured first; events go where the disk does not.
    let piped = cluster.succeeds(&["web", "-f", "ova", "-O", "-", "-o", "json"]).await;
    let events = lines(&piped.stderr);
    assert!(events[0]["message"].as_str().unwrap().contains("read twice"), "{}", events[0]);
    let started: Vec<(&str, u64)> = events
        .iter()
        .filter(|event| event["event"] == "started")
        .map(|event| (event["disk"].as_str().unwrap(), event["passesLeft"].as_u64().unwrap()))
        .collect();
    assert_eq!(started, [("root", 1), ("data", 1), ("root", 0), ("data", 0)]);
    let last = progress(&events, "data");
    assert_eq!(last[last.len() - 1]["done"], 9 << 20);
    let sum = export::sums::hex(&export::sums::sha256(&piped.stdout));
    let end = &events[events.len() - 1];
    assert_eq!((&end["event"], &end["files"][0]["sha256"]), (&json!("done"), &json!(sum)));
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_volume_is_cut_short_without_a_word_and_an_export_is_not() {
    let cluster = Cluster::start().await;
    let exports = cluster.sandbox.simulation().unwrap().exports().unwrap().clone();
    exports.truncate_gzip_after(5 << 20);
    let out = cluster.out();
    cluster
        .succeeds(&["web", "-f", "raw", "-O", out.to_str().unwrap(), "--verify", "--keep", "--quiet"])
        .await;
    cluster.same(&out.join("web-root.raw"), "web-root");
    assert_eq!(std::fs::metadata(out.join("web-root.raw")).unwrap().len(), 67_113_472);
    // What today's client downloads instead: 200, a whole gzip stream, and the beginning of the disk.
    let all = "/apis/export.kubevirt.io/v1/namespaces/default/virtualmachineexports";
    let export = cluster.get(all).await.unwrap()["items"][0].clone();
    let links = &export["status"]["links"]["external"];
    let formats = links["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "web-root");
    let formats = formats.unwrap()["formats"].as_array().unwrap();
    let gzip = formats.iter().find(|format| format["format"] == "gzip").unwrap()["url"].as_str().unwrap();
    let name = export["metadata"]["name"].as_str().unwrap();
    let secret = cluster.get(&format!("/api/v1/namespaces/default/secrets/{name}")).await.unwrap();
    let token =
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, secret["data"]["token"].as_str().unwrap());
    let http = export::source::http::client(links["cert"].as_str().unwrap()).unwrap();
    let request = http::Request::get(gzip).header("x-kubevirt-export-token", token.unwrap());
    let request = request.body(http_body_util::Full::default()).unwrap();
    let answer = http.request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let packed = export::source::http::body("downloading", answer.into_body(), 1 << 30).await.unwrap();
    let file = cluster.dir.path().join("disk.img.gz");
    std::fs::write(&file, packed).unwrap();
    let unpacked = Command::new("gzip").args(["--decompress", "--stdout"]).arg(&file).output().unwrap();
    assert!(unpacked.status.success(), "gzip finds nothing wrong with it");
    assert!(unpacked.stdout.len() < 67_113_472, "and it is short");
    let original = std::fs::read(cluster.original("web-root")).unwrap();
    assert!(unpacked.stdout == original[..unpacked.stdout.len()]);
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_is_compressed_as_it_is_said_or_refused() {
    let cluster = Cluster::start().await;
    for (format, compress, refused) in [
        ("qcow2", "none", None),
        ("qcow2", "deflate", None),
        ("qcow2", "zstd", None),
        ("vmdk", "deflate", None),
        ("ova", "deflate", None),
        ("ovf", "deflate", None),
        ("raw", "none", None),
        ("raw", "zstd", Some("never compressed")),
        ("vmdk", "none", Some("always deflated")),
        ("ova", "zstd", Some("always deflated")),
    ] {
        let out = cluster.dir.path().join(format!("{format}-{compress}"));
        std::fs::create_dir(&out).unwrap();
        let output = format!("file://{}", out.display());
        let arguments = [
            "web",
            "--disk",
            "data",
            "--format",
            format,
            "--compress",
            compress,
            "--output",
            &output,
            "--quiet",
        ];
        let done = cluster.export(&arguments).await;
        let said = text(&done.stderr);
        let Some(refused) = refused else {
            assert!(done.status.success(), "{format} {compress}: {said}");
            continue;
        };
        assert_eq!(done.status.code(), Some(1), "{format} {compress}");
        assert!(said.contains(refused) && said.contains("leave --compress out"), "{said}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    }
    let info = |compress: &str| {
        let image = cluster.dir.path().join(format!("qcow2-{compress}/web-data.qcow2"));
        image::open_path(&image).unwrap().1.compression
    };
    assert_eq!(info("deflate"), Some(image::qcow2::Compression::Deflate));
    assert_eq!(info("zstd"), Some(image::qcow2::Compression::Zstd));
    cluster.same(&cluster.dir.path().join("vmdk-deflate/web-data.vmdk"), "web-data");
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
