//! Volumes and snapshots.

use axum::Extension;
use axum::Json as Answered;
use axum::extract::Path;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Caller;
use super::handlers::{Answer, PlaceQuery, items, json_of, place};
use super::problem::Problem;
use super::reading::Json;
use super::writing::{DryRun, OrderRequest, taken};
use crate::VmId;
use crate::cluster::{Attach, ExportWish, VolumeChange};

type At = Path<(String, String)>;
type Written = Result<(StatusCode, Answered<Value>), Problem>;

/// `GET …/volumes`
pub(super) async fn volumes(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    items(&caller.provider.volumes(&VmId::new(&at.0, &at.1)?).await?)
}

/// What `POST …/volumes` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct VolumeRequest {
    add: Vec<Attach>,
    remove: Vec<String>,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// `POST …/volumes`: one step, or with `wait` all of them.
pub(super) async fn change_volumes(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<VolumeRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let VolumeRequest { add, remove, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let change = VolumeChange { add, remove };
    let changed = match how.patience()? {
        Some(timeout) => caller.provider.change_volumes(&vm, &change, timeout, &mut |_| ()).await?,
        None => caller.provider.step_volumes(&vm, &change, dry_run).await?,
    };
    Ok((how.status(), json_of(&changed)?))
}

/// What `POST …/volumes/{volume}/expand` takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExpandRequest {
    size: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// `POST …/volumes/{volume}/expand`
pub(super) async fn expand(
    Extension(caller): Extension<Caller>,
    Path((namespace, name, volume)): Path<(String, String, String)>,
    Json(request): Json<ExpandRequest>,
) -> Written {
    let vm = VmId::new(&namespace, &name)?;
    let ExpandRequest { size, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let expansion = caller.provider.expand_volume(&vm, &volume, &size, dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_expansion(&expansion, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&expansion)?))
}

/// What `POST …/export` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExportRequest {
    snapshot: Option<String>,
    ttl_hours: Option<u16>,
    dry_run: bool,
    wait: bool,
    timeout_seconds: Option<u64>,
}

/// `POST …/export`: KubeVirt's export server, and where its volumes are.
pub(super) async fn export(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<ExportRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let ExportRequest { snapshot, ttl_hours, dry_run, wait, timeout_seconds } = request;
    let how = OrderRequest { dry_run, wait, timeout_seconds };
    let patience = how.patience()?;
    let mut export = caller.provider.export(&vm, &ExportWish { snapshot, ttl_hours }, dry_run).await?;
    if let Some(timeout) = patience {
        export = caller.provider.wait_export(&export, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&export)?))
}

/// `GET /kubevirt/exports/{namespace}/{name}`
pub(super) async fn get_export(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&caller.provider.get_export(&VmId::new(&at.0, &at.1)?).await?)
}

/// `POST /kubevirt/exports/{namespace}/{name}/delete`
pub(super) async fn delete_export(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DryRun>,
) -> Written {
    caller.provider.delete_export(&VmId::new(&at.0, &at.1)?, request.dry_run).await?;
    let answer = json!({"namespace": at.0, "name": at.1, "dryRun": request.dry_run});
    Ok((taken(request.dry_run), Answered(answer)))
}

/// `GET /kubevirt/snapshots`
pub(super) async fn all_snapshots(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let place = place(query)?.of(&caller);
    items(&caller.provider.snapshots(place.as_deref(), None).await?)
}

/// `GET /kubevirt/snapshots/{namespace}/{name}`
pub(super) async fn snapshot(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&caller.provider.get_snapshot(&at.0, &at.1).await?)
}

/// `POST /kubevirt/snapshots/{namespace}/{name}/delete`
pub(super) async fn delete_snapshot(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DryRun>,
) -> Written {
    caller.provider.delete_snapshot(&at.0, &at.1, request.dry_run).await?;
    let answer = json!({"namespace": at.0, "name": at.1, "dryRun": request.dry_run});
    Ok((taken(request.dry_run), Answered(answer)))
}
