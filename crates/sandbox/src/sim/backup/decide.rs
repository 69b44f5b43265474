//! The status of a backup, step by step (`sync` in `pkg/storage/cbt/backup.go` and `pull_mode.go`, v1.9).

use apimachinery::tree::{Value, json};
use jiff::{SignedDuration, Timestamp};

use crate::sim::json::{self, go_duration, list, name, namespace, text, time};

use super::tracking;

/// How long a backup in Pull mode lives when it does not say.
const DEFAULT_TTL: SignedDuration = SignedDuration::from_hours(2);
pub const FINALIZER: &str = "backup.kubevirt.io/vmbackup-protection";

/// `meta.SetStatusCondition`
pub fn set_condition(
    status: &mut Value,
    condition: (&str, &str),
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let (kind, value) = condition;
    let mut all = list(status, "/conditions").to_vec();
    let old = all.iter().position(|one| one["type"] == kind);
    let since = old.map(|at| &all[at]).filter(|one| one["status"] == value);
    let since = since.map_or_else(|| Value::from(time(now)), |one| one["lastTransitionTime"].clone());
    let new = json!({"type": kind, "status": value, "reason": reason, "message": message,
        "lastTransitionTime": since});
    match old {
        Some(at) => all[at] = new,
        None => all.push(new),
    }
    status["conditions"] = all.into();
}

/// A condition is `True`.
pub fn is_true(backup: &Value, kind: &str) -> bool {
    json::has_condition(backup, kind, "True")
}

/// It has come to an end.
pub fn is_terminal(backup: &Value) -> bool {
    is_true(backup, "Complete") || is_true(backup, "Failed")
}

/// `setFailed`
pub fn failed(status: &mut Value, reason: &str, why: &str, now: Timestamp) {
    let message = format!("Backup has failed: {why}");
    set_condition(status, ("Failed", "True"), reason, &message, now);
    set_condition(status, ("Progressing", "False"), reason, &message, now);
}

/// `setComplete`
pub fn completed(status: &mut Value, now: Timestamp) {
    let message = "Successfully completed VirtualMachineBackup";
    set_condition(status, ("Complete", "True"), "Completed", message, now);
    set_condition(status, ("Progressing", "False"), "Completed", message, now);
}

/// A backup in Pull mode whose time is over.
pub fn is_expired(backup: &Value, now: Timestamp) -> bool {
    let created: Timestamp = text(backup, "/metadata/creationTimestamp").parse().unwrap_or(now);
    let stated =
        go_duration(text(backup, "/spec/ttlDuration")).and_then(|ttl| SignedDuration::try_from(ttl).ok());
    now.duration_since(created) >= stated.unwrap_or(DEFAULT_TTL)
}

/// What is left of its time, as its export gets it.
pub fn remaining(backup: &Value, now: Timestamp) -> String {
    let created: Timestamp = text(backup, "/metadata/creationTimestamp").parse().unwrap_or(now);
    let stated =
        go_duration(text(backup, "/spec/ttlDuration")).and_then(|ttl| SignedDuration::try_from(ttl).ok());
    let left = stated.unwrap_or(DEFAULT_TTL) - now.duration_since(created);
    format!("{}s", left.as_secs().max(0))
}

/// What keeps a backup from being begun (`checkPrerequisites`, `verifyBackupTargetPVC`); `None`: nothing.
pub fn obstacle(
    backup: &Value,
    (vm, vmi): (Option<&Value>, Option<&Value>),
    tracker: Option<&Value>,
    scratch: Option<&Value>,
    source: &str,
) -> Option<String> {
    let ns = namespace(backup);
    if vm.is_none() {
        return Some(format!("VM {ns}/{source} doesnt exist"));
    }
    let Some(vmi) = vmi else { return Some(format!("vm {source} is not running, cannot do backup")) };
    if tracking::volumes(vmi).is_empty() {
        return Some(format!("vm {} has no volumes to backup", name(vmi)));
    }
    if tracking::state(vmi) != tracking::ENABLED {
        return Some(format!("vm {} has no ChangedBlockTracking, cannot start backup", name(vmi)));
    }
    if let Some(tracker) = tracker.filter(|tracker| needs_redefinition(tracker)) {
        return Some(format!("Waiting for checkpoint redefinition on tracker {}", name(tracker)));
    }
    let migration = &vmi["status"]["migrationState"];
    if !text(migration, "/startTimestamp").is_empty() && text(migration, "/endTimestamp").is_empty() {
        return Some(format!(
            "vm {} is currently migrating, waiting for migration to complete before starting backup",
            name(vmi)
        ));
    }
    let claim = text(backup, "/spec/pvcName");
    match scratch {
        None => Some(format!("PVC {ns}/{claim} doesnt exist")),
        // The real one returns an error and tries for ever; what is wrong is only in its log.
        Some(claim) if text(claim, "/spec/volumeMode") == "Block" => Some(format!(
            "backup target PVC must be a filesystem PVC, provided pvc {ns}/{} is block",
            name(claim)
        )),
        Some(_) => None,
    }
}

/// A new guest has to be told of the tracker's checkpoint.
pub fn needs_redefinition(tracker: &Value) -> bool {
    tracker.pointer("/status/checkpointRedefinitionRequired") == Some(&Value::Bool(true))
        && !text(tracker, "/status/latestCheckpoint/name").is_empty()
}

/// The checkpoint that a backup builds on (`isIncrementalBackup`).
pub fn since(backup: &Value, tracker: Option<&Value>) -> Option<String> {
    if backup.pointer("/spec/forceFullBackup") == Some(&Value::Bool(true)) {
        return None;
    }
    let name = text(tracker?, "/status/latestCheckpoint/name");
    (!name.is_empty()).then(|| name.to_owned())
}

