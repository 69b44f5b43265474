//! Which claims can be attached now (rule O3). One that is not ready would stall a whole batch:
//! KubeVirt's pod holds the ready volumes, and its status looks for a pod that holds all
//! (storage.go:238-249, v1.9).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::patch::{Addition, Source};
use crate::view::{at, list, text};

/// A claim, as far as it decides whether it can be attached.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claim {
    /// `status.phase`
    pub phase: String,
    /// It is being deleted.
    pub deleting: bool,
    /// The phase of the `DataVolume` that owns it; empty: none does.
    pub data_volume: String,
    /// It binds when a pod uses it, so `Pending` is as it should be.
    pub waits_for_consumer: bool,
    /// Its access modes.
    pub access_modes: Vec<String>,
    /// Who else has it, in words (`VM b`): counts when it can be written on one node only.
    pub held_by: Vec<String>,
}

impl Claim {
    /// Reads a `PersistentVolumeClaim`, and the `DataVolume` of the same name when there is one.
    pub fn read(claim: &Value, data_volume: Option<&Value>, waits_for_consumer: bool) -> Self {
        let strings = |path: &[&str]| {
            list(claim, path).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            phase: text(claim, &["status", "phase"]).to_owned(),
            deleting: at(claim, &["metadata", "deletionTimestamp"]).is_some(),
            data_volume: data_volume
                .map(|volume| text(volume, &["status", "phase"]).to_owned())
                .unwrap_or_default(),
            waits_for_consumer,
            access_modes: strings(&["spec", "accessModes"]),
            held_by: Vec::new(),
        }
    }

    /// Whether only one node may write to it.
    pub fn is_single_node(&self) -> bool {
        !self.access_modes.iter().any(|mode| mode == "ReadWriteMany")
    }

    fn trouble(&self) -> Option<String> {
        if self.deleting {
            return Some("it is being deleted".into());
        }
        if self.is_single_node() && !self.held_by.is_empty() {
            let modes = self.access_modes.join(", ");
            return Some(format!("it is {modes} and {} has it", self.held_by.join(", ")));
        }
        match self.data_volume.as_str() {
            "" | "Succeeded" | "PendingPopulation" => {}
            phase => return Some(format!("its DataVolume is {phase}")),
        }
        let binds_later = self.phase == "Pending" && self.waits_for_consumer;
        (self.phase != "Bound" && !binds_later && self.data_volume != "PendingPopulation")
            .then(|| format!("it is {}", if self.phase.is_empty() { "new" } else { &self.phase }))
    }
}

/// A claim that cannot be attached now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimTrouble {
    /// The volume that wants it.
    pub volume: String,
    /// The claim.
    pub claim: String,
    /// What is wrong.
    pub why: String,
}

/// Parts additions that can go now from those that have to wait outside the batch.
pub(super) fn ready<'w>(
    adds: &[&'w Addition],
    claims: &BTreeMap<String, Claim>,
) -> (Vec<&'w Addition>, Vec<ClaimTrouble>) {
    let (mut ready, mut waiting) = (Vec::new(), Vec::new());
    for addition in adds {
        let (Source::Claim(name) | Source::DataVolume(name)) = &addition.source;
        let trouble = match claims.get(name) {
            Some(claim) => claim.trouble(),
            None => Some("there is no such claim".into()),
        };
        match trouble {
            None => ready.push(*addition),
            Some(why) => {
                waiting.push(ClaimTrouble { volume: addition.name.clone(), claim: name.clone(), why });
            }
        }
    }
    (ready, waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(phase: &str, data_volume: &str) -> Claim {
        Claim {
            phase: phase.into(),
            data_volume: data_volume.into(),
            access_modes: vec!["ReadWriteOnce".into()],
            ..Claim::default()
        }
    }

    #[test]
    fn what_kubevirt_takes_for_ready_is_ready() {
        for (claim, trouble) in [
            (claim("Bound", ""), None),
            (claim("Bound", "Succeeded"), None),
            (claim("Pending", "PendingPopulation"), None),
            (Claim { waits_for_consumer: true, ..claim("Pending", "") }, None),
            (claim("Pending", ""), Some("it is Pending")),
            (claim("", ""), Some("it is new")),
            (claim("Lost", ""), Some("it is Lost")),
            (claim("Bound", "ImportInProgress"), Some("its DataVolume is ImportInProgress")),
            (Claim { deleting: true, ..claim("Bound", "") }, Some("it is being deleted")),
            (
                Claim { held_by: vec!["VM b".into()], ..claim("Bound", "") },
                Some("it is ReadWriteOnce and VM b has it"),
            ),
            (
                Claim {
                    held_by: vec!["VM b".into()],
                    access_modes: vec!["ReadWriteMany".into()],
                    ..claim("Bound", "")
                },
                None,
            ),
        ] {
            assert_eq!(claim.trouble().as_deref(), trouble, "{claim:?}");
        }
    }
}
