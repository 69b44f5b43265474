//! create, update and patch.
//!
//! ```text
//! decode ─► defaults ─► mutating admission ─► the kind's own rules ─► validation ─► validating admission ─► store
//! ```

use std::sync::Arc;

use apimachinery::apply::{restore_times, sealed};
use apimachinery::patch::{json_patch, merge_patch, strategic_patch};
use apimachinery::tree::{Value, json};
use apimachinery::{Cause, FieldError, Status};

use super::admit::{Admitted, attributes, options};
use super::meta::{self, metadata, text};
use super::negotiate::{Form, unsupported_media_type};
use super::present::Presenter;
use super::query::{FieldValidation, invalid_options};
use super::read::present_value;
use super::reply::{self, Reply};
use super::{Api, Call, decode, fields, strategy};
use crate::admission::Operation;
use crate::clock::seconds;
use crate::faults::no_space;
use crate::registry::{Kind, join};
use crate::store::{Draft, Error, Stored};

/// A patch is computed again this often when others write in between (`MaxRetryWhenPatchConflicts`).
const RETRIES: usize = 5;

/// What a write left behind.
#[derive(Clone, Debug)]
pub enum Written {
    /// It is in the store.
    Stored(Arc<Stored>),
    /// `dryRun`: this is what would be.
    Preview(Value),
}

impl Written {
    /// The object.
    pub fn value(&self) -> Value {
        match self {
            Self::Stored(stored) => (*stored.value()).clone(),
            Self::Preview(object) => object.clone(),
        }
    }
}

/// Computes the new object from the current one.
type Make<'a> = &'a (dyn Fn(&Value) -> Result<Value, Status> + Sync);

impl Api {
    /// `POST`
    ///
    /// # Errors
    /// Whatever a real API server answers; see the recordings.
    pub async fn create(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        call.dry_run = call.query.dry_run("CreateOptions")?;
        let mut object = decode::written(call)?;
        let validation = call.query.field_validation("CreateOptions")?;
        call.query.field_manager("CreateOptions")?;
        fields::normalize(call, &mut object, validation)?;
        strategy::fill_defaults(&call.kind, &mut object);
        self.track(call, None, &mut object);
        let written = self.create_object(call, object, "CreateOptions").await?;
        Ok(respond(&call.presenter(self), 201, &written))
    }

    /// Creates an object that has been decoded.
    ///
    /// # Errors
    /// As [`Api::create`].
    pub async fn create_object(
        self: &Arc<Self>,
        call: &mut Call,
        mut object: Value,
        kind_of_options: &str,
    ) -> Result<Written, Status> {
        let kind = call.kind.clone();
        strategy::fill_defaults(&kind, &mut object);
        meta::place(&mut object, call)?;
        self.namespace_accepts(call, &object)?;
        self.name_and_stamp(&mut object, call)?;
        let admitted = Admitted::new(self, call, Operation::Create, options(call, kind_of_options));
        let (mut object, _) = admitted.mutate(object, None, call).await?;
        fields::normalize(call, &mut object, FieldValidation::Ignore)?;
        strategy::fill_defaults(&kind, &mut object);
        meta::place(&mut object, call)?;
        strategy::prepare_create(&kind, &mut object, &seconds(self.clock.now()));
        let mut errors = meta::validate(&object, None, &kind);
        errors.extend(strategy::validate_create(&kind, &object));
        refuse(&kind, &object, &errors)?;
        self.auth.authorizer().may_grant(&call.user, &object, None)?;
        let _reserved = admitted.validate(&object, None, call).await?;
        let name = text(&object, "name").to_owned();
        if call.dry_run {
            if self.store.read(&kind.storage, text(&object, "namespace"), &name).is_some() {
                return Err(Status::already_exists(&kind.group, &kind.plural, &name));
            }
            sealed::open(&mut object);
            return Ok(Written::Preview(object));
        }
        if self.faults.is_full(|| attributes(call, "create")) {
            return Err(no_space());
        }
        match self.store.create(&kind.storage, draft(&kind, object)?) {
            Ok(stored) => {
                self.after_write(&kind, &stored);
                Ok(Written::Stored(stored))
            }
            Err(Error::Exists(_)) => Err(Status::already_exists(&kind.group, &kind.plural, &name)),
            Err(other) => Err(Status::internal(&other.to_string())),
        }
    }

