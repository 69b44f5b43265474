//! delete and deletecollection: grace periods, finalizers, propagation.
//!
//! ```text
//! live ──delete──► terminating (grace > 0 or finalizers) ──last finalizer / grace 0──► gone
//!   └──────────────────────────── nothing holds it ───────────────────────────────────► gone
//! ```

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{List, Value, json};
use jiff::ToSpan;

use super::admit::{Admitted, attributes};
use super::meta::{self, metadata, text};
use super::query::invalid_options;
use super::read::{list_reply, present_value};
use super::reply::{self, Reply};
use super::{Api, Call, decode};
use crate::admission::Operation;
use crate::clock::seconds;
use crate::faults::no_space;
use crate::registry::Kind;
use crate::store::{Draft, Error, Stored};

/// Attempts when others write in between.
const RETRIES: usize = 10;

/// The finalizer of a foreground deletion.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an orphaning deletion.
pub const ORPHAN: &str = "orphan";

/// `DeleteOptions`, from the body and the query.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Seconds; `None`: the kind's default.
    pub grace: Option<i64>,
    /// `Background`, `Foreground`, `Orphan`; `None`: the kind's default.
    pub propagation: Option<String>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must be at this version.
    pub resource_version: Option<String>,
    /// Nothing is written.
    pub dry_run: bool,
}

impl Options {
    /// Reads the options of a call.
    ///
    /// # Errors
    /// 400 and 422 for what cannot be read.
    pub fn of(call: &mut Call) -> Result<Self, Status> {
        let body =
            if call.body.is_empty() { json!({}) } else { decode::parse(&call.content_type, &call.body)? };
        let mut options = Self::from_object(&body)?;
        if body["orphanDependents"].is_boolean()
            && let Some(policy) = body["propagationPolicy"].as_str()
        {
            let message = format!(
                "Invalid value: {policy:?}: orphanDependents and deletionPropagation cannot be both set"
            );
            return Err(invalid_options("DeleteOptions", "propagationPolicy", "FieldValueInvalid", &message));
        }
        options.dry_run |= call.query.dry_run("DeleteOptions")?;
        call.dry_run = options.dry_run;
        if let Some(grace) = call.query.get("gracePeriodSeconds") {
            options.grace = Some(
                grace.parse().map_err(|_| Status::bad_request("gracePeriodSeconds must be an integer"))?,
            );
        }
        if let Some(policy) = call.query.get("propagationPolicy") {
            options.propagation = Some(policy.into());
        }
        if let Some(policy) = options.propagation.as_deref()
            && !matches!(policy, "Background" | "Foreground" | "Orphan")
        {
            let message = format!(
                "Unsupported value: {policy:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            );
            return Err(invalid_options(
                "DeleteOptions",
                "propagationPolicy",
                "FieldValueNotSupported",
                &message,
            ));
        }
        Ok(options)
    }

    /// As reviews show them.
    fn to_object(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(grace) = self.grace {
            options["gracePeriodSeconds"] = grace.into();
        }
        if let Some(policy) = &self.propagation {
            options["propagationPolicy"] = policy.as_str().into();
        }
        for (key, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                options["preconditions"][key] = value.as_str().into();
            }
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }

    /// Reads a `DeleteOptions` object.
    ///
    /// # Errors
    /// 400 when a field is of the wrong type.
    pub fn from_object(body: &Value) -> Result<Self, Status> {
        let own = |value: &Value| value.as_str().map(str::to_owned);
        let orphan =
            body["orphanDependents"].as_bool().map(|orphan| if orphan { "Orphan" } else { "Background" });
        if !body["gracePeriodSeconds"].is_null() && body["gracePeriodSeconds"].as_i64().is_none() {
            return Err(Status::bad_request("DeleteOptions: gracePeriodSeconds must be an integer"));
        }
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64(),
            propagation: own(&body["propagationPolicy"]).or_else(|| orphan.map(str::to_owned)),
            uid: own(&body["preconditions"]["uid"]),
            resource_version: own(&body["preconditions"]["resourceVersion"]),
            dry_run: body["dryRun"].as_array().is_some_and(|list| list.iter().any(|item| item == "All")),
        })
    }
}

/// What a deletion led to.
#[derive(Debug)]
pub enum Deleted {
    /// It is there still, waiting.
    Waiting(Value),
    /// It is gone; this was its last state.
    Gone(Value),
}

