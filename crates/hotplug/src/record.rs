//! What replicas of the guard remember together: which deletes were granted and may still be
//! under way, and since when something is denied. It stands in an annotation of a Lease, one for
//! each launcher pod, that is written only with the `resourceVersion` that was read: of two
//! replicas that decide at the same time one has to look again, so two deletes can never count
//! each other's pod as cover (write skew).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::policy::Classes;
use crate::view::{AttachmentPod, Instance, Phase, PodVolume, Usage};

/// Entries of one kind that a record holds at the most; a launcher has a handful of pods, and an
/// annotation must not grow without bound.
const MOST: usize = 64;

/// How long a removal is remembered, in seconds: longer than a guest takes that lets go at all.
const FORGET: Seconds = 600;

/// The record of one launcher.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Attachment pods (by uid) whose deletion was allowed, and when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub grants: BTreeMap<String, Seconds>,
    /// Attachment pods (by uid) whose deletion is denied, and since when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub denied: BTreeMap<String, Seconds>,
    /// Since when a change of the volumes is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Seconds>,
    /// Since when a migration is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub departs: Option<Seconds>,
    /// Volumes whose removal was let through, and when.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<String, Seconds>,
    /// Volumes of pinned classes that the launcher has, and the attachment pod (by uid) that each was taken from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub taken: BTreeMap<String, String>,
}

impl Record {
    /// Reads the annotation; one that somebody has broken counts as empty, since it only makes
    /// the guard forget when a denial began.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The text of the annotation.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether a delete of the pod was granted and may still be under way.
    pub fn is_granted(&self, uid: &str, now: Seconds, limit: Seconds) -> bool {
        self.grants.get(uid).is_some_and(|at| now.saturating_sub(*at) <= limit)
    }

    /// Forgets grants that have run out, and denials of pods that are gone. A grant stays when its pod has gone: what another
    /// decision has read may be older than the record that it reads beside it, and show the pod as if it would stay.
    pub fn prune(&mut self, now: Seconds, limit: Seconds, exists: impl Fn(&str) -> bool) {
        self.grants.retain(|_, at| now.saturating_sub(*at) <= limit);
        self.denied.retain(|uid, _| exists(uid));
        self.left.retain(|_, at| now.saturating_sub(*at) <= FORGET);
        while self.left.len() > MOST {
            self.left.pop_first();
        }
        while self.grants.len() > MOST
            && let Some(oldest) = self.grants.iter().min_by_key(|(_, at)| **at).map(|(uid, _)| uid.clone())
        {
            self.grants.remove(&oldest);
        }
        while self.denied.len() > MOST {
            self.denied.pop_first();
        }
    }

