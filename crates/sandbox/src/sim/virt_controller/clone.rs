//! Clones: a snapshot of the source, and a restore of it into another VM (`pkg/virt-controller/watch/clone`, v1.9).
//!
//! ```text
//!  (new) ──► SnapshotInProgress ──ready──► RestoreInProgress ──complete──► CreatingTargetVM ──VM there──► Succeeded
//!                    └ a snapshot as source begins with the restore           claims bound: snapshot and restore go
//! ```

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::snapshot::state;
use super::{Caches, PassError};
use crate::sim::events::{Note, Recorder};
use crate::sim::identity::Identity;
use crate::sim::json::{self, list, map, text};
use crate::sim::queue::Queue;
use crate::sim::resource::{RESTORES, SNAPSHOTS};
use crate::sim::write::{Op, Write, Writer};

const COMPONENT: &str = "clone-controller";
const WORKERS: usize = 4;

/// The controller.
pub struct Clones {
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    caches: Caches,
    queue: Queue,
}

/// What a pass found out.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "what the real controller keeps apart, `syncInfoType`")]
struct Found {
    snapshot: Option<String>,
    snapshot_ready: bool,
    restore: Option<String>,
    restore_ready: bool,
    target: Option<String>,
    target_there: bool,
    claims_bound: bool,
    /// Why it waits, and the event of that.
    pending: Option<(&'static str, String)>,
    /// Why it cannot be.
    failing: Option<(&'static str, String)>,
    /// Why the pass is to be tried again.
    error: Option<String>,
}

impl Found {
    fn stops(&self) -> bool {
        self.error.is_some() || self.failing.is_some()
    }
}

impl Clones {
    /// Starts it.
    pub fn start(writer: Writer, recorder: Recorder, caches: &Caches, stop: &CancellationToken) {
        let clones = Arc::new(Self {
            who: Identity::virt_controller(),
            writer,
            recorder,
            caches: caches.clone(),
            queue: Queue::default(),
        });
        let me = clones.clone();
        caches.clones.on_change(move |change| me.queue.add(change.key));
        for cache in [&caches.snapshots, &caches.restores] {
            let me = clones.clone();
            cache.on_change(move |change| {
                let object = change.object();
                let owners = list(object, "/metadata/ownerReferences");
                if let Some(owner) = owners.iter().find(|one| one["kind"] == "VirtualMachineClone") {
                    me.queue.add(&json::join_key(json::namespace(object), text(owner, "/name")));
                }
                me.add_named(object);
            });
        }
        let me = clones.clone();
        caches.vms.on_change(move |change| {
            if change.new.is_none() || change.old.is_none() || me.has_clones() {
                me.add_named(change.object());
            }
        });
        let me = clones.clone();
        caches.storage.claims.on_change(move |change| {
            let claim = change.object();
            if json::annotation(claim, super::snapshot::RESTORE_NAME).is_some() {
                me.add_all(json::namespace(claim));
            }
        });
        let queue = clones.queue.clone();
        queue.run("vmclone", WORKERS, stop, move |key| {
            let clones = clones.clone();
            async move { clones.reconcile(&key).await }
        });
    }

    fn has_clones(&self) -> bool {
        !self.caches.clones.indexed(ALL).is_empty()
    }

    fn add_all(&self, namespace: &str) {
        for clone in self.caches.clones.indexed(ALL) {
            if json::namespace(&clone) == namespace {
                self.queue.add(&json::key(&clone));
            }
        }
    }

    /// Clones from or into an object.
    fn add_named(&self, object: &Value) {
        for clone in self.caches.clones.indexed(ALL) {
            let named = ["/spec/source/name", "/spec/target/name"]
                .iter()
                .any(|pointer| text(&clone, pointer) == json::name(object));
            if named && json::namespace(&clone) == json::namespace(object) {
                self.queue.add(&json::key(&clone));
            }
        }
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, PassError> {
        let Some(clone) = self.caches.clones.get(key) else { return Ok(None) };
        if text(&clone, "/status/phase") == "Succeeded" {
            let target = json::join_key(json::namespace(&clone), text(&clone, "/status/targetName"));
            if self.caches.vms.get(&target).is_none() {
                if !json::is_deleting(&clone) {
                    let write = Write::to(self.caches.clones.resource(), &clone, "", Op::Delete(Value::Null));
                    match self.writer.write(&self.who, &write).await {
                        Err(error) if error.code() != 404 => return Err(error.into()),
                        _ => {}
                    }
                }
                return Ok(None);
            }
        }
        let found = self.sync(&clone).await?;
        let now = self.writer.client.now();
        let status = status(&clone, &found, now);
        if let Some((event, why)) = found.pending.as_ref().or(found.failing.as_ref()) {
            self.note(&clone, event, why.clone());
        }
        if clone.get("status") != Some(&status) {
            let mut new = clone.as_ref().clone();
            new["status"] = status;
            let write = Write::to(self.caches.clones.resource(), &clone, "status", Op::Update(new));
            self.writer.write(&self.who, &write).await?;
        }
        match found.error {
            Some(why) => Err(PassError::Sync(why)),
            None => Ok(None),
        }
    }

    async fn sync(&self, clone: &Value) -> Result<Found, PassError> {
        let namespace = json::namespace(clone);
        let source = text(clone, "/spec/source/name");
        let key = json::join_key(namespace, source);
        let kind = text(clone, "/spec/source/kind");
        let mut snapshot_name = text(clone, "/status/snapshotName").to_owned();
        let mut vm = None;
        let is_there = match kind {
            "VirtualMachine" => {
                vm = self.caches.vms.get(&key);
                vm.is_some()
            }
            "VirtualMachineSnapshot" => {
                source.clone_into(&mut snapshot_name);
                self.caches.snapshots.get(&key).is_some()
            }
            other => {
                let error =
                    format!("clone {} is defined with an unknown source type {other}", json::name(clone));
                return Ok(Found { error: Some(error), ..Found::default() });
            }
        };
        let phase = text(clone, "/status/phase");
        if !is_there && phase != "Succeeded" {
            let why = format!("Source doesnt exist: {kind} {key}");
            return Ok(Found { pending: Some(("SourceDoesNotExist", why)), ..Found::default() });
        }
        if let Some(vm) = &vm
            && needs_backend_storage(vm)
        {
            let why = format!("Clone of source with backendstorage is not supported: VM {key}");
            return Ok(Found {
                failing: Some(("SourceVMWithBackendStorageInvalid", why)),
                ..Found::default()
            });
        }
        let mut found = Found::default();
        if matches!(phase, "" | "SnapshotInProgress") {
            if let Some(vm) = vm.as_ref().filter(|_| snapshot_name.is_empty()) {
                return self.take_snapshot(clone, vm).await;
            }
            self.look_at_snapshot(clone, &snapshot_name, &mut found);
            if found.stops() || !found.snapshot_ready {
                return Ok(found);
            }
        }
        if matches!(phase, "" | "SnapshotInProgress" | "RestoreInProgress") {
            if text(clone, "/status/restoreName").is_empty() {
                return self.make_restore(clone, &snapshot_name, found).await;
            }
            self.look_at_restore(clone, &mut found);
            if found.stops() || !found.restore_ready {
                return Ok(found);
            }
        }
        if phase != "Succeeded" && phase != "Failed" {
            let name = text(clone, "/spec/target/name");
            if self.caches.vms.get(&json::join_key(namespace, name)).is_none() {
                let why = format!("target VM {name} is not created yet for clone {}", json::name(clone));
                found.error = Some(why);
                return Ok(found);
            }
            self.note(
                clone,
                "TargetVMCreated",
                format!("created target VM {name} for clone {}", json::name(clone)),
            );
            found.target_there = true;
            found.target = Some(name.to_owned());
        }
        if phase != "Failed" && !text(clone, "/status/restoreName").is_empty() {
            self.tidy_up(clone, kind == "VirtualMachine", &mut found).await?;
        }
        Ok(found)
    }

    async fn take_snapshot(&self, clone: &Value, vm: &Value) -> Result<Found, PassError> {
        let mut problems = Vec::new();
        for volume in list(vm, "/spec/template/spec/volumes") {
            if super::launcher_pod::disk_claim_of(volume).is_none() {
                continue;
            }
            let name = text(volume, "/name");
            match list(vm, "/status/volumeSnapshotStatuses").iter().find(|one| one["name"] == name) {
                Some(status) if status["enabled"] == true => {}
                Some(_) => problems.push(format!("Virtual Machine volume {name} does not support snapshots")),
                None => problems.push(format!("Virtual Machine volume {name} snapshot support unknown")),
            }
        }
        if !problems.is_empty() {
            let pending = Some(("VMVolumeSnapshotsInvalid", problems.join("\n")));
            return Ok(Found { pending, ..Found::default() });
        }
        let name = format!("tmp-snapshot-{}", json::uid(clone));
        let snapshot = json!({"apiVersion": SNAPSHOTS.api_version(), "kind": SNAPSHOTS.kind,
            "metadata": {"name": name, "namespace": json::namespace(clone), "ownerReferences": [self.owner(clone)]},
            "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": json::name(vm)}}});
        let mut found = Found::default();
        match self.writer.write(&self.who, &Write::create(&SNAPSHOTS, snapshot)).await {
            Ok(_) => {
                let message = format!("created snapshot {name} for clone {}", json::name(clone));
                self.note(clone, "SnapshotCreated", message);
            }
            Err(error) if error.code() == 409 => {}
            Err(error) => {
                let why = format!(
                    "failed creating snapshot {name} for clone {}: {}",
                    json::name(clone),
                    error.message()
                );
                found.error = Some(why);
                return Ok(found);
            }
        }
        found.snapshot = Some(name);
        Ok(found)
    }

    fn look_at_snapshot(&self, clone: &Value, name: &str, found: &mut Found) {
        let key = json::join_key(json::namespace(clone), name);
        let Some(snapshot) = self.caches.snapshots.get(&key) else {
            found.error = Some(format!("snapshot {name} is not created yet for clone {}", json::name(clone)));
            return;
        };
        if !state::is_ready(&snapshot) {
            return;
        }
        let content_name = state::content_name(&snapshot);
        let content = self.caches.contents.get(&json::join_key(json::namespace(clone), &content_name));
        let problem = match &content {
            None => Some(format!(
                "snapshot content {content_name} in namespace {} does not exist",
                json::namespace(clone)
            )),
            Some(content) => {
                let lacking = not_backed_up(content, name);
                (!lacking.is_empty()).then(|| lacking.join("\n"))
            }
        };
        if let Some(why) = problem {
            found.failing = Some(("SnapshotContentInvalid", why));
            return;
        }
        self.note(
            clone,
            "SnapshotReady",
            format!("snapshot {name} for clone {} is ready to use", json::name(clone)),
        );
        found.snapshot_ready = true;
    }

    async fn make_restore(
        &self,
        clone: &Value,
        snapshot_name: &str,
        mut found: Found,
    ) -> Result<Found, PassError> {
        let snapshot = self.caches.snapshots.get(&json::join_key(json::namespace(clone), snapshot_name));
        let Some(snapshot) = snapshot else {
            let why = format!("snapshot {snapshot_name} does not exist anymore");
            found.failing = Some(("SnapshotDeleted", why));
            return Ok(found);
        };
        let content_key = json::join_key(json::namespace(clone), &state::content_name(&snapshot));
        let Some(content) = self.caches.contents.get(&content_key) else {
            found.error = Some(format!(
                "cannot get VM manifest from snapshot: snapshot content {content_key} does not exist"
            ));
            return Ok(found);
        };
        let vm = &content["spec"]["source"]["virtualMachine"];
        let name = format!("tmp-restore-{}", json::uid(clone));
        let mut spec = json!({"target": clone["spec"]["target"], "virtualMachineSnapshotName": snapshot_name,
            "patches": patches(vm, &clone["spec"])});
        if let Some(policy) = clone["spec"].get("volumeNamePolicy") {
            spec["volumeRestorePolicy"] = policy.clone();
        }
        let restore = json!({"apiVersion": RESTORES.api_version(), "kind": RESTORES.kind,
            "metadata": {"name": name, "namespace": json::namespace(clone), "ownerReferences": [self.owner(clone)]},
            "spec": spec});
        match self.writer.write(&self.who, &Write::create(&RESTORES, restore)).await {
            Ok(_) => {
                let message = format!("created restore {name} for clone {}", json::name(clone));
                self.note(clone, "RestoreCreated", message);
            }
            Err(error) if error.code() == 409 => {}
            Err(error) => {
                let why = format!(
                    "failed creating restore {name} for clone {}: {}",
                    json::name(clone),
                    error.message()
                );
                self.recorder.note(
                    &self.who,
                    COMPONENT,
                    Note::warning(clone, "RestoreCreationFailed", why.as_str()),
                );
                found.error = Some(why);
                return Ok(found);
            }
        }
        found.restore = Some(name);
        Ok(found)
    }

    fn look_at_restore(&self, clone: &Value, found: &mut Found) {
        let name = text(clone, "/status/restoreName");
        let Some(restore) = self.caches.restores.get(&json::join_key(json::namespace(clone), name)) else {
            found.error = Some(format!("restore {name} is not created yet for clone {}", json::name(clone)));
            return;
        };
        if state::is_restoring(&restore) {
            return;
        }
        self.note(
            clone,
            "RestoreReady",
            format!("restore {name} for clone {} is ready to use", json::name(clone)),
        );
        found.restore_ready = true;
        found.target = Some(text(&restore, "/spec/target/name").to_owned());
    }

    /// When the claims are bound, the restore goes, and the snapshot that was made for it.
    async fn tidy_up(&self, clone: &Value, own_snapshot: bool, found: &mut Found) -> Result<(), PassError> {
        let namespace = json::namespace(clone);
        let name = text(clone, "/status/restoreName");
        let Some(restore) = self.caches.restores.get(&json::join_key(namespace, name)) else {
            found.claims_bound = true;
            return Ok(());
        };
        for one in list(&restore, "/status/restores") {
            let key = json::join_key(namespace, text(one, "/persistentVolumeClaimName"));
            let claim = self.caches.storage.claims.get(&key);
            if claim.is_none_or(|claim| text(&claim, "/status/phase") != "Bound") {
                return Ok(());
            }
        }
        self.note(clone, "PVCBound", format!("all PVC for clone {} are bound", json::name(clone)));
        found.claims_bound = true;
        let snapshot = text(clone, "/status/snapshotName");
        let doomed = [(&RESTORES, name), (&SNAPSHOTS, if own_snapshot { snapshot } else { "" })];
        for (resource, name) in doomed.into_iter().filter(|(_, name)| !name.is_empty()) {
            let object = json!({"metadata": {"namespace": namespace, "name": name}});
            match self
                .writer
                .write(&self.who, &Write::to(resource, &object, "", Op::Delete(Value::Null)))
                .await
            {
                Err(error) if error.code() != 404 => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn owner(&self, clone: &Value) -> Value {
        json!({"apiVersion": self.caches.clones.resource().api_version(), "kind": "VirtualMachineClone",
            "name": json::name(clone), "uid": json::uid(clone), "controller": true, "blockOwnerDeletion": true})
    }

    fn note(&self, clone: &Value, reason: &'static str, message: String) {
        self.recorder.note(&self.who, COMPONENT, Note::normal(clone, reason, message));
    }
}

/// The second key of every clone in its cache.
pub const ALL: &str = "all";

/// Persistent TPM or EFI variables, which live in a claim of their own.
pub fn needs_backend_storage(vm: &Value) -> bool {
    let domain = vm.pointer("/spec/template/spec/domain").unwrap_or(&Value::Null);
    domain.pointer("/devices/tpm/persistent") == Some(&Value::Bool(true))
        || domain.pointer("/firmware/bootloader/efi/persistent") == Some(&Value::Bool(true))
}

fn not_backed_up(content: &Value, snapshot: &str) -> Vec<String> {
    let vm = &content["spec"]["source"]["virtualMachine"];
    list(vm, "/spec/template/spec/volumes")
        .iter()
        .filter(|volume| super::launcher_pod::disk_claim_of(volume).is_some())
        .filter(|volume| {
            !list(content, "/spec/volumeBackups").iter().any(|one| one["volumeName"] == volume["name"])
        })
        .map(|volume| format!("volume {} is not backed up in snapshot {snapshot}", text(volume, "/name")))
        .collect()
}

/// The patches that make a VM another one (`generatePatches`), each as text.
fn patches(vm: &Value, spec: &Value) -> Vec<Value> {
    let mut patches = Vec::new();
    let mut replace =
        |path: String, value: &str| patches.push(json!({"op": "replace", "path": path, "value": value}));
    let domain = "/spec/template/spec/domain";
    for (index, interface) in list(vm, "/spec/template/spec/domain/devices/interfaces").iter().enumerate() {
        let name = text(interface, "/name");
        let mac = map(spec, "/newMacAddresses").and_then(|all| all.get(name)).and_then(Value::as_str);
        replace(format!("{domain}/devices/interfaces/{index}/macAddress"), mac.unwrap_or_default());
    }
    let firmware = vm.pointer("/spec/template/spec/domain/firmware").is_some_and(Value::is_object);
    if firmware {
        replace(format!("{domain}/firmware/serial"), text(spec, "/newSMBiosSerial"));
    }
    let nothing = Map::new();
    for (filters, pointer, path) in [
        ("/labelFilters", "/metadata/labels", "/metadata/labels"),
        ("/annotationFilters", "/metadata/annotations", "/metadata/annotations"),
        ("/template/labelFilters", "/spec/template/metadata/labels", "/spec/template/metadata/labels"),
        (
            "/template/annotationFilters",
            "/spec/template/metadata/annotations",
            "/spec/template/metadata/annotations",
        ),
    ] {
        let Some(filters) = spec.pointer(filters).and_then(Value::as_array) else { continue };
        let filters: Vec<&str> = filters.iter().filter_map(Value::as_str).collect();
        for key in map(vm, pointer).unwrap_or(&nothing).keys() {
            let kept_anyway = key == "restore.kubevirt.io/lastRestoreUID";
            if !kept_anyway && !passes(&filters, key) {
                let key = key.replace("~", "~0").replace("/", "~1");
                patches.push(json!({"op": "remove", "path": format!("{path}/{key}")}));
            }
        }
    }
    if firmware {
        patches.push(json!({"op": "replace", "path": format!("{domain}/firmware/uuid"), "value": ""}));
    }
    let own = list(spec, "/patches").iter().cloned();
    patches.into_iter().map(|patch| patch.to_string().into()).chain(own).collect()
}

/// Whether a key is kept: one filter matches it, and none of those with `!` does. `*` stands for anything; the real
/// filters are regular expressions that match anywhere.
fn passes(filters: &[&str], key: &str) -> bool {
    let wanted = filters.iter().filter(|filter| !filter.starts_with('!')).any(|filter| matches(filter, key));
    wanted && !filters.iter().filter_map(|filter| filter.strip_prefix('!')).any(|filter| matches(filter, key))
}

fn matches(filter: &str, key: &str) -> bool {
    // Of regular expressions, what people write here: `*`, `.*`, `^` and `$`.
    let anchored = |side: bool| if side { "" } else { "*" };
    let plain = filter.trim_start_matches('^').trim_end_matches('$').replace(".*", "*");
    let pattern = format!("{}{plain}{}", anchored(filter.starts_with('^')), anchored(filter.ends_with('$')));
    wildcard(&pattern, key)
}

fn wildcard(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let Some((last, middle)) = parts.split_last() else { return true };
    for part in middle {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

/// The status that follows (`updateStatus`).
fn status(clone: &Value, found: &Found, now: Timestamp) -> Value {
    let mut status = clone.get("status").filter(|one| one.is_object()).cloned().unwrap_or_else(|| json!({}));
    let mut conditions = list(&status, "/conditions").to_vec();
    let mut set = |kind: &str, on: bool, reason: &str| {
        json::update_condition(
            &mut conditions,
            json!({"type": kind, "status": if on { "True" } else { "False" }, "reason": reason, "lastProbeTime": null,
                "lastTransitionTime": json::time(now)}),
        );
    };
    let mut phase = text(&status, "/phase").to_owned();
    if let Some((_, why)) = &found.pending {
        set("Progressing", false, "Pending");
        set("Ready", false, why);
    } else if let Some((_, why)) = &found.failing {
        phase = "Failed".into();
        set("Progressing", false, "Failed");
        set("Ready", false, why);
    } else if phase != "Succeeded" && phase != "Failed" {
        set("Progressing", true, "Still processing");
        set("Ready", false, "Still processing");
    }
    if phase.is_empty() && found.pending.is_none() {
        phase = "SnapshotInProgress".into();
    }
    if phase == "SnapshotInProgress" {
        if let Some(name) = &found.snapshot {
            status["snapshotName"] = name.as_str().into();
        }
        if found.snapshot_ready {
            phase = "RestoreInProgress".into();
        }
    }
    if phase == "RestoreInProgress" {
        if let Some(name) = &found.restore {
            status["restoreName"] = name.as_str().into();
        }
        if found.restore_ready {
            phase = "CreatingTargetVM".into();
        }
    }
    if phase == "CreatingTargetVM" {
        if let Some(name) = &found.target {
            status["targetName"] = name.as_str().into();
        }
        if found.target_there {
            phase = "Succeeded".into();
        }
    }
    if phase == "Succeeded" {
        set("Progressing", false, "Ready");
        set("Ready", true, "Ready");
    }
    if found.claims_bound {
        json::remove(&mut status, &["snapshotName"]);
        json::remove(&mut status, &["restoreName"]);
    }
    if !phase.is_empty() {
        status["phase"] = phase.into();
    }
    status["conditions"] = conditions.into();
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_keep_what_matches_and_a_negation_wins() {
        for (filters, key, kept) in [
            (&["*"][..], "a/b", true),
            (&["*", "!some/key*"][..], "some/key.x", false),
            (&["*", "!some/key*"][..], "other", true),
            (&["first*"][..], "my-first-one", true),
            (&["^first"][..], "my-first-one", false),
            (&["app"][..], "app", true),
            (&[][..], "app", false),
        ] {
            assert_eq!(passes(filters, key), kept, "{filters:?} {key}");
        }
    }

    #[test]
    fn a_clone_gets_another_identity() {
        let vm = json!({"metadata": {"labels": {"app": "x", "a/b": "y"}}, "spec": {"template": {"metadata": {"labels": {"t": "1"}},
            "spec": {"domain": {"firmware": {"uuid": "u", "serial": "s"},
                "devices": {"interfaces": [{"name": "one", "macAddress": "02:00"}, {"name": "two"}]}}}}}});
        let spec = json!({"newMacAddresses": {"two": "02:00:00:00:00:02"}, "newSMBiosSerial": "new", "labelFilters": ["*", "!a/*"],
            "patches": ["{\"op\":\"add\",\"path\":\"/spec/x\",\"value\":1}"]});
        let all = patches(&vm, &spec);
        let all: Vec<Value> =
            all.iter().map(|one| serde_json::from_str(one.as_str().unwrap()).unwrap()).collect();
        let seen: Vec<(String, String)> = all
            .iter()
            .map(|one| {
                (
                    text(one, "/path").rsplit("domain").next().unwrap().to_owned(),
                    text(one, "/value").to_owned(),
                )
            })
            .collect();
        let expect = [
            ("/devices/interfaces/0/macAddress", ""),
            ("/devices/interfaces/1/macAddress", "02:00:00:00:00:02"),
            ("/firmware/serial", "new"),
            ("/metadata/labels/a~1b", ""),
            ("/firmware/uuid", ""),
            ("/spec/x", ""),
        ];
        let expect: Vec<(String, String)> =
            expect.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(seen, expect);
    }

    #[test]
    fn phases_go_on_as_far_as_a_pass_has_found() {
        let now = Timestamp::UNIX_EPOCH;
        let step = |old: &Value, found: &Found| {
            let status = status(&json!({"status": old}), found, now);
            (text(&status, "/phase").to_owned(), status)
        };
        let (phase, one) = step(&Value::Null, &Found { snapshot: Some("s".into()), ..Found::default() });
        assert_eq!(phase, "SnapshotInProgress");
        let (phase, two) =
            step(&one, &Found { snapshot_ready: true, restore: Some("r".into()), ..Found::default() });
        assert_eq!((phase.as_str(), text(&two, "/restoreName")), ("RestoreInProgress", "r"));
        let done = Found {
            restore_ready: true,
            target: Some("t".into()),
            target_there: true,
            claims_bound: true,
            ..Found::default()
        };
        let (phase, three) = step(&two, &done);
        assert_eq!(
            (phase.as_str(), text(&three, "/targetName"), three.get("restoreName")),
            ("Succeeded", "t", None)
        );
        assert_eq!(step(&three, &Found::default()).1, three, "a finished clone stays as it is");
        let (phase, waits) =
            step(&Value::Null, &Found { pending: Some(("E", "why".into())), ..Found::default() });
        assert_eq!((phase.as_str(), text(&waits, "/conditions/1/reason")), ("", "why"));
    }
}
