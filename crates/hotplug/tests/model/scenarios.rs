//! What is run: a few events from outside in each, so that every order of them is visited.

use handoff::{Driver, Phase, Present, Release, Setup, Volumes};

use super::machine::{Events, Program, Scenario, Strange};

const S1: &str = "S1 no I/O error";
const S2: &str = "S2 every volume in the guest has a pod";
const S4: &str = "S4 no spurious unplug";
const S8: &str = "S8 the set is constant during a migration";
const S3: &str = "S3 allowed deletes leave every volume a pod";
const S7: &str = "S7 no duplicate for good";
const L1: &str = "L1 every request ends";
const L2: &str = "L2 every pod that may go goes";
const L3: &str = "L3 deletions and drains end";
const L6: &str = "L6 one bad volume does not stop others";
const S6: &str = "S6 what must pass passes";
const W6: &str = "W6 no handoff is thrown away for the next change";
const REMOUNT: &str = "no removed volume is mounted again";

fn set(volumes: &[u8]) -> Volumes {
    Volumes::of(volumes)
}

/// `a` is attached, `b` is added.
fn base(name: &'static str, release: Release, driver: Driver) -> Scenario {
    Scenario {
        name,
        setup: Setup::new(release, driver),
        attached: set(&[0]),
        split: false,
        wants: vec![set(&[0, 1])],
        events: Events::default(),
        program: Program::Absent,
        most_pods: 12,
        violates: &[],
    }
}

fn guarded(mut scenario: Scenario) -> Scenario {
    scenario.program = Program::Present(Present::whole(scenario.setup.driver));
    // Older handlers do that by themselves, and no webhook is asked (#18044).
    scenario.violates = if scenario.violates == [REMOUNT] { &[REMOUNT] } else { &[] };
    scenario
}

pub fn unprotected() -> Vec<Scenario> {
    use Driver::{ExclusivePublish, ForceTeardown, PerPublishDevice};
    let delete = Events { deletes: 1, ..Events::default() };
    let mut all = vec![
        Scenario {
            wants: vec![set(&[])],
            violates: &[S1, S2, S3],
            ..base("1.3.1: the last volume is removed", Release::V1_3_1, ForceTeardown)
        },
        Scenario {
            wants: vec![],
            events: Events { deletions: 1, ..Events::default() },
            violates: &[S1],
            ..base("1.3.1: the VM is deleted", Release::V1_3_1, ForceTeardown)
        },
        Scenario {
            wants: vec![],
            events: delete,
            violates: &[S1, S2, S3],
            ..base("main: somebody deletes the pod (W9)", Release::Main, ForceTeardown)
        },
        Scenario {
            events: Events { claim_flaps: 1, ..Events::default() },
            violates: &[S1, S2, S3, S4],
            ..base("main: a claim flaps while another is added (W2)", Release::Main, ForceTeardown)
        },
        Scenario {
            wants: vec![],
            events: Events { kubelet_evictions: 1, ..Events::default() },
            violates: &[L2],
            ..base("main: the kubelet evicts the pod (W5)", Release::Main, ForceTeardown)
        },
        Scenario {
            wants: vec![set(&[0, 1]), set(&[0, 1, 2])],
            violates: &[S4, W6],
            ..base("main: another volume while the first comes in (W7)", Release::Main, ForceTeardown)
        },
        Scenario {
            violates: &[S1, S2, S3],
            ..base("18862: a pending replacement is enough", Release::Pr18862, ForceTeardown)
        },
        Scenario {
            violates: &[L1],
            ..base("main: a driver that publishes once (R1)", Release::Main, ExclusivePublish)
        },
        Scenario {
            violates: &[S1],
            ..base("main: a device for each publication (W11)", Release::Main, PerPublishDevice)
        },
        Scenario {
            setup: Setup { filesystem: set(&[0, 1]), ..Setup::new(Release::Main, ForceTeardown) },
            violates: &[S1],
            ..base("main: filesystem volumes are listed, not mounted", Release::Main, ForceTeardown)
        },
        Scenario {
            attached: set(&[0, 1]),
            wants: vec![set(&[0])],
            violates: &[REMOUNT],
            ..base("1.8: a removed volume is mounted again", Release::V1_8, ForceTeardown)
        },
        Scenario {
            events: Events { migrations: 1, ..Events::default() },
            violates: &[S8],
            ..base("main: a volume is added during a migration", Release::Main, ForceTeardown)
        },
        Scenario {
            attached: set(&[0, 1]),
            wants: vec![set(&[0])],
            events: Events { migrations: 1, ..Events::default() },
            violates: &[S8, L2],
            ..base("main: a migration while a removed volume is held", Release::Main, ForceTeardown)
        },
        Scenario {
            events: Events { careful_deletes: 1, ..Events::default() },
            violates: &[S1, S2, S3],
            ..base("main: a delete that its cache does not know of (W1)", Release::Main, ForceTeardown)
        },
        Scenario {
            attached: set(&[0, 1]),
            split: true,
            wants: vec![set(&[0, 1, 2])],
            violates: &[S1, S2, S3, W6],
            ..base("main: two old pods, only the newest is kept (W3)", Release::Main, ForceTeardown)
        },
        Scenario {
            attached: set(&[]),
            wants: vec![set(&[0]), set(&[0, 1]), set(&[0, 1, 2])],
            violates: &[S4, W6],
            ..base("main: changes faster than a handoff (W6)", Release::Main, ForceTeardown)
        },
        Scenario {
            events: Events { node_losses: 1, ..Events::default() },
            violates: &[],
            ..base("main: the node is lost and fenced", Release::Main, ForceTeardown)
        },
    ];
    for scenario in &mut all {
        scenario.most_pods = 8;
    }
    all
}

