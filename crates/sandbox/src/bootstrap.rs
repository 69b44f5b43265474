//! What a new cluster has before anyone writes to it.

use std::path::{Path, PathBuf};

use apimachinery::tree::{Value, json};

use crate::api::{Api, authentication};
use crate::registry::kubevirt;
use crate::store::Draft;
use crate::{Error, Options, auth, clock};

/// A file of definitions may have this many bytes.
const FILE_MAX: u64 = 16 << 20;

/// Writes the first objects.
///
/// # Errors
/// When definitions cannot be read or served.
pub fn fill(api: &Api, options: &Options) -> Result<(), Error> {
    let mut objects: Vec<Value> = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease", "kubevirt"] {
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    objects.push(authentication(&api.ca));
    objects.extend(auth::bootstrap_objects());
    objects.extend(definitions(options)?);
    for value in [("system-cluster-critical", 2_000_000_000_i64), ("system-node-critical", 2_000_001_000)] {
        objects.push(json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": value.0}, "value": value.1, "preemptionPolicy": "PreemptLowerPriority"}));
    }
    objects.push(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]}}));
    objects.iter().try_for_each(|object| write(api, object))
}

fn write(api: &Api, object: &Value) -> Result<(), Error> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let kinds = api.registry.kinds();
    let Some(kind) = kinds.by_kind(text("apiVersion"), text("kind")) else {
        return Err(Error::Bootstrap(format!(
            "{} {} is no kind of the sandbox",
            text("apiVersion"),
            text("kind")
        )));
    };
    let failed = |error: &dyn std::fmt::Display| {
        Error::Bootstrap(format!("{} {}: {error}", kind.kind, object["metadata"]["name"]))
    };
    let now = clock::seconds(api.clock.now());
    let mut object = api.furnished(kind, object.clone(), &now);
    object["metadata"]["uid"] = api.ids.uid().into();
    object["metadata"]["creationTimestamp"] = now.into();
    let draft = Draft::new(object, &kind.selectable).map_err(|error| failed(&error))?;
    let stored = api.store.create(&kind.storage, draft).map_err(|error| failed(&error))?;
    api.after_write(kind, &stored);
    Ok(())
}

/// The built-in definitions, those of the same name replaced by the ones in `directory`.
fn definitions(options: &Options) -> Result<Vec<Value>, Error> {
    let mut all =
        kubevirt::definitions(options.release).map_err(|error| Error::Bootstrap(error.to_string()))?;
    let Some(directory) = options.crds.as_deref() else { return Ok(all) };
    for file in files(directory)? {
        for definition in read(&file)? {
            all.retain(|known| known["metadata"]["name"] != definition["metadata"]["name"]);
            all.push(definition);
        }
    }
    Ok(all)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let failed =
        |error: std::io::Error| Error::Definitions { path: path.to_owned(), reason: error.to_string() };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The definitions in one file; other objects in it are left alone.
fn read(path: &Path) -> Result<Vec<Value>, Error> {
    let failed = |reason: String| Error::Definitions { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > FILE_MAX {
        return Err(failed(format!("the file has {size} bytes; {FILE_MAX} is the limit")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| failed(error.to_string()))?;
    let mut found = Vec::new();
    for document in documents {
        let listed = document["items"].as_array().cloned();
        for object in listed.unwrap_or_else(|| vec![document].into()) {
            if object["kind"] == "CustomResourceDefinition" {
                found.push(object);
            }
        }
    }
    Ok(found)
}
