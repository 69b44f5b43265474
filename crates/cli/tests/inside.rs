//! What leads into a VM and what belongs to it, as a person uses it: interfaces, devices, volumes, guests,
//! consoles, templates, migrations, nodes, completion.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod program;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use program::{Run, SandboxProgram, virt_steward};
use serde_json::{Value, json};

/// A sandbox, and the program with its kubeconfig.
struct Cluster(SandboxProgram);

impl Cluster {
    fn start(arguments: &[&str]) -> Self {
        Self(SandboxProgram::start(&[arguments, &["--no-operator"]].concat()))
    }

    fn kubeconfig(&self) -> &str {
        self.0.kubeconfig.to_str().unwrap()
    }

    fn run(&self, line: &str, input: &str) -> Run {
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        arguments.extend(["--kubeconfig", self.kubeconfig()]);
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

    /// Creates objects as an administrator does with kubectl.
    fn create(&self, objects: &[(&str, Value)]) {
        let text = std::fs::read_to_string(&self.0.kubeconfig).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let client = ::sandbox::sim::connect(&text).await.unwrap();
            for (path, object) in objects {
                let request = http::Request::post(*path).header("content-type", "application/json");
                let request = request.body(object.to_string().into_bytes()).unwrap();
                client.request::<Value>(request).await.unwrap();
            }
        });
    }

    fn web(&self, strategy: &str) {
        let manifest = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "web"},
            "spec": {"runStrategy": strategy, "template": {"spec": {
                "domain": {"memory": {"guest": "128Mi"}, "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "data", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]}},
                "networks": [{"name": "default", "pod": {}}],
                "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}},
                    {"name": "data", "emptyDisk": {"capacity": "1Gi"}}]}}}});
        let made = self.run("vm create -f - --wait", &manifest.to_string());
        assert_eq!(made.status, 0, "{}", made.stderr);
    }
}

fn network(name: &str) -> (&'static str, Value) {
    let path = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
    let object = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name}, "spec": {"config": "{}"}});
    (path, object)
}

#[test]
fn interfaces_of_a_vm_that_is_off_change_with_its_next_start() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Halted");
    let absent = cluster.refused("nic add web lan --network vlan7");
    assert!(absent.contains("there is no network `default/vlan7`"), "{absent}");
    cluster.create(&[network("vlan7")]);
    let added = cluster.ok("nic add web lan --network vlan7 --mac 02:00:00:00:00:07 --dry-run");
    let expected = "virtualmachine.kubevirt.io/web interface lan added (server dry run): takes effect at the next \
                    start (the VM is off)\n";
    assert_eq!(added, expected);
    assert_eq!(cluster.json("nic list web")["items"].as_array().unwrap().len(), 1, "only for show");
    cluster.ok("nic add web lan --network vlan7 --mac 02:00:00:00:00:07");
    let lan = cluster.json("nic list web")["items"][1].clone();
    let seen = (&lan["name"], &lan["binding"], &lan["network"], &lan["mac"]);
    let expected = (&json!("lan"), &json!("bridge"), &json!("vlan7"), &json!("02:00:00:00:00:07"));
    assert_eq!(seen, expected);
    assert!(
        cluster.refused("nic add web lan --network vlan7").contains("an interface of this name is there")
    );
    cluster.ok("nic link web lan down");
    assert_eq!(cluster.json("nic list web")["items"][1]["link"], "down");
    assert!(cluster.ok("nic link web lan down").contains("the link is down already"));
    cluster.ok("nic remove web lan");
    assert_eq!(cluster.json("nic list web")["items"].as_array().unwrap().len(), 1);
    assert!(cluster.refused("nic remove web lan").contains("it has no such interface; it has default"));
}