/// What our program is for, and every release with what users do every day.
pub fn protected() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = unprotected().into_iter().map(guarded).collect();
    let days: [(&'static str, Release); 6] = [
        ("1.3.1: add, swap, a delete by somebody", Release::V1_3_1),
        ("1.6: add, swap, a delete by somebody", Release::V1_6),
        ("1.8: add, swap, a delete by somebody", Release::V1_8),
        ("1.9.0: add, swap, a delete by somebody", Release::V1_9_0),
        ("main: add, swap, a delete by somebody", Release::Main),
        ("18862: add, swap, a delete by somebody", Release::Pr18862),
    ];
    all.extend(days.into_iter().map(|(name, release)| {
        let older = release < Release::Main && release > Release::V1_3_1;
        Scenario {
            wants: vec![set(&[0, 1]), set(&[1, 2])],
            events: Events { deletes: 1, restarts: 1, ..Events::default() },
            violates: if older { &[REMOUNT] } else { &[] },
            ..guarded(base(name, release, Driver::ForceTeardown))
        }
    }));
    all.push(Scenario {
        wants: vec![set(&[])],
        events: Events { deletions: 1, deletes: 1, ..Events::default() },
        ..guarded(base("1.3.1: the VM is deleted in a handoff", Release::V1_3_1, Driver::ForceTeardown))
    });
    all.push(Scenario {
        setup: Setup { broken: set(&[1]), ..Setup::new(Release::Main, Driver::ForceTeardown) },
        wants: vec![set(&[0, 1, 2])],
        ..guarded(base(
            "main: one bad volume does not stop others (L6)",
            Release::Main,
            Driver::ForceTeardown,
        ))
    });
    all.push(Scenario {
        setup: Setup { stubborn: set(&[0]), ..Setup::new(Release::Main, Driver::ForceTeardown) },
        wants: vec![set(&[1])],
        events: Events { deletes: 1, ..Events::default() },
        ..guarded(base("main: a guest that does not let go", Release::Main, Driver::ForceTeardown))
    });
    for (name, release) in [
        ("main: pinned volumes come and go", Release::Main),
        ("1.8: pinned volumes come and go", Release::V1_8),
    ] {
        all.push(Scenario {
            attached: set(&[]),
            wants: vec![set(&[0]), set(&[0, 1]), set(&[1])],
            events: Events { deletes: 1, ..Events::default() },
            violates: if release < Release::Main { &[REMOUNT] } else { &[] },
            ..guarded(base(name, release, Driver::PerPublishDevice))
        });
    }
    all.push(Scenario {
        wants: vec![set(&[0, 1])],
        events: Events { migrations: 1, deletes: 1, ..Events::default() },
        ..guarded(base("main: pinned volumes and a migration", Release::Main, Driver::PerPublishDevice))
    });
    all.push(Scenario {
        events: Events { namespace_deletions: 1, ..Events::default() },
        // Its controller must never be held up, so guests lose volumes while they flush (W10).
        violates: &[S1],
        ..guarded(base("main: the namespace is deleted", Release::Main, Driver::ForceTeardown))
    });
    let protecting = Program::Present(Present { protect: true, ..Present::whole(Driver::ForceTeardown) });
    all.push(Scenario {
        events: Events { namespace_deletions: 1, deletions: 1, ..Events::default() },
        program: protecting,
        ..guarded(base(
            "main: a protected namespace and its VM are deleted",
            Release::Main,
            Driver::ForceTeardown,
        ))
    });
    all.push(Scenario {
        events: Events { deletes: 2, ..Events::default() },
        ..guarded(base("main: two deletes in a handoff (S3)", Release::Main, Driver::ForceTeardown))
    });
    all
}