    /// Refuses new objects in namespaces that are not there or on their way out.
    fn namespace_accepts(&self, call: &Call, object: &Value) -> Result<(), Status> {
        let Some(namespace) = call.namespace() else { return Ok(()) };
        let Some(stored) = self.store.read("namespaces.", "", namespace) else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if !stored.header().terminating {
            return Ok(());
        }
        let name = text(object, "name");
        let message = format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            call.kind.qualified()
        );
        let cause = Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        };
        Err(Status::new(403, "Forbidden", message)
            .about(&call.kind.group, &call.kind.plural, name)
            .because(cause))
    }

    /// `PUT`
    ///
    /// # Errors
    /// Whatever a real API server answers; see the recordings.
    pub async fn update(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        call.dry_run = call.query.dry_run("UpdateOptions")?;
        let mut object = decode::written(call)?;
        let validation = call.query.field_validation("UpdateOptions")?;
        call.query.field_manager("UpdateOptions")?;
        fields::normalize(call, &mut object, validation)?;
        let given = text(&object, "uid").to_owned();
        let target = (call.kind.clone(), call.target.clone());
        let make = move |current: &Value| {
            if !given.is_empty() && given != text(current, "uid") {
                return Err(wrong_uid(
                    &target.0,
                    &target.1.namespace,
                    &target.1.name,
                    &given,
                    text(current, "uid"),
                ));
            }
            Ok(object.clone())
        };
        let written = self.change(call, &make).await?;
        Ok(respond(&call.presenter(self), 200, &written))
    }

    /// `PATCH`
    ///
    /// # Errors
    /// Whatever a real API server answers; see the recordings.
    pub async fn patch(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        call.dry_run = call.query.dry_run("PatchOptions")?;
        call.query.field_manager("PatchOptions")?;
        let ty = call.kind.object_type.clone();
        let media = call.content_type.clone();
        match media.as_str() {
            "application/apply-patch+yaml" => return self.apply(call).await,
            "application/json-patch+json" | "application/merge-patch+json" => {}
            "application/strategic-merge-patch+json" if call.kind.definition().is_none() => {}
            _ => return Err(unsupported_media_type()),
        }
        if call.query.get("force").is_some() {
            let message = "Forbidden: may not be specified for non-apply patch";
            return Err(invalid_options("PatchOptions", "force", "FieldValueForbidden", message));
        }
        let (patch, complaints) = decode::patch(&media, &call.body)?;
        call.complaints = complaints;
        let kind = call.kind.clone();
        let make = move |current: &Value| {
            let mut seen = std::borrow::Cow::Borrowed(current);
            if current["apiVersion"] != kind.api_version() {
                seen.to_mut()["apiVersion"] = kind.api_version().into();
            }
            let mut object = match media.as_str() {
                "application/json-patch+json" => json_patch(&seen, &patch)?,
                "application/merge-patch+json" => merge_patch(&seen, &patch)?,
                _ => strategic_patch(&seen, &patch, &ty)?,
            };
            sealed::distrust(&mut object, Some(current));
            keeps_its_kind(&kind, &media, &object, text(current, "name"))?;
            let given = text(&object, "uid");
            if !given.is_empty() && given != text(current, "uid") {
                let error = FieldError::invalid("metadata.uid", given, "field is immutable");
                return Err(Status::invalid(
                    &kind.group,
                    &kind.kind,
                    text(current, "name"),
                    &[error.clone(), error],
                ));
            }
            object["apiVersion"] = join(&kind.group, &kind.storage_version).into();
            object["kind"] = kind.kind.clone().into();
            Ok(object)
        };
        let written = self.change(call, &make).await?;
        Ok(respond(&call.presenter(self), 200, &written))
    }

    /// Reads, computes, admits and writes one object; again when someone else was faster and the
    /// client did not insist on a version.
    ///
    /// # Errors
    /// What `make`, admission and validation refuse; 409 when others are always faster.
    pub async fn change(self: &Arc<Self>, call: &mut Call, make: Make<'_>) -> Result<Written, Status> {
        let kind_of_options =
            if call.content_type.contains("patch") { "PatchOptions" } else { "UpdateOptions" };
        let admitted = Admitted::new(self, call, Operation::Update, options(call, kind_of_options));
        let validation = call.query.field_validation(kind_of_options)?;
        for _ in 0..RETRIES {
            let stored = self.stored(call)?;
            let current = stored.current();
            let new = if opens(call) { make(&stored.value())? } else { make(&current)? };
            let insisted = guard(call, &new, &current)?;
            let mut new = arrange(call, new, &current, validation)?;
            if call.content_type != "application/apply-patch+yaml" {
                self.track(call, Some(&current), &mut new);
            }
            let (new, changed) = admitted.mutate(new, Some(&current), call).await?;
            guard(call, &new, &current)?;
            let new = if changed { arrange(call, new, &current, FieldValidation::Ignore)? } else { new };
            let mut new = finish(call, new, &current)?;
            self.check_node_capacity(call, &new)?;
            self.auth.authorizer().may_grant(&call.user, &new, Some(&current))?;
            restore_times(&current, &mut new);
            let _reserved = admitted.validate(&new, Some(&current), call).await?;
            if call.dry_run {
                sealed::open(&mut new);
                return Ok(Written::Preview(new));
            }
            match self.commit(call, &stored, &current, new) {
                Ok(stored) => return Ok(Written::Stored(stored)),
                Err(Error::Changed(_)) if insisted => return Err(modified(call)),
                Err(Error::Changed(_)) => {}
                Err(other) => return Err(storage_error(call, &other)),
            }
        }
        Err(modified(call))
    }

    /// As [`Api::change`] for what the server itself writes: nobody is asked.
    ///
    /// # Errors
    /// What `make` refuses; 404; 409 when others are always faster.
    pub fn change_system(&self, call: &Call, make: Make<'_>) -> Result<Arc<Stored>, Status> {
        for _ in 0..RETRIES {
            let stored = self.stored(call)?;
            let current = stored.current();
            let mut new = make(&current)?;
            count_generation(&call.kind, &mut new, &current);
            match self.commit(call, &stored, &current, new) {
                Ok(stored) => return Ok(stored),
                Err(Error::Changed(_)) => {}
                Err(other) => return Err(storage_error(call, &other)),
            }
        }
        Err(modified(call))
    }

    /// Writes one object, or removes it when nothing holds it back any longer.
    fn commit(
        &self,
        call: &Call,
        stored: &Arc<Stored>,
        current: &Value,
        new: Value,
    ) -> Result<Arc<Stored>, Error> {
        let kind = &call.kind;
        if new == *current {
            return Ok(stored.clone());
        }
        let version = stored.header().resource_version;
        let gone = meta::terminating(&new) && !meta::has_finalizers(&new) && !held(kind, &new);
        let draft = Draft::new(new, &kind.selectable)?;
        if gone {
            let last = self.store.remove(&kind.storage, version, draft)?;
            self.after_removal(kind, &last);
            return Ok(last);
        }
        if self.faults.is_full(|| attributes(call, "update")) {
            return Err(Error::NoSpace);
        }
        let written = self.store.update(&kind.storage, version, draft)?;
        self.after_write(kind, &written);
        Ok(written)
    }
}

