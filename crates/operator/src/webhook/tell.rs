//! What is said about a decision: metrics, one line (an audit line when something changes), one trace.

use std::time::Instant;

use features::{ErrorMode, Verdict};
use tracing::{debug, info, warn};

use super::decide::{Decision, result_name};
use super::handler::Parts;
use super::review::AdmissionRequest;
use crate::telemetry::{Parent, Piece, Tracer};

/// Counts and logs one answered request.
pub(super) fn decided<O>(
    path: &'static str,
    request: &AdmissionRequest<'_, O>,
    decision: &Decision,
    begun: Instant,
    parent: Option<Parent>,
    parts: &Parts,
) {
    let took = begun.elapsed();
    if let Some(tracer) = &parts.tracer {
        trace(tracer, parent, path, request, decision, begun);
    }
    let Some(verdict) = &decision.verdict else {
        parts.metrics.request("all", "allowed", took);
        debug!(request_id = %request.uid, path, operation = %request.operation, vm = %vm(request), decision = "untouched");
        return;
    };
    let result = if verdict.denial.is_some() { "denied" } else { "allowed" };
    parts.metrics.request("all", result, took);
    for outcome in &verdict.outcomes {
        parts.metrics.request(outcome.feature, result_name(outcome.result), took);
        if outcome.error.is_some() {
            parts.metrics.feature_error(outcome.feature, mode_name(outcome.error_mode));
        }
    }
    log(path, request, verdict, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
}

fn log<O>(path: &'static str, request: &AdmissionRequest<'_, O>, verdict: &Verdict, micros: u64) {
    if verdict.outcomes.is_empty() && verdict.denial.is_none() && verdict.patch.0.is_empty() {
        debug!(request_id = %request.uid, path, operation = %request.operation, vm = %vm(request), micros, decision = "unchanged");
        return;
    }
    let features = outcomes(verdict);
    if let Some(denial) = &verdict.denial {
        warn!(request_id = %request.uid, path, operation = %request.operation, vm = %vm(request), dry_run = request.dry_run,
            micros, decision = "denied", features, reason = denial.as_str());
        return;
    }
    if verdict.patch.0.is_empty() {
        info!(request_id = %request.uid, path, operation = %request.operation, vm = %vm(request), dry_run = request.dry_run,
            micros, decision = "unchanged", features);
        return;
    }
    // One line for both readers, so that a change costs one write. Paths only: values may come from
    // a Secret.
    info!(target: "audit", request_id = %request.uid, path, user = %request.user_info.username,
        operation = %request.operation, vm = %vm(request), dry_run = request.dry_run, micros, decision = "patched",
        features, paths = paths(verdict), "virtual machine mutated");
}

fn trace<O>(
    tracer: &Tracer,
    parent: Option<Parent>,
    path: &'static str,
    request: &AdmissionRequest<'_, O>,
    decision: &Decision,
    begun: Instant,
) {
    let ended = Instant::now();
    let mut whole = Piece::new(path, begun, ended);
    whole.attributes = vec![
        ("request.uid", request.uid.to_string()),
        ("request.operation", request.operation.to_string()),
        ("k8s.namespace.name", request.namespace.to_string()),
        ("virtualmachine.name", request.name.to_string()),
    ];
    let mut children = Vec::new();
    if let (Some(verdict), Some((from, reads, to))) = (&decision.verdict, decision.observed) {
        if reads > 0 {
            let mut observe = Piece::new("observe", from, to);
            observe.attributes.push(("reads", reads.to_string()));
            children.push(observe);
        }
        let mut decide = Piece::new("decide", to, ended);
        for outcome in &verdict.outcomes {
            let mut said = vec![("result", result_name(outcome.result).to_owned())];
            said.extend(outcome.error.as_ref().map(|error| ("error", error.clone())));
            decide.events.push((outcome.feature.to_owned(), said));
        }
        decide.error.clone_from(&verdict.denial);
        whole.attributes.push(("allowed", verdict.denial.is_none().to_string()));
        children.push(decide);
    }
    tracer.record(parent, &whole, &children);
}

/// `namespace/name`, or `namespace/<generateName>` while there is no name yet.
fn vm<O>(request: &AdmissionRequest<'_, O>) -> impl std::fmt::Display {
    let name = if request.name.is_empty() { "(generated)" } else { &request.name };
    std::fmt::from_fn(move |to| write!(to, "{}/{name}", request.namespace))
}

fn outcomes(verdict: &Verdict) -> String {
    let mut text = String::new();
    for outcome in &verdict.outcomes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(outcome.feature);
        text.push('=');
        text.push_str(result_name(outcome.result));
    }
    text
}

fn paths(verdict: &Verdict) -> String {
    let mut text = String::new();
    for operation in &verdict.patch.0 {
        if matches!(operation, json_patch::PatchOperation::Test(_)) {
            continue;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(operation.path().as_str());
    }
    text
}

/// How an error mode is called in metrics.
const fn mode_name(mode: ErrorMode) -> &'static str {
    match mode {
        ErrorMode::Reject => "reject",
        ErrorMode::AllowAndLog => "allow-and-log",
        ErrorMode::StripLabel => "strip-label",
    }
}
