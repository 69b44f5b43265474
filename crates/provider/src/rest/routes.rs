//! The table of operations: what is served, and what the document says about it.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};

use super::{
    Service, document, handlers, inside, inventory, jobs, page, reading, storage, templates, writing,
};

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
    /// Parameters of its query, and their types.
    pub query: &'static [(&'static str, &'static str)],
    /// The schema of its body, if it has one.
    pub body: Option<&'static str>,
    /// The status when it went well, and the schema of the answer.
    pub answer: (u16, &'static str),
    /// What the answer is, unless it is JSON.
    pub kind: &'static str,
    /// Whether it needs no identity.
    pub open: bool,
}

/// Of which namespace something is asked.
const PLACE: &[(&str, &str)] = &[("namespace", "string"), ("allNamespaces", "boolean")];

const fn read(path: &'static str, name: &'static str, summary: &'static str, answer: &'static str) -> Route {
    Route {
        method: "get",
        path,
        name,
        summary,
        query: &[],
        body: None,
        answer: (200, answer),
        kind: "application/json",
        open: false,
    }
}

/// Something that is read in a namespace or in all.
const fn look(path: &'static str, name: &'static str, summary: &'static str, answer: &'static str) -> Route {
    Route { query: PLACE, ..read(path, name, summary, answer) }
}

const fn write(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
) -> Route {
    Route { method: "post", body: Some(body), answer: (202, answer), ..read(path, name, summary, answer) }
}

/// What answers a question that needs a body.
const fn ask(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
) -> Route {
    Route { answer: (200, answer), ..write(path, name, summary, body, answer) }
}

/// A `WebSocket`.
const fn socket(path: &'static str, name: &'static str, summary: &'static str) -> Route {
    Route { answer: (101, "Any"), kind: "", ..read(path, name, summary, "Any") }
}

