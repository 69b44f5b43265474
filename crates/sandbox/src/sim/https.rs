//! HTTPS servers of simulated components: the API server's proxy is known by its certificate, others are served as well.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::virt_api::registration::{self, FrontProxy};
use crate::certs::Authority;
use crate::network::{Link, Listener};

/// Connections to one server at once.
const CONNECTIONS: usize = 512;
/// A TLS handshake, and the head of a request, take no longer.
const PATIENCE: Duration = Duration::from_secs(10);

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// An answer of such a server.
pub type Answer = Response<Full<Bytes>>;

/// What answers.
pub trait Component: Send + Sync + 'static {
    /// What it is called in the log.
    const NAME: &str;

    /// Answers one request; `trusted`: it is the API server's proxy that asks.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        trusted: bool,
    ) -> impl Future<Output = Answer> + Send;
}

/// A certificate of this authority for these names, and whom to believe that it is the API server's proxy.
///
/// # Errors
/// The certificates do not fit together.
pub fn acceptor(
    authority: &Authority,
    front: &FrontProxy,
    subject: &str,
    names: &[&str],
) -> Result<TlsAcceptor, Failure> {
    let (certificate, key) = authority.serving(subject, names)?.der();
    with_certificate(vec![certificate], key, front)
}

/// Shows this certificate; those who come may show one of the proxy's authority.
///
/// # Errors
/// The certificates do not fit together.
pub fn with_certificate(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    front: &FrontProxy,
) -> Result<TlsAcceptor, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in &front.authority {
        roots.add(root.clone())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop`.
pub async fn serve<C: Component>(
    component: Arc<C>,
    listener: Listener,
    tls: TlsAcceptor,
    front: FrontProxy,
    stop: CancellationToken,
) {
    let proxies: Arc<[String]> = front.names.into();
    let ended = stop.clone();
    let connection = move |stream| {
        let (component, tls, proxies, stop) = (component.clone(), tls.clone(), proxies.clone(), stop.clone());
        async move {
            if let Err(error) = connection(component, stream, &tls, &proxies, stop).await {
                tracing::debug!(server = C::NAME, %error, "a connection ended");
            }
        }
    };
    listener.serve(CONNECTIONS, TaskTracker::new(), ended, connection).await;
}

async fn connection<C: Component>(
    component: Arc<C>,
    stream: Link,
    tls: &TlsAcceptor,
    proxies: &[String],
    stop: CancellationToken,
) -> Result<(), Failure> {
    let stream = tokio::time::timeout(PATIENCE, tls.accept(stream)).await??;
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let trusted =
        peer.and_then(|leaf| registration::common_name(leaf)).is_some_and(|name| proxies.contains(&name));
    let service = service_fn(move |request: Request<Incoming>| {
        let component = component.clone();
        async move { Ok::<_, std::convert::Infallible>(component.answer(request, trusted).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Some(PATIENCE));
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        result = connection => result,
        () = stop.cancelled() => Ok(()),
    }
}
