//! What the Job controller does next (`pkg/controller/job`, Kubernetes 1.36), for Jobs of one pod.

use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::super::json::{
    self, has_condition, integer, is_deleting, list, new_condition, text, time, update_condition,
};

/// The pause before the second pod; it doubles (`DefaultJobPodFailureBackOff`).
const BACKOFF: i64 = 10;
/// The longest pause (`MaxJobPodFailureBackOff`).
const LONGEST: i64 = 600;

/// What to do besides the status.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Make this pod.
    Create(Value),
    /// The Job is suspended, or over its time: end its pods.
    DeletePods,
    /// It is over for `ttlSecondsAfterFinished`.
    DeleteJob,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The status to write, when it is another one.
    pub status: Option<Value>,
    pub step: Step,
    /// When to look again, if nothing happens before.
    pub again: Option<Duration>,
}

/// See the module.
pub fn decide(job: &Value, pods: &[&Value], now: Timestamp) -> Decision {
    let nothing = Decision { status: None, step: Step::Nothing, again: None };
    if is_deleting(job) {
        return nothing;
    }
    if has_condition(job, "Complete", "True") || has_condition(job, "Failed", "True") {
        return finished(job, now).unwrap_or(nothing);
    }
    let of = |phase: &str| pods.iter().filter(|pod| text(pod, "/status/phase") == phase).count();
    let (succeeded, failed) = (of("Succeeded"), of("Failed"));
    let active = pods.len() - succeeded - failed;
    let mut status =
        job.get("status").filter(|status| status.is_object()).cloned().unwrap_or_else(|| json!({}));
    let mut conditions = list(&status, "/conditions").to_vec();
    let suspended = job["spec"]["suspend"] == true;
    if status["startTime"].is_null() && !suspended {
        status["startTime"] = time(now).into();
    }
    let limit = usize::try_from(integer(job, "/spec/backoffLimit")).unwrap_or(6);
    let started: Option<Timestamp> = text(&status, "/startTime").parse().ok();
    let deadline = job["spec"]["activeDeadlineSeconds"].as_i64();
    let late = match (deadline, started) {
        (Some(seconds), Some(started)) => now.as_second() - started.as_second() >= seconds,
        _ => false,
    };
    let mut fail = |reason: &str, message: &str| {
        for kind in ["FailureTarget", "Failed"] {
            update_condition(&mut conditions, new_condition(kind, "True", reason, message, now));
        }
    };
    let (step, again) = if succeeded > 0 {
        let message = "Reached expected number of succeeded pods";
        for kind in ["SuccessCriteriaMet", "Complete"] {
            update_condition(
                &mut conditions,
                new_condition(kind, "True", "CompletionsReached", message, now),
            );
        }
        status["completionTime"] = time(now).into();
        (Step::Nothing, None)
    } else if late {
        fail("DeadlineExceeded", "Job was active longer than specified deadline");
        (Step::DeletePods, None)
    } else if failed > limit {
        fail("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        (Step::Nothing, None)
    } else if suspended {
        (if active > 0 { Step::DeletePods } else { Step::Nothing }, None)
    } else if active > 0 {
        (Step::Nothing, deadline.map(|_| Duration::from_secs(1)))
    } else {
        match wait(pods, failed, now) {
            Some(wait) => (Step::Nothing, Some(wait)),
            None => (Step::Create(pod(job, failed)), None),
        }
    };
    let active = if matches!(step, Step::Create(_)) { 1 } else { active };
    for (key, count) in [("active", active), ("succeeded", succeeded), ("failed", failed), ("ready", 0)] {
        status[key] = if count > 0 { count.into() } else { Value::Null };
    }
    status["conditions"] = conditions.into();
    let status = (!same(&status, &job["status"])).then_some(status);
    Decision { status, step, again }
}

/// Whether two statuses say the same: what is null in a patch is absent in the object.
fn same(wanted: &Value, found: &Value) -> bool {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(|list| list.is_empty());
    wanted
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| found[key] == *value || (empty(value) && empty(&found[key])))
}

