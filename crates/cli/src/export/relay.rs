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
use crate::progress::{Pace, Reached};

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
    /// One write after the other: an older state that arrived later would take back why it failed.
    turn: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

struct State {
    progress: Value,
    changed: bool,
    begun: Instant,
    /// Where this run began, when it goes on with an earlier one.
    from: u64,
    disks: Vec<Disk>,
}

/// A disk that has begun.
struct Disk {
    name: String,
    /// Over all of it.
    passes: u8,
    now: Reached,
}

impl Disk {
    /// Bytes of it that are done, when each pass counts the same part.
    fn done(&self) -> u64 {
        let before = self.passes.saturating_sub(1).saturating_sub(self.now.passes_left);
        (self.now.size * u64::from(before) + self.now.done) / u64::from(self.passes.max(1))
    }
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
            disks: Vec::new(),
        };
        let (turn, stop) = (tokio::sync::Mutex::default(), CancellationToken::new());
        let relay = Self(Arc::new(Inner { cluster, path, vm, state: Mutex::new(state), turn, stop }));
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
            Event::Started { disk, size, done, passes_left } => {
                let (size, done, passes_left) = (*size, *done, *passes_left);
                let now = Reached { size, done, passes_left, ..Reached::default() };
                if let Some(known) = state.disks.iter_mut().find(|known| known.name == *disk) {
                    known.now = now;
                } else {
                    state.from += done;
                    state.disks.push(Disk { name: disk.clone(), passes: passes_left + 1, now });
                }
                state.progress["disk"] = disk.as_str().into();
                state.progress["step"] = if passes_left > 0 { "measuring" } else { "exporting" }.into();
            }
            Event::Progress { disk, size, done, data, stored, passes_left, .. } => {
                let (size, done, data, stored, passes_left) = (*size, *done, *data, *stored, *passes_left);
                if let Some(known) = state.disks.iter_mut().find(|known| known.name == *disk) {
                    known.now = Reached { size, done, data, stored, passes_left };
                }
                let now = sum(&state.disks, total);
                let pace = Pace::of(now, state.begun.elapsed(), state.from);
                let more = json!({"size": total, "done": now.done, "data": now.data, "stored": now.stored,
                    "bytesPerSecond": pace.bytes_per_second, "etaSeconds": pace.eta_seconds,
                    "percent": pace.percent});
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
        let _turn = self.0.turn.lock().await;
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

/// All disks together, of so many bytes.
fn sum(disks: &[Disk], size: u64) -> Reached {
    let mut all = Reached { size, ..Reached::default() };
    for disk in disks {
        all.done += disk.done();
        all.data += disk.now.data;
        all.stored += disk.now.stored;
    }
    Reached { done: all.done.min(size), ..all }
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_read_twice_count_each_time_for_a_half() {
        let disk = |passes, passes_left, done| Disk {
            name: "a".into(),
            passes,
            now: Reached { size: 1000, done, data: 10, stored: 1, passes_left },
        };
        let done = |disks: &[Disk]| sum(disks, 2000).done;
        assert_eq!(done(&[disk(2, 1, 500)]), 250);
        assert_eq!(done(&[disk(2, 1, 1000), disk(2, 1, 1000)]), 1000);
        assert_eq!(done(&[disk(2, 0, 500), disk(2, 1, 1000)]), 1250);
        assert_eq!(done(&[disk(1, 0, 1000), disk(1, 0, 1000)]), 2000);
    }
}
