//! The webhook's half: one patch of virt-controller, answered from the VMI alone.

use resize::hook::{self, Ruling, Verdict};
use serde_json::Value;

use crate::webhook::{AdmissionRequest, Answer};

/// Where it is served.
pub const PATH: &str = "/resize";

/// What was done to a patch, for log and metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Held {
    /// It passes as it is.
    Passed,
    /// It was set back and noted.
    SetBack,
    /// It passes with the status.
    Declared,
}

impl Held {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::SetBack => "held",
            Self::Declared => "declared",
        }
    }
}

/// The accounts whose patches are ruled on: virt-controller's, in whichever namespace KubeVirt is.
fn is_virt_controller(user: &str) -> bool {
    user.strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(_, account)| account == "kubevirt-controller")
}

/// Answers one request. It is never denied: what cannot be ruled on passes, and KubeVirt migrates.
pub fn review(request: &AdmissionRequest<'_, Value>) -> (Held, Answer) {
    let passed = (Held::Passed, Answer::default());
    let (Some(old), Some(new)) = (&request.old_object, &request.object) else { return passed };
    if !is_virt_controller(&request.user_info.username) {
        return passed;
    }
    match hook::review(old, new) {
        Verdict::Pass(_) => passed,
        Verdict::Change { sockets, guest, operations } => {
            let held = if [sockets, guest].contains(&Ruling::Hold) { Held::SetBack } else { Held::Declared };
            let patch = (!operations.is_empty()).then(|| Value::from(operations).to_string().into_bytes());
            (held, Answer { patch, ..Answer::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_virt_controller_is_ruled_on() {
        assert!(is_virt_controller("system:serviceaccount:kubevirt:kubevirt-controller"));
        assert!(is_virt_controller("system:serviceaccount:harvester-system:kubevirt-controller"));
        for other in [
            "system:serviceaccount:kubevirt:kubevirt-handler",
            "system:serviceaccount:team:x:kubevirt-controller",
            "kubevirt-controller",
            "admin",
        ] {
            assert!(!is_virt_controller(other), "{other}");
        }
    }
}
