//! The flags of `virt-steward operator`.

use std::net::IpAddr;
use std::path::PathBuf;

use super::value::{error_mode, failure_policy, log_format, log_level, register_mode, source, tls_source};
use super::{Config, Error};

/// Flags, laid over environment and file; those not given change nothing.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OperatorArgs {
    /// YAML configuration file; unknown keys are refused
    #[arg(long, value_name = "FILE", env = "VIRT_STEWARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the configuration in force as YAML and exit
    #[arg(long)]
    pub print_config: bool,
    /// Print the version and exit
    #[arg(long)]
    pub version: bool,

    /// Kubeconfig file of the cluster to work for
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the operator (its Service, its Secret)
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Accepted for old manifests; webhooks are served by every replica
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub leader_elect: Option<bool>,
    /// Read Secrets when a VM keeps its cloud-init there
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub read_secrets: Option<bool>,

    /// HTTPS port of the webhooks; 0 lets the system choose
    #[arg(long)]
    pub port: Option<u16>,
    /// Address that the webhooks listen on
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<IpAddr>,
    /// Where the certificate comes from: files, self-signed
    #[arg(long, value_name = "SOURCE")]
    pub tls_source: Option<String>,
    /// Directory with tls.crt and tls.key
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Further DNS name or IP address of a self-made certificate; may be repeated
    #[arg(long, value_name = "NAME")]
    pub tls_extra_name: Vec<String>,

    /// Who writes the webhook configurations: service, url, none
    #[arg(long, value_name = "MODE")]
    pub register: Option<String>,
    /// Name of the webhook configurations
    #[arg(long, value_name = "NAME")]
    pub register_name: Option<String>,
    /// Base URL at which API servers reach us, for --register url
    #[arg(long, value_name = "URL")]
    pub register_url: Option<String>,
    /// Service through which API servers reach us, for --register service
    #[arg(long, value_name = "NAME")]
    pub register_service: Option<String>,
    /// What API servers do when they cannot reach us: Fail, Ignore
    #[arg(long, value_name = "POLICY")]
    pub failure_policy: Option<String>,
    /// Seconds that API servers wait for us (1 to 30)
    #[arg(long, value_name = "SECONDS")]
    pub webhook_timeout: Option<u64>,

    /// When a feature fails: reject, allow-and-log, strip-label
    #[arg(long, value_name = "MODE")]
    pub error_handling: Option<String>,
    /// Where wishes are read from: annotations, labels, both
    #[arg(long, value_name = "SOURCE")]
    pub config_source: Option<String>,

    /// trace, debug, info, warn, error
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// json, text
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Where /metrics is served: :8080, 127.0.0.1:8080, or 0 for nowhere
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Base URL of an OTLP/HTTP collector for traces
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl OperatorArgs {
    /// Lays the flags over `config`.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Error> {
        take(self.port, &mut config.server.port);
        take(self.bind_address.map(Some), &mut config.server.bind_address);
        take(self.cert_dir.clone(), &mut config.tls.cert_dir);
        config.tls.extra_names.extend(self.tls_extra_name.iter().cloned());
        take(self.kubeconfig.clone().map(Some), &mut config.kubernetes.kubeconfig);
        take(self.context.clone().map(Some), &mut config.kubernetes.context);
        take(self.namespace.clone().map(Some), &mut config.kubernetes.namespace);
        take(self.leader_elect, &mut config.kubernetes.leader_elect);
        take(self.read_secrets, &mut config.kubernetes.read_secrets);
        take(self.register_name.clone(), &mut config.register.name);
        take(self.register_url.clone().map(Some), &mut config.register.url);
        take(self.register_service.clone(), &mut config.register.service_name);
        take(self.webhook_timeout, &mut config.register.timeout_seconds);
        take(self.metrics_bind_address.clone(), &mut config.telemetry.metrics_bind_address);
        take(self.otlp_endpoint.clone().map(Some), &mut config.telemetry.otlp_endpoint);

        let tls = self.tls_source.as_deref();
        parse("tls-source", tls, |text| tls_source(text).map(Some), &mut config.tls.source)?;
        let register = self.register.as_deref();
        parse("register", register, register_mode, &mut config.register.mode)?;
        let policy = self.failure_policy.as_deref();
        parse("failure-policy", policy, failure_policy, &mut config.register.failure_policy)?;
        let mode = self.error_handling.as_deref();
        parse("error-handling", mode, error_mode, &mut config.features.error_handling)?;
        parse("config-source", self.config_source.as_deref(), source, &mut config.features.source)?;
        parse("log-level", self.log_level.as_deref(), log_level, &mut config.telemetry.log_level)?;
        parse("log-format", self.log_format.as_deref(), log_format, &mut config.telemetry.log_format)
    }
}

fn take<T>(given: Option<T>, into: &mut T) {
    if let Some(value) = given {
        *into = value;
    }
}

fn parse<T>(
    flag: &'static str,
    given: Option<&str>,
    read: impl Fn(&str) -> Result<T, String>,
    into: &mut T,
) -> Result<(), Error> {
    if let Some(text) = given {
        *into = read(text).map_err(|problem| Error::Flag { flag, problem })?;
    }
    Ok(())
}
