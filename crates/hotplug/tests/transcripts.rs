//! The decisions, over what a real virt-controller did (KubeVirt main, Kubernetes 1.36): at each delete of an attachment pod
//! the guard is asked, at each change of the VMI's volumes the gate, with the objects as they were at that moment.
//!
//! The recordings are not part of the repository: `GOLDEN_VIRT_CONTROLLER` names their directory
//! (`../shared/golden/virt-controller` beside the workspace otherwise); where there is none, the test says so and passes.

#![allow(clippy::expect_used, reason = "a recording that cannot be read ends the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use hotplug::gate::{self, Change};
use hotplug::guard::{self, Observation, Verdict};
use hotplug::policy::Limits;
use hotplug::record::Record;
use hotplug::settle::is_settled;
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use serde_json::{Value, json};

/// Objects as they were, by kind and name.
type World = BTreeMap<(String, String), Value>;

fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_VIRT_CONTROLLER").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/virt-controller"));
    named.or(Some(usual)).filter(|path| path.join("e3-batch.stock.watch.jsonl").is_file())
}

/// Sets or removes what a recorded difference says.
fn apply(object: &mut Value, path: &str, new: &Value) {
    let mut at = object;
    let mut names: Vec<&str> = path.split('/').skip(1).collect();
    let last = names.pop().unwrap_or_default();
    for name in names {
        at = match at {
            Value::Array(list) => &mut list[name.parse::<usize>().unwrap_or_default()],
            other => &mut other[name],
        };
    }
    match at {
        Value::Array(list) => list[last.parse::<usize>().unwrap_or_default()] = new.clone(),
        Value::Object(map) if new.is_null() => {
            map.remove(last);
        }
        other => other[last] = new.clone(),
    }
}

fn of_kind<'w>(world: &'w World, kind: &str) -> Vec<&'w Value> {
    world.iter().filter(|((one, _), _)| one == kind).map(|(_, object)| object).collect()
}

/// What the guard says about a delete of this pod now.
fn guarded(world: &World, name: &str) -> String {
    let pods = of_kind(world, "pod");
    let launcher = pods.iter().find(|pod| pod["metadata"]["labels"]["kubevirt.io"] == "virt-launcher");
    let vmi = of_kind(world, "vmi");
    let node = json!({"metadata": {"name": "node"}, "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let pod = AttachmentPod::read(&world[&("pod".to_owned(), name.to_owned())]).expect("an attachment pod");
    // The time of the recording, so that nothing is overdue.
    let now = pod.created + 5;
    let seen = Observation {
        pod,
        namespace_terminating: false,
        namespace_break_glass: false,
        launcher: launcher.map(|pod| Launcher::read(pod)),
        instance: vmi.first().map(|vmi| Instance::read(vmi)),
        siblings: pods.iter().filter_map(|pod| AttachmentPod::read(pod)).collect(),
        node: Some(Node::read(&node)),
        classes: BTreeMap::new(),
        unmountable: Vec::new(),
    };
    match guard::decide(&seen, &Record::default(), &Limits::default(), now) {
        Verdict::Allow(reason) => format!("allow {reason:?}"),
        Verdict::Deny(denial) => {
            let lost: Vec<String> =
                denial.volumes.iter().map(|lost| format!("{} {:?}", lost.volume, lost.loss)).collect();
            format!("deny {}", lost.join(", "))
        }
    }
}

/// What the gate says about this change of the VMI's volumes.
fn gated(world: &World, old: &Value, new: &Value) -> String {
    let pods = of_kind(world, "pod");
    let pods: Vec<AttachmentPod<'_>> = pods.iter().filter_map(|pod| AttachmentPod::read(pod)).collect();
    let settled = is_settled(&Instance::read(old), &pods);
    let change = Change { old: Instance::read(old), new: Instance::read(new), pods, migrating: false };
    let verdict = gate::decide(&change, &Record::default(), &Limits::default(), 0);
    let word = match verdict {
        gate::Verdict::Allow(reason) => format!("pass {reason:?}"),
        gate::Verdict::Hold(hold) => format!("hold for {} things", hold.waits.len()),
    };
    assert_eq!(settled, !word.starts_with("hold") && !word.ends_with("NeverAttached"), "{word}");
    word
}

fn replay(lines: &str) -> (Vec<String>, Vec<String>) {
    let (mut world, mut deletes, mut changes) = (World::new(), Vec::new(), Vec::new());
    let mut asked: Vec<String> = Vec::new();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).expect("a line of the recording");
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let (kind, name) = (word("kind"), word("name"));
        let key = (kind.clone(), name.clone());
        let hotplug = name.starts_with("hp-volume-");
        match event["type"].as_str() {
            Some("ADDED") => {
                world.insert(key, event["object"].clone());
            }
            Some("DELETED") => {
                if hotplug && !asked.contains(&name) {
                    deletes.push(guarded(&world, &name));
                    asked.push(name);
                }
                world.remove(&key);
            }
            _ => {
                let old = world.get(&key).cloned().unwrap_or_default();
                let mut new = old.clone();
                for difference in event["diff"].as_array().into_iter().flatten() {
                    apply(&mut new, difference[0].as_str().unwrap_or_default(), &difference[2]);
                }
                let goes = new["metadata"].get("deletionTimestamp").is_some();
                if hotplug && goes && !asked.contains(&name) {
                    deletes.push(guarded(&world, &name));
                    asked.push(name);
                }
                if kind == "vmi" && old["spec"]["volumes"] != new["spec"]["volumes"] {
                    changes.push(gated(&world, &old, &new));
                }
                world.insert(key, new);
            }
        }
    }
    (deletes, changes)
}

#[test]
fn the_recorded_deletes_and_changes_are_judged_as_they_should_have_been() {
    let Some(directory) = recordings() else {
        println!("SKIPPED: no recordings of virt-controller; GOLDEN_VIRT_CONTROLLER names their directory");
        return;
    };
    let (allow, settled) = ("allow Covered".to_owned(), "pass Settled".to_owned());
    for (name, deletes, changes) in [
        // One pod for four volumes; it goes when the guest has let go of all.
        ("e3-batch", vec![allow.clone()], vec![settled.clone(); 2]),
        // W4: the old pod went at Running, and the guest was paused. That is the delete to be held back.
        ("e3-notready", vec!["deny d1 NotReady".to_owned()], vec![settled.clone(); 2]),
        // W5: a pod that has ended may always go.
        ("e3-failedpod", vec!["allow Ended".to_owned()], vec![settled.clone()]),
    ] {
        let lines = std::fs::read_to_string(directory.join(format!("{name}.stock.watch.jsonl"))).expect(name);
        assert_eq!(replay(&lines), (deletes, changes), "{name}");
    }
    // Eight changes, 0.9 s apart: three pods were made and thrown away before they ran. The gate lets the first change through,
    // and holds those that come while it is under way.
    let lines = std::fs::read_to_string(directory.join("e3-rapid.stock.watch.jsonl")).expect("e3-rapid");
    let (deletes, changes) = replay(&lines);
    assert!(deletes.iter().all(|verdict| verdict.starts_with("allow")), "{deletes:?}");
    assert_eq!((deletes.len(), changes.len()), (6, 8), "{deletes:?} {changes:?}");
    assert_eq!(changes.iter().filter(|word| word.starts_with("hold")).count(), 6, "{changes:?}");
}
