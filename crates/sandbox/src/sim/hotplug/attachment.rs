//! Which attachment pods virt-controller creates and deletes (`volume-hotplug.go`). It creates before it deletes, and
//! stops deleting at the first delete that is refused.

use std::sync::Arc;

use apimachinery::tree::Value;

use super::pod::{Content, matches};
use super::{Rules, entry, hotplugged};
use crate::sim::json::{self, is_deleting, text};
use crate::sim::virt_controller::launcher_pod::claim_of;
use crate::sim::virt_controller::vm_status::SyncError;

/// What the controller sees of one VMI.
pub struct Observation<'a> {
    pub vmi: &'a Value,
    /// The launcher pod that serves it.
    pub launcher: &'a Value,
    /// Its attachment pods, in any order.
    pub pods: &'a [Arc<Value>],
    /// Claims of the namespace, by name.
    pub claims: &'a dyn Fn(&str) -> Option<Arc<Value>>,
    /// The phase of the `DataVolume` of a name, if there is one.
    pub data_volumes: &'a dyn Fn(&str) -> Option<String>,
    pub rules: Rules,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// For each of these a pod is created that gets its claim bound, so that CDI can fill it.
    pub triggers: Vec<(&'a Value, Arc<Value>)>,
    /// A pod with these volumes is created.
    pub create: Option<Vec<(&'a Value, Arc<Value>)>>,
    /// These pods are deleted, in this order, until one delete is refused.
    pub delete: Vec<Arc<Value>>,
}

impl Plan<'_> {
    /// What goes into the new pod.
    pub fn contents(&self) -> Vec<Content<'_>> {
        self.create.iter().flatten().map(|(volume, claim)| Content { volume, claim }).collect()
    }
}

/// The current pod is the last that matches; the others are old, newest first (`getActiveAndOldAttachmentPods`).
fn sorted<'p>(
    pods: &'p [Arc<Value>],
    volumes: &[&Value],
    rules: Rules,
) -> (Option<&'p Arc<Value>>, Vec<&'p Arc<Value>>) {
    let is_current = |pod: &&Arc<Value>| matches(pod, volumes) && !(rules.skips_deleted && is_deleting(pod));
    let current = pods.iter().rev().find(is_current);
    let mut old: Vec<&Arc<Value>> = pods.iter().filter(|pod| !is_current(pod)).collect();
    old.sort_by_key(|pod| std::cmp::Reverse(age(pod)));
    (current, old)
}

fn age(pod: &Value) -> (&str, u64) {
    // Of two pods of the same second the one that was written first is the older.
    let version = text(pod, "/metadata/resourceVersion").parse().unwrap_or(0);
    (text(pod, "/metadata/creationTimestamp"), version)
}

/// The pod that matches all hotplugged volumes, which the status is about.
pub fn current<'p>(pods: &'p [Arc<Value>], volumes: &[&Value], rules: Rules) -> Option<&'p Arc<Value>> {
    if volumes.is_empty() { None } else { sorted(pods, volumes, rules).0 }
}

fn phase(pod: &Value) -> &str {
    text(pod, "/status/phase")
}

/// The next step (`handleHotplugVolumes`, `cleanupAttachmentPods`).
///
/// # Errors
/// A claim is not there: then nothing is done for any volume.
pub fn decide<'a>(seen: &Observation<'a>) -> Result<Plan<'a>, SyncError> {
    let volumes = hotplugged(seen.vmi, seen.launcher);
    let settled = match seen.pods {
        [] => volumes.is_empty(),
        [pod] => !volumes.is_empty() && matches(pod, &volumes),
        _ => false,
    };
    if settled {
        return Ok(Plan::default());
    }
    let (mut ready, mut triggers) = (Vec::new(), Vec::new());
    for volume in volumes {
        let name = claim_of(volume).unwrap_or_default();
        let Some(claim) = (seen.claims)(name) else {
            let message = format!("PVC {}/{name} not found", json::namespace(seen.vmi));
            return Err(SyncError { reason: "FailedPvcNotFound", message });
        };
        match readiness(&claim, seen.data_volumes) {
            Readiness::Ready => ready.push((volume, claim)),
            Readiness::FirstConsumer => triggers.push((volume, claim)),
            Readiness::NotYet => {}
        }
    }
    let names: Vec<&Value> = ready.iter().map(|(volume, _)| *volume).collect();
    let (current, old) = sorted(seen.pods, &names, seen.rules);
    let pending = old.iter().any(|pod| phase(pod) == "Pending");
    let creates = current.is_none() && !ready.is_empty() && !pending;
    let replaced = match current.map(|pod| phase(pod)).or(creates.then_some("Pending")) {
        None => false,
        Some("Running") => true,
        Some(phase) => seen.rules.pending_is_enough && !matches!(phase, "Failed" | "Succeeded"),
    };
    let mut plan = Plan { triggers, ..Plan::default() };
    let mut kept = false;
    for pod in old {
        let runs = phase(pod) == "Running" && !is_deleting(pod);
        if !kept && runs && !ready.is_empty() && !replaced && is_needed(pod, seen) {
            kept = true;
            continue;
        }
        if seen.rules.waits_for_unplug && holds_leaving(pod, seen.vmi) {
            continue;
        }
        plan.delete.push(pod.clone());
    }
    plan.create = creates.then_some(ready);
    Ok(plan)
}

