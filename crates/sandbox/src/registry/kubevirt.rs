//! The definitions of KubeVirt 1.9, CDI and their neighbours with names, versions, columns and
//! subresources, but without schemas: every field is kept, and only the main ones of VMs are described.
//! For the full schemas, give the sandbox the release's own manifests.

use apimachinery::tree::{Value, json};

use crate::sim::Release;

const KUBEVIRT: &str = include_str!("kubevirt.json");
const HARVESTER: &str = include_str!("harvester.json");

/// `CustomResourceDefinitions` of KubeVirt, CDI, volume snapshots and network attachments, as a release
/// brings them.
///
/// # Errors
/// When the embedded table is no JSON, which a test rules out.
pub fn definitions(release: Release) -> Result<Vec<Value>, serde_json::Error> {
    let mut all = expand(KUBEVIRT)?;
    all.retain(|definition| match definition["spec"]["group"].as_str() {
        Some("backup.kubevirt.io") => release.serves_backups(),
        Some("template.kubevirt.io") => release.serves_templates(),
        Some("plugin.kubevirt.io") => release.serves_plugins(),
        _ => true,
    });
    for definition in &mut all {
        match definition["spec"]["group"].as_str() {
            Some("export.kubevirt.io") if !release.serves_export_v1() => {
                keep_version(definition, "v1beta1");
                also_v1alpha1(definition);
            }
            Some("clone.kubevirt.io") if !release.serves_clone_v1beta1() => {
                keep_version(definition, "v1alpha1");
            }
            _ => {}
        }
    }
    Ok(all)
}

/// A definition that serves one of its versions alone.
fn keep_version(definition: &mut Value, name: &str) {
    if let Some(versions) = definition["spec"]["versions"].as_array_mut() {
        versions.retain(|version| version["name"] == name);
        for version in versions {
            version["storage"] = true.into();
        }
    }
}

/// v1alpha1 beside v1beta1, which came as a copy of it (kubevirt#11956).
fn also_v1alpha1(definition: &mut Value) {
    if let Some(versions) = definition["spec"]["versions"].as_array_mut()
        && let Some(mut copy) = versions.first().cloned()
    {
        copy["name"] = "v1alpha1".into();
        copy["storage"] = false.into();
        versions.insert(0, copy);
    }
}

/// Those of Harvester's PCI devices, which a cluster may lack.
///
/// # Errors
/// As [`definitions`].
pub fn harvester() -> Result<Vec<Value>, serde_json::Error> {
    expand(HARVESTER)
}

fn expand(table: &str) -> Result<Vec<Value>, serde_json::Error> {
    let specs: Vec<Value> = serde_json::from_str(table)?;
    Ok(specs.into_iter().map(definition).collect())
}

fn definition(mut spec: Value) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let plural = spec["names"]["plural"].as_str().unwrap_or_default();
    let described = match spec["group"].as_str() {
        Some("kubevirt.io") => super::fields::spec(plural),
        Some("plugin.kubevirt.io") => Some(plugin()),
        _ => None,
    };
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}, "spec": described.unwrap_or_else(|| open.clone()), "status": open}}});
    for version in spec["versions"].as_array_mut().into_iter().flatten() {
        version["schema"] = schema.clone();
    }
    let name = format!(
        "{}.{}",
        spec["names"]["plural"].as_str().unwrap_or_default(),
        spec["group"].as_str().unwrap_or_default()
    );
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name}, "spec": spec})
}

/// The spec of a Plugin, whose fields are counted: releases give its hooks different names, and server-side apply
/// refuses the name of another release.
fn plugin() -> Value {
    let text = json!({"type": "string"});
    let list = json!({"type": "array", "x-kubernetes-list-type": "atomic",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    json!({"type": "object", "properties": {"condition": text, "failureStrategy": text, "domainHooks": list,
        "nodeHooks": list, "mutatingAdmissionPolicies": list, "mutatingAdmissionWebhooks": list,
        "validatingAdmissionPolicies": list, "validatingAdmissionWebhooks": list}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn every_definition_can_be_served() {
        let registry = Registry::new();
        for definition in definitions(Release::default()).unwrap().iter().chain(&harvester().unwrap()) {
            registry.define(definition).unwrap();
        }
        let kinds = registry.kinds();
        let vm = kinds.find("kubevirt.io", "v1", "virtualmachines").unwrap();
        assert_eq!(vm.short_names, ["vm", "vms"]);
        assert!(vm.subresource("status").is_some());
        assert!(kinds.find("devices.harvesterhci.io", "v1beta1", "pcidevices").is_some());
    }

    #[test]
    fn older_releases_serve_what_they_had() {
        let served = |release, group, plural| {
            let all = definitions(release).unwrap();
            let found = all
                .iter()
                .find(|one| one["spec"]["group"] == group && one["spec"]["names"]["plural"] == plural);
            found.map_or(vec![], |one| {
                let versions = one["spec"]["versions"].as_array().unwrap();
                versions.iter().map(|version| version["name"].as_str().unwrap().to_owned()).collect()
            })
        };
        for (release, group, plural, versions) in [
            (Release::V1_9, "export.kubevirt.io", "virtualmachineexports", &["v1beta1", "v1"][..]),
            (Release::V1_8, "export.kubevirt.io", "virtualmachineexports", &["v1alpha1", "v1beta1"][..]),
            (Release::V1_3, "clone.kubevirt.io", "virtualmachineclones", &["v1alpha1"][..]),
            (Release::V1_7, "backup.kubevirt.io", "virtualmachinebackups", &[][..]),
            (Release::V1_8, "backup.kubevirt.io", "virtualmachinebackups", &["v1alpha1"][..]),
        ] {
            assert_eq!(served(release, group, plural), versions, "{release} {plural}");
        }
    }
}
