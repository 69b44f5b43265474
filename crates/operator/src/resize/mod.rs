//! In-place resize: what the crate `resize` decides, carried out.
//!
//! ```text
//!  watches of VMIs, VMs, launcher pods, migrations ─► one worker for each VMI
//!     worker: observe (live reads) ─► resize::decide ─► act (one guarded write) ─► again, until it waits
//!  virt-controller's patch ─► /resize ─► resize::hook::review
//! ```
//!
//! Every replica serves the webhook and runs the workers: each write is guarded by what was seen
//! (resourceVersion, uid), so two replicas that act at once cost a conflict and nothing else.

mod act;
mod admit;
mod observe;
mod watches;
mod worker;

pub use admit::{PATH, review};

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Resize;
use crate::kubernetes::Raw;

/// Starts the reconciler; it ends with `stop`.
pub fn spawn(
    client: &kube::Client,
    config: Resize,
    clock: Clock,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let context = worker::Context {
        api: Raw::new(client.clone()),
        client: client.clone(),
        config,
        clock,
        owners: Arc::default(),
    };
    tokio::spawn(watches::run(context, stop.clone()))
}
