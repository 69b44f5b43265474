//! The sections of the configuration, and their defaults.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The webhook server. All times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Server {
    /// HTTPS port; 0 lets the system choose.
    pub port: u16,
    /// Unset: every interface, or loopback with `register.mode: url`.
    pub bind_address: Option<IpAddr>,
    /// Bytes of a request body. The API server's own limit for an object is 3 MiB.
    pub max_body_bytes: usize,
    /// How long a client may take to hand over a request body, or to finish a TLS handshake.
    pub read_timeout_seconds: u64,
    /// How long a kept-alive HTTP/1.1 connection may wait for its next request. Longer than the
    /// 90 s after which the API server's client gives an idle connection up, so that it is never
    /// us who close one while a request is on its way.
    pub idle_timeout_seconds: u64,
    /// How long one request may take, reads of Secrets and ConfigMaps included; below the
    /// webhook timeout, so that the answer says what was slow.
    pub request_timeout_seconds: u64,
    /// Requests decided at the same time; more wait, and get 503 after the read timeout.
    pub max_concurrent_requests: usize,
    /// Connections open at the same time; more wait in the listen queue.
    pub max_connections: usize,
    /// After a stop signal: `/readyz` says 503 and requests are still served for so long, until
    /// endpoints have forgotten us.
    pub drain_seconds: u64,
    /// Then: how long requests in flight may take to finish.
    pub shutdown_grace_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            port: 8443,
            bind_address: None,
            max_body_bytes: 3 << 20,
            read_timeout_seconds: 10,
            idle_timeout_seconds: 120,
            request_timeout_seconds: 8,
            max_concurrent_requests: 256,
            max_connections: 1024,
            drain_seconds: 3,
            shutdown_grace_seconds: 20,
        }
    }
}

impl Server {
    /// [`Server::read_timeout_seconds`]
    pub fn read_timeout(&self) -> Duration {
        Duration::from_secs(self.read_timeout_seconds)
    }

    /// [`Server::idle_timeout_seconds`]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }

    /// [`Server::request_timeout_seconds`]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_seconds)
    }
}

/// Where the serving certificate comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsSource {
    /// PEM files, for example a mounted Secret of cert-manager; read again when they change.
    Files,
    /// A CA and a leaf made by ourselves, kept in a Secret when that is permitted.
    SelfSigned,
}

/// The serving certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    /// Unset: `self-signed` with `register.mode: url`, else `files`.
    pub source: Option<TlsSource>,
    /// Directory with `tls.crt`, `tls.key` and, optionally, `ca.crt`.
    pub cert_dir: PathBuf,
    /// Overrides `tls.crt` in the directory; set together with `keyFile`.
    pub cert_file: Option<PathBuf>,
    /// Overrides `tls.key` in the directory.
    pub key_file: Option<PathBuf>,
    /// How often the files are looked at, in seconds.
    pub reload_seconds: u64,
    /// The Secret in our namespace that replicas share a self-made CA and leaf through.
    pub secret_name: String,
    /// Further DNS names or IP addresses of a self-made leaf.
    pub extra_names: Vec<String>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            source: None,
            cert_dir: PathBuf::from("/etc/webhook/certs"),
            cert_file: None,
            key_file: None,
            reload_seconds: 10,
            secret_name: "virt-steward-webhook-tls".into(),
            extra_names: Vec::new(),
        }
    }
}

/// Who writes the webhook configurations, and how they reach us.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegisterMode {
    /// We do; API servers reach us through a Service.
    Service,
    /// We do; API servers reach us at a URL. Taken away when we stop.
    Url,
    /// Somebody else does (the chart, GitOps).
    #[default]
    None,
}

/// What an API server does when it cannot reach us.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// The request fails.
    #[default]
    Fail,
    /// The request goes on without us.
    Ignore,
}

/// The webhook configurations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Register {
    /// Who writes them.
    pub mode: RegisterMode,
    /// Their name. API servers call webhooks in the order of configuration names, and ours has to
    /// come before `harvester-mutator`, which completes the devices that we add.
    pub name: String,
    /// The Service in our namespace, for `mode: service`.
    pub service_name: String,
    /// Its port.
    pub service_port: u16,
    /// For `mode: url`, the base; unset: `https://127.0.0.1:<port>`.
    pub url: Option<String>,
    /// What happens when we are away.
    pub failure_policy: FailurePolicy,
    /// Seconds that an API server waits for us, 1 to 30.
    pub timeout_seconds: u64,
    /// A label selector; null: every namespace.
    pub namespace_selector: Value,
    /// A label selector; null: every VM.
    pub object_selector: Value,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            mode: RegisterMode::None,
            name: "00-virt-steward".into(),
            service_name: "virt-steward-webhook".into(),
            service_port: 443,
            url: None,
            failure_policy: FailurePolicy::Fail,
            timeout_seconds: 10,
            namespace_selector: Value::Null,
            object_selector: Value::Null,
        }
    }
}

