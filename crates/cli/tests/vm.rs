//! `virt-steward vm …` against the sandbox, as a person uses it.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod program;

use program::{Run, SandboxProgram, virt_steward};
use serde_json::Value;

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

    /// What must succeed; its standard output.
    fn ok(&self, line: &str) -> String {
        let run = self.run(line, "");
        assert_eq!(run.status, 0, "{line}\n{}\n{}", run.stdout, run.stderr);
        run.stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} -o json"))).unwrap()
    }

    /// What must fail; its standard error.
    fn refused(&self, line: &str) -> String {
        let run = self.run(line, "");
        assert_eq!(run.status, 1, "{line}\n{}\n{}", run.stdout, run.stderr);
        run.stderr
    }
}

fn vm(name: &str, strategy: &str, app: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  runStrategy: {strategy}
  template:
    spec:
      domain:
        cpu: {{cores: 2}}
        memory: {{guest: 256Mi}}
        devices:
          disks: [{{name: root, disk: {{bus: virtio}}}}]
          interfaces: [{{name: default, masquerade: {{}}}}]
      networks: [{{name: default, pod: {{}}}}]
      volumes: [{{name: root, containerDisk: {{image: quay.io/containerdisks/fedora:41}}}}]
---
"
    )
}

#[test]
fn the_life_of_a_vm() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let made = cluster.run("vm create -f - --wait --dry-run", &vm("web", "Always", "web"));
    assert_eq!(made.stdout, "virtualmachine.kubevirt.io/web created (server dry run)\n", "{}", made.stderr);
    assert!(cluster.refused("vm get web").contains("try: check the name and the namespace"));
    let made = cluster.run("vm create -f - --start --wait", &vm("web", "Halted", "web"));
    assert_eq!(
        (made.status, made.stdout.as_str()),
        (0, "virtualmachine.kubevirt.io/web created\n"),
        "{}",
        made.stderr
    );

    let list = cluster.json("vm list");
    let web = &list["items"][0];
    assert_eq!(
        (&web["status"], &web["vcpus"], &web["memoryBytes"]),
        (&"Running".into(), &2.into(), &(256 << 20).into())
    );
    assert!(web["node"].is_string(), "{web}");
    let table = cluster.ok("vm list -o wide");
    let columns = "NAME  STATUS   AGE";
    assert!(table.starts_with(columns) && table.contains("\nweb   Running"), "{table}");
    assert_eq!(cluster.ok("vm list -A -o name"), "virtualmachine.kubevirt.io/web\n");
    assert_eq!(
        cluster.ok("provider list --type kubevirt --namespace default -o name"),
        cluster.ok("vm list -o name")
    );

    let wrong = cluster.refused("vm start web");
    assert!(
        wrong.contains("error: starting VM `default/web`: ") && wrong.contains("VM is already running"),
        "{wrong}"
    );
    assert_eq!(cluster.ok("vm pause web --wait"), "virtualmachine.kubevirt.io/web paused\n");
    assert_eq!(cluster.json("vm get web")["items"][0]["status"], "Paused");
    assert_eq!(cluster.ok("vm unpause web --wait"), "virtualmachine.kubevirt.io/web unpaused\n");
    let restarted = cluster.run("vm restart web --wait --force", "");
    assert_eq!(restarted.stdout, "virtualmachine.kubevirt.io/web restarted\n", "{}", restarted.stderr);
    assert_eq!(cluster.ok("vm soft-reboot web"), "virtualmachine.kubevirt.io/web asked to reboot\n");
    assert_eq!(
        cluster.ok("vm reset web --dry-run"),
        "virtualmachine.kubevirt.io/web reset (server dry run)\n"
    );

    let page = cluster.ok("vm describe web");
    for shown in ["Status:", "Running", "containerDisk/quay.io/containerdisks/fedora:41", "masquerade"] {
        assert!(page.contains(shown), "{shown:?} is not in\n{page}");
    }
    assert_eq!(
        cluster.ok("vm stop web --force --dry-run"),
        "virtualmachine.kubevirt.io/web stopped (server dry run)\n"
    );
    assert_eq!(cluster.ok("vm stop web --force --wait"), "virtualmachine.kubevirt.io/web stopped\n");
    let wrong = cluster.refused("vm pause web");
    assert!(wrong.contains("pausing VM `default/web`: the VM is off\n  try: start it"), "{wrong}");
    assert!(cluster.ok("vm describe web").contains("a VM that is off needs no migration"));

    let asked = cluster.refused("vm delete web");
    assert!(asked.contains("give `--yes` when it is meant"), "nobody is there to say yes: {asked}");
    assert_eq!(cluster.ok("vm delete web --yes --wait"), "virtualmachine.kubevirt.io/web deleted\n");
    assert_eq!(cluster.json("vm list")["items"], Value::Array(vec![]));
}