#[test]
fn a_running_vm_says_whether_an_interface_needs_a_migration() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    cluster.web("Always");
    cluster.create(&[network("vlan7")]);
    let change = cluster.json("nic add web lan --network vlan7 --dry-run");
    assert_eq!(change["effect"], "after-migration", "{change}");
    let pod = cluster.ok("nic add web second --network pod --dry-run");
    assert!(pod.contains("takes effect after a restart (the pod network cannot be plugged)"), "{pod}");
    assert!(pod.contains("`virt-steward vm restart` brings it about"), "{pod}");
}

#[test]
fn devices_are_attached_on_the_next_start_and_that_is_said() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Always");
    let refused = cluster.refused("vm attach-device web gpu1 --device nvidia.com/T4");
    assert!(refused.contains("KubeVirt cannot plug host devices into a running guest"), "{refused}");
    assert!(refused.contains("try: give `--on-next-start`"), "{refused}");
    let refused = cluster.refused("vm attach-device web gpu1 --device vendor.example/none --on-next-start");
    assert!(refused.contains("permit"), "{refused}");
}

#[test]
fn guests_tell_what_they_are() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Always");
    let os = cluster.json("vm guest os web");
    assert_eq!((&os["hostname"], &os["frozen"]), (&json!("web"), &json!(false)), "{os}");
    assert!(cluster.ok("vm guest os web").contains("Fedora Linux 41"));
    let mounted = cluster.json("vm guest filesystems web");
    assert_eq!(mounted["items"][0]["mountPoint"], "/", "{mounted}");
    assert!(cluster.ok("vm guest filesystems web").starts_with("MOUNTED ON"));
    assert_eq!(cluster.run("vm guest users web", "").stderr, "Nobody is logged in.\n");
    let volumes = cluster.json("volume list web");
    let names: Vec<&Value> = volumes["items"].as_array().unwrap().iter().map(|one| &one["source"]).collect();
    assert_eq!(names, [&json!("containerDisk"), &json!("emptyDisk")]);
    assert!(
        cluster
            .refused("volume expand web --volume data --size 2Gi")
            .contains("it is a emptyDisk and has no claim")
    );
}