fn finished(job: &Value, now: Timestamp) -> Option<Decision> {
    let ttl = job["spec"]["ttlSecondsAfterFinished"].as_i64()?;
    let ended = list(job, "/status/conditions")
        .iter()
        .filter(|condition| matches!(text(condition, "/type"), "Complete" | "Failed"))
        .find_map(|condition| text(condition, "/lastTransitionTime").parse::<Timestamp>().ok())?;
    let left = ttl - (now.as_second() - ended.as_second());
    let (step, again) = if left <= 0 {
        (Step::DeleteJob, None)
    } else {
        (Step::Nothing, Some(Duration::from_secs(u64::try_from(left).unwrap_or(1))))
    };
    Some(Decision { status: None, step, again })
}

/// How long until the next pod may be made.
fn wait(pods: &[&Value], failed: usize, now: Timestamp) -> Option<Duration> {
    let last = pods
        .iter()
        .filter_map(|pod| {
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
            ended.as_str()?.parse::<Timestamp>().ok()
        })
        .max()?;
    let doubled = BACKOFF << u32::try_from(failed.saturating_sub(1)).unwrap_or(6).min(6);
    let left = doubled.min(LONGEST) - (now.as_second() - last.as_second());
    (left > 0).then(|| Duration::from_secs(u64::try_from(left).unwrap_or(1)))
}

fn pod(job: &Value, number: usize) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": job["spec"]["template"]["spec"],
        "metadata": job["spec"]["template"]["metadata"]});
    let name = json::name(job);
    // The real one draws five characters; the number of the try is as good, and cannot come twice.
    pod["metadata"]["name"] = format!("{name}-{number:05}").into();
    pod["metadata"]["namespace"] = json::namespace(job).into();
    for (key, value) in [("batch.kubernetes.io/job-name", name), ("job-name", name)] {
        pod["metadata"]["labels"][key] = value.into();
    }
    for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        pod["metadata"]["labels"][key] = json::uid(job).into();
    }
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name,
        "uid": json::uid(job), "controller": true, "blockOwnerDeletion": true}]);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(status: &Value) -> Value {
        json!({"metadata": {"name": "j", "namespace": "ns", "uid": "u"}, "status": status,
            "spec": {"backoffLimit": 1, "ttlSecondsAfterFinished": 60,
                "template": {"spec": {"containers": [{"name": "c"}]}}}})
    }

    fn pod_of(phase: &str, ended: &str) -> Value {
        json!({"status": {"phase": phase,
            "containerStatuses": [{"state": {"terminated": {"finishedAt": ended}}}]}})
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_job_makes_a_pod_and_another_after_a_pause_until_its_limit() {
        let Step::Create(pod) = decide(&job(&Value::Null), &[], at(0)).step else { panic!() };
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "u");
        let running = json!({"status": {"phase": "Running"}});
        assert_eq!(decide(&job(&Value::Null), &[&running], at(0)).step, Step::Nothing);
        let failed = pod_of("Failed", &time(at(0)));
        let soon = decide(&job(&Value::Null), &[&failed], at(4));
        assert_eq!((soon.step, soon.again), (Step::Nothing, Some(Duration::from_secs(6))));
        assert!(matches!(decide(&job(&Value::Null), &[&failed], at(10)).step, Step::Create(_)));
        let over = decide(&job(&Value::Null), &[&failed, &failed], at(60));
        assert_eq!(over.step, Step::Nothing);
        assert!(has_condition(&json!({"status": over.status.unwrap()}), "Failed", "True"));
    }

    #[test]
    fn a_job_that_is_complete_says_so_once_and_goes_after_its_time() {
        let done = pod_of("Succeeded", &time(at(0)));
        let status = decide(&job(&Value::Null), &[&done], at(1)).status.unwrap();
        assert_eq!(status["succeeded"], 1);
        let complete = job(&status);
        assert!(has_condition(&complete, "Complete", "True"));
        let later = decide(&complete, &[&done], at(30));
        assert_eq!((later.status, later.step), (None, Step::Nothing));
        assert_eq!(decide(&complete, &[&done], at(61)).step, Step::DeleteJob);
    }
}
