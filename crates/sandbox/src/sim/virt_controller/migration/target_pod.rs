//! The pod that a guest moves into (`RenderMigrationManifest`, `createTargetPod`, v1.9): a launcher pod
//! that keeps away from the source's node and needs a CPU that the guest can run on.

use apimachinery::tree::{Map, Value, json};

use super::decide::JOB_LABEL;
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, list, map, slot, text};
use crate::sim::virt_controller::launcher_pod;
use crate::sim::virt_controller::vm_status::SyncError;

/// What the containers that pull container disks have their program from.
const LAUNCHER_VOLUME: &str = "launcher-volume";
const VENDOR: &str = "cpu-vendor.node.kubevirt.io/";
const HOST_MODEL: &str = "host-model-cpu.node.kubevirt.io/";
const MODEL_MIGRATION: &str = "cpu-model-migration.node.kubevirt.io/";
const FEATURE: &str = "cpu-feature.node.kubevirt.io/";
const REQUIRED_FEATURE: &str = "host-model-required-features.node.kubevirt.io/";
const MACHINE: &str = "machine-type.node.kubevirt.io/";

/// The pod, or why there can be none.
pub fn render(
    migration: &Value,
    vmi: &Value,
    source: &Value,
    node: Option<&Value>,
    config: &ClusterConfig,
) -> Result<Value, SyncError> {
    let mut pod = launcher_pod::render(vmi, config)?;
    json::put(&mut pod, &["metadata", "labels", JOB_LABEL], json::uid(migration));
    json::put(&mut pod, &["metadata", "annotations", "kubevirt.io/migrationJobName"], json::name(migration));
    let term = json!({"labelSelector": {"matchLabels": {"kubevirt.io/created-by": json::uid(vmi)}},
        "topologyKey": "kubernetes.io/hostname"});
    let terms = slot(
        &mut pod,
        &["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"],
    );
    match terms {
        Value::Array(terms) => terms.push(term),
        other => *other = json!([term]),
    }
    let mut selector = map(migration, "/spec/addedNodeSelector").cloned().unwrap_or_default();
    // What the VMI wants itself wins over what the migration adds.
    selector.extend(map(&pod, "/spec/nodeSelector").cloned().unwrap_or_default());
    machine(&mut selector, vmi);
    let labels = node.and_then(|node| map(node, "/metadata/labels"));
    if text(vmi, "/spec/domain/cpu/model") == "host-model" {
        selector.extend(
            host_model(map(source, "/spec/nodeSelector"), labels)
                .map_err(|message| SyncError { reason: "FailedCreate", message })?,
        );
    }
    if !selector.keys().any(|key| key.starts_with(VENDOR))
        && let Some(vendor) = labels.and_then(|labels| labels.keys().find(|key| key.starts_with(VENDOR)))
    {
        selector.insert(vendor.clone(), "true".into());
    }
    pod["spec"]["nodeSelector"] = selector.into();
    pin_images(&mut pod, source);
    Ok(pod)
}

/// Container disks are the very images that the source has, by digest: no container has to pull them to learn it
/// (`ExtractImageIDsFromSourcePod`, `shouldAddLauncherBinaryVolume`).
fn pin_images(pod: &mut Value, source: &Value) {
    let statuses = ["/status/containerStatuses", "/status/initContainerStatuses"];
    let digest = |name: &str| {
        let known = list(source, "/spec/volumes").iter().find(|one| text(one, "/name") == name);
        let known = known.map_or("", |one| text(one, "/image/reference"));
        let container = format!("volume{name}");
        let mut all = statuses.iter().flat_map(|pointer| list(source, pointer));
        let pulled = all.find(|one| text(one, "/name") == container).map_or("", |one| text(one, "/imageID"));
        [pulled, known].iter().find_map(|id| id.split_once("@sha256:")).map(|(_, digest)| digest.to_owned())
    };
    let mut pinned = Vec::new();
    let mut all = true;
    for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        let name = text(volume, "/name").to_owned();
        let reference = text(volume, "/image/reference");
        if reference.is_empty() || name == LAUNCHER_VOLUME {
            continue;
        }
        let Some(digest) = digest(&name) else {
            all = false;
            continue;
        };
        let repository = reference.split('@').next().unwrap_or(reference);
        let tag = repository.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
        let repository = tag.map_or(repository, |(repository, _)| repository);
        volume["image"]["reference"] = format!("{repository}@sha256:{digest}").into();
        pinned.push(format!("volume{name}"));
    }
    if pinned.is_empty() {
        return;
    }
    if let Some(containers) = pod["spec"]["initContainers"].as_array_mut() {
        containers.retain(|one| !pinned.iter().any(|name| one["name"] == name.as_str()));
    }
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut().filter(|_| all) {
        volumes.retain(|one| one["name"] != LAUNCHER_VOLUME);
    }
}

/// The guest goes on with the machine that it runs on, not with what an alias means today.
fn machine(selector: &mut Map, vmi: &Value) {
    let machine = text(vmi, "/status/machine/type");
    if machine.is_empty() {
        return;
    }
    selector.retain(|key, _| !key.starts_with(MACHINE));
    selector.set(format!("{MACHINE}{machine}"), "true");
}

