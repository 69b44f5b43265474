//! Snapshots, restores, clones, usage and plugged interfaces, as a person uses them, against the simulated
//! controllers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod program;

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
    cluster.ok("snapshot delete before");
    assert!(cluster.refused("snapshot get before").contains("see which there are"));
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
