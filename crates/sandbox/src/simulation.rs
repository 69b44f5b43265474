//! A sandbox in virtual time: nobody waits, and the seed decides everything.
//!
//! One thread runs the API server, the simulated `KubeVirt` and whatever a scenario adds, over
//! connections in memory ([`Network`]). Its clock stands still while anybody has work, and jumps to the
//! next moment at which somebody wants to wake when all wait: an hour of heartbeats takes a second. What
//! the components see of the time, and write into objects, is that clock. As nothing comes from outside,
//! the same seed gives the same requests in the same order, down to the bytes of the audit log; another
//! seed gives messages other times on the way, and so another order.
//!
//! ```
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let simulation = sandbox::Simulation::new(7).nodes(1).vms(1);
//! let took = simulation.run(async |world| {
//!     let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/vm-1";
//!     let runs = async || world.get(path).await.is_ok_and(|vm| vm["status"]["ready"] == true);
//!     world.until("vm-1 is ready", Duration::from_secs(60), runs).await.map(|()| world.elapsed())
//! })??;
//! assert!(took < Duration::from_secs(60));
//! # Ok(())
//! # }
//! ```
//!
//! A scenario has to stay on the network in memory and off other threads: the clock does not know of what
//! goes on elsewhere, and jumps over it. Blocking tasks (files) are waited for, in no fixed order.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use kube::client::Body;
use serde_json::Value;

use crate::audit::{Level, Log};
use crate::clock::{Clock as _, RuntimeClock};
use crate::faults::Fault;
use crate::network::Network;
use crate::{Error, Options, Sandbox, Surroundings};

/// The time on every clock when a simulation begins: seconds since 1970, 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600;
/// A message takes up to so long, unless a simulation says otherwise.
const TRANSIT: Duration = Duration::from_millis(5);
/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(100);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Simulation {
    options: Options,
    transit: Duration,
}

/// A condition did not come true.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s of virtual time in vain: {what}", waited.as_secs())]
pub struct InVain {
    what: String,
    waited: Duration,
}

/// The running simulation, as a scenario sees it.
#[derive(Debug)]
pub struct World {
    sandbox: Sandbox,
    surroundings: Surroundings,
    clock: RuntimeClock,
    log: Log,
    client: Client,
}

/// Hides what cannot be shown.
struct Client(kube::Client);

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Client")
    }
}

impl Simulation {
    /// The API alone, without nodes.
    pub fn new(seed: u64) -> Self {
        Self::of(Options { seed, ..Options::default() })
    }

    /// With everything that a sandbox can be told. Files are read and written in real time.
    pub fn of(options: Options) -> Self {
        Self { options, transit: TRANSIT }
    }

    /// So many nodes, and a simulated `KubeVirt` for them.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.options.nodes = nodes;
        self
    }

    /// So many virtual machines that are there from the start.
    #[must_use]
    pub fn vms(mut self, vms: usize) -> Self {
        self.options.vms = vms;
        self
    }

    /// What goes wrong once everything stands; can be said again.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.options.faults.push(fault);
        self
    }

    /// How long a message takes at most; how long each does, the seed draws. Zero: no time at all, and
    /// then every seed gives the same order.
    #[must_use]
    pub fn transit(mut self, transit: Duration) -> Self {
        self.transit = transit;
        self
    }

    /// Runs a scenario in a world of its own, on this thread, and ends that world with it.
    ///
    /// # Errors
    /// The world could not be set up.
    pub fn run<T>(self, scenario: impl AsyncFnOnce(&World) -> T) -> Result<T, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .map_err(|error| Error::Bootstrap(format!("a runtime: {error}")))?;
        runtime.block_on(async move {
            let world = World::new(self).await?;
            let outcome = scenario(&world).await;
            world.sandbox.shutdown().await;
            Ok(outcome)
        })
    }
}

impl World {
    async fn new(simulation: Simulation) -> Result<Self, Error> {
        let start = Timestamp::from_second(START).unwrap_or_default();
        let clock = RuntimeClock::starting(start);
        let log = Log::default();
        let surroundings = Surroundings {
            clock: Arc::new(clock),
            network: Network::memory(simulation.options.seed, simulation.transit),
            audit: Some((Level::Request, log.clone())),
        };
        let sandbox = Sandbox::start_within(simulation.options, surroundings.clone()).await?;
        let client = Client(sandbox.client().await?);
        Ok(Self { sandbox, surroundings, clock, log, client })
    }

    /// The administrator's client.
    pub fn client(&self) -> kube::Client {
        self.client.0.clone()
    }

    /// The sandbox: its faults, its simulated `KubeVirt`.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Where webhooks and other servers of a scenario listen, and their clients connect.
    pub fn network(&self) -> &Network {
        &self.surroundings.network
    }

    /// The time on everybody's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How long the simulation has been running, in its own time.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The audit log so far: a line of JSON for every request, as a real API server writes them.
    pub fn audit(&self) -> Vec<u8> {
        self.log.bytes()
    }

    /// Lets everybody work for so long.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Reads what is at a path, as the administrator.
    ///
    /// # Errors
    /// What the API server answers otherwise.
    pub async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.0.request(request).await
    }

    /// Sends a request as the administrator.
    ///
    /// # Errors
    /// What the API server refuses.
    pub async fn send(&self, request: Request<Value>) -> Result<Value, kube::Error> {
        let (mut head, body) = request.into_parts();
        let json = http::HeaderValue::from_static("application/json");
        head.headers.entry(http::header::CONTENT_TYPE).or_insert(json);
        let request = Request::from_parts(head, Body::from(body.to_string().into_bytes()));
        let (head, body) = self.client.0.send(request).await?.into_parts();
        let body = http_body_util::BodyExt::collect(body).await?.to_bytes();
        let answer: Value = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
        if head.status.is_success() {
            return Ok(answer);
        }
        let status = serde_json::from_value(answer).map_err(kube::Error::SerdeError)?;
        Err(kube::Error::Api(Box::new(status)))
    }

    /// Lets time pass until a condition holds, which is looked at every 100 ms; at most `limit` from now.
    ///
    /// # Errors
    /// [`InVain`] when it does not hold by then.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        mut holds: impl AsyncFnMut() -> bool,
    ) -> Result<(), InVain> {
        let begin = self.elapsed();
        while !holds().await {
            let waited = self.elapsed().saturating_sub(begin);
            if waited >= limit {
                return Err(InVain { what: what.to_owned(), waited });
            }
            self.pass(STEP).await;
        }
        Ok(())
    }
}