/// What a node must have so that a guest with the source's CPU runs there: copied from the node the
/// first time, and from pod to pod afterwards (`prepareNodeSelectorForHostCpuModel`).
fn host_model(source: Option<&Map>, labels: Option<&Map>) -> Result<Map, String> {
    let inherited: Map = source
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.contains(FEATURE) || key.contains(MODEL_MIGRATION))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    let mut found = Map::new();
    let mut model = None;
    for (key, value) in labels.into_iter().flatten() {
        if let Some(name) = key.strip_prefix(HOST_MODEL) {
            model = Some((format!("{MODEL_MIGRATION}{name}"), value.clone()));
        }
        if let Some(feature) = key.strip_prefix(REQUIRED_FEATURE) {
            found.set(format!("{FEATURE}{feature}"), value.clone());
        }
    }
    let (key, value) = model.ok_or_else(|| {
        format!("unable to locate host cpu model, does not contain label \"{HOST_MODEL}\" with information")
    })?;
    found.set(key, value);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_the_images_of_the_source_by_digest() {
        let vmi = json!({"metadata": {"name": "v", "namespace": "n", "uid": "vmi-uid"},
            "spec": {"domain": {}, "volumes": [{"name": "root", "containerDisk": {"image": "r.example:5/fedora:41"}}]}});
        let (migration, config) = (json!({"metadata": {"name": "m"}}), ClusterConfig::of(&Value::Null));
        let mut source = launcher_pod::render(&vmi, &config).unwrap();
        let image = |pod: &Value| {
            let volumes = list(pod, "/spec/volumes").iter();
            volumes
                .clone()
                .find(|one| one["name"] == "root")
                .map(|one| text(one, "/image/reference").to_owned())
        };
        let pulls =
            |pod: &Value| list(pod, "/spec/initContainers").iter().any(|one| one["name"] == "volumeroot");
        let unknown = render(&migration, &vmi, &source, None, &config).unwrap();
        assert_eq!((image(&unknown).as_deref(), pulls(&unknown)), (Some("r.example:5/fedora:41"), true));
        source["status"]["initContainerStatuses"] =
            json!([{"name": "volumeroot", "imageID": "r.example:5/fedora@sha256:ab"}]);
        let first = render(&migration, &vmi, &source, None, &config).unwrap();
        let pinned = (Some("r.example:5/fedora@sha256:ab"), false);
        assert_eq!((image(&first).as_deref(), pulls(&first)), pinned);
        assert!(!list(&first, "/spec/volumes").iter().any(|one| one["name"] == LAUNCHER_VOLUME));
        // The next one takes it from the first.
        let second = render(&migration, &vmi, &first, None, &config).unwrap();
        assert_eq!((image(&second).as_deref(), pulls(&second)), pinned);
    }

    #[test]
    fn a_target_keeps_away_from_the_source_and_needs_its_cpu() {
        let vmi = json!({"metadata": {"name": "v", "namespace": "n", "uid": "vmi-uid"},
            "spec": {"domain": {"cpu": {"model": "host-model"}, "machine": {"type": "q35"}}},
            "status": {"machine": {"type": "pc-q35-rhel9.6.0"}}});
        let migration = json!({"metadata": {"name": "m", "uid": "m-uid"},
            "spec": {"addedNodeSelector": {"zone": "b", "kubevirt.io/schedulable": "never"}}});
        let node = json!({"metadata": {"labels": {"host-model-cpu.node.kubevirt.io/Skylake": "true",
            "cpu-vendor.node.kubevirt.io/Intel": "true", "host-model-required-features.node.kubevirt.io/vmx": "true"}}});
        let source = json!({"spec": {"nodeSelector": {}}});
        let pod = render(&migration, &vmi, &source, Some(&node), &ClusterConfig::of(&Value::Null)).unwrap();
        assert_eq!(pod["metadata"]["labels"][JOB_LABEL], "m-uid");
        assert_eq!(pod["metadata"]["annotations"]["kubevirt.io/migrationJobName"], "m");
        assert_eq!(
            pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"],
            json!({"matchLabels": {"kubevirt.io/created-by": "vmi-uid"}})
        );
        assert_eq!(
            pod["spec"]["nodeSelector"],
            json!({"zone": "b", "kubevirt.io/schedulable": "true", "cpu-vendor.node.kubevirt.io/Intel": "true",
                "cpu-feature.node.kubevirt.io/vmx": "true", "cpu-model-migration.node.kubevirt.io/Skylake": "true",
                "machine-type.node.kubevirt.io/pc-q35-rhel9.6.0": "true"})
        );
        // The second time the first pod's selector counts, whatever the node is.
        let other = json!({"metadata": {"labels": {"host-model-cpu.node.kubevirt.io/Cascadelake": "true"}}});
        let again = render(&migration, &vmi, &pod, Some(&other), &ClusterConfig::of(&Value::Null)).unwrap();
        assert!(
            again["spec"]["nodeSelector"].get("cpu-model-migration.node.kubevirt.io/Cascadelake").is_none()
        );
        assert!(render(&migration, &vmi, &source, None, &ClusterConfig::of(&Value::Null)).is_err());
    }
}
