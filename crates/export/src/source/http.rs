//! A disk behind an HTTPS server that answers ranges, as KubeVirt's export server does.
//!
//! The server states no `ETag` and no `Last-Modified` (exportserver.go, KubeVirt 1.9), so a range
//! never carries `If-Range`: what protects against a changed disk is its size, stated by `HEAD`
//! before and by every `Content-Range` after. The gzip variant of a volume is never used: its server
//! closes the stream normally after a read error, which makes a short disk look whole.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;

use super::Source;
use super::buffers::{Buffers, Gather};
use super::lane::Lanes;
use crate::error::chain;
use crate::{Error, Result};

/// A connection is made, and the head of an answer comes, within this time. The proxy in front of
/// the export server waits 30 s itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);
/// The next bytes of a body come within this time.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// What an error's body is read up to.
const EXPLANATION: usize = 500;

/// An HTTP client.
pub type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// An HTTP client whose bodies come piece by piece.
pub type Piped = Client<HttpsConnector<HttpConnector>, UnsyncBoxBody<Bytes, std::io::Error>>;

/// A client that trusts the certificates of a PEM text, or the system's when it is empty.
///
/// # Errors
/// When there is no usable certificate.
pub fn client(ca: &str) -> Result<Http> {
    client_of(ca)
}

/// The same for bodies that come piece by piece.
///
/// # Errors
/// As [`client`].
pub fn piped_client(ca: &str) -> Result<Piped> {
    client_of(ca)
}

fn client_of<B>(ca: &str) -> Result<Client<HttpsConnector<HttpConnector>, B>>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(PATIENCE));
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(trusting(ca)?);
    let connector = builder.https_or_http().enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(STALL)
        .build(connector))
}

/// TLS that trusts the certificates of a PEM text, or the system's when it is empty.
pub(super) fn trusting(ca: &str) -> Result<ClientConfig> {
    let failed = |error: &dyn std::error::Error| Error::Request(format!("setting up TLS: {}", chain(error)));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| failed(&error))?;
    if ca.is_empty() {
        let builder = builder.with_native_roots().map_err(|error| failed(&error))?;
        return Ok(builder.with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        // A bundle may hold certificates that rustls does not take as roots; one that fits is enough.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(Error::Request("the server's certificate bundle holds no usable certificate".into()));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Reads a body of at most `limit` bytes; it may not stand still.
///
/// # Errors
/// When it breaks off, stalls, or is longer.
pub async fn body(what: &str, body: Incoming, limit: usize) -> Result<Bytes> {
    let mut out = Vec::new();
    pieces(what, body, limit, |data| out.extend_from_slice(data)).await?;
    Ok(out.into())
}

/// Hands the pieces of a body to `take`, at most `limit` bytes of them; it may not stand still.
async fn pieces(what: &str, mut body: Incoming, limit: usize, mut take: impl FnMut(&[u8])) -> Result<usize> {
    let lost = |wrong: String| Error::Connection { what: what.into(), wrong };
    let mut length = 0;
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await;
        let frame = frame.map_err(|_| lost(format!("no data for {} s", STALL.as_secs())))?;
        let Some(frame) = frame else { return Ok(length) };
        let frame = frame.map_err(|error| lost(chain(&error)))?;
        if let Ok(data) = frame.into_data() {
            length += data.len();
            if length > limit {
                let wrong = format!("more than the {limit} bytes that were asked for");
                return Err(Error::Answer { what: what.into(), wrong, again: true });
            }
            take(&data);
        }
    }
}

/// Reads a body of so many bytes, no more and no fewer.
pub(super) async fn exactly(what: &str, body: Incoming, length: usize, buffers: &Buffers) -> Result<Bytes> {
    let mut gather = Gather::new(buffers, length);
    let got = pieces(what, body, length, |data| gather.push(data)).await?;
    if got == length {
        return Ok(gather.done());
    }
    let wrong = format!("{got} bytes came instead of {length}");
    Err(Error::Answer { what: what.into(), wrong, again: true })
}

/// A refusal as an error, with the beginning of what the server says.
pub async fn refusal(what: &str, response: Response<Incoming>) -> Error {
    let status = response.status();
    let text = match body(what, response.into_body(), 64 << 10).await {
        Ok(bytes) => String::from_utf8_lossy(bytes.get(..bytes.len().min(EXPLANATION)).unwrap_or_default())
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        Err(_) => String::new(),
    };
    let again = matches!(status.as_u16(), 401 | 403 | 404 | 408 | 429 | 500 | 502 | 503 | 504);
    Error::Answer { what: what.into(), wrong: format!("{status} {text}").trim_end().to_owned(), again }
}

/// How to get at a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Access {
    /// Where it is.
    pub url: String,
    /// Whom to trust, PEM; empty: the system's roots.
    pub ca: String,
    /// Headers that go with every request, such as the token.
    pub headers: Vec<(String, Secret)>,
}

