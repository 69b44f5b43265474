//! What VMs use, from the best source there is.

use std::collections::HashMap;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use tokio::time::Instant;

use super::Provider;
use super::objects::PODS;
use super::request::encode;
use crate::usage::{
    Answer, Key, Report, Samples, Source, Usage, of_pod, of_prometheus, of_virt_handlers, queries,
};
use crate::view::{VmSummary, list, text};
use crate::{Error, Kind, VmId, identity};

/// The largest page of metrics, bytes.
const MAX_PAGE: usize = 64 << 20;

/// Between two looks at counters.
const APART: Duration = Duration::from_secs(1);

/// A Prometheus that scrapes KubeVirt.
#[derive(Clone)]
pub enum Prometheus {
    /// A Service, through the API server and under the caller's own identity.
    Service {
        /// Namespace and name.
        at: VmId,
        /// `http` or `https`.
        scheme: String,
        /// The port, by name or number.
        port: String,
    },
    /// An address of its own.
    Address(Box<Provider>),
}

impl std::fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service { at, port, .. } => write!(f, "service {at}:{port}"),
            Self::Address(_) => write!(f, "address"),
        }
    }
}

impl Prometheus {
    /// Reads `https://prometheus.example` or `[https:]namespace/service[:port]`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let doing = format!("reading the address of Prometheus `{text}`");
        let wrong = |why: String| {
            let remedy = "write `https://HOST[:PORT]`, or `[https:]NAMESPACE/SERVICE[:PORT]` for a Service";
            Error::new(Kind::InvalidArgument, &doing, why, remedy)
        };
        if text.starts_with("http://") || text.starts_with("https://") {
            let url = text.trim_end_matches('/').parse().ok();
            let url = url.filter(|url: &http::Uri| url.host().is_some() && url.scheme().is_some());
            let url = url.ok_or_else(|| wrong("it is no URL".into()))?;
            let config = kube::Config::new(url);
            return Ok(Self::Address(Box::new(super::connect(config)?)));
        }
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            _ => ("http", text),
        };
        let (name, port) = rest.split_once(':').unwrap_or((rest, "9090"));
        let at = VmId::parse(name, "").map_err(|error| wrong(error.wrong))?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(wrong("the port is neither a name nor a number".into()));
        }
        Ok(Self::Service { at, scheme: scheme.into(), port: port.into() })
    }

    async fn ask(&self, caller: &Provider, query: &str) -> Result<Answer, Error> {
        let doing = "asking Prometheus";
        let query = format!("/api/v1/query?query={}", encode(query));
        match self {
            Self::Address(own) => own.get_as(&query, doing).await,
            Self::Service { at, scheme, port } => {
                let (namespace, name) = (at.namespace(), at.name());
                let path =
                    format!("/api/v1/namespaces/{namespace}/services/{scheme}:{name}:{port}/proxy{query}");
                caller.get_as(&path, doing).await
            }
        }
    }
}

/// What VMs use, each by its name.
#[derive(Clone, Debug, Default)]
pub struct UsageByVm {
    by_name: HashMap<Key, Usage>,
    /// Where the figures are from; nothing when nobody asked for them.
    pub source: Option<Source>,
    /// Better sources that could not be used, and why.
    pub notes: Vec<String>,
}

impl UsageByVm {
    /// Puts what a VM uses beside it.
    pub fn give(&mut self, vm: &mut VmSummary) {
        if !self.by_name.is_empty() {
            vm.usage = self.by_name.remove(&(vm.namespace.clone(), vm.name.clone())).map(Box::new);
        }
    }
}

impl Provider {
    /// What the VMs of a namespace use, or those of all: from Prometheus when there is one, else from
    /// virt-handlers, else from `metrics.k8s.io`. `only` takes one source and no other.
    pub async fn usage(
        &self,
        namespace: Option<&str>,
        prometheus: Option<&Prometheus>,
        only: Option<Source>,
    ) -> Result<Report, Error> {
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let mut notes = Vec::new();
        for source in [Source::Prometheus, Source::VirtHandler, Source::Pods] {
            if only.is_some_and(|only| only != source) {
                continue;
            }
            let found = match (source, prometheus) {
                (Source::Prometheus, None) if only.is_none() => continue,
                (Source::Prometheus, None) => {
                    let remedy = "say where it is: `--prometheus`";
                    let wrong = "no Prometheus is named";
                    Err(Error::new(Kind::InvalidArgument, "reading what VMs use", wrong, remedy))
                }
                (Source::Prometheus, Some(prometheus)) => self.ask_prometheus(namespace, prometheus).await,
                (Source::VirtHandler, _) => self.ask_virt_handlers(namespace).await,
                (Source::Pods, _) => self.ask_pods(namespace).await,
            };
            match found {
                Ok(items) => return Ok(Report { source, items, notes }),
                Err(error) if only.is_some() || source == Source::Pods => {
                    return Err(if notes.is_empty() { error } else { with_notes(error, &notes) });
                }
                Err(error) => notes.push(format!("{}: {}", source.name(), error.wrong)),
            }
        }
        Err(Error::new(
            Kind::MissingCapability,
            "reading what VMs use",
            "there is no source",
            "see the notes",
        ))
    }