/// Every operation.
pub(super) const ROUTES: [Route; 64] = [
    Route { open: true, ..read("/health", "health", "Whether the service runs", "Health") },
    Route { open: true, ..read("/openapi.json", "openapi", "This document", "Any") },
    Route {
        open: true,
        kind: "text/html",
        ..read("/", "page", "This document as a page, to look around and to try it", "Any")
    },
    read("/status", "status", "What the service is and which cluster it speaks to", "Status"),
    look(
        "/capabilities",
        "capabilities",
        "What the cluster can do, and what the caller may do",
        "Capabilities",
    ),
    Route {
        query: &[("namespace", "string"), ("allNamespaces", "boolean"), ("source", "string")],
        ..read("/kubevirt/usage", "usage", "What VMs use, from the best source there is", "UsageReport")
    },
    look("/kubevirt/migrations", "listMigrations", "Migrations", "MigrationList"),
    read(
        "/kubevirt/migrations/{namespace}/{name}",
        "getMigration",
        "A migration, and how much of the memory has gone over",
        "Migration",
    ),
    write(
        "/kubevirt/migrations/{namespace}/{name}/cancel",
        "endMigration",
        "End a migration by its own name",
        "DryRun",
        "Migration",
    ),
    read("/kubevirt/nodes", "listNodes", "Nodes and what runs on them", "NodeList"),
    read("/kubevirt/nodes/{name}", "getNode", "A node, its features and its VMs", "NodeDetail"),
    look("/kubevirt/instancetypes", "listInstancetypes", "Instance types", "InstancetypeList"),
    look("/kubevirt/preferences", "listPreferences", "Preferences", "PreferenceList"),
    read(
        "/kubevirt/instancetypes/{namespace}/{name}",
        "getInstancetype",
        "The instance type that a VM of the namespace means by a name",
        "Instancetype",
    ),
    read(
        "/kubevirt/preferences/{namespace}/{name}",
        "getPreference",
        "The preference that a VM of the namespace means by a name",
        "Preference",
    ),
    look("/kubevirt/templates", "listTemplates", "Templates", "TemplateList"),
    read("/kubevirt/templates/{namespace}/{name}", "getTemplate", "A template", "Template"),
    ask(
        "/kubevirt/templates/{namespace}/{name}/process",
        "processTemplate",
        "Fill a template in",
        "ProcessRequest",
        "Processed",
    ),
    write(
        "/kubevirt/templates/{namespace}/{name}/create",
        "createFromTemplate",
        "Create a VM from a template",
        "CreateFromTemplate",
        "Processed",
    ),
    write(
        "/kubevirt/templates/{namespace}/{name}/delete",
        "deleteTemplate",
        "Delete a template",
        "DryRun",
        "Deleted",
    ),
    look("/kubevirt/snapshots", "listAllSnapshots", "Snapshots of any VM", "SnapshotList"),
    read("/kubevirt/snapshots/{namespace}/{name}", "getSnapshot", "A snapshot", "Snapshot"),
    write(
        "/kubevirt/snapshots/{namespace}/{name}/delete",
        "deleteSnapshot",
        "Delete a snapshot",
        "DryRun",
        "Deleted",
    ),
    ask("/kubevirt/vms/list", "listVms", "List VMs; the answer is streamed", "ListRequest", "VmList"),
    Route {
        query: &[("namespace", "string"), ("allNamespaces", "boolean"), ("labelSelector", "string")],
        kind: "text/event-stream",
        ..read("/kubevirt/vms/watch", "watchVms", "Follow VMs as server-sent events", "Change")
    },
    Route {
        query: &[("dryRun", "boolean")],
        ..write("/kubevirt/vms/{namespace}", "createVm", "Create a VM from a manifest", "Any", "Vm")
    },
    read("/kubevirt/vms/{namespace}/{name}", "getVm", "Everything about a VM", "VmDetail"),
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
        "/kubevirt/vms/{namespace}/{name}/migrate/cancel",
        "cancelMigration",
        "End the migration that is under way",
        "DryRun",
        "Migration",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/snapshot",
        "snapshotVm",
        "Take a snapshot",
        "SnapshotRequest",
        "Snapshot",
    ),
    read("/kubevirt/vms/{namespace}/{name}/snapshots", "listSnapshots", "Snapshots of a VM", "SnapshotList"),
    write(
        "/kubevirt/vms/{namespace}/{name}/restore",
        "restoreVm",
        "Bring it back to a snapshot, or make a new VM from one",
        "RestoreRequest",
        "Underway",
    ),
    write("/kubevirt/vms/{namespace}/{name}/clone", "cloneVm", "Make a copy", "CloneRequest", "Underway"),
    write(
        "/kubevirt/vms/{namespace}/{name}/template",
        "templateVm",
        "Make a template from it",
        "TemplateRequest",
        "Underway",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/delete",
        "deleteVm",
        "Delete it, and say what happens to its disks",
        "DeleteRequest",
        "DeletePlan",
    ),
    Route {
        query: &[("dryRun", "boolean")],
        ..write("/jobs/submit", "submitJobs", "Have the cluster export VMs", "JobFile", "Submitted")
    },
    ask("/jobs/query", "queryJobs", "Export jobs", "JobQuery", "JobList"),
    read("/jobs/{id}", "getJob", "An export job", "Job"),
    Route {
        query: &[("dryRun", "boolean")],
        ..write("/jobs/cancel", "cancelJobs", "End what export jobs are doing", "JobCancel", "Cancelled")
    },
    read("/jobs/progress/{id}", "jobProgress", "How far an export job is", "JobProgress"),
    read("/jobs/logs/{id}", "jobLogs", "What the pods of an export job said", "JobLogs"),
    write(
        "/kubevirt/vms/{namespace}/{name}/export",
        "exportVm",
        "Start KubeVirt's export server for it, and say where its volumes are",
        "ExportRequest",
        "Export",
    ),
    read("/kubevirt/exports/{namespace}/{name}", "getExport", "An export and its links", "Export"),
    write(
        "/kubevirt/exports/{namespace}/{name}/delete",
        "deleteExport",
        "End an export",
        "DryRun",
        "Deleted",
    ),
    read(
        "/kubevirt/vms/{namespace}/{name}/volumes",
        "listVolumes",
        "Volumes of a VM, with the claims behind them",
        "VolumeList",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/volumes",
        "changeVolumes",
        "Attach and detach volumes",
        "VolumeRequest",
        "VolumeChange",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/volumes/{volume}/expand",
        "expandVolume",
        "Make a volume larger",
        "ExpandRequest",
        "Expansion",
    ),
    read("/kubevirt/vms/{namespace}/{name}/nics", "listNics", "Network interfaces of a VM", "NicList"),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics",
        "addNic",
        "Add a network interface; the answer says when it takes effect",
        "NicRequest",
        "NicChange",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics/{nic}/remove",
        "removeNic",
        "Remove a network interface",
        "OrderRequest",
        "NicChange",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics/{nic}/link",
        "setLink",
        "The cable of an interface in, or out",
        "LinkRequest",
        "NicChange",
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/devices",
        "changeDevice",
        "Attach or detach a GPU or another host device, on the next start",
        "DeviceRequest",
        "DeviceChange",
    ),
    read("/kubevirt/vms/{namespace}/{name}/guest", "getGuest", "What the guest agent tells", "Guest"),
    Route {
        kind: "image/png",
        ..read("/kubevirt/vms/{namespace}/{name}/screenshot", "screenshot", "What is on the screen", "Any")
    },
    socket("/kubevirt/vms/{namespace}/{name}/console", "console", "The serial console, as a WebSocket"),
    socket("/kubevirt/vms/{namespace}/{name}/vnc", "vnc", "The screen as RFB, as a WebSocket"),
    socket(
        "/kubevirt/vms/{namespace}/{name}/portforward/{port}",
        "portForward",
        "A TCP port of the guest, as a WebSocket",
    ),
];