/// The checkpoint that a backup makes.
pub fn checkpoint(backup: &Value) -> String {
    let created: Timestamp = text(backup, "/metadata/creationTimestamp").parse().unwrap_or_default();
    format!("{}-{}", name(backup), created.strftime("%Y-%m-%d_%H-%M-%S"))
}

/// The endpoints of an export that is ready, in the backup's status (`populateExportLinks`).
pub fn links(status: &mut Value, export: &Value, now: Timestamp) {
    let found = ["external", "internal"].iter().map(|side| &export["status"]["links"][*side]);
    let Some(links) = found.into_iter().find(|links| !list(links, "/backups").is_empty()) else { return };
    if text(export, "/status/phase") != "Ready" || list(status, "/includedVolumes").is_empty() {
        return;
    }
    let mut volumes = list(status, "/includedVolumes").to_vec();
    for volume in &mut volumes {
        let offered = list(links, "/backups").iter().find(|one| one["name"] == volume["volumeName"]);
        for endpoint in offered.map(|one| list(one, "/endpoints")).unwrap_or_default() {
            let key = if endpoint["endpoint"] == "data" { "dataEndpoint" } else { "mapEndpoint" };
            volume[key] = endpoint["url"].clone();
        }
    }
    status["includedVolumes"] = volumes.into();
    status["endpointCert"] = links["cert"].clone();
    let message = "Backup export is ready to pull";
    set_condition(status, ("Progressing", "True"), "ExportReady", message, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:10Z".parse().unwrap()
    }

    #[test]
    fn what_keeps_a_backup_from_beginning_is_said_in_kubevirts_words() {
        let backup = json!({"metadata": {"namespace": "ns", "name": "b"}, "spec": {"pvcName": "scratch"}});
        let vm = json!({});
        let vmi = |state: &str| {
            json!({"metadata": {"name": "web"},
                "spec": {"volumes": [{"name": "root", "persistentVolumeClaim": {"claimName": "c"}}]},
                "status": {"changedBlockTracking": {"state": state}}})
        };
        let tracker = json!({"metadata": {"name": "t"}, "status": {"checkpointRedefinitionRequired": true,
            "latestCheckpoint": {"name": "c1"}}});
        let (tracked, untracked) = (vmi("Enabled"), vmi("PendingRestart"));
        let scratch = json!({"metadata": {"name": "scratch"}, "spec": {"volumeMode": "Filesystem"}});
        let block = json!({"metadata": {"name": "scratch"}, "spec": {"volumeMode": "Block"}});
        for (vm, vmi, tracker, scratch, part) in [
            (None, None, None, None, "VM ns/web doesnt exist"),
            (Some(&vm), None, None, None, "vm web is not running"),
            (Some(&vm), Some(&vm), None, None, "no volumes to backup"),
            (Some(&vm), Some(&untracked), None, None, "no ChangedBlockTracking"),
            (Some(&vm), Some(&tracked), Some(&tracker), None, "checkpoint redefinition on tracker t"),
            (Some(&vm), Some(&tracked), None, None, "PVC ns/scratch doesnt exist"),
            (Some(&vm), Some(&tracked), None, Some(&block), "must be a filesystem PVC"),
        ] {
            let found = obstacle(&backup, (vm, vmi), tracker, scratch, "web").unwrap();
            assert!(found.contains(part), "{found}");
        }
        assert_eq!(obstacle(&backup, (Some(&vm), Some(&tracked)), None, Some(&scratch), "web"), None);
    }

    #[test]
    fn a_backup_builds_on_the_trackers_checkpoint_unless_it_is_forced() {
        let tracker = json!({"status": {"latestCheckpoint": {"name": "c1"}}});
        assert_eq!(since(&json!({"spec": {}}), Some(&tracker)), Some("c1".into()));
        assert_eq!(since(&json!({"spec": {"forceFullBackup": true}}), Some(&tracker)), None);
        assert_eq!(since(&json!({"spec": {}}), Some(&json!({}))), None);
        assert_eq!(since(&json!({"spec": {}}), None), None);
        let backup = json!({"metadata": {"name": "b", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"ttlDuration": "10s"}});
        assert_eq!(checkpoint(&backup), "b-2026-01-01_00-00-00");
        assert!(is_expired(&backup, now()) && remaining(&backup, now()) == "0s");
    }

    #[test]
    fn endpoints_come_with_the_export_and_conditions_keep_their_time() {
        let mut status = json!({"includedVolumes": [{"volumeName": "root"}]});
        let mut export = json!({"status": {"phase": "Pending", "links": {"external": {"cert": "CA", "backups": [
            {"name": "root", "endpoints": [{"endpoint": "data", "url": "d"}, {"endpoint": "map", "url": "m"}]}]}}}});
        links(&mut status, &export, now());
        assert!(status.get("endpointCert").is_none());
        export["status"]["phase"] = "Ready".into();
        links(&mut status, &export, now());
        assert_eq!(status["includedVolumes"][0]["mapEndpoint"], "m");
        assert_eq!(
            (&status["endpointCert"], &status["conditions"][0]["reason"]),
            (&json!("CA"), &json!("ExportReady"))
        );
        let later = now().saturating_add(SignedDuration::from_secs(5)).unwrap();
        set_condition(&mut status, ("Progressing", "True"), "Aborting", "", later);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:10Z", "it is still true");
        completed(&mut status, later);
        assert!(is_terminal(&json!({"status": status})));
    }
}