impl Api {
    /// `DELETE …/name`
    ///
    /// # Errors
    /// 404, 409 for preconditions that do not hold, whatever admission says.
    pub async fn delete(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        let options = Options::of(call)?;
        let deleted = self.delete_object(call, &options).await?;
        let presenter = call.presenter(self);
        let versioned = |mut object: Value| {
            object["apiVersion"] = call.kind.api_version().into();
            object
        };
        Ok(match deleted {
            Deleted::Waiting(object) => present_value(&presenter, 200, &versioned(object)),
            Deleted::Gone(object) if returns_object(&call.kind) => {
                present_value(&presenter, 200, &versioned(object))
            }
            Deleted::Gone(object) => reply::json(200, &success(&call.kind, &object)),
        })
    }

    /// Deletes one object.
    ///
    /// # Errors
    /// As [`Api::delete`].
    pub async fn delete_object(
        self: &Arc<Self>,
        call: &mut Call,
        options: &Options,
    ) -> Result<Deleted, Status> {
        for _ in 0..RETRIES {
            let stored = self.stored(call)?;
            let current = (*stored.value()).clone();
            preconditions(call, options, &current)?;
            let admitted = Admitted::new(self, call, Operation::Delete, options.to_object());
            admitted.mutate(Value::Null, Some(&current), call).await?;
            let _reserved = admitted.validate(&Value::Null, Some(&current), call).await?;
            if options.dry_run {
                return Ok(self.dry(&call.kind, options, current));
            }
            match self.delete_once(call, options, &stored, current) {
                Err(Error::Changed(_)) => {}
                Err(Error::NotFound) => {
                    return Err(Status::not_found(&call.kind.group, &call.kind.plural, &call.target.name));
                }
                Err(Error::NoSpace) => return Err(no_space()),
                Err(other) => return Err(Status::internal(&other.to_string())),
                Ok(deleted) => return Ok(deleted),
            }
        }
        Err(super::write::modified(call))
    }

    fn dry(&self, kind: &Kind, options: &Options, current: Value) -> Deleted {
        match self.step(kind, options, current) {
            Step::Nothing(object) | Step::Mark(object) => Deleted::Waiting(object),
            Step::Remove(object) => Deleted::Gone(object),
        }
    }

    fn delete_once(
        &self,
        call: &Call,
        options: &Options,
        stored: &Stored,
        current: Value,
    ) -> Result<Deleted, Error> {
        let kind = &call.kind;
        let version = stored.header().resource_version;
        match self.step(kind, options, current) {
            Step::Nothing(object) => Ok(Deleted::Waiting(object)),
            Step::Mark(_) if self.faults.is_full(|| attributes(call, "delete")) => Err(Error::NoSpace),
            Step::Mark(object) => {
                let stored =
                    self.store.update(&kind.storage, version, Draft::new(object, &kind.selectable)?)?;
                self.after_write(kind, &stored);
                Ok(Deleted::Waiting((*stored.value()).clone()))
            }
            Step::Remove(object) => {
                let stored =
                    self.store.remove(&kind.storage, version, Draft::new(object, &kind.selectable)?)?;
                self.after_removal(kind, &stored);
                Ok(Deleted::Gone((*stored.value()).clone()))
            }
        }
    }