/// How far a claim is.
enum Readiness {
    Ready,
    /// CDI fills it when a pod uses it.
    FirstConsumer,
    NotYet,
}

/// A claim of a `DataVolume` is ready when that is (`VolumeReadyToAttachToNode`, types/pvc.go:223); any other when it
/// is there.
fn readiness(claim: &Value, data_volumes: &dyn Fn(&str) -> Option<String>) -> Readiness {
    let owner = json::list(claim, "/metadata/ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true && owner["kind"] == "DataVolume");
    let Some(owner) = owner else { return Readiness::Ready };
    match data_volumes(text(owner, "/name")).as_deref() {
        Some("Succeeded" | "PendingPopulation") => Readiness::Ready,
        Some("WaitForFirstConsumer") => Readiness::FirstConsumer,
        _ => Readiness::NotYet,
    }
}

fn is_held(vmi: &Value, volume: &str) -> bool {
    entry(vmi, volume).is_some_and(|status| matches!(text(status, "/phase"), "Ready" | "MountedToPod"))
}

fn in_spec(vmi: &Value, volume: &str) -> bool {
    json::list(vmi, "/spec/volumes").iter().any(|one| one["name"] == volume)
}

fn names(pod: &Value) -> impl Iterator<Item = &str> {
    json::list(pod, "/spec/volumes")
        .iter()
        .filter(|one| claim_of(one).is_some())
        .map(|one| text(one, "/name"))
}

/// `podContainsVolumesToPreserve`
fn is_needed(pod: &Value, seen: &Observation<'_>) -> bool {
    !seen.rules.keeps_only_what_is_needed
        || names(pod).any(|name| in_spec(seen.vmi, name) || is_held(seen.vmi, name))
}

/// `volumeReadyForPodDelete`: the guest still has a volume that nobody wants any more.
fn holds_leaving(pod: &Value, vmi: &Value) -> bool {
    names(pod).any(|name| !in_spec(vmi, name) && is_held(vmi, name))
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn volume(name: &str) -> Value {
        json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": true}})
    }

    fn vmi(spec: &[&str], status: &[(&str, &str)]) -> Value {
        json!({"metadata": {"namespace": "n"}, "spec": {"volumes": spec.iter().map(|name| volume(name)).collect::<Value>()},
            "status": {"volumeStatus": status.iter().map(|(name, phase)| json!({"name": name, "phase": phase})).collect::<Value>()}})
    }

    fn pod(name: &str, volumes: &[&str], phase: &str) -> Arc<Value> {
        let mut listed = vec![json!({"name": "hotplug-disks"}), json!({"name": "token"})];
        listed.extend(volumes.iter().map(|name| volume(name)));
        let number: u32 = name.bytes().map(u32::from).sum();
        Arc::new(json!({"metadata": {"name": name, "uid": name, "resourceVersion": number.to_string()},
            "spec": {"volumes": listed}, "status": {"phase": phase}}))
    }

    fn planned(vmi: &Value, pods: &[Arc<Value>], rules: Rules) -> (Vec<String>, Vec<String>) {
        let claims = |_: &str| Some(Arc::new(json!({})));
        let seen = Observation {
            vmi,
            launcher: &Value::Null,
            pods,
            claims: &claims,
            data_volumes: &|_| None,
            rules,
        };
        let plan = decide(&seen).unwrap();
        let created =
            plan.create.iter().flatten().map(|(volume, _)| text(volume, "/name").to_owned()).collect();
        (created, plan.delete.iter().map(|pod| json::name(pod).to_owned()).collect())
    }

    /// What is created and deleted, release by release: facts of volume-hotplug.go.
    #[test]
    fn pods_are_replaced_as_each_release_replaces_them() {
        let ready = [("a", "Ready")];
        let (old, new) = (pod("1", &["a"], "Running"), pod("2", &["a", "b"], "Running"));
        let pending = pod("2", &["a", "b"], "Pending");
        let all = [Rules::V1_3, Rules::V1_6, Rules::V1_8, Rules::V1_9, Rules::MAIN, Rules::PR_18862];
        for rules in all {
            let wanted = vmi(&["a", "b"], &ready);
            assert_eq!(planned(&wanted, &[], rules), (vec!["a".into(), "b".into()], vec![]), "{rules:?}");
            let added = planned(&wanted, std::slice::from_ref(&old), rules);
            let early: Vec<String> = if rules.pending_is_enough { vec!["1".into()] } else { vec![] };
            assert_eq!(added, (vec!["a".into(), "b".into()], early.clone()), "{rules:?}");
            assert_eq!(
                planned(&wanted, &[old.clone(), pending.clone()], rules),
                (vec![], early),
                "{rules:?}"
            );
            let done = planned(&wanted, &[old.clone(), new.clone()], rules);
            assert_eq!(done, (vec![], vec!["1".into()]), "Running is enough, ready or not (W4): {rules:?}");
            assert_eq!(planned(&wanted, std::slice::from_ref(&new), rules), (vec![], vec![]), "{rules:?}");
        }
    }

    #[test]
    fn the_last_volume_goes_when_the_guest_has_let_go_from_1_6_on() {
        let (held, gone) = (vmi(&[], &[("a", "Ready")]), vmi(&[], &[("a", "UnMountedFromPod")]));
        let pods = [pod("1", &["a"], "Running")];
        assert_eq!(planned(&held, &pods, Rules::V1_3).1, ["1"]);
        assert_eq!(planned(&held, &pods, Rules::V1_6).1, Vec::<String>::new());
        assert_eq!(planned(&gone, &pods, Rules::V1_6).1, ["1"]);
    }

    #[test]
    fn only_the_newest_running_pod_is_kept_and_none_when_no_claim_is_ready() {
        let wanted = vmi(&["a", "b", "c"], &[("a", "Ready"), ("b", "Ready")]);
        let pods = [pod("1", &["a"], "Running"), pod("2", &["b"], "Running")];
        assert_eq!(planned(&wanted, &pods, Rules::MAIN).1, ["1"], "W3: it may hold what the other does not");
        let owned = json!({"metadata": {"ownerReferences": [{"controller": true, "kind": "DataVolume", "name": "a"}]}});
        let claims = |_: &str| Some(Arc::new(owned.clone()));
        let seen = Observation {
            vmi: &wanted,
            launcher: &Value::Null,
            pods: &pods[..1],
            claims: &claims,
            data_volumes: &|_| Some("ImportInProgress".into()),
            rules: Rules::MAIN,
        };
        let plan = decide(&seen).unwrap();
        assert!(
            plan.create.is_none() && plan.delete.len() == 1,
            "W2: the only pod goes under a running guest"
        );
    }

    #[test]
    fn a_claim_that_waits_for_its_first_consumer_gets_one_each_time() {
        let wanted = vmi(&["a", "b"], &[("a", "Ready")]);
        let owned = json!({"metadata": {"ownerReferences": [{"controller": true, "kind": "DataVolume", "name": "b"}]}});
        let claims = |name: &str| Some(Arc::new(if name == "b" { owned.clone() } else { json!({}) }));
        let pods = [pod("1", &["a"], "Running"), pod("2", &["b"], "Pending")];
        for (phase, triggers) in [("WaitForFirstConsumer", 1), ("ImportInProgress", 0), ("Succeeded", 0)] {
            let seen = Observation {
                vmi: &wanted,
                launcher: &Value::Null,
                pods: &pods,
                claims: &claims,
                data_volumes: &|_| Some(phase.into()),
                rules: Rules::MAIN,
            };
            let plan = decide(&seen).unwrap();
            assert_eq!(plan.triggers.len(), triggers, "{phase}");
            if phase == "WaitForFirstConsumer" {
                let gone: Vec<&str> = plan.delete.iter().map(|pod| json::name(pod)).collect();
                assert_eq!(gone, ["2"], "the trigger pod of the last pass counts as an old attachment pod");
            }
        }
    }

    #[test]
    fn a_failed_pod_that_matches_is_current_for_ever() {
        let wanted = vmi(&["a"], &[("a", "Ready")]);
        assert_eq!(planned(&wanted, &[pod("1", &["a"], "Failed")], Rules::MAIN), (vec![], vec![]));
    }

    #[test]
    fn a_pod_with_another_number_of_volumes_never_matches() {
        let wanted = vmi(&["a"], &[]);
        let mut strange = pod("1", &["a"], "Running").as_ref().clone();
        strange["spec"]["volumes"].as_array_mut().unwrap().pop();
        assert_eq!(planned(&wanted, &[Arc::new(strange)], Rules::MAIN).0, ["a"], "#18801: without a token");
    }

    #[test]
    fn a_pending_pod_keeps_others_from_being_created_and_a_missing_claim_stops_all() {
        let wanted = vmi(&["a", "b"], &[]);
        let pods = [pod("1", &["a"], "Pending")];
        assert_eq!(planned(&wanted, &pods, Rules::MAIN), (vec![], vec!["1".into()]), "W6");
        let seen = Observation {
            vmi: &wanted,
            launcher: &Value::Null,
            pods: &[],
            claims: &|_| None,
            data_volumes: &|_| None,
            rules: Rules::MAIN,
        };
        assert_eq!(decide(&seen).unwrap_err().message, "PVC n/a not found");
    }
}
