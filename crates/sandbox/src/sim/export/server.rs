//! The export server (pkg/storage/export/virt-exportserver, `KubeVirt` v1.9) behind the proxy's
//! paths: `/api/export.kubevirt.io/v1/namespaces/NS/virtualmachineexports/NAME/volumes/VOLUME/…`
//!
//! | file | ranges | HEAD | length |
//! |---|---|---|---|
//! | `disk.img` | yes; no `ETag`, no `Last-Modified` | yes | yes |
//! | `disk.img.gz`, `disk.tar.gz` | no | 400 | no; after a read error it ends as if it were whole |
//! | `dir/disk.img` | yes | yes | yes |
//!
//! Of a backup, `…/exports/VOLUME/map` and `…/data` instead, with ranges as query parameters.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use bytes::Bytes;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LAST_MODIFIED, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::backup::guests::Job;
use super::super::storage::disks::Disks;
use super::{archive, pull};
use crate::network::{Link, Listener, Network};

/// A TLS handshake and the head of a request take no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once.
const CONNECTIONS: usize = 256;
/// What is read and sent at once. Go's `io.Copy` moves 32 KiB; the client sees records of 16 KiB from both.
const PIECE: usize = 128 << 10;
/// What a hole is sent as.
static ZEROS: [u8; PIECE] = [0; PIECE];
/// The header, and the query parameter, that carries the token.
const TOKEN: &str = "x-kubevirt-export-token";

pub(super) type Body = BoxBody<Bytes, io::Error>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the server has for one export.
pub(super) struct Served {
    pub token: String,
    /// Volumes by name, with their claims.
    pub volumes: HashMap<String, Value>,
    pub disks: Arc<Disks>,
    pub backup: Tunnel,
}

/// Whether it is the export of a backup, and where the launcher's tunnel leads.
pub(super) enum Tunnel {
    /// It is none.
    No,
    /// The launcher has not dialled.
    Waiting,
    /// The disks of this backup.
    To(Arc<Job>),
}

/// The export server of the cluster, and its faults. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Exports(Arc<Shared>);

impl std::fmt::Debug for Exports {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Exports").field("address", &self.0.address).finish_non_exhaustive()
    }
}

struct Shared {
    address: SocketAddr,
    served: Mutex<HashMap<String, Arc<Served>>>,
    identity: Mutex<(String, TlsAcceptor, CancellationToken)>,
    swapped: Notify,
    network: Network,
    rotations: AtomicU64,
    /// Bytes of a gzip stream after which reading the disk fails; `u64::MAX`: never.
    truncate_gzip: AtomicU64,
    /// Bytes of bodies after which every connection is cut, once; `u64::MAX`: never.
    cut_after: AtomicU64,
    /// Bytes of bodies that were sent.
    sent: AtomicU64,
}

impl Exports {
    pub(super) async fn start(network: &Network, stop: &CancellationToken) -> Result<Self, Failure> {
        let listener = network.listen(0).await?;
        let exports = Self(Arc::new(Shared {
            address: listener.address()?,
            served: Mutex::default(),
            identity: Mutex::new(identity(network, 0)?),
            network: network.clone(),
            rotations: AtomicU64::new(0),
            swapped: Notify::new(),
            truncate_gzip: AtomicU64::new(u64::MAX),
            cut_after: AtomicU64::new(u64::MAX),
            sent: AtomicU64::new(0),
        }));
        tokio::spawn(exports.clone().accept(listener, stop.clone()));
        Ok(exports)
    }

