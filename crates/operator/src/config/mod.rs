//! What an administrator chooses: one struct, four layers.
//!
//! ```text
//!  flags  >  environment  >  one YAML file  >  defaults
//! ```
//!
//! The YAML file refuses unknown keys. The environment is read under two naming schemes, that of
//! the design document and that of the Go program that came before (`FEATURE_VBIOS_ENABLED` and
//! `VBIOS_INJECTION_ENABLED` are the same setting); two names that disagree are an error.

mod args;
mod environment;
mod sections;
#[cfg(test)]
mod tests;
mod value;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use args::OperatorArgs;
pub use sections::{
    Exports, FailurePolicy, Hotplug, Kubernetes, LogFormat, LogLevel, Register, RegisterMode, Resize, Rest,
    RestAuth, Server, Telemetry, Tls, TlsSource,
};

/// Environment variable names are asked for one at a time, so that tests bring their own.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Everything that `virt-steward operator` can be told.
///
/// ```
/// use operator::config::{Config, OperatorArgs};
/// let env = |name: &str| (name == "PORT").then(|| "9443".to_owned());
/// let config = Config::load(&OperatorArgs::default(), &env, None).unwrap();
/// assert_eq!(config.server.port, 9443);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The webhook server.
    pub server: Server,
    /// Where its certificate comes from.
    pub tls: Tls,
    /// How API servers are told about it.
    pub register: Register,
    /// CPU and memory of running VMs in place.
    pub resize: Resize,
    /// The guard and the gate of hotplugged volumes.
    pub hotplug: Hotplug,
    /// Export jobs.
    pub exports: Exports,
    /// Operations on VMs over REST.
    pub rest: Rest,
    /// The cluster it works for.
    pub kubernetes: Kubernetes,
    /// Logs, metrics, traces.
    pub telemetry: Telemetry,
    /// Feature by feature.
    pub features: features::Config,
    /// Settings that were given and have no effect any more, for the log at start.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was named cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    ReadFile {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not YAML, has an unknown key or a value of the wrong kind.
    #[error("the configuration file {} is not valid: {source}", path.display())]
    ParseFile {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<serde_saphyr::Error>,
    },
    /// An environment variable has a value that is not accepted.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// Two spellings of one setting are both set, to different values.
    #[error("environment variables {first} and {second} name the same setting and differ; set one of them")]
    Disagreement {
        /// One variable.
        first: &'static str,
        /// The other one.
        second: &'static str,
    },
    /// A flag has a value that is not accepted.
    #[error("flag --{flag}: {problem}")]
    Flag {
        /// The flag, without dashes.
        flag: &'static str,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// The values are each fine and make no sense together, or are out of range.
    #[error("configuration: {setting}: {problem}")]
    Invalid {
        /// The key, as in the YAML file.
        setting: &'static str,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// The configuration cannot be printed.
    #[error("cannot print the configuration: {0}")]
    Print(String),
}

impl Config {
    /// Reads `file` (when there is one) and lays environment and flags over it.
    pub fn load(args: &OperatorArgs, env: &Env<'_>, file: Option<&Path>) -> Result<Self, Error> {
        let mut config = match file {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        environment::apply(&mut config, env)?;
        args.apply(&mut config)?;
        config.check()?;
        Ok(config)
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ReadFile { path: path.to_path_buf(), source })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text)
            .map_err(|source| Error::ParseFile { path: path.to_path_buf(), source: Box::new(source) })
    }

    /// The configuration in force as YAML, the same shape as the file; it holds no secret.
    pub fn to_yaml(&self) -> Result<String, Error> {
        serde_saphyr::to_string(self).map_err(|error| Error::Print(error.to_string()))
    }

    /// Where the webhook server listens: every interface in a pod, loopback when API servers are
    /// given our URL (`--register url` is for a process beside them).
    pub fn listen_address(&self) -> SocketAddr {
        let address = self.server.bind_address.unwrap_or(match self.register.mode {
            RegisterMode::Url => IpAddr::V4(Ipv4Addr::LOCALHOST),
            RegisterMode::Service | RegisterMode::None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        });
        SocketAddr::new(address, self.server.port)
    }

    /// Where `/metrics` is served; `None`: nowhere.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        value::bind_address(&self.telemetry.metrics_bind_address).ok().flatten()
    }

    /// Where the certificate comes from: as set, else made by ourselves for `--register url`
    /// (nobody mounts a Secret into a local process) and from files in every other case.
    pub fn tls_source(&self) -> TlsSource {
        self.tls.source.unwrap_or(match self.register.mode {
            RegisterMode::Url => TlsSource::SelfSigned,
            RegisterMode::Service | RegisterMode::None => TlsSource::Files,
        })
    }

    /// The certificate file: as set, else `tls.crt` in the certificate directory.
    pub fn cert_file(&self) -> PathBuf {
        self.tls.cert_file.clone().unwrap_or_else(|| self.tls.cert_dir.join("tls.crt"))
    }

    /// The key file: as set, else `tls.key` in the certificate directory.
    pub fn key_file(&self) -> PathBuf {
        self.tls.key_file.clone().unwrap_or_else(|| self.tls.cert_dir.join("tls.key"))
    }

    fn check(&self) -> Result<(), Error> {
        let invalid = |setting, problem: &str| Err(Error::Invalid { setting, problem: problem.to_owned() });
        if !(1..=30).contains(&self.register.timeout_seconds) {
            return invalid("register.timeoutSeconds", "must be 1 to 30 (the API's own limit)");
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return invalid("tls.certFile", "certFile and keyFile are set together or not at all");
        }
        if self.register.mode == RegisterMode::Service && self.register.service_name.is_empty() {
            return invalid("register.serviceName", "must name the Service for mode service");
        }
        if let Some(url) = &self.register.url
            && !url.starts_with("https://")
        {
            return invalid("register.url", "must start with https:// (API servers call nothing else)");
        }
        if !self.register.namespace_selector.is_null() && !self.register.namespace_selector.is_object() {
            return invalid("register.namespaceSelector", "must be a label selector (a map)");
        }
        if !self.register.object_selector.is_null() && !self.register.object_selector.is_object() {
            return invalid("register.objectSelector", "must be a label selector (a map)");
        }
        if self.server.max_concurrent_requests == 0 || self.server.max_connections == 0 {
            return invalid("server", "maxConcurrentRequests and maxConnections must be at least 1");
        }
        if self.rest.auth == RestAuth::Token
            && (self.rest.client_ca_file.is_some() || !self.rest.audiences.is_empty())
        {
            return invalid("rest", "clientCaFile and audiences go with auth: impersonate");
        }
        if let Some(address) = &self.rest.prometheus
            && let Err(error) = provider::cluster::Prometheus::parse(address)
        {
            return invalid("rest.prometheus", &format!("{}; {}", error.wrong, error.remedy));
        }
        if let Err(problem) = value::bind_address(&self.telemetry.metrics_bind_address) {
            return invalid("telemetry.metricsBindAddress", &problem);
        }
        if let Some(endpoint) = &self.telemetry.otlp_endpoint
            && let Err(problem) = value::otlp_endpoint(endpoint)
        {
            return invalid("telemetry.otlpEndpoint", &problem);
        }
        if self.features.pci_passthrough.max_devices == 0 {
            return invalid(
                "features.pciPassthrough.maxDevices",
                "must be at least 1; to switch the feature off set enabled: false",
            );
        }
        Ok(())
    }
}
