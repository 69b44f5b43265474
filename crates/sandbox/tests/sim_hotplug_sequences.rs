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

type Lanes = BTreeMap<String, Vec<Step>>;

/// One write, in words.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Step {
    words: String,
    late: bool,
}

/// Who, what, about what, and the body.
struct Request {
    user: String,
    verb: String,
    resource: String,
    name: String,
    body: Value,
    /// It was refused because the object had changed meanwhile. What virt-handler wanted to say then counts: whether it
    /// comes to say it is a race with virt-controller.
    late: bool,
}

/// Whether a request counts, by the code of its answer; `Some(true)`: it came too late.
fn counts(code: u64, user: &str) -> Option<bool> {
    let late = code == 409 && user.ends_with("kubevirt-handler");
    (late || code < 300).then_some(late)
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
    let request = |event: Value| {
        let user = text(&event, "/user").to_owned();
        Some(Request {
            late: counts(event["code"].as_u64().unwrap(), &user)?,
            user,
            verb: text(&event, "/verb").to_owned(),
            resource: text(&event, "/resource").to_owned(),
            name: text(&event, "/name").to_owned(),
            body: event["body"].clone(),
        })
    };
    events.filter_map(request).collect()
}

fn audited(lines: &str) -> Vec<Request> {
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let request = |event: Value| {
        let object = &event["objectRef"];
        let parts = [text(object, "/resource"), text(object, "/subresource")];
        let user = [text(&event, "/impersonatedUser/username"), text(&event, "/user/username")];
        let user = (*user.iter().find(|user| !user.is_empty()).unwrap_or(&"")).to_owned();
        Some(Request {
            late: counts(event["responseStatus"]["code"].as_u64()?, &user)?,
            user,
            verb: text(&event, "/verb").to_owned(),
            resource: parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/"),
            name: text(object, "/name").to_owned(),
            body: event["requestObject"].clone(),
        })
    };
    events.filter_map(request).collect()
}

/// `name phase target`, and whether the pod is known, of the hotplugged volumes of a status.
fn volumes(status: &Value) -> Vec<(String, String)> {
    let hotplugged = status.as_array().into_iter().flatten().filter(|one| one["hotplugVolume"].is_object());
    let words = hotplugged.map(|one| {
        let pod = if text(one, "/hotplugVolume/attachPodUID").is_empty() { "" } else { " from a pod" };
        let name = text(one, "/name").to_owned();
        let words = format!("{name} {} {}{pod}", text(one, "/phase"), text(one, "/target"));
        (name, words)
    });
    words.collect()
}

fn joined(volumes: &[(String, String)]) -> String {
    volumes.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>().join(", ")
}

/// Everybody's writes about volumes, each in its own lane.
fn lanes(requests: &[Request]) -> Lanes {
    let mut lanes = Lanes::new();
    let mut note = |lane: &str, words: String, late: bool| {
        let steps = lanes.entry(lane.to_owned()).or_default();
        // Whether a cache knows the new pod in the same pass depends on its speed.
        let is_race = words.contains("Bound");
        let again = lane != PODS && steps.last().is_some_and(|last| last.words == words);
        if !again && !is_race {
            steps.push(Step { words, late });
        }
    };
    // What stands in the VMI about volumes.
    let mut stands = Vec::new();
    for request in requests {
        let controller = request.user.ends_with("kubevirt-controller");
        let changed = |wanted: &str| {
            let all = request.body.as_array().into_iter().flatten();
            all.filter(|one| one["op"] != "test")
                .find(|one| one["path"] == wanted)
                .map(|one| one["value"].clone())
        };
        match (request.verb.as_str(), request.resource.as_str()) {
            ("create", "pods")
                if controller && text(&request.body, "/metadata/generateName") == "hp-volume-" =>
            {
                note(PODS, format!("create {}", claims(&request.body).join(" ")), false);
            }
            ("delete", "pods") if controller && request.name.starts_with("hp-volume-") => {
                note(PODS, format!("delete, grace {}", request.body["gracePeriodSeconds"]), false);
            }
            ("patch", "virtualmachineinstances") if controller => {
                if let Some(spec) = changed("/spec/volumes") {
                    let names: Vec<&str> =
                        spec.as_array().unwrap().iter().map(|one| text(one, "/name")).collect();
                    note(VM_CONTROLLER, names.join(" "), false);
                } else if let Some(status) = changed("/status/volumeStatus") {
                    stands = volumes(&status);
                    note(VMI_CONTROLLER, joined(&stands), false);
                }
            }
            ("update", "virtualmachineinstances") if request.user.ends_with("kubevirt-handler") => {
                let says = volumes(&request.body["status"]["volumeStatus"]);
                // It has written something else, a condition of the guest, and repeats the rest.
                if says == stands {
                    continue;
                }
                note(HANDLER, joined(&says), request.late);
                // Which pod is named, and `Detaching`, are virt-controller's words.
                for (name, words) in says.iter().filter(|(_, words)| !words.contains("Detaching")) {
                    let words = words.trim_end_matches(" from a pod").to_owned();
                    note(&format!("{HANDLER}: {name}"), words, request.late);
                }
                if !request.late {
                    stands = says;
                }
            }
            _ => {}
        }
    }
    lanes
}

