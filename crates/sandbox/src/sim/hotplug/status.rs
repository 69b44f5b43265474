//! What virt-controller writes into `status.volumeStatus` (`updateVolumeStatus`, storage.go).

use std::sync::Arc;

use apimachinery::tree::{Value, json};

use super::attachment::current;
use super::{Rules, hotplugged};
use crate::sim::json::{self, list, text};
use crate::sim::virt_controller::launcher_pod::claim_of;

/// What the controller sees.
pub struct Observation<'a> {
    pub vmi: &'a Value,
    pub launcher: &'a Value,
    pub pods: &'a [Arc<Value>],
    pub claims: &'a dyn Fn(&str) -> Option<Arc<Value>>,
    pub rules: Rules,
}

/// All entries, by name: pods are compared with *all* hotplugged volumes here, while they are made of those that are
/// ready (storage.go:238-249), so one that is not ready stalls the others.
pub fn decide(seen: &Observation<'_>) -> Vec<Value> {
    let hotplug = hotplugged(seen.vmi, seen.launcher);
    let matching = current(seen.pods, &hotplug, seen.rules).map(AsRef::as_ref);
    let mut left: Vec<&Value> = list(seen.vmi, "/status/volumeStatus").iter().collect();
    let mut all = Vec::new();
    for volume in list(seen.vmi, "/spec/volumes") {
        let name = text(volume, "/name");
        let known = left.iter().position(|status| status["name"] == name).map(|at| left.remove(at).clone());
        let mut status = known.unwrap_or_else(|| json!({"name": name, "target": ""}));
        if volume.get("memoryDump").is_some() && !status["memoryDumpVolume"].is_object() {
            status["memoryDumpVolume"] = json!({"claimName": name});
        }
        if hotplug.iter().any(|one| one["name"] == name) {
            attach(&mut status, volume, matching, seen);
        }
        if let Some(claim) = claim_of(volume).and_then(|claim| (seen.claims)(claim)) {
            status["persistentVolumeClaimInfo"] = info(&claim);
        }
        all.push(status);
    }
    // What has left the spec stays until no pod has it any more.
    for status in left {
        let holder = seen.pods.iter().find(|pod| {
            list(pod, "/spec/volumes")
                .iter()
                .any(|one| claim_of(one).is_some() && one["name"] == status["name"])
        });
        if let Some(pod) = holder {
            all.push(leaving(status, pod, seen.rules));
        }
    }
    all.sort_by(|one, other| text(one, "/name").cmp(text(other, "/name")));
    all
}

fn attach(status: &mut Value, volume: &Value, pod: Option<&Value>, seen: &Observation<'_>) {
    let phase = text(status, "/phase").to_owned();
    let Some(pod) = pod else {
        if phase != "Ready" {
            set_uid(status, "");
            let (phase, reason, message) = waiting(volume, seen);
            say(status, phase, reason, message);
        }
        return;
    };
    json::put(status, &["hotplugVolume", "attachPodName"], json::name(pod));
    let ready = match list(pod, "/status/containerStatuses") {
        [one] => one["ready"] == true,
        _ => false,
    };
    set_uid(status, if ready { json::uid(pod) } else { "" });
    if matches!(phase.as_str(), "" | "Bound" | "Pending") {
        let message = format!(
            "Created hotplug attachment pod {}, for volume {}",
            json::name(pod),
            text(volume, "/name")
        );
        say(status, "AttachedToNode", "SuccessfulCreate", message);
    }
}

fn set_uid(status: &mut Value, uid: &str) {
    if !status["hotplugVolume"].is_object() {
        status["hotplugVolume"] = json!({});
    }
    if uid.is_empty() {
        json::remove(status, &["hotplugVolume", "attachPodUID"]);
    } else {
        json::put(status, &["hotplugVolume", "attachPodUID"], uid);
    }
}

/// Sets phase, reason and message.
pub fn say(status: &mut Value, phase: &str, reason: &str, message: impl Into<String>) {
    status["phase"] = phase.into();
    status["reason"] = reason.into();
    status["message"] = message.into().into();
}

/// `getVolumePhaseMessageReason`
fn waiting(volume: &Value, seen: &Observation<'_>) -> (&'static str, &'static str, String) {
    let name = claim_of(volume).unwrap_or_default();
    let Some(claim) = (seen.claims)(name) else {
        return ("Pending", "FailedPvcNotFound", format!("PVC {name} not found"));
    };
    if text(&claim, "/status/phase") == "Bound" {
        return ("Bound", "PVCNotReady", "PVC is in phase Bound".into());
    }
    ("Pending", "PVCNotReady", format!("PVC is in phase {}", text(&claim, "/status/phase")))
}

