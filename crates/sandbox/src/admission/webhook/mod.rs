//! Mutating and validating webhooks (`k8s.io/apiserver pkg/admission/plugin/webhook`, 1.36): which are asked, in which
//! order, and what their answers and failures do to the request.

mod client;
mod hook;
mod review;
pub(crate) mod service;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use apimachinery::Status;
use apimachinery::apply::sealed;
use apimachinery::depth::{MAX_DEPTH, is_deeper_than};
use apimachinery::field_error::quote;
use apimachinery::patch::apply_operations;
use apimachinery::tree::{Value, json};
use tokio::time::Instant;

use self::hook::Hook;
use self::review::{Answer, Seen};
use super::cache::Cached;
use super::matcher::items;
use super::{MakeUid, Notes, Request, Resource};
use crate::faults::Faults;
use crate::network::Network;
use crate::objects::Objects;

pub(super) use self::review::{cel_request, is_exempt};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

/// Both kinds of webhooks, compiled.
pub(super) struct Webhooks {
    objects: Arc<dyn Objects>,
    make_uid: Arc<MakeUid>,
    mutating: Compiled,
    validating: Compiled,
    faults: Option<Arc<Faults>>,
    network: Network,
}

/// The webhooks of every configuration of one kind.
struct Compiled {
    resource: &'static str,
    hooks: Cached<Vec<Hook>>,
}

impl Compiled {
    fn new(resource: &'static str) -> Self {
        Self { resource, hooks: Cached::default() }
    }

    /// Configurations come ordered by name, and their webhooks in the order that they have there.
    fn hooks(&self, objects: &Arc<dyn Objects>, network: &Network) -> Arc<([u64; 1], Vec<Hook>)> {
        self.hooks.at([objects.revision(GROUP, self.resource)], |earlier| {
            let mut hooks = Vec::new();
            for configuration in objects.list(GROUP, self.resource) {
                let name = configuration["metadata"]["name"].as_str().unwrap_or_default();
                for webhook in items(&configuration["webhooks"]) {
                    hooks.push(Hook::new(name, webhook, earlier, (objects, network)));
                }
            }
            hooks
        })
    }
}

/// What the passes of the mutating webhooks over one request know of each other.
#[derive(Debug, Default)]
pub(super) struct Passes {
    second: bool,
    /// asked already and willing to be asked again, by configuration and name
    invoked: HashSet<(String, String)>,
    /// to be asked again: something changed after they were asked
    due: HashSet<(String, String)>,
    /// what the webhooks of the first pass left
    output: Value,
}

impl Passes {
    /// Starts the second pass, over what the built-in plugins made of the first one's result.
    pub(super) fn again(&mut self, object: &Value) {
        self.second = true;
        if *object != self.output {
            self.due.extend(self.invoked.drain());
        }
    }
}

/// Why a webhook gave no verdict.
enum Failure {
    /// Subject to `failurePolicy`.
    Call(String),
    /// The request fails in any case.
    Request(Status),
}

impl Webhooks {
    pub(super) fn new(
        objects: Arc<dyn Objects>,
        make_uid: Arc<MakeUid>,
        faults: Option<Arc<Faults>>,
        network: Network,
    ) -> Self {
        let (mutating, validating) = (Compiled::new(MUTATING), Compiled::new(VALIDATING));
        Self { objects, make_uid, mutating, validating, faults, network }
    }

    /// One pass of the mutating webhooks, one after the other; says whether any changed the object.
    pub(super) async fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Value,
        passes: &mut Passes,
        notes: &mut Notes,
    ) -> Result<bool, Status> {
        if is_exempt(&request.resource(object)) {
            return Ok(false);
        }
        let compiled = self.mutating.hooks(&self.objects, &self.network);
        let round = u8::from(passes.second);
        let mut changed = false;
        let mut index = 0;
        for hook in &compiled.1 {
            if passes.second && !passes.due.contains(&hook.id()) {
                continue;
            }
            let Some(version) = hook.wants(request, object, self.objects.as_ref())? else { continue };
            let place = format!("round_{round}_index_{index}");
            index += 1;
            let patched = match self.ask(hook, true, request, object, &version).await {
                Ok(answer) => {
                    let seen = at_version(object, &request.resource(object), &version);
                    apply(hook, answer, &seen, notes)?.map(|patched| restored(patched, object))
                }
                Err(failure) => {
                    survive(
                        hook,
                        failure,
                        &format!("failed-open.mutating.webhook.admission.k8s.io/{place}"),
                        notes,
                    )?;
                    continue;
                }
            };
            let mutated = patched.as_ref().is_some_and(|patched| patched != object);
            let annotation =
                json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": mutated});
            notes
                .audit_annotations
                .insert(format!("mutation.webhook.admission.k8s.io/{place}"), annotation.to_string());
            if let Some(patched) = patched.filter(|_| mutated) {
                *object = patched;
                changed = true;
                // those asked before have not seen this; the one that changed it need not look again
                passes.due.extend(passes.invoked.drain());
            }
            if hook.reinvocable {
                passes.invoked.insert(hook.id());
            }
        }
        if changed {
            passes.output = object.clone();
        }
        Ok(changed)
    }

    /// The validating webhooks, all at once. Of several refusals the first in order of configuration is returned.
    pub(super) async fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        notes: &mut Notes,
    ) -> Result<(), Status> {
        if is_exempt(&request.resource(object)) {
            return Ok(());
        }
        let compiled = self.validating.hooks(&self.objects, &self.network);
        let mut calls = Vec::new();
        for hook in &compiled.1 {
            if let Some(version) = hook.wants(request, object, self.objects.as_ref())? {
                let index = calls.len();
                calls.push(async move {
                    let mut notes = Notes::default();
                    let verdict = match self.ask(hook, false, request, object, &version).await {
                        Ok(answer) => verdict(hook, &answer, &mut notes),
                        Err(failure) => {
                            let key = format!(
                                "failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"
                            );
                            survive(hook, failure, &key, &mut notes)
                        }
                    };
                    (verdict, notes)
                });
            }
        }
        let mut result = Ok(());
        for (verdict, said) in futures::future::join_all(calls).await {
            notes.absorb(said);
            result = result.and(verdict);
        }
        result
    }

    async fn ask(
        &self,
        hook: &Hook,
        mutating: bool,
        request: &Request<'_>,
        object: &Value,
        version: &str,
    ) -> Result<Answer, Failure> {
        if request.attributes.dry_run && !hook.dry_run {
            let message = format!("admission webhook {} does not support dry run", quote(&hook.name));
            return Err(Failure::Request(Status::bad_request(message)));
        }
        let left = request.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message =
                "Timeout: request did not complete within requested timeout - context deadline exceeded";
            return Err(Failure::Request(Status::new(504, "Timeout", message)));
        }
        let speaks = hook.version.ok_or_else(|| {
            Failure::Call("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".into())
        })?;
        let client = hook.client.as_ref();
        let client = client.map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
        let uid = (self.make_uid)();
        let body = {
            let resource = request.resource(object);
            let old = request.old.unwrap_or(&Value::Null);
            let (new, old) = (at_version(object, &resource, version), at_version(old, &resource, version));
            let seen = Seen { version, object: &new, old: &old };
            review::encode(speaks, request, resource, &seen, &uid)
                .map_err(|e| Failure::Call(format!("could not create admission objects: {e}")))?
        };
        let timeout = hook.timeout().min(left);
        let fate = self.faults.as_ref().map(|faults| faults.of_webhook(&hook.name, request.attributes));
        let answer = client.call(body, timeout, hook.timeout, fate.unwrap_or_default()).await;
        let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
        review::decode(speaks, mutating, &uid, &answer).map_err(Failure::Call)
    }
}

