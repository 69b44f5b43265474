//! The writes of the simulated `KubeVirt`, in their order, against those that were recorded of the real one: a
//! start, a change of CPUs and memory with the migration that it causes, and one that a webhook holds until it has been
//! made in place. The recordings are not part of the
//! repository: `GOLDEN_VIRT_CONTROLLER` names their directory (`../shared/golden/virt-controller` beside the workspace
//! otherwise); where there is none, the test says so and passes.
//!
//! Controllers work side by side, so each has a lane of its own, and only the order within a lane counts.
//! Refused writes are left out, and what is written again and again is one step: how often depends on timing.
//! Of what the VMI controller patches, the first time counts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

#[path = "admission/server.rs"]
mod server;
#[path = "sim/shapes.rs"]
mod shapes;
mod sim;
#[path = "sim/socket.rs"]
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use base64::Engine as _;
use http::Method;
use launcher_api::v1::{Vmi, VmiRequest};
use sandbox::Options;
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use server::{Reply, Server};
use sim::Cluster;
use socket::Launcher;

/// One request: who, what, and the body.
struct Request {
    user: String,
    verb: String,
    /// With the subresource.
    resource: String,
    body: Value,
}

type Lanes = BTreeMap<&'static str, Vec<String>>;

fn recording(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_VIRT_CONTROLLER").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/virt-controller"));
    [named, Some(usual)]
        .into_iter()
        .flatten()
        .map(|folder| folder.join(format!("{name}.audit.jsonl")))
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
    let Some(path) = recording("e1-stock") else {
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
    let ends = [
        ("vm", cluster.get(&format!("{vms}/vm1")).await.unwrap()),
        ("vmi", cluster.get(&vmi).await.unwrap()),
        ("vmim", sim::items(&cluster.get(&migrations).await.unwrap())[0].clone()),
    ];
    let pods = cluster.get(&format!("/api/v1/namespaces/{namespace}/pods")).await.unwrap();
    cluster.stop().await;
    same_shapes(&path, &ends, sim::items(&pods));

    let ours = lanes(&audited(&std::fs::read_to_string(&log).unwrap(), &namespace));
    let theirs = lanes(&golden);
    assert_eq!(theirs.keys().copied().collect::<Vec<_>>(), ["migration", "pod", "virt-handler", "vm", "vmi"]);
    let steps: usize = theirs.values().map(Vec::len).sum();
    assert!(steps > 40, "the recording has only {steps} steps");
    assert_eq!(differences(&ours, &theirs), "");
}

/// What was the lab's: how its own kubelet reported pods, and what CPU its nodes had. Lists leave kind and version out.
const OF_THE_LAB: [&str; 6] = [
    "/status/containerStatuses",
    "/status/initContainerStatuses",
    "/status/hostIPs",
    "/spec/nodeSelector/cpu-",
    "/apiVersion",
    "/kind",
];

