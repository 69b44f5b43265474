//! One request, from parsed review to answer: observe (read what the VM names), decide
//! (`features::admit`), tell (metrics, log, audit).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use features::{ClusterFacts, Lookups, OutcomeResult, Relevant, Request, Verdict};
use futures::future::join_all;
use tokio::time::timeout_at;

use super::review::{AdmissionRequest, Answer};
use crate::facts::Reader;

/// Why no decision could be made.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// A bug of ours; the request is answered with HTTP 500 and the failure policy decides.
    #[error("internal error while deciding request {uid}: {what}")]
    Panic {
        /// The request.
        uid: String,
        /// The panic's message.
        what: String,
    },
    /// The patch cannot be written.
    #[error("cannot write the answer to request {uid}: {source}")]
    Write {
        /// The request.
        uid: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// A verdict, or nothing to say because the request cannot concern us.
pub struct Decision {
    /// What `features` said; `None`: it was not asked.
    pub verdict: Option<Verdict>,
    /// When reading what the VM names began, how many objects that were, and when it was done; the
    /// decision began then.
    pub observed: Option<(Instant, usize, Instant)>,
}

impl Decision {
    /// There was nothing to decide.
    pub const fn untouched() -> Self {
        Self { verdict: None, observed: None }
    }
}

/// Decides one CREATE or UPDATE of a VirtualMachine; everything else is none of our business.
pub async fn decide(
    request: &AdmissionRequest<'_, Relevant>,
    cluster: &ClusterFacts,
    config: &features::Config,
    reader: &Reader,
    limit: Duration,
) -> Result<Decision, DecideError> {
    let Some(Relevant(object)) = concerning(request) else {
        return Ok(Decision::untouched());
    };
    let old_object = request.old_object.as_ref().map(|Relevant(object)| object);
    let view = Request { namespace: &request.namespace, object, old_object };
    let begun = Instant::now();
    let lookups = observe(&view, &request.uid, config, reader, limit).await?;
    let observed = Some((begun, lookups.len(), Instant::now()));
    let verdict = guarded(&request.uid, || features::admit(&view, cluster, &lookups, config))?;
    Ok(Decision { verdict: Some(verdict), observed })
}

/// The object, when the request is one that features can be about.
pub(super) fn concerning<'a, O>(request: &'a AdmissionRequest<'_, O>) -> Option<&'a O> {
    let ours = request.kind.group == "kubevirt.io"
        && request.kind.kind == "VirtualMachine"
        && request.sub_resource.is_empty()
        && matches!(&*request.operation, "CREATE" | "UPDATE");
    request.object.as_ref().filter(|_| ours)
}

/// Reads what the VM names until nothing new is asked for. A Secret may name a ConfigMap, so it
/// takes two rounds at the most; the bound keeps a mistake from becoming a loop.
async fn observe(
    request: &Request<'_>,
    uid: &str,
    config: &features::Config,
    reader: &Reader,
    limit: Duration,
) -> Result<Lookups, DecideError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut lookups = Lookups::new();
    for _ in 0..3 {
        let mut needs = guarded(uid, || features::needs(request, config, &lookups))?;
        needs.retain(|need| !lookups.contains_key(need));
        if needs.is_empty() {
            break;
        }
        let reads = needs.into_iter().map(|need| async move {
            let found = match timeout_at(deadline, reader.read(request.namespace, &need)).await {
                Ok(found) => found,
                Err(_) => features::Lookup::Failed(format!("no answer within {} s", limit.as_secs())),
            };
            (need, found)
        });
        lookups.extend(join_all(reads).await);
    }
    Ok(lookups)
}

/// A panic in a decision costs one request, not the process.
pub(super) fn guarded<T>(uid: &str, decide: impl FnOnce() -> T) -> Result<T, DecideError> {
    catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic".into());
        DecideError::Panic { uid: uid.to_owned(), what }
    })
}

/// The answer that says what was decided.
pub fn answer(uid: &str, decision: &Decision) -> Result<Answer, DecideError> {
    let Some(verdict) = &decision.verdict else { return Ok(Answer::default()) };
    let patch = if verdict.patch.0.is_empty() {
        None
    } else {
        let write = |source| DecideError::Write { uid: uid.to_owned(), source };
        Some(serde_json::to_vec(&verdict.patch).map_err(write)?)
    };
    Ok(Answer { denial: verdict.denial.clone(), patch, warnings: verdict.warnings.clone() })
}

/// How one outcome is called in metrics and logs.
pub const fn result_name(result: OutcomeResult) -> &'static str {
    match result {
        OutcomeResult::Applied => "applied",
        OutcomeResult::Unchanged => "unchanged",
        OutcomeResult::Removed => "removed",
        OutcomeResult::Rejected => "rejected",
        OutcomeResult::Skipped => "skipped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_words() {
        let calm = guarded("1", || 7).unwrap();
        assert_eq!(calm, 7);
        for (what, result) in [
            ("plain words", guarded("1", || panic!("plain words"))),
            ("index 3", guarded("1", || panic!("index {}", 3))),
        ] {
            let result: Result<(), DecideError> = result;
            let text = result.unwrap_err().to_string();
            assert!(text.contains(what) && text.contains('1'), "{text}");
        }
    }
}
