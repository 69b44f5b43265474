//! From what is in a node's /sys to what a VM gets: agents publish, `devices` shows and permits, admission
//! resolves an address, and says when no node can take a VM.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod program;

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use agent::inventory::{Publisher, Roots};
use http::{Method, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use program::{SandboxProgram, virt_steward};
use sandbox::{Options, Sandbox};
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

/// The chart's objects for the inventory's agents, but for the DaemonSet: what of the template is not text
/// is which parts there are, labels, and two names.
fn objects_of_the_chart() -> Vec<Value> {
    let template = include_str!("../../../charts/virt-steward/templates/inventory.yaml");
    let documents = template.split("\n---\n").filter(|text| !text.contains("kind: DaemonSet"));
    let plain = documents.map(|text| {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("{{-"));
        let text = lines.collect::<Vec<_>>().join("\n");
        text.replace("{{ $name }}", "steward").replace("{{ .Release.Namespace }}", "default")
    });
    plain.map(|text| serde_saphyr::from_str(&text).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_writes_the_inventory_of_its_own_node_alone() {
    let sandbox = Sandbox::start(Options { nodes: 2, ..Options::default() }).await.unwrap();
    let connect = async |user: Option<Value>| {
        let mut file = serde_json::to_value(Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap()).unwrap();
        if let Some(user) = user {
            file["users"][0]["user"] = user;
        }
        let file: Kubeconfig = serde_json::from_value(file).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    };
    let admin = connect(None).await;
    let create = async |path: &str, object: &Value| {
        let request =
            Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
        admin.request::<Value>(request.body(object.to_string().into_bytes()).unwrap()).await.unwrap()
    };
    let definition = include_str!("../../../charts/virt-steward/crds/nodeinventories.yaml");
    let definition: Value = serde_saphyr::from_str(definition).unwrap();
    create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    for object in objects_of_the_chart() {
        let path = match object["kind"].as_str().unwrap() {
            "ServiceAccount" => "/api/v1/namespaces/default/serviceaccounts",
            "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "ValidatingAdmissionPolicy" => {
                "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
            }
            "ValidatingAdmissionPolicyBinding" => {
                "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
            }
            other => panic!("the chart has a {other} for the inventory"),
        };
        create(path, &object).await;
    }
    // the token that kubelet mounts into the DaemonSet's pod on node01
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent"},
        "spec": {"nodeName": "node01", "serviceAccountName": "steward-inventory",
            "containers": [{"name": "inventory", "image": "registry.example/virt-steward:1"}]}});
    let pod = create("/api/v1/namespaces/default/pods", &pod).await;
    let token = async |bound: &Value| {
        let path = "/api/v1/namespaces/default/serviceaccounts/steward-inventory/token";
        let ask = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"boundObjectRef": bound}});
        json!({"token": create(path, &ask).await["status"]["token"]})
    };
    let reference =
        json!({"kind": "Pod", "apiVersion": "v1", "name": "agent", "uid": pod["metadata"]["uid"]});
    let on_node01 = connect(Some(token(&reference).await)).await;
    let of_nobody = connect(Some(token(&Value::Null).await)).await;
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
    let publish = async |client: &kube::Client, node: &str| {
        Publisher::new(client.clone(), node, Roots::below(root.path())).once().await
    };
    let own = publish(&on_node01, "node01").await.unwrap();
    assert_eq!(own.node, "node01");
    for (client, node, who) in [(&on_node01, "node02", "another's"), (&of_nobody, "node01", "without a node")]
    {
        let error = publish(client, node).await.unwrap_err();
        let chain = std::error::Error::source(&error).unwrap().to_string();
        assert!(chain.contains("an agent writes the inventory of its own node"), "{who}: {chain}");
    }
    // and again over what is there already
    publish(&on_node01, "node01").await.unwrap();
    publish(&admin, "node02").await.unwrap();
    let error = publish(&on_node01, "node02").await.unwrap_err();
    assert!(format!("{error:?}").contains("an agent writes the inventory of its own node"), "{error}");
    sandbox.shutdown().await;
}
