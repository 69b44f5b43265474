//! `/metrics` of a virt-handler: the `kubevirt_vmi_*` of its node's guests in Prometheus' text format
//! (`pkg/monitoring/metrics/virt-handler/domainstats`, v1.9).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use apimachinery::tree::Value;
use jiff::Timestamp;

use super::load::Load;
use crate::sim::guest::agent;
use crate::sim::json::{self, has_condition, list, map, text};
use crate::sim::live_migration;

/// Help and kind of a metric, and its samples: labels and value.
type Family = (&'static str, &'static str, Vec<(String, f64)>);

/// Families by name.
#[derive(Default)]
struct Page(BTreeMap<&'static str, Family>);

impl Page {
    fn add(&mut self, name: &'static str, kind: &'static str, help: &'static str, labels: &str, value: f64) {
        self.0.entry(name).or_insert_with(|| (help, kind, Vec::new())).2.push((labels.to_owned(), value));
    }

    fn text(self) -> String {
        let mut out = String::new();
        for (name, (help, kind, samples)) in self.0 {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = match labels.as_str() {
                    "" => writeln!(out, "{name} {value}"),
                    labels => writeln!(out, "{name}{{{labels}}} {value}"),
                };
            }
        }
        out
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(vmi: &Value) -> String {
    let mut all = format!(
        "node=\"{}\",namespace=\"{}\",name=\"{}\"",
        quoted(text(vmi, "/status/nodeName")),
        quoted(json::namespace(vmi)),
        quoted(json::name(vmi))
    );
    for (key, value) in map(vmi, "/metadata/labels").into_iter().flatten() {
        let key: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let _ = write!(all, ",kubernetes_vmi_label_{key}=\"{}\"", quoted(value.as_str().unwrap_or_default()));
    }
    all
}

/// The page of a node with these VMIs.
pub fn page<'a>(vmis: impl Iterator<Item = &'a Value>, seed: u64, now: Timestamp) -> String {
    let mut page = Page::default();
    page.add("kubevirt_number_of_vms_scraped", "gauge", "The number of VMs that were looked at.", "", 0.0);
    let mut scraped = 0.0;
    for vmi in vmis {
        let Some(load) = Load::of(vmi, seed, now) else { continue };
        scraped += 1.0;
        describe(&mut page, vmi, &load, now);
    }
    if let Some(family) = page.0.get_mut("kubevirt_number_of_vms_scraped") {
        family.2 = vec![(String::new(), scraped)];
    }
    page.text()
}

fn describe(page: &mut Page, vmi: &Value, load: &Load, now: Timestamp) {
    const COUNTER: &str = "counter";
    const GAUGE: &str = "gauge";
    let of = labels(vmi);
    let cpu = load.cpu_seconds();
    for (name, help, value) in [
        (
            "kubevirt_vmi_cpu_usage_seconds_total",
            "Total CPU time spent in all modes (sum of both vcpu and hypervisor usage).",
            cpu,
        ),
        ("kubevirt_vmi_cpu_user_usage_seconds_total", "Total CPU time spent in user mode.", cpu * 0.7),
        ("kubevirt_vmi_cpu_system_usage_seconds_total", "Total CPU time spent in system mode.", cpu * 0.3),
        (
            "kubevirt_vmi_memory_pgmajfault_total",
            "The number of page faults when disk IO was required.",
            load.counted(30, 0.2),
        ),
    ] {
        page.add(name, COUNTER, help, &of, value);
    }
    let (available, usable) = (load.available(), load.usable());
    #[allow(clippy::cast_precision_loss, reason = "bytes")]
    let domain = load.memory as f64;
    for (name, help, value) in [
        ("kubevirt_vmi_memory_available_bytes", "Amount of usable memory as seen by the domain.", available),
        (
            "kubevirt_vmi_memory_usable_bytes",
            "The amount of memory which can be reclaimed by balloon without pushing the guest system to swap.",
            usable,
        ),
        (
            "kubevirt_vmi_memory_unused_bytes",
            "The amount of memory left completely unused by the system.",
            usable * 0.6,
        ),
        (
            "kubevirt_vmi_memory_cached_bytes",
            "The amount of memory that is being used to cache I/O and is available to be reclaimed.",
            usable * 0.35,
        ),
        (
            "kubevirt_vmi_memory_resident_bytes",
            "Resident set size of the process running the domain.",
            load.resident(),
        ),
        (
            "kubevirt_vmi_memory_domain_bytes",
            "The amount of memory in bytes allocated to the domain.",
            domain,
        ),
        ("kubevirt_vmi_memory_actual_balloon_bytes", "Current balloon size in bytes.", domain),
        (
            "kubevirt_vmi_memory_swap_in_traffic_bytes",
            "The total amount of data read from swap space of the guest in bytes.",
            0.0,
        ),
        (
            "kubevirt_vmi_memory_swap_out_traffic_bytes",
            "The total amount of memory written out to swap space of the guest in bytes.",
            0.0,
        ),
        (
            "kubevirt_vmi_guest_load_1m",
            "Guest system load average over 1 minute as reported by the guest agent.",
            load.cpus(),
        ),
        (
            "kubevirt_vmi_guest_load_5m",
            "Guest system load average over 5 minutes as reported by the guest agent.",
            load.cpus() * 0.95,
        ),
        (
            "kubevirt_vmi_guest_load_15m",
            "Guest system load average over 15 minutes as reported by the guest agent.",
            load.cpus() * 0.9,
        ),
    ] {
        let of_agent = name.contains("guest_load");
        if !of_agent || has_condition(vmi, "AgentConnected", "True") {
            page.add(name, GAUGE, help, &of, value);
        }
    }
    for id in 0..load.vcpus {
        #[allow(clippy::cast_precision_loss, reason = "few vCPUs")]
        let each = cpu / load.vcpus as f64;
        let id_labels = format!("{of},id=\"{id}\"");
        page.add(
            "kubevirt_vmi_vcpu_seconds_total",
            COUNTER,
            "Total amount of time spent in each state by each vcpu (cpu_time excluding hypervisor time).",
            &format!("{id_labels},state=\"running\""),
            each,
        );
        page.add(
            "kubevirt_vmi_vcpu_wait_seconds_total",
            COUNTER,
            "Amount of time spent by each vcpu while waiting on I/O.",
            &id_labels,
            each * 0.05,
        );
        page.add(
            "kubevirt_vmi_vcpu_delay_seconds_total",
            COUNTER,
            "Amount of time spent by each vcpu waiting in the queue instead of running.",
            &id_labels,
            each * 0.01,
        );
    }
    drives(page, vmi, load, &of);
    for (index, interface) in list(vmi, "/status/interfaces").iter().enumerate() {
        let purpose = 400 + 40 * index as u64;
        let of = format!("{of},interface=\"{}\"", quoted(text(interface, "/name")));
        for (name, help, step, rate) in [
            (
                "kubevirt_vmi_network_receive_bytes_total",
                "Total network traffic received in bytes.",
                0,
                40_000.0,
            ),
            (
                "kubevirt_vmi_network_transmit_bytes_total",
                "Total network traffic transmitted in bytes.",
                4,
                25_000.0,
            ),
            (
                "kubevirt_vmi_network_receive_packets_total",
                "Total network traffic received packets.",
                8,
                50.0,
            ),
            (
                "kubevirt_vmi_network_transmit_packets_total",
                "Total network traffic transmitted packets.",
                12,
                40.0,
            ),
            ("kubevirt_vmi_network_receive_errors_total", "Total network received error packets.", 16, 0.0),
            (
                "kubevirt_vmi_network_transmit_errors_total",
                "Total network transmitted error packets.",
                20,
                0.0,
            ),
            (
                "kubevirt_vmi_network_receive_packets_dropped_total",
                "The total number of rx packets dropped on vNIC interfaces.",
                24,
                0.001,
            ),
            (
                "kubevirt_vmi_network_transmit_packets_dropped_total",
                "The total number of tx packets dropped on vNIC interfaces.",
                28,
                0.001,
            ),
        ] {
            page.add(name, COUNTER, help, &of, load.counted(purpose + step, rate));
        }
    }
    migration(page, vmi, domain, &of, now);
}

/// What goes over to another node, at an even pace.
fn migration(page: &mut Page, vmi: &Value, domain: f64, of: &str, now: Timestamp) {
    const GAUGE: &str = "gauge";
    let state = &vmi["status"]["migrationState"];
    let began: Option<Timestamp> = text(state, "/startTimestamp").parse().ok();
    let Some(began) = began.filter(|_| text(state, "/endTimestamp").is_empty()) else { return };
    let needed = live_migration::transfer_time(vmi).as_secs_f64().max(0.001);
    let gone = (now.duration_since(began).as_secs_f64() / needed).clamp(0.0, 1.0);
    for (name, kind, help, value) in [
        (
            "kubevirt_vmi_migration_data_bytes_total",
            "counter",
            "The total Guest OS data to be migrated to the new VM.",
            domain,
        ),
        (
            "kubevirt_vmi_migration_data_processed_bytes",
            GAUGE,
            "The total Guest OS data processed and migrated to the new VM.",
            (domain * gone).round(),
        ),
        (
            "kubevirt_vmi_migration_data_remaining_bytes",
            GAUGE,
            "The remaining guest OS data to be migrated to the new VM.",
            domain - (domain * gone).round(),
        ),
        (
            "kubevirt_vmi_migration_dirty_memory_rate_bytes",
            GAUGE,
            "The rate of memory being dirty in the Guest OS.",
            8e6,
        ),
        (
            "kubevirt_vmi_migration_memory_transfer_rate_bytes",
            GAUGE,
            "The rate at which the memory is being transferred.",
            (domain / needed).round(),
        ),
        (
            "kubevirt_vmi_migration_disk_transfer_rate_bytes",
            GAUGE,
            "The rate at which the disk is being transferred.",
            0.0,
        ),
    ] {
        page.add(name, kind, help, of, value);
    }
}

fn drives(page: &mut Page, vmi: &Value, load: &Load, of: &str) {
    const COUNTER: &str = "counter";
    let volumes = list(vmi, "/status/volumeStatus").iter();
    for (index, volume) in volumes.filter(|volume| !text(volume, "/target").is_empty()).enumerate() {
        let purpose = 100 + 40 * index as u64;
        let of = format!("{of},drive=\"{}\"", quoted(text(volume, "/target")));
        for (name, help, step, rate) in [
            (
                "kubevirt_vmi_storage_read_traffic_bytes_total",
                "Total number of bytes read from storage.",
                0,
                300_000.0,
            ),
            (
                "kubevirt_vmi_storage_write_traffic_bytes_total",
                "Total number of written bytes.",
                4,
                150_000.0,
            ),
            ("kubevirt_vmi_storage_iops_read_total", "Total number of I/O read operations.", 8, 12.0),
            ("kubevirt_vmi_storage_iops_write_total", "Total number of I/O write operations.", 12, 9.0),
            (
                "kubevirt_vmi_storage_read_times_seconds_total",
                "Total time spent on read operations.",
                16,
                0.004,
            ),
            (
                "kubevirt_vmi_storage_write_times_seconds_total",
                "Total time spent on write operations.",
                20,
                0.006,
            ),
            ("kubevirt_vmi_storage_flush_requests_total", "Total storage flush requests.", 24, 1.5),
            (
                "kubevirt_vmi_storage_flush_times_seconds_total",
                "Total time spent on cache flushing.",
                28,
                0.002,
            ),
        ] {
            page.add(name, COUNTER, help, &of, load.counted(purpose + step, rate));
        }
    }
    if !has_condition(vmi, "AgentConnected", "True") {
        return;
    }
    for disk in list(&agent::file_systems(vmi), "/items") {
        let of = format!(
            "{of},disk_name=\"{}\",mount_point=\"{}\",file_system_type=\"{}\"",
            quoted(text(disk, "/diskName")),
            quoted(text(disk, "/mountPoint")),
            quoted(text(disk, "/fileSystemType"))
        );
        for (name, help, key) in [
            (
                "kubevirt_vmi_filesystem_capacity_bytes",
                "Total VM filesystem capacity in bytes.",
                "totalBytes",
            ),
            ("kubevirt_vmi_filesystem_used_bytes", "Used VM filesystem capacity in bytes.", "usedBytes"),
        ] {
            page.add(name, "gauge", help, &of, disk[key].as_f64().unwrap_or(0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn memory_goes_over_at_an_even_pace_while_a_guest_moves() {
        let mut vmi = json!({"metadata": {"name": "a", "namespace": "n", "uid": "a"}, "status": {"phase": "Running",
            "memory": {"guestCurrent": "256Mi"}, "migrationState": {"startTimestamp": "2026-01-01T00:00:00Z",
                "migrationConfiguration": {"bandwidthPerMigration": "32Mi"}},
            "phaseTransitionTimestamps": [{"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"}]}});
        let remaining = |vmi: &Value, second: i64| {
            let now: Timestamp = format!("2026-01-01T00:00:0{second}Z").parse().unwrap();
            let page = page([vmi].into_iter(), 1, now);
            let of = |name: &str| {
                let line = page
                    .lines()
                    .find(|line| line.starts_with(&format!("kubevirt_vmi_migration_data_{name}{{")))?;
                line.rsplit(' ').next()?.parse::<f64>().ok()
            };
            Some(of("remaining_bytes")? / of("bytes_total")?)
        };
        assert_eq!(remaining(&vmi, 0), Some(1.0));
        assert_eq!(remaining(&vmi, 4), Some(0.5));
        assert_eq!(remaining(&vmi, 9), Some(0.0));
        vmi["status"]["migrationState"]["endTimestamp"] = "2026-01-01T00:00:08Z".into();
        assert_eq!(remaining(&vmi, 9), None);
    }

    #[test]
    fn a_page_has_every_family_once_and_a_sample_for_each_guest() {
        let vmi = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"a/b-c": "x\"y"}},
                "status": {"phase": "Running", "nodeName": "node01", "volumeStatus": [{"name": "root", "target": "vda"}],
                    "interfaces": [{"name": "default"}], "conditions": [{"type": "AgentConnected", "status": "True"}],
                    "phaseTransitionTimestamps": [{"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"}]}})
        };
        let all = [vmi("a"), vmi("b"), json!({"status": {"phase": "Scheduled"}})];
        let page = page(all.iter(), 1, "2026-01-01T01:00:00Z".parse().unwrap());
        assert!(page.contains("kubevirt_number_of_vms_scraped 2\n"));
        assert_eq!(page.matches("# TYPE kubevirt_vmi_cpu_usage_seconds_total counter\n").count(), 1);
        assert_eq!(page.matches("\nkubevirt_vmi_cpu_usage_seconds_total{").count(), 2);
        let labels = "node=\"node01\",namespace=\"n\",name=\"a\",kubernetes_vmi_label_a_b_c=\"x\\\"y\"";
        for line in [
            format!("kubevirt_vmi_storage_read_traffic_bytes_total{{{labels},drive=\"vda\"}} "),
            format!("kubevirt_vmi_network_receive_bytes_total{{{labels},interface=\"default\"}} "),
            format!(
                "kubevirt_vmi_filesystem_capacity_bytes{{{labels},disk_name=\"vda1\",mount_point=\"/\",file_system_type=\"ext4\"}} 10000000000"
            ),
        ] {
            assert!(page.contains(&line), "{line}\n{page}");
        }
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
}