#[test]
fn many_vms_at_once_by_selector_and_with_a_limit() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let all: String = (1..=5).map(|number| vm(&format!("web-{number}"), "Halted", "web")).collect();
    let made = cluster.run("vm create -f -", &(all + &vm("db", "Halted", "db")));
    assert_eq!(made.status, 0, "{}", made.stderr);
    let asked = cluster.refused("vm start -l app=web");
    assert!(asked.contains("start 5 VMs (default/web-1, "), "{asked}");
    let started = cluster.json("vm start -l app=web --yes --concurrency 2 --wait");
    assert_eq!(started["items"].as_array().unwrap().len(), 5);
    assert!(started["items"].as_array().unwrap().iter().all(|one| one["result"] == "started"), "{started}");
    assert_eq!(cluster.ok("vm list --status running --sort-by name -o name").lines().count(), 5);
    assert_eq!(cluster.ok("vm list --name *b -o name"), "virtualmachine.kubevirt.io/db\n");

    // one that fails neither stops the others nor is forgotten
    let run = cluster.run("vm start web-1 db nobody -o json", "");
    assert_eq!(run.status, 1);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    let codes: Vec<_> = answer["items"].as_array().unwrap().iter().map(|one| &one["error"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &"not-found".into(), &"wrong-state".into()], "{answer}");
}

#[test]
fn capabilities_say_what_the_cluster_can_do() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let found = cluster.json("capabilities");
    assert_eq!(found["kubevirt"]["version"], "v1.9.0");
    let gate = |name: &str| {
        found["gates"].as_array().unwrap().iter().find(|gate| gate["name"] == name).unwrap()["enabled"]
            .clone()
    };
    assert_eq!((gate("VMExport"), gate("IncrementalBackup")), (true.into(), false.into()), "GA, and Alpha");
    let permissions = found["permissions"].as_array().unwrap();
    assert!(
        permissions.iter().all(|one| one["allowed"] == true),
        "an administrator may do all: {permissions:?}"
    );
    assert!(cluster.ok("capabilities").contains("What you may do in `default`"));
}

#[test]
fn the_program_is_a_plugin_of_kubectl() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-steward");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_virt-steward"), &plugin).unwrap();
    let help = std::process::Command::new(&plugin).args(["vm", "start", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Usage: kubectl steward vm start"), "{help}");
}

#[test]
fn the_walk_through_works_as_written() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("web.yaml");
    std::fs::write(&manifest, vm("web", "Halted", "web")).unwrap();
    let template = folder.path().join("template.yaml");
    let golden = "{kind: VirtualMachineTemplate, metadata: {name: golden}, spec: {parameters: [{name: NAME}], \
                  virtualMachine: {metadata: {name: \"${NAME}\"}}}}";
    std::fs::write(&template, golden).unwrap();
    let picture = folder.path().join("web.png");
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/provider.md")).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("$ virt-steward ")).collect();
    assert!(lines.len() > 15, "{lines:?}");
    for line in lines {
        let line = line
            .replace('\'', "")
            .replace("web.yaml", manifest.to_str().unwrap())
            .replace("template.yaml", template.to_str().unwrap())
            .replace("web.png", picture.to_str().unwrap());
        cluster.ok(&line);
    }
    assert_eq!(cluster.json("vm list")["items"], Value::Array(vec![]));
}

#[test]
fn vms_move_to_the_node_that_was_named() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let made = cluster.run("vm create -f - --wait", &vm("web", "Always", "web"));
    assert_eq!(made.status, 0, "{}", made.stderr);
    let here = cluster.json("vm get web")["items"][0]["node"].as_str().unwrap().to_owned();
    let wrong = cluster.refused(&format!("vm migrate web --node {here}"));
    assert!(wrong.contains("it runs on") && wrong.contains("name another node"), "{wrong}");
    assert!(cluster.refused("vm migrate web --cancel").contains("none is under way"));
    let nodes = cluster.json("capabilities")["nodes"].clone();
    let there = nodes
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["name"].as_str().unwrap())
        .find(|name| *name != here)
        .unwrap();
    assert_eq!(
        cluster.ok(&format!("vm migrate web --node {there} --wait")),
        "virtualmachine.kubevirt.io/web migrated\n"
    );
    assert_eq!(cluster.json("vm get web")["items"][0]["node"], there);
    cluster.ok("vm stop web --force --wait");
    assert!(cluster.refused("vm migrate web").contains("the VM is off"));
}
