//! What a measurement prints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::load::{Outcome, Plan};
use super::process::Usage;
use crate::table;

/// A measurement. Times are in microseconds, memory in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The URL that was loaded.
    pub url: String,
    /// `open loop, 2000/s` or `closed loop`.
    pub load: String,
    /// Connections that were kept open.
    pub connections: usize,
    /// From the first request to the last answer, seconds.
    pub seconds: f64,
    /// Requests with a valid answer.
    pub answered: u64,
    /// Answered requests per second.
    pub achieved_rate: f64,
    /// Answers by verdict.
    pub verdicts: Verdicts,
    /// Requests without a valid answer, by kind.
    pub errors: BTreeMap<String, u64>,
    /// Latencies of answered requests.
    pub latency_micros: Latency,
    /// What the server used, when its process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
}

/// Answers by verdict.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdicts {
    patched: u64,
    unchanged: u64,
    denied: u64,
}

/// Quantiles, microseconds, at most 0.8 % too high.
#[derive(Debug, Serialize)]
pub struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

/// What the server used.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pid: u32,
    /// User and system time of the process, for each answered request.
    cpu_micros_per_request: f64,
    /// Answered requests for each second of the server's CPU time.
    requests_per_cpu_second: f64,
    /// Resident set before the load.
    idle_rss: u64,
    /// Resident set after the load.
    rss: u64,
    /// Largest resident set so far.
    peak_rss: u64,
}

impl Report {
    /// Puts a measurement together; `usage` is of the server, before and after.
    pub fn new(url: &str, plan: Plan, outcome: &Outcome, usage: Option<(u32, Usage, Usage)>) -> Self {
        let answered = outcome.latencies.len();
        let seconds = outcome.elapsed.as_secs_f64();
        let quantile = |permille10| micros(outcome.latencies.quantile(permille10));
        Self {
            url: url.to_owned(),
            load: plan.rate.map_or_else(|| "closed loop".into(), |rate| format!("open loop, {rate}/s")),
            connections: plan.connections,
            seconds,
            answered,
            achieved_rate: ratio(answered, seconds),
            verdicts: Verdicts {
                patched: outcome.patched,
                unchanged: outcome.unchanged,
                denied: outcome.denied,
            },
            errors: outcome.errors.clone(),
            latency_micros: Latency {
                p50: quantile(5000),
                p90: quantile(9000),
                p99: quantile(9900),
                p999: quantile(9990),
                max: micros(outcome.latencies.max()),
            },
            server: usage.map(|(pid, before, after)| {
                let cpu = after.cpu.saturating_sub(before.cpu);
                Server {
                    pid,
                    cpu_micros_per_request: ratio_f(micros(cpu), answered),
                    requests_per_cpu_second: ratio(answered, cpu.as_secs_f64()),
                    idle_rss: before.rss,
                    rss: after.rss,
                    peak_rss: after.peak_rss,
                }
            }),
        }
    }

    /// How many requests had no valid answer.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The measurement for people.
    pub fn text(&self) -> String {
        let ms = |micros: f64| format!("{:.3} ms", micros / 1000.0);
        let latency = &self.latency_micros;
        let mut rows = vec![
            ("target", self.url.clone()),
            ("load", format!("{}, {} connections, {:.1} s", self.load, self.connections, self.seconds)),
            (
                "answered",
                format!("{} ({:.1}/s), {} failed", self.answered, self.achieved_rate, self.failed()),
            ),
            (
                "verdicts",
                format!(
                    "{} patched, {} unchanged, {} denied",
                    self.verdicts.patched, self.verdicts.unchanged, self.verdicts.denied
                ),
            ),
            (
                "latency",
                format!(
                    "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                    ms(latency.p50),
                    ms(latency.p90),
                    ms(latency.p99),
                    ms(latency.p999),
                    ms(latency.max)
                ),
            ),
        ];
        for (kind, count) in &self.errors {
            rows.push(("error", format!("{count} x {kind}")));
        }
        if let Some(server) = &self.server {
            rows.push((
                "server",
                format!(
                    "{:.1} us CPU per request, {:.0} requests per CPU-second",
                    server.cpu_micros_per_request, server.requests_per_cpu_second
                ),
            ));
            let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
            rows.push((
                "memory",
                format!(
                    "{} before, {} after, {} at most",
                    mib(server.idle_rss),
                    mib(server.rss),
                    mib(server.peak_rss)
                ),
            ));
        }
        let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        table::render(&rows)
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn ratio(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn ratio_f(value: f64, count: u64) -> f64 {
    if count > 0 { value / count as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_reads_well() {
        let mut outcome = Outcome { patched: 2, elapsed: Duration::from_secs(2), ..Outcome::default() };
        outcome.latencies.record(Duration::from_nanos(200));
        outcome.latencies.record(Duration::from_millis(1));
        outcome.errors.insert("timeout".into(), 3);
        let plan = Plan {
            rate: Some(10),
            connections: 4,
            duration: Duration::from_secs(2),
            max_requests: 100,
            timeout: Duration::from_secs(1),
        };
        let before = Usage { cpu: Duration::from_millis(10), rss: 3 << 20, peak_rss: 4 << 20 };
        let after = Usage { cpu: Duration::from_millis(30), rss: (7 << 20) / 2, peak_rss: 4 << 20 };
        let report = Report::new("https://127.0.0.1/mutate", plan, &outcome, Some((7, before, after)));
        insta::assert_snapshot!(report.text(), @r"
        target    https://127.0.0.1/mutate
        load      open loop, 10/s, 4 connections, 2.0 s
        answered  2 (1.0/s), 3 failed
        verdicts  2 patched, 0 unchanged, 0 denied
        latency   p50 0.000 ms, p90 1.000 ms, p99 1.000 ms, p99.9 1.000 ms, max 1.000 ms
        error     3 x timeout
        server    10000.0 us CPU per request, 100 requests per CPU-second
        memory    3.0 MiB before, 3.5 MiB after, 4.0 MiB at most
        ");
    }
}
