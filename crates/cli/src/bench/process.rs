//! What a process has used, from `/proc` (Linux, proc(5)).

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::problem::Problem;

/// One reading of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// User and system time of all its threads, since it started; in steps of a clock tick, 10 ms.
    pub cpu: Duration,
    /// Resident set, bytes.
    pub rss: u64,
    /// The largest resident set so far, bytes.
    pub peak_rss: u64,
}

/// Reads the usage of a process.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| {
            Problem::new(
                format!("reading what process {pid} has used"),
                error,
                "give the id of a running process of your own with `--pid`, on Linux",
            )
        })
    };
    let ticks = parse_stat(&read("stat")?);
    let (rss, peak_rss) = parse_status(&read("status")?);
    let cpu =
        Duration::from_millis(ticks.unwrap_or_default() * 1000 / rustix::param::clock_ticks_per_second());
    Ok(Usage { cpu, rss, peak_rss })
}

/// User plus system ticks, fields 14 and 15. The second field is the name in parentheses, and it
/// may contain both spaces and parentheses.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn parse_status(status: &str) -> (u64, u64) {
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or_default() * 1024
    };
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_does_not_confuse_the_fields() {
        let stat = "42 (a) (b c) S 1 42 42 0 -1 4194304 100 0 0 0 17 25 0 0 20 0 4 0 100 1000 50";
        assert_eq!(parse_stat(stat), Some(42));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status), (1024 * 1024, 2 * 1024 * 1024));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss > 0 && usage.peak_rss >= usage.rss / 2);
    }
}
