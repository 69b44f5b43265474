//! Nodes, as far as they decide whether a guest can still run on them.

use serde_json::Value;

use super::{at, list, text, time};
use crate::Seconds;

/// The node of a launcher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Since when its kubelet has not reported `Ready`; `None`: it is ready.
    pub away_since: Option<Seconds>,
    /// It carries the taint `node.kubernetes.io/out-of-service`: somebody has made sure that
    /// nothing runs on it any more (KEP-2268).
    pub out_of_service: bool,
}

impl<'a> Node<'a> {
    /// Reads a node.
    pub fn read(node: &'a Value) -> Self {
        let ready =
            list(node, &["status", "conditions"]).iter().find(|condition| condition["type"] == "Ready");
        let away_since = match ready {
            Some(condition) if condition["status"] == "True" => None,
            Some(condition) => Some(time(condition, &["lastTransitionTime"]).unwrap_or_default()),
            None => Some(0),
        };
        let out_of_service = list(node, &["spec", "taints"])
            .iter()
            .any(|taint| at(taint, &["key"]).is_some_and(|key| key == "node.kubernetes.io/out-of-service"));
        Self { name: text(node, &["metadata", "name"]), away_since, out_of_service }
    }

    /// Whether what was running there has to be taken for lost: out of service, or away for longer
    /// than `toleration`, after which its pods are evicted anyway.
    pub fn is_lost(&self, now: Seconds, toleration: Option<Seconds>) -> bool {
        let overdue = |since: Seconds| toleration.is_some_and(|limit| now.saturating_sub(since) > limit);
        self.out_of_service || self.away_since.is_some_and(overdue)
    }
}
