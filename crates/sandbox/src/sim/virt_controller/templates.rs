//! Templates made from VMs (`virt-template/internal/controller`, v0.2).
//!
//! ```text
//!  request ──snapshot of the VM──► its volumes as DataVolumes ──Succeeded──► template, which owns them ──► Ready
//!              └ not possible: Progressing and Ready False                      └ the snapshot goes
//! ```

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Caches, PassError};
use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{DATA_VOLUMES, SNAPSHOTS, TEMPLATE_REQUESTS, TEMPLATES};
use crate::sim::write::{Op, Write, Writer};

const WORKERS: usize = 2;
/// On what is made for a request.
const REQUEST_UID: &str = "template.kubevirt.io/RequestUID";

/// The controller.
pub struct Templates {
    who: Identity,
    writer: Writer,
    caches: Caches,
    queue: Queue,
}

/// Where a request stands.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Standing {
    /// It goes on; what it waits for.
    Going(String),
    /// It cannot be.
    Failed(String),
    /// The template is there.
    Made,
}

impl Templates {
    /// Starts it.
    pub fn start(writer: Writer, caches: &Caches, stop: &CancellationToken) {
        let templates = Arc::new(Self {
            who: Identity::template_controller(),
            writer,
            caches: caches.clone(),
            queue: Queue::default(),
        });
        let me = templates.clone();
        caches.template_requests.on_change(move |change| me.queue.add(change.key));
        for cache in [&caches.snapshots, &caches.storage.data_volumes] {
            let me = templates.clone();
            cache.on_change(move |change| {
                let object = change.object();
                let owners = list(object, "/metadata/ownerReferences");
                if let Some(owner) = owners.iter().find(|one| one["kind"] == TEMPLATE_REQUESTS.kind) {
                    me.queue.add(&json::join_key(json::namespace(object), text(owner, "/name")));
                }
            });
        }
        let queue = templates.queue.clone();
        queue.run("vmtemplaterequest", WORKERS, stop, move |key| {
            let templates = templates.clone();
            async move { templates.reconcile(&key).await }
        });
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(request) = self.caches.template_requests.get(key) else { return Ok(None) };
        if json::is_deleting(&request) || is_over(&request) {
            return Ok(None);
        }
        let standing = self.go_on(&request).await?;
        let now = json::time(self.writer.client.now());
        let mut new = request.as_ref().clone();
        new["status"] = status(&request, &standing, &now);
        if new.get("status") != request.get("status") {
            let write = Write::to(&TEMPLATE_REQUESTS, &request, "status", Op::Update(new));
            self.writer.write(&self.who, &write).await?;
        }
        Ok(None)
    }

    async fn go_on(&self, request: &Value) -> Result<Standing, PassError> {
        let (namespace, name) = (
            text(request, "/spec/virtualMachineRef/namespace"),
            text(request, "/spec/virtualMachineRef/name"),
        );
        if self.caches.vms.get(&json::join_key(namespace, name)).is_none() {
            return Ok(Standing::Failed(format!("VirtualMachine {namespace}/{name} not found")));
        }
        let snapshot_name = format!("vmtr-{}", json::uid(request));
        let key = json::join_key(namespace, &snapshot_name);
        let Some(snapshot) = self.caches.snapshots.get(&key) else {
            let snapshot = json!({"apiVersion": SNAPSHOTS.api_version(), "kind": SNAPSHOTS.kind,
                "metadata": {"name": snapshot_name, "namespace": namespace, "labels": label(request),
                    "ownerReferences": owners(namespace, request)},
                "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": name}}});
            self.create(&SNAPSHOTS, snapshot).await?;
            return Ok(Standing::Going("Waiting for the snapshot".into()));
        };
        if text(&snapshot, "/status/phase") == "Failed" {
            let why = text(&snapshot, "/status/error/message");
            return Ok(Standing::Failed(format!("the snapshot failed: {why}")));
        }
        let content = text(&snapshot, "/status/virtualMachineSnapshotContentName");
        let content = self.caches.contents.get(&json::join_key(namespace, content));
        let ready = snapshot.pointer("/status/readyToUse") == Some(&Value::Bool(true));
        let Some(content) = content.filter(|_| ready) else {
            return Ok(Standing::Going("Waiting for the snapshot".into()));
        };
        let template = template_name(request);
        let volumes = volumes(&content, template, json::namespace(request), namespace);
        for (_, volume) in &volumes {
            let key = json::key(volume);
            match self.caches.storage.data_volumes.get(&key) {
                None => {
                    let mut volume = volume.clone();
                    volume["metadata"]["labels"] = label(request);
                    volume["metadata"]["ownerReferences"] = owners(json::namespace(&volume), request);
                    self.create(&DATA_VOLUMES, volume).await?;
                    return Ok(Standing::Going(format!("Waiting for DataVolume {key}")));
                }
                Some(there) => match text(&there, "/status/phase") {
                    "Succeeded" => {}
                    "Failed" => return Ok(Standing::Failed(format!("DataVolume {key} failed"))),
                    _ => return Ok(Standing::Going(format!("Waiting for DataVolume {key}"))),
                },
            }
        }
        let made = self.create(&TEMPLATES, object(request, &content, &volumes)).await?;
        let owner = json!([{"apiVersion": TEMPLATES.api_version(), "kind": TEMPLATES.kind, "name": template,
            "uid": json::uid(&made), "controller": true, "blockOwnerDeletion": true}]);
        for (_, volume) in &volumes {
            let patch = json!({"metadata": {"ownerReferences": owner}});
            self.writer
                .write(&self.who, &Write::to(&DATA_VOLUMES, volume, "", Op::MergePatch(patch)))
                .await?;
        }
        self.writer.write(&self.who, &Write::to(&SNAPSHOTS, &snapshot, "", Op::Delete(Value::Null))).await?;
        Ok(Standing::Made)
    }

    /// Creates an object, or reads the one that is there from an earlier pass.
    async fn create(
        &self,
        resource: &'static crate::sim::resource::Resource,
        object: Value,
    ) -> Result<Value, ClientError> {
        let path = resource.path(json::namespace(&object), json::name(&object), "");
        match self.writer.write(&self.who, &Write::create(resource, object)).await {
            Err(error) if error.code() == 409 => self.writer.client.get(Some(&self.who), &path).await,
            other => other.map(Arc::unwrap_or_clone),
        }
    }
}

