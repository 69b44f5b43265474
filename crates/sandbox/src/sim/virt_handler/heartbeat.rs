//! virt-handler tells once a minute that it is there (`pkg/virt-handler/heartbeat`, v1.9): virt-controller takes a
//! node whose heartbeat is older than five minutes for one that starts no guests.

use std::time::Duration;

use apimachinery::tree::json;
use tokio_util::sync::CancellationToken;

use crate::sim::client::ClientError;
use crate::sim::identity::Identity;
use crate::sim::json::time;
use crate::sim::resource::NODES;
use crate::sim::write::{Op, Write, Writer};

/// The label of a node that may be given guests.
pub const SCHEDULABLE: &str = "kubevirt.io/schedulable";
/// The annotation of a node with the time at which its virt-handler was heard of last.
pub const HEARTBEAT: &str = "kubevirt.io/heartbeat";
/// How often.
const INTERVAL: Duration = Duration::from_mins(1);

/// Lets the hearts of these nodes beat until `stop`. They beat first when the nodes are registered.
pub fn start(nodes: Vec<String>, writer: Writer, stop: CancellationToken) {
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let writer = &writer;
            let beats = nodes.iter().map(|node| async move { (node, beat(writer, node).await) });
            for (node, result) in futures::future::join_all(beats).await {
                if let Err(error) = result {
                    tracing::debug!(node, %error, "a heartbeat of virt-handler is lost");
                }
            }
        }
    });
}

async fn beat(writer: &Writer, node: &str) -> Result<(), ClientError> {
    let body = json!({"metadata": {"labels": {SCHEDULABLE: "true"},
        "annotations": {HEARTBEAT: time(writer.client.now())}}});
    let write = Write {
        resource: &NODES,
        namespace: String::new(),
        name: node.to_owned(),
        subresource: "",
        op: Op::StrategicPatch(body),
    };
    match writer.write(&Identity::virt_handler(node), &write).await {
        // Somebody has taken the node out of the cluster.
        Err(error) if error.code() == 404 => Ok(()),
        other => other.map(|_| ()),
    }
}
