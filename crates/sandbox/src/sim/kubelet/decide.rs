//! What kubelet writes next about one pod (`kubelet` 1.36: `generateAPIPodStatus`,
//! `rejectPod`, `TerminatePod`).
//!
//! ```text
//!  bound ──► rejected (Failed)
//!    └─────► Pending: ContainerCreating ──► Running ◄──► Ready as its gates say
//!                                             ├──► Succeeded or Failed: the launcher exits
//!                                             └──► deleted: stop, terminated, gone
//! ```

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;

use crate::sim::json::{self, is_deleting, list, map, text, time};
use crate::sim::launcher::Domain;
use crate::sim::node::draw_text;
use crate::sim::requests::Amounts;

/// What is to be done about a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write this status.
    Patch(Value),
    /// Ask the guest to stop, and look again when it has.
    Stop,
    /// The pod is over on this node: remove the object.
    Remove,
    Nothing,
}

/// What kubelet sees of a pod.
pub struct Observation<'a> {
    pub pod: &'a Value,
    /// The domain in the pod, for launcher pods that have one.
    pub domain: Option<Domain>,
    /// Why the node cannot take the pod: reason and message.
    pub rejection: Option<(String, String)>,
    /// Its container runs, and is not ready yet.
    pub unready: bool,
    pub host_ip: &'a str,
    pub pod_ip: &'a str,
}

/// The next step.
pub fn decide(seen: &Observation<'_>, now: Timestamp) -> Step {
    let pod = seen.pod;
    let phase = text(pod, "/status/phase");
    let ended = matches!(phase, "Succeeded" | "Failed");
    if is_deleting(pod) {
        return decide_deletion(seen, ended, now);
    }
    if ended {
        return Step::Nothing;
    }
    if pod.pointer("/status/startTime").is_none() {
        return Step::Patch(match &seen.rejection {
            Some((reason, message)) => rejected(reason, message, now),
            None => creating(pod, seen.host_ip, now),
        });
    }
    if phase != "Running" {
        let status = running(pod, seen.host_ip, seen.pod_ip, now);
        return Step::Patch(if seen.unready { unready(pod, status, now) } else { status });
    }
    if seen.unready {
        return Step::Nothing;
    }
    let waits = list(pod, "/status/containerStatuses").iter().any(|one| one["ready"] == false);
    if waits && seen.domain.is_none() && json::label(pod, "kubevirt.io") == crate::sim::hotplug::ATTACHMENT {
        return Step::Patch(running(pod, seen.host_ip, seen.pod_ip, now));
    }
    if let Some(Domain::Gone { crashed }) = seen.domain {
        return Step::Patch(terminated(pod, crashed, now));
    }
    let ready = ready_condition(pod, now);
    let same = json::condition(pod, "/status/conditions", "Ready")
        .is_some_and(|have| have["status"] == ready["status"] && have.get("reason") == ready.get("reason"));
    if same {
        return Step::Nothing;
    }
    // A patch merges by type: what was said before has to be taken back.
    let mut ready = ready;
    for key in ["reason", "message"] {
        if ready.get(key).is_none() {
            ready[key] = Value::Null;
        }
    }
    Step::Patch(json!({"conditions": [ready]}))
}

fn decide_deletion(seen: &Observation<'_>, ended: bool, now: Timestamp) -> Step {
    // The deletion timestamp lies a grace period after the request: the time to be gone.
    let due = text(seen.pod, "/metadata/deletionTimestamp").parse::<Timestamp>().is_ok_and(|due| now >= due);
    match seen.domain {
        Some(Domain::Running) if !due => return Step::Stop,
        // virt-handler still has to write down how the guest ended.
        Some(Domain::Off { .. } | Domain::Moved) if !due => return Step::Nothing,
        _ => {}
    }
    if ended || text(seen.pod, "/status/phase") == "Pending" {
        return Step::Remove;
    }
    let crashed = matches!(seen.domain, Some(Domain::Gone { crashed: true } | Domain::Off { crashed: true }));
    Step::Patch(terminated(seen.pod, crashed, now))
}

