//! The provider's configuration file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use crate::connection::{ClusterArgs, Scope};
use crate::problem::Problem;

/// `provider: {type: kubevirt, metadata: {namespace, kubeconfig, storageClass}}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    provider: Provider,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    r#type: String,
    #[serde(default)]
    metadata: Metadata,
}

/// What the file says about a cluster.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metadata {
    /// The namespace of VMs that name none.
    pub namespace: Option<String>,
    /// The kubeconfig; `~` is the home directory.
    pub kubeconfig: Option<PathBuf>,
    /// The storage class of volumes that name none.
    pub storage_class: Option<String>,
}

/// The one type there is.
pub const TYPE: &str = "kubevirt";

/// Checks a `--type` or `--provider`.
pub fn check_type(name: &str) -> Result<(), String> {
    if name == TYPE { Ok(()) } else { Err(format!("there is no provider `{name}`, only `{TYPE}`")) }
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<Metadata> {
    parse(&crate::documents::text(path)?, &path.display().to_string())
}

fn parse(text: &str, origin: &str) -> Result<Metadata> {
    let doing = format!("reading the provider configuration `{origin}`");
    let remedy =
        "write `provider: {type: kubevirt, metadata: {namespace: …, kubeconfig: …, storageClass: …}}`";
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Problem::new(&doing, error, remedy))?;
    check_type(&file.provider.r#type).map_err(|wrong| Problem::new(&doing, wrong, remedy))?;
    Ok(file.provider.metadata)
}

impl Metadata {
    /// The scope that flags and file make together; flags win.
    pub fn under(self, flags: &Scope) -> Scope {
        let from_file =
            self.kubeconfig.map(|path| match (path.strip_prefix("~"), std::env::var_os("HOME")) {
                (Ok(rest), Some(home)) => Path::new(&home).join(rest),
                _ => path,
            });
        let cluster = ClusterArgs {
            kubeconfig: flags.cluster.kubeconfig.clone().or(from_file),
            context: flags.cluster.context.clone(),
        };
        Scope { cluster, namespace: flags.namespace.clone().or(self.namespace), provider_config: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_flags_win() {
        let text = "provider:\n  type: kubevirt\n  metadata:\n    namespace: prod\n    kubeconfig: /k\n    storageClass: fast\n";
        let metadata = parse(text, "x").unwrap();
        assert_eq!(metadata.storage_class.as_deref(), Some("fast"));
        let flags = Scope { namespace: Some("test".into()), ..Scope::default() };
        let scope = metadata.under(&flags);
        assert_eq!(scope.namespace.as_deref(), Some("test"));
        assert_eq!(scope.cluster.kubeconfig.as_deref(), Some(Path::new("/k")));
        for (text, wrong) in [
            ("provider: {type: vsphere}", "there is no provider `vsphere`"),
            ("provider: {type: kubevirt, metadata: {namespaces: a}}", "namespaces"),
            ("[]", "provider configuration `x`"),
        ] {
            let error = parse(text, "x").unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