/// Whether a patch may say something of `managedFields`, so that it has to see them.
fn opens(call: &Call) -> bool {
    let says = |text: &str| memchr::memmem::find(&call.body, text.as_bytes()).is_some();
    // A JSON patch can test or copy what they are in.
    let around = || says("\"/metadata\"") || says("\"\"");
    call.content_type.contains("patch")
        && (says("managedFields") || call.content_type == "application/json-patch+json" && around())
}

/// A patch makes neither an object without a name nor, where what it makes is decoded anew, one of another kind.
fn keeps_its_kind(kind: &Kind, media: &str, object: &Value, name: &str) -> Result<(), Status> {
    let said = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let (version, named) = (said("apiVersion"), said("kind"));
    let decoded = kind.definition().is_none() && media != "application/strategic-merge-patch+json";
    if decoded && (version != kind.api_version() || !named.is_empty() && named != kind.kind) {
        let why = format!(
            "no kind {named:?} is registered for version {version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        );
        return Err(Status::invalid("", "", "", &[FieldError::invalid("patch", object.to_string(), why)]));
    }
    if text(object, "name").is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    Ok(())
}

fn draft(kind: &Kind, object: Value) -> Result<Draft, Status> {
    Draft::new(object, &kind.selectable).map_err(|error| Status::internal(&error.to_string()))
}

fn storage_error(call: &Call, error: &Error) -> Status {
    match error {
        Error::NotFound => Status::not_found(&call.kind.group, &call.kind.plural, &call.target.name),
        Error::NoSpace => no_space(),
        other => Status::internal(&other.to_string()),
    }
}

/// Checks that the new object is still the one that the path names; true when it insists on the
/// version that it was made from.
fn guard(call: &Call, new: &Value, current: &Value) -> Result<bool, Status> {
    let (name, namespace) = (text(new, "name"), text(new, "namespace"));
    if !name.is_empty() && name != call.target.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.target.name
        )));
    }
    if !namespace.is_empty() && call.kind.namespaced && namespace != call.target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let version = text(new, "resourceVersion");
    if !version.is_empty() && version != text(current, "resourceVersion") {
        return Err(modified(call));
    }
    let patch = call.content_type.contains("patch");
    if version.is_empty() && !patch && call.kind.definition().is_some() {
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        return Err(Status::invalid(&call.kind.group, &call.kind.kind, &call.target.name, &[error]));
    }
    Ok(!version.is_empty() && !patch)
}

