//! Names that shells complete: asked of the cluster, with the flags that are on the command line already.
//! Whatever goes wrong, there is nothing to complete.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use provider::Provider;
use provider::select::Selection;

use crate::connection::{ClusterArgs, Scope};

/// How long a shell waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most names that are offered.
const MOST: usize = 500;

/// Names of VMs of the namespace, or `namespace/name` when that has begun.
pub fn vms() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let typed = current.to_string_lossy().into_owned();
        ask(async move |provider: Provider, namespace: String| {
            let (namespace, prefix) = match typed.split_once('/') {
                Some((namespace, _)) => (namespace.to_owned(), format!("{namespace}/")),
                None => (namespace, String::new()),
            };
            let selection = Selection { namespace: Some(namespace), ..Selection::default() };
            let found = provider.list_all(selection).await.ok()?;
            let names = found.into_iter().map(|vm| format!("{prefix}{}", vm.name));
            Some(names.filter(|name| name.starts_with(&typed)).take(MOST).collect())
        })
    })
}

/// Names of nodes.
pub fn nodes() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let typed = current.to_string_lossy().into_owned();
        ask(async move |provider: Provider, _| {
            let names = provider.nodes().await.ok()?.into_iter().map(|node| node.name);
            Some(names.filter(|name| name.starts_with(&typed)).take(MOST).collect())
        })
    })
}

/// What stands behind a flag on the command line.
fn flag(names: &[&str]) -> Option<String> {
    let mut arguments = std::env::args();
    while let Some(argument) = arguments.next() {
        if names.contains(&argument.as_str()) {
            return arguments.next();
        }
        if let Some((name, value)) = argument.split_once('=')
            && names.contains(&name)
        {
            return Some(value.to_owned());
        }
    }
    None
}

fn ask<F: Future<Output = Option<Vec<String>>>>(
    question: impl FnOnce(Provider, String) -> F,
) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let names = runtime.block_on(async {
        let scope = Scope {
            cluster: ClusterArgs {
                kubeconfig: flag(&["--kubeconfig"]).map(Into::into),
                context: flag(&["--context"]),
            },
            namespace: flag(&["-n", "--namespace"]),
            ..Scope::default()
        };
        let asked = async {
            let (provider, namespace) = scope.connect().await.ok()?;
            question(provider, namespace).await
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    });
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}
