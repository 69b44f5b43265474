//! The evacuation controller (`watch/drain/evacuation`, v1.9): VMIs that virt-api marked when their pod
//! was to be evicted, and those on nodes with the drain taint, migrate away.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::migration::decide::is_migrating;
use super::migration::{self, policy};
use super::vm::is_final;
use super::{Caches, PassError};
use crate::sim::cluster::ClusterConfig;
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, has_condition, is_deleting, text};
use crate::sim::queue::Queue;
use crate::sim::resource::MIGRATIONS;
use crate::sim::write::{Write, Writer};

const COMPONENT: &str = "disruptionbudget-controller";

/// The controller.
pub struct Evacuation {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
}

/// The strategy of a VMI for its eviction: its own, or the cluster's.
pub fn strategy<'a>(vmi: &'a Value, config: &'a ClusterConfig) -> &'a str {
    match text(vmi, "/spec/evictionStrategy") {
        "" => &config.eviction_strategy,
        own => own,
    }
}

/// Whether a VMI of a node is to leave it.
fn leaves(vmi: &Value, drained: bool, config: &ClusterConfig) -> bool {
    let marked = text(vmi, "/status/evacuationNodeName");
    let asked =
        drained || (!marked.is_empty() && marked == text(vmi, "/status/nodeName") && !is_migrating(vmi));
    let wants = match strategy(vmi, config) {
        "LiveMigrate" => true,
        "LiveMigrateIfPossible" => has_condition(vmi, "LiveMigratable", "True"),
        _ => false,
    };
    asked && wants && !is_final(vmi) && !is_deleting(vmi) && has_condition(vmi, "LiveMigratable", "True")
}

/// The migration (`GenerateNewMigration`).
fn migration_of(vmi: &Value, node: &str) -> Write {
    let by_descheduler = json::annotation(vmi, "kubevirt.io/eviction-source") == Some("descheduler");
    let priority = if by_descheduler { "system-maintenance" } else { "system-critical" };
    Write::create(
        &MIGRATIONS,
        json!({
            "apiVersion": MIGRATIONS.api_version(),
            "kind": MIGRATIONS.kind,
            "metadata": {"generateName": "kubevirt-evacuation-", "namespace": json::namespace(vmi),
                "annotations": {"kubevirt.io/evacuationMigration": node}},
            "spec": {"priority": priority, "vmiName": json::name(vmi)},
            "status": {},
        }),
    )
}

impl Evacuation {
    /// Starts the controller.
    pub fn start(writer: Writer, recorder: Recorder, caches: &Caches, stop: &CancellationToken) {
        let queue = Queue::default();
        let on_node = queue.clone();
        caches.nodes.on_change(move |change| on_node.add(change.key));
        let on_vmi = queue.clone();
        caches.vmis.on_change(move |change| {
            let marked = text(change.object(), "/status/evacuationNodeName");
            if !marked.is_empty() {
                on_vmi.add(marked);
            }
        });
        // The end of a migration may leave a VMI where it was.
        let (on_migration, vmis) = (queue.clone(), caches.vmis.clone());
        caches.migrations.on_change(move |change| {
            let migration = change.object();
            let key = json::join_key(json::namespace(migration), text(migration, "/spec/vmiName"));
            if let Some(vmi) = vmis.get(&key) {
                on_migration.add(text(&vmi, "/status/nodeName"));
            }
        });
        // So may the end of a pod that an earlier migration left behind.
        let (on_pod, vmis) = (queue.clone(), caches.vmis.clone());
        caches.pods.on_change(move |change| {
            let pod = change.object();
            let vmi = json::annotation(pod, "kubevirt.io/domain")
                .and_then(|name| vmis.get(&json::join_key(json::namespace(pod), name)));
            if let Some(vmi) = vmi.filter(|vmi| !text(vmi, "/status/evacuationNodeName").is_empty()) {
                on_pod.add(text(&vmi, "/status/nodeName"));
            }
        });
        let who = Identity::virt_controller();
        let controller = Arc::new(Self { who, writer, recorder, caches: caches.clone() });
        // One worker: what it has made it sees before it looks at the next node.
        queue.run("evacuation", 1, stop, move |node| {
            let controller = controller.clone();
            async move { controller.reconcile(&node).await }
        });
    }

    async fn reconcile(&self, name: &str) -> Result<Option<Duration>, PassError> {
        let Some(node) = self.caches.nodes.get(name) else { return Ok(None) };
        let config = self.caches.config();
        let drained = migration::drained_by_taint(&node, policy::drain_taint(&config.migrations));
        let candidates: Vec<Arc<Value>> =
            self.caches.vmis.indexed(name).into_iter().filter(|vmi| leaves(vmi, drained, &config)).collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let busy = migration::unfinished(&self.caches.migrations.all());
        let mut failure = None;
        for vmi in candidates {
            let pods = self.caches.pods.indexed(json::uid(&vmi));
            if busy.contains(&json::key(&vmi)) || migration::active_pods(&pods) > 1 {
                continue;
            }
            let note = match self.writer.write(&self.who, &migration_of(&vmi, name)).await {
                Ok(made) => {
                    let message = format!("Created Migration {}", json::name(&made));
                    Note::normal(&vmi, "SuccessfulCreate", message)
                }
                Err(error) => {
                    let message = format!("Error creating a Migration: {}", error.message());
                    failure = Some(PassError::from(error));
                    Note::warning(&vmi, "FailedCreate", message)
                }
            };
            self.recorder.note(&self.who, COMPONENT, note);
        }
        failure.map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_a_node() {
        let config = ClusterConfig::of(&Value::Null);
        let vmi = |strategy: &str, marked: &str, migratable: &str| {
            json!({"spec": {"evictionStrategy": strategy}, "status": {"nodeName": "n1", "phase": "Running",
                "evacuationNodeName": marked, "conditions": [{"type": "LiveMigratable", "status": migratable}]}})
        };
        for (strategy, marked, migratable, drained, expected) in [
            ("LiveMigrate", "n1", "True", false, true),
            ("LiveMigrate", "", "True", false, false),
            ("LiveMigrate", "", "True", true, true),
            ("LiveMigrate", "n2", "True", false, false),
            ("LiveMigrate", "n1", "False", false, false),
            ("LiveMigrateIfPossible", "n1", "True", false, true),
            ("None", "n1", "True", true, false),
            ("External", "n1", "True", false, false),
        ] {
            let vmi = vmi(strategy, marked, migratable);
            assert_eq!(
                leaves(&vmi, drained, &config),
                expected,
                "{strategy} {marked} {migratable} {drained}"
            );
        }
        let mut under_way = vmi("LiveMigrate", "n1", "True");
        under_way["status"]["migrationState"] = json!({"startTimestamp": "t"});
        assert!(!leaves(&under_way, false, &config), "it migrates already");
    }
}
