//! Subresources that are actions or other kinds.

mod binding;
mod eviction;
mod review;
mod scale;

pub use eviction::is_ready;

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use super::reply::{self, Reply};
use super::{Api, Call, not_allowed};

/// The end of a log that is answered, in bytes.
const MAX_LOG: usize = 8 << 20;

impl Api {
    /// Answers a request for a subresource that is not simply part of its object.
    /// `None`: it is.
    ///
    /// # Errors
    /// Whatever the subresource answers.
    pub async fn subresource(self: &Arc<Self>, call: &mut Call, verb: &str) -> Option<Result<Reply, Status>> {
        let name = call.target.subresource.clone();
        Some(match (call.kind.plural.as_str(), name.as_str(), verb) {
            ("pods", "binding", "create") => self.bind(call).await,
            ("pods", "eviction", "create") => self.evict(call).await,
            ("serviceaccounts", "token", "create") => self.token(call),
            (_, "scale", "get" | "update" | "patch") => self.scale(call, verb).await,
            ("pods", "log", "get") if self.has_log(call) => Ok(self.log(call)),
            ("pods", "log" | "exec" | "attach" | "portforward", _) => self.no_container(call),
            (_, "status" | "resize" | "ephemeralcontainers" | "finalize" | "approval", _) => return None,
            _ => Err(not_allowed()),
        })
    }

    fn has_log(&self, call: &Call) -> bool {
        self.log_file(call).is_some()
    }

    fn log_file(&self, call: &Call) -> Option<std::path::PathBuf> {
        let pod = self.stored(call).ok()?.value();
        (self.logs.get()?)(pod["metadata"]["uid"].as_str()?)
    }

    /// What a pod with a process behind it has said so far; it is not followed.
    fn log(&self, call: &Call) -> Reply {
        let path = self.log_file(call).unwrap_or_default();
        let text = std::fs::read(path).unwrap_or_default();
        let limit = call.query.get("limitBytes").and_then(|limit| limit.parse().ok()).unwrap_or(MAX_LOG);
        let text = text.get(text.len().saturating_sub(limit.min(MAX_LOG))..).unwrap_or_default();
        let lines = call.query.get("tailLines").and_then(|lines| lines.parse::<usize>().ok());
        let start = lines.map_or(0, |wanted| {
            let body = text.strip_suffix(b"\n").unwrap_or(text);
            let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
            breaks.map(|(at, _)| at + 1).nth(wanted.saturating_sub(1)).unwrap_or(0)
        });
        reply::text(200, text.get(start..).unwrap_or_default().to_vec())
    }

    /// There are no containers behind the sandbox's pods, and it does not pretend that there are.
    fn no_container(&self, call: &Call) -> Result<Reply, Status> {
        let pod = self.stored(call)?.value();
        let wanted = call.query.get("container");
        let mut containers = ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
        if let Some(wanted) = wanted
            && !containers.any(|container| container["name"] == wanted)
        {
            let message = format!("container {wanted} is not valid for pod {}", call.target.name);
            return Err(Status::bad_request(message));
        }
        if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
            if call.target.subresource == "log" {
                return Ok(reply::no_content());
            }
            let message = format!("pod {} does not have a host assigned", call.target.name);
            return Err(Status::bad_request(message));
        }
        Err(Status::internal(&format!(
            "error dialing backend: pod {:?} is simulated: it has no containers to attach to and no logs",
            call.target.name
        )))
    }
}

/// The answer of bindings and evictions.
fn done() -> Reply {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    reply::json(201, &status)
}

/// Sets a condition by its type.
fn set_condition(object: &mut Value, kind: &str, status: &str, now: &str) {
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let wanted = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now});
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(condition) if condition["status"] == status => {}
        Some(condition) => *condition = wanted,
        None => conditions.push(wanted),
    }
}
