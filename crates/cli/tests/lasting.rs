//! Snapshots, restores, clones, usage and plugged interfaces, as a person uses them, against the simulated
//! controllers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod program;

use std::io::{BufRead as _, BufReader};

use program::{Run, SandboxProgram, virt_steward};
use serde_json::{Value, json};

/// A sandbox, and the program with its kubeconfig.
struct Cluster(SandboxProgram);

impl Cluster {
    fn start(arguments: &[&str]) -> Self {
        Self(SandboxProgram::start(&[arguments, &["--no-operator"]].concat()))
    }

    fn run(&self, line: &str, input: &str) -> Run {
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        arguments.extend(["--kubeconfig", self.0.kubeconfig.to_str().unwrap()]);
        virt_steward(&arguments, input)
    }

    fn ok(&self, line: &str) -> String {
        let run = self.run(line, "");
        assert_eq!(run.status, 0, "{line}\n{}\n{}", run.stdout, run.stderr);
        run.stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -o json"))).unwrap()
    }

    fn refused(&self, line: &str) -> String {
        let run = self.run(line, "");
        assert_eq!(run.status, 1, "{line}\n{}\n{}", run.stdout, run.stderr);
        run.stderr
    }

    /// VM `web`, without any disk that would keep it on its node.
    fn diskless(&self) {
        let manifest = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "web"},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "domain": {"memory": {"guest": "128Mi"}, "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]}},
                "networks": [{"name": "default", "pod": {}}],
                "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}}]}}}});
        let made = self.run("vm create -f - --wait", &manifest.to_string());
        assert_eq!(made.status, 0, "{}", made.stderr);
    }

    /// VM `web`, with a disk of its own.
    fn web(&self) {
        let manifest = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "web"},
            "spec": {"runStrategy": "Always",
                "dataVolumeTemplates": [{"metadata": {"name": "web-root"}, "spec": {"source": {"blank": {}},
                    "storage": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "64Mi"}}}}}],
                "template": {"spec": {
                    "domain": {"memory": {"guest": "128Mi"}, "devices": {
                        "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                        "interfaces": [{"name": "default", "masquerade": {}}]}},
                    "networks": [{"name": "default", "pod": {}}],
                    "volumes": [{"name": "root", "dataVolume": {"name": "web-root"}}]}}}});
        let made = self.run("vm create -f - --wait", &manifest.to_string());
        assert_eq!(made.status, 0, "{}", made.stderr);
    }
}

#[test]
fn snapshots_are_taken_restored_and_cloned_from() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web();
    let taken = cluster.json("snapshot create web --name before --wait");
    assert_eq!((&taken["ready"], &taken["included"]), (&json!(true), &json!(["root"])), "{taken}");
    assert!(cluster.ok("snapshot list --vm web").contains("before"));
    let runs = cluster.refused("snapshot restore before");
    assert!(runs.contains("the VM runs") && runs.contains("--stop"), "{runs}");
    cluster.ok("vm stop web --force --wait");
    assert_eq!(cluster.ok("snapshot restore before --wait"), "virtualmachine.kubevirt.io/web restored\n");
    assert_eq!(
        cluster.ok("snapshot restore before --to other --wait"),
        "virtualmachine.kubevirt.io/other restored\n"
    );
    assert_eq!(cluster.ok("clone web copy --wait"), "virtualmachine.kubevirt.io/copy cloned\n");
    assert_eq!(
        cluster.ok("clone --snapshot before third --wait"),
        "virtualmachine.kubevirt.io/third cloned\n"
    );
    let names: Vec<Value> = cluster.json("vm list --sort-by name")["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["name"].clone())
        .collect();
    assert_eq!(names, ["copy", "other", "third", "web"]);
    assert!(cluster.refused("clone web copy").contains("a VM of this name is there"));
    let disk = &cluster.json("volume list copy")["items"][0];
    assert_ne!(disk["claim"]["name"], "web-root", "a disk of its own: {disk}");
    // and a template, with a copy of the disk
    let made = cluster.run("template make golden --from web --wait", "");
    assert_eq!(made.status, 0, "{}", made.stderr);
    let vm = cluster.json("template process golden -p NAME=fourth");
    assert_eq!(vm["spec"]["dataVolumeTemplates"][0]["metadata"]["name"], "fourth-root", "{vm}");
    let gone = cluster.json("snapshot delete before --dry-run");
    assert_eq!(gone, json!({"namespace": "default", "name": "before", "dryRun": true}));
    cluster.ok("snapshot delete before");
    assert!(cluster.refused("snapshot get before").contains("see which there are"));
}

