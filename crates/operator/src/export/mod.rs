//! Carries out `VMExportJobs`.
//!
//! ```text
//!  watch: VMExportJobs, their Jobs ─► a worker for each: observe ─► decide (export::job::plan) ─► act
//!                                                           │
//!                      again at the next schedule, or after 30 s while a run is under way
//! ```
//!
//! The pods do the work, under a service account of the VM's namespace that somebody labelled for it; the
//! operator itself reads no Secret and no disk.

mod act;
mod observe;
mod watches;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use export::job::pod::Image;
use export::job::{GROUP, PLURAL, VERSION, plan};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Exports;
use crate::kubernetes::{Raw, RawError};
use crate::telemetry::Metrics;

/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// A write that somebody else's made impossible is tried again after this.
const CONFLICT: Duration = Duration::from_millis(50);

/// Namespace and name of a `VMExportJob`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    namespace: String,
    name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Key {
    fn path(&self) -> String {
        format!("/apis/{GROUP}/{VERSION}/namespaces/{}/{PLURAL}/{}", self.namespace, self.name)
    }
}

/// What every worker shares.
#[derive(Clone)]
pub struct Context {
    api: Raw,
    client: kube::Client,
    clock: Clock,
    image: Image,
    metrics: Arc<Metrics>,
    /// The phase of each job, for the metrics.
    phases: Arc<Mutex<HashMap<Key, String>>>,
}

/// What [`run`] works with.
pub fn context(client: &kube::Client, config: &Exports, clock: Clock, metrics: Arc<Metrics>) -> Context {
    let image = Image { name: config.image.clone(), pull_policy: config.image_pull_policy.clone() };
    let (api, client) = (Raw::new(client.clone()), client.clone());
    Context { api, client, clock, image, metrics, phases: Arc::default() }
}

/// Works until `stop`.
pub async fn run(context: Context, stop: CancellationToken) {
    watches::run(context, stop).await;
}

/// Works for one job until the sender of `changed` is gone.
async fn work(context: Context, key: Key, mut changed: watch::Receiver<()>) {
    loop {
        changed.borrow_and_update();
        let wait = match reconcile(&context, &key).await {
            Ok(wait) => wait,
            Err(error) if error.code() == Some(409) => Some(CONFLICT),
            Err(error) => {
                tracing::warn!(job = %key, %error, "working on an export job; trying again");
                Some(AGAIN)
            }
        };
        let heard = match wait {
            None => changed.changed().await,
            Some(wait) => tokio::time::timeout(wait, changed.changed()).await.unwrap_or(Ok(())),
        };
        if heard.is_err() {
            context.phases.lock().remove(&key);
            context.tell_phases();
            return;
        }
    }
}

/// One look: observe, decide, act. How long to wait, when nobody would tell.
async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>, RawError> {
    let Some(observed) = observe::observe(context, key).await? else { return Ok(None) };
    let plan = plan::decide(&observed.seen(&context.image), (context.clock)());
    act::act(context, key, &observed.object, &plan).await?;
    let phase = plan.status["phase"].as_str().or_else(|| observed.object["status"]["phase"].as_str());
    context.phases.lock().insert(key.clone(), phase.unwrap_or("Pending").to_owned());
    context.tell_phases();
    Ok(plan.again)
}

impl Context {
    fn tell_phases(&self) {
        let mut counts: HashMap<String, i64> = HashMap::new();
        for phase in self.phases.lock().values() {
            *counts.entry(phase.clone()).or_default() += 1;
        }
        self.metrics.export_jobs(&counts);
    }
}