/// Why a node cannot take a pod that is bound to it, by kubelet's own count.
pub fn rejection(
    requests: &Amounts,
    allocatable: &Amounts,
    used: &Amounts,
    pods: usize,
) -> Option<(String, String)> {
    let limit = allocatable.get("pods").copied().unwrap_or(0) / 1000;
    if i128::try_from(pods).unwrap_or(i128::MAX) >= limit {
        return Some((
            "OutOfpods".into(),
            format!(
                "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {pods}, capacity: {limit}"
            ),
        ));
    }
    let short = |name: &String, wanted: &i128| {
        let used = used.get(name).copied().unwrap_or(0);
        let capacity = allocatable.get(name).copied().unwrap_or(0);
        (*wanted > 0 && used + wanted > capacity).then(|| {
            let unit = if name == "cpu" { 1 } else { 1000 };
            (
                format!("OutOf{name}"),
                format!(
                    "Pod was rejected: Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                    wanted / unit,
                    used / unit,
                    capacity / unit
                ),
            )
        })
    };
    requests.iter().find_map(|(name, wanted)| short(name, wanted))
}

fn rejected(reason: &str, message: &str, now: Timestamp) -> Value {
    json!({"phase": "Failed", "reason": reason, "message": message, "startTime": time(now)})
}

fn condition(kind: &str, status: &str, now: Timestamp) -> Value {
    json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": time(now)})
}

fn because(mut condition: Value, reason: &str, message: &str) -> Value {
    condition["reason"] = reason.into();
    condition["message"] = message.into();
    condition
}

fn names(pod: &Value, pointer: &str) -> String {
    let names: Vec<&str> = list(pod, pointer).iter().map(|container| text(container, "/name")).collect();
    format!("[{}]", names.join(" "))
}

fn creating(pod: &Value, host_ip: &str, now: Timestamp) -> Value {
    let has_init = !list(pod, "/spec/initContainers").is_empty();
    let unready = format!("containers with unready status: {}", names(pod, "/spec/containers"));
    let initialized = if has_init {
        let message = format!("containers with incomplete status: {}", names(pod, "/spec/initContainers"));
        because(condition("Initialized", "False", now), "ContainersNotInitialized", &message)
    } else {
        condition("Initialized", "True", now)
    };
    let waiting = |container: &Value| {
        json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": false,
            "restartCount": 0, "started": false, "lastState": {},
            "state": {"waiting": {"reason": if has_init { "PodInitializing" } else { "ContainerCreating" }}}})
    };
    let mut status = json!({
        "phase": "Pending",
        "conditions": [
            condition("PodReadyToStartContainers", "False", now),
            initialized,
            because(condition("Ready", "False", now), "ContainersNotReady", &unready),
            because(condition("ContainersReady", "False", now), "ContainersNotReady", &unready),
        ],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": time(now),
        "containerStatuses": list(pod, "/spec/containers").iter().map(waiting).collect::<Value>(),
    });
    if has_init {
        status["initContainerStatuses"] = list(pod, "/spec/initContainers").iter().map(waiting).collect();
    }
    status
}

fn running(pod: &Value, host_ip: &str, pod_ip: &str, now: Timestamp) -> Value {
    let uid = json::uid(pod);
    let plain = |kind| {
        let mut condition = condition(kind, "True", now);
        // A strategic merge would keep what the condition said before.
        condition["reason"] = Value::Null;
        condition["message"] = Value::Null;
        condition
    };
    let statuses = |pointer: &str| -> Value {
        let init = pointer == "/spec/initContainers";
        let ends = |container: &Value| init && container["restartPolicy"] != "Always";
        list(pod, pointer).iter().map(|container| started(uid, container, ends(container), now)).collect()
    };
    let mut status = json!({
        "phase": "Running",
        "conditions": [
            plain("Initialized"),
            plain("PodReadyToStartContainers"),
            plain("ContainersReady"),
            patch_of(&ready_condition(pod, now)),
        ],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "containerStatuses": statuses("/spec/containers"),
    });
    if !list(pod, "/spec/initContainers").is_empty() {
        status["initContainerStatuses"] = statuses("/spec/initContainers");
    }
    status
}

/// The status of a pod that runs, before its probes have succeeded.
fn unready(pod: &Value, mut status: Value, now: Timestamp) -> Value {
    let message = format!("containers with unready status: {}", names(pod, "/spec/containers"));
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let kind = text(condition, "/type").to_owned();
        if matches!(kind.as_str(), "Ready" | "ContainersReady") {
            *condition = because(self::condition(&kind, "False", now), "ContainersNotReady", &message);
        }
    }
    for container in status["containerStatuses"].as_array_mut().into_iter().flatten() {
        container["ready"] = false.into();
    }
    status
}