impl Cluster {
    /// A request as an administrator makes it with kubectl.
    fn kubectl(&self, method: &str, path: &str, body: &Value) -> Value {
        let text = std::fs::read_to_string(&self.0.kubeconfig).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let client = ::sandbox::sim::connect(&text).await.unwrap();
            let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
            let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
            client.request(request.body(body).unwrap()).await.unwrap()
        })
    }

    /// Asks until an answer is as it should be.
    fn until(&self, line: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let began = std::time::Instant::now();
        loop {
            let answer = self.json(line);
            if holds(&answer) {
                return answer;
            }
            assert!(began.elapsed() < std::time::Duration::from_mins(3), "{line}: {answer:#}");
        }
    }
}

const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";

#[test]
fn a_migration_under_way_says_how_much_of_the_memory_has_gone_over_and_is_ended() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    cluster.diskless();
    // 128 MiB of memory take long then, and less than what KubeVirt waits for
    let kubevirts = cluster.kubectl("GET", "/apis/kubevirt.io/v1/kubevirts", &Value::Null);
    let metadata = &kubevirts["items"][0]["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap().to_owned();
    let path = format!("/apis/kubevirt.io/v1/namespaces/{}/kubevirts/{}", text("namespace"), text("name"));
    let slow = json!({"spec": {"configuration": {"migrations": {"bandwidthPerMigration": "1Mi"}}}});
    cluster.kubectl("PATCH", &path, &slow);
    let here = cluster.json("vm get web")["items"][0]["node"].clone();
    cluster.ok("vm migrate web");
    let found =
        cluster.until("migration list --vm web --active", |found| found["items"][0]["phase"] == "Running");
    let name = found["items"][0]["name"].as_str().unwrap().to_owned();
    let going =
        cluster.until(&format!("migration get {name}"), |one| one["transfer"]["percent"].as_u64() > Some(0));
    let transfer = &going["transfer"];
    assert_eq!(transfer["source"], "virt-handler", "{going}");
    let figure = |key: &str| transfer[key].as_u64().unwrap();
    assert!(figure("remainingBytes") < figure("totalBytes") && figure("percent") < 100, "{going}");
    assert!(figure("bytesPerSecond") > 0 && figure("dirtyBytesPerSecond") > 0, "{going}");
    let shown = cluster.ok(&format!("migration get {name}"));
    assert!(shown.contains(" % over, ") && shown.contains("(source: virt-handler)"), "{shown}");
    // who waits is told as well, and told that somebody ended it
    let mut waiting = std::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(["migration", "get", &name, "--wait", "--kubeconfig"])
        .arg(&cluster.0.kubeconfig)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(waiting.stderr.take().unwrap()).lines().map_while(Result::ok);
    let first = told.next().unwrap();
    assert!(first.starts_with(&format!("default/{name}: Running to ")), "{first}");
    assert!(first.ends_with(" % of its memory"), "{first}");
    let again = cluster.refused("vm migrate web");
    assert!(again.contains("it is being migrated already") && again.contains("--cancel"), "{again}");
    let ended = cluster.ok("vm migrate web --cancel");
    assert_eq!(ended, "virtualmachine.kubevirt.io/web migration cancelled\n");
    assert!(told.any(|line| line.starts_with("error: migrating VM `default/web`: ")));
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    cluster.until("migration list --vm web --active", |found| found["items"] == json!([]));
    assert_eq!(cluster.json("vm get web")["items"][0]["node"], here, "it stayed where it was");
    assert_eq!(cluster.json("vm get web")["items"][0]["status"], "Running");
}

#[test]
fn a_volume_grows_while_the_guest_runs() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web();
    let claim = |cluster: &Cluster| cluster.json("volume list web")["items"][0]["claim"].clone();
    let before = claim(&cluster)["capacityBytes"].as_u64().unwrap();
    let dry = cluster.json("volume expand web --volume root --size 256Mi --dry-run");
    assert_eq!((&dry["claim"], &dry["toBytes"]), (&json!("web-root"), &json!(256 << 20)), "{dry}");
    assert_eq!(claim(&cluster)["requestedBytes"], dry["fromBytes"], "only for show");
    let grown = cluster.ok("volume expand web --volume root --size 256Mi --wait --timeout 3m");
    assert!(
        grown.starts_with("persistentvolumeclaim/web-root expanded from ") && grown.contains("to 256Mi"),
        "{grown}"
    );
    let after = claim(&cluster)["capacityBytes"].as_u64().unwrap();
    assert!(before < 256 << 20 && after >= 256 << 20, "{before} {after}");
    assert_eq!(cluster.json("vm get web")["items"][0]["status"], "Running", "and nobody stopped it");
    let smaller = cluster.refused("volume expand web --volume root --size 64Mi");
    assert!(smaller.contains("claims cannot shrink") && smaller.contains("give a larger size"), "{smaller}");
}

