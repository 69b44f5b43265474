//! `virt-steward sandbox`, the program.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod program;

use std::os::unix::fs::PermissionsExt;

use program::{SandboxProgram, virt_steward};

#[test]
fn the_demo_shows_every_example_and_all_vms_run() {
    let demo = virt_steward(&["sandbox", "--demo", "--exit"], "");
    assert_eq!(demo.status, 0, "{}\n{}", demo.stdout, demo.stderr);
    // what each feature is there for
    for shown in [
        "+          - name: vmx",
        "+          - deviceName: nvidia.com/TU104GL_Tesla_T4",
        "+          - deviceName: intel.com/ETHERNET_CONTROLLER_X710",
        "+        hooks.kubevirt.io/hookSidecars: ",
        "+          - deviceName: kubevirt.io/security-key",
        "+          - deviceName: nvidia.com/GRID_T4-1Q",
        "+          - claimName: gpu",
        "+        resourceClaimTemplateName: any-gpu",
        "+            sriov: {}",
        "+          dedicatedCpuPlacement: true",
        "+            pageSize: 1Gi",
        "+            guestMappingPassthrough: {}",
        "+          realtime:",
        "VirtualMachine unknown-device: denied\n  admission webhook ",
        "VirtualMachine cloud-init: allowed, changed\n",
    ] {
        assert!(demo.stdout.contains(shown), "{shown:?} is not in {}", demo.stdout);
    }
    assert!(!demo.stdout.contains('\u{1b}'), "no colour off a terminal");
    let (_, states) = demo.stdout.split_once("NAME ").unwrap();
    assert_eq!(states.matches(" Running ").count(), 20, "{states}");
}

#[test]
fn without_the_operator_nothing_is_changed_for_a_feature() {
    let demo = virt_steward(&["sandbox", "--demo", "--exit", "--no-operator"], "");
    assert_eq!(demo.status, 0, "{}\n{}", demo.stdout, demo.stderr);
    assert!(!demo.stdout.contains("-applied"), "{}", demo.stdout);
    assert!(!demo.stdout.contains("denied\n"), "{}", demo.stdout);
}

