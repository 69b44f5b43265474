//! What becomes of virt-controller's own patch of sockets or guest memory (design D1).
//!
//! The patch is **held** by setting the fields back to what they were: virt-controller sees a
//! success, no `Failure` on the VM, and CPU and memory arrive in the same sync; it sends the patch
//! again at every update of the VMI. When the guest has what the patch says, it is let through
//! and **declared**: the same write gets the status fields that say so, and KubeVirt finds nothing
//! to migrate for. The answer follows from the VMI alone, without a look-up: the webhook is called
//! often, and must be cheap.

use serde_json::{Map, Value, json};

use crate::eligibility::{self, Obstacle};
use crate::json::{at, text};
use crate::ledger::{self, End, LEDGER, Ledger, POLICY, Phase, WISH, Wish};
use crate::policy::Policy;
use crate::quantity::{show_bytes, show_cpu};
use crate::size::Size;
use crate::view;

/// What is to be done about one of the two fields.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Ruling {
    /// It does not change.
    Same,
    /// Set it back, and note the wish.
    Hold,
    /// Let it pass, with the status that says so.
    Declare,
    /// Let it pass as it is.
    Pass,
}

/// Why a patch passes as it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Passing {
    /// Neither sockets nor guest memory change.
    Nothing,
    /// In-place resize is not switched on for this VM.
    NotEnabled,
    /// It was given over to KubeVirt.
    Open,
    /// In place is not possible.
    Ineligible(Obstacle),
    /// An annotation of ours cannot be read.
    Foreign(ledger::Foreign),
}

/// The answer to one patch.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Unchanged.
    Pass(Passing),
    /// Changed by these RFC 6902 operations (none when nothing has to change).
    Change {
        /// Sockets.
        sockets: Ruling,
        /// Guest memory.
        guest: Ruling,
        /// The operations.
        operations: Vec<Value>,
    },
}

/// What the ruling depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The policy in force; nothing when the reconciler has not written one.
    pub policy: Option<Policy>,
    /// How far the resize is.
    pub ledger: Option<&'a Ledger>,
    /// The ledger's pod is the one that the guest runs in.
    pub pod_is_active: bool,
    /// A migration has started.
    pub migrating: bool,
}

/// Rules on a change from one size to another: of sockets, and of guest memory.
///
/// # Errors
/// Why it passes as it is.
pub fn judge(old: Size, new: Size, facts: &Facts<'_>) -> Result<(Ruling, Ruling), Passing> {
    if old == new {
        return Err(Passing::Nothing);
    }
    if facts.ledger.is_some_and(|ledger| ledger.phase == Phase::Open) {
        return Err(Passing::Open);
    }
    if !facts.policy.is_some_and(|policy| policy.in_place) {
        return Err(Passing::NotEnabled);
    }
    let declared =
        facts.ledger.and_then(Ledger::declared).filter(|_| facts.pod_is_active && !facts.migrating);
    let rule = |changes: bool, matches: &dyn Fn(&End) -> bool| {
        if !changes {
            Ruling::Same
        } else if declared.is_some_and(matches) {
            Ruling::Declare
        } else {
            Ruling::Hold
        }
    };
    Ok((
        rule(old.sockets != new.sockets, &|end| end.size.sockets == new.sockets),
        rule(old.guest != new.guest, &|end| end.size.guest == new.guest),
    ))
}

/// The answer to an UPDATE of a VMI by virt-controller, from the stored object and the one that
/// would be stored.
pub fn review(old: &Value, new: &Value) -> Verdict {
    match rulings(old, new) {
        Ok((sockets, guest, ledger)) => Verdict::Change {
            sockets,
            guest,
            operations: operations(old, new, (sockets, guest), ledger.as_ref()),
        },
        Err(passing) => Verdict::Pass(passing),
    }
}

fn rulings(old: &Value, new: &Value) -> Result<(Ruling, Ruling, Option<Ledger>), Passing> {
    let (from, to) = (view::spec_size(old), view::spec_size(new));
    let policy = ledger::read::<Policy>(old, POLICY).map_err(Passing::Foreign)?;
    let ledger = ledger::read::<Ledger>(old, LEDGER).map_err(Passing::Foreign)?;
    let facts = Facts {
        policy,
        ledger: ledger.as_ref(),
        pod_is_active: ledger.as_ref().is_some_and(|ledger| is_active(old, &ledger.pod)),
        migrating: eligibility::is_migrating(old),
    };
    let (sockets, guest) = judge(from, to, &facts)?;
    let asked = Size {
        sockets: if sockets == Ruling::Hold { to.sockets } else { from.sockets },
        guest: if guest == Ruling::Hold { to.guest } else { from.guest },
    };
    match eligibility::of_vmi(old, asked).into_iter().find(|obstacle| !obstacle.is_temporary()) {
        Some(obstacle) if [sockets, guest].contains(&Ruling::Hold) => Err(Passing::Ineligible(obstacle)),
        _ => Ok((sockets, guest, ledger)),
    }
}

