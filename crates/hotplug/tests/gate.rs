//! When a VMI is settled, when its volumes may change, and which pods should go.

mod common;

use common::{NOW, Use, ago, launcher, pod, ready, spec_volume, status, vmi};
use hotplug::gate::{Change, Reason, Verdict, decide, decide_migration};
use hotplug::heal::{self, Ailment, Blocked};
use hotplug::policy::{Class, Classes, Limits};
use hotplug::record::Record;
use hotplug::settle::{Wait, waits};
use hotplug::view::{AttachmentPod, Instance, Launcher};
use serde_json::{Value, json};

fn views(pods: &[Value]) -> Vec<AttachmentPod<'_>> {
    pods.iter().filter_map(AttachmentPod::read).collect()
}

fn waits_of(vmi: &Value, pods: &[Value]) -> Vec<Wait> {
    waits(&Instance::read(vmi), &views(pods))
}

#[test]
fn settled_is_one_ready_pod_with_every_volume_in_the_guest_from_it() {
    let two = pod("old", &[("a", Use::Device), ("b", Use::Mount)]);
    assert_eq!(waits_of(&vmi(&["a", "b"]), &[two]), []);
    assert_eq!(waits_of(&vmi(&[]), &[]), []);
}

#[test]
fn what_is_not_settled_is_said() {
    let one = || pod("old", &[("a", Use::Device)]);
    let with = |change: fn(&mut Value)| {
        let mut pod = one();
        change(&mut pod);
        pod
    };
    let status_of = |volumes: Value| {
        let mut vmi = vmi(&["a"]);
        vmi["status"]["volumeStatus"] = volumes;
        vmi
    };
    let cases: [(&str, Value, Vec<Value>, &str); 11] = [
        ("no pod", vmi(&["a"]), vec![], "KubeVirt has not created an attachment pod yet"),
        ("handoff", vmi(&["a"]), vec![one(), pod("new", &[])], "a handoff between attachment pods old, new"),
        ("left over", vmi(&[]), vec![one()], "attachment pod old is no longer needed and has not gone"),
        (
            "other claims",
            vmi(&["a"]),
            vec![pod("old", &[("a", Use::Device), ("b", Use::Device)])],
            "attachment pod old holds other claims than the VMI; KubeVirt will replace it",
        ),
        (
            "not ready",
            vmi(&["a"]),
            vec![with(|pod| pod["status"]["containerStatuses"][0]["ready"] = false.into())],
            "attachment pod old is not ready: its container is not ready yet",
        ),
        (
            "failed",
            vmi(&["a"]),
            vec![with(|pod| pod["status"]["phase"] = "Failed".into())],
            "attachment pod old is not ready: it has ended, and KubeVirt does not replace it",
        ),
        (
            "on the way in",
            status_of(json!([status("a", "AttachedToNode", "u-old", "")])),
            vec![one()],
            "volume a is AttachedToNode, not Ready",
        ),
        (
            "ready without a device in the guest",
            status_of(json!([status("a", "Ready", "u-old", "")])),
            vec![one()],
            "volume a is Ready, not Ready",
        ),
        (
            "stale",
            status_of(json!([ready("a", "u-gone")])),
            vec![one()],
            "volume a still refers to an attachment pod that is gone",
        ),
        (
            "on the way out",
            status_of(json!([ready("a", "u-old"), ready("b", "u-old")])),
            vec![one()],
            "the guest has not let go of volume b",
        ),
        (
            "out of the guest",
            status_of(json!([ready("a", "u-old"), status("b", "Detaching", "u-old", "")])),
            vec![one()],
            "volume b is Detaching; its attachment pod has to go first",
        ),
    ];
    for (case, vmi, pods, words) in cases {
        let found: Vec<String> = waits_of(&vmi, &pods).iter().map(Wait::words).collect();
        assert_eq!(found, [words], "{case}");
    }
}

#[test]
fn utility_volumes_and_memory_dumps_settle_in_their_own_way() {
    let mut vmi = vmi(&[]);
    vmi["spec"]["utilityVolumes"] = json!([{"name": "u", "claimName": "pvc-u"}]);
    vmi["status"]["volumeStatus"] = json!([status("u", "MountedToPod", "u-old", "")]);
    assert_eq!(waits_of(&vmi, &[pod("old", &[("u", Use::Mount)])]), []);
    let mut vmi = common::vmi(&[]);
    vmi["spec"]["volumes"] = json!([{"name": "d", "memoryDump": {"claimName": "pvc-d"}}]);
    for (phase, settled) in
        [("MemoryDumpInProgress", false), ("MemoryDumpCompleted", true), ("MemoryDumpFailed", true)]
    {
        vmi["status"]["volumeStatus"] = json!([status("d", phase, "u-old", "")]);
        assert_eq!(waits_of(&vmi, &[pod("old", &[("d", Use::Mount)])]).is_empty(), settled, "{phase}");
    }
}

