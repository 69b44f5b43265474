//! The REST service: the operations over HTTP, for programs that speak neither Kubernetes nor Rust.
//!
//! ```text
//!  request ─► id ─► who (bearer, or the kubeconfig on loopback) ─► rate ─► body limit ─► operation
//!                                                                              │
//!  response ◄── problem+json with a stable code ◄──────────────────────────────┘──► audit line per write
//! ```
//!
//! Every request is made under the caller's own identity: their bearer token goes to the API server as it
//! came. Without one, the service acts as its kubeconfig says, and only where [`Config::own_identity`]
//! allows it, which is on loopback.

mod audit;
mod bodies;
mod document;
mod handlers;
mod inside;
mod inventory;
mod jobs;
mod page;
mod problem;
mod rate;
mod reading;
mod review;
mod routes;
mod schemas;
mod storage;
mod templates;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::cluster::Prometheus;
use crate::identity::User;
use crate::{Error, Kind, Provider};
use problem::Problem;
use rate::Buckets;
use review::Reviews;

pub use document::openapi;
pub use review::Impersonation;

/// The largest request body, bytes: etcd's limit for an object (1.5 MiB) and some room.
pub const MAX_BODY: usize = 2 << 20;

/// The most requests at once; more are refused.
pub const MAX_REQUESTS: usize = 64;

/// The most callers that follow VMs at once.
pub const MAX_WATCHERS: usize = 32;

/// The most consoles, screens and ports that are open at once.
pub const MAX_STREAMS: usize = 32;

/// Requests per second and caller, and how many may come at once.
pub const RATE: (f64, f64) = (20.0, 60.0);

/// The header that a request is known by; one is made where the caller gives none.
const REQUEST_ID: &str = "x-request-id";

/// What the service runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster without any identity; callers bring theirs.
    pub anonymous: Provider,
    /// The cluster under the service's own identity, for callers without a token. Only for a service
    /// that listens on loopback.
    pub own_identity: Option<Provider>,
    /// Who a caller is, is found out by us, and they are impersonated: for tokens that are not the API
    /// server's, and for certificates. Off: tokens go to the API server as they came.
    pub impersonation: Option<Impersonation>,
    /// A Prometheus that scrapes KubeVirt.
    pub prometheus: Option<Prometheus>,
}

/// What all requests share.
struct Service {
    config: Config,
    buckets: Mutex<Buckets>,
    slots: Semaphore,
    watchers: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    reviews: Mutex<Reviews>,
    requests: AtomicU64,
    started: jiff::Timestamp,
}

/// Who asks, and the cluster under their identity.
#[derive(Clone)]
struct Caller {
    provider: Provider,
    /// As far as we know it.
    name: String,
}

/// Whoever has shown a certificate; the server that has verified it puts this into the extensions of its
/// requests. It counts only with [`Config::impersonation`].
#[derive(Clone, Debug)]
pub struct Peer(pub User);

/// The router, to be served or mounted.
pub fn router(config: Config) -> Router {
    let service = Arc::new(Service {
        config,
        buckets: Mutex::new(Buckets::new(RATE)),
        slots: Semaphore::new(MAX_REQUESTS),
        watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        reviews: Mutex::new(Reviews::default()),
        requests: AtomicU64::new(0),
        started: jiff::Timestamp::now(),
    });
    routes::add(false)
        .fallback(async |request: Request| {
            Problem::from(Error::new(
                Kind::NotFound,
                format!("serving {} `{}`", request.method(), request.uri().path()),
                "there is no such path",
                "see /openapi.json for what there is",
            ))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(service.clone(), admit))
        .merge(routes::add(true))
        .layer(from_fn(problem::in_one_form))
        .with_state(service)
}

/// Serves until told to stop; requests under way are finished, watches end.
pub async fn serve(
    listener: tokio::net::TcpListener,
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(config)).with_graceful_shutdown(stop).await
}

/// Lets a request in: who it is from, and whether there is room.
async fn admit(State(service): State<Arc<Service>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&service, request.headers());
    let mut response =
        match enter(&service, request.headers(), request.extensions().get::<Peer>().cloned()).await {
            Ok((caller, _slot)) => {
                let extensions = request.extensions_mut();
                extensions.insert(audit::RequestId(id.clone()));
                extensions.insert(caller);
                next.run(request).await
            }
            Err(error) => Problem::from(error).into_response(),
        };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

