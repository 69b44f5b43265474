//! What VMs use, out of one of three sources, the best first.
//!
//! ```text
//!  Prometheus        KubeVirt's own metrics, rates over five minutes; six queries
//!  virt-handler      the same metrics from each node, twice, a moment apart; two requests per node
//!  metrics.k8s.io    CPU and memory of launcher pods; one request
//! ```
//!
//! Memory is what the guest uses, from the first two, and what QEMU uses on the node, from the last; which of
//! them it is stands beside the figure. Names are those of `docs/observability/metrics.md`, v1.9.

mod exposition;

use std::collections::BTreeMap;

use apimachinery::quantity;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::view::migration::TRANSFER;
use crate::view::{list, text};
use crate::{Error, Kind};

pub use exposition::Samples;

/// Where figures come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Source {
    /// A Prometheus that scrapes KubeVirt.
    #[serde(rename = "prometheus")]
    Prometheus,
    /// `/metrics` of virt-handler, through the API server.
    #[serde(rename = "virt-handler")]
    VirtHandler,
    /// Metrics of pods.
    #[serde(rename = "metrics.k8s.io")]
    Pods,
}

impl Source {
    /// Reads a name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let all = [Self::Prometheus, Self::VirtHandler, Self::Pods];
        all.into_iter().find(|one| one.name() == name).ok_or_else(|| {
            let wrong = format!("there is no source `{name}`");
            let remedy = "choose prometheus, virt-handler or metrics.k8s.io";
            Error::new(Kind::InvalidArgument, "choosing where figures come from", wrong, remedy)
        })
    }

    /// As it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prometheus => "prometheus",
            Self::VirtHandler => "virt-handler",
            Self::Pods => "metrics.k8s.io",
        }
    }
}

/// Whose memory a figure is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryOf {
    /// What the guest uses: available less usable.
    Guest,
    /// What QEMU and libvirt use on the node.
    Launcher,
}

/// What one VM uses.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    /// Memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whose memory that is.
    pub memory_of: MemoryOf,
    /// Bytes read from disks a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes_per_second: Option<u64>,
    /// Bytes written to disks a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_write_bytes_per_second: Option<u64>,
    /// Bytes received a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_receive_bytes_per_second: Option<u64>,
    /// Bytes sent a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_transmit_bytes_per_second: Option<u64>,
    /// When it was measured, RFC 3339.
    pub measured: String,
    /// Over how long, as Kubernetes writes it: `30s`.
    pub window: String,
    /// Where the figures are from.
    pub source: Source,
}

/// What was found, and what was tried before.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where the figures are from.
    pub source: Source,
    /// VM by VM.
    pub items: Vec<Usage>,
    /// Better sources that could not be used, and why.
    pub notes: Vec<String>,
}

impl Usage {
    fn empty(key: &Key, source: Source, measured: &str, window: &str) -> Self {
        Self {
            namespace: key.0.clone(),
            name: key.1.clone(),
            cpu_milli: None,
            memory_bytes: None,
            memory_of: MemoryOf::Guest,
            disk_read_bytes_per_second: None,
            disk_write_bytes_per_second: None,
            network_receive_bytes_per_second: None,
            network_transmit_bytes_per_second: None,
            measured: measured.into(),
            window: window.into(),
            source,
        }
    }

    fn set(&mut self, figure: Figure, value: f64) {
        let value = whole(value);
        match figure {
            Figure::Cpu => self.cpu_milli = value,
            Figure::Memory => self.memory_bytes = value,
            Figure::DiskRead => self.disk_read_bytes_per_second = value,
            Figure::DiskWrite => self.disk_write_bytes_per_second = value,
            Figure::Receive => self.network_receive_bytes_per_second = value,
            Figure::Transmit => self.network_transmit_bytes_per_second = value,
        }
    }
}

/// Namespace and name.
pub type Key = (String, String);

/// A figure without its fraction; what is no number is none.
pub(crate) fn whole(value: f64) -> Option<u64> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturating"
    )]
    (value.is_finite() && value >= 0.0).then(|| value.round() as u64)
}

/// A figure of a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Figure {
    /// Thousandths of a CPU.
    Cpu,
    /// Bytes.
    Memory,
    /// Bytes a second.
    DiskRead,
    /// Bytes a second.
    DiskWrite,
    /// Bytes a second.
    Receive,
    /// Bytes a second.
    Transmit,
}

