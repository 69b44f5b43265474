//! The parts of two nodes in a migration: the guest leaves one, and comes to the other.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use apimachinery::tree::Value;
use jiff::Timestamp;

use super::{COMPONENT, VirtHandler, newest_on};
use crate::sim::client::ClientError;
use crate::sim::events::Note;
use crate::sim::guest::nics::Nics;
use crate::sim::hotplug::handler;
use crate::sim::identity::Identity;
use crate::sim::json::{self, is_deleting, text, time};
use crate::sim::live_migration::{self, SourceStep};
use crate::sim::resource::VMIS;
use crate::sim::virt_controller::migration::decide::TARGET_NODE_LABEL;
use crate::sim::virt_controller::vmi::pod_is_down;
use crate::sim::write::{Op, Write};

impl VirtHandler {
    /// This node's part when a guest comes to it.
    pub(super) async fn as_target(&self, vmi: &Value) -> Result<(), ClientError> {
        let node = json::label(vmi, TARGET_NODE_LABEL);
        if node.is_empty() || !self.nodes.iter().any(|one| one == node) {
            return Ok(());
        }
        let pods = self.pods.indexed(json::uid(vmi));
        let Some(pod) = newest_on(&pods, node) else { return Ok(()) };
        let attachment = text(vmi, "/status/migrationState/targetAttachmentPodUID");
        if !attachment.is_empty() {
            self.hotplug.with_disks(json::uid(pod), |disks| {
                self.look(vmi, node, self.writer.client.now(), |seen| {
                    handler::mount_target(seen, attachment, disks);
                });
            });
        }
        let address = text(pod, "/status/hostIP");
        let domain = self.launchers.domain(json::uid(pod));
        if let Some(updated) = live_migration::target(vmi, node, address, domain, self.writer.client.now()) {
            if live_migration::completes(vmi, &updated) {
                self.launchers
                    .guest(json::uid(pod), |guest| live_migration::plug_guest(&mut guest.machine, vmi));
            }
            let who = Identity::virt_handler(node);
            let write = Write::to(&VMIS, vmi, "", Op::Update(updated));
            let answer = self.writer.write(&who, &write).await?;
            self.note_migration(&who, vmi, &answer);
        }
        Ok(())
    }

    /// This node's part when a guest leaves it: how long until the next look.
    pub(super) async fn as_source(
        &self,
        key: &str,
        who: &Identity,
        node: &str,
        pods: &[Arc<Value>],
    ) -> Result<Option<Duration>, ClientError> {
        let Some(vmi) = self.vmis.get(key) else { return Ok(None) };
        let migration = text(&vmi, "/status/migrationState/migrationUid").to_owned();
        if migration.is_empty() {
            return Ok(None);
        }
        let named = |pod: &&Arc<Value>| text(&vmi, "/status/migrationState/targetPod") == json::name(pod);
        let target = pods.iter().find(named).filter(|pod| !pod_is_down(pod) && !is_deleting(pod));
        let now = self.writer.client.now();
        let began = self.transfers().get(&migration).copied();
        match live_migration::source(&vmi, node, began, target.is_some(), now) {
            SourceStep::Nothing => {
                self.transfers().remove(&migration);
                Ok(None)
            }
            SourceStep::Write(updated) => {
                let write = Write::to(&VMIS, &vmi, "", Op::Update(updated));
                let answer = self.writer.write(who, &write).await?;
                self.note_migration(who, &vmi, &answer);
                Ok(Some(Duration::ZERO))
            }
            SourceStep::Wait(left) => {
                self.transfers().entry(migration).or_insert(now);
                Ok(Some(left.max(Duration::from_millis(1))))
            }
            SourceStep::HandOver => {
                let source = newest_on(pods, node);
                if let (Some(source), Some(target)) = (source, target) {
                    let copied = self.hotplug.copy_moving(&vmi).await;
                    let moved = copied.and_then(|()| {
                        self.move_disks(json::uid(source), json::uid(target))
                            .map_err(|volume| format!("the target domain has no disk for volume {volume}"))
                    });
                    if let Err(why) = moved {
                        let write = Write::to(&VMIS, &vmi, "", Op::Update(failed(&vmi, &why, now)));
                        let answer = self.writer.write(who, &write).await?;
                        self.note_migration(who, &vmi, &answer);
                        return Ok(Some(Duration::ZERO));
                    }
                    self.launchers.hand_over(json::uid(source), json::uid(target), &json::key(target));
                    self.hotplug.forget(json::uid(source));
                    // The target pod was made for the interfaces that the VMI has now.
                    self.launchers.guest(json::uid(target), |guest| guest.nics = Nics::of(&vmi));
                }
                Ok(None)
            }
        }
    }

    /// Gives the target what the guest has. `Err`: the volume that the target lacks.
    fn move_disks(&self, source: &str, target: &str) -> Result<(), String> {
        let guest = self.hotplug.with_disks(source, |disks| disks.clone());
        self.hotplug.with_disks(target, |disks| {
            *disks = handler::moved(&guest, disks)?;
            Ok(())
        })
    }

    fn transfers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_migration(&self, who: &Identity, before: &Value, vmi: &Value) {
        let state = |vmi: &Value, key: &str| vmi["status"]["migrationState"][key].clone();
        let set = |key: &str| state(before, key).is_null() && !state(vmi, key).is_null();
        let note = if set("targetNodeAddress") {
            let address = text(vmi, "/status/migrationState/targetNodeAddress");
            let message = format!("Migration Target is listening at {address}, on ports: 49152");
            Note::normal(vmi, "PreparingTarget", message)
        } else if set("failed") {
            let message = format!(
                "VirtualMachineInstance migration uid {} failed. reason:{}",
                text(vmi, "/status/migrationState/migrationUid"),
                text(vmi, "/status/migrationState/failureReason")
            );
            Note::warning(vmi, "Migrated", message)
        } else if set("endTimestamp") {
            let node = text(vmi, "/status/nodeName");
            Note::normal(vmi, "Migrated", format!("The VirtualMachineInstance migrated to node {node}."))
        } else if set("startTimestamp") {
            Note::normal(vmi, "Migrating", "VirtualMachineInstance is migrating.")
        } else {
            return;
        };
        self.recorder.note(who, COMPONENT, note);
    }
}

/// A migration that QEMU cannot carry out, such as one whose target lacks a disk of the guest.
fn failed(vmi: &Value, why: &str, now: Timestamp) -> Value {
    let mut failed = vmi.clone();
    let state = &mut failed["status"]["migrationState"];
    state["failed"] = true.into();
    state["completed"] = true.into();
    state["endTimestamp"] = time(now).into();
    state["failureReason"] = format!("Live migration failed: {why}").into();
    failed
}
