//! Exports of what changed, of VMs that run: from backups of the simulated cluster to chains of images.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod live;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use live::{CLAIMS, Cluster, VMIS, VMS};
use sandbox::sim::SimConfig;
use serde_json::{Value, json};

const BACKUPS: &str = "/apis/backup.kubevirt.io/v1alpha1/namespaces/default/virtualmachinebackups";
const TRACKERS: &str = "/apis/backup.kubevirt.io/v1alpha1/namespaces/default/virtualmachinebackuptrackers";
const CLUSTER: u64 = 64 << 10;
/// Not a whole number of chunks or clusters.
const SIZE: u64 = (20 << 20) + 1536;

struct Stage {
    cluster: Cluster,
    home: tempfile::TempDir,
}

impl Stage {
    /// A VM that runs, whose changes are tracked.
    async fn new() -> Self {
        let mut config = SimConfig { nodes: 1, ..SimConfig::default() };
        config.feature_gates.push("IncrementalBackup".into());
        let cluster = Cluster::start(config).await;
        let selectors = json!({"virtualMachineLabelSelector": {"matchLabels": {"backup": "yes"}}});
        let patch = json!({"spec": {"configuration": {"changedBlockTrackingLabelSelectors": selectors}}});
        let kubevirt = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
        let (code, answer) = cluster.merge(kubevirt, &patch).await;
        assert!(code < 300, "{answer}");
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "web-root", "namespace": "default",
                "annotations": {"sandbox.vm-feature-manager.io/data": "7Mi"}},
            "spec": {"accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": SIZE.to_string()}}}});
        cluster.create(CLAIMS, &claim).await;
        let mut vm = live::vm("web");
        vm["metadata"]["labels"] = json!({"backup": "yes"});
        vm["spec"]["template"]["spec"]["volumes"] =
            json!([{"name": "root", "persistentVolumeClaim": {"claimName": "web-root"}}]);
        vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"] =
            json!([{"name": "root", "disk": {"bus": "virtio"}}]);
        cluster.create(VMS, &vm).await;
        let stage = Self { cluster, home: tempfile::tempdir().unwrap() };
        stage.tracked("").await;
        stage
    }

    /// Waits until changes are tracked of another guest than that one; answers its uid.
    async fn tracked(&self, before: &str) -> String {
        let tracked = |vmi: Option<&Value>| {
            vmi.is_some_and(|vmi| {
                vmi["status"]["changedBlockTracking"]["state"] == "Enabled"
                    && vmi["metadata"]["uid"] != before
            })
        };
        let vmi = self.cluster.wait(&format!("{VMIS}/web"), "tracked", tracked).await;
        vmi["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    fn at(&self, run: &str) -> PathBuf {
        self.home.path().join(run)
    }

    fn line(&self, run: &str, more: &str) -> String {
        format!("export web --incremental --mkdir --verify --output {} {more}", self.at(run).display())
    }

    /// Exports, and answers what was said.
    async fn export(&self, run: &str) -> String {
        self.cluster.ok(&self.line(run, "")).await.stderr
    }

    fn disk(&self) -> PathBuf {
        self.cluster.simulation.disks().join("default_web-root")
    }

    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]) {
        File::options().write(true).open(self.disk()).unwrap().write_all_at(data, offset).unwrap();
    }

    /// The disk as it is now.
    fn keep(&self, name: &str) -> PathBuf {
        let kept = self.at(name);
        std::fs::copy(self.disk(), &kept).unwrap();
        kept
    }

    /// The image of a run holds what a raw disk holds, says our reader and qemu-img.
    fn holds(&self, run: &str, raw: &Path) {
        let image = self.at(run).join("web-root.qcow2");
        let (read, _) = image::open_path(&image).unwrap();
        let (original, _) = image::open(File::open(raw).unwrap()).unwrap();
        assert_eq!(image::compare(&*original, &*read).unwrap(), None, "{run}");
        let qemu = |arguments: &[&str], files: &[&Path]| {
            Command::new("qemu-img").args(arguments).args(files).output()
        };
        let Ok(same) = qemu(&["compare", "-f", "raw", "-F", "qcow2"], &[raw, &image]) else {
            eprintln!("SKIPPED: qemu-img is not installed, its opinion is not asked");
            return;
        };
        assert!(same.status.success(), "{run}: {same:?}");
        let check = qemu(&["check", "-f", "qcow2"], &[&image]).unwrap();
        assert!(check.status.success(), "{run}: {check:?}");
    }

    fn report(&self, run: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.at(run).join("web.export.json")).unwrap()).unwrap()
    }

    fn length(&self, run: &str) -> u64 {
        std::fs::metadata(self.at(run).join("web-root.qcow2")).unwrap().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_is_exported_and_the_chain_holds_the_disk() {
    let stage = Stage::new().await;
    let looked = stage.cluster.run(&stage.line("1", "--dry-run")).await;
    assert!(looked.stdout.contains("KubeVirt backs it up while it runs"), "{}", looked.stdout);
    let first = stage.export("1").await;
    assert!(first.contains("everything is exported: there is no earlier whole export"), "{first}");
    stage.holds("1", &stage.disk());
    let kept = stage.keep("1.raw");
    // Data in the middle of a cluster, over its edge, at the very end; and zeros over data and into a part.
    stage.write(3 * CLUSTER + 100, b"in the middle");
    stage.write(9 * CLUSTER - 5, b"over the edge");
    stage.write(SIZE - 3, b"end");
    let data = (0..SIZE / CLUSTER).find(|cluster| is_data(&stage.disk(), *cluster)).unwrap();
    stage.write(data * CLUSTER, &vec![0; usize::try_from(CLUSTER).unwrap()]);
    stage.write((data + 1) * CLUSTER, &[0; 512]);
    let second = stage.export("2").await;
    assert!(second.contains("what changed since 1 is exported"), "{second}");
    stage.holds("2", &stage.disk());
    stage.holds("1", &kept);
    assert!(stage.length("2") < 1 << 20, "{} bytes for a few clusters", stage.length("2"));
    let report = stage.report("2");
    assert_eq!((&report["base"], &report["depth"]), (&json!("1"), &json!(1)));
    assert_eq!(report["disks"][0]["backing"], "../1/web-root.qcow2");
    stage.write(4 * CLUSTER, b"once more");
    stage.export("3").await;
    stage.holds("3", &stage.disk());
    // An export that nobody kept: its changes are in no image, and the next one holds everything.
    std::fs::remove_dir_all(stage.at("3")).unwrap();
    let fourth = stage.export("4").await;
    assert!(fourth.contains("one in between was not kept"), "{fourth}");
    stage.holds("4", &stage.disk());
    assert!(stage.report("4")["fullBecause"].as_str().unwrap().contains("the export `2`"));
    for path in [BACKUPS, "/apis/export.kubevirt.io/v1/virtualmachineexports"] {
        assert_eq!(stage.cluster.get(path).await.unwrap()["items"], json!([]), "{path}");
    }
    let gone = |claims: Option<&Value>| claims.is_some_and(|claims| live::items(claims).len() == 1);
    stage.cluster.wait(CLAIMS, "without the scratch claim", gone).await;
    stage.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_crashes_loses_its_checkpoint_and_one_that_restarts_keeps_it() {
    let stage = Stage::new().await;
    stage.export("1").await;
    let mut guest = stage.tracked("").await;
    for (run, crash, says) in [
        ("2", false, "what changed since 1 is exported"),
        ("3", true, "everything is exported: KubeVirt has no checkpoint any more"),
    ] {
        assert!(stage.cluster.simulation.end_guest("default", "web", crash));
        guest = stage.tracked(&guest).await;
        stage.write(2 * CLUSTER, run.as_bytes());
        // The new guest is told of the checkpoint, or the tracker forgets it.
        let settled = |list: Option<&Value>| {
            let mut all = list.map(live::items).unwrap_or_default().iter();
            all.all(|tracker| tracker["status"]["checkpointRedefinitionRequired"].is_null())
        };
        stage.cluster.wait(TRACKERS, "settled", settled).await;
        let said = stage.export(run).await;
        assert!(said.contains(says), "{said}");
        stage.holds(run, &stage.disk());
    }
    stage.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_goes_on_with_the_same_backup_while_the_guest_writes() {
    let stage = Stage::new().await;
    let line = stage.line("1", "--limit-rate 1 --checkpoint 4");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(line.split_whitespace())
        .arg("--kubeconfig")
        .arg(stage.cluster.kubeconfig())
        .env_remove("KUBECONFIG")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let journal = stage.at("1").join("web-root.qcow2.journal");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let end = std::time::Instant::now() + std::time::Duration::from_mins(2);
    while lines() < 2 && std::time::Instant::now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    child.kill().await.unwrap();
    assert!(lines() >= 2, "it ended too early");
    let kept = stage.keep("begun.raw");
    stage.write(SIZE / 2, b"after it began");
    // The exporter pod is another one now, too.
    stage.cluster.simulation.exports().unwrap().swap_pods().unwrap();
    stage.cluster.ok(&stage.line("1", "--resume")).await;
    stage.holds("1", &kept);
    let said = stage.export("2").await;
    assert!(said.contains("what changed since 1 is exported"), "{said}");
    stage.holds("2", &stage.disk());
    stage.cluster.stop().await;
}

fn is_data(disk: &Path, cluster: u64) -> bool {
    let mut buffer = vec![0; usize::try_from(CLUSTER).unwrap()];
    File::open(disk).unwrap().read_exact_at(&mut buffer, cluster * CLUSTER).unwrap();
    buffer.iter().any(|byte| *byte != 0)
}
