//! When what was asked for is done.
//!
//! ```text
//!  Running    ready or running, not paused          Paused   condition Paused
//!  Stopped    no instance, or one that has ended    Deleted  no VM
//!  Restarted  Running with another instance than before
//! ```

use serde_json::Value;

use crate::view::text;

/// What somebody waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Goal {
    /// The guest runs.
    Running,
    /// The guest's CPUs stand still.
    Paused,
    /// The VM is off.
    Stopped,
    /// Another instance than the one with this UID runs.
    Restarted {
        /// The instance that was there before; empty when there was none.
        uid: String,
    },
    /// The VM is gone.
    Deleted,
}

/// How far it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Not yet: where it stands.
    Waiting(String),
    /// There.
    Done,
    /// It will never get there: why.
    Failed(String),
}

/// Compares what was asked for with what is there.
pub fn judge(goal: &Goal, vm: Option<&Value>, vmi: Option<&Value>) -> Progress {
    let Some(vm) = vm else {
        return match goal {
            Goal::Deleted => Progress::Done,
            _ => Progress::Failed("the VM was deleted meanwhile".into()),
        };
    };
    let phase = vmi.map_or("", |vmi| text(vmi, "/status/phase"));
    let leaving = vmi.is_some_and(|vmi| !text(vmi, "/metadata/deletionTimestamp").is_empty());
    let paused = vmi.is_some_and(|vmi| crate::view::condition::holds(vmi, "Paused"));
    let runs = phase == "Running" && !leaving;
    let done = match goal {
        Goal::Running => runs && !paused,
        Goal::Paused => runs && paused,
        Goal::Stopped => vmi.is_none_or(|_| matches!(phase, "Succeeded" | "Failed")),
        Goal::Restarted { uid } => runs && vmi.is_some_and(|vmi| text(vmi, "/metadata/uid") != uid),
        Goal::Deleted => false,
    };
    if done { Progress::Done } else { Progress::Waiting(standing(vm, phase)) }
}

/// Where a VM stands, in KubeVirt's word and, when something is wrong, the message.
fn standing(vm: &Value, phase: &str) -> String {
    let status = match text(vm, "/status/printableStatus") {
        "" => phase,
        status => status,
    };
    match crate::view::condition::message(vm, "Failure") {
        Some(message) => format!("{status}: {message}"),
        None if status.is_empty() => "not seen by KubeVirt yet".into(),
        None => status.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vmi(phase: &str, uid: &str, paused: bool, leaving: bool) -> Value {
        let conditions = if paused { json!([{"type": "Paused", "status": "True"}]) } else { json!([]) };
        let mut vmi = json!({"metadata": {"uid": uid}, "status": {"phase": phase, "conditions": conditions}});
        if leaving {
            vmi["metadata"]["deletionTimestamp"] = "t".into();
        }
        vmi
    }

    #[test]
    fn goals_are_reached_by_what_the_api_shows() {
        let restarted = Goal::Restarted { uid: "a".into() };
        let running = vmi("Running", "a", false, false);
        let paused = vmi("Running", "a", true, false);
        let leaving = vmi("Running", "a", false, true);
        let other = vmi("Running", "b", false, false);
        let ended = vmi("Succeeded", "a", false, false);
        for (goal, vmi, done) in [
            (&Goal::Running, Some(&running), true),
            (&Goal::Running, Some(&paused), false),
            (&Goal::Running, Some(&leaving), false),
            (&Goal::Running, None, false),
            (&Goal::Paused, Some(&paused), true),
            (&Goal::Paused, Some(&running), false),
            (&Goal::Stopped, None, true),
            (&Goal::Stopped, Some(&ended), true),
            (&Goal::Stopped, Some(&leaving), false),
            (&restarted, Some(&running), false),
            (&restarted, Some(&other), true),
            (&Goal::Deleted, None, false),
        ] {
            assert_eq!(judge(goal, Some(&json!({})), vmi) == Progress::Done, done, "{goal:?} {vmi:?}");
        }
        assert_eq!(judge(&Goal::Deleted, None, None), Progress::Done);
        assert!(matches!(judge(&Goal::Running, None, None), Progress::Failed(_)));
    }

    #[test]
    fn waiting_says_what_is_wrong() {
        let vm = json!({"status": {"printableStatus": "ErrorUnschedulable",
            "conditions": [{"type": "Failure", "status": "True", "message": "no node"}]}});
        let expected = Progress::Waiting("ErrorUnschedulable: no node".into());
        assert_eq!(judge(&Goal::Running, Some(&vm), None), expected);
    }
}
