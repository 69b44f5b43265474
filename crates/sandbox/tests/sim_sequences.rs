//! The writes of the simulated `KubeVirt`, in their order, against those that were recorded of the real one: a
//! start, and a change of CPUs and memory with the migration that it causes. The recordings are not part of the
//! repository: `GOLDEN_VIRT_CONTROLLER` names their directory (`../shared/golden/virt-controller` beside the workspace
//! otherwise); where there is none, the test says so and passes.
//!
//! Controllers work side by side, so each has a lane of its own, and only the order within a lane counts.
//! Refused writes are left out, and what is written again and again is one step: how often depends on timing.
//! Of what the VMI controller patches, the first time counts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use http::Method;
use sandbox::Options;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::Cluster;

/// One request: who, what, and the body.
struct Request {
    user: String,
    verb: String,
    /// With the subresource.
    resource: String,
    body: Value,
}

type Lanes = BTreeMap<&'static str, Vec<String>>;

fn recording() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_VIRT_CONTROLLER").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/virt-controller"));
    [named, Some(usual)]
        .into_iter()
        .flatten()
        .map(|folder| folder.join("e1-stock.audit.jsonl"))
        .find(|path| path.is_file())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn recorded(path: &PathBuf) -> Vec<Request> {
    let lines = std::fs::read_to_string(path).unwrap();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let kept = events.filter(|event| event["code"].as_u64().unwrap() < 300);
    kept.map(|event| Request {
        user: text(&event, "/user").to_owned(),
        verb: text(&event, "/verb").to_owned(),
        resource: text(&event, "/resource").to_owned(),
        body: event["body"].clone(),
    })
    .collect()
}

