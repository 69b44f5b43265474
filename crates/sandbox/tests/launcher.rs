//! What was recorded of a real virt-launcher, played once more to a simulated one: the same calls in the same order
//! over its unix socket, with the same answers and domains of the same shape. The recordings are not part of the
//! repository: `GOLDEN_LAUNCHER` names their directory (`../shared/golden/launcher` beside the workspace otherwise);
//! where there is none, the test says so and passes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;
#[path = "sim/socket.rs"]
mod socket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use http::Method;
use launcher_api::info::CmdInfoResponse;
use launcher_api::v1::{DomainResponse, Response, Vmi, VmiRequest};
use prost::Message;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::Cluster;
use socket::Launcher;

const VM: &str = "/apis/kubevirt.io/v1/namespaces/lab/virtualmachines/labvm";
const PODS: &str = "/api/v1/namespaces/lab/pods?labelSelector=kubevirt.io%3Dvirt-launcher";

/// What a machine of other make has other values of: no emulation, another CPU, another build of QEMU.
const OF_THE_HOST: [&str; 3] = ["/Spec/Type", "/Spec/CPU/Model", "/Spec/OS/Type/Machine"];

fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_LAUNCHER").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/launcher"));
    named.or(Some(usual)).filter(|path| path.join("grpc").is_dir())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The JSON files of a directory by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    all.sort();
    all
}

/// The message that a recording sent.
fn request(recording: &Value) -> VmiRequest {
    let vmi = &recording["request"]["vmi"];
    let vmi_json = match (&vmi["vmiJson (decoded)"], &vmi["vmiJson"]) {
        (decoded @ Value::Object(_), _) => decoded.to_string().into_bytes(),
        (_, Value::String(raw)) => base64::engine::general_purpose::STANDARD.decode(raw).unwrap(),
        _ => return VmiRequest { vmi: None },
    };
    VmiRequest { vmi: Some(Vmi { vmi_json }) }
}

/// Writes down every difference of shape, and of values that are not the host's.
fn differences(path: &str, recorded: &Value, ours: &Value, wrong: &mut Vec<String>) {
    match (recorded, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&format!("{path}/{key}"), a, b, wrong),
                    (a, b) => wrong.push(format!("{path}/{key} is {b:?} instead of {a:?}")),
                }
            }
        }
        // Which features a CPU has, and what SMBIOS is told beside the uuid, are the host's and the VM's own.
        (Value::Array(a), Value::Array(b))
            if ["/Spec/CPU/Features", "/Spec/SysInfo/System"].contains(&path) =>
        {
            for one in b {
                differences(&format!("{path}/N"), &json!(keys(&a[0])), &json!(keys(one)), wrong);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{index}"), a, b, wrong);
            }
        }
        (a, b) if OF_THE_HOST.contains(&path) && a.is_string() == b.is_string() => {}
        (a, b) if a != b => wrong.push(format!("{path} is {b} instead of {a}")),
        _ => {}
    }
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

/// A recorded domain in which the uid is that of our VMI.
fn translated(domain: &Value, uid: &str) -> Value {
    let text = domain.to_string().replace("0a1b2c3d-1111-4222-8333-444455556666", uid);
    serde_json::from_str(&text).unwrap()
}

struct Lab {
    cluster: Cluster,
    root: tempfile::TempDir,
}

