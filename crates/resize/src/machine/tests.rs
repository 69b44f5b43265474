//! The machine step by step: what is seen, and what is done about it.

use proptest::prelude::*;

use super::*;
use crate::ledger::{Cause, Then};
use crate::size::Amount;

const GI: u64 = 1 << 30;
const SMALL: Size = Size { sockets: 2, guest: GI };
const LARGE: Size = Size { sockets: 4, guest: 2 * GI };

fn compute(millis: u64, mebibytes: u64) -> Compute {
    let amount = |request| Amount { request, limit: None };
    Compute { cpu: amount(millis), memory: amount(mebibytes << 20) }
}

fn small() -> Compute {
    compute(200, 1320)
}

fn large() -> Compute {
    compute(400, 2360)
}

fn policy(fallback: Fallback) -> Policy {
    Policy { in_place: true, fallback, deadline: 60 }
}

fn asked_for() -> Seen {
    Seen {
        wanted: Some(Wanted { size: LARGE, follows: Follows::default() }),
        vmi: Vmi { size: SMALL, status: SMALL, vcpus_per_socket: 1, migratable: true, ..Vmi::default() },
        pod: Some(Pod { uid: "pod-1".into(), spec: small(), state: Actuation::Done }),
        migrating: false,
        report: None,
        ledger: None,
        wish: Some(Wish { sockets: Some(4), guest: None }),
        obstacles: Vec::new(),
        rules: Rules::default(),
        may_declare: false,
    }
}

fn recorded(step: Step) -> Ledger {
    match step {
        Step::Record(ledger) => ledger,
        other => panic!("{other:?}"),
    }
}

fn in_phase(phase: Phase) -> Seen {
    let seen = asked_for();
    let ledger = recorded(decide(&seen, &policy(Fallback::Migrate), 0));
    let touched = phase != Phase::Preparing;
    let task = (phase == Phase::Plugging).then_some(LARGE);
    let pod = seen.pod.clone().map(|pod| Pod { spec: if touched { large() } else { small() }, ..pod });
    Seen { ledger: Some(Ledger { phase, touched, task, ..ledger }), pod, ..seen }
}

fn with_pod(seen: Seen, spec: Compute, state: Actuation) -> Seen {
    Seen { pod: Some(Pod { uid: "pod-1".into(), spec, state }), ..seen }
}

fn reporting(seen: Seen, vcpus: u32, requested: u64, current: u64) -> Seen {
    let task = seen.ledger.as_ref().and_then(|ledger| ledger.task);
    let report = Report { pod: "pod-1".into(), task, vcpus, requested, current, trouble: None };
    Seen { report: Some(report), ..seen }
}

#[test]
fn a_held_wish_for_one_field_starts_a_resize_of_both() {
    let ledger = recorded(decide(&asked_for(), &policy(Fallback::Migrate), 7));
    assert_eq!((ledger.phase, ledger.since), (Phase::Preparing, 7));
    assert_eq!((ledger.from.pod, ledger.to.pod), (small(), large()));
    assert!(!ledger.touched);
}

#[test]
fn nothing_starts_without_reason() {
    let base = asked_for();
    let obstacle = |one: Obstacle| Seen { obstacles: vec![one], ..base.clone() };
    for (what, seen, expected) in [
        ("not asked by virt-controller", Seen { wish: None, ..base.clone() }, Step::Wait(Waiting::Ask, None)),
        (
            "an older wish",
            Seen { wish: Some(Wish { sockets: Some(3), guest: None }), ..base.clone() },
            Step::Wait(Waiting::Ask, None),
        ),
        ("no launcher", Seen { pod: None, ..base.clone() }, Step::Wait(Waiting::Launcher, None)),
        ("a migration", Seen { migrating: true, ..base.clone() }, Step::Wait(Waiting::Migration, None)),
        ("paused", obstacle(Obstacle::Paused), Step::Wait(Waiting::Obstacle, None)),
        (
            "KubeVirt at it",
            Seen { vmi: Vmi { stock_at_work: true, ..base.vmi }, ..base.clone() },
            Step::Wait(Waiting::KubeVirt, None),
        ),
        (
            "nothing wanted, a wish left over",
            Seen { wanted: Some(Wanted { size: SMALL, follows: Follows::default() }), ..base.clone() },
            Step::Clear,
        ),
        ("no VM", Seen { wanted: None, wish: None, ..base.clone() }, Step::Idle),
    ] {
        assert_eq!(decide(&seen, &policy(Fallback::Migrate), 0), expected, "{what}");
    }
}

