//! Whether we are fit to serve, part by part.
//!
//! ```text
//!  starting ──► ready ◄──► degraded (still ready, says why)
//!      └──────────┴──────────┴──► unready (certificate, draining)
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::tls::Resolver;

/// How one part is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Some requests get a poorer answer; the text says which.
    Degraded(String),
    /// No request should come here.
    Unready(String),
}

/// The state of every part. The certificate is looked at each time it is asked about: validity
/// depends on the wall clock alone, and timers do not run while a machine sleeps.
pub struct Readiness {
    draining: AtomicBool,
    parts: Mutex<BTreeMap<&'static str, State>>,
    certificate: Arc<Resolver>,
    clock: Clock,
}

/// A snapshot of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Whether requests should come here.
    pub ready: bool,
    /// Each part, by name.
    pub parts: BTreeMap<&'static str, State>,
}

impl Readiness {
    /// Ready as soon as `certificate` holds a valid one.
    pub fn new(certificate: Arc<Resolver>, clock: Clock) -> Self {
        Self { draining: AtomicBool::new(false), parts: Mutex::new(BTreeMap::new()), certificate, clock }
    }

    /// Says how a part is from now on, and logs when that is new.
    pub fn set(&self, part: &'static str, state: State) {
        let before = self.parts.lock().insert(part, state.clone());
        if before.as_ref() == Some(&state) {
            return;
        }
        match state {
            State::Ok => tracing::info!(part, "ready"),
            State::Degraded(reason) => tracing::warn!(part, reason, "degraded"),
            State::Unready(reason) => tracing::warn!(part, reason, "not ready"),
        }
    }

    /// From now on, for good: unready, because we are about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// How everything is now.
    pub fn report(&self) -> Report {
        let mut parts = self.parts.lock().clone();
        parts.insert("certificate", self.certificate.state((self.clock)()));
        if self.draining.load(Ordering::Acquire) {
            parts.insert("shutdown", State::Unready("stopping".into()));
        }
        let ready = !parts.values().any(|state| matches!(state, State::Unready(_)));
        Report { ready, parts }
    }
}

impl Report {
    /// The body of `/readyz`: in short what is wrong, with `verbose` every part.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        for (part, state) in &self.parts {
            // Writing to a string cannot fail.
            let _ = match state {
                State::Ok if verbose => writeln!(text, "[+]{part} ok"),
                State::Degraded(reason) if verbose => writeln!(text, "[!]{part} degraded: {reason}"),
                State::Unready(reason) => writeln!(text, "[-]{part} failed: {reason}"),
                State::Ok | State::Degraded(_) => Ok(()),
            };
        }
        text.push_str(if self.ready { "ok" } else { "not ready" });
        text
    }
}
