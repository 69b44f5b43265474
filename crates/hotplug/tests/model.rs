//! Model checking: every order of events of one VM, its attachment pods, KubeVirt, the kubelet, the
//! storage driver and the guest, with the guard, gate and healing that ship, and without them.
//!
//! What happens is the machine of the `handoff` crate; here are the events from outside (how many
//! of each), the properties, and what is expected: with our program nothing is violated, and
//! without it, or with a part of it taken away, the known defects are found. A model that finds
//! nothing wrong in a cluster without our program would prove nothing about one with it.
//!
//! | property | where it is asked | without what it falls |
//! |---|---|---|
//! | S1 no I/O error | here, `exchange`, `once` | guard, strict cover, pin |
//! | S2 a pod for every volume in the guest | here | guard |
//! | S3 allowed deletes leave a pod | here | grants |
//! | S4 no spurious unplug | here | gate |
//! | S5 no claim in guests of two nodes | `exchange` | |
//! | S6 what must pass passes | here | the guard's questions about guest, node and namespace |
//! | S7 no duplicate for good | here | healing |
//! | S8 the set is constant during a migration | here | gate |
//! | L1 every request ends | here | taking back |
//! | L2 every pod that may go goes | here | healing, completed mounts; a guard that waits for `UnMountedFromPod` |
//! | L3 deletions and drains end | here | the exemptions |
//! | L4 an exchange of claims ends | `exchange` | two steps |
//! | L5 no livelock | here (also W6, no handoff is thrown away) | gate |
//! | L6 one bad volume does not stop others | here | taking back |

#![allow(clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "model/machine.rs"]
mod machine;
#[path = "model/scenarios.rs"]
mod scenarios;

use machine::{Outcome, Scenario};

fn check(scenarios: &[Scenario]) {
    let mut wrong = Vec::new();
    for scenario in scenarios {
        let Outcome { states, violated, trace } = scenario.explore();
        let mut expected = scenario.violates.to_vec();
        expected.sort_unstable();
        let verdict = if violated == expected { "as expected" } else { "NOT AS EXPECTED" };
        println!("{states:>9} states  {:<58} violated: {violated:?}  {verdict}", scenario.name);
        if violated != expected {
            wrong.push(format!("{}: expected {expected:?}, found {violated:?}\n{trace}", scenario.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// S1 to S8 and L1 to L6 hold in every release with every driver that the opt-ins name.
#[test]
fn with_our_program_nothing_is_violated() {
    check(&scenarios::protected());
}

/// The defects that the facts list are found when our program is away.
#[test]
fn without_our_program_the_known_defects_are_found() {
    check(&scenarios::unprotected());
}

/// Each part is needed: taken away, the property that it is there for falls.
#[test]
fn a_crippled_program_is_found_out() {
    check(&scenarios::crippled());
}