const PODS: &str = "pods";
const VM_CONTROLLER: &str = "vm controller";
const VMI_CONTROLLER: &str = "vmi controller";
const HANDLER: &str = "virt-handler";

/// Names of the volumes of a pod that are on claims.
fn claims(pod: &Value) -> Vec<&str> {
    let all = pod["spec"]["volumes"].as_array().unwrap().iter();
    all.filter(|one| one.get("persistentVolumeClaim").is_some()).map(|one| text(one, "/name")).collect()
}

/// The same steps in the same order; what came too late may be missing on the other side.
fn same(ours: &[Step], theirs: &[Step]) -> bool {
    match (ours, theirs) {
        ([], []) => true,
        ([one, rest @ ..], [other, others @ ..]) if one.words == other.words => same(rest, others),
        ([one, rest @ ..], _) if one.late => same(rest, theirs),
        (_, [other, others @ ..]) if other.late => same(ours, others),
        _ => false,
    }
}

/// What is played: a recording, with a driver and times under which it can happen as it did.
struct Play {
    name: &'static str,
    class: &'static str,
    timing: Timing,
    lanes: &'static [&'static str],
    /// When the next request of the administrator comes: the volumes that were asked for, and what is to hold of the VMI and
    /// the attachment pods.
    next: fn(&[&str], &Value, &[Value]) -> bool,
}

fn hotplugged(vmi: &Value) -> Vec<&Value> {
    let status = vmi["status"]["volumeStatus"].as_array();
    status.into_iter().flatten().filter(|one| one["hotplugVolume"].is_object()).collect()
}

/// All is in the guest, and nothing else.
fn settled(names: &[&str], vmi: &Value, _: &[Value]) -> bool {
    let all = hotplugged(vmi);
    let ready = |one: &&Value| {
        one["phase"] == "Ready" && one["target"] != "" && !text(one, "/hotplugVolume/attachPodUID").is_empty()
    };
    all.len() == names.len() && all.iter().all(ready)
}

/// Changes faster than a handoff, each as far behind the last as in the recording.
fn rapid(names: &[&str], vmi: &Value, pods: &[Value]) -> bool {
    let phase = |name: &str, wanted: &str| {
        hotplugged(vmi).iter().any(|one| one["name"] == name && one["phase"] == wanted)
    };
    let unplugged = |name: &str| hotplugged(vmi).iter().any(|one| one["name"] == name && one["target"] == "");
    let has_pod = |names: &[&str]| pods.iter().any(|pod| claims(pod) == names);
    match names {
        // Three pods that never start, one for each of the first sets.
        ["d1"] | ["d1", "d2"] | ["d1", "d2", "d3"] => {
            has_pod(names) && names.iter().all(|name| phase(name, "AttachedToNode"))
        }
        ["d2", "d3", "d4"] => has_pod(names) && unplugged("d1"),
        ["d3", "d4"] => has_pod(names) && unplugged("d2"),
        ["d4"] => phase("d2", "Detaching"),
        [] => hotplugged(vmi).is_empty() && pods.is_empty(),
        _ => settled(names, vmi, pods),
    }
}

async fn attachments(cluster: &Cluster) -> Vec<Value> {
    let path = format!("{}?labelSelector=kubevirt.io%3Dhotplug-disk", sim::PODS);
    items(&cluster.get(&path).await.unwrap()).to_vec()
}

