//! Which operation is where. The table is what the document is made from, and the router too.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};

use super::{Service, document, handlers, jobs, reading, writing};

/// An operation of the service.
pub(super) struct Route {
    /// `get` or `post`.
    pub method: &'static str,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Its name in the document.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The schema of its body, if it has one.
    pub body: Option<&'static str>,
    /// The status when it went well, and the schema of the answer.
    pub answer: (u16, &'static str),
    /// Whether it needs no identity.
    pub open: bool,
}

const fn read(path: &'static str, name: &'static str, summary: &'static str, answer: &'static str) -> Route {
    Route { method: "get", path, name, summary, body: None, answer: (200, answer), open: false }
}

const fn write(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
) -> Route {
    Route { method: "post", path, name, summary, body: Some(body), answer: (202, answer), open: false }
}

/// Every operation.
pub(super) const ROUTES: [Route; 28] = [
    Route { open: true, ..read("/health", "health", "Whether the service runs", "Health") },
    Route { open: true, ..read("/openapi.json", "openapi", "This document", "Any") },
    read("/status", "status", "What the service is and which cluster it speaks to", "Status"),
    read(
        "/capabilities",
        "capabilities",
        "What the cluster can do, and what the caller may do",
        "Capabilities",
    ),
    read("/kubevirt/usage", "usage", "What VMs use", "UsageList"),
    Route {
        answer: (200, "VmList"),
        ..write("/kubevirt/vms/list", "listVms", "List VMs; the answer is streamed", "ListRequest", "VmList")
    },
    read("/kubevirt/vms/watch", "watchVms", "Follow VMs as server-sent events", "Change"),
    read("/kubevirt/vms/{namespace}/{name}", "getVm", "Everything about a VM", "VmDetail"),
    read("/kubevirt/vms/{namespace}/{name}/snapshots", "listSnapshots", "Snapshots of a VM", "SnapshotList"),
    write("/kubevirt/vms/{namespace}/{name}/start", "startVm", "Switch it on", "StartRequest", "Done"),
    write("/kubevirt/vms/{namespace}/{name}/stop", "stopVm", "Shut it down", "StopRequest", "Done"),
    write(
        "/kubevirt/vms/{namespace}/{name}/restart",
        "restartVm",
        "Shut it down and start it again",
        "RestartRequest",
        "Done",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/pause",
        "pauseVm",
        "Let its CPUs stand still",
        "OrderRequest",
        "Done",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/unpause",
        "unpauseVm",
        "Let its CPUs go on",
        "OrderRequest",
        "Done",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/soft-reboot",
        "softRebootVm",
        "Ask the guest to reboot",
        "OrderRequest",
        "Done",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/reset",
        "resetVm",
        "Press the reset button",
        "OrderRequest",
        "Done",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/migrate",
        "migrateVm",
        "Move it to another node",
        "MigrateRequest",
        "Migration",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/snapshot",
        "snapshotVm",
        "Take a snapshot",
        "SnapshotRequest",
        "Snapshot",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/restore",
        "restoreVm",
        "Bring it back to a snapshot",
        "RestoreRequest",
        "Underway",
    ),
    write("/kubevirt/vms/{namespace}/{name}/clone", "cloneVm", "Make a copy", "CloneRequest", "Underway"),
    write(
        "/kubevirt/vms/{namespace}/{name}/delete",
        "deleteVm",
        "Delete it, and say what happens to its disks",
        "DeleteRequest",
        "DeletePlan",
    ),
    write("/jobs/submit", "submitJobs", "Have the cluster export VMs", "JobFile", "Submitted"),
    Route {
        answer: (200, "JobList"),
        ..write("/jobs/query", "queryJobs", "Export jobs", "JobQuery", "JobList")
    },
    read("/jobs/{id}", "getJob", "An export job", "Job"),
    write("/jobs/cancel", "cancelJobs", "End what export jobs are doing", "JobCancel", "Cancelled"),
    read("/jobs/progress/{id}", "jobProgress", "How far an export job is", "JobProgress"),
    read("/jobs/logs/{id}", "jobLogs", "What the pods of an export job said", "JobLogs"),
    write("/kubevirt/vms/{namespace}", "createVm", "Create a VM from a manifest", "Any", "Vm"),
];

/// What serves an operation; `None` for a name that is not in the table.
fn handler(name: &str) -> Option<MethodRouter<Arc<Service>>> {
    Some(match name {
        "health" => get(handlers::health),
        "openapi" => get(document::serve),
        "status" => get(handlers::status),
        "capabilities" => get(handlers::capabilities),
        "usage" => get(handlers::usage),
        "listVms" => post(reading::list),
        "watchVms" => get(reading::watch),
        "getVm" => get(handlers::describe),
        "listSnapshots" => get(handlers::snapshots),
        "startVm" => post(writing::start),
        "stopVm" => post(writing::stop),
        "restartVm" => post(writing::restart),
        "pauseVm" => post(writing::pause),
        "unpauseVm" => post(writing::unpause),
        "softRebootVm" => post(writing::soft_reboot),
        "resetVm" => post(writing::reset),
        "migrateVm" => post(writing::migrate),
        "snapshotVm" => post(writing::snapshot),
        "restoreVm" => post(writing::restore),
        "cloneVm" => post(writing::clone),
        "deleteVm" => post(writing::delete),
        "createVm" => post(writing::create),
        "submitJobs" => post(jobs::submit),
        "queryJobs" => post(jobs::query),
        "getJob" => get(jobs::get),
        "cancelJobs" => post(jobs::cancel),
        "jobProgress" => get(jobs::progress),
        "jobLogs" => get(jobs::logs),
        _ => return None,
    })
}

/// A router with the operations that need an identity, or with the others.
pub(super) fn add(open: bool) -> Router<Arc<Service>> {
    ROUTES.iter().filter(|route| route.open == open).fold(Router::new(), |router, route| {
        match handler(route.name) {
            Some(handler) => router.route(route.path, handler),
            None => router,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_table_is_served() {
        for route in &ROUTES {
            assert!(handler(route.name).is_some(), "{}", route.name);
        }
        // a path that is there twice would panic
        drop(add(false).merge(add(true)));
    }
}
