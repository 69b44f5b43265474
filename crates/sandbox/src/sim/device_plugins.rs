//! Passthrough devices on simulated nodes: what the `KubeVirt` object permits is found on every
//! node, and offered through device plugins (`pkg/virt-handler/device-manager`, v1.9). A device that
//! is not permitted any more counts zero, as kubelet reports a plugin that went away.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Map, Value, json};
use kubevirt::KubeVirtView;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::identity::Identity;
use super::json::{self, map};
use super::node;
use super::queue::Queue;
use super::resource::NODES;
use super::write::{Op, Write, Writer};

/// Starts offering devices on the first `nodes` nodes, `per_node` of each kind.
pub fn start(
    (nodes, per_node): (u32, u32),
    writer: Writer,
    (node_cache, kubevirts): (&Arc<Cache>, &Arc<Cache>),
    stop: &CancellationToken,
) {
    let queue = Queue::default();
    let permitted: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let (on_config, known) = (queue.clone(), permitted.clone());
    kubevirts.on_change(move |change| {
        let now = change.new.map(|kubevirt| names(kubevirt)).unwrap_or_default();
        *known.lock().unwrap_or_else(PoisonError::into_inner) = now;
        (0..nodes).for_each(|index| on_config.add(&node::name(index)));
    });
    let on_node = queue.clone();
    node_cache.on_change(move |change| {
        if change.old.is_none() {
            on_node.add(change.key);
        }
    });
    let node_cache = node_cache.clone();
    let ours: Arc<[String]> = (0..nodes).map(node::name).collect();
    queue.run("device-manager", 2, stop, move |key| {
        let (node_cache, permitted, writer, ours) =
            (node_cache.clone(), permitted.clone(), writer.clone(), ours.clone());
        async move {
            if !ours.contains(&key) {
                return Ok(None);
            }
            let permitted = permitted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            reconcile(&node_cache, &writer, &key, &permitted, per_node).await
        }
    });
}

async fn reconcile(
    nodes: &Cache,
    writer: &Writer,
    key: &str,
    permitted: &BTreeSet<String>,
    per_node: u32,
) -> Result<Option<Duration>, ClientError> {
    let Some(node) = nodes.get(key) else { return Ok(None) };
    if let Some(resources) = decide(&node, permitted, per_node) {
        let body = json!({"status": {"capacity": resources, "allocatable": resources}});
        let write = Write::to(&NODES, &node, "status", Op::StrategicPatch(body));
        writer.write(&Identity::kubelet(json::name(&node)), &write).await?;
    }
    Ok(None)
}

/// The resource names that a `KubeVirt` object permits.
fn names(kubevirt: &Value) -> BTreeSet<String> {
    let plain = kubevirt.clone().into();
    KubeVirtView(&plain).permitted_devices().map(|device| device.resource_name.to_owned()).collect()
}

/// The resources whose count on a node has to change.
fn decide(node: &Value, permitted: &BTreeSet<String>, per_node: u32) -> Option<Map> {
    let have = map(node, "/status/allocatable").cloned().unwrap_or_default();
    let mut change = Map::new();
    for name in permitted {
        let count = per_node.to_string();
        if have.get(name) != Some(&Value::from(count.as_str())) {
            change.set(name.clone(), count);
        }
    }
    // Resources with a domain are devices; those of other plugins are always there.
    let device = |name: &str| {
        name.contains('/') && !name.starts_with("devices.kubevirt.io/") && name != node::VIRTUAL_FUNCTIONS.0
    };
    for (name, count) in &have {
        if device(name) && !permitted.contains(name.as_str()) && count != "0" {
            change.insert(name.clone(), "0".into());
        }
    }
    (!change.is_empty()).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_offer_what_is_permitted_and_nothing_else() {
        let permitted = BTreeSet::from(["a.com/X".to_owned()]);
        for (have, expected) in [
            (json!({}), Some(json!({"a.com/X": "2"}))),
            (json!({"a.com/X": "2", "cpu": "4"}), None),
            (json!({"a.com/X": "0"}), Some(json!({"a.com/X": "2"}))),
            (json!({"a.com/X": "2", "b.com/Y": "2"}), Some(json!({"b.com/Y": "0"}))),
            (json!({"a.com/X": "2", "b.com/Y": "0", "devices.kubevirt.io/kvm": "1000"}), None),
            (json!({"a.com/X": "2", "intel.com/vf": "16"}), None),
        ] {
            let node = json!({"status": {"allocatable": have}});
            let change = decide(&node, &permitted, 2).map(Value::from);
            assert_eq!(change, expected, "{node}");
        }
    }
}