/// The object in another version of its kind: as with conversion strategy `None`, only its name changes. Bodies of
/// subresources have kinds of other groups, which have one version here.
fn at_version<'a>(object: &'a Value, resource: &Resource<'_>, version: &str) -> Cow<'a, Value> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    match api_version.split_once('/') {
        Some((group, own)) if own != version && resource.version != version && group == resource.group => {
            let mut other = object.clone();
            other["apiVersion"] = format!("{group}/{version}").into();
            Cow::Owned(other)
        }
        _ => Cow::Borrowed(object),
    }
}

fn verdict(hook: &Hook, answer: &Answer, notes: &mut Notes) -> Result<(), Status> {
    for (key, value) in &answer.audit_annotations {
        notes.audit_annotations.insert(format!("{}/{key}", hook.name), value.clone());
    }
    for warning in &answer.warnings {
        notes.warn(warning);
    }
    if answer.allowed { Ok(()) } else { Err(review::denial(&hook.name, answer.status.as_ref())) }
}

/// The patched object in the version that the request was made in.
fn restored(mut patched: Value, object: &Value) -> Value {
    if let Some(own) = object["apiVersion"].as_str() {
        patched["apiVersion"] = own.into();
    }
    patched
}

/// Applies a mutating webhook's answer to the object that it saw. A patch that does not apply fails the request,
/// whatever the `failurePolicy`.
fn apply(hook: &Hook, answer: Answer, seen: &Value, notes: &mut Notes) -> Result<Option<Value>, Status> {
    verdict(hook, &answer, notes)?;
    let Some((kind, patch)) = answer.patch else { return Ok(None) };
    let broken = |why: serde_json::Error| Status::internal(&why.to_string());
    let operations: Vec<Value> = serde_json::from_slice(&patch).map_err(broken)?;
    if operations.is_empty() {
        return Ok(None);
    }
    if seen.is_null() {
        let name = quote(&hook.name);
        let why = format!(
            "admission webhook {name} attempted to modify the object, which is not supported for this operation"
        );
        return Err(Status::internal(&why));
    }
    if kind != "JSONPatch" {
        let failure = Failure::Call(format!("unsupported patch type {}", quote(&kind)));
        let key = format!("failed-open.mutating.webhook.admission.k8s.io/{}", hook.name);
        return survive(hook, failure, &key, notes).map(|()| None);
    }
    let mut patched = seen.clone();
    // Nobody else has to see them.
    let says = |text: &str| memchr::memmem::find(&patch, text.as_bytes()).is_some();
    let opened = says("managedFields") || says("\"/metadata\"") || says("\"\"");
    if opened {
        sealed::open(&mut patched);
    }
    apply_operations(&mut patched, &operations).map_err(|why| Status::internal(&why))?;
    if !patched.is_object() || is_deeper_than(&patched, MAX_DEPTH) {
        let why =
            format!("admission webhook {} made no object of at most {MAX_DEPTH} levels", quote(&hook.name));
        return Err(Status::internal(&why));
    }
    sealed::distrust(&mut patched, Some(seen));
    if opened {
        sealed::close(&mut patched);
    }
    Ok(Some(patched))
}

/// A webhook that gave no verdict: the request goes on when its `failurePolicy` is `Ignore`.
fn survive(hook: &Hook, failure: Failure, annotation: &str, notes: &mut Notes) -> Result<(), Status> {
    match failure {
        Failure::Request(status) => Err(status),
        Failure::Call(why) if hook.fails_closed => {
            Err(Status::internal(&format!("failed calling webhook {}: {why}", quote(&hook.name))))
        }
        Failure::Call(why) => {
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            notes.audit_annotations.insert(annotation.to_owned(), hook.name.clone());
            Ok(())
        }
    }
}
