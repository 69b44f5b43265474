//! The attachment pod (`RenderHotplugAttachmentPodTemplate`, template.go:1078-1214).

use apimachinery::tree::{Value, json};

use super::{ATTACHMENT, Rules, entry};
use crate::sim::json::{self, text};
use crate::sim::resource::PODS;
use crate::sim::virt_controller::launcher_pod::claim_of;
use crate::sim::virt_controller::migration::decide::JOB_LABEL;

/// A volume that goes into an attachment pod.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Of the VMI's spec.
    pub volume: &'a Value,
    pub claim: &'a Value,
}

/// The pod that holds these volumes for a launcher pod. A migration's target mounts all of them; otherwise a
/// filesystem volume that the launcher has already is only listed (`skipMount`, since 9313f1c263).
pub fn render(
    vmi: &Value,
    launcher: &Value,
    contents: &[Content<'_>],
    migration: Option<&str>,
    rules: Rules,
) -> Value {
    let mut volumes = vec![json!({"name": "hotplug-disks", "emptyDir": {}})];
    let mut mounts =
        vec![json!({"name": "hotplug-disks", "mountPath": "/path", "mountPropagation": "HostToContainer"})];
    let mut devices = Vec::new();
    for Content { volume, claim } in contents {
        let name = text(volume, "/name");
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": claim_of(volume)}}));
        let had =
            entry(vmi, name).is_some_and(|status| matches!(text(status, "/phase"), "Ready" | "MountedToPod"));
        if text(claim, "/spec/volumeMode") == "Block" {
            devices.push(json!({"name": name, "devicePath": format!("/path/{name}/{}", json::uid(claim))}));
        } else if !had || migration.is_some() {
            mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
        }
    }
    let mut container = json!({
        "name": ATTACHMENT,
        "image": image(launcher),
        "command": ["/bin/sh", "-c", "/usr/bin/container-disk --copy-path /path/hp"],
        "resources": {"limits": {"cpu": "100m", "memory": "80M"}, "requests": {"cpu": "10m", "memory": "2M"}},
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": true, "runAsUser": 107, "seLinuxOptions": {"level": "s0"},
            "seccompProfile": {"type": "RuntimeDefault"}},
    });
    if !devices.is_empty() {
        container["volumeDevices"] = devices.into();
    }
    let mut labels = json!({"kubevirt.io": ATTACHMENT});
    if let Some(migration) = migration {
        labels[JOB_LABEL] = migration.into();
    }
    let mut metadata = json!({
        "generateName": "hp-volume-",
        "namespace": json::namespace(vmi),
        "labels": labels,
        "ownerReferences": [{"apiVersion": PODS.api_version(), "kind": PODS.kind, "name": json::name(launcher),
            "uid": json::uid(launcher), "controller": true, "blockOwnerDeletion": true}],
    });
    if rules.names_owner {
        metadata["annotations"] = json!({"kubevirt.io/owner-vmi-name": json::name(vmi),
            "kubevirt.io/owner-vmi-uid": json::uid(vmi)});
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In",
                    "values": [text(launcher, "/spec/nodeName")]}]}]}}},
            "containers": [container],
            "terminationGracePeriodSeconds": 0,
            "tolerations": tolerations(launcher),
            "volumes": volumes,
        },
    })
}

/// The annotation of pods that only make somebody's first consumer of a claim, and go when it is bound.
pub const TEMPORARY: &str = "kubevirt.io/ephemeral-provisioning";

/// Whether a pod is there to get a claim bound and for nothing else.
pub fn is_temporary(pod: &Value) -> bool {
    json::annotation(pod, TEMPORARY).is_some()
}

/// The pod that makes a launcher's node the first consumer of a claim that CDI is to fill then
/// (`RenderHotplugAttachmentTriggerPodTemplate`, template.go:1216-1330). It is no attachment pod, but counts as one.
pub fn render_trigger(vmi: &Value, launcher: &Value, content: Content<'_>, rules: Rules) -> Value {
    let mut pod = render(vmi, launcher, &[], None, rules);
    let name = text(content.volume, "/name");
    let container = &mut pod["spec"]["containers"][0];
    container["command"] = json!(["/bin/bash", "-c", "exit", "0"]);
    let is_block = text(content.claim, "/spec/volumeMode") == "Block";
    if is_block {
        container["volumeDevices"] = json!([{"name": name, "devicePath": "/dev/hotplugblockdevice"}]);
    } else if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        mounts.push(json!({"name": name, "mountPath": "/pvc"}));
    }
    json::put(&mut pod, &["metadata", "annotations", TEMPORARY], "true");
    let spec = &mut pod["spec"];
    if is_block {
        spec["securityContext"] = json!({"runAsUser": 0});
    }
    spec["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": launcher["metadata"]["labels"]}, "topologyKey": "kubernetes.io/hostname"}]}});
    spec["tolerations"] = launcher.pointer("/spec/tolerations").cloned().unwrap_or_else(|| json!([]));
    spec["volumes"] = json!([
        {"name": name, "persistentVolumeClaim": {"claimName": json::name(content.claim)}},
        {"name": "hotplug-disks", "emptyDir": {}}]);
    pod
}

/// The image of the launcher, which has the program that an attachment pod runs.
fn image(launcher: &Value) -> &str {
    json::list(launcher, "/spec/containers")
        .iter()
        .find(|one| one["name"] == "compute")
        .map_or("", |one| text(one, "/image"))
}

/// Those of the launcher, and pressure and a cordon of the node (#14661, template.go:1084).
fn tolerations(launcher: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = ["disk-pressure", "memory-pressure", "network-unavailable", "pid-pressure", "unschedulable"]
        .iter()
        .map(|key| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoSchedule"}))
        .collect();
    for toleration in json::list(launcher, "/spec/tolerations") {
        if !all.contains(toleration) {
            all.push(toleration.clone());
        }
    }
    all
}

/// Whether a pod has exactly these volumes, counted as KubeVirt counts them: it has two more, for its directory and
/// its account's token (volume-hotplug.go:411-426).
pub fn matches(pod: &Value, volumes: &[&Value]) -> bool {
    let listed = json::list(pod, "/spec/volumes");
    listed.len() == volumes.len() + 2
        && volumes.iter().all(|volume| listed.iter().any(|one| one["name"] == volume["name"]))
}

/// Volumes that a pod's containers use, with their claims: a kubelet does nothing about one that is only listed.
pub fn used_claims(pod: &Value) -> Vec<(&str, &str)> {
    let used = |name: &str| {
        json::list(pod, "/spec/containers").iter().any(|container| {
            ["/volumeDevices", "/volumeMounts"]
                .iter()
                .any(|kind| json::list(container, kind).iter().any(|one| one["name"] == name))
        })
    };
    json::list(pod, "/spec/volumes")
        .iter()
        .filter_map(|volume| Some((text(volume, "/name"), claim_of(volume)?)))
        .filter(|(name, _)| used(name))
        .collect()
}
