//! Operations on VMs over REST, on a port of its own with the webhook's certificate.
//!
//! Callers bring their own identity. With `auth: token` their bearer token goes to the API server as it came,
//! and the operator needs no right for it. With `auth: impersonate` the operator finds out who they are, by
//! `TokenReview` or by their certificate, and impersonates them; for that it needs the right to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use provider::cluster::{Prometheus, connect, connect_without_identity};
use provider::identity::User;
use provider::rest::{Config as Service, Impersonation, Peer, router};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::config::{Rest, RestAuth};
use crate::tls::Resolver;

/// Connections at once; more wait in the listen queue.
const CONNECTIONS: usize = 512;
/// A TLS handshake, and the head of a request, take no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why operations are not served.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The port is taken.
    #[error("cannot serve operations on {address}: {source}; choose another rest.port")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of authorities cannot be used.
    #[error("cannot read the authorities of clients in {}: {problem}; name a PEM file in rest.clientCaFile", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No client for the cluster.
    #[error(transparent)]
    Provider(#[from] provider::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for operations: {0}")]
    Tls(#[from] rustls::Error),
}

/// A listening service.
pub struct RestServer {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    service: Service,
}

impl RestServer {
    /// Listens; nothing is accepted before [`RestServer::serve`].
    pub async fn bind(
        config: &Rest,
        cluster: kube::Config,
        resolver: Arc<Resolver>,
        crypto: Arc<CryptoProvider>,
    ) -> Result<Self, RestError> {
        let anonymous = connect_without_identity(cluster.clone())?;
        let impersonation = match config.auth {
            RestAuth::Token => None,
            RestAuth::Impersonate => {
                Some(Impersonation { own: connect(cluster)?, audiences: config.audiences.clone() })
            }
        };
        let prometheus = config.prometheus.as_deref().map(Prometheus::parse).transpose()?;
        let service = Service { anonymous, own_identity: None, impersonation, prometheus };
        let tls = Arc::new(server_config(config.client_ca_file.as_deref(), resolver, crypto)?);
        let wanted = SocketAddr::new(config.bind_address, config.port);
        let bind = |source| RestError::Bind { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address, tls: TlsAcceptor::from(tls), service })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; requests under way are given a moment to finish.
    pub async fn serve(self, stop: CancellationToken) {
        let router = router(self.service);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let open = tokio_util::task::TaskTracker::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (tls, router, stop) = (self.tls.clone(), router.clone(), stop.clone());
            open.spawn(async move {
                let _place = place;
                if let Err(error) = connection(stream, tls, router, stop).await {
                    tracing::debug!(%error, "a REST connection ended");
                }
            });
        }
        open.close();
        if tokio::time::timeout(PATIENCE, open.wait()).await.is_err() {
            tracing::warn!(open = open.len(), "REST requests in flight did not finish in time");
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    router: axum::Router,
    stop: CancellationToken,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(PATIENCE, tls.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = certificates.and_then(<[_]>::first).and_then(user).map(Peer);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut router = router.clone();
        let mut request = request.map(axum::body::Body::new);
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        async move { router.call(request).await }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(100);
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    }
}

/// TLS with the served certificate, and with authorities of clients where there are some; a certificate is
/// never demanded, since a token will do.
fn server_config(
    client_ca: Option<&Path>,
    resolver: Arc<Resolver>,
    crypto: Arc<CryptoProvider>,
) -> Result<ServerConfig, RestError> {
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&crypto)).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let wrong = |problem: String| RestError::ClientCa { path: path.to_path_buf(), problem };
            let mut roots = RootCertStore::empty();
            let pem = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
            for certificate in pem {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto)
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Whom a certificate names: the common name, with organisations as groups, as API servers read it. The
/// cluster's own names (`system:…`) are not for an authority of our own to give.
fn user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|one| one.as_str().ok()).map(str::to_owned).collect();
    if name.starts_with("system:") {
        return None;
    }
    groups.retain(|group| !group.starts_with("system:"));
    groups.push("system:authenticated".into());
    Some(User { name, uid: None, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, groups: &[&str]) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
        }
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn certificates_name_people_and_never_parts_of_the_cluster() {
        let found = user(&certificate("ann", &["ops"])).unwrap();
        assert_eq!(
            (found.name.as_str(), found.groups),
            ("ann", vec!["ops".to_owned(), "system:authenticated".into()])
        );
        let found = user(&certificate("ann", &["system:masters"])).unwrap();
        assert_eq!(found.groups, ["system:authenticated"]);
        assert_eq!(user(&certificate("system:admin", &[])), None);
    }
}