/// One part taken away, or another rule put in its place.
pub fn crippled() -> Vec<Scenario> {
    use Driver::ForceTeardown;
    let without = |scenario: Scenario, change: fn(&mut Present)| {
        let mut present = Present::whole(scenario.setup.driver);
        change(&mut present);
        Scenario { program: Program::Present(present), ..scenario }
    };
    let strange = |scenario: Scenario, rule| {
        let present = Present::whole(scenario.setup.driver);
        Scenario { program: Program::Strange(Strange { present, rule }), ..scenario }
    };
    vec![
        without(
            Scenario {
                events: Events { deletes: 2, ..Events::default() },
                violates: &[S1, S2, S3],
                ..base("without grants: two deletes in a handoff (S3)", Release::Main, ForceTeardown)
            },
            |present| present.grants = false,
        ),
        without(
            Scenario {
                wants: vec![set(&[0, 1]), set(&[0, 1, 2])],
                violates: &[S4, W6],
                ..base("without the gate: another volume meanwhile", Release::Main, ForceTeardown)
            },
            |present| present.gate = false,
        ),
        without(
            Scenario {
                events: Events { migrations: 1, ..Events::default() },
                violates: &[S8],
                ..base("without the gate: a volume during a migration", Release::Main, ForceTeardown)
            },
            |present| present.gate = false,
        ),
        without(
            Scenario {
                attached: set(&[0, 1]),
                split: true,
                wants: vec![set(&[0, 1, 2])],
                violates: &[S7, L2],
                ..base(
                    "without healing: a refused delete and a second pod (W8)",
                    Release::Main,
                    ForceTeardown,
                )
            },
            |present| present.heal = false,
        ),
        without(
            Scenario {
                wants: vec![],
                events: Events { kubelet_evictions: 1, ..Events::default() },
                violates: &[L2],
                ..base("without healing: the kubelet evicts the pod", Release::Main, ForceTeardown)
            },
            |present| present.heal = false,
        ),
        without(
            Scenario {
                setup: Setup { broken: set(&[1]), ..Setup::new(Release::Main, ForceTeardown) },
                wants: vec![set(&[0, 1, 2])],
                violates: &[L1, L6],
                ..base("without taking back: one bad volume", Release::Main, ForceTeardown)
            },
            |present| present.take_back = false,
        ),
        without(
            Scenario {
                setup: Setup { filesystem: set(&[0, 1]), ..Setup::new(Release::Main, ForceTeardown) },
                violates: &[S1],
                ..base("without strict cover: filesystem volumes", Release::Main, ForceTeardown)
            },
            |present| {
                present.class.strict = false;
                present.completes_mounts = false;
            },
        ),
        without(
            Scenario {
                setup: Setup { filesystem: set(&[0, 1]), ..Setup::new(Release::Main, ForceTeardown) },
                violates: &[L2],
                ..base("strict cover without completed mounts", Release::Main, ForceTeardown)
            },
            |present| present.completes_mounts = false,
        ),
        without(
            Scenario {
                violates: &[S1],
                ..base("without pin: a device for each publication", Release::Main, Driver::PerPublishDevice)
            },
            |present| present.class.pin = false,
        ),
        strange(
            Scenario {
                wants: vec![set(&[])],
                violates: &[L2],
                ..base("a guard that waits for UnMounted on 1.3.1", Release::V1_3_1, ForceTeardown)
            },
            |world, pod| {
                pod.volumes.iter().all(|volume| {
                    matches!(world.status_of(volume).phase, Phase::UnMountedFromPod | Phase::Absent)
                })
            },
        ),
        strange(
            Scenario {
                wants: vec![],
                events: Events { deletions: 1, ..Events::default() },
                violates: &[S6, L3],
                ..base("a guard that does not ask whether the guest is down", Release::Main, ForceTeardown)
            },
            |world, pod| !pod.volumes.iter().any(|volume| world.status_of(volume).target),
        ),
        strange(
            Scenario {
                wants: vec![],
                events: Events { node_losses: 1, ..Events::default() },
                violates: &[S6, L3],
                ..base("a guard that does not ask whether the node is lost", Release::Main, ForceTeardown)
            },
            |world, pod| !pod.volumes.iter().any(|volume| world.status_of(volume).target),
        ),
        strange(
            Scenario {
                wants: vec![],
                events: Events { namespace_deletions: 1, ..Events::default() },
                violates: &[S6, L3],
                ..base("a guard that is asked by the namespace controller (L3)", Release::Main, ForceTeardown)
            },
            |world, pod| !pod.volumes.iter().any(|volume| world.status_of(volume).target),
        ),
    ]
}
