//! Jobs (`batch/v1`) of one pod each, and the programs in their pods.
//!
//! ```text
//!  Job ─controller─► Pod ─scheduler, kubelet─► Running: a process of this machine ─exit─► Succeeded, Failed
//!   ▲                                                                                        │
//!   └──────────── Complete, or another pod after 10 s · 2ⁿ until backoffLimit ◄──────────────┘
//! ```
//!
//! Only pods of Jobs whose image is virt-steward's own have a process behind them.

pub mod decide;
pub mod programs;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::client::ClientError;
use super::identity::Identity;
use super::json;
use super::queue::Queue;
use super::resource::{JOBS, PODS};
use super::write::{Op, Write, Writer};
use decide::Step;

/// Runs Jobs until `stop`.
pub fn start(writer: Writer, pods: &Arc<Cache>, stop: &CancellationToken) {
    let jobs = Cache::new(&JOBS, |_| "");
    let queue = Queue::default();
    let adding = queue.clone();
    jobs.on_change(move |change| adding.add(change.key));
    let (adding, all) = (queue.clone(), jobs.clone());
    pods.on_change(move |change| {
        let owner = change.object()["metadata"]["ownerReferences"][0].clone();
        if owner["kind"] == "Job" {
            let namespace = json::namespace(change.object());
            let key = json::join_key(namespace, owner["name"].as_str().unwrap_or_default());
            if all.get(&key).is_some() {
                adding.add(&key);
            }
        }
    });
    tokio::spawn(jobs.clone().run(writer.client.clone(), stop.clone()));
    let controller =
        Arc::new(Controller { writer, jobs, pods: pods.clone(), who: Identity::job_controller() });
    queue.run("job", 2, stop, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

struct Controller {
    writer: Writer,
    jobs: Arc<Cache>,
    pods: Arc<Cache>,
    who: Identity,
}

impl Controller {
    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(job) = self.jobs.get(key) else { return Ok(None) };
        let pods = self.pods.indexed(json::uid(&job));
        let pods: Vec<&Value> = pods.iter().map(|pod| &**pod).collect();
        let decision = decide::decide(&job, &pods, self.writer.client.now());
        if let Some(status) = decision.status {
            let body = json!({"metadata": {"resourceVersion": job["metadata"]["resourceVersion"]},
                "status": status});
            let write = Write::to(&JOBS, &job, "status", Op::MergePatch(body));
            let answer = self.writer.write(&self.who, &write).await?;
            self.jobs.observe(answer);
        }
        match decision.step {
            Step::Nothing => {}
            Step::Create(pod) => {
                let answer = self.writer.write(&self.who, &Write::create(&PODS, pod)).await;
                // Made by the look before this one, which the cache has not seen yet.
                if let Err(error) = answer
                    && error.code() != 409
                {
                    return Err(error);
                }
            }
            Step::DeletePods => {
                for pod in pods.iter().filter(|pod| !json::is_deleting(pod)) {
                    let write = Write::to(&PODS, pod, "", Op::Delete(Value::Null));
                    self.writer.write(&self.who, &write).await?;
                }
            }
            Step::DeleteJob => {
                let options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
                    "propagationPolicy": "Background", "preconditions": {"uid": json::uid(&job)}});
                let write = Write::to(&JOBS, &job, "", Op::Delete(options));
                self.writer.write(&self.who, &write).await?;
            }
        }
        Ok(decision.again)
    }
}