/// The counters behind figures that are rates: name, and what a unit a second is worth.
const COUNTERS: [(Figure, &str, f64); 5] = [
    (Figure::Cpu, "kubevirt_vmi_cpu_usage_seconds_total", 1000.0),
    (Figure::DiskRead, "kubevirt_vmi_storage_read_traffic_bytes_total", 1.0),
    (Figure::DiskWrite, "kubevirt_vmi_storage_write_traffic_bytes_total", 1.0),
    (Figure::Receive, "kubevirt_vmi_network_receive_bytes_total", 1.0),
    (Figure::Transmit, "kubevirt_vmi_network_transmit_bytes_total", 1.0),
];

/// Guest memory is the first less the second.
const MEMORY: [&str; 2] = ["kubevirt_vmi_memory_available_bytes", "kubevirt_vmi_memory_usable_bytes"];

/// The span of rates that Prometheus computes.
pub const WINDOW: &str = "5m";

/// What Prometheus is asked: the figure, the query, and what its unit is worth.
pub fn queries(namespace: Option<&str>) -> Vec<(Figure, String, f64)> {
    // names of namespaces are DNS labels, so nothing has to be escaped
    let only = namespace.map(|name| format!("{{namespace=\"{name}\"}}")).unwrap_or_default();
    let mut all: Vec<_> = COUNTERS
        .iter()
        .map(|(figure, name, factor)| {
            (*figure, format!("sum by (namespace,name)(rate({name}{only}[{WINDOW}]))"), *factor)
        })
        .collect();
    let [available, usable] = MEMORY;
    let memory = format!("sum by (namespace,name)({available}{only} - {usable}{only})");
    all.push((Figure::Memory, memory, 1.0));
    all
}

