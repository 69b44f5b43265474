//! What admission, authorisation and the built-in controllers may ask of the store.

use std::sync::Arc;

use apimachinery::tree::Value;

/// A consistent, cheap view of stored objects. `group` is empty for core; `namespace` is empty
/// for cluster-scoped kinds.
pub trait Objects: Send + Sync {
    /// One object.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// Every object of a kind, over all namespaces, ordered by namespace and name.
    fn list(&self, group: &str, resource: &str) -> Vec<Arc<Value>>;

    /// The resourceVersion at which an object of this kind last changed: what was compiled from
    /// [`Objects::list`] stays valid while this does not move. 0: no such object ever was.
    fn revision(&self, group: &str, resource: &str) -> u64;
}