/// What admission gets to see: only fields that there are, defaults filled in, the server's own fields as they were.
fn arrange(
    call: &mut Call,
    mut new: Value,
    current: &Value,
    validation: FieldValidation,
) -> Result<Value, Status> {
    // An empty list asks for the owners of all fields to be forgotten; decoding would drop it.
    let forgotten = new.pointer("/metadata/managedFields").is_some_and(|fields| *fields == json!([]));
    fields::normalize(call, &mut new, validation)?;
    if forgotten {
        metadata(&mut new).insert("managedFields".into(), json!([]));
    }
    strategy::fill_defaults(&call.kind, &mut new);
    meta::place(&mut new, call)?;
    meta::keep_server_fields(&mut new, current);
    // Much follows that asks what has changed.
    new.share(current);
    Ok(new)
}

/// What is stored: what admission left, arranged, confined to what its path may change, and checked.
fn finish(call: &Call, mut new: Value, current: &Value) -> Result<Value, Status> {
    let managed = metadata(&mut new).remove("managedFields").unwrap_or_default();
    let mut new = strategy::confine(&call.kind, &call.target.subresource, new, current);
    // Who owns a field is written down even where the field itself was not taken over.
    if managed.is_array() || sealed::text(&managed).is_some() {
        metadata(&mut new).insert("managedFields".into(), managed);
    } else {
        metadata(&mut new).remove("managedFields");
    }
    count_generation(&call.kind, &mut new, current);
    let mut errors = meta::validate(&new, Some(current), &call.kind);
    errors.extend(strategy::validate_update(&call.kind, &call.target.subresource, &new, current));
    refuse(&call.kind, &new, &errors)?;
    Ok(new)
}

fn count_generation(kind: &Kind, new: &mut Value, current: &Value) {
    if strategy::counts_generations(kind) && strategy::spec_changed(kind, new, current) {
        let generation = current["metadata"]["generation"].as_i64().unwrap_or(1) + 1;
        metadata(new).insert("generation".into(), generation.into());
    }
}

/// Namespaces are held back by `spec.finalizers`, pods by their grace period.
fn held(kind: &Kind, object: &Value) -> bool {
    if kind.is("", "namespaces") {
        return object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    }
    object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0)
}

fn refuse(kind: &Kind, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&kind.group, &kind.kind, text(object, "name"), errors))
}

/// `409 … the object has been modified`
pub fn modified(call: &Call) -> Status {
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    Status::conflict(&call.kind.group, &call.kind.plural, &call.target.name, why)
}

fn wrong_uid(kind: &Kind, namespace: &str, name: &str, given: &str, there: &str) -> Status {
    let place = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}/{place}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {given}, UID in object meta: {there}",
        kind.plural
    );
    Status::conflict(&kind.group, &kind.plural, name, &why)
}

/// A written object in the form asked for.
pub fn respond(presenter: &Presenter, code: u16, written: &Written) -> Reply {
    match written {
        Written::Stored(stored) if presenter.form == Form::Json => {
            reply::json_bytes(code, presenter.bytes(&stored.wire()))
        }
        Written::Stored(stored) => present_value(presenter, code, &presenter.value(stored)),
        Written::Preview(object) => {
            let mut object = object.clone();
            object["apiVersion"] = presenter.kind.api_version().into();
            present_value(presenter, code, &object)
        }
    }
}
