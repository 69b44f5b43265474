//! What changes something.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::routing::post;
use serde_json::Value;

use super::Caller;
use super::bodies::{At, DryRun, DryRunQuery, OrderRequest, Written, lasting, taken};
use super::handlers::json_of;
use super::reading::Json;
use super::routes::{DRY_RUN, Route, write};
use crate::VmId;
use crate::clone::{Origin, Wish};
use crate::cluster::MigrateTo;
use crate::disposal::Disks;
use crate::order::Order;
use crate::view::VmSummary;
use crate::wait::Goal;

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    write(
        "/kubevirt/migrations/{namespace}/{name}/cancel",
        "endMigration",
        "End a migration by its own name",
        "DryRun",
        "Migration",
        || post(end_migration),
    ),
    Route {
        query: DRY_RUN,
        ..write("/kubevirt/vms/{namespace}", "createVm", "Create a VM from a manifest", "Any", "Vm", || {
            post(create)
        })
    },
    write(
        "/kubevirt/vms/{namespace}/{name}/start",
        "startVm",
        "Switch it on",
        "StartRequest",
        "Done",
        || post(start),
    ),
    write("/kubevirt/vms/{namespace}/{name}/stop", "stopVm", "Shut it down", "StopRequest", "Done", || {
        post(stop)
    }),
    write(
        "/kubevirt/vms/{namespace}/{name}/restart",
        "restartVm",
        "Shut it down and start it again",
        "RestartRequest",
        "Done",
        || post(restart),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/pause",
        "pauseVm",
        "Let its CPUs stand still",
        "OrderRequest",
        "Done",
        || post(pause),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/unpause",
        "unpauseVm",
        "Let its CPUs go on",
        "OrderRequest",
        "Done",
        || post(unpause),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/soft-reboot",
        "softRebootVm",
        "Ask the guest to reboot",
        "OrderRequest",
        "Done",
        || post(soft_reboot),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/reset",
        "resetVm",
        "Press the reset button",
        "OrderRequest",
        "Done",
        || post(reset),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/migrate",
        "migrateVm",
        "Move it to another node",
        "MigrateRequest",
        "Migration",
        || post(migrate),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/migrate/cancel",
        "cancelMigration",
        "End the migration that is under way",
        "DryRun",
        "Migration",
        || post(cancel_migration),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/snapshot",
        "snapshotVm",
        "Take a snapshot",
        "SnapshotRequest",
        "Snapshot",
        || post(snapshot),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/restore",
        "restoreVm",
        "Bring it back to a snapshot, or make a new VM from one",
        "RestoreRequest",
        "Underway",
        || post(restore),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/clone",
        "cloneVm",
        "Make a copy",
        "CloneRequest",
        "Underway",
        || post(clone),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/delete",
        "deleteVm",
        "Delete it, and say what happens to its disks",
        "DeleteRequest",
        "DeletePlan",
        || post(delete),
    ),
];

lasting! {
    /// What `start` takes.
    StartRequest {
        #[serde(default)]
        paused: bool,
    }
}

lasting! {
    /// What `stop` takes.
    StopRequest {
        #[serde(default)]
        grace_period_seconds: Option<u32>,
    }
}

lasting! {
    /// What `restart` takes.
    RestartRequest {
        #[serde(default)]
        force: bool,
    }
}

lasting! {
    /// What `migrate` takes.
    MigrateRequest {
        #[serde(default)]
        node: Option<String>,
    }
}

lasting! {
    /// What `snapshot` takes.
    SnapshotRequest {
        #[serde(default)]
        name: Option<String>,
    }
}

lasting! {
    /// What `restore` takes.
    RestoreRequest {
        snapshot: String,
        #[serde(default)]
        stop: bool,
        #[serde(default)]
        target: Option<String>,
    }
}

lasting! {
    /// What `clone` takes.
    CloneRequest {
        target: String,
        #[serde(default)]
        snapshot: Option<String>,
        #[serde(default)]
        mac_addresses: BTreeMap<String, String>,
        #[serde(default)]
        serial: Option<String>,
    }
}

lasting! {
    /// What `delete` takes.
    DeleteRequest {
        #[serde(default)]
        disks: Disks,
    }
}

async fn give(caller: &Caller, at: &(String, String), order: Order, how: OrderRequest) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let patience = how.patience()?;
    let done = caller.provider.order(&vm, order, how.dry_run).await?;
    if let (Some(timeout), Some(goal)) = (patience, &done.goal) {
        caller.provider.wait(&vm, goal, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&done)?))
}