async fn enter<'a>(
    service: &'a Service,
    headers: &HeaderMap,
    peer: Option<Peer>,
) -> Result<(Caller, tokio::sync::SemaphorePermit<'a>), Error> {
    let doing = "letting a request in";
    let busy = |wrong: &str| Error::new(Kind::TooManyRequests, doing, wrong, "wait a little, then try again");
    let slot = service.slots.try_acquire().map_err(|_| busy("too many requests are under way"))?;
    let bearer = bearer(headers)?;
    let config = &service.config;
    let peer = peer.filter(|_| config.impersonation.is_some());
    let known_by = bearer.or(peer.as_ref().map(|peer| peer.0.name.as_str())).unwrap_or_default();
    if !service.buckets.lock().take(known_by, Instant::now()) {
        return Err(busy("this caller sends too many requests"));
    }
    let caller = match (bearer, peer, &config.impersonation, &config.own_identity) {
        (Some(token), _, Some(impersonation), _) => {
            let user = review::who(&service.reviews, impersonation, token).await?;
            Caller { provider: impersonation.own.as_user(&user)?, name: user.name }
        }
        (Some(token), _, None, _) => {
            Caller { provider: config.anonymous.with_bearer(token)?, name: "(token)".into() }
        }
        (None, Some(peer), Some(impersonation), _) => {
            same_origin(headers)?;
            Caller { provider: impersonation.own.as_user(&peer.0)?, name: peer.0.name }
        }
        (None, _, _, Some(own)) => {
            local(headers)?;
            Caller { provider: own.clone(), name: "(kubeconfig)".into() }
        }
        (None, _, _, None) => {
            let remedy = "send `Authorization: Bearer` with a token of the cluster";
            return Err(Error::new(Kind::Unauthenticated, doing, "it has no bearer token", remedy));
        }
    };
    Ok((caller, slot))
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = header.to_str().ok().and_then(|text| text.split_once(' ')).and_then(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
    });
    token.map(Some).ok_or_else(|| {
        let wrong = "the header `Authorization` is no bearer token";
        Error::new(Kind::Unauthenticated, "letting a request in", wrong, "send `Authorization: Bearer …`")
    })
}

/// Under the service's own identity a web page must not act: a page that was loaded from elsewhere sends
/// an `Origin`, and one that got here by a name of its own (DNS rebinding) sends that as `Host`.
fn local(headers: &HeaderMap) -> Result<(), Error> {
    let host = |text: &str| {
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let name = authority.rsplit_once(':').map_or(authority, |(name, port)| {
            if port.chars().all(|c| c.is_ascii_digit()) { name } else { authority }
        });
        matches!(name, "localhost" | "127.0.0.1" | "[::1]")
    };
    let fits = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().is_ok_and(host));
    if fits(HOST) == Some(true) && fits(ORIGIN) != Some(false) {
        return Ok(());
    }
    let wrong = "it was not made for this machine's own address";
    let remedy = "use http://127.0.0.1, or send a bearer token";
    Err(Error::new(Kind::Forbidden, "letting a request in", wrong, remedy))
}

/// A browser shows a certificate by itself, so a page of another site must not ride on it.
fn same_origin(headers: &HeaderMap) -> Result<(), Error> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|text| text.strip_prefix("https://"));
    if origin.is_some() && origin == headers.get(HOST).and_then(|host| host.to_str().ok()) {
        return Ok(());
    }
    let wrong = "it comes from a page of another site";
    Err(Error::new(Kind::Forbidden, "letting a request in", wrong, "send a bearer token"))
}

/// The caller's id when it is short and plain, or the next number.
fn request_id(service: &Service, headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        (1..=64).contains(&id.len()) && id.as_bytes().iter().all(plain)
    });
    let number = || {
        let number = service.requests.fetch_add(1, Ordering::Relaxed);
        HeaderValue::try_from(format!("{}-{number}", service.started.as_second())).ok()
    };
    given.cloned().or_else(number).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_acts_under_the_services_own_identity() {
        for (host, origin, allowed) in [
            ("127.0.0.1:8080", None, true),
            ("localhost", None, true),
            ("[::1]:80", None, true),
            ("localhost:80", Some("http://localhost:80"), true),
            ("evil.example:8080", None, false),
            ("127.0.0.1.evil.example", None, false),
            ("127.0.0.1:8080", Some("https://evil.example"), false),
            ("127.0.0.1:8080", Some("null"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(local(&headers).is_ok(), allowed, "{host} {origin:?}");
        }
        assert!(local(&HeaderMap::new()).is_err(), "no Host");
    }

    #[test]
    fn a_certificate_does_not_count_for_pages_of_other_sites() {
        for (origin, allowed) in [
            (None, true),
            (Some("https://vms.example:8444"), true),
            (Some("https://evil.example"), false),
            (Some("http://vms.example:8444"), false),
            (Some("null"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("vms.example:8444"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(same_origin(&headers).is_ok(), allowed, "{origin:?}");
        }
    }

    #[test]
    fn tokens_are_read_from_the_header_alone() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(text));
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(of("Bearer abc").unwrap().as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").unwrap().as_deref(), Some("abc"));
        assert!(of("Basic abc").is_err() && of("Bearer ").is_err() && of("abc").is_err());
        assert_eq!(bearer(&HeaderMap::new()), Ok(None));
    }
}
