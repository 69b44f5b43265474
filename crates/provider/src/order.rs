//! What can be asked of a VM by one request, and how that request looks
//! (`pkg/virt-api/api.go` and `pkg/virt-api/rest/lifecycle.go`, v1.9).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::VmId;
use crate::wait::Goal;

/// An order to a VM. None is safe to send twice: a second start fails, a second restart restarts again.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Switch it on.
    Start {
        /// With the guest's CPUs standing still.
        paused: bool,
    },
    /// Shut it down.
    Stop {
        /// Seconds that the guest gets; 0 pulls the plug, none takes the VM's own.
        grace: Option<u32>,
    },
    /// Shut it down and start it again.
    Restart {
        /// Without letting the guest shut down.
        force: bool,
    },
    /// Let the guest's CPUs stand still.
    Pause,
    /// Let them go on.
    Unpause,
    /// Ask the guest to reboot.
    SoftReboot,
    /// Press the reset button.
    Reset,
}

impl Order {
    /// The verb in the API, the REST service and, with a hyphen, the command line.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Restart { .. } => "restart",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::SoftReboot => "softreboot",
            Self::Reset => "reset",
        }
    }

    /// The verb while it is being done.
    pub const fn doing(self) -> &'static str {
        match self {
            Self::Start { .. } => "starting",
            Self::Stop { .. } => "stopping",
            Self::Restart { .. } => "restarting",
            Self::Pause => "pausing",
            Self::Unpause => "unpausing",
            Self::SoftReboot => "soft-rebooting",
            Self::Reset => "resetting",
        }
    }

    /// The object that the API takes the order for.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Start { .. } | Self::Stop { .. } | Self::Restart { .. } => "virtualmachines",
            Self::Pause | Self::Unpause | Self::SoftReboot | Self::Reset => "virtualmachineinstances",
        }
    }

    /// Where it is sent.
    pub fn path(self, vm: &VmId) -> String {
        format!(
            "/apis/subresources.kubevirt.io/v1/namespaces/{}/{}/{}/{}",
            vm.namespace(),
            self.resource(),
            vm.name(),
            self.verb()
        )
    }

    /// What is sent.
    pub fn body(self, dry_run: bool) -> Value {
        let mut body = match self {
            Self::Start { paused: true } => json!({"paused": true}),
            Self::Stop { grace: Some(seconds) } => json!({"gracePeriod": seconds}),
            // greater values are refused (lifecycle.go, v1.9)
            Self::Restart { force: true } => json!({"gracePeriodSeconds": 0}),
            _ => json!({}),
        };
        // softreboot and reset take no options: sending dryRun would do it for real
        if dry_run {
            body["dryRun"] = json!(["All"]);
        }
        body
    }

    /// Whether the API server can be asked what it would say without doing it.
    /// `softreboot` and `reset` have no options in v1.9.
    pub const fn has_dry_run(self) -> bool {
        !matches!(self, Self::SoftReboot | Self::Reset)
    }

    /// What is true once it is done; `before` is the VMI as it was when the order was given. None for
    /// what leaves no trace in the API.
    pub fn goal(self, before: Option<&Value>) -> Option<Goal> {
        let uid = || before.map(|vmi| crate::view::text(vmi, "/metadata/uid").to_owned()).unwrap_or_default();
        Some(match self {
            Self::Start { paused: false } | Self::Unpause => Goal::Running,
            Self::Start { paused: true } | Self::Pause => Goal::Paused,
            Self::Stop { .. } => Goal::Stopped,
            Self::Restart { .. } => Goal::Restarted { uid: uid() },
            Self::SoftReboot | Self::Reset => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_look_as_virt_api_reads_them() {
        let vm = VmId::new("prod", "web").unwrap();
        for (order, path, body) in [
            (Order::Start { paused: false }, "virtualmachines/web/start", json!({"dryRun": ["All"]})),
            (
                Order::Start { paused: true },
                "virtualmachines/web/start",
                json!({"paused": true, "dryRun": ["All"]}),
            ),
            (
                Order::Stop { grace: Some(0) },
                "virtualmachines/web/stop",
                json!({"gracePeriod": 0, "dryRun": ["All"]}),
            ),
            (
                Order::Restart { force: true },
                "virtualmachines/web/restart",
                json!({"gracePeriodSeconds": 0, "dryRun": ["All"]}),
            ),
            (Order::Pause, "virtualmachineinstances/web/pause", json!({"dryRun": ["All"]})),
        ] {
            assert_eq!(order.path(&vm), format!("/apis/subresources.kubevirt.io/v1/namespaces/prod/{path}"));
            assert_eq!(order.body(true), body);
        }
        assert_eq!(Order::Reset.body(false), json!({}));
        assert!(!Order::Reset.has_dry_run());
    }
}
