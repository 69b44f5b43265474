//! The listening side: TLS, HTTP/1.1 and HTTP/2, one task per connection. A peer that stalls holds
//! its own task and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, Cut};
use crate::attributes::User;
use crate::certs::Authority;
use crate::network::{Link, Network};

/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request takes no longer.
const HEAD: Duration = Duration::from_secs(30);
/// Requests in flight have this long to finish when the server goes down.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at once.
const CONNECTIONS: usize = 4096;

/// A fault breaks this connection before the answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("broken by a fault")]
struct Broken;

/// The server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken, or not allowed.
    #[error("listen on 127.0.0.1:{port}")]
    Listen {
        /// The port asked for.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificates do not fit together.
    #[error("configure TLS")]
    Tls(#[source] rustls::Error),
    /// The authority's certificate is not one.
    #[error("configure client certificates")]
    ClientCertificates(#[source] rustls::server::VerifierBuilderError),
    /// The serving certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] crate::certs::Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// Binds 127.0.0.1 and serves until [`Server::shutdown`].
    ///
    /// # Errors
    /// When the port is taken or TLS cannot be set up.
    pub async fn start(
        api: Arc<Api>,
        authority: &Authority,
        network: &Network,
        port: u16,
    ) -> Result<Self, Error> {
        let tls = TlsAcceptor::from(Arc::new(tls(authority)?));
        let listening = |source| Error::Listen { port, source };
        let listener = network.listen(port).await.map_err(listening)?;
        let address = listener.address().map_err(listening)?;
        let server = Self { address, tasks: TaskTracker::new(), stop: api.shutdown.clone() };
        let stop = server.stop.clone();
        let connection = move |stream| {
            let (api, tls, stop) = (api.clone(), tls.clone(), stop.clone());
            async move {
                if let Err(error) = accept(stream, tls, api, stop).await {
                    tracing::debug!(%error, "connection ended");
                }
            }
        };
        let (tasks, stop) = (server.tasks.clone(), server.stop.clone());
        server.tasks.spawn(listener.serve(CONNECTIONS, tasks, stop, connection));
        Ok(server)
    }

    /// Stops accepting, ends watches, lets requests in flight finish for a few seconds.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

fn tls(authority: &Authority) -> Result<rustls::ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.der()).map_err(Error::Tls)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(Error::ClientCertificates)?;
    let (certificate, key) = authority.server()?.der();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Connections of other processes speak TLS; those within the program have nobody to hide from.
async fn accept(
    stream: Link,
    tls: TlsAcceptor,
    api: Arc<Api>,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if stream.is_memory() {
        return connection(stream, None, api, stop).await;
    }
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await??;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = leaf.and_then(|leaf| user_of(leaf));
    connection(stream, user, api, stop).await
}

async fn connection<S>(
    stream: S,
    user: Option<User>,
    api: Arc<Api>,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (api, user) = (api.clone(), user.clone());
        async move {
            let reply = api.handle(request, user).await;
            if reply.extensions().get::<Cut>().is_some() { Err(Broken) } else { Ok(reply) }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(128 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// CN is the user, each O a group (`k8s.io/apiserver/pkg/authentication/request/x509`).
fn user_of(certificate: &[u8]) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".into());
    Some(User { name, groups, ..User::default() })
}
