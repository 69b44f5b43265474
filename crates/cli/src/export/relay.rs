//! Tells a `VMExportJob` how far the export of one of its VMs is: the pod of a Job does, under the account
//! that it runs as.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::export::job::{GROUP, PLURAL, VERSION};
use ::export::run::{Event, Report};
use anyhow::Result;
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Args;
use crate::cluster::Cluster;

/// How often the object is written while there is progress.
const EVERY: Duration = Duration::from_secs(3);

/// Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    path: String,
    vm: String,
    state: Mutex<State>,
    stop: CancellationToken,
}

struct State {
    progress: Value,
    changed: bool,
    begun: Instant,
    /// Where this run began, when it goes on with an earlier one.
    from: u64,
    /// Sizes, data and stored bytes of the disks that are done.
    earlier: (u64, u64, u64),
    /// The same of the disk at work.
    current: (u64, u64, u64),
}

impl Relay {
    /// Connects to the cluster of the VM.
    pub async fn start(args: &Args, job: String) -> Result<Self> {
        let cluster = Cluster::connect(args.kubeconfig.as_deref(), args.context.clone()).await?;
        let given = args.vm_name().unwrap_or_default();
        let (namespace, vm) = match given.split_once('/') {
            Some((namespace, vm)) => (namespace.to_owned(), vm.to_owned()),
            None => (
                args.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned()),
                given.to_owned(),
            ),
        };
        let path = format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{job}/status");
        let state = State {
            progress: json!({"step": "starting", "error": null}),
            changed: true,
            begun: Instant::now(),
            from: 0,
            earlier: (0, 0, 0),
            current: (0, 0, 0),
        };
        let stop = CancellationToken::new();
        let relay = Self(Arc::new(Inner { cluster, path, vm, state: Mutex::new(state), stop }));
        let writer = relay.clone();
        tokio::spawn(async move {
            loop {
                writer.write().await;
                tokio::select! {
                    () = writer.0.stop.cancelled() => return,
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
        });
        Ok(relay)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event; `total` is the size of all disks.
    pub fn event(&self, event: &Event, total: u64) {
        let mut state = self.state();
        match event {
            Event::Started { disk, done, .. } => {
                let (size, data, stored) = state.current;
                let earlier = state.earlier;
                state.earlier = (earlier.0 + size, earlier.1 + data, earlier.2 + stored);
                state.current = (0, 0, 0);
                state.from += done;
                state.progress["disk"] = disk.as_str().into();
                state.progress["step"] = "exporting".into();
            }
            Event::Progress { done, data, stored, .. } => {
                state.current = (*done, *data, *stored);
                let done = (state.earlier.0 + done).min(total);
                let seconds = state.begun.elapsed().as_secs().max(1);
                let rate = done.saturating_sub(state.from) / seconds;
                let eta = (total - done).checked_div(rate).map_or(Value::Null, Value::from);
                let more = json!({"size": total, "done": done, "data": state.earlier.1 + data,
                    "stored": state.earlier.2 + stored, "bytesPerSecond": rate, "etaSeconds": eta,
                    "percent": (done * 100).checked_div(total).unwrap_or(100)});
                merge(&mut state.progress, more);
            }
            Event::Verifying { .. } => state.progress["step"] = "verifying".into(),
            Event::Finished { .. } | Event::Warning { .. } => {}
        }
        state.changed = true;
    }

    /// Notes what came out.
    pub fn finished(&self, report: &Report) {
        let files: Vec<Value> =
            report.files.iter().map(|file| json!({"name": file.name, "size": file.size})).collect();
        let more = json!({"step": "done", "percent": 100, "etaSeconds": 0, "files": files,
            "base": report.lineage.base, "fullBecause": report.lineage.full_because});
        let mut state = self.state();
        merge(&mut state.progress, more);
        state.changed = true;
    }

    /// Notes why it does not work.
    pub fn fail(&self, why: &str) {
        let mut state = self.state();
        state.progress["error"] = why.into();
        state.changed = true;
    }

    /// Writes the last state, whatever the others are.
    pub async fn end(&self, failure: Option<String>) {
        if let Some(failure) = failure {
            self.fail(&failure);
        }
        self.0.stop.cancel();
        for _ in 0..5 {
            self.write().await;
            if !self.state().changed {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Writes what changed; a write that fails is tried again with the next.
    async fn write(&self) {
        let progress = {
            let mut state = self.state();
            if !std::mem::take(&mut state.changed) {
                return;
            }
            state.progress.clone()
        };
        let patch = json!({"status": {"exports": {&self.0.vm: {"progress": progress}}}});
        let sent =
            self.0.cluster.send(Method::PATCH, &self.0.path, "application/merge-patch+json", &patch).await;
        if !sent.is_ok_and(|reply| reply.status.is_success()) {
            self.state().changed = true;
        }
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