/// What Prometheus answers to an instant query, as far as it is read: ten thousand series in each of six answers are too
/// many for trees of values.
#[derive(Debug, Deserialize)]
pub struct Answer {
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Debug, Deserialize)]
struct Series {
    metric: Labels,
    /// A time, and a figure as text.
    value: (f64, String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    namespace: String,
    name: String,
}

/// Puts answers of Prometheus together; `at` is when it was asked, for answers that do not say.
pub fn of_prometheus(answers: Vec<(Figure, f64, Answer)>, at: &str) -> Vec<Usage> {
    let mut found: BTreeMap<Key, Usage> = BTreeMap::new();
    for (figure, factor, answer) in answers {
        for Series { metric, value } in answer.data.result {
            let Ok(value) = value.1.parse::<f64>() else { continue };
            let usage = found
                .entry((metric.namespace, metric.name))
                .or_insert_with_key(|key| Usage::empty(key, Source::Prometheus, at, WINDOW));
            usage.set(figure, value * factor);
        }
    }
    found.into_values().collect()
}

/// Puts two looks at virt-handlers together, `seconds` apart.
pub fn of_virt_handlers(
    before: &Samples,
    after: &Samples,
    seconds: f64,
    at: &str,
    namespace: Option<&str>,
) -> Vec<Usage> {
    let window = format!("{}ms", whole(seconds * 1000.0).unwrap_or_default());
    let mut found: BTreeMap<Key, Usage> = BTreeMap::new();
    let wanted = |key: &Key| namespace.is_none_or(|name| key.0 == name);
    for (figure, name, factor) in COUNTERS {
        for (key, now) in after.of(name).filter(|(key, _)| wanted(key)) {
            let usage = found
                .entry(key.clone())
                .or_insert_with(|| Usage::empty(key, Source::VirtHandler, at, &window));
            // a counter that went back began anew with another instance
            if let Some(then) = before.get(name, key).filter(|then| *then <= now && seconds > 0.0) {
                usage.set(figure, (now - then) / seconds * factor);
            }
        }
    }
    let [available, usable] = MEMORY;
    for (key, all) in after.of(available).filter(|(key, _)| wanted(key)) {
        if let (Some(free), Some(usage)) = (after.get(usable, key), found.get_mut(key)) {
            usage.set(Figure::Memory, all - free);
        }
    }
    found.into_values().collect()
}

/// Whether a metric is one of those that are read.
pub(crate) fn is_read(name: &str) -> bool {
    MEMORY.contains(&name)
        || TRANSFER.contains(&name)
        || COUNTERS.iter().any(|(_, counter, _)| *counter == name)
}

/// Reads a `PodMetrics`; `None` for pods that run no VM.
pub fn of_pod(metrics: &Value) -> Option<Usage> {
    let labels = metrics.pointer("/metadata/labels")?;
    // the domain label is cut at 63 characters, the annotation's is not there (v1.9)
    let name = ["vm.kubevirt.io/name", "kubevirt.io/domain"]
        .into_iter()
        .find_map(|label| labels.get(label).and_then(Value::as_str))?;
    let compute = list(metrics, "/containers").iter().find(|one| text(one, "/name") == "compute")?;
    let cpu = quantity::milli(compute.pointer("/usage/cpu")?)?;
    let memory = quantity::units(compute.pointer("/usage/memory")?)?;
    let key = (text(metrics, "/metadata/namespace").to_owned(), name.to_owned());
    Some(Usage {
        cpu_milli: Some(u64::try_from(cpu).ok()?),
        memory_bytes: Some(u64::try_from(memory).ok()?),
        memory_of: MemoryOf::Launcher,
        ..Usage::empty(&key, Source::Pods, text(metrics, "/timestamp"), text(metrics, "/window"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_compute_container_is_the_vm() {
        let metrics = json!({"metadata": {"name": "virt-launcher-web-x", "namespace": "prod",
                "labels": {"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": "web"}},
            "timestamp": "2026-11-01T00:00:00Z", "window": "15s", "containers": [
                {"name": "guest-console-log", "usage": {"cpu": "1m", "memory": "1Mi"}},
                {"name": "compute", "usage": {"cpu": "250123456n", "memory": "524288Ki"}}]});
        let usage = of_pod(&metrics).unwrap();
        assert_eq!((usage.cpu_milli, usage.memory_bytes), (Some(251), Some(512 << 20)));
        assert_eq!((usage.name.as_str(), usage.memory_of), ("web", MemoryOf::Launcher));
        assert_eq!(of_pod(&json!({"metadata": {"labels": {}}, "containers": []})), None);
    }

    #[test]
    fn two_looks_at_counters_make_rates() {
        let look = |cpu: f64, read: u64| {
            let mut samples = Samples::default();
            samples.read(&format!(
                "# HELP x y\nkubevirt_vmi_cpu_usage_seconds_total{{node=\"n\",namespace=\"a\",name=\"web\"}} {cpu}\n\
                 kubevirt_vmi_storage_read_traffic_bytes_total{{namespace=\"a\",name=\"web\",drive=\"vda\"}} {read}\n\
                 kubevirt_vmi_storage_read_traffic_bytes_total{{namespace=\"a\",name=\"web\",drive=\"vdb\"}} 1e3\n\
                 kubevirt_vmi_memory_available_bytes{{namespace=\"a\",name=\"web\"}} 1000\n\
                 kubevirt_vmi_memory_usable_bytes{{namespace=\"a\",name=\"web\"}} 400\n"
            ));
            samples
        };
        let found = of_virt_handlers(&look(10.0, 0), &look(10.5, 4096), 2.0, "t", None);
        let web = &found[0];
        assert_eq!((web.cpu_milli, web.memory_bytes), (Some(250), Some(600)));
        assert_eq!(web.disk_read_bytes_per_second, Some(2048), "both drives");
        assert_eq!((web.network_receive_bytes_per_second, web.window.as_str()), (None, "2000ms"));
        let anew = of_virt_handlers(&look(10.0, 5), &look(0.1, 6), 1.0, "t", Some("a"));
        assert_eq!((anew[0].cpu_milli, anew[0].disk_read_bytes_per_second), (None, Some(1)));
        assert_eq!(of_virt_handlers(&look(1.0, 1), &look(1.0, 1), 1.0, "t", Some("b")), []);
    }

    #[test]
    fn answers_of_prometheus_are_joined_by_vm() {
        let answer = |name: &str, value: &str| -> Answer {
            let answer = json!({"status": "success", "data": {"resultType": "vector", "result": [
                {"metric": {"namespace": "a", "name": name}, "value": [1_700_000_000.0, value]}]}});
            serde_json::from_value(answer).unwrap()
        };
        let answers = vec![
            (Figure::Cpu, 1000.0, answer("web", "0.25")),
            (Figure::Memory, 1.0, answer("web", "512")),
            (Figure::Receive, 1.0, answer("db", "NaN")),
        ];
        let found = of_prometheus(answers, "t");
        assert_eq!((found[1].cpu_milli, found[1].memory_bytes), (Some(250), Some(512)));
        assert_eq!((found[0].name.as_str(), found[0].network_receive_bytes_per_second), ("db", None));
        let query = &queries(Some("a"))[0].1;
        assert_eq!(
            query,
            "sum by (namespace,name)(rate(kubevirt_vmi_cpu_usage_seconds_total{namespace=\"a\"}[5m]))"
        );
    }
}
