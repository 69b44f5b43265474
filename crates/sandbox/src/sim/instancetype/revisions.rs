//! Copies of instance types and preferences in `ControllerRevisions`, made when virt-controller first sees a VM
//! (`pkg/instancetype/revision`, v1.9): whoever changes the originals afterwards changes nothing for it. The VM names
//! its copies in `status.{instancetype,preference}Ref` from v1.5, before in `spec.{instancetype,preference}.revisionName`.

use std::sync::Arc;

use apimachinery::tree::{Value, json};

use super::{Error, Finder, IN_VM, Matcher, OBJECT_NAME, lay_over};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, text};
use crate::sim::resource::{CONTROLLER_REVISIONS, VMS};
use crate::sim::write::{Op, Write, Writer};

/// What became of a VM that names an instance type or a preference.
#[derive(Debug, PartialEq)]
pub enum Synced {
    Nothing,
    /// The VM was written.
    Wrote,
}

/// Sees to it that a VM names copies of what it means, or is expanded where the cluster wants that
/// (`instancetype.referencePolicy`).
///
/// # Errors
/// [`Error`]
pub async fn sync(
    writer: &Writer,
    finder: Finder<'_>,
    vm: &Value,
    config: &ClusterConfig,
) -> Result<Synced, Error> {
    for matcher in Matcher::BOTH {
        finder.spec(matcher, vm).await?;
    }
    match config.reference_policy() {
        policy @ ("expand" | "expandAll") => {
            let kept = policy == "expand" && Matcher::BOTH.iter().any(|one| taken(*one, vm).is_some());
            if kept { Ok(Synced::Nothing) } else { expand(writer, finder, vm, config).await }
        }
        _ => store(writer, finder, vm, config).await.map_err(stored),
    }
}

/// What of a store's failure reaches the VM; silence stays what it is.
fn stored(error: Error) -> Error {
    if error.is_silence() {
        return error;
    }
    Error::Store(format!(
        "error encountered while storing instancetype.kubevirt.io controllerRevisions: {error}"
    ))
}

/// The revision that a VM's status names.
pub fn taken(matcher: Matcher, vm: &Value) -> Option<&str> {
    let name = text(&vm["status"][matcher.status_key()], "/controllerRevisionRef/name");
    (!name.is_empty()).then_some(name)
}

/// The VM's spec as its own revision keeps it: with the names of the copies that its status has (`patchVMRevision`).
pub fn recorded(vm: &Value) -> Value {
    let mut spec = vm["spec"].clone();
    for matcher in Matcher::BOTH.into_iter().filter(|matcher| matcher.is_in(vm)) {
        if let Some(name) = taken(matcher, vm) {
            spec[matcher.key()]["revisionName"] = name.into();
        }
    }
    spec
}

async fn store(
    writer: &Writer,
    finder: Finder<'_>,
    vm: &Value,
    config: &ClusterConfig,
) -> Result<Synced, Error> {
    let mut patch = Vec::new();
    for matcher in Matcher::BOTH.into_iter().filter(|matcher| matcher.is_in(vm)) {
        if config.release.keeps_instancetypes_in_status() {
            let old = vm.pointer(&format!("/status/{}", matcher.status_key()));
            let mut reference = reference(&vm["spec"][matcher.key()], old);
            if reference.get("controllerRevisionRef").is_none() {
                let name = create(writer, finder, matcher, vm).await?;
                reference["controllerRevisionRef"] = json!({"name": name});
            }
            if old != Some(&reference) {
                let path = format!("/status/{}", matcher.status_key());
                patch.push(json!({"op": "add", "path": path, "value": reference}));
            }
        } else if text(&vm["spec"][matcher.key()], "/revisionName").is_empty() {
            let name = create(writer, finder, matcher, vm).await?;
            let path = format!("/spec/{}/revisionName", matcher.key());
            patch.push(json!({"op": "test", "path": path, "value": null}));
            patch.push(json!({"op": "add", "path": path, "value": name}));
        }
    }
    if patch.is_empty() {
        return Ok(Synced::Nothing);
    }
    let part = if config.release.keeps_instancetypes_in_status() { "status" } else { "" };
    let write = Write::to(&VMS, vm, part, Op::JsonPatch(patch.into()));
    writer.write(finder.who, &write).await.map_err(|error| Error::Find(Matcher::Instancetype, error))?;
    Ok(Synced::Wrote)
}

/// The status of a matcher; without a revision where one has to be made (`syncStatusWithMatcher`).
fn reference(matcher: &Value, old: Option<&Value>) -> Value {
    let mut reference = old.filter(|old| old.is_object()).cloned().unwrap_or_else(|| json!({}));
    let mut moved = false;
    for key in ["name", "kind", "inferFromVolume"] {
        let wanted = text(matcher, &format!("/{key}"));
        if !wanted.is_empty() && reference[key] != wanted {
            reference[key] = wanted.into();
            moved = true;
        } else if reference[key].is_null() {
            json::remove(&mut reference, &[key]);
        }
    }
    if moved {
        json::remove(&mut reference, &["controllerRevisionRef"]);
    }
    if let Some(policy) = matcher.get("inferFromVolumeFailurePolicy") {
        reference["inferFromVolumeFailurePolicy"] = policy.clone();
    }
    let named = text(matcher, "/revisionName");
    if !named.is_empty() && text(&reference, "/controllerRevisionRef/name") != named {
        reference["controllerRevisionRef"] = json!({"name": named});
    }
    reference
}