/// `POST …/start`
pub(super) async fn start(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<StartRequest>,
) -> Written {
    give(&caller, &at, Order::Start { paused: request.paused }, request.how()).await
}

/// `POST …/stop`
pub(super) async fn stop(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<StopRequest>,
) -> Written {
    give(&caller, &at, Order::Stop { grace: request.grace_period_seconds }, request.how()).await
}

/// `POST …/restart`
pub(super) async fn restart(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<RestartRequest>,
) -> Written {
    give(&caller, &at, Order::Restart { force: request.force }, request.how()).await
}

/// `POST …/pause`
pub(super) async fn pause(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(how): Json<OrderRequest>,
) -> Written {
    give(&caller, &at, Order::Pause, how).await
}

/// `POST …/unpause`
pub(super) async fn unpause(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(how): Json<OrderRequest>,
) -> Written {
    give(&caller, &at, Order::Unpause, how).await
}

/// `POST …/soft-reboot`
pub(super) async fn soft_reboot(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(how): Json<OrderRequest>,
) -> Written {
    give(&caller, &at, Order::SoftReboot, how).await
}

/// `POST …/reset`
pub(super) async fn reset(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(how): Json<OrderRequest>,
) -> Written {
    give(&caller, &at, Order::Reset, how).await
}

/// `POST …/migrate`
pub(super) async fn migrate(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<MigrateRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let mut migration = caller.provider.migrate(&vm, &MigrateTo { node: request.node }, how.dry_run).await?;
    if let Some(timeout) = patience {
        migration = caller.provider.wait_migration(&migration, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&migration)?))
}

/// `POST …/snapshot`
pub(super) async fn snapshot(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<SnapshotRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let mut snapshot = caller.provider.snapshot(&vm, request.name.as_deref(), how.dry_run).await?;
    if let Some(timeout) = patience {
        snapshot = caller.provider.wait_snapshot(&snapshot, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&snapshot)?))
}

/// `POST …/migrate/cancel`
pub(super) async fn cancel_migration(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DryRun>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let migration = caller.provider.cancel_migration(&vm, request.dry_run).await?;
    Ok((taken(request.dry_run), json_of(&migration)?))
}

/// `POST /kubevirt/migrations/{namespace}/{name}/cancel`
pub(super) async fn end_migration(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DryRun>,
) -> Written {
    let migration = caller.provider.end_migration(&VmId::new(&at.0, &at.1)?, request.dry_run).await?;
    Ok((taken(request.dry_run), json_of(&migration)?))
}

/// `POST …/restore`
pub(super) async fn restore(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<RestoreRequest>,
) -> Written {
    let how = request.how();
    let RestoreRequest { snapshot, stop, target, .. } = request;
    let vm = VmId::new(&at.0, target.as_deref().unwrap_or(&at.1))?;
    let patience = how.patience()?;
    let restore = caller.provider.restore(&vm, &snapshot, stop, how.dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_restore(&restore, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&restore)?))
}

/// `POST …/clone`
pub(super) async fn clone(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<CloneRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let CloneRequest { target, snapshot, mac_addresses: macs, serial, .. } = request;
    let origin = snapshot.map_or_else(|| Origin::Vm(vm.name().into()), Origin::Snapshot);
    let wish = Wish { target, macs, serial };
    let clone = caller.provider.clone_vm(vm.namespace(), &origin, &wish, how.dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_clone(&clone, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&clone)?))
}

/// `POST …/delete`. The answer is the plan that was, or with `dryRun` would be, carried out.
pub(super) async fn delete(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DeleteRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let plan = caller.provider.plan_delete(&vm, request.disks).await?;
    caller.provider.delete(&vm, &plan, how.dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait(&vm, &Goal::Deleted, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&plan)?))
}

/// `POST /kubevirt/vms/{namespace}`: the body is a `VirtualMachine`.
pub(super) async fn create(
    Extension(caller): Extension<Caller>,
    Path(namespace): Path<String>,
    query: Result<Query<DryRunQuery>, QueryRejection>,
    Json(manifest): Json<Value>,
) -> Written {
    let dry_run = DryRunQuery::of(query)?;
    let made = caller.provider.create_vm(&namespace, &manifest, dry_run).await?;
    Ok((taken(dry_run), json_of(&VmSummary::of(&made, None))?))
}