fn label(request: &Value) -> Value {
    json!({REQUEST_UID: json::uid(request)})
}

/// An owner has to be in the same namespace.
fn owners(namespace: &str, request: &Value) -> Value {
    if namespace != json::namespace(request) {
        return json!([]);
    }
    json!([{"apiVersion": TEMPLATE_REQUESTS.api_version(), "kind": TEMPLATE_REQUESTS.kind,
        "name": json::name(request), "uid": json::uid(request), "controller": true, "blockOwnerDeletion": true}])
}

fn template_name(request: &Value) -> &str {
    match text(request, "/spec/templateName") {
        "" => json::name(request),
        name => name,
    }
}

/// The volumes of a snapshot as `DataVolumes` of the template: the volume's name, and the object.
fn volumes(content: &Value, template: &str, namespace: &str, source: &str) -> Vec<(String, Value)> {
    let backups = list(content, "/spec/volumeBackups").iter();
    backups
        .filter(|backup| !text(backup, "/volumeSnapshotName").is_empty())
        .map(|backup| {
            let claim = &backup["persistentVolumeClaim"]["spec"];
            let mut storage = json!({"resources": claim["resources"]});
            for field in ["accessModes", "storageClassName", "volumeMode"] {
                if !claim[field].is_null() {
                    storage[field] = claim[field].clone();
                }
            }
            let volume = text(backup, "/volumeName").to_owned();
            let object = json!({"apiVersion": DATA_VOLUMES.api_version(), "kind": DATA_VOLUMES.kind,
                "metadata": {"name": format!("{template}-{volume}"), "namespace": namespace,
                    "annotations": {"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}},
                "spec": {"source": {"snapshot": {"namespace": source, "name": backup["volumeSnapshotName"]}},
                    "storage": storage}});
            (volume, object)
        })
        .collect()
}

/// The template: the VM with a parameter for its name, its volumes cloned from the template's own, and nothing
/// in it that only one VM may have.
fn object(request: &Value, content: &Value, volumes: &[(String, Value)]) -> Value {
    let mut vm = content.pointer("/spec/source/virtualMachine").cloned().unwrap_or_default();
    let spec = &mut vm["spec"];
    let made: Vec<Value> = volumes
        .iter()
        .map(|(volume, object)| {
            json!({"metadata": {"name": format!("${{NAME}}-{volume}")}, "spec": {"storage": object["spec"]["storage"],
                "source": {"pvc": {"namespace": object["metadata"]["namespace"], "name": object["metadata"]["name"]}}}})
        })
        .collect();
    json::remove(spec, &["dataVolumeTemplates"]);
    if !made.is_empty() {
        spec["dataVolumeTemplates"] = made.into();
    }
    json::remove(spec, &["running"]);
    spec["runStrategy"] = "Halted".into();
    let inner = &mut spec["template"]["spec"];
    for volume in inner["volumes"].as_array_mut().into_iter().flatten() {
        let name = text(volume, "/name").to_owned();
        if volumes.iter().any(|(known, _)| *known == name) {
            *volume = json!({"name": name, "dataVolume": {"name": format!("${{NAME}}-{name}")}});
        }
    }
    for interface in
        inner.pointer_mut("/domain/devices/interfaces").and_then(Value::as_array_mut).into_iter().flatten()
    {
        json::remove(interface, &["macAddress"]);
    }
    for field in ["uuid", "serial"] {
        json::remove(inner, &["domain", "firmware", field]);
    }
    let labels = request.pointer("/spec/templateLabels").cloned().unwrap_or_else(|| json!({}));
    json!({"apiVersion": TEMPLATES.api_version(), "kind": TEMPLATES.kind,
        "metadata": {"name": template_name(request), "namespace": json::namespace(request), "labels": labels},
        "spec": {"parameters": [{"name": "NAME", "required": true, "description": "Name of the VM"}],
            "virtualMachine": {"metadata": {"name": "${NAME}"}, "spec": vm["spec"]}}})
}

fn is_over(request: &Value) -> bool {
    let of =
        |kind: &str| json::condition(request, "/status/conditions", kind).map(|one| text(one, "/status"));
    of("Ready") == Some("True") || of("Progressing") == Some("False")
}

fn status(request: &Value, standing: &Standing, now: &str) -> Value {
    let (progressing, ready, reason, message) = match standing {
        Standing::Going(what) => ("True", "False", "Waiting", what.clone()),
        Standing::Failed(why) => ("False", "False", "Failed", why.clone()),
        Standing::Made => ("False", "True", "Reconciled", "the template was created".into()),
    };
    let mut status = request.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut conditions = list(&status, "/conditions").to_vec();
    for (kind, holds) in [("Progressing", progressing), ("Ready", ready)] {
        json::update_condition(
            &mut conditions,
            json!({"type": kind, "status": holds, "reason": reason, "message": message, "lastTransitionTime": now}),
        );
    }
    status["conditions"] = conditions.into();
    if *standing == Standing::Made {
        status["templateRef"] = json!({"name": template_name(request)});
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_nothing_that_only_one_vm_may_have() {
        let request = json!({"metadata": {"name": "golden", "namespace": "a", "uid": "u"},
            "spec": {"virtualMachineRef": {"namespace": "a", "name": "web"}, "templateLabels": {"os": "fedora"}}});
        let content = json!({"spec": {"source": {"virtualMachine": {"metadata": {"name": "web", "uid": "v"},
                "spec": {"running": true, "template": {"spec": {"domain": {"firmware": {"uuid": "1"},
                    "devices": {"interfaces": [{"name": "default", "macAddress": "02:00:00:00:00:01"}]}},
                    "volumes": [{"name": "root", "dataVolume": {"name": "web-root"}}, {"name": "init", "cloudInitNoCloud": {}}]}}}}},
            "volumeBackups": [{"volumeName": "root", "volumeSnapshotName": "vs",
                "persistentVolumeClaim": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}]}});
        let volumes = volumes(&content, "golden", "a", "a");
        assert_eq!(volumes[0].1["metadata"]["name"], "golden-root");
        assert_eq!(volumes[0].1["spec"]["source"]["snapshot"]["name"], "vs");
        let made = object(&request, &content, &volumes);
        let vm = &made["spec"]["virtualMachine"];
        assert_eq!(vm["metadata"], json!({"name": "${NAME}"}));
        assert_eq!(vm["spec"]["runStrategy"], "Halted");
        assert_eq!(vm["spec"]["dataVolumeTemplates"][0]["spec"]["source"]["pvc"]["name"], "golden-root");
        let inner = &vm["spec"]["template"]["spec"];
        assert_eq!(inner["volumes"][0], json!({"name": "root", "dataVolume": {"name": "${NAME}-root"}}));
        assert_eq!(inner["domain"]["devices"]["interfaces"], json!([{"name": "default"}]));
        assert_eq!(inner["domain"]["firmware"], json!({}));
    }

    #[test]
    fn a_request_is_over_when_it_is_ready_or_goes_on_no_more() {
        let request = json!({"metadata": {"name": "golden"}});
        for (standing, over) in [
            (Standing::Going("x".into()), false),
            (Standing::Failed("x".into()), true),
            (Standing::Made, true),
        ] {
            let status = status(&request, &standing, "t");
            assert_eq!(is_over(&json!({"status": status})), over, "{standing:?}");
        }
    }
}