/// Makes the revision of what a VM names, unless it is there; its name.
async fn create(writer: &Writer, finder: Finder<'_>, matcher: Matcher, vm: &Value) -> Result<String, Error> {
    let object = finder.live(matcher, vm).await?;
    if matcher == Matcher::Instancetype {
        // It may have changed since the VM was admitted.
        lay_over(&mut vm.clone(), object.get("spec"), None, IN_VM)?;
    }
    let revision = revision_of(vm, &object);
    let name = json::name(&revision).to_owned();
    let write = Write::create(&CONTROLLER_REVISIONS, revision);
    match writer.write(finder.who, &write).await {
        Ok(_) => Ok(name),
        Err(error) if error.code() == 409 => {
            let there = finder.revision(matcher, vm, &name).await?;
            if there["data"]["spec"] == object["spec"] {
                Ok(name)
            } else {
                Err(Error::Store(format!("found existing ControllerRevision with unexpected data: {name}")))
            }
        }
        Err(error) if error.code() == 0 => Err(Error::Find(matcher, error)),
        Err(error) => Err(Error::Store(format!("failed to create ControllerRevision: {}", error.message()))),
    }
}

/// The revision that holds an object for a VM (`CreateControllerRevision`).
fn revision_of(vm: &Value, object: &Value) -> Value {
    let version = text(object, "/apiVersion").rsplit('/').next().unwrap_or_default();
    let generation = json::integer(object, "/metadata/generation");
    let (name, uid) = (json::name(object), json::uid(object));
    let mut data = object.clone();
    for key in ["labels", "annotations", "finalizers", "ownerReferences", "managedFields"] {
        json::remove(&mut data, &["metadata", key]);
    }
    json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 0,
        "metadata": {
            "name": format!("{}-{name}-{version}-{uid}-{generation}", json::name(vm)),
            "namespace": json::namespace(vm),
            "labels": {
                "instancetype.kubevirt.io/object-generation": generation.to_string(),
                "instancetype.kubevirt.io/object-kind": object["kind"],
                (OBJECT_NAME): name,
                "instancetype.kubevirt.io/object-uid": uid,
                "instancetype.kubevirt.io/object-version": version,
            },
            "ownerReferences": [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": json::name(vm),
                "uid": json::uid(vm), "controller": true, "blockOwnerDeletion": true}],
        },
        "data": data})
}

/// Writes into the VM what it means, and drops the copies (`handleExpand`).
async fn expand(
    writer: &Writer,
    finder: Finder<'_>,
    vm: &Value,
    config: &ClusterConfig,
) -> Result<Synced, Error> {
    let expanded = finder.expand(vm, config).await?;
    let failed = |doing: &str, error: crate::sim::client::ClientError| match error.code() {
        0 => Error::Find(Matcher::Instancetype, error),
        _ => Error::Store(format!("{doing}: {}", error.message())),
    };
    let write = Write::to(&VMS, vm, "", Op::Update(expanded.clone()));
    let written = writer
        .write(finder.who, &write)
        .await
        .map_err(|error| failed("error encountered when trying to update expanded VirtualMachine", error))?;
    if let Some(status) = expanded.get("status") {
        let mut written = Arc::unwrap_or_clone(written);
        written["status"] = status.clone();
        let write = Write::to(&VMS, &written, "status", Op::Update(written.clone()));
        writer.write(finder.who, &write).await.map_err(|error| {
            failed("error encountered when trying to update expanded VirtualMachine Status", error)
        })?;
    }
    for name in Matcher::BOTH.into_iter().filter_map(|matcher| taken(matcher, vm)) {
        let revision = json!({"metadata": {"name": name, "namespace": json::namespace(vm)}});
        let write = Write::to(&CONTROLLER_REVISIONS, &revision, "", Op::Delete(Value::Null));
        writer.write(finder.who, &write).await.map_err(|error| {
            let after = format!(
                "error encountered cleaning controllerRevision {name} after successfully expanding VirtualMachine {}",
                json::name(vm)
            );
            failed(&after, error)
        })?;
    }
    Ok(Synced::Wrote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matcher_that_means_something_else_gets_another_revision() {
        let old = json!({"name": "small", "kind": "K", "controllerRevisionRef": {"name": "r1"}});
        for (matcher, expected) in [
            (json!({"name": "small", "kind": "K"}), old.clone()),
            (json!({"name": "big", "kind": "K"}), json!({"name": "big", "kind": "K"})),
            (
                json!({"name": "small", "revisionName": "r2"}),
                json!({"name": "small", "kind": "K", "controllerRevisionRef": {"name": "r2"}}),
            ),
            (
                json!({"name": "small", "inferFromVolumeFailurePolicy": "Ignore"}),
                json!({"name": "small", "kind": "K", "inferFromVolumeFailurePolicy": "Ignore",
                    "controllerRevisionRef": {"name": "r1"}}),
            ),
        ] {
            assert_eq!(reference(&matcher, Some(&old)), expected, "{matcher}");
        }
        assert_eq!(reference(&json!({"name": "small"}), None), json!({"name": "small"}));
    }

    #[test]
    fn a_revision_is_named_after_vm_and_object_and_holds_no_more_than_that() {
        let vm = json!({"metadata": {"name": "web", "namespace": "n", "uid": "v"}});
        let object = json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachineClusterInstancetype",
            "metadata": {"name": "small", "uid": "u", "generation": 2, "labels": {"a": "b"}, "managedFields": []},
            "spec": {"cpu": {"guest": 1}}});
        let revision = revision_of(&vm, &object);
        assert_eq!(json::name(&revision), "web-small-v1beta1-u-2");
        assert_eq!(json::label(&revision, "instancetype.kubevirt.io/object-generation"), "2");
        assert_eq!(json::controller_uid(&revision), "v");
        assert_eq!(revision["data"]["metadata"], json!({"name": "small", "uid": "u", "generation": 2}));
        assert_eq!(revision["data"]["spec"], object["spec"]);
    }
}