#[test]
fn a_gpu_that_waits_for_the_next_start_is_there_after_it() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.diskless();
    let attach = "vm attach-device web gpu1 --device nvidia.com/TU104GL_Tesla_T4";
    assert!(cluster.refused(attach).contains("KubeVirt cannot plug host devices into a running guest"));
    let written = cluster.ok(&format!("{attach} --on-next-start"));
    assert!(written.contains("device gpu1 attached: takes effect after a restart"), "{written}");
    assert!(written.contains("`virt-steward vm restart` brings it about"), "{written}");
    let asks = |page: &Value| {
        let conditions = page["conditions"].as_array().unwrap();
        conditions.iter().any(|one| one["type"] == "RestartRequired" && one["status"] == "True")
    };
    cluster.until("vm describe web", asks);
    let gpus = |cluster: &Cluster| -> Vec<Value> {
        let vmi = cluster.kubectl("GET", &format!("{VMIS}/web"), &Value::Null);
        vmi["spec"]["domain"]["devices"]["gpus"].as_array().cloned().unwrap_or_default()
    };
    assert_eq!(gpus(&cluster), [] as [Value; 0], "not in the guest that runs");
    cluster.ok("vm restart web --force --wait --timeout 3m");
    assert_eq!(gpus(&cluster)[0]["deviceName"], "nvidia.com/TU104GL_Tesla_T4");
    cluster.until("vm describe web", |page| !asks(page));
    let detached = cluster.ok("vm detach-device web gpu1 --on-next-start");
    assert!(detached.contains("device gpu1 detached"), "{detached}");
    cluster.ok("vm restart web --force --wait --timeout 3m");
    assert_eq!(gpus(&cluster), [] as [Value; 0]);
}

#[test]
fn usage_is_shown_with_where_it_is_from() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    cluster.web();
    let report = cluster.json("top");
    assert_eq!(report["source"], "virt-handler", "{report}");
    let web = &report["items"][0];
    assert_eq!((&web["name"], &web["memoryOf"]), (&json!("web"), &json!("guest")), "{report}");
    assert!(web["cpuMilli"].is_u64() && web["memoryBytes"].as_u64().unwrap() > 0, "{web}");
    let pods = cluster.json("top --source metrics.k8s.io");
    assert_eq!(
        (&pods["source"], &pods["items"][0]["memoryOf"]),
        (&json!("metrics.k8s.io"), &json!("launcher")),
        "{pods}"
    );
    let listed = cluster.json("vm list --usage");
    assert!(listed["items"][0]["usage"]["memoryBytes"].is_u64(), "{listed}");
    let shown = cluster.run("top", "");
    assert!(
        shown.stdout.starts_with("NAMESPACE") && shown.stderr.contains("Source: virt-handler"),
        "{}",
        shown.stderr
    );
    let none = cluster.refused("top --source prometheus");
    assert!(none.contains("no Prometheus is named"), "{none}");
}

#[test]
fn interfaces_of_a_running_vm_come_by_migration_and_go_at_once() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    cluster.diskless();
    let network = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "vlan7"}, "spec": {"config": "{\"cniVersion\":\"0.3.1\",\"type\":\"bridge\"}"}});
    let text = std::fs::read_to_string(&cluster.0.kubeconfig).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = ::sandbox::sim::connect(&text).await.unwrap();
        let path = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
        let request = http::Request::post(path).header("content-type", "application/json");
        client.request::<Value>(request.body(network.to_string().into_bytes()).unwrap()).await.unwrap();
    });
    let added = cluster.ok("nic add web lan --network vlan7 --migrate --wait --timeout 2m");
    assert!(added.contains("interface lan added: takes effect with a migration"), "{added}");
    let nics = cluster.json("nic list web");
    assert_eq!(nics["items"].as_array().unwrap().len(), 2, "{nics}");
    assert_eq!(nics["items"][1]["name"], "lan");
    assert!(cluster.ok("migration list --vm web").contains("Succeeded"));
    assert!(cluster.ok("nic link web lan down --wait --timeout 1m").contains("takes effect now"));
    assert_eq!(cluster.json("nic list web")["items"][1]["link"], "down");
    assert!(cluster.ok("nic remove web lan --wait --timeout 1m").contains("takes effect now"));
}
