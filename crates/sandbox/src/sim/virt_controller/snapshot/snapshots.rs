//! The snapshot itself: locks its VM, makes the content, tells how far it is (`updateVMSnapshot`, v1.9).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::source::Source;
use super::{Snapshots, claims_of, set_condition, state};
use crate::sim::json::{self, is_deleting, list, text};
use crate::sim::resource::{SNAPSHOT_CONTENTS, SNAPSHOTS};
use crate::sim::virt_controller::PassError;
use crate::sim::write::{Op, Write};

const FINALIZER: &str = "snapshot.kubevirt.io/vmsnapshot-protection";
const CONTENT_FINALIZER: &str = "snapshot.kubevirt.io/vmsnapshotcontent-protection";
/// How soon the VM is tried to be locked again.
const RETRY: Duration = Duration::from_secs(5);

const MESSAGES: [(&str, &str); 6] = [
    ("Online", "Snapshot taken while the VM was running. Consistency depends on guest-agent quiescing."),
    (
        "GuestAgent",
        "Guest agent was active and attempted to quiesce the filesystem for application consistency.",
    ),
    (
        "NoGuestAgent",
        "Guest agent was not available. Snapshot is crash-consistent and may not be application-consistent.",
    ),
    (
        "QuiesceTimeout",
        "Guest agent quiesced the filesystem, but the freeze window timed out before completion. Snapshot is crash-consistent and may not be application-consistent.",
    ),
    (
        "Paused",
        "Snapshot taken while the VM was paused. Snapshot is crash-consistent and may not be application-consistent.",
    ),
    (
        "PartialSnapshot",
        "Not all snapshotable volumes were included in the snapshot. Check status.snapshotVolumes for excluded volumes and VM VolumeSnapshotStatus for details.",
    ),
];

impl Snapshots {
    pub(super) fn content_of(&self, snapshot: &Value) -> Option<Arc<Value>> {
        self.caches.contents.get(&json::join_key(json::namespace(snapshot), &state::content_name(snapshot)))
    }

    pub(super) async fn reconcile_snapshot(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(snapshot) = self.caches.snapshots.get(key) else { return Ok(None) };
        let now = self.writer.client.now();
        let mut snapshot = snapshot.as_ref().clone();
        let mut source = self.source(&snapshot);
        let content = self.content_of(&snapshot);
        let terminating = state::is_terminating(&snapshot, now);
        if !terminating {
            snapshot = self.guarded(&SNAPSHOTS, &snapshot, FINALIZER).await?;
        }
        let mut retry = None;
        let mut holds = false;
        if let Some(source) = source.as_mut().filter(|_| snapshot.get("status").is_some()) {
            if state::is_progressing(&snapshot) && !terminating {
                holds = true;
                if !source.locked {
                    self.lock(source, &snapshot).await?;
                    retry = Some(RETRY);
                } else if content.is_none() {
                    self.create_content(&snapshot, source).await?;
                }
            } else {
                if state::unlocks(&snapshot, content.as_deref(), now) {
                    self.unlock(source, &snapshot).await?;
                }
                holds = source.locked;
            }
        }
        if let Some(content) =
            content.as_ref().filter(|content| terminating && state::deletes_content(&snapshot, content))
        {
            let write = Write::to(&SNAPSHOT_CONTENTS, content, "", Op::Delete(Value::Null));
            match self.writer.write(&self.who, &write).await {
                Err(error) if error.code() != 404 => return Err(error.into()),
                _ => {}
            }
        }
        let content = self.content_of(&snapshot);
        let status = status(&snapshot, source.as_ref(), content.as_deref(), now);
        let changed = self.say(&SNAPSHOTS, &snapshot, &status).await?;
        if is_deleting(&snapshot) && !holds {
            if changed {
                self.snapshot_queue.add(key);
                return Ok(None);
            }
            match self.released(&SNAPSHOTS, &snapshot, FINALIZER).await {
                Err(error) if error.code() != 404 => return Err(error.into()),
                _ => return Ok(None),
            }
        }
        let left = state::time_left(&snapshot, now).filter(|_| status["phase"] == "InProgress");
        let left =
            left.and_then(|left| Duration::try_from(left).ok()).map(|left| left + Duration::from_millis(10));
        Ok(retry.or(left))
    }

