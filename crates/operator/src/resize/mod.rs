//! In-place resize: what the crate `resize` decides, carried out.
//!
//! ```text
//!  watches of VMIs, VMs, launcher pods, migrations, policies ─► one worker for each VMI
//!     worker: observe (live reads) ─► resize::decide ─► act (one guarded write) ─► again, until it waits
//!  virt-controller's patch ─► /resize ─► resize::hook::review
//! ```
//!
//! Every replica serves the webhook. The workers run where the Lease is held; without an election they
//! run everywhere: each write is guarded by what was seen (resourceVersion, uid), so two replicas
//! that act at once cost a conflict and nothing else.

mod act;
mod admit;
mod observe;
mod owners;
mod tell;
mod watches;
mod worker;

pub(crate) use admit::{PATH, review};
pub use watches::run;
pub use worker::Context;

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Resize;
use crate::kubernetes::Raw;
use crate::telemetry::Metrics;

/// What the reconciler works with.
pub fn context(client: &kube::Client, config: Resize, clock: Clock, metrics: Arc<Metrics>) -> Context {
    let api = Raw::new(client.clone());
    Context {
        teller: Arc::new(tell::Teller::new(api.clone(), metrics)),
        api,
        client: client.clone(),
        config,
        clock,
        owners: owners::Owners::default(),
        version: Arc::default(),
    }
}
