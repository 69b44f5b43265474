//! One VMI's worker: one write at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use resize::ledger::{LEDGER, Ledger, POLICY, WISH};
use resize::machine::{Step, decide};
use resize::{Policy, ledger, notice, view};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::act::{Done, act};
use super::observe::{Problem, observe};
use super::owners::Owners;
use super::tell::Teller;
use crate::clock::Clock;
use crate::config::Resize;
use crate::kubernetes::{Raw, RawError};

/// More writes in a row than a whole resize needs; then others have their turn.
const STEPS: usize = 24;
/// A resize under way is looked at this often, whatever the watches say.
const LOOK: Duration = Duration::from_secs(30);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// For so long the API server's version is believed, seconds.
const VERSION: i64 = 600;

/// Namespace and name of a VMI, which are those of its VM.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Key {
    pub fn in_namespace(&self, group: &str, resource: &str) -> String {
        format!("/apis/{group}/namespaces/{}/{resource}", self.namespace)
    }

    pub fn path(&self, group: &str, resource: &str) -> String {
        format!("{}/{}", self.in_namespace(group, resource), self.name)
    }
}

/// What every worker shares.
#[derive(Clone)]
pub struct Context {
    pub(super) api: Raw,
    pub(super) client: kube::Client,
    pub(super) config: Resize,
    pub(super) clock: Clock,
    pub(super) owners: Owners,
    pub(super) teller: Arc<Teller>,
    /// The minor version of Kubernetes, and when it was read.
    pub(super) version: Arc<Mutex<Option<(u32, i64)>>>,
}

impl Context {
    fn now(&self) -> i64 {
        (self.clock)().as_second()
    }

    /// The minor version of Kubernetes.
    pub(super) async fn kubernetes_minor(&self) -> Result<u32, RawError> {
        let now = self.now();
        if let Some((minor, _)) = self.version.lock().filter(|(_, at)| now - at < VERSION) {
            return Ok(minor);
        }
        let version = self.api.get("/version").await?;
        let minor = version["minor"].as_str().unwrap_or_default().trim_end_matches('+').parse().unwrap_or(0);
        *self.version.lock() = Some((minor, now));
        Ok(minor)
    }

    /// A JSON patch under virt-controller's account (design D2); needs the separate grant.
    pub(super) async fn as_kubevirt(&self, path: &str, patch: &Value) -> Result<Value, RawError> {
        let user = format!("system:serviceaccount:{}:kubevirt-controller", self.config.kubevirt_namespace);
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .header("Impersonate-User", user)
            .body(patch.to_string().into_bytes())
            .map_err(|error| RawError::Away(error.to_string()))?;
        Ok(self.client.request::<Value>(request).await?)
    }
}

/// Works for one VMI until the sender of `changed` is gone.
pub async fn run(context: Context, key: Key, mut changed: watch::Receiver<()>) {
    loop {
        changed.borrow_and_update();
        let wait = match reconcile(&context, &key, &changed).await {
            Ok(wait) => wait,
            Err(problem) if problem.is_conflict() => Some(Duration::from_millis(50)),
            Err(problem) => {
                tracing::warn!(vmi = %key, error = %problem, "resizing; trying again");
                Some(AGAIN)
            }
        };
        let heard = match wait {
            None => changed.changed().await,
            Some(wait) => tokio::time::timeout(wait, changed.changed()).await.unwrap_or(Ok(())),
        };
        if heard.is_err() {
            context.teller.note(&key, None);
            return;
        }
    }
}

/// Steps until there is nothing to do but to wait. How long, when nobody would tell.
async fn reconcile(
    context: &Context,
    key: &Key,
    wanted: &watch::Receiver<()>,
) -> Result<Option<Duration>, Problem> {
    let policy = context.owners.policy(key, context.config.policy()).unwrap_or_else(|mistake| {
        tracing::warn!(vm = %key, %mistake, "in-place resize is off for this VM");
        Policy::default()
    });
    for _ in 0..STEPS {
        // The VMI is gone, or another replica leads.
        if wanted.has_changed().is_err() {
            return Ok(None);
        }
        let vmi = match context.api.get(&key.path("kubevirt.io/v1", "virtualmachineinstances")).await {
            Err(error) if error.code() == Some(404) => return Ok(None),
            other => other?,
        };
        if stamp(context, key, &vmi, &policy).await? {
            continue;
        }
        if !is_ours(context, &vmi, policy) {
            context.teller.note(key, None);
            return Ok(None);
        }
        let observed = observe(context, key, vmi).await?;
        let now = context.now();
        context.teller.note(key, observed.seen.ledger.as_ref());
        let step = decide(&observed.seen, &policy, now);
        match &step {
            Step::Idle => return Ok(None),
            Step::Wait(why, until) => {
                tracing::debug!(vmi = %key, %why, "resize");
                let due = until.map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0).max(1)));
                return Ok(Some(due.unwrap_or(LOOK).min(LOOK)));
            }
            step => log(key, step),
        }
        let notice = match act(context, key, &observed, &step, now).await? {
            Done::Written => notice::of(&observed.seen, &step),
            Done::Refused(words) => Some(notice::Notice::refused(&words)),
        };
        if let Some(notice) = notice {
            let begun = observed.seen.ledger.as_ref().map_or(0, |ledger| ledger.begun);
            context.teller.tell(key, &observed.vmi, begun, &notice, now).await;
        }
    }
    Ok(Some(Duration::ZERO))
}

/// Whether there is anything to decide: a resize, a wish, or memory that virt-controller never asks
/// for.
fn is_ours(context: &Context, vmi: &Value, policy: Policy) -> bool {
    let has = |name: &str| vmi["metadata"]["annotations"].get(name).is_some();
    let declares = policy.in_place && context.config.declare_memory && !view::vmi(vmi).migratable;
    vmi["metadata"]["deletionTimestamp"].is_null() && (has(LEDGER) || has(WISH) || declares)
}

fn log(key: &Key, step: &Step) {
    match step {
        Step::Record(Ledger { phase, task, .. }) => {
            tracing::debug!(vmi = %key, ?phase, ?task, "resize");
        }
        Step::Resize(to) => {
            tracing::info!(vmi = %key, cpu = to.cpu.request, memory = to.memory.request, "resize pod");
        }
        Step::Clear => tracing::debug!(vmi = %key, "resize ended"),
        Step::Declare(end) => tracing::info!(vmi = %key, size = ?end.size, "declare as KubeVirt"),
        Step::Idle | Step::Wait(..) => {}
    }
}

/// Writes the policy in force on the VMI, where the webhook reads it. True: it was written.
async fn stamp(context: &Context, key: &Key, vmi: &Value, policy: &Policy) -> Result<bool, Problem> {
    let written = ledger::read::<Policy>(vmi, POLICY).ok().flatten();
    let wanted = policy.in_place.then_some(*policy);
    if written == wanted {
        return Ok(false);
    }
    let text = wanted.map(|policy| serde_json::to_string(&policy)).transpose()?;
    let metadata = &vmi["metadata"];
    let patch = json!({"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        "annotations": {POLICY: text}}});
    context.api.merge(&key.path("kubevirt.io/v1", "virtualmachineinstances"), &patch).await?;
    Ok(true)
}