#[test]
fn what_cannot_be_done_in_place_goes_to_kubevirt_or_stops() {
    for (migratable, phase) in [(true, Phase::Open), (false, Phase::Stopped)] {
        let base = asked_for();
        let vmi = Vmi { migratable, ..base.vmi };
        let seen = Seen { vmi, obstacles: vec![Obstacle::DedicatedCpus], ..base };
        let ledger = recorded(decide(&seen, &policy(Fallback::Migrate), 0));
        assert_eq!(ledger.phase, phase);
        assert_eq!(ledger.reason.unwrap().cause, Cause::Ineligible);
    }
    let off = Policy { in_place: false, ..policy(Fallback::Migrate) };
    assert_eq!(recorded(decide(&asked_for(), &off, 0)).phase, Phase::Open, "switched off");
}

#[test]
fn what_kubelet_says_meets_the_policy() {
    let seen = |state: Actuation| with_pod(in_phase(Phase::Preparing), large(), state);
    let no = || String::from("no");
    for (state, fallback, now, expected) in [
        (Actuation::Done, Fallback::Migrate, 1, Some((Phase::Plugging, Then::Forget))),
        (Actuation::Pending, Fallback::Migrate, 59, None),
        (Actuation::Pending, Fallback::Migrate, 60, Some((Phase::Returning, Then::Open))),
        (Actuation::Deferred(no()), Fallback::Migrate, 59, None),
        (Actuation::Deferred(no()), Fallback::Migrate, 60, Some((Phase::Returning, Then::Open))),
        (Actuation::Deferred(no()), Fallback::Revert, 60, Some((Phase::Returning, Then::Stop))),
        (Actuation::Deferred(no()), Fallback::Wait, 1_000_000, None),
        (Actuation::Error(no()), Fallback::Wait, 1_000_000, None),
        (Actuation::Error(no()), Fallback::Revert, 60, Some((Phase::Returning, Then::Stop))),
        (Actuation::Infeasible(no()), Fallback::Migrate, 1, Some((Phase::Returning, Then::Open))),
        (Actuation::Infeasible(no()), Fallback::Revert, 1, Some((Phase::Returning, Then::Stop))),
        (Actuation::Infeasible(no()), Fallback::Wait, 1, Some((Phase::Returning, Then::Retry))),
    ] {
        let what = format!("{state:?} {fallback:?} {now}");
        match (decide(&seen(state), &policy(fallback), now), expected) {
            (Step::Record(ledger), Some(expected)) => {
                assert_eq!((ledger.phase, ledger.then), expected, "{what}");
            }
            (Step::Wait(Waiting::Kubelet, until), None) => {
                assert_eq!(until, (fallback != Fallback::Wait).then_some(60), "{what}");
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_refused_pod_resize_keeps_the_words_and_is_tried_again_or_given_up() {
    let mut seen = in_phase(Phase::Preparing);
    seen.ledger = seen.ledger.map(|ledger| ledger.refused("exceeded quota: team, requested: …", 100));
    let wait = decide(&seen, &policy(Fallback::Wait), 200);
    assert_eq!(wait, Step::Wait(Waiting::Quota, Some(100 + RETRY)));
    assert_eq!(decide(&seen, &policy(Fallback::Wait), 100 + RETRY), Step::Resize(large()));
    let back = recorded(decide(&seen, &policy(Fallback::Revert), 101));
    assert_eq!(back.reason.unwrap().to_string(), "Refused: exceeded quota: team, requested: …");
}

#[test]
fn memory_is_plugged_before_vcpus_and_both_have_to_be_there() {
    let prepared = with_pod(in_phase(Phase::Preparing), large(), Actuation::Done);
    let migrate = policy(Fallback::Migrate);
    let ledger = recorded(decide(&prepared, &migrate, 1));
    let memory = Size { sockets: 2, guest: 2 * GI };
    assert_eq!((ledger.task, ledger.touched), (Some(memory), true));
    let plugging = Seen { ledger: Some(ledger), ..prepared };
    assert_eq!(decide(&plugging, &migrate, 1), Step::Wait(Waiting::Agent, Some(61)));
    let slow = reporting(plugging.clone(), 2, 2 * GI, GI);
    assert_eq!(decide(&slow, &migrate, 1), Step::Wait(Waiting::Guest, Some(61)), "requested is not plugged");
    let taken = reporting(plugging, 2, 2 * GI, 2 * GI);
    let ledger = recorded(decide(&taken, &migrate, 1));
    assert_eq!((ledger.phase, ledger.task), (Phase::Plugging, Some(LARGE)));
    let second = Seen { ledger: Some(ledger), ..taken };
    assert_eq!(
        decide(&second, &migrate, 1),
        Step::Wait(Waiting::Agent, Some(61)),
        "the older report is not asked"
    );
    let done = reporting(second, 4, 2 * GI, 2 * GI);
    assert_eq!(recorded(decide(&done, &migrate, 1)).phase, Phase::Declaring);
}

#[test]
fn a_guest_that_says_no_gives_everything_back_first() {
    let late = reporting(in_phase(Phase::Plugging), 2, 2 * GI, GI);
    let revert = policy(Fallback::Revert);
    let ledger = recorded(decide(&late, &revert, 60));
    assert_eq!((ledger.phase, ledger.task), (Phase::Returning, Some(SMALL)));
    let back = Seen { ledger: Some(ledger), ..late };
    assert_eq!(decide(&back, &revert, 61), Step::Wait(Waiting::Agent, None));
    let still = reporting(back.clone(), 2, GI, 2 * GI);
    assert_eq!(decide(&still, &revert, 61), Step::Wait(Waiting::Guest, None));
    let empty = reporting(back, 2, GI, GI);
    assert_eq!(decide(&empty, &revert, 61), Step::Resize(small()));
    let ended = recorded(decide(&with_pod(empty, small(), Actuation::Done), &revert, 62));
    assert_eq!((ended.phase, ended.touched), (Phase::Stopped, false));
}

#[test]
fn vcpus_that_the_guest_has_are_never_taken_back() {
    let seen = in_phase(Phase::Plugging);
    let withdrawn = Seen { wanted: Some(Wanted { size: SMALL, follows: Follows::default() }), ..seen };
    let revert = policy(Fallback::Revert);
    let ledger = recorded(decide(&withdrawn, &revert, 1));
    assert_eq!((ledger.phase, ledger.task), (Phase::Returning, Some(SMALL)));
    let plugged = reporting(Seen { ledger: Some(ledger), ..withdrawn }, 4, GI, GI);
    let stranded = recorded(decide(&plugged, &revert, 2));
    assert!(stranded.is_stranded());
    assert_eq!(stranded.from.pod, compute(400, 1336), "the pod stays large enough for four vCPUs");
}

#[test]
fn the_declaration_ends_it_and_a_decrease_shrinks_the_pod_last() {
    let declared = |pod| {
        let seen = in_phase(Phase::Declaring);
        let vmi = Vmi { size: LARGE, status: LARGE, ..seen.vmi };
        with_pod(Seen { vmi, ..seen }, pod, Actuation::Done)
    };
    let migrate = policy(Fallback::Migrate);
    assert_eq!(decide(&in_phase(Phase::Declaring), &migrate, 1), Step::Wait(Waiting::Declaration, None));
    assert_eq!(decide(&declared(large()), &migrate, 1), Step::Clear);
    let wider = declared(compute(500, 4000));
    let ledger = recorded(decide(&wider, &migrate, 1));
    assert_eq!(ledger.phase, Phase::Trimming);
    assert_eq!(decide(&Seen { ledger: Some(ledger), ..wider }, &migrate, 1), Step::Resize(large()));
}

#[test]
fn another_pod_starts_it_over() {
    let mut seen = in_phase(Phase::Declaring);
    seen.pod = Some(Pod { uid: "pod-2".into(), spec: small(), state: Actuation::Done });
    let ledger = recorded(decide(&seen, &policy(Fallback::Migrate), 5));
    assert_eq!((ledger.phase, ledger.pod.as_str(), ledger.touched), (Phase::Preparing, "pod-2", true));
    let again = decide(&Seen { ledger: Some(ledger), ..seen }, &policy(Fallback::Migrate), 5);
    assert_eq!(again, Step::Resize(large()));
}

#[test]
fn memory_of_a_vm_that_cannot_migrate_is_declared_by_us() {
    let base = in_phase(Phase::Declaring);
    let vmi = Vmi { migratable: false, ..base.vmi };
    let seen = Seen { vmi, may_declare: true, wish: None, ..base };
    let Step::Declare(end) = decide(&seen, &policy(Fallback::Migrate), 1) else { panic!("not declared") };
    assert_eq!(end.size, LARGE);
}

fn sizes() -> impl Strategy<Value = Size> {
    (1_u32..5, 1_u64..5).prop_map(|(sockets, gib)| Size { sockets, guest: gib * GI })
}

fn pods() -> impl Strategy<Value = Pod> {
    let states = prop_oneof![
        Just(Actuation::Done),
        Just(Actuation::Pending),
        Just(Actuation::Deferred("later".into())),
        Just(Actuation::Infeasible("never".into())),
        Just(Actuation::Error("failed".into())),
    ];
    (1_u8..3, 100_u64..500, 1300_u64..5000, states).prop_map(|(uid, cpu, memory, state)| Pod {
        uid: format!("pod-{uid}"),
        spec: compute(cpu, memory),
        state,
    })
}

proptest! {
    /// Whatever stands in the annotations, the step is a write that ends, and a grown guest keeps
    /// its pod: nothing shrinks before a report says that the guest has shrunk.
    #[test]
    fn no_pod_shrinks_under_a_touched_guest(
        wanted in sizes(), size in sizes(), to in sizes(), pod in pods(), phase in 0_usize..7,
        migrating in any::<bool>(), touched in any::<bool>(), now in 0_i64..200,
    ) {
        let phases = [Phase::Preparing, Phase::Plugging, Phase::Declaring, Phase::Trimming,
            Phase::Returning, Phase::Open, Phase::Stopped];
        let phase = *phases.get(phase).unwrap();
        let end = |size: Size, pod| End { size, asked: Asked::default(), pod };
        let ledger = Ledger { phase, touched, from: end(size, small()), to: end(to, large()),
            ..in_phase(Phase::Preparing).ledger.unwrap() };
        let base = asked_for();
        let seen = Seen {
            wanted: Some(Wanted { size: wanted, follows: Follows::default() }),
            vmi: Vmi { size, status: size, ..base.vmi },
            pod: Some(pod.clone()), migrating, ledger: Some(ledger), ..base
        };
        let step = decide(&seen, &policy(Fallback::Revert), now);
        if let Step::Resize(next) = step {
            prop_assert!(next != pod.spec, "a write that changes nothing");
            if touched && phase != Phase::Trimming {
                prop_assert!(next.covers(pod.spec), "{phase:?}: {:?} to {next:?}", pod.spec);
            }
        }
    }

    /// The same picture gives the same step: a restart changes nothing.
    #[test]
    fn recording_a_step_and_looking_again_goes_on(wanted in sizes(), size in sizes()) {
        prop_assume!(wanted != size && wanted.sockets >= size.sockets);
        let base = asked_for();
        let wish = Some(Wish { sockets: Some(wanted.sockets), guest: Some(wanted.guest) });
        let mut seen = Seen {
            wanted: Some(Wanted { size: wanted, follows: Follows::default() }),
            vmi: Vmi { size, status: size, ..base.vmi }, wish, ..base
        };
        // Everybody willing: every wish ends in Clear within a few writes.
        let mut writes = 0;
        let ended = loop {
            writes += 1;
            prop_assert!(writes < 20, "no end");
            let step = decide(&seen, &policy(Fallback::Migrate), 0);
            prop_assert_eq!(&step, &decide(&seen, &policy(Fallback::Migrate), 0));
            match step {
                Step::Record(ledger) => seen.ledger = Some(ledger),
                Step::Resize(spec) => seen = with_pod(seen, spec, Actuation::Done),
                Step::Wait(Waiting::Agent, _) => {
                    let task = seen.ledger.as_ref().unwrap().task.unwrap();
                    seen = reporting(seen, task.sockets, task.guest, task.guest);
                }
                Step::Wait(Waiting::Declaration, _) => {
                    seen.vmi = Vmi { size: wanted, status: wanted, ..seen.vmi };
                }
                other => break other,
            }
        };
        prop_assert_eq!(ended, Step::Clear);
    }
}