    /// The same, to be joined with a list.
    pub async fn usage_by_vm(
        &self,
        namespace: Option<&str>,
        prometheus: Option<&Prometheus>,
    ) -> Result<UsageByVm, Error> {
        let report = self.usage(namespace, prometheus, None).await?;
        let of = |one: Usage| ((one.namespace.clone(), one.name.clone()), one);
        let by_name = report.items.into_iter().map(of).collect();
        Ok(UsageByVm { by_name, source: Some(report.source), notes: report.notes })
    }

    async fn ask_prometheus(
        &self,
        namespace: Option<&str>,
        prometheus: &Prometheus,
    ) -> Result<Vec<Usage>, Error> {
        let at = Timestamp::now().to_string();
        let queries = queries(namespace);
        let asked = queries.iter().map(|(figure, query, factor)| async move {
            Ok::<_, Error>((*figure, *factor, prometheus.ask(self, query).await?))
        });
        Ok(of_prometheus(futures::future::try_join_all(asked).await?, &at))
    }

    async fn ask_virt_handlers(&self, namespace: Option<&str>) -> Result<Vec<Usage>, Error> {
        let doing = "reading the metrics of virt-handlers";
        let pages = self.virt_handlers("", doing).await?;
        let begun = Instant::now();
        let before = self.look(&pages, doing).await?;
        tokio::time::sleep(APART.saturating_sub(begun.elapsed())).await;
        let apart = begun.elapsed();
        let at = Timestamp::now().to_string();
        let after = self.look(&pages, doing).await?;
        Ok(of_virt_handlers(&before, &after, apart.as_secs_f64(), &at, namespace))
    }

    /// Where the metrics of virt-handlers are, through the API server: of one node, or with an empty name of all.
    pub(super) async fn virt_handlers(&self, node: &str, doing: &str) -> Result<Vec<String>, Error> {
        let mut query = format!("labelSelector={}", encode("kubevirt.io=virt-handler"));
        if !node.is_empty() {
            query = format!("{query}&fieldSelector={}", encode(&format!("spec.nodeName={node}")));
        }
        let found = self.get(&format!("{}?{query}", PODS.collection(None)), doing).await?;
        let running = list(&found, "/items").iter().filter(|pod| text(pod, "/status/phase") == "Running");
        let pages: Vec<String> = running
            .map(|pod| {
                let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
                format!("/api/v1/namespaces/{namespace}/pods/https:{name}:8443/proxy/metrics")
            })
            .collect();
        if pages.is_empty() {
            let remedy = "look at KubeVirt's pods: `kubectl get pods -A -l kubevirt.io=virt-handler`";
            return Err(Error::new(Kind::MissingCapability, doing, "no virt-handler runs", remedy));
        }
        Ok(pages)
    }

    /// Reads such pages.
    pub(super) async fn look(&self, paths: &[String], doing: &str) -> Result<Samples, Error> {
        let mut samples = Samples::default();
        // some at a time, so that no more than a few pages are held at once
        for some in paths.chunks(8) {
            let pages = futures::future::try_join_all(some.iter().map(|path| self.page(path, doing)));
            for page in pages.await? {
                samples.read(&page);
            }
        }
        Ok(samples)
    }

    async fn page(&self, path: &str, doing: &str) -> Result<String, Error> {
        let response = self.send(http::Method::GET, path, None, doing).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
        let lost = |why: String| Error::refused(doing, 502, "", &format!("the answer broke off: {why}"));
        let bytes = body.map_err(|error| lost(error.to_string()))?.to_bytes();
        if status.is_success() {
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        } else {
            Err(super::request::refusal(doing, status.as_u16(), &bytes))
        }
    }

    async fn ask_pods(&self, namespace: Option<&str>) -> Result<Vec<Usage>, Error> {
        let doing = "reading what VMs use";
        let place = namespace.map(|one| format!("/namespaces/{one}")).unwrap_or_default();
        let selector = encode("kubevirt.io=virt-launcher");
        let path = format!("/apis/metrics.k8s.io/v1beta1{place}/pods?labelSelector={selector}");
        let metrics = self.get(&path, doing).await.map_err(|error| match error.kind {
            Kind::NotFound => {
                let wrong = "the cluster does not serve `metrics.k8s.io`";
                let remedy = "have metrics-server installed, or name a Prometheus with `--prometheus`";
                Error::new(Kind::MissingCapability, doing, wrong, remedy)
            }
            _ => error,
        })?;
        Ok(list(&metrics, "/items").iter().filter_map(of_pod).collect())
    }
}

/// An error that also says what was tried before.
fn with_notes(mut error: Error, notes: &[String]) -> Error {
    error.wrong = format!("{} (before that: {})", error.wrong, notes.join("; "));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn prometheus_is_named_by_address_or_service() {
        for (text, expected) in [
            ("monitoring/prometheus-k8s", Some("service monitoring/prometheus-k8s:9090")),
            ("https://prometheus.example:9090/", Some("address")),
            ("https:monitoring/thanos:web", Some("service monitoring/thanos:web")),
            ("prometheus", None),
            ("a/b:", None),
            ("a/b:../x", None),
            ("a/b/c:80", None),
            ("http:///x", None),
            ("http://", None),
        ] {
            let found = Prometheus::parse(text).ok().map(|one| format!("{one:?}"));
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