/// A text that is never shown.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("***")
    }
}

/// Whoever knows how to get at a volume now: addresses, certificates and tokens change.
#[async_trait]
pub trait Directory: Send + Sync {
    /// The access to a volume as it is now.
    async fn access(&self, volume: &str) -> Result<Access>;
}

/// A way to a volume, which is looked up again when it no longer leads there.
pub(super) struct Connection {
    volume: String,
    directory: Arc<dyn Directory>,
    current: RwLock<Arc<Current>>,
    /// When the access was looked up, so that many failing ranges ask once.
    looked_up: tokio::sync::Mutex<Instant>,
}

/// The way as it is now.
pub(super) struct Current {
    pub lanes: Lanes,
    uri: Uri,
    headers: HeaderMap,
    access: Access,
}

impl Connection {
    /// Looks a volume up.
    pub async fn open(volume: &str, directory: Arc<dyn Directory>) -> Result<Self> {
        let current = Arc::new(Current::of(directory.access(volume).await?)?);
        let looked_up = tokio::sync::Mutex::new(Instant::now());
        Ok(Self { volume: volume.into(), directory, current: RwLock::new(current), looked_up })
    }

    pub fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// Looks the access up again: after a pod was replaced there is another certificate, perhaps
    /// another token; connections of the old client are dropped.
    pub async fn refresh(&self) -> Result<()> {
        let asked = Instant::now();
        let mut looked_up = self.looked_up.lock().await;
        if *looked_up > asked {
            return Ok(()); // somebody else did while this one waited
        }
        let access = self.directory.access(&self.volume).await?;
        *looked_up = Instant::now();
        if self.current.read().access != access {
            let current = Arc::new(Current::of(access)?);
            *self.current.write() = current;
        }
        Ok(())
    }
}

/// Tries something that opens a source, again while what fails may pass.
pub(super) async fn persist<T, F: Future<Output = Result<T>>>(mut open: impl FnMut() -> F) -> Result<T> {
    let mut tries = 0;
    loop {
        match open().await {
            Err(error) if error.is_passing() && tries < 5 => {
                tries += 1;
                tokio::time::sleep(crate::retry::pause(tries, 0)).await;
            }
            done => return done,
        }
    }
}

/// A volume of an export server.
pub struct HttpSource {
    name: String,
    size: u64,
    connection: Connection,
    buffers: Buffers,
}

impl std::fmt::Debug for HttpSource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("HttpSource").field("name", &self.name).finish_non_exhaustive()
    }
}

impl HttpSource {
    /// Looks a volume up and asks for its size.
    ///
    /// # Errors
    /// When the volume cannot be reached, or its server states no size.
    pub async fn open(name: &str, volume: &str, directory: Arc<dyn Directory>) -> Result<Self> {
        persist(|| async {
            let connection = Connection::open(volume, directory.clone()).await?;
            let size = connection.current().size(name).await?;
            Ok(Self { name: name.into(), size, connection, buffers: Buffers::default() })
        })
        .await
    }
}