    /// Replaces the exporter pods: connections break, and there is another certificate under another
    /// authority, as after a rotation.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn swap_pods(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let rotation = self.0.rotations.fetch_add(1, Ordering::SeqCst) + 1;
        let next = identity(&self.0.network, rotation)?;
        let (_, _, connections) = std::mem::replace(&mut *lock(&self.0.identity), next);
        connections.cancel();
        self.0.swapped.notify_one();
        Ok(())
    }

    /// The defect of the real server: after so many bytes of a disk, reading it fails, and the gzip
    /// stream ends as if it were whole.
    pub fn truncate_gzip_after(&self, bytes: u64) {
        self.0.truncate_gzip.store(bytes, Ordering::SeqCst);
    }

    /// Cuts every connection once, after so many bytes of bodies from now.
    pub fn cut_after(&self, bytes: u64) {
        self.0.cut_after.store(self.0.sent.load(Ordering::SeqCst).saturating_add(bytes), Ordering::SeqCst);
    }

    /// Bytes of bodies that were sent so far.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::SeqCst)
    }

    /// The address of the proxy, and the certificates to trust.
    pub(super) fn address(&self) -> (String, String) {
        (format!("https://{}", self.0.address), lock(&self.0.identity).0.clone())
    }

    pub(super) async fn rotated(&self) {
        self.0.swapped.notified().await;
    }

    pub(super) fn serve(&self, key: &str, served: Served) {
        lock(&self.0.served).insert(key.to_owned(), Arc::new(served));
    }

    pub(super) fn forget(&self, key: &str) {
        lock(&self.0.served).remove(key);
    }

    async fn accept(self, listener: Listener, stop: CancellationToken) {
        let ended = stop.clone();
        let connection = move |stream| {
            let (exports, stop) = (self.clone(), stop.clone());
            async move {
                if let Err(error) = exports.connection(stream, stop).await {
                    tracing::debug!(%error, "a connection to the simulated export server ended");
                }
            }
        };
        listener.serve(CONNECTIONS, TaskTracker::new(), ended, connection).await;
    }

    async fn connection(self, stream: Link, stop: CancellationToken) -> Result<(), Failure> {
        let (tls, swapped) = {
            let identity = lock(&self.0.identity);
            (identity.1.clone(), identity.2.clone())
        };
        let accepting = tls.accept_with(stream, |connection| connection.set_buffer_limit(Some(2 * PIECE)));
        let stream = tokio::time::timeout(PATIENCE, accepting).await??;
        let service = service_fn(move |request| {
            let exports = self.clone();
            async move { Ok::<_, std::convert::Infallible>(exports.answer(&request).await) }
        });
        // The proxy in front of the real server speaks HTTP/1.1 alone.
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_mins(2));
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            biased;
            result = connection => Ok(result?),
            () = swapped.cancelled() => Ok(()),
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let Some((export, volume, file)) = split(path) else {
            return plain(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        let Some(served) = lock(&self.0.served).get(&export).cloned() else {
            // The proxy finds no Service, or nothing that listens behind it.
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the exporter pod is not there\n");
        };
        let header = request.headers().get(TOKEN).and_then(|value| value.to_str().ok());
        let query = request.uri().query().unwrap_or_default();
        let parameter = query.split('&').find_map(|pair| pair.strip_prefix(TOKEN)?.strip_prefix('='));
        if header.or(parameter) != Some(&served.token) {
            return plain(StatusCode::UNAUTHORIZED, "");
        }
        let job = match &served.backup {
            Tunnel::No => None,
            Tunnel::Waiting => Some(None),
            Tunnel::To(job) => Some(Some(&**job)),
        };
        if let Some(job) = job {
            return match file {
                "map" => pull::map(job, request, volume).await,
                "data" => self.pull_data(job, request, volume),
                _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
            };
        }
        let Some(claim) = served.volumes.get(volume).cloned() else {
            return plain(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        // The first time, the disk is written.
        let made = tokio::task::spawn_blocking(move || served.disks.of(&claim)).await;
        let disk = match made.map_err(io::Error::other).flatten() {
            Ok(disk) => disk,
            Err(error) => return plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        };
        match file {
            "disk.img" => self.content(request, &disk, false),
            "dir/disk.img" => self.content(request, &disk, true),
            "dir/" => {
                let mut page = plain(StatusCode::OK, "<pre>\n<a href=\"disk.img\">disk.img</a>\n</pre>\n");
                page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
                page
            }
            "disk.img.gz" if request.method() == Method::GET => self.gzip(disk, false),
            "disk.tar.gz" if request.method() == Method::GET => self.gzip(disk, true),
            "disk.img.gz" | "disk.tar.gz" => plain(StatusCode::BAD_REQUEST, "Bad Request\n"),
            _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    /// `http.ServeContent`
    fn content(&self, request: &Request<Incoming>, disk: &Arc<File>, dated: bool) -> Response<Body> {
        let Ok(size) = disk.metadata().map(|metadata| metadata.len()) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "seeker can't seek\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::BAD_REQUEST, "Bad Request\n");
        }
        let asked = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let (status, start, end) = match asked.map(|text| range(text, size)) {
            None => (StatusCode::OK, 0, size),
            Some(Some((start, end))) => (StatusCode::PARTIAL_CONTENT, start, end),
            Some(None) => {
                let mut refused = plain(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range\n");
                put(&mut refused, CONTENT_RANGE, &format!("bytes */{size}"));
                return refused;
            }
        };
        let body = if request.method() == Method::HEAD {
            Full::default().map_err(|never| match never {}).boxed()
        } else {
            self.pieces(disk.clone(), start, end)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        put(&mut response, CONTENT_LENGTH, &(end - start).to_string());
        put(&mut response, CONTENT_TYPE, "application/octet-stream");
        put(&mut response, ACCEPT_RANGES, "bytes");
        if status == StatusCode::PARTIAL_CONTENT {
            put(&mut response, CONTENT_RANGE, &format!("bytes {start}-{}/{size}", end - 1));
        }
        if dated {
            put(&mut response, LAST_MODIFIED, "Thu, 01 Jan 2026 00:00:00 GMT");
        }
        response
    }

    fn pieces(&self, disk: Arc<File>, start: u64, end: u64) -> Body {
        let exports = self.clone();
        let stream = futures::stream::unfold((start, start..start), move |(at, hole)| {
            let (disk, exports) = (disk.clone(), exports.clone());
            async move {
                if at >= end {
                    return None;
                }
                let hole = if hole.contains(&at) { hole } else { hole_at(&disk, at, end) };
                let length = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let zeros = usize::try_from(hole.end.saturating_sub(at)).unwrap_or(PIECE).min(length);
                let piece = if zeros > 0 {
                    Ok(Bytes::from_static(ZEROS.get(..zeros).unwrap_or_default()))
                } else {
                    let mut buffer = vec![0; length];
                    disk.read_exact_at(&mut buffer, at).map(|()| buffer.into())
                };
                let sent = piece.as_ref().map_or(0, Bytes::len) as u64;
                let next = if piece.is_ok() { at + sent } else { end };
                let cut = exports.0.sent.fetch_add(sent, Ordering::SeqCst)
                    >= exports.0.cut_after.load(Ordering::SeqCst);
                if cut {
                    exports.0.cut_after.store(u64::MAX, Ordering::SeqCst);
                    lock(&exports.0.identity).2.cancel();
                    lock(&exports.0.identity).2 = CancellationToken::new();
                    return Some((Err(io::ErrorKind::ConnectionReset.into()), (end, hole)));
                }
                Some((piece.map(Frame::data), (next, hole)))
            }
        });
        BodyExt::boxed(StreamBody::new(stream))
    }

    /// `backupDataHandler`: no length is stated, and an error breaks the connection off.
    fn pull_data(&self, job: Option<&Job>, request: &Request<Incoming>, volume: &str) -> Response<Body> {
        let (disk, start, end) = match pull::range(job, request, volume) {
            Ok((found, start, end)) => (found.disk, start, end),
            Err((status, why)) => return plain(status, &why),
        };
        let mut response = Response::new(self.pieces(disk, start, end));
        put(&mut response, CONTENT_TYPE, "application/octet-stream");
        response
    }

    /// `pipeToGzip`: an error of the disk is logged, and the stream is closed normally.
    fn gzip(&self, disk: Arc<File>, archive: bool) -> Response<Body> {
        let limit = self.0.truncate_gzip.load(Ordering::SeqCst);
        let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(4);
        tokio::task::spawn_blocking(move || {
            let size = disk.metadata().map_or(0, |metadata| metadata.len());
            let around =
                if archive { [archive::front(size), archive::end(size)] } else { [const { Vec::new() }; 2] };
            let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            if packed.write_all(&around[0]).is_err() {
                return;
            }
            let mut buffer = vec![0; 1 << 20];
            let mut at = 0;
            while at < limit {
                let Ok(length @ 1..) = disk.read_at(&mut buffer, at) else { break };
                if packed.write_all(&buffer[..length]).is_err() {
                    return;
                }
                let ready = std::mem::take(packed.get_mut());
                if !ready.is_empty() && send.blocking_send(ready.into()).is_err() {
                    return;
                }
                at += length as u64;
            }
            if at >= size && packed.write_all(&around[1]).is_err() {
                return;
            }
            if let Ok(rest) = packed.finish() {
                let _ = send.blocking_send(rest.into());
            }
        });
        let stream = futures::stream::unfold(receive, |mut receive| async move {
            receive.recv().await.map(|data| (data, receive))
        });
        let body = StreamBody::new(stream.map(|data| Ok(Frame::data(data))));
        let mut response = Response::new(BodyExt::boxed(body));
        put(&mut response, CONTENT_TYPE, "application/gzip");
        response
    }
}

/// The hole that a byte of a disk is in, up to `end`; empty when it is in none.
fn hole_at(disk: &File, at: u64, end: u64) -> std::ops::Range<u64> {
    let next = match rustix::fs::seek(disk, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data.min(end),
        Err(rustix::io::Errno::NXIO) => end,
        Err(_) => at, // this file system knows no holes
    };
    at..next
}

/// The export's key, the volume and the file of a path.
fn split(path: &str) -> Option<(String, &str, &str)> {
    let rest = path.strip_prefix("/api/export.kubevirt.io/")?;
    let rest = ["v1", "v1beta1", "v1alpha1"]
        .iter()
        .find_map(|version| rest.strip_prefix(version)?.strip_prefix("/namespaces/"))?;
    let (namespace, rest) = rest.split_once("/virtualmachineexports/")?;
    let (name, rest) = rest.split_once("/volumes/").or_else(|| rest.split_once("/exports/"))?;
    let (volume, file) = rest.split_once('/')?;
    Some((format!("{namespace}/{name}"), volume, file))
}

/// The first range of a header (RFC 9110, section 14.1): its start and the byte behind its end.
fn range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split(',').next()?.trim().split_once('-')?;
    if first.is_empty() {
        let suffix = last.parse::<u64>().ok()?.min(size);
        return (suffix > 0).then(|| (size - suffix, size));
    }
    let start = first.parse::<u64>().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
    (start < end).then_some((start, end))
}

/// `rotation`: how often the pods have been replaced.
fn identity(network: &Network, rotation: u64) -> Result<(String, TlsAcceptor, CancellationToken), Failure> {
    let authority = network.authority(2 + rotation)?;
    let (certificate, key) = authority.server()?.der();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // Go's choice on a processor with AES, whatever the client prefers (crypto/tls, defaultCipherSuitesTLS13).
    let first = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((authority.pem(), TlsAcceptor::from(Arc::new(config)), CancellationToken::new()))
}

pub(super) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

pub(super) fn put(response: &mut Response<Body>, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_go_reads_them() {
        for (text, found) in [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=90-", Some((90, 100))),
            ("bytes=-5", Some((95, 100))),
            ("bytes=95-200", Some((95, 100))),
            ("bytes=100-", None),
            ("bytes=5-4", None),
            ("lines=1-2", None),
            ("bytes=0-0, 5-6", Some((0, 1))),
        ] {
            assert_eq!(range(text, 100), found, "{text}");
        }
    }

    #[test]
    fn paths_name_export_volume_and_file() {
        let path = "/api/export.kubevirt.io/v1/namespaces/ns/virtualmachineexports/e/volumes/v/dir/disk.img";
        assert_eq!(split(path), Some(("ns/e".into(), "v", "dir/disk.img")));
        assert_eq!(split("/volumes/v/disk.img"), None);
    }
}
