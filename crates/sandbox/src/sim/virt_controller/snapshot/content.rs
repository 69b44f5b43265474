//! The content of a snapshot: freezes the guest, makes a `VolumeSnapshot` for each claim, thaws
//! (`updateVMSnapshotContent`, v1.9).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Value, json};

use super::{Snapshots, failed, state};
use crate::sim::events::Note;
use crate::sim::json::{self, is_deleting, list, text, time};
use crate::sim::resource::{SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS};
use crate::sim::virt_controller::PassError;
use crate::sim::write::Write;

const FINALIZER: &str = "snapshot.kubevirt.io/vmsnapshotcontent-protection";
/// How soon a content is looked at again after its guest refused, or while it is deleted.
const RETRY: Duration = Duration::from_secs(5);

impl Snapshots {
    pub(super) async fn reconcile_content(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(content) = self.caches.contents.get(key) else { return Ok(None) };
        let mut content = content.as_ref().clone();
        let now = self.writer.client.now();
        let name = text(&content, "/spec/virtualMachineSnapshotName").to_owned();
        let snapshot = self.caches.snapshots.get(&json::join_key(json::namespace(&content), &name));
        if snapshot.as_ref().is_none_or(|snapshot| state::is_terminating(snapshot, now)) {
            if let Some(source) = snapshot.as_ref().and_then(|snapshot| self.source(snapshot))
                && let Err(error) = self.thaw(&source).await
            {
                tracing::debug!(content = key, %error, "the guest of a snapshot that ends was not thawed");
            }
            content = match self.released(&SNAPSHOT_CONTENTS, &content, FINALIZER).await {
                Err(error) if error.code() == 404 => return Ok(None),
                other => other?,
            };
            if snapshot.as_ref().is_some_and(|snapshot| state::deletes_content(snapshot, &content)) {
                return Ok(None);
            }
        }
        if is_deleting(&content) {
            return Ok(None);
        }
        let mut status =
            content.get("status").filter(|one| one.is_object()).cloned().unwrap_or_else(|| json!({}));
        let created = status.get("creationTime").is_some();
        let (mut of_volumes, mut missing, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        let mut frozen = false;
        for backup in list(&content, "/spec/volumeBackups") {
            let volume_snapshot = text(backup, "/volumeSnapshotName");
            let known = self
                .storage()
                .volume_snapshots
                .get(&json::join_key(json::namespace(&content), volume_snapshot));
            let object = match known {
                Some(object) => object.as_ref().clone(),
                None if created => {
                    let message = format!("VolumeSnapshot {volume_snapshot} no longer exists");
                    self.recorder.note(
                        &self.who,
                        super::COMPONENT,
                        Note::warning(&content, "VolumeSnapshotMissing", message),
                    );
                    missing.push(volume_snapshot);
                    continue;
                }
                None => {
                    let Some(snapshot) = snapshot.as_ref().filter(|snapshot| !is_deleting(snapshot)) else {
                        skipped.push(volume_snapshot);
                        continue;
                    };
                    if !frozen {
                        let source =
                            self.source(snapshot).ok_or_else(|| failed("unable to get snapshot source"))?;
                        if let Err(error) = self.freeze(&source, snapshot).await {
                            status["error"] = json!({"time": time(now), "message": message_of(&error)});
                            status["readyToUse"] = false.into();
                            self.say(&SNAPSHOT_CONTENTS, &content, &status).await?;
                            return Ok(Some(RETRY));
                        }
                        frozen = true;
                    }
                    match self.create_volume_snapshot(&content, backup).await? {
                        Some(object) => object,
                        None => continue,
                    }
                }
            };
            of_volumes.push(volume_status(&object));
        }
        let (created, mut ready, error) = verdict(&of_volumes, &missing, &skipped);
        let mut limited = false;
        if status.get("creationTime").is_none() && created {
            status["creationTime"] = time(now).into();
            if let Some(source) = snapshot.as_ref().and_then(|snapshot| self.source(snapshot))
                && let Err(error) = self.thaw(&source).await
            {
                let message = message_of(&error);
                if !message.contains("fsfreeze is limited") {
                    return Err(error);
                }
                json::remove(&mut status, &["creationTime"]);
                status["error"] = json!({"time": time(now), "message": message});
                (ready, limited) = (false, true);
            }
        }
        match &error {
            Some(message) if !ready && text(&status, "/error/message") != message => {
                status["error"] = json!({"time": time(now), "message": message});
            }
            Some(_) => {}
            None if limited => {}
            None => json::remove(&mut status, &["error"]),
        }
        status["readyToUse"] = ready.into();
        if of_volumes.is_empty() {
            json::remove(&mut status, &["volumeSnapshotStatus"]);
        } else {
            status["volumeSnapshotStatus"] = of_volumes.into();
        }
        self.say(&SNAPSHOT_CONTENTS, &content, &status).await?;
        Ok(None)
    }

    async fn create_volume_snapshot(
        &self,
        content: &Value,
        backup: &Value,
    ) -> Result<Option<Value>, PassError> {
        let class_name = text(backup, "/persistentVolumeClaim/spec/storageClassName");
        let Some(class) = self.storage().snapshot_class(class_name).map_err(failed)? else { return Ok(None) };
        let vm = &content["spec"]["source"]["virtualMachine"];
        let name = text(backup, "/volumeSnapshotName");
        let snapshot = json!({"apiVersion": VOLUME_SNAPSHOTS.api_version(), "kind": VOLUME_SNAPSHOTS.kind,
            "metadata": {"name": name, "namespace": json::namespace(content),
                "labels": {"snapshot.kubevirt.io/source-vm-name": json::name(vm),
                    "snapshot.kubevirt.io/source-vm-namespace": json::namespace(vm)},
                "ownerReferences": [{"apiVersion": SNAPSHOT_CONTENTS.api_version(), "kind": SNAPSHOT_CONTENTS.kind,
                    "name": json::name(content), "uid": json::uid(content), "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"source": {"persistentVolumeClaimName": backup["persistentVolumeClaim"]["metadata"]["name"]},
                "volumeSnapshotClassName": json::name(&class)}});
        let made = self.writer.write(&self.who, &Write::create(&VOLUME_SNAPSHOTS, snapshot)).await?;
        self.note(
            content,
            "SuccessfulVolumeSnapshotCreate",
            format!("Successfully created VolumeSnapshot {name}"),
        );
        Ok(Some(Arc::unwrap_or_clone(made)))
    }
}

fn message_of(error: &PassError) -> String {
    match error {
        PassError::Client(error) => error.message(),
        PassError::Sync(message) => message.clone(),
    }
}

fn volume_status(snapshot: &Value) -> Value {
    let mut status = json!({"volumeSnapshotName": json::name(snapshot)});
    for key in ["readyToUse", "creationTime", "error"] {
        if let Some(value) = snapshot["status"].get(key).filter(|value| !value.is_null()) {
            status[key] = value.clone();
        }
    }
    status
}

/// Whether all are cut, whether all can be used, and what is wrong.
fn verdict(volumes: &[Value], missing: &[&str], skipped: &[&str]) -> (bool, bool, Option<String>) {
    if !missing.is_empty() {
        return (false, false, Some(format!("VolumeSnapshots ({}) missing", missing.join(","))));
    }
    if !skipped.is_empty() {
        let names = skipped.join(",");
        return (
            false,
            false,
            Some(format!("VolumeSnapshots ({names}) skipped because vm snapshot is deleted")),
        );
    }
    let created = volumes.iter().all(|one| !text(one, "/creationTime").is_empty());
    let ready = volumes.iter().all(|one| one["readyToUse"] == true);
    let error = volumes.iter().find(|one| !text(one, "/error/message").is_empty()).map(|one| {
        format!("VolumeSnapshot {} error: {}", text(one, "/volumeSnapshotName"), text(one, "/error/message"))
    });
    (created, ready, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_volumes_count() {
        let done = json!({"volumeSnapshotName": "a", "creationTime": "t", "readyToUse": true});
        let cut = json!({"volumeSnapshotName": "b", "creationTime": "t", "readyToUse": false});
        let bad = json!({"volumeSnapshotName": "c", "error": {"message": "full"}});
        for (volumes, missing, expected) in [
            (&[][..], &[][..], (true, true, None)),
            (&[done.clone()][..], &[][..], (true, true, None)),
            (&[done.clone(), cut][..], &[][..], (true, false, None)),
            (
                &[done.clone(), bad][..],
                &[][..],
                (false, false, Some("VolumeSnapshot c error: full".to_owned())),
            ),
            (&[done][..], &["x"][..], (false, false, Some("VolumeSnapshots (x) missing".to_owned()))),
        ] {
            assert_eq!(verdict(volumes, missing, &[]), expected);
        }
    }
}