/// The pod of that uid runs on the VMI's node. A migration's target is on another one.
fn is_active(vmi: &Value, pod: &str) -> bool {
    let node = text(vmi, "/status/nodeName");
    let on = at(vmi, "/status/activePods").and_then(|pods| pods.get(pod)?.as_str());
    !node.is_empty() && on == Some(node)
}

fn operations(
    old: &Value,
    new: &Value,
    (sockets, guest): (Ruling, Ruling),
    ledger: Option<&Ledger>,
) -> Vec<Value> {
    let mut patch = Patch { old, new, operations: Vec::new() };
    let target = ledger.and_then(Ledger::declared);
    match (sockets, target) {
        (Ruling::Hold, _) => {
            patch.restore(&["spec", "domain", "cpu", "sockets"]);
            patch.restore(&["spec", "domain", "resources", "requests", "cpu"]);
            patch.restore(&["spec", "domain", "resources", "limits", "cpu"]);
        }
        (Ruling::Declare, Some(end)) => {
            let topology: Map<String, Value> = ["sockets", "cores", "threads"]
                .iter()
                .filter_map(|key| {
                    Some(((*key).to_owned(), at(new, &format!("/spec/domain/cpu/{key}"))?.clone()))
                })
                .collect();
            patch.set(&["status", "currentCPUTopology"], topology.into());
            patch.overwrite("requests", "cpu", end.asked.cpu_request.map(show_cpu));
            patch.overwrite("limits", "cpu", end.asked.cpu_limit.map(show_cpu));
        }
        _ => {}
    }
    match (guest, target) {
        (Ruling::Hold, _) => {
            patch.restore(&["spec", "domain", "memory", "guest"]);
            patch.restore(&["spec", "domain", "resources", "requests", "memory"]);
            patch.restore(&["spec", "domain", "resources", "limits", "memory"]);
        }
        (Ruling::Declare, Some(end)) => {
            let wanted = at(new, "/spec/domain/memory/guest").cloned().unwrap_or_default();
            patch.set(&["status", "memory", "guestRequested"], wanted);
            // virt-controller's delta is wrong once the guest has grown (race R2).
            patch.overwrite("requests", "memory", end.asked.memory_request.map(show_bytes));
            patch.overwrite("limits", "memory", end.asked.memory_limit.map(show_bytes));
        }
        _ => {}
    }
    if [sockets, guest].contains(&Ruling::Hold) {
        patch.note_wish(sockets == Ruling::Hold, guest == Ruling::Hold);
    }
    patch.operations
}

struct Patch<'a> {
    old: &'a Value,
    new: &'a Value,
    operations: Vec<Value>,
}

