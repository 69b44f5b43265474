//! The writes of the simulated KubeVirt about hotplugged volumes, in their order, against those that were recorded of the real
//! one. The recordings are not part of the repository: `GOLDEN_VIRT_CONTROLLER` names their directory
//! (`../shared/golden/virt-controller` beside the workspace otherwise); where there is none, the test says so and passes.
//!
//! Controllers work side by side, so each has a lane of its own, and what is written again is one step.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use sandbox::Options;
use sandbox::sim::hotplug::Timing;
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};
use sim::{Cluster, items};

type Lanes = BTreeMap<&'static str, Vec<String>>;

/// Who, what, about what, and the body.
struct Request {
    user: String,
    verb: String,
    resource: String,
    name: String,
    body: Value,
}

fn recording(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_VIRT_CONTROLLER").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/virt-controller"));
    let file = format!("{name}.stock.audit.jsonl");
    [named, Some(usual)].into_iter().flatten().map(|folder| folder.join(&file)).find(|path| path.is_file())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn recorded(lines: &str) -> Vec<Request> {
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter(|event| event["code"].as_u64().unwrap() < 300)
        .map(|event| Request {
            user: text(&event, "/user").to_owned(),
            verb: text(&event, "/verb").to_owned(),
            resource: text(&event, "/resource").to_owned(),
            name: text(&event, "/name").to_owned(),
            body: event["body"].clone(),
        })
        .collect()
}

fn audited(lines: &str) -> Vec<Request> {
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events
        .filter(|event| event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300))
        .map(|event| {
            let object = &event["objectRef"];
            let parts = [text(object, "/resource"), text(object, "/subresource")];
            let user = [text(&event, "/impersonatedUser/username"), text(&event, "/user/username")];
            Request {
                user: (*user.iter().find(|user| !user.is_empty()).unwrap_or(&"")).to_owned(),
                verb: text(&event, "/verb").to_owned(),
                resource: parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/"),
                name: text(object, "/name").to_owned(),
                body: event["requestObject"].clone(),
            }
        })
        .collect()
}

/// `name phase target`, and whether the pod is known, of the hotplugged volumes of a status.
fn volumes(status: &Value) -> String {
    let hotplugged = status.as_array().into_iter().flatten().filter(|one| one["hotplugVolume"].is_object());
    let words = hotplugged.map(|one| {
        let pod = if text(one, "/hotplugVolume/attachPodUID").is_empty() { "" } else { " from a pod" };
        format!("{} {} {}{pod}", text(one, "/name"), text(one, "/phase"), text(one, "/target"))
    });
    words.collect::<Vec<_>>().join(", ")
}

fn lanes(requests: &[Request]) -> Lanes {
    let mut lanes = Lanes::new();
    for request in requests {
        let controller = request.user.ends_with("kubevirt-controller");
        let changed = |wanted: &str| {
            let all = request.body.as_array().into_iter().flatten();
            all.filter(|one| one["op"] != "test")
                .find(|one| one["path"] == wanted)
                .map(|one| one["value"].clone())
        };
        let (lane, step) = match (request.verb.as_str(), request.resource.as_str()) {
            ("create", "pods")
                if controller && text(&request.body, "/metadata/generateName") == "hp-volume-" =>
            {
                let all = request.body["spec"]["volumes"].as_array().unwrap().iter();
                let claims = all.filter(|one| one.get("persistentVolumeClaim").is_some());
                let names: Vec<&str> = claims.map(|one| text(one, "/name")).collect();
                ("pods", format!("create {}", names.join(" ")))
            }
            ("delete", "pods") if controller && request.name.starts_with("hp-volume-") => {
                ("pods", format!("delete, grace {}", request.body["gracePeriodSeconds"]))
            }
            ("patch", "virtualmachineinstances") if controller => {
                if let Some(spec) = changed("/spec/volumes") {
                    let names: Vec<&str> =
                        spec.as_array().unwrap().iter().map(|one| text(one, "/name")).collect();
                    ("vm controller", names.join(" "))
                } else if let Some(status) = changed("/status/volumeStatus") {
                    // Whether a cache knows the new pod in the same pass depends on its speed.
                    ("vmi controller", volumes(&status))
                } else {
                    continue;
                }
            }
            ("update", "virtualmachineinstances") if request.user.ends_with("kubevirt-handler") => {
                ("virt-handler", volumes(&request.body["status"]["volumeStatus"]))
            }
            _ => continue,
        };
        let steps = lanes.entry(lane).or_default();
        let is_race = step.contains("Bound");
        if steps.last() != Some(&step) && !is_race {
            steps.push(step);
        }
    }
    lanes
}

