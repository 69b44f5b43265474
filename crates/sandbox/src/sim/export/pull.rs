//! Extent maps and ranges of backups (`backupMapHandler`, `backupDataHandler`, `KubeVirt` v1.9).

use apimachinery::tree::{Value, json};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::super::backup::guests::{Extent, HOLE_OR_DIRTY, Job, Pull, ZERO, extents};
use super::server::{Body, plain, put};

/// Extents of a page when nobody says how many.
const PAGE: usize = 512;

/// Why a request is not answered.
pub type Refusal = (StatusCode, String);

/// The disk and the range that a request is about.
///
/// # Errors
/// The refusal.
pub fn range(
    job: Option<&Job>,
    request: &Request<Incoming>,
    volume: &str,
) -> Result<(Pull, u64, u64), Refusal> {
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, String::new()));
    }
    let Some(job) = job else {
        let why = "Backup source (virt-launcher) not connected via tunnel\n";
        return Err((StatusCode::SERVICE_UNAVAILABLE, why.into()));
    };
    let (offset, length) = (number(request, "offset")?.unwrap_or(0), number(request, "length")?.unwrap_or(0));
    let failed = || (StatusCode::INTERNAL_SERVER_ERROR, format!("Failed to call map for export: {volume}\n"));
    let found = job.disks.get(volume).ok_or_else(failed)?;
    let size = found.disk.metadata().map_err(|_| failed())?.len();
    if offset >= size {
        return Err(failed());
    }
    let end = match length {
        0 => size,
        length => offset.saturating_add(length).min(size),
    };
    Ok((found.clone(), offset, end))
}

/// A number among the query parameters.
fn number(request: &Request<Incoming>, name: &str) -> Result<Option<u64>, Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let given = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let Some(text) = given.filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| (StatusCode::BAD_REQUEST, format!("invalid {name} \"{text}\"\n")))
}

/// A page of the map.
pub async fn map(job: Option<&Job>, request: &Request<Incoming>, volume: &str) -> Response<Body> {
    let (disk, start, end) = match range(job, request, volume) {
        Ok(found) => found,
        Err((status, why)) => return plain(status, &why),
    };
    let page = match number(request, "page_size").map(|size| size.map(usize::try_from)) {
        Ok(None) => PAGE,
        Ok(Some(Ok(size))) if size > 0 => size,
        _ => return plain(StatusCode::BAD_REQUEST, "invalid page_size\n"),
    };
    let incremental = disk.before.is_some();
    let found = tokio::task::spawn_blocking(move || extents(&disk, start, end)).await;
    let Ok(found) = found.map_err(std::io::Error::other).flatten() else {
        let why = format!("Failed to collect map extents for export: {volume}\n");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, &why);
    };
    let next = found.get(page).map(|extent| extent.offset);
    let shown: Vec<Value> = found.iter().take(page).map(|extent| show(extent, incremental)).collect();
    let text = json!({"extents": shown, "next_offset": next}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    put(&mut response, CONTENT_TYPE, "application/json");
    response
}

fn show(extent: &Extent, incremental: bool) -> Value {
    let description = match (extent.flags, incremental) {
        (0, false) => "data",
        (0, true) => "clean",
        (ZERO, _) => "zero",
        (HOLE_OR_DIRTY, false) => "hole",
        (HOLE_OR_DIRTY, true) => "dirty",
        (_, false) => "hole,zero",
        (_, true) => "dirty,zero",
    };
    json!({"offset": extent.offset, "length": extent.length, "type": extent.flags, "description": description})
}
