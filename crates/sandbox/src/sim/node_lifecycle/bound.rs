//! Which pods are bound to which node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::tree::Value;

use crate::sim::cache::Cache;
use crate::sim::json::text;

/// Keys of pods by the name of their node.
#[derive(Default)]
pub struct Bound(Mutex<State>);

#[derive(Default)]
struct State {
    pods: BTreeMap<String, BTreeSet<String>>,
    /// The same, from the other side.
    nodes: HashMap<String, String>,
}

impl Bound {
    /// Follows the pods of a cache.
    pub fn follow(pods: &Cache) -> Arc<Self> {
        let bound = Arc::new(Self::default());
        let told = bound.clone();
        pods.on_change(move |change| {
            told.is_on(change.key, change.new.map_or("", |pod| text(pod, "/spec/nodeName")));
        });
        bound
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod is on this node now; on none if that is empty.
    fn is_on(&self, key: &str, node: &str) {
        let state = &mut *self.state();
        let old = state.nodes.get(key).map_or("", String::as_str);
        if old == node {
            return;
        }
        if let Some(keys) = state.pods.get_mut(old) {
            keys.remove(key);
            if keys.is_empty() {
                state.pods.remove(old);
            }
        }
        if node.is_empty() {
            state.nodes.remove(key);
        } else {
            state.pods.entry(node.to_owned()).or_default().insert(key.to_owned());
            state.nodes.insert(key.to_owned(), node.to_owned());
        }
    }

    /// The nodes that pods are bound to, whether they are there or not.
    pub fn to_nodes(&self) -> Vec<String> {
        self.state().pods.keys().cloned().collect()
    }

    /// The pods of a node.
    pub fn on(&self, node: &str, pods: &Cache) -> Vec<Arc<Value>> {
        let keys: Vec<String> = self.state().pods.get(node).into_iter().flatten().cloned().collect();
        keys.iter().filter_map(|key| pods.get(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_their_node() {
        let bound = Bound::default();
        bound.is_on("ns/a", "n1");
        bound.is_on("ns/b", "n1");
        bound.is_on("ns/a", "");
        assert_eq!(bound.state().pods["n1"].iter().collect::<Vec<_>>(), ["ns/b"]);
        bound.is_on("ns/b", "");
        assert!(bound.to_nodes().is_empty());
    }
}