/// A condition as a strategic patch that also clears what it no longer says.
fn patch_of(condition: &Value) -> Value {
    let mut patch = condition.clone();
    for key in ["reason", "message"] {
        if patch.get(key).is_none() {
            patch[key] = Value::Null;
        }
    }
    patch
}

/// A container that runs, or an init container that has done its work.
fn started(pod_uid: &str, container: &Value, is_init: bool, now: Timestamp) -> Value {
    let image = text(container, "/image");
    let id = container_id(pod_uid, container);
    let state = if is_init {
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": time(now), "finishedAt": time(now),
            "containerID": id}})
    } else {
        json!({"running": {"startedAt": time(now)}})
    };
    let mut status = json!({"name": container["name"], "state": state, "lastState": {}, "ready": true,
        "restartCount": 0, "image": image, "imageID": image_id(image), "containerID": id, "started": !is_init});
    if let (false, Some(requests)) = (is_init, map(container, "/resources/requests")) {
        // Only CPU and memory can be resized, so only they are reported.
        let shown: Value = requests
            .iter()
            .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Map>()
            .into();
        status["allocatedResources"] = shown;
        status["resources"] = container["resources"].clone();
    }
    status
}

/// The status of a pod whose containers have ended.
pub fn terminated(pod: &Value, crashed: bool, now: Timestamp) -> Value {
    let exit = |status: &Value| {
        let mut status = status.clone();
        if status.pointer("/state/running").is_some() {
            let code = i32::from(crashed);
            status["state"] = json!({"terminated": {"exitCode": code,
                "reason": if crashed { "Error" } else { "Completed" },
                "startedAt": text(&status, "/state/running/startedAt"), "finishedAt": time(now),
                "containerID": status["containerID"]}});
            status["ready"] = false.into();
            status["started"] = false.into();
        }
        status
    };
    let reason = if crashed { "PodFailed" } else { "PodCompleted" };
    let mut status = json!({
        "phase": if crashed { "Failed" } else { "Succeeded" },
        "conditions": [
            because(condition("Ready", "False", now), reason, ""),
            because(condition("ContainersReady", "False", now), reason, ""),
        ],
        "containerStatuses": list(pod, "/status/containerStatuses").iter().map(exit).collect::<Value>(),
    });
    if !list(pod, "/status/initContainerStatuses").is_empty() {
        status["initContainerStatuses"] =
            list(pod, "/status/initContainerStatuses").iter().map(exit).collect();
    }
    status
}

/// How a process that was really there ended.
pub fn exited(status: &mut Value, code: i32, message: &str) {
    let Some(terminated) = status.pointer_mut("/containerStatuses/0/state/terminated") else { return };
    terminated["exitCode"] = code.into();
    if !message.is_empty() {
        terminated["message"] = message.into();
    }
}

/// `Ready` as the readiness gates of a pod with running containers make it.
fn ready_condition(pod: &Value, now: Timestamp) -> Value {
    let missing: Vec<String> = list(pod, "/spec/readinessGates")
        .iter()
        .map(|gate| text(gate, "/conditionType"))
        .filter_map(|gate| match json::condition(pod, "/status/conditions", gate) {
            None => Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
            Some(condition) if condition["status"] != "True" => Some(format!(
                "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
                text(condition, "/status")
            )),
            Some(_) => None,
        })
        .collect();
    if missing.is_empty() {
        condition("Ready", "True", now)
    } else {
        because(condition("Ready", "False", now), "ReadinessGatesNotReady", &missing.join(", "))
    }
}

pub(super) fn image_id(image: &str) -> String {
    let repository = image.split('@').next().unwrap_or(image);
    let repository = repository
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .map_or(repository, |(name, _)| name);
    format!("{repository}@sha256:{}", digest(image))
}

pub(super) fn container_id(pod_uid: &str, container: &Value) -> String {
    format!("containerd://{}", digest(&format!("{pod_uid}/{}", text(container, "/name"))))
}