    async fn create_content(&self, snapshot: &Value, source: &Source) -> Result<(), PassError> {
        let namespace = json::namespace(snapshot);
        let mut backups = Vec::new();
        for (volume, claim) in claims_of(&source.vm) {
            let Some(claim) = self.storage().claims.get(&json::join_key(namespace, claim)) else { continue };
            let class = self.storage().snapshot_class(text(&claim, "/spec/storageClassName"));
            if class.map_err(super::failed)?.is_none() || text(&claim, "/status/phase") != "Bound" {
                continue;
            }
            let mut metadata = claim["metadata"].clone();
            json::remove(&mut metadata, &["managedFields"]);
            backups.push(json!({"volumeName": volume,
                "persistentVolumeClaim": {"metadata": metadata, "spec": claim["spec"]},
                "volumeSnapshotName": format!("vmsnapshot-{}-volume-{volume}", json::uid(snapshot))}));
        }
        let vm = self.captured(source, snapshot).await?;
        let name = state::content_name(snapshot);
        let content = json!({"apiVersion": SNAPSHOT_CONTENTS.api_version(), "kind": SNAPSHOT_CONTENTS.kind,
            "metadata": {"name": name, "namespace": namespace, "finalizers": [CONTENT_FINALIZER]},
            "spec": {"virtualMachineSnapshotName": json::name(snapshot), "source": {"virtualMachine": vm},
                "volumeBackups": backups}});
        match self.writer.write(&self.who, &Write::create(&SNAPSHOT_CONTENTS, content)).await {
            Err(error) if error.code() != 409 => return Err(error.into()),
            _ => {}
        }
        let message = format!("Successfully created VirtualMachineSnapshotContent {name}");
        self.note(snapshot, "SuccessfulVirtualMachineSnapshotContentCreate", message);
        Ok(())
    }
}

/// The status that a snapshot should have (`updateSnapshotStatus`).
fn status(snapshot: &Value, source: Option<&Source>, content: Option<&Value>, now: Timestamp) -> Value {
    let mut new = snapshot.clone();
    if new.get("status").is_none() {
        new["status"] = json!({"readyToUse": false});
    }
    let status = &mut new["status"];
    if let Some(source) = source {
        status["sourceUID"] = json::uid(&source.vm).into();
    }
    if let Some((content, of)) = content.and_then(|content| Some((content, content.get("status")?))) {
        status["virtualMachineSnapshotContentName"] = json::name(content).into();
        for key in ["creationTime", "readyToUse", "error"] {
            match of.get(key).filter(|value| !value.is_null()) {
                Some(value) => status[key] = value.clone(),
                None => json::remove(status, &[key]),
            }
        }
    }
    let mut conditions = list(status, "/conditions").to_vec();
    let mut set =
        |kind: &str, status: &str, reason: &str| set_condition(&mut conditions, kind, status, reason, now);
    if state::is_past_deadline(&new, now) {
        new["status"]["phase"] = "Failed".into();
        set("Failure", "True", "snapshot deadline exceeded");
        set("Progressing", "False", "Operation failed");
    } else if state::has_succeeded(&new) || new.pointer("/status/creationTime").is_some() {
        new["status"]["phase"] = "Succeeded".into();
        set("Progressing", "False", "Operation complete");
        if let Some(content) = content {
            name_volumes(&mut new["status"], content);
        }
    } else {
        new["status"]["phase"] = "InProgress".into();
        match source {
            Some(source) => {
                set("Progressing", if source.locked { "True" } else { "False" }, &source.lock_message);
                indicate(&mut new["status"], source);
            }
            None => set("Progressing", "False", "Source does not exist"),
        }
        if is_deleting(&new) {
            new["status"]["phase"] = "Deleting".into();
            set("Progressing", "False", "VM snapshot is deleting");
        }
    }
    if state::is_ready(&new) {
        set("Ready", "True", "Ready");
    } else {
        set("Ready", "False", "Not ready");
    }
    if new.pointer("/status/error").is_some_and(Value::is_object) {
        set("Progressing", "False", "In error state");
    }
    new["status"]["conditions"] = conditions.into();
    new["status"].take()
}

/// What the state of the guest says about the snapshot (`updateSnapshotSourceIndications`).
fn indicate(status: &mut Value, source: &Source) {
    if !source.online() {
        json::remove(status, &["indications"]);
        json::remove(status, &["sourceIndications"]);
        return;
    }
    let mut all: std::collections::BTreeSet<String> =
        list(status, "/indications").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    all.insert("Online".into());
    if source.paused() {
        all.insert("Paused".into());
    } else if source.has_agent() {
        all.insert("GuestAgent".into());
        // Windows cannot hold its file systems frozen for more than 10 s.
        if text(status, "/error/message").contains("fsfreeze is limited") {
            all.insert("QuiesceTimeout".into());
        }
    } else {
        all.insert("NoGuestAgent".into());
    }
    status["sourceIndications"] = all.iter().map(|one| indication(one)).collect();
    status["indications"] = all.into_iter().collect();
}

fn indication(name: &str) -> Value {
    let message =
        MESSAGES.iter().find(|(known, _)| *known == name).map_or("Unknown indication", |(_, text)| text);
    json!({"indication": name, "message": message})
}