impl Patch<'_> {
    fn operation(&mut self, kind: &str, path: &[&str], value: Option<Value>) {
        let path: String =
            path.iter().flat_map(|key| ["/".into(), key.replace('~', "~0").replace('/', "~1")]).collect();
        let mut operation = json!({"op": kind, "path": path});
        if let (Some(value), Some(map)) = (value, operation.as_object_mut()) {
            map.insert("value".into(), value);
        }
        self.operations.push(operation);
    }

    /// Sets a field back to what is stored.
    fn restore(&mut self, path: &[&str]) {
        let pointer = format!("/{}", path.join("/"));
        let (old, new) = (at(self.old, &pointer), at(self.new, &pointer));
        match (old, new) {
            (old, new) if old == new => {}
            (Some(old), _) => self.set(path, old.clone()),
            (None, _) => self.operation("remove", path, None),
        }
    }

    /// Sets a field, with the parents that are missing.
    fn set(&mut self, path: &[&str], value: Value) {
        let mut here = Some(self.new);
        for (depth, key) in path.iter().enumerate() {
            let inner = here.and_then(|here| here.get(key));
            if inner.is_none() && here.is_some() {
                // The rest of the way in one operation.
                let rest = path.get(depth + 1..).unwrap_or_default();
                let nested = rest.iter().rev().fold(value, |inner, key| json!({ *key: inner }));
                return self.operation("add", path.get(..=depth).unwrap_or_default(), Some(nested));
            }
            here = inner;
        }
        if here != Some(&value) {
            self.operation("replace", path, Some(value));
        }
    }

    /// Replaces a resource that the VMI has with the value that belongs to the declared size.
    fn overwrite(&mut self, side: &str, name: &str, value: Option<String>) {
        let path = ["spec", "domain", "resources", side, name];
        if let Some(value) = value
            && at(self.new, &format!("/{}", path.join("/"))).is_some()
        {
            self.set(&path, value.into());
        }
    }

    fn note_wish(&mut self, sockets: bool, guest: bool) {
        let asked = view::spec_size(self.new);
        let noted: Wish = ledger::read(self.old, WISH).ok().flatten().unwrap_or_default();
        let wish = Wish {
            sockets: if sockets { Some(asked.sockets) } else { noted.sockets },
            guest: if guest { Some(asked.guest) } else { noted.guest },
        };
        if let Ok(text) = serde_json::to_string(&wish) {
            self.set(&["metadata", "annotations", WISH], text.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{End, Then};
    use crate::size::{Asked, Compute};

    const GI: u64 = 1 << 30;

    #[allow(clippy::needless_pass_by_value, reason = "short tables")]
    fn vmi(sockets: u32, guest: &str, annotations: Value) -> Value {
        json!({
            "metadata": {"name": "v", "annotations": annotations},
            "spec": {"architecture": "amd64", "domain": {
                "cpu": {"sockets": sockets, "cores": 1, "threads": 1, "maxSockets": 8},
                "memory": {"guest": guest, "maxGuest": "8Gi"},
                "resources": {"requests": {"memory": "1Gi"}}}},
            "status": {"phase": "Running", "nodeName": "node01", "activePods": {"pod-1": "node01"},
                "currentCPUTopology": {"sockets": 2, "cores": 1, "threads": 1},
                "memory": {"guestAtBoot": "1Gi", "guestCurrent": "1Gi", "guestRequested": "1Gi"}},
        })
    }

    fn enabled() -> Value {
        json!({POLICY: serde_json::to_string(&Policy { in_place: true, ..Policy::default() }).unwrap()})
    }

    fn ledger(phase: Phase) -> Ledger {
        let end = |sockets, guest, request| End {
            size: Size { sockets, guest },
            asked: Asked { memory_request: Some(request), ..Asked::default() },
            pod: Compute::default(),
        };
        Ledger {
            phase,
            pod: "pod-1".into(),
            from: end(2, GI, GI),
            to: end(4, 2 * GI, 2 * GI),
            since: 0,
            begun: 0,
            touched: true,
            task: None,
            reason: None,
            then: Then::Forget,
            retry_at: None,
            refusal: None,
        }
    }

    fn with_ledger(phase: Phase) -> Value {
        let mut annotations = enabled();
        annotations[LEDGER] = serde_json::to_string(&ledger(phase)).unwrap().into();
        annotations
    }

    /// Applies the operations, which are `add`, `replace` and `remove` of members of objects.
    fn applied(new: &Value, verdict: &Verdict) -> Value {
        let Verdict::Change { operations, .. } = verdict else { return new.clone() };
        let mut object = new.clone();
        for operation in operations {
            let path = operation["path"].as_str().unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            let key = key.replace("~1", "/").replace("~0", "~");
            let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            match operation["op"].as_str().unwrap() {
                "remove" => drop(parent.remove(&key).unwrap()),
                _ => drop(parent.insert(key, operation["value"].clone())),
            }
        }
        object
    }

    #[test]
    fn a_held_patch_changes_nothing_but_the_wish() {
        let old = vmi(2, "1Gi", enabled());
        let mut new = vmi(4, "1Gi", enabled());
        new["spec"]["domain"]["resources"]["limits"] = json!({"cpu": "4"});
        let verdict = review(&old, &new);
        let mut stored = applied(&new, &verdict);
        assert_eq!(stored["metadata"]["annotations"][WISH], r#"{"sockets":4}"#);
        stored["metadata"]["annotations"].as_object_mut().unwrap().remove(WISH);
        stored["spec"]["domain"]["resources"].as_object_mut().unwrap().remove("limits");
        assert_eq!(stored, old);
    }

    #[test]
    fn memory_after_cpu_adds_to_the_wish_and_a_repeated_patch_is_nothing_new() {
        let mut annotations = enabled();
        annotations[WISH] = r#"{"sockets":4}"#.into();
        let old = vmi(2, "1Gi", annotations.clone());
        let stored = applied(&vmi(2, "2Gi", annotations.clone()), &review(&old, &vmi(2, "2Gi", annotations)));
        assert_eq!(stored["metadata"]["annotations"][WISH], r#"{"sockets":4,"guest":2147483648}"#);
        let mut again = stored.clone();
        again["spec"]["domain"]["memory"]["guest"] = "2Gi".into();
        assert_eq!(applied(&again, &review(&stored, &again)), stored);
    }

    #[test]
    fn a_declared_patch_passes_with_the_status_and_the_right_resources() {
        let old = vmi(2, "1Gi", with_ledger(Phase::Declaring));
        let mut new = vmi(4, "2Gi", with_ledger(Phase::Declaring));
        // R2: virt-controller computed its delta after the guest had grown.
        new["spec"]["domain"]["resources"]["requests"]["memory"] = "1Gi".into();
        let verdict = review(&old, &new);
        let stored = applied(&new, &verdict);
        assert_eq!(stored["spec"]["domain"]["cpu"]["sockets"], 4);
        assert_eq!(stored["spec"]["domain"]["memory"]["guest"], "2Gi");
        assert_eq!(stored["spec"]["domain"]["resources"]["requests"]["memory"], "2Gi");
        assert_eq!(stored["status"]["currentCPUTopology"], json!({"sockets": 4, "cores": 1, "threads": 1}));
        assert_eq!(stored["status"]["memory"]["guestRequested"], "2Gi");
        assert_eq!(stored["status"]["memory"]["guestAtBoot"], "1Gi");
    }

    #[test]
    fn what_is_held_and_what_passes() {
        let hold = |sockets, guest| Ok((sockets, guest));
        let (same, held, declared) = (Ruling::Same, Ruling::Hold, Ruling::Declare);
        let mut moved = with_ledger(Phase::Declaring);
        moved[LEDGER] =
            serde_json::to_string(&Ledger { pod: "gone".into(), ..ledger(Phase::Declaring) }).unwrap().into();
        let mut broken = enabled();
        broken[LEDGER] = "{".into();
        // vCPUs that nobody wants any more: the VMI may say them, because the guest has them.
        let mut stranded = with_ledger(Phase::Stopped);
        let reason = Some(ledger::Reason::new(ledger::Cause::Stranded, ""));
        let four = End { size: Size { sockets: 4, guest: GI }, ..End::default() };
        stranded[LEDGER] =
            serde_json::to_string(&Ledger { reason, from: four, ..ledger(Phase::Stopped) }).unwrap().into();
        for (what, annotations, to, expected) in [
            ("not switched on", json!({}), (4, "1Gi"), Err(Passing::NotEnabled)),
            ("nothing of ours changes", enabled(), (2, "1024Mi"), Err(Passing::Nothing)),
            ("given over", with_ledger(Phase::Open), (4, "2Gi"), Err(Passing::Open)),
            ("asked", enabled(), (4, "1Gi"), hold(held, same)),
            ("under way", with_ledger(Phase::Plugging), (4, "2Gi"), hold(held, held)),
            ("given up", with_ledger(Phase::Stopped), (4, "2Gi"), hold(held, held)),
            ("stranded", stranded.clone(), (4, "2Gi"), hold(declared, held)),
            ("stranded, and more", stranded, (6, "1Gi"), hold(held, same)),
            ("ready", with_ledger(Phase::Declaring), (4, "1Gi"), hold(declared, same)),
            ("ready, and changed again", with_ledger(Phase::Declaring), (6, "2Gi"), hold(held, declared)),
            ("ready, in another pod", moved, (4, "2Gi"), hold(held, held)),
            ("above the most", enabled(), (9, "1Gi"), Err(Passing::Ineligible(Obstacle::AboveMaxSockets(8)))),
        ] {
            let got = match review(&vmi(2, "1Gi", annotations.clone()), &vmi(to.0, to.1, annotations)) {
                Verdict::Change { sockets, guest, .. } => Ok((sockets, guest)),
                Verdict::Pass(passing) => Err(passing),
            };
            assert_eq!(got, expected, "{what}");
        }
        let foreign = review(&vmi(2, "1Gi", broken.clone()), &vmi(4, "1Gi", broken));
        assert!(matches!(foreign, Verdict::Pass(Passing::Foreign(_))));
    }

    #[test]
    fn nothing_is_declared_while_a_migration_runs() {
        let mut old = vmi(2, "1Gi", with_ledger(Phase::Declaring));
        old["status"]["migrationState"] = json!({"startTimestamp": "2026-01-01T00:00:00Z"});
        let new = vmi(4, "1Gi", with_ledger(Phase::Declaring));
        let Verdict::Change { sockets, .. } = review(&old, &new) else { panic!("passed") };
        assert_eq!(sockets, Ruling::Hold);
        assert_eq!(json!(POLICY), "vm-feature-manager.io/resize-policy");
    }

    #[test]
    fn parents_that_are_missing_are_made() {
        let mut old = vmi(2, "1Gi", enabled());
        old["metadata"].as_object_mut().unwrap().remove("annotations");
        let mut patch = Patch { old: &old, new: &old, operations: Vec::new() };
        patch.note_wish(true, false);
        assert_eq!(
            patch.operations,
            [json!({"op": "add", "path": "/metadata/annotations", "value": {WISH: r#"{"sockets":2}"#}})]
        );
    }
}