fn leaving(status: &Value, pod: &Value, rules: Rules) -> Value {
    let mut status = status.clone();
    let held = matches!(text(&status, "/phase"), "Ready" | "MountedToPod");
    if held && rules.waits_for_unplug {
        return status;
    }
    json::put(&mut status, &["hotplugVolume", "attachPodName"], json::name(pod));
    let name = text(&status, "/name").to_owned();
    if json::is_deleting(pod) {
        let message = format!("Deleted hotplug attachment pod {}, for volume {name}", json::name(pod));
        say(&mut status, "Detaching", "SuccessfulDelete", message);
    } else if status["phase"] != "Detaching" {
        let message = format!("Detaching hotplug volume {name}");
        say(&mut status, "Detaching", "Detaching", message);
    }
    status
}

fn info(claim: &Value) -> Value {
    let mut info = json!({
        "claimName": json::name(claim),
        "accessModes": claim["spec"]["accessModes"],
        "volumeMode": text(claim, "/spec/volumeMode"),
        "requests": claim["spec"]["resources"]["requests"],
        "filesystemOverhead": "0.055",
    });
    if let Some(capacity) = claim.pointer("/status/capacity") {
        info["capacity"] = capacity.clone();
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(phase: &str) -> impl Fn(&str) -> Option<Arc<Value>> + use<> {
        let phase = phase.to_owned();
        move |name: &str| {
            Some(Arc::new(json!({"metadata": {"name": name}, "spec": {"volumeMode": "Block",
                "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": phase}})))
        }
    }

    fn volume(name: &str) -> Value {
        json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": true}})
    }

    fn pod(name: &str, volumes: &[&str], ready: bool) -> Arc<Value> {
        let mut listed = vec![json!({"name": "hotplug-disks"}), json!({"name": "token"})];
        listed.extend(volumes.iter().map(|name| volume(name)));
        Arc::new(
            json!({"metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {"volumes": listed},
            "status": {"containerStatuses": [{"ready": ready}]}}),
        )
    }

    fn entries(spec: &[&str], status: &Value, pods: &[Arc<Value>], rules: Rules) -> Vec<String> {
        let vmi = json!({"spec": {"volumes": spec.iter().map(|name| volume(name)).collect::<Value>()},
            "status": {"volumeStatus": status}});
        let claims = claim("Bound");
        let seen = Observation { vmi: &vmi, launcher: &Value::Null, pods, claims: &claims, rules };
        let word = |one: &Value| {
            let uid = text(one, "/hotplugVolume/attachPodUID");
            format!("{} {} {uid}", text(one, "/name"), text(one, "/phase")).trim_end().to_owned()
        };
        decide(&seen).iter().map(word).collect()
    }

    /// The steps of the recorded batch: no pod, a pod, a ready pod.
    #[test]
    fn a_volume_on_its_way_in() {
        let rules = Rules::MAIN;
        assert_eq!(entries(&["a"], &json!([]), &[], rules), ["a Bound"]);
        let made =
            entries(&["a"], &json!([{"name": "a", "phase": "Bound"}]), &[pod("p", &["a"], false)], rules);
        assert_eq!(made, ["a AttachedToNode"]);
        let ready = entries(
            &["a"],
            &json!([{"name": "a", "phase": "AttachedToNode"}]),
            &[pod("p", &["a"], true)],
            rules,
        );
        assert_eq!(ready, ["a AttachedToNode uid-p"]);
    }

    #[test]
    fn a_change_sets_mounted_volumes_back_and_leaves_ready_ones() {
        let status = json!([{"name": "a", "phase": "Ready", "hotplugVolume": {"attachPodUID": "uid-p"}},
            {"name": "b", "phase": "MountedToPod", "hotplugVolume": {"attachPodUID": "uid-p"}}]);
        let changed = entries(&["a", "b", "c"], &status, &[pod("p", &["a", "b"], true)], Rules::MAIN);
        assert_eq!(changed, ["a Ready uid-p", "b Bound", "c Bound"], "W7");
    }

    #[test]
    fn what_left_the_spec_stays_as_long_as_a_pod_has_it() {
        let status = |phase: &str| json!([{"name": "a", "phase": phase}]);
        let pods = [pod("p", &["a"], true)];
        assert_eq!(entries(&[], &status("Ready"), &pods, Rules::MAIN), ["a Ready"]);
        assert_eq!(entries(&[], &status("Ready"), &pods, Rules::V1_3), ["a Detaching"]);
        assert_eq!(entries(&[], &status("UnMountedFromPod"), &pods, Rules::MAIN), ["a Detaching"]);
        assert_eq!(entries(&[], &status("Detaching"), &[], Rules::MAIN), Vec::<String>::new());
    }
}