#[test]
fn consoles_screens_and_ports_lead_into_the_guest() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Always");
    let session = cluster.run("vm console web", "\nroot\necho it works\n");
    assert_eq!(session.status, 0, "{}", session.stderr);
    assert!(
        session.stdout.contains("web login:") && session.stdout.contains("it works"),
        "{}",
        session.stdout
    );

    let echo = cluster.run("vm port-forward web 7 --stdio", "hello\n");
    assert_eq!((echo.status, echo.stdout.as_str()), (0, "hello\n"), "{}", echo.stderr);
    let mut forwarding = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(["vm", "port-forward", "web", "0:7", "--kubeconfig", cluster.kubeconfig()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(forwarding.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("Forwarding ").unwrap().split(' ').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_mins(1))).unwrap();
    stream.write_all(b"over tcp").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"over tcp");
    forwarding.kill().unwrap();
    forwarding.wait().unwrap();

    let mut screen = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(["vm", "vnc", "web", "--proxy-only", "--kubeconfig", cluster.kubeconfig()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(screen.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split(" is at ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_mins(1))).unwrap();
    let mut version = [0; 12];
    stream.read_exact(&mut version).unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    screen.kill().unwrap();
    screen.wait().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("web.png");
    cluster.ok(&format!("vm screenshot web --file {}", picture.display()));
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n"));
    assert!(
        cluster
            .refused(&format!("vm screenshot web --file {}", picture.display()))
            .contains("give `--force`")
    );
    cluster.ok("vm stop web --force --wait");
    assert!(
        cluster.refused("vm console web").contains("opening the console of VM `default/web`: the VM is off")
    );
}

#[test]
fn migrations_and_nodes_are_shown() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    cluster.web("Always");
    assert!(cluster.refused("migration cancel --vm web").contains("none is under way"));
    cluster.ok("vm migrate web --wait");
    let found = cluster.json("migration list --vm web");
    let one = &found["items"][0];
    assert_eq!((&one["vm"], &one["phase"]), (&json!("web"), &json!("Succeeded")), "{found}");
    assert!(one["source"] != one["target"] && one["target"].is_string(), "{one}");
    let name = one["name"].as_str().unwrap();
    assert!(cluster.ok(&format!("migration get {name} --wait")).contains("Succeeded"));
    let over = cluster.refused(&format!("migration cancel {name}"));
    assert!(over.contains("it is over: Succeeded"), "{over}");
    assert_eq!(cluster.run("migration list --active", "").stderr, "No migrations found.\n");

    let nodes = cluster.json("node list");
    let nodes = nodes["items"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes.iter().map(|node| node["vms"].as_u64().unwrap()).sum::<u64>(), 1);
    let here = nodes.iter().find(|node| node["vms"] == 1).unwrap()["name"].as_str().unwrap();
    assert_eq!(one["target"], here);
    let node = cluster.json(&format!("node get {here}"));
    assert_eq!(node["running"], json!(["default/web"]));
    assert!(cluster.ok(&format!("node get {here}")).contains("1 VMs, 1 of them can migrate"));
    assert!(cluster.refused("node get nowhere").contains("see which there are: `virt-steward node list`"));
}

const TEMPLATE: &str = "apiVersion: template.kubevirt.io/v1beta1
kind: VirtualMachineTemplate
metadata: {name: small}
spec:
  message: \"VM ${NAME} is there\"
  parameters:
    - {name: NAME, required: true, description: its name}
    - {name: MEMORY, value: 128Mi}
    - {name: CORES, value: \"1\"}
    - {name: SUFFIX, generate: expression, from: \"[a-z]{4}\"}
  virtualMachine:
    metadata: {name: \"${NAME}\", labels: {made: \"${SUFFIX}\"}}
    spec:
      runStrategy: Halted
      template:
        spec:
          domain: {cpu: {cores: \"${{CORES}}\"}, memory: {guest: \"${MEMORY}\"}, devices: {}}
";

#[test]
fn templates_in_files_are_filled_in_without_a_cluster() {
    let done = virt_steward(
        &["template", "process", "-f", "-", "-p", "NAME=web", "-p", "CORES=2", "-o", "json"],
        TEMPLATE,
    );
    assert_eq!(done.status, 0, "{}", done.stderr);
    let vm: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&vm["kind"], &vm["metadata"]["name"]), (&json!("VirtualMachine"), &json!("web")));
    assert_eq!(vm["spec"]["template"]["spec"]["domain"]["cpu"]["cores"], 2, "a number");
    assert_eq!(vm["metadata"]["labels"]["made"].as_str().unwrap().len(), 4);
    assert_eq!(done.stderr, "VM web is there\n");
    let wrong = virt_steward(&["template", "process", "-f", "-"], TEMPLATE);
    assert_eq!(wrong.status, 1);
    assert!(wrong.stderr.contains("give it a value: `-p NAME=…`"), "{}", wrong.stderr);
}

#[test]
fn templates_of_the_cluster_make_vms_and_vms_make_templates() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    let template: Value = serde_saphyr::from_str(TEMPLATE).unwrap();
    cluster.create(&[(
        "/apis/template.kubevirt.io/v1beta1/namespaces/default/virtualmachinetemplates",
        template,
    )]);
    assert!(cluster.ok("template list").contains("NAME*,MEMORY,CORES,SUFFIX"));
    assert!(cluster.ok("template get small").contains("drawn from [a-z]{4}"));
    let wrong = cluster.refused("template process small -p NAME=a -p SIZE=1");
    assert!(wrong.contains("parameter SIZE not found in template"), "{wrong}");
    assert!(cluster.refused("template process small").contains("is required"));
    assert_eq!(cluster.json("template process small -p NAME=web")["metadata"]["name"], "web");
    let dry = cluster.ok("template create small -p NAME=web --dry-run");
    assert_eq!(dry, "virtualmachine.kubevirt.io/web created (server dry run)\n");
    assert_eq!(cluster.json("vm list")["items"], json!([]));
    let made = cluster.run("template create small -p NAME=web --start --wait", "");
    assert_eq!(made.stdout, "virtualmachine.kubevirt.io/web created\n", "{}", made.stderr);
    assert!(made.stderr.contains("VM web is there"), "{}", made.stderr);
    assert_eq!(cluster.json("vm get web")["items"][0]["status"], "Running");
    assert!(cluster.refused("template make small --from web").contains("a template of this name is there"));
    let made = cluster.run("template make golden --from web --wait", "");
    assert_eq!(made.stdout, "virtualmachinetemplate.template.kubevirt.io/golden made\n", "{}", made.stderr);
    let again = cluster.json("template process golden -p NAME=web-2");
    assert_eq!(
        (&again["metadata"]["name"], &again["spec"]["runStrategy"]),
        (&json!("web-2"), &json!("Halted"))
    );
    assert_eq!(again["spec"]["template"]["spec"]["domain"]["memory"]["guest"], "128Mi");
    cluster.ok("template delete small");
    assert!(
        cluster.refused("template get small").contains("see which there are: `virt-steward template list`")
    );
}

#[test]
fn shells_complete_names_of_vms() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Halted");
    let complete = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
            .env("VIRT_STEWARD_COMPLETE", "fish")
            .env("KUBECONFIG", cluster.kubeconfig())
            .arg("--")
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = complete(&["virt-steward", "vm", "start", "w"]);
    assert!(shown.lines().any(|line| line.starts_with("web")), "{shown}");
    let shown = complete(&["virt-steward", "vm", "start", "default/"]);
    assert!(shown.lines().any(|line| line.starts_with("default/web")), "{shown}");
    assert!(complete(&["virt-steward", "vm", "un"]).contains("unpause"));
    // kubectl asks a program of this name, in cobra's words
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("kubectl_complete-steward");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_virt-steward"), &helper).unwrap();
    let output = Command::new(&helper)
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["vm", "stop", "w"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "web\n:4\n");
}

#[test]
fn a_providers_configuration_file_works_with_every_verb() {
    let cluster = Cluster::start(&["--nodes", "1"]);
    cluster.web("Halted");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("provider.yaml");
    let text = format!(
        "provider:\n  type: kubevirt\n  metadata:\n    namespace: default\n    kubeconfig: {}\n    storageClass: fast\n",
        cluster.kubeconfig()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let name = "virtualmachine.kubevirt.io/web\n";
    assert_eq!(
        virt_steward(&["provider", "list", "--type", "kubevirt", "--config", file, "-o", "name"], "").stdout,
        name
    );
    assert_eq!(virt_steward(&["vm", "list", "--provider-config", file, "-o", "name"], "").stdout, name);
    let started = virt_steward(&["vm", "start", "web", "--provider-config", file, "--dry-run"], "");
    assert_eq!(
        started.stdout, "virtualmachine.kubevirt.io/web started (server dry run)\n",
        "{}",
        started.stderr
    );
    let vm = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: db}\nspec:\n  runStrategy: Halted\n  \
              dataVolumeTemplates: [{metadata: {name: db}, spec: {source: {blank: {}}, storage: {resources: {requests: {storage: 1Gi}}}}}]\n  \
              template: {spec: {domain: {memory: {guest: 64Mi}, devices: {disks: [{name: root, disk: {}}]}}, volumes: [{name: root, dataVolume: {name: db}}]}}\n";
    let made =
        virt_steward(&["vm", "create", "-f", "-", "--provider-config", file, "--dry-run", "-o", "json"], vm);
    let made: Value = serde_json::from_str(&made.stdout).unwrap_or_else(|_| panic!("{}", made.stderr));
    assert_eq!(
        made["items"][0]["spec"]["dataVolumeTemplates"][0]["spec"]["storage"]["storageClassName"],
        "fast"
    );
}
