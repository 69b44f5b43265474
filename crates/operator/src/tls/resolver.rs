//! The certificate that handshakes get, changed at one instant for all that follow.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::identity::Identity;
use crate::readiness::State;

/// Holds the served identity; empty until the first one is there, and handshakes fail until then.
#[derive(Debug, Default)]
pub struct Resolver {
    served: ArcSwapOption<Identity>,
}

impl Resolver {
    /// Serves `identity` from now on.
    pub fn serve(&self, identity: Identity) {
        self.served.store(Some(Arc::new(identity)));
    }

    /// What is served.
    pub fn served(&self) -> Option<Arc<Identity>> {
        self.served.load_full()
    }

    /// How the certificate is at `now`.
    pub fn state(&self, now: Timestamp) -> State {
        match &*self.served.load() {
            None => State::Unready("there is no certificate to serve yet".into()),
            Some(identity) if now < identity.not_before => State::Unready(format!(
                "the served certificate is not valid before {}; it is {now}: check the clock of this node",
                identity.not_before
            )),
            Some(identity) if now > identity.not_after => State::Unready(format!(
                "the served certificate expired at {}; it is {now}: renew it (no restart is needed)",
                identity.not_after
            )),
            Some(_) => State::Ok,
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.served.load().as_ref().map(|identity| Arc::clone(&identity.key))
    }
}

/// TLS 1.2 and 1.3, h2 and HTTP/1.1, no client certificates (an API server sends none unless it is
/// given a kubeconfig for it).
pub fn server_config(
    resolver: Arc<Resolver>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
