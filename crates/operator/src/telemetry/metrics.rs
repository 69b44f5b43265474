//! Prometheus metrics.
//!
//! | metric | labels | counts |
//! |---|---|---|
//! | `webhook_requests_total` | `feature`, `result` | requests: `feature="all"` each one (`allowed`, `denied`, `error`), and each feature that was involved (`applied`, `unchanged`, `removed`, `rejected`, `skipped`) |
//! | `webhook_duration_seconds` | `feature` | the time of those requests, from first body byte to answer |
//! | `feature_errors_total` | `feature`, `error_mode` | features that failed, by the mode that was in force |
//! | `webhook_certificate_expiry_timestamp_seconds` | | `notAfter` of the served certificate, in Unix time |
//! | `resize_outcomes_total` | `outcome` | in-place resizes that ended: `done`, `withdrawn`, `put-back`, `left-to-kubevirt` |
//! | `resize_obstacles_total` | `cause` | what stood in the way of one, such as `refused`, `deferred`, `infeasible`, `guest` |
//! | `resize_duration_seconds` | | from the wish to the end, of those that are done |
//! | `resizes` | `phase` | VMs with a resize in that phase |
//! | `resize_oldest_begun_timestamp_seconds` | | when the oldest resize under way began, in Unix time; 0: there is none |
//! | `export_jobs` | `phase` | `VMExportJobs` |
//! | `export_events_total` | `reason` | what happened to them: `RunStarted`, `ExportSucceeded`, `ExportFailed`, … |
//! | `virt_steward_build_info` | `version` | 1 |

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// From 25 us, well under what a decision in memory takes over HTTPS, to 10 s, the default limit of
/// an API server.
const BUCKETS: [f64; 16] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
    5.0, 10.0,
];

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Requests {
    feature: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Feature {
    feature: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Errors {
    feature: &'static str,
    error_mode: &'static str,
}

/// From a second, which kubelet needs at least, to half a day of waiting for room.
const RESIZE_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0];

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// Of in-place resizes.
struct Resizes {
    outcomes: Family<Outcome, Counter>,
    causes: Family<Cause, Counter>,
    duration: Histogram,
    phases: Family<Phase, Gauge>,
    oldest: Gauge,
}

impl Resizes {
    fn new(registry: &mut Registry) -> Self {
        let resizes = Self {
            outcomes: Family::default(),
            causes: Family::default(),
            duration: Histogram::new(RESIZE_BUCKETS),
            phases: Family::default(),
            oldest: Gauge::default(),
        };
        registry.register("resize_outcomes", "In-place resizes that ended", resizes.outcomes.clone());
        registry.register("resize_obstacles", "What stood in the way of resizes", resizes.causes.clone());
        registry.register(
            "resize_duration_seconds",
            "Time from the wish to the end of resizes that are done",
            resizes.duration.clone(),
        );
        registry.register("resizes", "VMs with a resize in a phase", resizes.phases.clone());
        registry.register(
            "resize_oldest_begun_timestamp_seconds",
            "When the oldest resize under way began",
            resizes.oldest.clone(),
        );
        resizes
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Hotplug {
    webhook: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ExportPhase {
    phase: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ExportReason {
    reason: &'static str,
}

/// All metrics, and the registry that prints them.
pub struct Metrics {
    registry: Registry,
    requests: Family<Requests, Counter>,
    duration: Family<Feature, Histogram, fn() -> Histogram>,
    errors: Family<Errors, Counter>,
    certificate_expiry: Gauge,
    hotplug: Family<Hotplug, Counter>,
    hotplug_oldest: Gauge,
    resizes: Resizes,
    export_jobs: Family<ExportPhase, Gauge>,
    export_events: Family<ExportReason, Counter>,
}

impl Metrics {
    /// Metrics of the given version of the program.
    pub fn new(version: &str) -> Self {
        let requests = Family::<Requests, Counter>::default();
        let duration: Family<Feature, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let errors = Family::<Errors, Counter>::default();
        let certificate_expiry = Gauge::default();
        let mut registry = Registry::default();
        registry.register(
            "webhook_requests",
            "Admission requests, all and by feature involved",
            requests.clone(),
        );
        registry.register(
            "webhook_duration_seconds",
            "Time to answer an admission request",
            duration.clone(),
        );
        registry.register("feature_errors", "Features that could not be given", errors.clone());
        registry.register(
            "webhook_certificate_expiry_timestamp_seconds",
            "End of validity of the served certificate",
            certificate_expiry.clone(),
        );
        let (hotplug, hotplug_oldest) = (Family::<Hotplug, Counter>::default(), Gauge::default());
        registry.register("hotplug_verdicts", "Answers about hotplugged volumes", hotplug.clone());
        registry.register(
            "hotplug_oldest_denial_seconds",
            "Age of the oldest delete of an attachment pod that this replica still denies",
            hotplug_oldest.clone(),
        );
        let resizes = Resizes::new(&mut registry);
        let (export_jobs, export_events) =
            (Family::<ExportPhase, Gauge>::default(), Family::<ExportReason, Counter>::default());
        registry.register("export_jobs", "VMExportJobs by phase", export_jobs.clone());
        registry.register("export_events", "What happened to VMExportJobs", export_events.clone());
        let build = Info::new(vec![("version", version.to_owned())]);
        registry.register("virt_steward_build", "What is running", build);
        Self {
            registry,
            requests,
            duration,
            errors,
            certificate_expiry,
            hotplug,
            hotplug_oldest,
            resizes,
            export_jobs,
            export_events,
        }
    }

    /// One request; for `feature` "all" or one that was involved.
    pub fn request(&self, feature: &'static str, result: &'static str, took: Duration) {
        self.requests.get_or_create(&Requests { feature, result }).inc();
        self.duration.get_or_create(&Feature { feature }).observe(took.as_secs_f64());
    }

    /// One feature that failed.
    pub fn feature_error(&self, feature: &'static str, error_mode: &'static str) {
        self.errors.get_or_create(&Errors { feature, error_mode }).inc();
    }

    /// One answer about hotplugged volumes.
    pub fn hotplug(&self, webhook: &'static str, allowed: bool, reason: &'static str) {
        let result = if allowed { "allowed" } else { "denied" };
        self.hotplug.get_or_create(&Hotplug { webhook, result, reason }).inc();
    }

    /// How long the oldest denial has lasted, in seconds; 0: there is none.
    pub fn hotplug_oldest_denial(&self, seconds: i64) {
        self.hotplug_oldest.set(seconds);
    }

    /// One in-place resize ended.
    pub fn resize_outcome(&self, outcome: &'static str) {
        self.resizes.outcomes.get_or_create(&Outcome { outcome }).inc();
    }

    /// Something stood in the way of one.
    pub fn resize_cause(&self, cause: &'static str) {
        self.resizes.causes.get_or_create(&Cause { cause }).inc();
    }

    /// How long one took that is done, in seconds.
    pub fn resize_took(&self, seconds: i64) {
        self.resizes.duration.observe(f64::from(i32::try_from(seconds).unwrap_or(i32::MAX)));
    }

    /// How many VMs have a resize in a phase.
    pub fn resizes(&self, phase: &'static str, count: i64) {
        self.resizes.phases.get_or_create(&Phase { phase }).set(count);
    }

    /// When the oldest resize under way began, in Unix time; 0: there is none.
    pub fn resize_oldest_begun(&self, at: i64) {
        self.resizes.oldest.set(at);
    }

    /// How many export jobs are in which phase.
    pub fn export_jobs(&self, counts: &std::collections::HashMap<String, i64>) {
        self.export_jobs.clear();
        for (phase, count) in counts {
            self.export_jobs.get_or_create(&ExportPhase { phase: phase.clone() }).set(*count);
        }
    }

    /// Something happened to an export job.
    pub fn export_event(&self, reason: &'static str) {
        self.export_events.get_or_create(&ExportReason { reason }).inc();
    }

    /// When the served certificate expires.
    pub fn certificate_expiry(&self, at: Timestamp) {
        self.certificate_expiry.set(at.as_second());
    }

    /// The text form, `OpenMetrics` 1.0.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
