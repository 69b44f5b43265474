//! Which cluster and which namespace, as kubectl's users say it.

use std::path::PathBuf;
use std::time::Duration;

use ::provider::{Provider, VmId};
use anyhow::Result;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::problem::Problem;
use crate::provider_config::{self, Metadata};

/// The flags of kubectl that choose a cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// The kubeconfig file; otherwise $KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// The same, and a namespace.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Scope {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The namespace; otherwise that of the context
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// A file with `provider: {type, metadata: {namespace, kubeconfig, storageClass}}`; flags win
    #[arg(long, value_name = "FILE", alias = "config")]
    pub provider_config: Option<PathBuf>,
}

/// The kubeconfig that was named, or what kubectl would use.
pub async fn config(args: &ClusterArgs) -> Result<kube::Config> {
    let doing = "connecting to the cluster";
    let remedy = "check `kubectl cluster-info`, or name a file with `--kubeconfig`";
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let file = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = match file {
        Ok(file) => kube::Config::from_custom_kubeconfig(file, &options).await,
        // in a pod there is no file
        Err(error) if args.kubeconfig.is_none() && args.context.is_none() => {
            return kube::Config::incluster().map_err(|_| Problem::new(doing, error, remedy).into());
        }
        Err(error) => Err(error),
    };
    config.map_err(|error| Problem::new(doing, error, remedy).into())
}

impl Scope {
    /// A cluster, for what is in no namespace.
    pub fn of(cluster: ClusterArgs) -> Self {
        Self { cluster, ..Self::default() }
    }

    /// What the configuration file says; nothing without one.
    pub fn metadata(&self) -> Result<Metadata> {
        self.provider_config.as_deref().map_or_else(|| Ok(Metadata::default()), provider_config::read)
    }

    /// Connects; the namespace is the one that was asked for, or the file's, or the context's.
    pub async fn connect(&self) -> Result<(Provider, String)> {
        let scope = self.metadata()?.under(self);
        let provider = ::provider::cluster::connect(config(&scope.cluster).await?).map_err(problem)?;
        let namespace = scope.namespace.unwrap_or_else(|| provider.default_namespace().to_owned());
        Ok((provider, namespace))
    }

    /// Connects, and reads the name of one VM.
    pub async fn connect_for(&self, name: &str) -> Result<(Provider, VmId)> {
        self.connect_to(VM, name).await
    }

    /// Connects, and reads the name of one object of a kind.
    pub async fn connect_to(&self, resource: &str, name: &str) -> Result<(Provider, VmId)> {
        let (provider, namespace) = self.connect().await?;
        Ok((provider, object(resource, name, &namespace)?))
    }
}

/// VMs, as kubectl names them.
pub const VM: &str = "virtualmachine.kubevirt.io";

/// Reads `name` or `namespace/name`, or a name as `-o name` prints it: `virtualmachine.kubevirt.io/name`. Which of them
/// it is cannot be mistaken, since namespaces have no dots.
pub fn object(resource: &str, text: &str, namespace: &str) -> Result<VmId> {
    let bare = text.strip_prefix(resource).and_then(|rest| rest.strip_prefix('/'));
    VmId::parse(bare.unwrap_or(text), namespace).map_err(problem)
}

/// An error of an operation in the program's one form.
pub fn problem(error: ::provider::Error) -> anyhow::Error {
    Problem::new(error.doing, error.wrong, error.remedy).into()
}

/// Reads a duration as kubectl does: `90s`, `5m`, `1h30m`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write `90s`, `5m` or `1h30m`");
    let mut total: u64 = 0;
    let mut number = String::new();
    for character in text.chars() {
        let factor = match character {
            '0'..='9' => {
                number.push(character);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(wrong()),
        };
        let amount: u64 = number.parse().map_err(|_| wrong())?;
        number.clear();
        total = amount.checked_mul(factor).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
    }
    if !number.is_empty() {
        let seconds: u64 = number.parse().map_err(|_| wrong())?;
        total = total.checked_add(seconds).ok_or_else(wrong)?;
    } else if text.is_empty() {
        return Err(wrong());
    }
    // a year is longer than anybody waits, and far from where clocks overflow
    if total > 366 * 24 * 3600 { Err(wrong()) } else { Ok(Duration::from_secs(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed() {
        for (text, expected) in [
            ("web", Some("default/web")),
            ("shop/web", Some("shop/web")),
            ("virtualmachine.kubevirt.io/web", Some("default/web")),
            ("virtualmachine.kubevirt.io/shop/web", Some("shop/web")),
            ("virtualmachinesnapshot.snapshot.kubevirt.io/web", None),
            ("virtualmachine.kubevirt.io/", None),
        ] {
            let found = object(VM, text, "default").ok().map(|id| id.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_kubectl_writes_them() {
        for (text, seconds) in
            [("90s", Some(90)), ("5m", Some(300)), ("1h30m", Some(5400)), ("7", Some(7)), ("0", Some(0))]
        {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), seconds, "{text}");
        }
        for text in ["", "m", "5d", "-1s", "99999999999999999999s", "600000h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
