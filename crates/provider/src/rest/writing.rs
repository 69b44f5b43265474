//! What changes something.

use std::time::Duration;

use axum::Extension;
use axum::Json as Answered;
use axum::extract::Path;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::Caller;
use super::handlers::json_of;
use super::problem::Problem;
use super::reading::Json;
use crate::cluster::MigrateTo;
use crate::disposal::Disks;
use crate::order::Order;
use crate::snapshot::Origin;
use crate::view::VmSummary;
use crate::wait::Goal;
use crate::{Error, Kind, VmId};

/// The longest that a request may wait, seconds.
const LONGEST: u64 = 300;

type Place = Path<(String, String)>;
type Answer = Result<(StatusCode, Answered<Value>), Problem>;

/// What every write takes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct OrderRequest {
    pub dry_run: bool,
    pub wait: bool,
    pub timeout_seconds: Option<u64>,
}

/// What takes nothing but that.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DryRun {
    pub dry_run: bool,
}

/// What `start` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct StartRequest {
    paused: bool,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// What `stop` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct StopRequest {
    grace_period_seconds: Option<u32>,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// What `restart` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RestartRequest {
    force: bool,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// What `migrate` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct MigrateRequest {
    node: Option<String>,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// What `snapshot` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct SnapshotRequest {
    name: Option<String>,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// What `restore` takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RestoreRequest {
    snapshot: String,
    #[serde(default)]
    stop: bool,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// What `clone` takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CloneRequest {
    target: String,
    #[serde(default)]
    snapshot: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// What `delete` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DeleteRequest {
    disks: Disks,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

impl OrderRequest {
    /// How long to wait, if at all.
    pub(super) fn patience(self) -> Result<Option<Duration>, Error> {
        let seconds = self.timeout_seconds.unwrap_or(60);
        if seconds > LONGEST {
            let wrong = format!("`timeoutSeconds` is more than {LONGEST}");
            return Err(Error::new(
                Kind::InvalidArgument,
                "reading the body",
                wrong,
                "ask again later instead",
            ));
        }
        Ok((self.wait && !self.dry_run).then(|| Duration::from_secs(seconds)))
    }

    /// Whether it is only asked about.
    pub(super) const fn is_dry_run(self) -> bool {
        self.dry_run
    }

    /// 200 for what is done or was only asked about, 202 for what was taken.
    pub(super) const fn status(self) -> StatusCode {
        if self.wait || self.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }
    }
}

async fn give(caller: &Caller, at: &(String, String), order: Order, how: OrderRequest) -> Answer {
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
    Path(at): Place,
    Json(request): Json<StartRequest>,
) -> Answer {
    let StartRequest { paused, dry_run, wait, timeout_seconds } = request;
    give(&caller, &at, Order::Start { paused }, OrderRequest { dry_run, wait, timeout_seconds }).await
}

/// `POST …/stop`
pub(super) async fn stop(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<StopRequest>,
) -> Answer {
    let StopRequest { grace_period_seconds: grace, dry_run, wait, timeout_seconds } = request;
    give(&caller, &at, Order::Stop { grace }, OrderRequest { dry_run, wait, timeout_seconds }).await
}

/// `POST …/restart`
pub(super) async fn restart(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<RestartRequest>,
) -> Answer {
    let RestartRequest { force, dry_run, wait, timeout_seconds } = request;
    give(&caller, &at, Order::Restart { force }, OrderRequest { dry_run, wait, timeout_seconds }).await
}

/// `POST …/pause`
pub(super) async fn pause(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(how): Json<OrderRequest>,
) -> Answer {
    give(&caller, &at, Order::Pause, how).await
}

/// `POST …/unpause`
pub(super) async fn unpause(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(how): Json<OrderRequest>,
) -> Answer {
    give(&caller, &at, Order::Unpause, how).await
}

/// `POST …/soft-reboot`
pub(super) async fn soft_reboot(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(how): Json<OrderRequest>,
) -> Answer {
    give(&caller, &at, Order::SoftReboot, how).await
}

/// `POST …/reset`
pub(super) async fn reset(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(how): Json<OrderRequest>,
) -> Answer {
    give(&caller, &at, Order::Reset, how).await
}

/// `POST …/migrate`
pub(super) async fn migrate(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<MigrateRequest>,
) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let MigrateRequest { node, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let mut migration = caller.provider.migrate(&vm, &MigrateTo { node }, dry_run).await?;
    if let Some(timeout) = patience {
        migration = caller.provider.wait_migration(&migration, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&migration)?))
}

/// `POST …/snapshot`
pub(super) async fn snapshot(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<SnapshotRequest>,
) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let SnapshotRequest { name, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let mut snapshot = caller.provider.snapshot(&vm, name.as_deref(), dry_run).await?;
    if let Some(timeout) = patience {
        snapshot = caller.provider.wait_snapshot(&snapshot, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&snapshot)?))
}

/// 202 for what was taken, 200 for what was only asked about.
pub(super) const fn taken(dry_run: bool) -> StatusCode {
    if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }
}

/// `POST …/migrate/cancel`
pub(super) async fn cancel_migration(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<DryRun>,
) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let migration = caller.provider.cancel_migration(&vm, request.dry_run).await?;
    Ok((taken(request.dry_run), json_of(&migration)?))
}

/// `POST …/restore`
pub(super) async fn restore(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<RestoreRequest>,
) -> Answer {
    let RestoreRequest { snapshot, stop, target, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let vm = VmId::new(&at.0, target.as_deref().unwrap_or(&at.1))?;
    let patience = how.patience()?;
    let restore = caller.provider.restore(&vm, &snapshot, stop, dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_restore(&restore, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&restore)?))
}

/// `POST …/clone`
pub(super) async fn clone(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<CloneRequest>,
) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let CloneRequest { target, snapshot, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let origin = snapshot.map_or_else(|| Origin::Vm(vm.name().into()), Origin::Snapshot);
    let clone = caller.provider.clone_vm(vm.namespace(), &origin, &target, dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_clone(&clone, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&clone)?))
}

/// `POST …/delete`. The answer is the plan that was, or with `dryRun` would be, carried out.
pub(super) async fn delete(
    Extension(caller): Extension<Caller>,
    Path(at): Place,
    Json(request): Json<DeleteRequest>,
) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let DeleteRequest { disks, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let plan = caller.provider.plan_delete(&vm, disks).await?;
    caller.provider.delete(&vm, &plan, dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait(&vm, &Goal::Deleted, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&plan)?))
}

/// `POST /kubevirt/vms/{namespace}`: the body is a `VirtualMachine`.
pub(super) async fn create(
    Extension(caller): Extension<Caller>,
    Path(namespace): Path<String>,
    Json(manifest): Json<Value>,
) -> Answer {
    let made = caller.provider.create_vm(&namespace, &manifest, false).await?;
    Ok((StatusCode::ACCEPTED, json_of(&VmSummary::of(&made, None))?))
}