impl Current {
    fn of(access: Access) -> Result<Self> {
        let uri = access.url.parse().map_err(|_| Error::Request(format!("`{}` is no URL", access.url)))?;
        let mut headers = HeaderMap::new();
        for (key, value) in &access.headers {
            let bad = |_| Error::Request(format!("the header `{key}` cannot be sent"));
            let name =
                http::HeaderName::from_bytes(key.as_bytes()).map_err(|error| bad(error.to_string()))?;
            let mut value = HeaderValue::from_str(&value.0).map_err(|error| bad(error.to_string()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Self { lanes: Lanes::new(trusting(&access.ca)?), uri, headers, access })
    }

    fn request(&self, method: Method) -> Result<Request<Full<Bytes>>> {
        self.request_to(method, self.uri.clone())
    }

    /// A request with a query.
    pub fn query(&self, query: &str) -> Result<Request<Full<Bytes>>> {
        let uri = format!("{}?{query}", self.access.url);
        let uri = uri.parse().map_err(|_| Error::Request(format!("`{uri}` is no URL")))?;
        self.request_to(Method::GET, uri)
    }

    fn request_to(&self, method: Method, uri: Uri) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&self.headers);
        }
        request.body(Full::default()).map_err(|error| Error::Request(error.to_string()))
    }

    async fn size(&self, name: &str) -> Result<u64> {
        let what = format!("asking for the size of {name}");
        let response =
            self.lanes.ask(&what, self.request(Method::HEAD)?, async |response| match response.status() {
                StatusCode::OK => Ok(response.headers().get(CONTENT_LENGTH).cloned()),
                _ => Err(refusal(&what, response).await),
            });
        let length = response.await?.and_then(|value| value.to_str().ok()?.parse().ok());
        let wrong = "the server states no length; only volumes with a raw format can be exported".to_owned();
        length.ok_or(Error::Answer { what, wrong, again: false })
    }
}

impl HttpSource {
    /// The bytes of a range out of the answer to it.
    async fn take(&self, what: &str, range: &Range<u64>, response: Response<Incoming>) -> Result<Bytes> {
        let status = response.status();
        if status == StatusCode::OK && (range.start > 0 || range.end < self.size) {
            let wrong = "the server ignores ranges".to_owned();
            return Err(Error::Answer { what: what.into(), wrong, again: false });
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            let found = response.headers().get(CONTENT_RANGE).and_then(total).unwrap_or(0);
            return Err(Error::SizeChanged { what: self.name.clone(), stated: self.size, found });
        }
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(refusal(what, response).await);
        }
        if status == StatusCode::PARTIAL_CONTENT {
            check_range(&self.name, self.size, range, response.headers().get(CONTENT_RANGE), what)?;
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        exactly(what, response.into_body(), length, &self.buffers).await
    }
}

#[async_trait]
impl Source for HttpSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let what = format!("reading bytes {} to {} of {}", range.start, range.end, self.name);
        let current = self.connection.current();
        let mut request = current.request(Method::GET)?;
        let header = HeaderValue::from_str(&format!("bytes={}-{}", range.start, range.end - 1));
        request.headers_mut().insert(RANGE, header.map_err(|error| Error::Request(error.to_string()))?);
        let taking = |response| self.take(&what, &range, response);
        current.lanes.ask(&what, request, taking).await
    }

    async fn refresh(&self) -> Result<()> {
        self.connection.refresh().await
    }
}

fn total(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.rsplit_once('/')?.1.parse().ok()
}

/// `bytes START-END/TOTAL` (RFC 9110, section 14.4) has to be what was asked for.
fn check_range(
    name: &str,
    size: u64,
    range: &Range<u64>,
    stated: Option<&HeaderValue>,
    what: &str,
) -> Result<()> {
    let text = stated.and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Some(found) = stated.and_then(total)
        && found != size
    {
        return Err(Error::SizeChanged { what: name.into(), stated: size, found });
    }
    if text == format!("bytes {}-{}/{size}", range.start, range.end - 1) {
        return Ok(());
    }
    Err(Error::Answer { what: what.into(), wrong: format!("the server sends `{text}` instead"), again: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_range_is_refused_and_another_total_is_a_changed_disk() {
        let header = |text: &'static str| Some(HeaderValue::from_static(text));
        let check = |text| check_range("disk", 100, &(10..20), header(text).as_ref(), "reading");
        assert!(check("bytes 10-19/100").is_ok());
        for wrong in ["bytes 10-18/100", "bytes 0-19/100", "", "bytes 10-19"] {
            assert!(check(wrong).is_err_and(|error| error.is_passing()), "{wrong}");
        }
        assert!(matches!(check("bytes 10-19/99"), Err(Error::SizeChanged { found: 99, .. })));
    }
}