fn digest(text: &str) -> String {
    (0..4).map(|part| draw_text(part, text)).fold(String::new(), |hex, part| format!("{hex}{part:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: impl Into<Value>, deletion: Option<&str>) -> Value {
        let status: Value = status.into();
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "readinessGates": [{"conditionType": "gate"}],
                "initContainers": [{"name": "volumeroot", "image": "r.example/i:1"}],
                "containers": [{"name": "compute", "image": "r.example:5000/l",
                    "resources": {"requests": {"cpu": "1", "memory": "1Gi", "devices.kubevirt.io/kvm": "1"}}}],
            },
            "status": status,
        });
        if let Some(at) = deletion {
            pod["metadata"]["deletionTimestamp"] = at.into();
        }
        pod
    }

    fn step(pod: &Value, domain: Option<Domain>) -> Step {
        let seen = Observation {
            pod,
            domain,
            rejection: None,
            unready: false,
            host_ip: "198.18.0.1",
            pod_ip: "10.128.0.1",
        };
        decide(&seen, "2026-11-21T01:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_pod_goes_from_pending_to_running_to_ready() {
        let Step::Patch(status) = step(&pod(json!({"phase": "Pending"}), None), None) else { panic!() };
        assert_eq!(status["phase"], "Pending");
        assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
        let Step::Patch(status) = step(&pod(status, None), None) else { panic!() };
        assert_eq!(status["phase"], "Running");
        assert_eq!(text(&status, "/podIPs/0/ip"), "10.128.0.1");
        assert_eq!(
            status["containerStatuses"][0]["allocatedResources"],
            json!({"cpu": "1", "memory": "1Gi"})
        );
        assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
        let ready = json::condition(&status, "/conditions", "Ready").unwrap();
        assert_eq!((text(ready, "/status"), text(ready, "/reason")), ("False", "ReadinessGatesNotReady"));
        let open =
            json!({"phase": "Running", "startTime": "x", "conditions": [{"type": "gate", "status": "True"}]});
        let Step::Patch(status) = step(&pod(open, None), None) else { panic!() };
        assert_eq!(status["conditions"][0]["status"], "True");
    }

    #[test]
    fn ends_and_deletions() {
        let runs = || {
            json!({"phase": "Running", "startTime": "x", "conditions": [
            {"type": "gate", "status": "True"}, {"type": "Ready", "status": "True"}]})
        };
        let (later, past) = (Some("2026-11-21T01:00:30Z"), Some("2026-11-21T00:59:59Z"));
        let gone = |crashed| Some(Domain::Gone { crashed });
        let off = Some(Domain::Off { crashed: false });
        for (status, deletion, domain, expected) in [
            (runs(), None, Some(Domain::Running), "nothing"),
            (runs(), None, off, "nothing"),
            (runs(), None, gone(false), "Succeeded"),
            (runs(), None, gone(true), "Failed"),
            (runs(), later, Some(Domain::Running), "stop"),
            (runs(), later, off, "nothing"),
            (runs(), later, gone(false), "Succeeded"),
            (runs(), later, None, "Succeeded"),
            (runs(), past, Some(Domain::Running), "Succeeded"),
            (json!({"phase": "Succeeded"}), later, None, "remove"),
            (json!({"phase": "Pending"}), later, None, "remove"),
            (json!({"phase": "Failed"}), None, None, "nothing"),
        ] {
            let got = match step(&pod(status.clone(), deletion), domain) {
                Step::Patch(status) => text(&status, "/phase").to_owned(),
                Step::Stop => "stop".into(),
                Step::Remove => "remove".into(),
                Step::Nothing => "nothing".into(),
            };
            assert_eq!(got, expected, "{status} {deletion:?} {domain:?}");
        }
    }

    #[test]
    fn what_a_node_cannot_take_is_rejected_with_the_numbers() {
        let amounts = |cpu, memory| {
            Amounts::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory), ("pods".to_owned(), 3000)])
        };
        let (allocatable, wanted) =
            (amounts(4000, 8_000_000), |cpu| Amounts::from([("cpu".to_owned(), cpu)]));
        let used = Amounts::from([("cpu".to_owned(), 3900)]);
        assert_eq!(rejection(&wanted(100), &allocatable, &used, 0), None);
        let (reason, message) = rejection(&wanted(200), &allocatable, &used, 0).unwrap();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 200, used: 3900, capacity: 4000"
        );
        assert_eq!(rejection(&wanted(1), &allocatable, &Amounts::new(), 3).unwrap().0, "OutOfpods");
    }

    #[test]
    fn image_ids_name_the_repository() {
        for (image, repository) in [
            ("r.example/i:1", "r.example/i@"),
            ("r.example:5000/l", "r.example:5000/l@"),
            ("i@sha256:0", "i@"),
        ] {
            assert!(image_id(image).starts_with(repository), "{}", image_id(image));
        }
    }
}
