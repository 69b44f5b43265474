//! Instance types and preferences that a volume names by its labels (`pkg/instancetype/infer`, v1.9): the labels of a
//! claim, of a `DataVolume`, of a `DataSource`, or of the claim or snapshot that these are made of.

use apimachinery::tree::{Value, json};

use super::Matcher;
use crate::sim::client::{Client, ClientError};
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, text};
use crate::sim::resource::{CLAIMS, DATA_SOURCES, DATA_VOLUMES, Resource, VOLUME_SNAPSHOTS};

/// Why nothing can be inferred.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not so bad that `inferFromVolumeFailurePolicy: Ignore` could not pass over it.
    #[error("{0}")]
    Missing(String),
    /// The VM has no such volume.
    #[error("unable to find volume {0} to infer defaults")]
    NoVolume(String),
    /// An object on the way could not be read.
    #[error("{}", .0.message())]
    Read(#[from] ClientError),
}

/// What a volume names: the name and the kind.
type Named = (String, String);

/// Reads volumes as virt-api.
pub struct Reader<'a> {
    pub client: &'a Client,
    pub who: &'a Identity,
}

impl Reader<'_> {
    /// Puts the names that volumes give into the matchers of a VM that ask for it.
    ///
    /// # Errors
    /// [`Error`]; never [`Error::Missing`] of a matcher that ignores it, which is taken off the VM.
    pub async fn infer(&self, vm: &mut Value) -> Result<(), Error> {
        for matcher in Matcher::BOTH {
            let key = matcher.key();
            let given = &vm["spec"][key];
            let volume = text(given, "/inferFromVolume").to_owned();
            if volume.is_empty() {
                continue;
            }
            let ignores = text(given, "/inferFromVolumeFailurePolicy") == "Ignore";
            match self.of_volume(matcher, vm, &volume).await {
                Ok((name, kind)) => {
                    if ignores && matcher == Matcher::Instancetype {
                        // Clients give a size in case there is no instance type.
                        json::remove(vm, &["spec", "template", "spec", "domain", "memory"]);
                    }
                    vm["spec"][key] = json!({"name": name});
                    if !kind.is_empty() {
                        vm["spec"][key]["kind"] = kind.into();
                    }
                }
                Err(Error::Missing(_)) if ignores => json::remove(vm, &["spec", key]),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn of_volume(&self, matcher: Matcher, vm: &Value, name: &str) -> Result<Named, Error> {
        let volumes = list(vm, "/spec/template/spec/volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == name);
        let volume = volume.ok_or_else(|| Error::NoVolume(name.to_owned()))?;
        if volume.get("persistentVolumeClaim").is_some() {
            let claim = text(volume, "/persistentVolumeClaim/claimName");
            return self.labelled(matcher, &CLAIMS, (json::namespace(vm), claim)).await;
        }
        if volume.get("dataVolume").is_some() {
            return self.of_data_volume(matcher, vm, text(volume, "/dataVolume/name")).await;
        }
        let why = format!("unable to infer defaults from volume {name} as type is not supported");
        Err(Error::Missing(why))
    }

    async fn of_data_volume(&self, matcher: Matcher, vm: &Value, name: &str) -> Result<Named, Error> {
        let namespace = json::namespace(vm);
        let templates = list(vm, "/spec/dataVolumeTemplates");
        if let Some(template) = templates.iter().find(|one| text(one, "/metadata/name") == name) {
            return self.of_data_volume_spec(matcher, &template["spec"], namespace).await;
        }
        let data_volume = match self.read(&DATA_VOLUMES, (namespace, name)).await {
            Ok(data_volume) => data_volume,
            // It was collected, and its claim stays.
            Err(error) if error.code() == 404 => {
                return self.labelled(matcher, &CLAIMS, (namespace, name)).await;
            }
            Err(error) => return Err(error.into()),
        };
        if let Ok(named) = of_labels(matcher, &data_volume) {
            return Ok(named);
        }
        self.of_data_volume_spec(matcher, &data_volume["spec"], namespace).await
    }

    async fn of_data_volume_spec(
        &self,
        matcher: Matcher,
        spec: &Value,
        namespace: &str,
    ) -> Result<Named, Error> {
        if let Some((resource, at)) = source(&spec["source"]) {
            return self.labelled(matcher, resource, at).await;
        }
        let reference = &spec["sourceRef"];
        if !reference.is_object() {
            let why = "unable to infer defaults from DataVolumeSpec as DataVolumeSource is not supported";
            return Err(Error::Missing(why.into()));
        }
        let kind = text(reference, "/kind");
        if kind != DATA_SOURCES.kind {
            let why =
                format!("unable to infer defaults from DataVolumeSourceRef as Kind {kind} is not supported");
            return Err(Error::Missing(why));
        }
        let namespace = reference["namespace"].as_str().unwrap_or(namespace);
        let data_source = self.read(&DATA_SOURCES, (namespace, text(reference, "/name"))).await?;
        if let Ok(named) = of_labels(matcher, &data_source) {
            return Ok(named);
        }
        match source(&data_source["spec"]["source"]) {
            Some((resource, at)) => self.labelled(matcher, resource, at).await,
            None => Err(Error::Missing(
                "unable to infer defaults from DataSource that doesn't provide DataVolumeSourcePVC or \
                 DataVolumeSourceSnapshot"
                    .into(),
            )),
        }
    }

    async fn labelled(
        &self,
        matcher: Matcher,
        resource: &Resource,
        at: (&str, &str),
    ) -> Result<Named, Error> {
        of_labels(matcher, &self.read(resource, at).await?)
    }

    async fn read(&self, resource: &Resource, (namespace, name): (&str, &str)) -> Result<Value, ClientError> {
        self.client.get(Some(self.who), &resource.path(namespace, name, "")).await
    }
}

/// The claim or snapshot that a source is.
fn source(source: &Value) -> Option<(&'static Resource, (&str, &str))> {
    [("pvc", &CLAIMS), ("snapshot", &VOLUME_SNAPSHOTS)].into_iter().find_map(|(key, resource)| {
        let of = source.get(key)?;
        Some((resource, (text(of, "/namespace"), text(of, "/name"))))
    })
}

fn of_labels(matcher: Matcher, object: &Value) -> Result<Named, Error> {
    let label = format!("instancetype.kubevirt.io/default-{}", matcher.key());
    match json::map(object, "/metadata/labels").and_then(|labels| labels.get(&label)) {
        Some(name) => Ok((
            name.as_str().unwrap_or_default().to_owned(),
            json::label(object, &format!("{label}-kind")).to_owned(),
        )),
        None => Err(Error::Missing(format!("unable to find required {label} label on the volume"))),
    }
}