    /// Notes that a change of the volumes was let through.
    pub fn pass<'v>(
        &mut self,
        removed: impl Iterator<Item = &'v str>,
        added: impl Iterator<Item = &'v str>,
        now: Seconds,
    ) {
        self.held = None;
        for volume in added {
            self.left.remove(volume);
            // It may be taken anew, from another pod.
            self.taken.remove(volume);
        }
        self.left.extend(removed.map(|volume| (volume.to_owned(), now)));
    }

    /// Notes that a change of the volumes was held back; returns since when it is.
    pub fn hold(&mut self, now: Seconds) -> Seconds {
        *self.held.get_or_insert(now)
    }

    /// Notes that a migration was held back, or let through; returns since when it is held.
    pub fn depart(&mut self, held: bool, now: Seconds) -> Seconds {
        if !held {
            self.departs = None;
            return now;
        }
        *self.departs.get_or_insert(now)
    }

    /// Notes which pod each volume of a pinned class was taken from, where that is certain. Neither `attachPodUID` tells,
    /// which moves on to the replacement while the launcher keeps its device node (mount.go:429-484, v1.9), nor the age of
    /// pods, which has seconds. But virt-handler takes a volume from a ready pod only, and the device goes with that pod: so
    /// when a single ready pod uses a volume that the launcher has, it is the one. `pods` are all of the launcher.
    pub fn learn(&mut self, instance: &Instance<'_>, pods: &[AttachmentPod<'_>], classes: &Classes<'_>) {
        let has = |name: &str| {
            instance.status_of(name).is_some_and(|status| {
                !status.target.is_empty() || matches!(status.phase, Phase::MountedToPod | Phase::Ready)
            })
        };
        self.taken.retain(|volume, pod| has(volume) && pods.iter().any(|one| one.uid == pod));
        if !classes.values().any(|class| class.pin) {
            return;
        }
        let pinned = |claim: &str| classes.get(claim).is_some_and(|class| class.pin);
        for status in &instance.status {
            if self.taken.contains_key(status.name) || self.taken.len() >= MOST || !has(status.name) {
                continue;
            }
            let mut carriers = pods.iter().filter(|pod| {
                let uses = |volume: &PodVolume<'_>| {
                    volume.name == status.name && volume.usage != Usage::Listed && pinned(volume.claim)
                };
                pod.ready && pod.volumes.iter().any(uses)
            });
            if let (Some(pod), None) = (carriers.next(), carriers.next()) {
                self.taken.insert(status.name.to_owned(), pod.uid.to_owned());
            }
        }
    }

    /// Notes that a delete was allowed.
    pub fn grant(&mut self, uid: &str, now: Seconds) {
        self.denied.remove(uid);
        self.grants.insert(uid.to_owned(), now);
    }

    /// Notes that a delete was denied; returns since when it is.
    pub fn deny(&mut self, uid: &str, now: Seconds) -> Seconds {
        *self.denied.entry(uid.to_owned()).or_insert(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_end_and_denials_keep_their_beginning() {
        let mut record = Record::default();
        record.grant("a", 100);
        assert!(record.is_granted("a", 190, 90));
        assert!(!record.is_granted("a", 191, 90));
        assert_eq!(record.deny("b", 100), 100);
        assert_eq!(record.deny("b", 160), 100);
        record.grant("b", 170);
        assert!(record.denied.is_empty());
        record.prune(195, 90, |_| true);
        assert_eq!(record.grants.keys().collect::<Vec<_>>(), ["b"]);
        record.deny("c", 195);
        record.prune(195, 90, |_| false);
        assert!(record.denied.is_empty());
        record.prune(261, 90, |_| false);
        assert_eq!(record, Record::default());
    }

    /// Of three pods the first two may go, one after the other; the third is asked about with a list of before.
    #[test]
    fn a_grant_outlives_its_pod() {
        let mut record = Record::default();
        record.grant("a", 100);
        record.prune(101, 90, |uid| uid != "a");
        record.grant("b", 101);
        assert!(record.is_granted("a", 102, 90) && record.is_granted("b", 102, 90));
    }

    #[test]
    fn the_newest_grants_stay() {
        let mut record = Record::default();
        for pod in 0..=MOST {
            record.grant(&format!("{:03}", 999 - pod), i64::try_from(pod).unwrap());
        }
        record.prune(65, 90, |_| true);
        assert!(record.grants.len() == MOST && !record.grants.contains_key("999"));
    }

    #[test]
    fn the_annotation_is_short_and_survives_damage() {
        let mut record = Record::default();
        assert_eq!(record.text(), "{}");
        record.grant("a", 5);
        record.held = Some(7);
        assert_eq!(record.text(), r#"{"grants":{"a":5},"held":7}"#);
        assert_eq!(Record::parse(&record.text()), record);
        assert_eq!(Record::parse("][ not json"), Record::default());
        assert_eq!(Record::parse(r#"{"future": true}"#), Record::default());
    }

    #[test]
    fn a_record_cannot_grow_without_bound() {
        let mut record = Record::default();
        for pod in 0..1000 {
            record.grant(&pod.to_string(), 1);
            record.deny(&format!("d{pod}"), 1);
        }
        record.prune(1, 90, |_| true);
        assert_eq!((record.grants.len(), record.denied.len()), (MOST, MOST));
    }
}