/// A VMI with `a` in the guest gets `b` as well; `change` makes the case.
fn gate(
    change: impl FnOnce(&mut Value, &mut Value, &mut Vec<Value>),
    record: &Record,
    migrating: bool,
) -> Verdict {
    let (mut old, mut new) = (vmi(&["a"]), vmi(&["a"]));
    new["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
    let mut pods = vec![pod("old", &[("a", Use::Device)])];
    change(&mut old, &mut new, &mut pods);
    let (old, new) = (Instance::read(&old), Instance::read(&new));
    let change = Change { old, new, pods: views(&pods), migrating };
    decide(&change, record, &Limits::default(), NOW)
}

fn unsettle(pods: &mut [Value]) {
    pods[0]["status"]["containerStatuses"][0]["ready"] = false.into();
}

#[test]
fn one_change_at_a_time() {
    let none = Record::default();
    assert_eq!(gate(|_, _, _| {}, &none, false), Verdict::Allow(Reason::Settled));
    let Verdict::Hold(hold) = gate(|_, _, pods| unsettle(pods), &none, false) else { panic!("allowed") };
    assert_eq!((hold.since, hold.until, hold.migrating), (NOW, Some(NOW + 120), false));
    assert_eq!(
        hold.message("ns/vm"),
        "the volumes of ns/vm change when the last change has come to rest: attachment pod old is not ready: \
         its container is not ready yet. Held since 2026-01-01T00:00:00Z, until 2026-01-01T00:02:00Z at the \
         latest; it is tried again without anybody's doing"
    );
}

/// A neighbour in the same namespace and on the same node is in the middle of everything that holds a VM: a handoff, a guest
/// that keeps a volume, a migration. Whoever is not it changes its volumes at once.
#[test]
fn a_vm_that_is_held_holds_no_other_one() {
    let of_other = |name: &str, ready: bool| {
        let mut pod = pod(name, &[("a", Use::Device), ("x", Use::Device)]);
        pod["metadata"]["ownerReferences"][0]["uid"] = "l2".into();
        pod["status"]["containerStatuses"][0]["ready"] = ready.into();
        pod
    };
    let pods = [of_other("theirs", true), pod("old", &[("a", Use::Device)]), of_other("theirs-next", false)];
    let migrations = [
        json!({"spec": {"vmiName": "other"}, "status": {"phase": "Running"}}),
        json!({"spec": {"vmiName": "vm"}, "status": {"phase": "Succeeded"}}),
    ];
    let mut other = vmi(&["a"]);
    other["metadata"] = json!({"name": "other", "uid": "v2", "namespace": "ns"});
    other["status"]["volumeStatus"] = json!([ready("a", "u-theirs"), ready("gone", "u-theirs")]);
    let verdict = |old: &Value, launcher: &str| {
        let mut new = old.clone();
        new["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
        let change = Change::among(Instance::read(old), Instance::read(&new), launcher, &pods, &migrations);
        decide(&change, &Record::default(), &Limits::default(), NOW)
    };
    assert_eq!(verdict(&vmi(&["a"]), "l1"), Verdict::Allow(Reason::Settled));
    let Verdict::Hold(hold) = verdict(&other, "l2") else { panic!("allowed") };
    assert!(hold.migrating, "it waits for its own migration");
}

#[test]
fn a_change_is_held_for_a_bounded_time() {
    let held = |ago: i64| {
        let record = Record { held: Some(NOW - ago), ..Record::default() };
        gate(|_, _, pods| unsettle(pods), &record, false)
    };
    assert!(matches!(held(120), Verdict::Hold(_)));
    assert_eq!(held(121), Verdict::Allow(Reason::Overdue));
    // A disk on its way into the guest is waited for, twice as long.
    let arriving = |ago: i64| {
        let record = Record { held: Some(NOW - ago), ..Record::default() };
        let change = |old: &mut Value, _: &mut Value, pods: &mut Vec<Value>| {
            unsettle(pods);
            old["status"]["volumeStatus"] = json!([status("a", "MountedToPod", "u-old", "")]);
        };
        gate(change, &record, false)
    };
    assert!(matches!(arriving(240), Verdict::Hold(_)));
    assert_eq!(arriving(241), Verdict::Allow(Reason::Overdue));
}

/// Up to v1.5 virt-handler unmounts only when the status entry has gone, and a volume that comes
/// back at once is taken for mounted.
#[test]
fn a_volume_comes_back_after_a_moment() {
    let none = |_: &mut Value, _: &mut Value, _: &mut Vec<Value>| {};
    let mut record = Record::default();
    record.pass(["b"].into_iter(), [].into_iter(), NOW - 30);
    let Verdict::Hold(hold) = gate(none, &record, false) else { panic!("allowed") };
    assert_eq!(hold.waits, [Wait::Returning { volume: "b".into() }]);
    assert_eq!(record.hold(NOW - 1), NOW - 1);
    assert!(matches!(gate(none, &record, false), Verdict::Hold(_)));
    record.held = Some(NOW - 2);
    assert_eq!(gate(none, &record, false), Verdict::Allow(Reason::Settled));
    record.pass([].into_iter(), ["b"].into_iter(), NOW);
    assert_eq!(gate(none, &record, false), Verdict::Allow(Reason::Settled));
}

type Case = fn(&mut Value, &mut Value, &mut Vec<Value>);

#[test]
fn what_must_not_wait_does_not() {
    let cases: [(&str, Reason, Case); 8] = [
        ("the same volumes in another order", Reason::Unchanged, |old, new, _| {
            old["spec"]["volumes"] = json!([spec_volume("b"), spec_volume("a")]);
            new["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
        }),
        ("being deleted", Reason::NotRunning, |old, _, _| {
            old["metadata"]["deletionTimestamp"] = ago(1).into();
        }),
        ("not running yet", Reason::NotRunning, |old, _, _| old["status"]["phase"] = "Scheduled".into()),
        ("ended", Reason::NotRunning, |old, _, _| old["status"]["phase"] = "Failed".into()),
        ("volume migration", Reason::VolumeMigration, |old, _, _| {
            old["status"]["migratedVolumes"] = json!([{"volumeName": "a"}]);
        }),
        ("break-glass", Reason::BreakGlass, |old, _, _| {
            old["metadata"]["annotations"]["vm-feature-manager.io/hotplug-break-glass"] = "true".into();
        }),
        ("a claim that never came is taken away", Reason::NeverAttached, |old, new, _| {
            old["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
            old["status"]["volumeStatus"] = json!([ready("a", "u-old"), status("b", "Pending", "", "")]);
            new["spec"]["volumes"] = json!([spec_volume("a")]);
        }),
        ("a claim without any status is taken away", Reason::NeverAttached, |old, new, _| {
            old["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
            new["spec"]["volumes"] = json!([spec_volume("a")]);
        }),
    ];
    for (case, reason, change) in cases {
        let verdict = gate(
            |old, new, pods| {
                unsettle(pods);
                change(old, new, pods);
            },
            &Record::default(),
            false,
        );
        assert_eq!(verdict, Verdict::Allow(reason), "{case}");
    }
}

/// What no guest has leaves at once, but not while another volume is on its way in: that one would be set back and, mounted
/// as it is, unplugged. Not for ever: the volume may never arrive.
#[test]
fn what_no_guest_has_waits_for_a_volume_that_is_arriving() {
    let verdict = |phase: &'static str, pod: &'static str, target: &'static str, held: i64| {
        let change = |old: &mut Value, new: &mut Value, _: &mut Vec<Value>| {
            old["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("never")]);
            old["status"]["volumeStatus"] = json!([status("a", phase, pod, target)]);
            new["spec"]["volumes"] = json!([spec_volume("a")]);
            new["status"] = old["status"].clone();
        };
        let record = Record { held: Some(NOW - held), ..Record::default() };
        gate(change, &record, false)
    };
    let at_once = Verdict::Allow(Reason::NeverAttached);
    for (phase, pod, target) in [
        ("Ready", "u-old", "sda"),
        ("Bound", "", ""),
        ("AttachedToNode", "", ""),
        ("MountedToPod", "", "sda"),
    ] {
        assert_eq!(verdict(phase, pod, target, 0), at_once, "{phase}");
    }
    for (phase, pod, longest) in [("AttachedToNode", "u-old", 120), ("MountedToPod", "u-old", 240)] {
        assert!(matches!(verdict(phase, pod, "", longest), Verdict::Hold(_)), "{phase}");
        assert_eq!(verdict(phase, pod, "", longest + 1), Verdict::Allow(Reason::Overdue), "{phase}");
    }
}

#[test]
fn a_removal_that_a_guest_notices_waits() {
    let verdict = gate(
        |old, new, pods| {
            old["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
            new["spec"]["volumes"] = json!([spec_volume("b")]);
            unsettle(pods);
        },
        &Record::default(),
        false,
    );
    assert!(matches!(verdict, Verdict::Hold(_)));
}

/// S8: the set stays as it is from the target's attachment pod to the end of a migration, however
/// long that takes.
#[test]
fn no_change_during_a_migration() {
    let long_ago = Record { held: Some(NOW - 100_000), ..Record::default() };
    for record in [Record::default(), long_ago] {
        let Verdict::Hold(hold) = gate(|_, _, _| {}, &record, true) else { panic!("allowed") };
        assert!(hold.migrating && hold.until.is_none());
        let running = |old: &mut Value, _: &mut Value, _: &mut Vec<Value>| {
            old["status"]["migrationState"] = json!({"migrationUid": "m", "sourcePod": "launcher"});
        };
        assert!(matches!(gate(running, &record, false), Verdict::Hold(_)));
        let ended = |old: &mut Value, _: &mut Value, _: &mut Vec<Value>| {
            old["status"]["migrationState"] = json!({"migrationUid": "m", "completed": true});
        };
        assert_eq!(gate(ended, &record, false), Verdict::Allow(Reason::Settled));
    }
}

/// A name, pods, and those that should go.
type Healing<'a> = (&'a str, Vec<Value>, Vec<(&'a str, Ailment)>);

#[test]
fn pods_that_kubevirt_leaves_behind_should_go() {
    let heal = |vmi: &Value, launcher: &Value, pods: &[Value]| -> Vec<(String, Ailment)> {
        let found = heal::decide(
            &Instance::read(vmi),
            &Launcher::read(launcher),
            &views(pods),
            &Blocked::default(),
            &Limits::default(),
            NOW,
        );
        found.into_iter().map(|(name, ailment)| (name.to_owned(), ailment)).collect()
    };
    let one = |name: &str| pod(name, &[("a", Use::Device)]);
    let in_phase = |name: &str, phase: &str, age: i64| {
        let mut pod = one(name);
        pod["status"] = json!({"phase": phase});
        pod["metadata"]["creationTimestamp"] = ago(age).into();
        if name == "b-too" {
            pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "pvc-b".into();
        }
        pod
    };
    let running = vmi(&["a"]);
    let up = launcher();
    let cases: [Healing<'_>; 11] = [
        ("all is well", vec![one("old")], vec![]),
        ("a handoff", vec![one("old"), pod("new", &[("a", Use::Device), ("b", Use::Device)])], vec![]),
        ("failed", vec![in_phase("old", "Failed", 5)], vec![("old", Ailment::Ended)]),
        ("pending for a while", vec![in_phase("old", "Pending", 120)], vec![]),
        ("pending for too long, and wanted", vec![in_phase("old", "Pending", 121)], vec![]),
        ("pending for too long", vec![in_phase("b-too", "Pending", 121)], vec![("b-too", Ailment::Stuck)]),
        (
            "a twin that does not serve",
            vec![one("old"), in_phase("dup", "Running", 5)],
            vec![("dup", Ailment::Duplicate)],
        ),
        (
            "twins of which none serves",
            vec![in_phase("x", "Running", 5), in_phase("y", "Running", 5)],
            vec![],
        ),
        (
            "duplicates: the one that the status names stays",
            vec![one("dup"), one("old")],
            vec![("dup", Ailment::Duplicate)],
        ),
        (
            "three of them",
            vec![one("x"), one("old"), one("y")],
            vec![("x", Ailment::Duplicate), ("y", Ailment::Duplicate)],
        ),
        (
            "a failed twin is no duplicate",
            vec![one("old"), in_phase("dup", "Failed", 5)],
            vec![("dup", Ailment::Ended)],
        ),
    ];
    for (case, pods, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(name, why)| (name.to_owned(), why)).collect();
        assert_eq!(heal(&running, &up, &pods), expected, "{case}");
    }
    let mut leaving = running.clone();
    leaving["metadata"]["deletionTimestamp"] = ago(1).into();
    assert!(heal(&leaving, &up, &[in_phase("old", "Failed", 5)]).is_empty());
}

/// The target of a migration is made of the spec: a disk that the guest has beside it makes the migration fail.
#[test]
fn a_migration_waits_for_a_guest_that_has_not_let_go_and_not_for_ever() {
    let decided = |volumes: &[&str], change: fn(&mut Value), held: Option<i64>| {
        let mut vmi = vmi(volumes);
        change(&mut vmi);
        let pods = [pod("old", &[("a", Use::Device)])];
        let record = Record { departs: held, ..Record::default() };
        decide_migration(&Instance::read(&vmi), &views(&pods), &record, &Limits::default(), NOW)
    };
    let removed = |vmi: &mut Value| vmi["spec"]["volumes"] = json!([]);
    assert_eq!(decided(&["a"], |_| {}, None), None, "at rest");
    let held = decided(&["a"], removed, None).expect("the guest has it still");
    assert_eq!((held.leaving.as_slice(), held.until), (&["a".to_owned()][..], NOW + 120));
    assert!(held.message("ns/vm").contains("its guest has not let go of removed volumes a"), "{held:?}");
    assert!(decided(&["a"], removed, Some(NOW - 120)).is_some());
    assert_eq!(decided(&["a"], removed, Some(NOW - 121)), None, "held long enough");
    let let_go = |vmi: &mut Value| {
        vmi["spec"]["volumes"] = json!([]);
        vmi["status"]["volumeStatus"] = json!([status("a", "UnMountedFromPod", "u-old", "")]);
    };
    assert_eq!(decided(&["a"], let_go, None), None);
    let deleted = |vmi: &mut Value| {
        vmi["spec"]["volumes"] = json!([]);
        vmi["metadata"]["deletionTimestamp"] = ago(1).into();
    };
    assert_eq!(decided(&["a"], deleted, None), None);
}

/// R1: KubeVirt keeps the old pod until the new one runs, and the driver keeps the new one from running until the old one
/// has gone. The kubelet has been given the new pod, so it does not unstage the volume in between.
#[test]
fn a_pod_in_the_way_of_its_replacement_goes_where_the_class_says_so() {
    let once = Class { exclusive_publish: true, ..Class::default() };
    let heal =
        |age: i64, class: Class, unmountable: &[(&'static str, &'static str)], change: fn(&mut Value)| {
            let mut vmi = vmi(&["a"]);
            vmi["spec"]["volumes"] = json!([spec_volume("a"), spec_volume("b")]);
            let mut waiting = pod("new", &[("a", Use::Device), ("b", Use::Device)]);
            waiting["status"] = json!({"phase": "Pending"});
            waiting["metadata"]["creationTimestamp"] = ago(age).into();
            change(&mut waiting);
            let pods = [pod("old", &[("a", Use::Device)]), waiting];
            let classes: Classes<'_> = [("pvc-a", class)].into();
            let blocked = Blocked { classes, unmountable: unmountable.to_vec() };
            let (instance, launcher) = (Instance::read(&vmi), launcher());
            let found = heal::decide(
                &instance,
                &Launcher::read(&launcher),
                &views(&pods),
                &blocked,
                &Limits::default(),
                NOW,
            );
            found.into_iter().map(|(name, ailment)| (name.to_owned(), ailment)).collect::<Vec<_>>()
        };
    let named = [("u-new", "a")];
    assert_eq!(heal(16, once, &named, |_| {}), [("old".to_owned(), Ailment::InTheWay)]);
    assert_eq!(heal(15, once, &named, |_| {}), [], "it has not tried long enough");
    assert_eq!(
        heal(16, Class::default(), &named, |_| {}),
        [],
        "nobody has said that the driver is like that"
    );
    assert_eq!(heal(16, once, &[("u-new", "b")], |_| {}), [], "it fails for another volume");
    assert_eq!(heal(16, once, &named, |pod| pod["spec"]["nodeName"] = "".into()), [], "no kubelet has it");
    let other =
        |pod: &mut Value| pod["spec"]["volumes"][1]["persistentVolumeClaim"]["claimName"] = "pvc-c".into();
    assert_eq!(heal(16, once, &named, other), [], "it is not the replacement that is wanted");
}

/// Pins: pods that stay beside each other on purpose are no handoff that one waits for.
#[test]
fn several_pods_that_serve_for_a_while_are_at_rest() {
    let pods = |age: i64, ready: bool| {
        let mut newer = pod("new", &[("a", Use::Device), ("b", Use::Device)]);
        newer["metadata"]["creationTimestamp"] = ago(age).into();
        newer["status"]["containerStatuses"][0]["ready"] = ready.into();
        vec![pod("old", &[("a", Use::Device)]), newer]
    };
    let at_rest = |vmi: &Value, pods: &[Value]| {
        hotplug::settle::is_at_rest_with_several(&Instance::read(vmi), &views(pods), NOW)
    };
    let both = vmi(&["a", "b"]);
    assert!(at_rest(&both, &pods(31, true)));
    assert!(!at_rest(&both, &pods(30, true)), "it may be a handoff");
    assert!(!at_rest(&both, &pods(31, false)));
    assert!(!at_rest(&both, &pods(31, true)[..1]), "one pod is the usual case");
    assert!(!at_rest(&vmi(&["b"]), &pods(31, true)), "no pod has just that");
}