impl Lab {
    /// A VM with the recorded specification.
    async fn with(vmi: &Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = SimConfig { nodes: 1, kubelet_root: Some(root.path().into()), ..SimConfig::default() };
        let cluster = Cluster::start(config).await;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}});
        cluster.call(Method::POST, "/api/v1/namespaces", namespace).await.unwrap();
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "root-pvc"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        cluster.call(Method::POST, "/api/v1/namespaces/lab/persistentvolumeclaims", claim).await.unwrap();
        // The recorded guest had no agent.
        let annotations = json!({"sandbox.vm-feature-manager.io/guest": "no-agent"});
        let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "labvm"},
            "spec": {"runStrategy": "Always",
                "template": {"metadata": {"annotations": annotations}, "spec": vmi["spec"]}}});
        cluster.call(Method::POST, VM.trim_end_matches("/labvm"), vm).await.unwrap();
        Self { cluster, root }
    }

    /// The launcher of the VM's running guest, once it is another than `before`, and the uid of the VMI.
    async fn launcher(&self, before: Option<&Launcher>) -> (Launcher, String) {
        let vmi = VM.replace("virtualmachines/", "virtualmachineinstances/");
        let old = before.map(|launcher| launcher.socket.clone());
        loop {
            let running = self.cluster.wait(&vmi, "there", |vmi| vmi.is_some()).await.unwrap();
            let pods = self.cluster.get(PODS).await.unwrap();
            let active = running["status"]["activePods"].as_object();
            let pod = sim::items(&pods).iter().find(|pod| {
                pod["status"]["phase"] == "Running"
                    && active.is_some_and(|all| all.contains_key(pod["metadata"]["uid"].as_str().unwrap()))
            });
            if let Some(pod) = pod.filter(|_| running["status"]["phase"] == "Running") {
                let uid = pod["metadata"]["uid"].as_str().unwrap();
                let launcher = Launcher::of_pod(self.root.path(), uid);
                if Some(&launcher.socket) != old.as_ref() {
                    return (launcher, running["metadata"]["uid"].as_str().unwrap().to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Asks for the domain until the guest has got as far as the recorded one, and compares.
async fn compare(name: &str, launcher: &Launcher, recorded: &Value, uid: &str, wrong: &mut Vec<String>) {
    let recorded = translated(recorded, uid);
    let far = |domain: &Value| {
        [&domain["Spec"]["CurrentMemory"], &domain["Spec"]["Devices"]["Memory"]["Target"]["Current"]]
            .map(Value::clone)
    };
    let mut ours = Value::Null;
    for _ in 0..500 {
        let answer = launcher.call("/kubevirt.cmd.v1.Cmd/GetDomain", &VmiRequest::default()).await.unwrap();
        let answer = DomainResponse::decode(answer).unwrap();
        assert!(answer.response.unwrap().success, "{name}");
        ours = serde_json::from_str(&answer.domain).unwrap();
        if far(&ours) == far(&recorded) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut different = Vec::new();
    differences("", &recorded, &ours, &mut different);
    wrong.extend(different.into_iter().map(|one| format!("{name}: {one}")));
}

/// One recorded exchange.
async fn replay(name: &str, launcher: &Launcher, recording: &Value, uid: &str, wrong: &mut Vec<String>) {
    let method = recording["method"].as_str().unwrap();
    let wanted = &recording["response"];
    if method.ends_with("/GetDomain") {
        return compare(name, launcher, &wanted["domain (decoded)"], uid, wrong).await;
    }
    let answer = launcher.call(method, &request(recording)).await;
    if !recording["error"].is_null() {
        wrong.extend(answer.is_ok().then(|| format!("{name}: the launcher lives")));
        return;
    }
    let answer = answer.unwrap();
    if method.ends_with("/Info") {
        let versions = CmdInfoResponse::decode(answer).unwrap().supported_cmd_versions;
        assert_eq!(json!(versions), wanted["supportedCmdVersions"]);
        return;
    }
    // Both kinds of answers: success and message, or these and a text.
    let text = ["version", "domainStats"].into_iter().find_map(|key| Some((key, wanted.get(key)?.as_str()?)));
    let (said, told) = match text {
        Some(_) => {
            let answer = DomainResponse::decode(answer).unwrap();
            (answer.response.unwrap(), answer.domain)
        }
        None => (Response::decode(answer).unwrap(), String::new()),
    };
    let wanted = if text.is_some() { &wanted["response"] } else { wanted };
    let recorded = (wanted["success"] == true, wanted["message"].as_str().unwrap_or_default());
    if (said.success, said.message.as_str()) != recorded {
        wrong.push(format!("{name}: {said:?} instead of {recorded:?}"));
    }
    match text {
        Some(("domainStats", recorded)) => {
            let [recorded, ours] = [recorded, &told].map(|text| zeroed(&serde_json::from_str(text).unwrap()));
            differences(name, &recorded, &ours, wrong);
        }
        Some((_, recorded)) => assert_eq!(told, recorded, "{name}"),
        None => {}
    }
}

/// Statistics without what is measured: what is set, and of which type it is.
fn zeroed(value: &Value) -> Value {
    match value {
        Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), zeroed(value))).collect(),
        Value::Array(all) => all.iter().map(zeroed).collect(),
        Value::Number(_) => 0.into(),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_calls_of_a_launcher_replay_over_its_socket() {
    let Some(directory) = recordings() else {
        println!("SKIPPED: no recordings of virt-launcher; GOLDEN_LAUNCHER names their directory");
        return;
    };
    let lab = Lab::with(&read(&directory.join("grpc/vmi.json"))).await;
    let (launcher, uid) = lab.launcher(None).await;
    let mut wrong = Vec::new();
    let booted = read(&directory.join("xml/0-boot-GetDomain.json"));
    compare("0-boot", &launcher, &booted, &uid, &mut wrong).await;
    let mut replayed = 0;
    for path in files(&directory.join("grpc")).iter().filter(|path| !path.ends_with("vmi.json")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        replay(name, &launcher, &read(path), &uid, &mut wrong).await;
        replayed += 1;
        // The same domains were also recorded with their XML.
        let step = match name {
            "06-GetDomain" => "1-cpu2-mem1536-plugged-during-boot",
            "08-GetDomain" => "2-cpu3",
            "10-GetDomain" => "3-mem2g",
            "24-GetDomain" => "4-after-reset",
            _ => continue,
        };
        let recorded = read(&directory.join(format!("xml/{step}-GetDomain.json")));
        compare(step, &launcher, &recorded, &uid, &mut wrong).await;
    }
    assert!(replayed >= 26, "only {replayed} exchanges were found");

    // The guest was killed, and its VM starts anew: what was recorded of an earlier run.
    let (launcher, uid) = lab.launcher(Some(&launcher)).await;
    let base = read(&directory.join("grpc/vmi.json"));
    let plug = async |launcher: &Launcher, call: &str, sockets: u32, guest: &str| {
        let mut vmi = base.clone();
        vmi["spec"]["domain"]["cpu"]["sockets"] = sockets.into();
        vmi["spec"]["domain"]["memory"]["guest"] = guest.into();
        let message = VmiRequest { vmi: Some(Vmi { vmi_json: vmi.to_string().into_bytes() }) };
        let answer = launcher.call(&format!("/kubevirt.cmd.v1.Cmd/{call}"), &message).await.unwrap();
        assert!(Response::decode(answer).unwrap().success, "{call} {sockets} {guest}");
    };
    let grown = read(&directory.join("xml/5-cpu4-mem3g-GetDomain.json"));
    plug(&launcher, "SyncVirtualMachineCPUs", 4, "3Gi").await;
    plug(&launcher, "SyncVirtualMachineMemory", 4, "3Gi").await;
    compare("5-cpu4-mem3g", &launcher, &grown, &uid, &mut wrong).await;
    // libvirt counts memory twice that comes back after a reset: 2 GiB of it, then 2.5 GiB.
    let drifted = read(&directory.join("xml/6-after-2-resets-GetDomain.json"));
    for (counted, guest) in [("5Gi", "3Gi"), ("8Gi", "3584Mi"), ("6656Mi", "2Gi")] {
        plug(&launcher, "SyncVirtualMachineMemory", 4, guest).await;
        settle(&launcher).await;
        if guest != "2Gi" {
            plug(&launcher, "ResetVirtualMachine", 4, guest).await;
            settle(&launcher).await;
        }
        let said = memory(&launcher).await;
        assert_eq!(said, counted, "libvirt's count after {guest}");
    }
    let mut drifted = translated(&drifted, &uid);
    // The lab's launcher had been told of a migration in that run.
    drifted["Spec"]["Metadata"]["KubeVirt"]["Migration"] = Value::Null;
    compare("6-after-2-resets", &launcher, &drifted, &uid, &mut wrong).await;
    lab.cluster.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn domain(launcher: &Launcher) -> Value {
    let answer = launcher.call("/kubevirt.cmd.v1.Cmd/GetDomain", &VmiRequest::default()).await.unwrap();
    serde_json::from_str(&DomainResponse::decode(answer).unwrap().domain).unwrap()
}

/// Waits until the guest has all that was asked for.
async fn settle(launcher: &Launcher) {
    for _ in 0..500 {
        let target = domain(launcher).await["Spec"]["Devices"]["Memory"]["Target"].clone();
        if target["Current"] == target["Requested"] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the guest never had what was asked for");
}

/// libvirt's count of the memory.
async fn memory(launcher: &Launcher) -> String {
    let mib = domain(launcher).await["Spec"]["CurrentMemory"]["Value"].as_i64().unwrap() >> 10;
    if mib % 1024 == 0 { format!("{}Gi", mib >> 10) } else { format!("{mib}Mi") }
}

/// The two requests that killed a real launcher kill this one, and the guest with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_killed_a_recorded_launcher_kills_this_one() {
    let Some(directory) = recordings() else {
        println!("SKIPPED: no recordings of virt-launcher; GOLDEN_LAUNCHER names their directory");
        return;
    };
    let lab = Lab::with(&read(&directory.join("grpc/vmi.json"))).await;
    let (launcher, uid) = lab.launcher(None).await;
    let mut wrong = Vec::new();
    let recorded = read(&directory.join("grpc/crash/SyncVirtualMachineMemory-without-maxGuest.json"));
    replay("without-maxGuest", &launcher, &recorded, &uid, &mut wrong).await;
    assert!(wrong.is_empty(), "{wrong:?}");
    let (second, again) = lab.launcher(Some(&launcher)).await;
    assert_ne!(again, uid, "the VM was started anew");
    let empty = VmiRequest { vmi: None };
    assert!(second.call("/kubevirt.cmd.v1.Cmd/SyncVirtualMachineCPUs", &empty).await.is_err());
    let (_, third) = lab.launcher(Some(&second)).await;
    assert_ne!(third, again);
    // Those panics are in the recordings.
    for (file, frame) in [
        ("panic-memory-no-maxGuest.txt", "BuildMemoryDevice"),
        ("panic-cpus-no-vmi-field.txt", "getVMIFromRequest(0x0)"),
    ] {
        let text = std::fs::read_to_string(directory.join("grpc/crash").join(file)).unwrap();
        assert!(text.contains("nil pointer dereference") && text.contains(frame), "{file}");
    }
    lab.cluster.stop().await;
}

/// Every event that the real launcher sent of its running guest carries a domain of the shape that ours tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_in_recorded_events_have_the_shape_of_ours() {
    let Some(directory) = recordings() else {
        println!("SKIPPED: no recordings of virt-launcher; GOLDEN_LAUNCHER names their directory");
        return;
    };
    let base = read(&directory.join("grpc/vmi.json"));
    let lab = Lab::with(&base).await;
    let (launcher, uid) = lab.launcher(None).await;
    let mut wrong = Vec::new();
    let mut asked = (1, 0);
    for path in files(&directory.join("events")) {
        let event = read(&path);
        let mut recorded = event["domainJSON (decoded)"].clone();
        // Before it runs and when it has ended, a domain has no addresses, aliases and devices of libvirt's own.
        if recorded["Status"]["Status"] != "Running" {
            continue;
        }
        // Of events alone the uid is also in the object.
        recorded["ObjectMeta"].as_object_mut().unwrap().remove("uid");
        let target = &recorded["Spec"]["Devices"]["Memory"]["Target"];
        let requested = target["Requested"]["Value"].as_u64().unwrap_or(0) >> 10;
        let vcpus = recorded["Spec"]["VCPUs"]["VCPU"].as_array().unwrap().iter();
        let vcpus = vcpus.filter(|one| one["Enabled"] == "yes").count();
        if asked != (vcpus, requested) {
            let mut vmi = base.clone();
            vmi["spec"]["domain"]["cpu"]["sockets"] = vcpus.into();
            vmi["spec"]["domain"]["memory"]["guest"] = format!("{}Mi", 1024 + requested).into();
            let message = VmiRequest { vmi: Some(Vmi { vmi_json: vmi.to_string().into_bytes() }) };
            for call in ["SyncVirtualMachineCPUs", "SyncVirtualMachineMemory"] {
                if call.ends_with("CPUs") || requested > 0 {
                    let answer =
                        launcher.call(&format!("/kubevirt.cmd.v1.Cmd/{call}"), &message).await.unwrap();
                    assert!(Response::decode(answer).unwrap().success, "{path:?}");
                }
            }
            asked = (vcpus, requested);
            if requested > 0 {
                settle(&launcher).await;
            }
        }
        let mut ours = domain(&launcher).await;
        // How far the guest was just then is the event's own.
        for domain in [&mut recorded, &mut ours] {
            domain["Spec"]["CurrentMemory"]["Value"] = 0.into();
            if domain["Spec"]["Devices"]["Memory"].is_object() {
                domain["Spec"]["Devices"]["Memory"]["Target"]["Current"]["Value"] = 0.into();
            }
        }
        let mut different = Vec::new();
        differences("", &translated(&recorded, &uid), &ours, &mut different);
        wrong.extend(different.into_iter().map(|one| format!("{}: {one}", path.display())));
    }
    lab.cluster.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