    fn step(&self, kind: &Kind, options: &Options, mut object: Value) -> Step {
        let now = self.clock.now();
        let was = meta::terminating(&object);
        let before = object.clone();
        propagate(&mut object, options);
        let grace = grace_of(kind, &object, options);
        if grace > 0 {
            let earlier = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
            if was && earlier.is_none_or(|earlier| earlier <= grace) {
                return if object == before { Step::Nothing(object) } else { Step::Mark(object) };
            }
            let at = now.checked_add(grace.seconds()).unwrap_or(now);
            return Step::Mark(marked(kind, object, &seconds(at), grace));
        }
        let held_by_namespace = kind.is("", "namespaces")
            && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
        if held_by_namespace {
            object["status"]["phase"] = "Terminating".into();
        }
        let waits = meta::has_finalizers(&object) || held_by_namespace;
        let was_graceful =
            object["metadata"]["deletionGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds > 0);
        if waits && was && !was_graceful {
            return if object == before { Step::Nothing(object) } else { Step::Mark(object) };
        }
        if waits {
            return Step::Mark(marked(kind, object, &seconds(now), 0));
        }
        if kind.is("", "pods") {
            object = marked(kind, object, &seconds(now), 0);
        }
        Step::Remove(object)
    }

    /// `DELETE` of a collection.
    ///
    /// # Errors
    /// As [`Api::delete`]; the first refusal ends it.
    pub async fn delete_collection(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        let options = Options::of(call)?;
        let selection = call.query.selection(&call.kind)?;
        let (version, objects) = self.store.select(&call.kind.storage, call.namespace());
        let chosen: Vec<Arc<Stored>> =
            objects.into_iter().filter(|stored| selection.matches(stored.header())).collect();
        for stored in &chosen {
            let mut one = call.clone();
            one.target.name = stored.header().name.to_string();
            one.target.namespace = stored.header().namespace.to_string();
            match self.delete_object(&mut one, &options).await {
                Ok(_) => {}
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        let metadata = json!({"resourceVersion": version.to_string()});
        Ok(list_reply(call.presenter(self), &metadata, chosen))
    }
}

enum Step {
    /// It waits already; nothing to write.
    Nothing(Value),
    /// It has to wait.
    Mark(Value),
    /// Nothing holds it.
    Remove(Value),
}

/// The finalizers that stand for a propagation policy.
fn propagate(object: &mut Value, options: &Options) {
    let Some(policy) = options.propagation.as_deref() else { return };
    let wanted = match policy {
        "Foreground" => Some(FOREGROUND),
        "Orphan" => Some(ORPHAN),
        _ => None,
    };
    let there = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let mut finalizers: List =
        there.iter().filter(|finalizer| *finalizer != FOREGROUND && *finalizer != ORPHAN).cloned().collect();
    finalizers.extend(wanted.map(Value::from));
    if finalizers == there {
        return;
    }
    if finalizers.is_empty() {
        metadata(object).remove("finalizers");
    } else {
        metadata(object).insert("finalizers".into(), finalizers.into());
    }
}

/// Only pods go gracefully (`podStrategy.CheckGracefulDelete`, Kubernetes 1.36).
fn grace_of(kind: &Kind, object: &Value, options: &Options) -> i64 {
    if !kind.is("", "pods") {
        return 0;
    }
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    let scheduled = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    if !scheduled || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace.unwrap_or(own).max(0)
}

fn marked(kind: &Kind, mut object: Value, at: &str, grace: i64) -> Value {
    let counts = super::strategy::counts_generations(kind);
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default() + 1;
    let first = !meta::terminating(&object);
    let metadata = metadata(&mut object);
    metadata.insert("deletionTimestamp".into(), at.into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if counts && (first || kind.is("", "pods")) {
        metadata.insert("generation".into(), generation.into());
    }
    object
}

/// # Errors
/// 409 when a precondition does not hold.
pub fn preconditions(call: &Call, options: &Options, current: &Value) -> Result<(), Status> {
    let kind = &call.kind;
    let refuse = |what: &str, given: &str, there: &str, hint: &str| {
        let why = format!(
            "the {what} in the precondition ({given}) does not match the {what} in record ({there}). {hint}"
        );
        let mut status = Status::conflict(&kind.group, &kind.kind, &call.target.name, &why);
        // Preconditions name the kind without its group.
        status.message =
            format!("Operation cannot be fulfilled on {} \"{}\": {why}", kind.kind, call.target.name);
        status
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != text(current, "uid")) {
        let hint = "The object might have been deleted and then recreated";
        return Err(refuse("UID", uid, text(current, "uid"), hint));
    }
    let version = text(current, "resourceVersion");
    if let Some(given) = options.resource_version.as_deref().filter(|given| *given != version) {
        return Err(refuse("ResourceVersion", given, version, "The object might have been modified"));
    }
    Ok(())
}

/// Kinds that answer a deletion with the object (`ReturnDeletedObject` in their storage).
fn returns_object(kind: &Kind) -> bool {
    const KINDS: [&str; 13] = [
        "pods",
        "services",
        "serviceaccounts",
        "persistentvolumes",
        "persistentvolumeclaims",
        "podtemplates",
        "resourcequotas",
        "storageclasses",
        "volumeattachments",
        "csidrivers",
        "csinodes",
        "csistoragecapacities",
        "podsecuritypolicies",
    ];
    kind.definition().is_none() && KINDS.contains(&kind.plural.as_str())
}

fn success(kind: &Kind, object: &Value) -> Value {
    let mut details = json!({"name": text(object, "name"), "kind": kind.plural, "uid": text(object, "uid")});
    if !kind.group.is_empty() {
        details["group"] = kind.group.clone().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
