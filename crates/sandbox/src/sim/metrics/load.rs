//! What a guest does: a load that rises and falls, drawn from the seed and the VMI. Everything that is counted is the
//! integral of a rate, so that counters never fall, and two looks give the rate between them.

use apimachinery::tree::Value;
use jiff::Timestamp;

use apimachinery::quantity::units;

use crate::sim::json::{self, condition, integer, list, text};
use crate::sim::node::{draw, draw_text};

/// The load of one guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Seconds since it began to run; a pause stops them.
    seconds: f64,
    seed: u64,
    pub vcpus: i64,
    /// Bytes.
    pub memory: i64,
}

/// How a rate swings: its mean, its swing as a part of that (below 1), and the seconds of a period.
struct Wave {
    mean: f64,
    swing: f64,
    period: f64,
    phase: f64,
}

impl Wave {
    fn at(&self, seconds: f64) -> f64 {
        let angle = std::f64::consts::TAU * seconds / self.period + self.phase;
        self.mean * (1.0 + self.swing * angle.sin())
    }

    /// The integral from 0.
    fn total(&self, seconds: f64) -> f64 {
        let turns = std::f64::consts::TAU / self.period;
        let swung = (self.phase.cos() - (turns * seconds + self.phase).cos()) / turns;
        self.mean * (seconds + self.swing * swung)
    }
}

impl Load {
    /// Of a VMI that runs; `None`: it does not.
    pub fn of(vmi: &Value, seed: u64, now: Timestamp) -> Option<Self> {
        if text(vmi, "/status/phase") != "Running" {
            return None;
        }
        let times = list(vmi, "/status/phaseTransitionTimestamps");
        let began = times.iter().find(|one| one["phase"] == "Running")?;
        let began: Timestamp = text(began, "/phaseTransitionTimestamp").parse().ok()?;
        let paused = condition(vmi, "/status/conditions", "Paused").filter(|one| one["status"] == "True");
        let until = paused.and_then(|one| text(one, "/lastTransitionTime").parse().ok()).unwrap_or(now);
        let count = |key: &str| integer(vmi, &format!("/status/currentCPUTopology/{key}")).max(1);
        let memory = ["/status/memory/guestCurrent", "/spec/domain/memory/guest"]
            .iter()
            .find_map(|pointer| vmi.pointer(pointer).and_then(units));
        Some(Self {
            seconds: until.duration_since(began).as_secs_f64().max(0.0),
            seed: draw_text(seed, json::uid(vmi)),
            vcpus: count("sockets") * count("cores") * count("threads"),
            memory: memory.unwrap_or(1 << 30),
        })
    }

    /// A number between 0 and 1 that stays the same for a guest and a purpose.
    #[allow(clippy::cast_precision_loss, reason = "a share")]
    fn share(&self, purpose: u64) -> f64 {
        (draw(self.seed, purpose) % 1000) as f64 / 1000.0
    }

    fn wave(&self, purpose: u64, mean: f64) -> Wave {
        Wave {
            mean: mean * (0.5 + self.share(purpose)),
            swing: 0.2 + 0.6 * self.share(purpose + 1),
            period: 120.0 + 480.0 * self.share(purpose + 2),
            phase: std::f64::consts::TAU * self.share(purpose + 3),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "few vCPUs")]
    fn cpu_wave(&self) -> Wave {
        // 5 to 45 % of each vCPU.
        self.wave(10, 0.05 + 0.25 * self.share(1)).scaled(self.vcpus as f64)
    }

    /// CPU seconds used.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu_wave().total(self.seconds)
    }

    /// CPUs in use at the moment.
    pub fn cpus(&self) -> f64 {
        self.cpu_wave().at(self.seconds)
    }

    /// Memory that the guest does not use, bytes.
    pub fn usable(&self) -> f64 {
        let used = self.wave(20, 0.4).at(self.seconds).clamp(0.05, 0.9);
        self.available() * (1.0 - used)
    }

    /// Memory that the guest sees, bytes: what its kernel took at boot is missing.
    #[allow(clippy::cast_precision_loss, reason = "bytes")]
    pub fn available(&self) -> f64 {
        self.memory as f64 * 0.97
    }

    /// What QEMU has touched on the node, bytes.
    pub fn resident(&self) -> f64 {
        (self.available() - self.usable() * 0.5) + 180.0 * 1_048_576.0
    }

    /// Something counted, at a mean rate of so much a second; `purpose` keeps counters apart.
    pub fn counted(&self, purpose: u64, rate: f64) -> f64 {
        let total = self.wave(purpose, rate).total(self.seconds);
        // Bytes and packets are whole; seconds are not.
        if rate < 0.1 { total } else { total.floor() }
    }
}

impl Wave {
    fn scaled(self, factor: f64) -> Self {
        Self { mean: self.mean * factor, ..self }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn vmi(conditions: &Value) -> Value {
        json!({"metadata": {"uid": "u"}, "spec": {"domain": {"memory": {"guest": "1Gi"}}}, "status": {"phase": "Running",
            "conditions": conditions, "currentCPUTopology": {"sockets": 2, "cores": 1, "threads": 1},
            "phaseTransitionTimestamps": [{"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"}]}})
    }

    fn load(minute: i64, conditions: &Value) -> Load {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        Load::of(&vmi(conditions), 1, start + jiff::SignedDuration::from_mins(minute)).unwrap()
    }

    #[test]
    fn counters_rise_and_gauges_stay_in_bounds() {
        let mut last = (0.0, 0.0);
        for minute in 0..600 {
            let load = load(minute, &json!([]));
            let now = (load.cpu_seconds(), load.counted(40, 1e6));
            assert!(now.0 >= last.0 && now.1 >= last.1, "{minute}");
            last = now;
            assert!(load.cpus() > 0.0 && load.cpus() < 2.0, "{minute}: {}", load.cpus());
            assert!(load.usable() > 0.0 && load.usable() < load.available());
        }
        // Two looks give what is used between them.
        let (one, two) = (load(10, &json!([])), load(11, &json!([])));
        let rate = (two.cpu_seconds() - one.cpu_seconds()) / 60.0;
        assert!(rate > 0.0 && rate < 2.0, "{rate}");
    }

    #[test]
    fn a_paused_guest_counts_nothing() {
        let paused =
            json!([{"type": "Paused", "status": "True", "lastTransitionTime": "2026-01-01T00:05:00Z"}]);
        assert_eq!(load(10, &paused), load(20, &paused));
        assert_ne!(load(10, &json!([])), load(20, &json!([])));
        let mut stopped = vmi(&json!([]));
        stopped["status"]["phase"] = "Succeeded".into();
        assert_eq!(Load::of(&stopped, 1, Timestamp::UNIX_EPOCH), None);
    }
}