/// At the end, objects have the fields that the recorded ones had.
fn same_shapes(audit: &std::path::Path, ends: &[(&str, Value)], pods: &[Value]) {
    let recorded = shapes::recorded(&audit.with_file_name("e1-stock.watch.jsonl"));
    let mut wrong = Vec::new();
    let mut compare = |kind: &str, theirs: &Value, ours: &Value| {
        let found = shapes::differences(theirs, ours, &OF_THE_LAB);
        wrong.extend(found.into_iter().map(|one| format!("{kind}: {one}")));
    };
    for (kind, ours) in ends {
        let (_, theirs) = recorded.iter().find(|((one, _), _)| one == kind).unwrap();
        compare(kind, theirs, ours);
    }
    let is_target = |pod: &&Value| pod["metadata"]["labels"]["kubevirt.io/migrationJobUID"].is_string();
    for target in [false, true] {
        let theirs = recorded.iter().filter(|((kind, _), _)| kind == "pod").map(|(_, pod)| pod);
        let theirs = theirs.into_iter().find(|pod| is_target(pod) == target).unwrap();
        let ours = pods.iter().find(|pod| is_target(pod) == target).unwrap();
        compare(if target { "target" } else { "source" }, theirs, ours);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where lanes differ from recorded ones.
fn differences(ours: &Lanes, theirs: &Lanes) -> String {
    let mut differences = String::new();
    for lane in ours.keys().chain(theirs.keys().filter(|lane| !ours.contains_key(*lane))) {
        let steps = |lanes: &Lanes| lanes.get(lane).map_or_else(String::new, |steps| steps.join("\n") + "\n");
        let (mine, steps) = (steps(ours), steps(theirs));
        if mine != steps {
            let diff = similar::TextDiff::from_lines(&steps, &mine);
            let diff = diff.unified_diff().context_radius(99).header("recorded", "written now").to_string();
            differences = format!("{differences}{lane}\n{diff}\n");
        }
    }
    differences
}

/// What a mutating webhook makes of an update of a VMI by virt-controller: until somebody says that the change has been
/// made (`lab/applied`), the old sizes; then the change and what else goes with it, so that nothing is left to be done.
fn held(request: &Value) -> Value {
    let (old, new) = (&request["oldObject"], &request["object"]);
    let mut patch = Vec::new();
    let mut replace = |path: &str, value: &Value| {
        patch.push(json!({"op": "replace", "path": path, "value": value}));
    };
    let applied = new["metadata"]["annotations"]["lab/applied"].is_string();
    for (field, status) in [
        ("/spec/domain/cpu/sockets", "/status/currentCPUTopology/sockets"),
        ("/spec/domain/memory/guest", "/status/memory/guestRequested"),
    ] {
        let (was, is) = (old.pointer(field), new.pointer(field));
        match (was, is) {
            (Some(was), Some(is)) if was != is && applied => replace(status, is),
            (Some(was), Some(is)) if was != is => replace(field, was),
            _ => {}
        }
    }
    // What virt-controller computes for a pod that is yet to come stays as it was.
    if let (Some(was), Some(is)) = (old.pointer("/status/conditions"), new.pointer("/status/conditions"))
        && was != is
        && applied
    {
        replace("/status/conditions", was);
    }
    if patch.is_empty() {
        return json!({"allowed": true});
    }
    let patch = base64::engine::general_purpose::STANDARD.encode(Value::from(patch).to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// Each step once, where it came first: how often virt-controller tries depends on how often the VMI changes. A guest takes
/// memory bit by bit, and that of the recording all at once.
fn first_times(lanes: Lanes) -> Lanes {
    let on_the_way = |step: &str| {
        let amount = step.strip_prefix("+/status/memory/guestCurrent=");
        amount.is_some_and(|amount| amount.ends_with("Mi"))
    };
    let once = |steps: Vec<String>| {
        let mut seen = BTreeSet::new();
        steps.into_iter().filter(|step| !on_the_way(step) && seen.insert(step.clone())).collect()
    };
    lanes.into_iter().map(|(lane, steps)| (lane, once(steps))).collect()
}

/// A change that a webhook holds by setting the fields back is sent again with every change of the VMI, leaves neither a
/// migration nor a condition, and passes when pod and guest have been given what was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_held_and_made_in_place_is_written_as_it_was_recorded() {
    let Some(path) = recording("e2-neutralise") else {
        println!("SKIPPED: no recordings of virt-controller; GOLDEN_VIRT_CONTROLLER names their directory");
        return;
    };
    let golden = recorded(&path);
    let (folder, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = folder.path().join("audit.jsonl");
    let options = Options { audit_log: Some(log.clone()), ..Options::default() };
    let config = SimConfig { nodes: 2, kubelet_root: Some(root.path().into()), ..SimConfig::default() };
    let cluster = Cluster::with(options, config).await;
    let webhook = Server::start("localhost", &["h2", "http/1.1"], |request| {
        Reply::Response(held(&request.clone().into()).into())
    })
    .await;
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration", "metadata": {"name": "hold"},
        "webhooks": [{"name": "hold.lab.example", "clientConfig": webhook.client_config(), "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "matchConditions": [{"name": "by", "expression": "request.userInfo.username.endsWith(':kubevirt-controller')"}],
            "rules": [{"operations": ["UPDATE"], "apiGroups": ["kubevirt.io"], "apiVersions": ["v1"],
                "resources": ["virtualmachineinstances"]}]}]});
    let hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    cluster.call(Method::POST, hooks, configuration).await.unwrap();

    let by_admin: Vec<&Request> = golden.iter().filter(|request| request.user == "admin").collect();
    let namespace = text(&by_admin[0].body, "/metadata/namespace").to_owned();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.call(Method::POST, "/api/v1/namespaces", object).await.unwrap();
    let vms = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines");
    let vmi = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/vm1");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    for request in by_admin {
        match (request.verb.as_str(), request.resource.as_str()) {
            ("create", _) => {
                cluster.call(Method::POST, &vms, request.body.clone()).await.unwrap();
                let settled =
                    |vm: Option<&Value>| vm.is_some_and(|vm| sim::condition(vm, "AgentConnected").is_some());
                cluster.wait(&format!("{vms}/vm1"), "running", settled).await;
            }
            (_, "virtualmachines") => {
                cluster.call(Method::PATCH, &format!("{vms}/vm1"), request.body.clone()).await.unwrap();
                // It has tried both.
                let tried = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["desiredGeneration"] == 2);
                cluster.wait(&format!("{vms}/vm1"), "held", tried).await;
            }
            (_, "pods/resize") => {
                let pod = sim::items(&cluster.get(&pods).await.unwrap())[0].clone();
                let pod = format!("{pods}/{}", text(&pod, "/metadata/name"));
                cluster.strategic(&format!("{pod}/resize"), &request.body).await;
                let done = |pod: Option<&Value>| {
                    let container = &pod.unwrap()["status"]["containerStatuses"][0];
                    container["resources"]["requests"]["memory"] == "2360Mi"
                };
                cluster.wait(&pod, "resized", done).await;
            }
            (_, "virtualmachineinstances") => {
                cluster.call(Method::PATCH, &vmi, request.body.clone()).await.unwrap();
                if request.body.pointer("/metadata/annotations/lab~1plug").is_some() {
                    plug(&cluster, root.path(), &pods, &vmi).await;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let declared = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            vmi["spec"]["domain"]["cpu"]["sockets"] == 4 && vmi["status"]["memory"]["guestRequested"] == "2Gi"
        })
    };
    let vmi = cluster.wait(&vmi, "declared", declared).await.unwrap();
    for condition in ["HotVCPUChange", "HotMemoryChange"] {
        assert!(sim::condition(&vmi, condition).is_none(), "{condition}");
    }
    cluster.stop().await;

    let ours = first_times(lanes(&audited(&std::fs::read_to_string(&log).unwrap(), &namespace)));
    let theirs = first_times(lanes(&golden));
    assert_eq!(theirs.keys().copied().collect::<Vec<_>>(), ["pod", "virt-handler", "vm", "vmi"]);
    assert_eq!(differences(&ours, &theirs), "");
}

/// Does what the lab's node did at `lab/plug`: the launcher gets the new sizes.
async fn plug(cluster: &Cluster, root: &std::path::Path, pods: &str, path: &str) {
    let pod = sim::items(&cluster.get(pods).await.unwrap())[0].clone();
    let launcher = Launcher::of_pod(root, text(&pod, "/metadata/uid"));
    let mut vmi = cluster.get(path).await.unwrap();
    vmi["spec"]["domain"]["cpu"]["sockets"] = 4.into();
    vmi["spec"]["domain"]["memory"]["guest"] = "2Gi".into();
    let message = VmiRequest { vmi: Some(Vmi { vmi_json: vmi.to_string().into_bytes() }) };
    for call in ["SyncVirtualMachineMemory", "SyncVirtualMachineCPUs"] {
        launcher.call(&format!("/kubevirt.cmd.v1.Cmd/{call}"), &message).await.unwrap();
    }
    let has_it = |vmi: Option<&Value>| vmi.unwrap()["status"]["memory"]["guestCurrent"] == "2Gi";
    cluster.wait(path, "plugged", has_it).await;
}
