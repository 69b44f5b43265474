//! Volumes and snapshots.

use axum::Extension;
use axum::extract::Path;
use axum::routing::{get, post};

use super::Caller;
use super::bodies::{At, DryRun, Written, deleted, lasting};
use super::handlers::{Answer, PlaceQuery, items, json_of, place};
use super::reading::Json;
use super::routes::{Route, look, read, write};
use crate::VmId;
use crate::cluster::{Attach, ExportWish, VolumeChange};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    look("/kubevirt/snapshots", "listAllSnapshots", "Snapshots of any VM", "SnapshotList", || {
        get(all_snapshots)
    }),
    read("/kubevirt/snapshots/{namespace}/{name}", "getSnapshot", "A snapshot", "Snapshot", || get(snapshot)),
    write(
        "/kubevirt/snapshots/{namespace}/{name}/delete",
        "deleteSnapshot",
        "Delete a snapshot",
        "DryRun",
        "Deleted",
        || post(delete_snapshot),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/export",
        "exportVm",
        "Start KubeVirt's export server for it, and say where its volumes are",
        "ExportRequest",
        "Export",
        || post(export),
    ),
    read("/kubevirt/exports/{namespace}/{name}", "getExport", "An export and its links", "Export", || {
        get(get_export)
    }),
    write(
        "/kubevirt/exports/{namespace}/{name}/delete",
        "deleteExport",
        "End an export",
        "DryRun",
        "Deleted",
        || post(delete_export),
    ),
    read(
        "/kubevirt/vms/{namespace}/{name}/volumes",
        "listVolumes",
        "Volumes of a VM, with the claims behind them",
        "VolumeList",
        || get(volumes),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/volumes",
        "changeVolumes",
        "Attach and detach volumes",
        "VolumeRequest",
        "VolumeChange",
        || post(change_volumes),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/volumes/{volume}/expand",
        "expandVolume",
        "Make a volume larger",
        "ExpandRequest",
        "Expansion",
        || post(expand),
    ),
];

/// `GET …/volumes`
pub(super) async fn volumes(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    items(&caller.provider.volumes(&VmId::new(&at.0, &at.1)?).await?)
}

lasting! {
    /// What `POST …/volumes` takes.
    VolumeRequest {
        #[serde(default)]
        add: Vec<Attach>,
        #[serde(default)]
        remove: Vec<String>,
    }
}

/// `POST …/volumes`: one step, or with `wait` all of them.
pub(super) async fn change_volumes(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<VolumeRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let VolumeRequest { add, remove, .. } = request;
    let change = VolumeChange { add, remove };
    let changed = match how.patience()? {
        Some(timeout) => caller.provider.change_volumes(&vm, &change, timeout, &mut |_| ()).await?,
        None => caller.provider.step_volumes(&vm, &change, how.dry_run).await?,
    };
    Ok((how.status(), json_of(&changed)?))
}

lasting! {
    /// What `POST …/volumes/{volume}/expand` takes.
    ExpandRequest {
        size: String,
    }
}

/// `POST …/volumes/{volume}/expand`
pub(super) async fn expand(
    Extension(caller): Extension<Caller>,
    Path((namespace, name, volume)): Path<(String, String, String)>,
    Json(request): Json<ExpandRequest>,
) -> Written {
    let vm = VmId::new(&namespace, &name)?;
    let how = request.how();
    let patience = how.patience()?;
    let expansion = caller.provider.expand_volume(&vm, &volume, &request.size, how.dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_expansion(&expansion, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&expansion)?))
}

lasting! {
    /// What `POST …/export` takes.
    ExportRequest {
        #[serde(default)]
        snapshot: Option<String>,
        #[serde(default)]
        ttl_hours: Option<u16>,
    }
}

/// `POST …/export`: KubeVirt's export server, and where its volumes are.
pub(super) async fn export(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<ExportRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let wish = ExportWish { snapshot: request.snapshot, ttl_hours: request.ttl_hours };
    let mut export = caller.provider.export(&vm, &wish, how.dry_run).await?;
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
    deleted(&at, request.dry_run)
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
    deleted(&at, request.dry_run)
}