fn audited(lines: &str, namespace: &str) -> Vec<Request> {
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let kept = events.filter(|event| {
        event["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300)
            && event["objectRef"]["namespace"] == namespace
    });
    kept.map(|event| {
        let object = &event["objectRef"];
        let parts = [text(object, "/resource"), text(object, "/subresource")];
        Request {
            user: text(&event, "/impersonatedUser/username").to_owned(),
            verb: text(&event, "/verb").to_owned(),
            resource: parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/"),
            body: event["requestObject"].clone(),
        }
    })
    .collect()
}

/// The paths that a JSON patch changes.
fn paths(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    let changes = operations.iter().filter(|one| one["op"] != "test");
    changes.map(|one| text(one, "/path").to_owned()).collect()
}

/// What a VMI says that a migration leaves on it.
fn marks(vmi: &Value) -> BTreeSet<String> {
    let mut marks = BTreeSet::new();
    let state = &vmi["status"]["migrationState"];
    for key in ["targetNodeAddress", "startTimestamp", "endTimestamp", "completed"] {
        if !state[key].is_null() && state[key] != "" {
            marks.insert(key.to_owned());
        }
    }
    for label in ["kubevirt.io/migrationTargetNodeName", "kubevirt.io/vmi-pod-memory-resource-requests"] {
        if vmi["metadata"]["labels"][label].is_string() {
            marks.insert(label.to_owned());
        }
    }
    for condition in vmi["status"]["conditions"].as_array().into_iter().flatten() {
        if text(condition, "/type").starts_with("Hot") {
            marks.insert(text(condition, "/type").to_owned());
        }
    }
    for pointer in ["/status/memory/guestCurrent", "/status/memory/guestRequested", "/status/phase"] {
        marks.insert(format!("{pointer}={}", text(vmi, pointer)));
    }
    let moved = !state.is_null() && vmi["status"]["nodeName"] == state["targetNode"];
    marks.insert(format!("moved={moved} sockets={}", vmi["status"]["currentCPUTopology"]["sockets"]));
    marks
}

fn lanes(requests: &[Request]) -> Lanes {
    let mut lanes = Lanes::new();
    let mut seen_by_handler: Option<BTreeSet<String>> = None;
    for request in requests {
        let changed = paths(&request.body);
        let step = (request.verb.as_str(), request.resource.as_str());
        let (lane, step) =
            if request.user.ends_with("kubevirt-handler") && request.resource == "virtualmachineinstances" {
                let now = marks(&request.body);
                let before = seen_by_handler.replace(now.clone()).unwrap_or_default();
                let new: Vec<String> = now.difference(&before).map(|mark| format!("+{mark}")).collect();
                let gone: Vec<String> = before
                    .difference(&now)
                    .filter(|mark| !mark.contains('='))
                    .map(|mark| format!("-{mark}"))
                    .collect();
                ("virt-handler", [new, gone].concat().join(" "))
            } else if request.user.ends_with("kubevirt-controller") {
                match step {
                    ("create", "virtualmachineinstancemigrations") => {
                        ("migration", format!("create {}", request.body["spec"]["priority"]))
                    }
                    ("update", "virtualmachineinstancemigrations") => ("migration", "update".to_owned()),
                    ("update", "virtualmachineinstancemigrations/status") => {
                        ("migration", format!("status {}", text(&request.body, "/status/phase")))
                    }
                    ("create", "pods")
                        if request.body["metadata"]["labels"]["kubevirt.io/migrationJobUID"].is_string() =>
                    {
                        ("migration", "create pod".to_owned())
                    }
                    ("create", "pods") => ("vmi", "create pod".to_owned()),
                    ("patch", "pods") if changed.iter().any(|path| path.contains("ready-timestamp")) => {
                        ("migration", "patch pod ready".to_owned())
                    }
                    ("patch", "pods") => ("pod", changed.join(" ")),
                    ("patch", "pods/status") => ("pod", "status".to_owned()),
                    ("create", "virtualmachineinstances") => ("vm", "create vmi".to_owned()),
                    ("update", "virtualmachineinstances") => {
                        ("vmi", format!("update {}", text(&request.body, "/status/phase")))
                    }
                    ("patch", "virtualmachineinstances")
                        if changed.iter().any(|path| path.starts_with("/spec/")) =>
                    {
                        ("vm", changed.join(" "))
                    }
                    ("patch", "virtualmachineinstances")
                        if changed
                            .iter()
                            .any(|path| path.contains("migrationState") || path.contains("nonroot")) =>
                    {
                        ("migration", changed.join(" "))
                    }
                    ("patch", "virtualmachineinstances") => ("vmi", changed.join(" ")),
                    ("update", "virtualmachines/status") => {
                        ("vm", format!("status {}", text(&request.body, "/status/printableStatus")))
                    }
                    ("update", "virtualmachines") => ("vm", "update".to_owned()),
                    ("patch", "virtualmachines") => ("vm", changed.join(" ")),
                    _ => continue,
                }
            } else {
                continue;
            };
        let steps = lanes.entry(lane).or_default();
        if lane == "vmi" {
            // Whether a guest that moves is not ready for a moment depends on how quick kubelet is.
            for part in step.split(" /").map(|part| part.trim_start_matches('/').to_owned()) {
                if !steps.contains(&part) {
                    steps.push(part);
                }
            }
        } else if !step.is_empty() && steps.last() != Some(&step) {
            steps.push(step);
        }
    }
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_and_a_change_write_what_the_real_controllers_wrote() {
    let Some(path) = recording() else {
        println!("SKIPPED: no recordings of virt-controller; GOLDEN_VIRT_CONTROLLER names their directory");
        return;
    };
    let golden = recorded(&path);
    let by_admin: Vec<&Request> = golden.iter().filter(|request| request.user == "admin").collect();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let options = Options { audit_log: Some(log.clone()), ..Options::default() };
    let cluster = Cluster::with(options, SimConfig { nodes: 2, ..SimConfig::default() }).await;

    let namespace = text(&by_admin[0].body, "/metadata/namespace").to_owned();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.call(Method::POST, "/api/v1/namespaces", object).await.unwrap();
    let vms = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines");
    let vmi = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/vm1");
    cluster.call(Method::POST, &vms, by_admin[0].body.clone()).await.unwrap();
    let settled = |vm: Option<&Value>| {
        vm.is_some_and(|vm| vm["status"]["ready"] == true && sim::condition(vm, "AgentConnected").is_some())
    };
    cluster.wait(&format!("{vms}/vm1"), "running", settled).await;
    cluster.call(Method::PATCH, &format!("{vms}/vm1"), by_admin[1].body.clone()).await.unwrap();
    let done = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["status"]["memory"]["guestCurrent"] == "2Gi"
                && vmi["status"]["launcherContainerImageVersion"].is_string()
                && sim::condition(vmi, "Ready").is_some_and(|ready| ready["status"] == "True")
        })
    };
    cluster.wait(&vmi, "grown", done).await;
    let migrations = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstancemigrations");
    let over = |list: Option<&Value>| {
        sim::items(list.unwrap()).iter().all(|one| one["metadata"].get("finalizers").is_none())
    };
    cluster.wait(&migrations, "over", over).await;
    cluster.wait(&format!("{vms}/vm1"), "ready again", settled).await;
    cluster.stop().await;

    let ours = lanes(&audited(&std::fs::read_to_string(&log).unwrap(), &namespace));
    let theirs = lanes(&golden);
    assert_eq!(theirs.keys().copied().collect::<Vec<_>>(), ["migration", "pod", "virt-handler", "vm", "vmi"]);
    let steps: usize = theirs.values().map(Vec::len).sum();
    assert!(steps > 40, "the recording has only {steps} steps");
    let mut differences = String::new();
    for (lane, steps) in &theirs {
        let mine = ours.get(lane).map(Vec::as_slice).unwrap_or_default();
        if mine != steps.as_slice() {
            let shown = |steps: &[String]| steps.join("\n") + "\n";
            let (mine, steps) = (shown(mine), shown(steps));
            let diff = similar::TextDiff::from_lines(&steps, &mine);
            let diff = diff.unified_diff().context_radius(99).header("recorded", "written now").to_string();
            differences = format!("{differences}{lane}\n{diff}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