/// Which volumes are in the snapshot, and which are not (`updateSnapshotSnapshotableVolumes`).
fn name_volumes(status: &mut Value, content: &Value) {
    let vm = &content["spec"]["source"]["virtualMachine"];
    let backed_up =
        |name: &Value| list(content, "/spec/volumeBackups").iter().any(|one| one["volumeName"] == *name);
    let volumes = list(vm, "/spec/template/spec/volumes");
    let (included, excluded): (Vec<_>, Vec<_>) =
        volumes.iter().partition(|volume| backed_up(&volume["name"]));
    let names = |volumes: &[&Value]| volumes.iter().map(|one| one["name"].clone()).collect::<Vec<Value>>();
    let mut lists = json!({});
    for (key, volumes) in [("includedVolumes", &included), ("excludedVolumes", &excluded)] {
        if !volumes.is_empty() {
            lists[key] = names(volumes).into();
        }
    }
    status["snapshotVolumes"] = lists;
    let claims = claims_of(vm);
    let partial = excluded.iter().any(|volume| claims.iter().any(|(name, _)| volume["name"] == *name));
    if partial {
        for (key, value) in
            [("indications", json!("PartialSnapshot")), ("sourceIndications", indication("PartialSnapshot"))]
        {
            let mut all = list(status, &format!("/{key}")).to_vec();
            if !all.contains(&value) {
                all.push(value);
                status[key] = all.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(vmi: Option<Value>, locked: bool) -> Source {
        Source {
            vm: Arc::new(json!({"metadata": {"name": "v", "uid": "u"}})),
            vmi: vmi.map(Arc::new),
            locked,
            lock_message: if locked {
                "Source locked and operation in progress".into()
            } else {
                "Source not locked".into()
            },
        }
    }

    fn snapshot() -> Value {
        json!({"metadata": {"name": "s", "uid": "su", "creationTimestamp": "2026-01-01T00:00:00Z"}})
    }

    fn reason(status: &Value, kind: &str) -> String {
        list(status, "/conditions")
            .iter()
            .find(|one| one["type"] == kind)
            .map_or(String::new(), |one| format!("{} {}", text(one, "/status"), text(one, "/reason")))
    }

    #[test]
    fn phases_follow_lock_content_and_deadline() {
        let early = "2026-01-01T00:00:10Z".parse().unwrap();
        let late = "2026-01-01T00:10:00Z".parse().unwrap();
        let made = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"creationTime": "2026-01-01T00:00:05Z", "readyToUse": true}});
        let broken = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"readyToUse": false, "error": {"message": "m"}}});
        for (locked, content, now, phase, progressing, ready) in [
            (false, None, early, "InProgress", "False Source not locked", "False Not ready"),
            (
                true,
                None,
                early,
                "InProgress",
                "True Source locked and operation in progress",
                "False Not ready",
            ),
            (true, Some(&broken), early, "InProgress", "False In error state", "False Not ready"),
            (true, Some(&made), early, "Succeeded", "False Operation complete", "True Ready"),
            (true, None, late, "Failed", "False Operation failed", "False Not ready"),
        ] {
            let status = status(&snapshot(), Some(&source(None, locked)), content, now);
            assert_eq!(
                (
                    text(&status, "/phase"),
                    reason(&status, "Progressing").as_str(),
                    reason(&status, "Ready").as_str()
                ),
                (phase, progressing, ready)
            );
            assert_eq!(text(&status, "/sourceUID"), "u");
        }
    }

    #[test]
    fn indications_say_how_the_guest_was() {
        let vmi = |conditions: &[&str]| {
            let conditions: Vec<Value> =
                conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            Some(json!({"status": {"conditions": conditions}}))
        };
        for (guest, expected) in [
            (None, &[][..]),
            (vmi(&[]), &["NoGuestAgent", "Online"][..]),
            (vmi(&["AgentConnected"]), &["GuestAgent", "Online"][..]),
            (vmi(&["AgentConnected", "Paused"]), &["Online", "Paused"][..]),
        ] {
            let mut status = json!({});
            indicate(&mut status, &source(guest, true));
            let names: Vec<_> =
                list(&status, "/sourceIndications").iter().map(|one| text(one, "/indication")).collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn volumes_without_a_backup_are_named() {
        let content = json!({"spec": {"volumeBackups": [{"volumeName": "root"}], "source": {"virtualMachine": {"spec": {
            "template": {"spec": {"volumes": [{"name": "root", "dataVolume": {"name": "r"}},
                {"name": "local", "persistentVolumeClaim": {"claimName": "l"}}, {"name": "init", "cloudInitNoCloud": {}}]}}}}}}});
        let mut status = json!({});
        name_volumes(&mut status, &content);
        assert_eq!(
            status["snapshotVolumes"],
            json!({"includedVolumes": ["root"], "excludedVolumes": ["local", "init"]})
        );
        assert_eq!(status["indications"], json!(["PartialSnapshot"]));
    }
}