/// What serves an operation; `None` for a name that is not in the table.
fn handler(name: &str) -> Option<MethodRouter<Arc<Service>>> {
    Some(match name {
        "health" => get(handlers::health),
        "openapi" => get(document::serve),
        "page" => get(page::serve),
        "status" => get(handlers::status),
        "capabilities" => get(handlers::capabilities),
        "usage" => get(inventory::usage),
        "listMigrations" => get(inventory::migrations),
        "getMigration" => get(inventory::migration),
        "endMigration" => post(writing::end_migration),
        "getInstancetype" => get(inventory::instancetype),
        "getPreference" => get(inventory::preference),
        "listNodes" => get(inventory::nodes),
        "getNode" => get(inventory::node),
        "listInstancetypes" => get(inventory::instancetypes),
        "listPreferences" => get(inventory::preferences),
        "listTemplates" => get(templates::list),
        "getTemplate" => get(templates::one),
        "processTemplate" => post(templates::process),
        "createFromTemplate" => post(templates::create),
        "deleteTemplate" => post(templates::delete),
        "listAllSnapshots" => get(storage::all_snapshots),
        "getSnapshot" => get(storage::snapshot),
        "deleteSnapshot" => post(storage::delete_snapshot),
        "listVms" => post(reading::list),
        "watchVms" => get(reading::watch),
        "createVm" => post(writing::create),
        "getVm" => get(handlers::describe),
        "startVm" => post(writing::start),
        "stopVm" => post(writing::stop),
        "restartVm" => post(writing::restart),
        "pauseVm" => post(writing::pause),
        "unpauseVm" => post(writing::unpause),
        "softRebootVm" => post(writing::soft_reboot),
        "resetVm" => post(writing::reset),
        "migrateVm" => post(writing::migrate),
        "cancelMigration" => post(writing::cancel_migration),
        "snapshotVm" => post(writing::snapshot),
        "listSnapshots" => get(handlers::snapshots),
        "restoreVm" => post(writing::restore),
        "cloneVm" => post(writing::clone),
        "templateVm" => post(templates::make),
        "deleteVm" => post(writing::delete),
        "submitJobs" => post(jobs::submit),
        "queryJobs" => post(jobs::query),
        "getJob" => get(jobs::get),
        "cancelJobs" => post(jobs::cancel),
        "jobProgress" => get(jobs::progress),
        "jobLogs" => get(jobs::logs),
        "exportVm" => post(storage::export),
        "getExport" => get(storage::get_export),
        "deleteExport" => post(storage::delete_export),
        "listVolumes" => get(storage::volumes),
        "changeVolumes" => post(storage::change_volumes),
        "expandVolume" => post(storage::expand),
        "listNics" => get(inside::nics),
        "addNic" => post(inside::add_nic),
        "removeNic" => post(inside::remove_nic),
        "setLink" => post(inside::set_link),
        "changeDevice" => post(inside::change_device),
        "getGuest" => get(inside::guest),
        "screenshot" => get(inside::screenshot),
        "console" => get(inside::console),
        "vnc" => get(inside::vnc),
        "portForward" => get(inside::port),
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
