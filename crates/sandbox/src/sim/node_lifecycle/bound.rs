//! Which pods are bound to which node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::sim::cache::Cache;
use crate::sim::json::text;

/// Keys of pods by the name of their node.
#[derive(Default)]
pub struct Bound(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Bound {
    /// Follows the pods of a cache.
    pub fn follow(pods: &Cache) -> Arc<Self> {
        let bound = Arc::new(Self::default());
        let told = bound.clone();
        pods.on_change(move |change| {
            let node =
                |pod: Option<&Arc<Value>>| pod.map_or("", |pod| text(pod, "/spec/nodeName")).to_owned();
            let (old, new) = (node(change.old), node(change.new));
            if old != new {
                told.moved(change.key, &old, &new);
            }
        });
        bound
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self, key: &str, old: &str, new: &str) {
        let mut nodes = self.nodes();
        if let Some(keys) = nodes.get_mut(old) {
            keys.remove(key);
            if keys.is_empty() {
                nodes.remove(old);
            }
        }
        if !new.is_empty() {
            nodes.entry(new.to_owned()).or_default().insert(key.to_owned());
        }
    }

    /// The nodes that pods are bound to, whether they are there or not.
    pub fn to_nodes(&self) -> Vec<String> {
        self.nodes().keys().cloned().collect()
    }

    /// The pods of a node.
    pub fn on(&self, node: &str, pods: &Cache) -> Vec<Arc<Value>> {
        let keys: Vec<String> = self.nodes().get(node).into_iter().flatten().cloned().collect();
        keys.iter().filter_map(|key| pods.get(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_their_node() {
        let bound = Bound::default();
        bound.moved("ns/a", "", "n1");
        bound.moved("ns/b", "", "n1");
        bound.moved("ns/a", "n1", "");
        assert_eq!(bound.nodes()["n1"].iter().collect::<Vec<_>>(), ["ns/b"]);
        bound.moved("ns/b", "n1", "");
        assert!(bound.to_nodes().is_empty());
    }
}