#[test]
fn the_kubeconfig_is_for_its_owner_alone() {
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let mode = std::fs::metadata(&sandbox.kubeconfig).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn admit_reads_the_facts_of_a_live_cluster() {
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let example = |name: &str| format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let (kubeconfig, config) = (sandbox.kubeconfig.to_str().unwrap(), example("config/operator.yaml"));
    let admit = |file: &str, input: &str| {
        let live = ["--live", "--kubeconfig", kubeconfig, "--config", &config, "-o", "json"];
        let result = virt_steward(&[&["admit", "-f", file], &live[..]].concat(), input);
        let report: serde_json::Value = serde_json::from_str(&result.stdout).unwrap();
        (result.status, report["admissions"][0].clone())
    };
    let (status, nested) = admit(&example("vms/nested-virt.yaml"), "");
    assert_eq!((status, nested["outcomes"][0]["result"].as_str()), (0, Some("applied")), "{nested}");
    assert!(nested["patch"].to_string().contains("vmx"), "{nested}");

    // the VM alone: its ConfigMap is neither in the file nor in the cluster
    let vbios = std::fs::read_to_string(example("vms/vbios.yaml")).unwrap();
    let (_, machine) = vbios.split_once("---\n").unwrap();
    let (status, denied) = admit("-", machine);
    assert_eq!(status, 2, "{denied}");
    let denial = denied["denial"].as_str().unwrap();
    assert!(denial.contains("`amd-igpu-vbios`: it does not exist in namespace `default`"), "{denial}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_definitions_are_served_and_every_request_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let (crds, log) = (folder.path().join("crds"), folder.path().join("audit.jsonl"));
    std::fs::create_dir(&crds).unwrap();
    let definition = serde_json::json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "lamps.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "lamps", "singular": "lamp", "kind": "Lamp", "listKind": "LampList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    std::fs::write(crds.join("lamps.json"), definition.to_string()).unwrap();
    let arguments = ["--nodes", "1", "--no-operator", "--crds", crds.to_str().unwrap()];
    let sandbox = SandboxProgram::start(&[&arguments[..], &["--audit-log", log.to_str().unwrap()]].concat());
    let client =
        ::sandbox::sim::connect(&std::fs::read_to_string(&sandbox.kubeconfig).unwrap()).await.unwrap();
    let request = http::Request::get("/apis/example.com/v1/lamps").body(Vec::new()).unwrap();
    let lamps: serde_json::Value = client.request(request).await.unwrap();
    assert_eq!(lamps["kind"], "LampList");
    drop(sandbox);
    let written = std::fs::read_to_string(&log).unwrap();
    let events: Vec<serde_json::Value> =
        written.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |verb: &str, resource: &str| {
        events.iter().any(|event| event["verb"] == verb && event["objectRef"]["resource"] == resource)
    };
    assert!(of("create", "nodes") && of("watch", "virtualmachines"), "{} events", events.len());

    let wrong = virt_steward(&["sandbox", "--crds", "absent", "--no-operator"], "");
    assert_eq!(wrong.status, 1);
    assert!(wrong.stderr.contains("give `--crds` a file or directory"), "{}", wrong.stderr);
}

#[test]
fn faults_come_and_go_in_a_running_sandbox() {
    let sandbox =
        SandboxProgram::start(&["--nodes", "1", "--no-operator", "--seed", "7", "--fault", "latency:ms=1"]);
    let kubeconfig = sandbox.kubeconfig.to_str().unwrap();
    let fault = |arguments: &[&str]| {
        virt_steward(&[&["sandbox", "fault"], arguments, &["--kubeconfig", kubeconfig]].concat(), "")
    };
    let added = fault(&["add", "error:code=500,resource=configmaps,verb=get", "clock-skew:seconds=60"]);
    assert_eq!((added.status, added.stderr.as_str()), (0, ""));
    assert!(
        added.stdout.contains("fault 2 added: error:code=500,verb=get,resource=configmaps\n"),
        "{}",
        added.stdout
    );

    // what is active happens: `admit --live` reads the ConfigMap that a VM names
    let example = |name: &str| format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let vbios = std::fs::read_to_string(example("vms/vbios.yaml")).unwrap();
    let (_, machine) = vbios.split_once("---\n").unwrap();
    let config = example("config/operator.yaml");
    let admitted = virt_steward(
        &["admit", "-f", "-", "--live", "--kubeconfig", kubeconfig, "--config", &config, "-o", "json"],
        machine,
    );
    assert!(admitted.stdout.contains("etcdserver: request timed out"), "{}", admitted.stdout);

    let log = fault(&["log", "-o", "json"]);
    let log: serde_json::Value = serde_json::from_str(&log.stdout).unwrap();
    let hit = log.as_array().unwrap().iter().find(|hit| hit["id"] == 2).unwrap();
    assert_eq!((&hit["seed"], &hit["resource"]), (&7.into(), &"configmaps".into()), "{hit}");

    let list = fault(&["list"]);
    assert!(list.stdout.starts_with("ID  FAULT "), "{}", list.stdout);
    assert_eq!(list.stdout.lines().count(), 4, "{}", list.stdout);
    assert_eq!(fault(&["clear", "2"]).stdout, "1 cleared\n");
    assert_eq!(fault(&["clear"]).stdout, "2 cleared\n");
    assert_eq!(fault(&["list"]).stderr, "no faults are active\n");

    for (arguments, wrong, remedy) in [
        (&["add", "boom"][..], "`boom` is none of latency", "fault add --help"),
        (&["clear", "9"][..], "there is no fault \"9\"", "fault list"),
    ] {
        let refused = fault(arguments);
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains(wrong) && refused.stderr.contains(remedy), "{}", refused.stderr);
    }
}

#[test]
fn a_sandbox_that_is_still_starting_ends_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    // so many VMs take much longer than this test
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(["sandbox", "--no-operator", "--nodes", "1", "--vms", "100000", "--kubeconfig-out"])
        .arg(&kubeconfig)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while !kubeconfig.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    let told = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(told.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it says nothing of a sandbox that was never up");
}
