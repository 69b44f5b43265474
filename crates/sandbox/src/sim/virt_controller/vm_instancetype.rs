//! Instance types and preferences as the VM controller meets them: whom it tells what of their failures.

use super::vm_status::SyncError;
use super::{COMPONENT, VirtController};
use crate::sim::client::ClientError;
use crate::sim::events::Note;
use crate::sim::instancetype;
use apimachinery::tree::Value;

impl VirtController {
    /// Reads instance types and preferences.
    pub(super) fn finder(&self) -> instancetype::Finder<'_> {
        instancetype::Finder { client: &self.writer.client, who: &self.who }
    }

    /// What the `Failure` condition says about an instance type or a preference that cannot be had.
    pub(super) fn note_instancetype(
        &self,
        vm: &Value,
        failure: instancetype::Error,
    ) -> Result<SyncError, ClientError> {
        use instancetype::{Error, Matcher};
        let message = failure.to_string();
        let reason = match failure {
            Error::Find(_, silence) if silence.code() == 0 => return Err(silence),
            Error::Find(Matcher::Instancetype, _) | Error::Kind(Matcher::Instancetype, _) => {
                "FailedFindInstancetype"
            }
            Error::Find(Matcher::Preference, _) | Error::Kind(Matcher::Preference, _) => {
                "FailedFindPreference"
            }
            Error::Conflict(_) | Error::Store(_) => {
                self.recorder.note(&self.who, COMPONENT, Note::warning(vm, "FailedCreate", message.clone()));
                "FailedCreate"
            }
        };
        Ok(SyncError { reason, message })
    }

    /// The same where the VMI is to be made.
    pub(super) fn note_unstartable(
        &self,
        vm: &Value,
        failure: instancetype::Error,
    ) -> Result<SyncError, ClientError> {
        let why = match failure {
            instancetype::Error::Find(_, silence) if silence.code() == 0 => return Err(silence),
            instancetype::Error::Conflict(fields) => {
                format!("VMI conflicts with instancetype spec in fields: [{}]", fields.join(", "))
            }
            other => other.to_string(),
        };
        let told = format!("Error creating virtual machine instance: Failed to apply instancetype: {why}");
        self.recorder.note(&self.who, COMPONENT, Note::warning(vm, "FailedCreate", told));
        let message = format!("failure while starting VMI: {why}");
        Ok(SyncError { reason: "FailedCreate", message })
    }
}
