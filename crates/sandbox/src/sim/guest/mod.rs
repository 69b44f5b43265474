//! What runs inside a virtual machine, as far as it shows from outside: a serial console with a
//! small shell, a screen, an agent, a redirected USB port, an echo service.

pub mod agent;
pub mod console;
pub mod machine;
pub mod nics;
pub mod screen;
pub mod usb;
pub mod vnc;

use apimachinery::tree::Value;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::hotplug::memory_dump::Dump;
use super::json::{self, text};
use console::Console;
use machine::Machine;
use nics::Nics;

/// On VMIs: `no-agent`, or `refuses-freeze`.
const MANNER: &str = "sandbox.vm-feature-manager.io/guest";

/// How a guest behaves, if not as one wishes.
pub fn manner(vmi: &Value) -> &str {
    json::annotation(vmi, MANNER).unwrap_or_default()
}

/// What the launcher says when a guest does not let its file systems be frozen; `None`: it does.
pub fn refused_freeze(vmi: &Value) -> Option<&'static str> {
    (manner(vmi) == "refuses-freeze").then_some(
        "LibvirtError(Code=1, Domain=10, Message='internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': failed to open /mnt: Permission denied')",
    )
}

/// The state of a guest that its node reports, and its console.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Its vCPUs stand still.
    pub paused: bool,
    /// The volume that its vCPUs stand still because of.
    pub io_error: Option<String>,
    /// Its file systems are frozen until then.
    frozen_until: Option<Timestamp>,
    /// How often it was reset or rebooted.
    pub boots: u32,
    /// Its vCPUs and its memory.
    pub machine: Machine,
    /// Interfaces of the domain, and of the launcher pod, which keeps those that the guest has let go.
    pub nics: Nics,
    /// The last dump of its memory, in the metadata of its domain.
    pub dump: Option<Dump>,
    /// What is on the serial line.
    pub console: Console,
    /// Ends the connection that has the serial console: there is one at a time.
    session: CancellationToken,
}

impl Guest {
    /// The guest of a VMI at power-on.
    pub fn of(vmi: &Value) -> Self {
        Self {
            paused: text(vmi, "/spec/startStrategy") == "Paused",
            machine: Machine::of(vmi),
            nics: Nics::of(vmi),
            console: Console::new(json::name(vmi)),
            ..Self::default()
        }
    }

    /// Freezes the file systems; they thaw by themselves at `until`.
    pub fn freeze(&mut self, until: Timestamp) {
        self.frozen_until = Some(until);
    }

    /// Thaws the file systems.
    pub fn thaw(&mut self) {
        self.frozen_until = None;
    }

    /// Until when the file systems are frozen, if they are.
    pub fn frozen(&self, now: Timestamp) -> Option<Timestamp> {
        self.frozen_until.filter(|until| *until > now)
    }

    /// The reset button, or a reboot that the guest does itself.
    pub fn reset(&mut self) {
        self.boots = self.boots.saturating_add(1);
        self.frozen_until = None;
        self.machine.reset();
        self.console.reset();
    }

    /// Takes the serial line over from who has it; the token ends when somebody else takes it.
    pub fn take_console(&mut self) -> CancellationToken {
        self.session.cancel();
        self.session = CancellationToken::new();
        self.session.clone()
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn a_freeze_ends_by_itself() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut guest = Guest::of(&json!({"metadata": {"name": "v"}}));
        guest.freeze(at(10));
        assert_eq!(guest.frozen(at(9)), Some(at(10)));
        assert_eq!(guest.frozen(at(10)), None);
        guest.freeze(at(20));
        guest.thaw();
        assert_eq!(guest.frozen(at(11)), None);
    }

    #[test]
    fn a_paused_start_and_one_console_at_a_time() {
        let mut guest = Guest::of(&json!({"metadata": {"name": "v"}, "spec": {"startStrategy": "Paused"}}));
        assert!(guest.paused);
        let first = guest.take_console();
        let second = guest.take_console();
        assert!(first.is_cancelled() && !second.is_cancelled());
    }
}
