//! What was said about how VMs are resized, by VMs, namespaces and policy objects, from their
//! watches.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use resize::Policy;
use resize::policy::{Mistake, Sources};
use serde_json::Value;

use super::worker::Key;

/// Who says it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// A VM, by annotations.
    Vm(Key),
    /// A namespace, by annotations.
    Namespace(String),
    /// The `ResizePolicy` of a namespace.
    Policy(String),
    /// The `ClusterResizePolicy`.
    Cluster,
}

impl Source {
    /// Whether it says something about a VM.
    pub fn is_about(&self, key: &Key) -> bool {
        match self {
            Self::Vm(vm) => vm == key,
            Self::Namespace(namespace) | Self::Policy(namespace) => *namespace == key.namespace,
            Self::Cluster => true,
        }
    }
}

/// Everything that was said. Clones are the same.
#[derive(Clone, Default)]
pub struct Owners(Arc<RwLock<HashMap<Source, Value>>>);

impl Owners {
    pub fn put(&self, source: Source, said: Value) {
        self.0.write().insert(source, said);
    }

    pub fn remove(&self, source: &Source) {
        self.0.write().remove(source);
    }

    /// Forgets all others.
    pub fn retain(&self, keep: impl Fn(&Source) -> bool) {
        self.0.write().retain(|source, _| keep(source));
    }

    /// The policy of a VM.
    pub fn policy(&self, key: &Key, default: Policy) -> Result<Policy, Mistake> {
        let said = self.0.read();
        let of = |source: &Source| said.get(source).unwrap_or(&Value::Null);
        let sources = Sources {
            vm: of(&Source::Vm(key.clone())),
            namespace: of(&Source::Namespace(key.namespace.clone())),
            namespace_policy: of(&Source::Policy(key.namespace.clone())),
            cluster_policy: of(&Source::Cluster),
        };
        Policy::of(&sources, default)
    }
}
