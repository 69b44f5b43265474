//! Where a certificate goes once it is there: handshakes, metrics, webhook configurations.

use std::sync::Arc;

use tokio::sync::watch;

use super::identity::Identity;
use super::resolver::Resolver;
use crate::telemetry::Metrics;

/// Serves identities and says which CA vouches for them.
pub struct Outlet {
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    ca_bundle: watch::Sender<Option<String>>,
}

impl Outlet {
    /// An outlet to `resolver`, with the CA bundle still unknown.
    pub fn new(resolver: Arc<Resolver>, metrics: Arc<Metrics>) -> Self {
        Self { resolver, metrics, ca_bundle: watch::Sender::new(None) }
    }

    /// The PEM bundle that API servers must trust; `None`: not known to us (cert-manager injects
    /// it, or an administrator has written it).
    pub fn ca_bundle(&self) -> watch::Receiver<Option<String>> {
        self.ca_bundle.subscribe()
    }

    /// Serves `identity`, vouched for by `ca_bundle`, from now on.
    pub fn serve(&self, identity: Identity, ca_bundle: Option<String>) {
        self.ca_bundle.send_if_modified(|known| {
            let changed = *known != ca_bundle;
            *known = ca_bundle;
            changed
        });
        if self.resolver.served().is_some_and(|served| served.same_chain(&identity)) {
            return;
        }
        tracing::info!(not_before = %identity.not_before, not_after = %identity.not_after, "serving a new certificate");
        self.metrics.certificate_expiry(identity.not_after);
        self.resolver.serve(identity);
    }
}