/// Waits until something holds of the VMI and its attachment pods.
async fn wait(cluster: &Cluster, what: &str, holds: impl Fn(&Value, &[Value]) -> bool) {
    let mut last = (Value::Null, Vec::new());
    let waited = tokio::time::timeout(sim::BOUND, async {
        loop {
            last = (cluster.get(&sim::vmi_path("vm1")).await.unwrap_or_default(), attachments(cluster).await);
            if holds(&last.0, &last.1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let in_time = waited.await.is_ok();
    assert!(in_time, "never {what}: {last:#?}");
}

/// Runs what the administrator did in a recording, and compares.
async fn compare(play: &Play) {
    let name = play.name;
    let Some(path) = recording(name) else {
        println!("SKIPPED: no recordings of virt-controller; GOLDEN_VIRT_CONTROLLER names their directory");
        return;
    };
    let golden = recorded(&std::fs::read_to_string(path).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let options = Options { audit_log: Some(log.clone()), ..Options::default() };
    let config = SimConfig { nodes: 2, release: Release::Main, timing: play.timing, ..SimConfig::default() };
    let cluster = Cluster::with(options, config).await;
    for claim in ["d1", "d2", "d3", "d4"] {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": "default"},
            "spec": {"storageClassName": play.class, "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}}});
        cluster.call(Method::POST, "/api/v1/namespaces/default/persistentvolumeclaims", claim).await.unwrap();
    }
    cluster.call(Method::POST, sim::VMS, sim::vm("vm1", "Always")).await.unwrap();
    cluster.printable("vm1", "Running").await;
    // A recording begins with the first request of the administrator.
    let before = std::fs::read_to_string(&log).unwrap().lines().count();
    for request in golden.iter().filter(|request| request.user == "admin") {
        match (request.verb.as_str(), request.resource.as_str()) {
            ("patch", "virtualmachines") => {
                let all = request.body.as_array().unwrap();
                let wanted = |path: &str| all.iter().find(|one| one["op"] != "test" && one["path"] == path);
                let volumes = &wanted("/spec/template/spec/volumes").unwrap()["value"];
                let disks = &wanted("/spec/template/spec/domain/devices/disks").unwrap()["value"];
                let patch = json!({"spec": {"template": {"spec": {"volumes": volumes, "domain": {"devices": {"disks": disks}}}}}});
                cluster.call(Method::PATCH, &sim::vm_path("vm1"), patch).await.unwrap();
                let names: Vec<&str> =
                    volumes.as_array().unwrap()[1..].iter().map(|one| text(one, "/name")).collect();
                wait(&cluster, &format!("{names:?}"), |vmi, pods| (play.next)(&names, vmi, pods)).await;
            }
            ("delete", "pods") => {
                let pod = attachments(&cluster).await.remove(0);
                let path = format!("{}/{}", sim::PODS, text(&pod, "/metadata/name"));
                let failed = json!({"status": {"phase": "Failed",
                    "containerStatuses": [{"name": "hotplug-disk", "ready": false, "restartCount": 0, "image": "i", "imageID": "i",
                        "state": {"terminated": {"exitCode": 1}}}]}});
                cluster.call(Method::PATCH, &format!("{path}/status"), failed).await.unwrap();
                let uid =
                    |vmi: &Value| text(vmi, "/status/volumeStatus/0/hotplugVolume/attachPodUID").to_owned();
                wait(&cluster, "without its pod", |vmi, _| uid(vmi).is_empty()).await;
                cluster.call(Method::DELETE, &path, Value::Null).await.unwrap();
                wait(&cluster, "from another pod", |vmi, _| !uid(vmi).is_empty()).await;
            }
            _ => {}
        }
    }
    cluster.stop().await;
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = lines.lines().skip(before).collect();
    let ours = lanes(&audited(&lines.join("\n")));
    let theirs = lanes(&golden);
    for lane in play.lanes {
        let (ours, theirs) = (&ours[*lane], &theirs[*lane]);
        assert!(same(ours, theirs), "{name}: {lane}\n{ours:#?}\nrecorded: {theirs:#?}");
    }
    // What was written on the way into every state that was recorded, in the recorded order.
    if play.lanes.contains(&HANDLER) {
        let mut mine = ours[VMI_CONTROLLER].iter();
        for step in &theirs[VMI_CONTROLLER] {
            let found = mine.any(|one| one.words == step.words);
            assert!(found, "{name}: {step:?} is missing or late in {:#?}", ours[VMI_CONTROLLER]);
        }
    }
}

const ALL: &[&str] = &[PODS, VM_CONTROLLER, HANDLER];

/// A second until a pod starts, as in the recordings, and more, so that virt-controller is not slower on a busy machine.
const STARTS: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_written_as_it_was_recorded() {
    let unplug = Duration::from_millis(500);
    let timing = Timing { start_after: STARTS, plug: unplug, unplug, ..Timing::default() };
    compare(&Play { name: "e3-batch", class: "busy-check", timing, lanes: ALL, next: settled }).await;
}

/// The old pod goes when the new one runs, three seconds before that is ready (W4). Devices of the recorded node went with
/// the pod that they came from, so the guest had an I/O error and was paused; the next disk was plugged in all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_that_is_slow_to_be_ready_is_written_as_it_was_recorded() {
    let timing = Timing { start_after: STARTS, ready_after: Duration::from_secs(3), ..Timing::default() };
    compare(&Play { name: "e3-notready", class: "per-publish-device", timing, lanes: ALL, next: settled })
        .await;
}

/// Four volumes one by one, and away again, each while the last is on its way: pods that never start are thrown away for
/// the next set (W6), and on the way back one old pod after the other stays until all have been let go of. A pod takes longer
/// to start than a guest takes to let go, and not twice as long, as in the recording.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_faster_than_a_handoff_are_written_as_they_were_recorded() {
    let timing =
        Timing { start_after: Duration::from_secs(9), unplug: Duration::from_secs(6), ..Timing::default() };
    let lanes = &[
        PODS,
        VM_CONTROLLER,
        "virt-handler: d1",
        "virt-handler: d2",
        "virt-handler: d3",
        "virt-handler: d4",
    ];
    compare(&Play { name: "e3-rapid", class: "busy-check", timing, lanes, next: rapid }).await;
}

/// A failed pod is current for ever (W5): nothing is created before somebody deletes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pod_is_replaced_when_it_is_deleted_as_it_was_recorded() {
    let timing = Timing { start_after: STARTS, ..Timing::default() };
    compare(&Play { name: "e3-failedpod", class: "busy-check", timing, lanes: ALL, next: settled }).await;
}