/// CPU and memory of running VMs in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resize {
    /// The webhook and the reconciler run. Which VMs they serve is said by annotations.
    pub enabled: bool,
    /// VMs without an annotation, in namespaces without one, are resized in place.
    pub in_place: bool,
    /// What happens when a node cannot, unless an annotation says otherwise.
    pub fallback: ::resize::Fallback,
    /// Seconds before that, 5 to 604,800, unless an annotation says otherwise.
    pub deadline_seconds: u32,
    /// Memory of VMs that cannot migrate is declared under virt-controller's account. Needs the
    /// right to impersonate it.
    pub declare_memory: bool,
    /// Where KubeVirt is installed.
    pub kubevirt_namespace: String,
}

impl Default for Resize {
    fn default() -> Self {
        let policy = ::resize::Policy::default();
        Self {
            enabled: false,
            in_place: policy.in_place,
            fallback: policy.fallback,
            deadline_seconds: policy.deadline,
            declare_memory: false,
            kubevirt_namespace: "kubevirt".into(),
        }
    }
}

impl Resize {
    /// The policy of VMs that say nothing.
    pub fn policy(&self) -> ::resize::Policy {
        ::resize::Policy {
            in_place: self.in_place,
            fallback: self.fallback,
            deadline: self
                .deadline_seconds
                .clamp(::resize::policy::MIN_DEADLINE, ::resize::policy::MAX_DEADLINE),
        }
    }
}

/// The guard and the gate of hotplugged volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hotplug {
    /// Deletes and evictions of attachment pods are judged, and forced deletes of launcher pods.
    pub guard: bool,
    /// Changes of a VMI's volumes are let through one at a time.
    pub gate: bool,
    /// Attachment pods that KubeVirt leaves behind are deleted; needs the right to delete pods.
    pub heal: bool,
}

impl Hotplug {
    /// Whether any part is on.
    pub const fn is_on(self) -> bool {
        self.guard || self.gate || self.heal
    }
}

/// Export jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Exports {
    /// `VMExportJobs` are carried out.
    pub enabled: bool,
    /// The image of their pods: of this very program.
    pub image: String,
    /// `IfNotPresent`, `Always` or `Never`.
    pub image_pull_policy: String,
}

impl Default for Exports {
    fn default() -> Self {
        Self { enabled: false, image: "virt-steward".into(), image_pull_policy: "IfNotPresent".into() }
    }
}

/// How callers of the REST service are told apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestAuth {
    /// Their bearer tokens go to the API server as they came. Needs no right.
    #[default]
    Token,
    /// Tokens are reviewed and certificates verified here, and callers are impersonated. Needs the right to
    /// impersonate.
    Impersonate,
}

/// Operations on VMs over REST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rest {
    /// Whether they are served.
    pub enabled: bool,
    /// HTTPS port; 0 lets the system choose.
    pub port: u16,
    /// Where it listens.
    pub bind_address: IpAddr,
    /// How callers are told apart.
    pub auth: RestAuth,
    /// With `auth: impersonate`: the audiences that a token must be for; none: the API server's own.
    pub audiences: Vec<String>,
    /// With `auth: impersonate`: a PEM file with the authorities of client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// A Prometheus that scrapes KubeVirt: a URL, or a Service as `[https:]NAMESPACE/NAME[:PORT]`.
    pub prometheus: Option<String>,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            enabled: false,
            port: 8444,
            bind_address: IpAddr::from([0, 0, 0, 0]),
            auth: RestAuth::Token,
            audiences: Vec::new(),
            client_ca_file: None,
            prometheus: None,
        }
    }
}

/// The cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// A kubeconfig file; unset: `$KUBECONFIG`, then `~/.kube/config`, then the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// A context in it; unset: the current one.
    pub context: Option<String>,
    /// Our own namespace; unset: the pod's, else `virt-steward`.
    pub namespace: Option<String>,
    /// Reconcilers run on the replica that holds their Lease. Webhooks are served by every replica.
    pub leader_elect: bool,
    /// Whether Secrets are read when a VM keeps its cloud-init there (needs RBAC).
    pub read_secrets: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// Decisions on requests that change nothing, too.
    Debug,
    /// Decisions and state changes.
    #[default]
    Info,
    /// Only what wants attention.
    #[serde(alias = "warning")]
    Warn,
    /// Only failures.
    Error,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Logs, metrics and traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// How much is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where `/metrics` is served over plain HTTP: `:8080`, `127.0.0.1:8080`; `0`: nowhere.
    pub metrics_bind_address: String,
    /// Base URL of an OTLP/HTTP collector, for example `http://127.0.0.1:4318`; unset: no traces.
    pub otlp_endpoint: Option<String>,
    /// The version that logs, metrics and traces carry; unset: that of the program.
    pub version: Option<String>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
            metrics_bind_address: ":8080".into(),
            otlp_endpoint: None,
            version: None,
        }
    }
}

impl Telemetry {
    /// The version in force.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"))
    }
}
