//! From what is in a node's /sys to what a VM gets: agents publish, `devices` shows and permits, admission
//! resolves an address, and says when no node can take a VM.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod program;

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use program::{SandboxProgram, virt_steward};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);
const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";

fn devices(sandbox: &SandboxProgram, args: &[&str]) -> program::Run {
    let mut all = vec!["devices"];
    all.extend(args);
    let kubeconfig = sandbox.kubeconfig.to_str().unwrap();
    all.extend(["--kubeconfig", kubeconfig]);
    virt_steward(&all, "")
}

fn machine(name: &str, annotations: &Value, spec: &Value) -> Value {
    let mut template = json!({"domain": {"memory": {"guest": "1Gi"}, "devices": {}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        template[key] = value.clone();
    }
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"runStrategy": "Halted", "template": {"spec": template}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_find_is_shown_permitted_and_given() {
    let sandbox = SandboxProgram::start(&["--nodes", "2", "--inventory"]);
    let rows = || -> Vec<Value> {
        let shown = devices(&sandbox, &["--node", "node01", "-o", "json"]);
        assert_eq!(shown.status, 0, "{}", shown.stderr);
        serde_json::from_str(&shown.stdout).unwrap()
    };
    let row = |resource: &str| rows().into_iter().find(|row| row["resource"] == resource);
    let t4 = row("nvidia.com/TU104GL_Tesla_T4").unwrap();
    assert_eq!((t4["permitted"].as_bool(), t4["functions"].as_array().unwrap().len()), (Some(true), 8));
    let first = &t4["functions"][0];
    assert_eq!((first["driver"].as_str(), first["rom"].as_bool()), (Some("vfio-pci"), Some(true)));
    let nic = row("8086:1593").unwrap();
    assert_eq!(nic["functions"][0]["sriov"], json!({"total": 128, "enabled": 1}));
    let table = devices(&sandbox, &["--node", "node01"]).stdout;
    assert!(table.contains("1002:73BF") && table.contains("amdgpu numa 0 rom"), "{table}");

    // the host uses it, and the sound of the same card
    let held = devices(&sandbox, &["permit", "0000:03:00.0", "--node", "node01"]);
    assert!(
        held.stdout.contains("amd.com/PCI_73BF") && held.stderr.contains("bound to amdgpu"),
        "{}",
        held.stderr
    );
    assert!(held.stderr.contains("0000:03:00.1 of node01 is in the same IOMMU group"), "{}", held.stderr);
    let address = "0000:04:01.0";
    let printed = devices(&sandbox, &["permit", address, "--node", "node01"]);
    assert!(printed.stdout.contains("kubectl patch kubevirt kubevirt -n kubevirt"), "{}", printed.stdout);
    assert!(row("intel.com/PCI_1889").is_none(), "printed, not done");
    let applied = devices(&sandbox, &["permit", address, "--apply"]);
    assert!(
        applied.stdout.contains("8086:1889 is permitted as intel.com/PCI_1889"),
        "{}{}",
        applied.stdout,
        applied.stderr
    );
    assert_eq!(row("intel.com/PCI_1889").unwrap()["permitted"], true);

    // the operator saw the inventory and the change
    let kubeconfig = Kubeconfig::read_from(&sandbox.kubeconfig).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let create = async |vm: &Value| {
        let request = http::Request::post(VMS).header("content-type", "application/json");
        let response =
            client.send(request.body(Body::from(vm.to_string().into_bytes())).unwrap()).await.unwrap();
        let warnings: Vec<String> = response
            .headers()
            .get_all("warning")
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (serde_json::from_slice::<Value>(&bytes).unwrap(), warnings)
    };
    let begun = Instant::now();
    let (vm, _) = loop {
        let asked = machine(
            "nic",
            &json!({"vm-feature-manager.io/pci-passthrough": format!("node01/{address}")}),
            &json!({}),
        );
        let (answer, warnings) = create(&asked).await;
        if answer["kind"] == "VirtualMachine" {
            break (answer, warnings);
        }
        assert!(begun.elapsed() < PATIENCE, "{answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(
        vm["spec"]["template"]["spec"]["domain"]["devices"]["hostDevices"],
        json!([{"name": "pci-0000-04-01-0", "deviceName": "intel.com/PCI_1889"}])
    );
    // no policy is there, and still it is said that no node can take a VM
    let (_, warnings) =
        create(&machine("nowhere", &json!({}), &json!({"nodeSelector": {"zone": "none"}}))).await;
    let said = warnings.join(" ");
    assert!(said.contains("no node can take this VM (node01: nodeSelector, node02: nodeSelector)"), "{said}");
}

#[test]
fn an_agent_prints_what_it_would_publish() {
    let root = tempfile::tempdir().unwrap();
    let device = root.path().join("sys/bus/pci/devices/0000:07:00.0");
    std::fs::create_dir_all(&device).unwrap();
    for (name, content) in [("vendor", "0x10de"), ("device", "0x1eb8"), ("class", "0x030200")] {
        std::fs::write(device.join(name), content).unwrap();
    }
    symlink("../../../bus/pci/drivers/vfio-pci", device.join("driver")).unwrap();
    let path = root.path().to_str().unwrap();
    let printed = virt_steward(&["agent", "--node", "here", "--inventory", "print", "--host-root", path], "");
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    assert!(
        printed.stdout.contains("kind: NodeInventory") && printed.stdout.contains("driver: vfio-pci"),
        "{}",
        printed.stdout
    );
    let nowhere =
        virt_steward(&["agent", "--node", "here", "--inventory", "print", "--host-root", "/nowhere"], "");
    assert_eq!(nowhere.status, 1);
    assert!(nowhere.stderr.contains("--host-root"), "{}", nowhere.stderr);
}