/// Runs what the administrator did in a recording, and compares.
async fn compare(name: &str, timing: Timing) {
    let Some(path) = recording(name) else {
        println!("SKIPPED: no recordings of virt-controller; GOLDEN_VIRT_CONTROLLER names their directory");
        return;
    };
    let golden = recorded(&std::fs::read_to_string(path).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let options = Options { audit_log: Some(log.clone()), ..Options::default() };
    let config = SimConfig { nodes: 2, release: Release::Main, timing, ..SimConfig::default() };
    let cluster = Cluster::with(options, config).await;
    for claim in ["d1", "d2", "d3", "d4"] {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": "default"},
            "spec": {"storageClassName": "busy-check", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}}});
        cluster.call(Method::POST, "/api/v1/namespaces/default/persistentvolumeclaims", claim).await.unwrap();
    }
    cluster.call(Method::POST, sim::VMS, sim::vm("vm1", "Always")).await.unwrap();
    cluster.printable("vm1", "Running").await;
    for request in golden.iter().filter(|request| request.user == "admin") {
        match (request.verb.as_str(), request.resource.as_str()) {
            ("patch", "virtualmachines") => {
                let all = request.body.as_array().unwrap();
                let wanted = |path: &str| all.iter().find(|one| one["op"] != "test" && one["path"] == path);
                let volumes = &wanted("/spec/template/spec/volumes").unwrap()["value"];
                let disks = &wanted("/spec/template/spec/domain/devices/disks").unwrap()["value"];
                let patch = json!({"spec": {"template": {"spec": {"volumes": volumes, "domain": {"devices": {"disks": disks}}}}}});
                cluster.call(Method::PATCH, &sim::vm_path("vm1"), patch).await.unwrap();
                let names: Vec<String> = volumes.as_array().unwrap()[1..]
                    .iter()
                    .map(|one| text(one, "/name").to_owned())
                    .collect();
                let there = |vmi: Option<&Value>| {
                    let status = vmi.map(|vmi| vmi["status"]["volumeStatus"].clone()).unwrap_or_default();
                    let all: Vec<&Value> = status
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|one| one["hotplugVolume"].is_object())
                        .collect();
                    let ready = all.iter().all(|one| {
                        one["phase"] == "Ready"
                            && one["target"] != ""
                            && !text(one, "/hotplugVolume/attachPodUID").is_empty()
                    });
                    all.len() == names.len() && ready
                };
                cluster.wait(&sim::vmi_path("vm1"), "settled", there).await;
            }
            ("delete", "pods") => {
                let list = cluster
                    .get(&format!("{}?labelSelector=kubevirt.io%3Dhotplug-disk", sim::PODS))
                    .await
                    .unwrap();
                let pod = &items(&list)[0];
                let path = format!("{}/{}", sim::PODS, text(pod, "/metadata/name"));
                let failed = json!({"status": {"phase": "Failed"}});
                cluster.call(Method::PATCH, &format!("{path}/status"), failed).await.unwrap();
                cluster.call(Method::DELETE, &path, Value::Null).await.unwrap();
                let again = |vmi: Option<&Value>| {
                    let uid =
                        vmi.map_or("", |vmi| text(vmi, "/status/volumeStatus/0/hotplugVolume/attachPodUID"));
                    !uid.is_empty() && uid != text(pod, "/metadata/uid")
                };
                cluster.wait(&sim::vmi_path("vm1"), "from another pod", again).await;
            }
            _ => {}
        }
    }
    cluster.stop().await;
    let ours = lanes(&audited(&std::fs::read_to_string(&log).unwrap()));
    let theirs = lanes(&golden);
    for lane in ["pods", "vm controller", "virt-handler"] {
        assert_eq!(ours.get(lane), theirs.get(lane), "{name}: {lane}");
    }
    // What was written on the way into every state that was recorded, in the recorded order.
    let mut mine = ours["vmi controller"].iter();
    for step in &theirs["vmi controller"] {
        assert!(
            mine.any(|one| one == step),
            "{name}: {step} is missing or late in {:#?}",
            ours["vmi controller"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_written_as_it_was_recorded() {
    compare(
        "e3-batch",
        Timing { plug: Duration::from_millis(600), unplug: Duration::from_millis(500), ..Timing::default() },
    )
    .await;
}

/// The old pod goes when the new one runs, three seconds before that is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_that_is_slow_to_be_ready_is_written_as_it_was_recorded() {
    compare("e3-notready", Timing { ready_after: Duration::from_secs(3), ..Timing::default() }).await;
}
