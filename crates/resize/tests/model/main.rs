//! The step machine that ships, in every order that a cluster can bring about: the reconciler dies
//! between any two writes or acts on what it saw a while ago; the agent comes and goes and carries
//! tasks out late; kubelet defers, refuses or fails; quota says no; the webhook is away; the owner
//! changes the wish or takes it back; a drain moves the VM in the middle; the VM is deleted.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::manual_assert,
    reason = "a broken property ends the search with its way"
)]
#![allow(clippy::struct_excessive_bools, clippy::option_option, reason = "a state is a list of facts")]

mod search;
mod walk;
mod world;

use resize::{Fallback, Size};
use search::explore;
use walk::live;
use world::{Kubelet, Setting, size};

/// Explores one setting and returns the number of states.
fn check(what: &str, setting: Setting) -> usize {
    let found = explore(setting);
    assert!(found.quiet > 0, "{what}: nothing ever settles");
    println!("{what}: {} states, {} of them quiet", found.states, found.quiet);
    found.states
}

const BACK: &[Size] = &[size(2, 1)];
const LESS_MEMORY: &[Size] = &[size(4, 1)];
const FEWER_SOCKETS: &[Size] = &[size(3, 2)];
const THERE_AND_BACK: &[Size] = &[size(2, 1), size(4, 2)];
const FALLBACKS: [Fallback; 3] = [Fallback::Wait, Fallback::Migrate, Fallback::Revert];

/// Memory of a VM that cannot migrate needs the grant.
fn possible(migratable: bool) -> Size {
    if migratable { size(4, 2) } else { size(4, 1) }
}

#[test]
fn a_resize_ends_fully_new_or_fully_old_whatever_kubelet_says() {
    let mut states = 0;
    for kubelet in [Kubelet::Willing, Kubelet::Defers, Kubelet::Infeasible, Kubelet::Fails, Kubelet::AnyOf] {
        for fallback in FALLBACKS {
            for migratable in [true, false] {
                let setting = Setting {
                    kubelet,
                    fallback,
                    migratable,
                    wish: possible(migratable),
                    ticks: 4,
                    ..Setting::default()
                };
                states += check(&format!("{kubelet:?}, {fallback:?}, migratable {migratable}"), setting);
            }
        }
    }
    println!("{states} states");
}

#[test]
fn a_resize_ends_fully_new_or_fully_old_when_agent_webhook_and_quota_come_and_go() {
    let mut states = 0;
    for fallback in FALLBACKS {
        for migratable in [true, false] {
            let wish = possible(migratable);
            for (outages, quota) in [(1, false), (0, true)] {
                let ticks = 1 + u8::from(quota);
                let setting =
                    Setting { wish, fallback, migratable, outages, quota, ticks, ..Setting::default() };
                let what = format!("{outages} outages, quota {quota}, {fallback:?}, migratable {migratable}");
                states += check(&what, setting);
            }
        }
    }
    println!("{states} states");
}

#[test]
fn a_resize_ends_fully_new_or_fully_old_when_the_owner_changes_the_wish() {
    let mut states = 0;
    for change in [BACK, LESS_MEMORY, FEWER_SOCKETS, THERE_AND_BACK] {
        for fallback in [Fallback::Migrate, Fallback::Revert] {
            for kubelet in [Kubelet::Willing, Kubelet::Infeasible] {
                let setting = Setting { changes: change, fallback, kubelet, ticks: 1, ..Setting::default() };
                states += check(&format!("{change:?}, {fallback:?}, {kubelet:?}"), setting);
            }
        }
    }
    println!("{states} states");
}

#[test]
fn a_migration_in_the_middle_ends_in_a_pod_that_is_large_enough() {
    let mut states = 0;
    for fallback in FALLBACKS {
        for changes in [&[], BACK] {
            let setting = Setting { migrations: 1, fallback, changes, ticks: 1, ..Setting::default() };
            states += check(&format!("drain, {fallback:?}, {changes:?}"), setting);
        }
    }
    println!("{states} states");
}

#[test]
fn memory_goes_down_in_the_reverse_order() {
    let mut states = 0;
    for (to, guest_keeps_memory) in [(size(2, 1), false), (size(4, 1), false), (size(2, 1), true)] {
        for fallback in FALLBACKS {
            let setting = Setting {
                start: size(2, 2),
                wish: to,
                guest_keeps_memory,
                fallback,
                outages: 1,
                ticks: 1,
                ..Setting::default()
            };
            states += check(&format!("down to {to:?}, kept {guest_keeps_memory}, {fallback:?}"), setting);
        }
    }
    println!("{states} states");
}

#[test]
fn memory_of_a_vm_that_cannot_migrate_is_declared_with_the_grant() {
    let setting = Setting { migratable: false, may_declare: true, outages: 1, ..Setting::default() };
    let states = check("grant", setting)
        + check("grant, taken back", Setting { changes: BACK, outages: 0, ..setting });
    println!("{states} states");
}

/// `RESIZE_SEEDS=FIRST..LAST` tries others.
#[test]
fn a_thousand_random_lives_end_fully_new_or_fully_old() {
    let chosen = std::env::var("RESIZE_SEEDS").ok();
    let (first, last) = chosen
        .as_deref()
        .and_then(|range| range.split_once(".."))
        .map_or((1, 1000), |(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
    let (mut events, mut deleted, mut failures) = (0, 0, Vec::new());
    for seed in first..=last {
        match live(seed) {
            Ok(life) => {
                events += life.events;
                deleted += usize::from(life.deleted);
            }
            Err(what) => failures.push(what),
        }
    }
    println!("{} lives, {events} events, {deleted} VMs deleted on the way", last - first + 1);
    let shown = failures.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("\n\n");
    assert!(failures.is_empty(), "{} lives went wrong, the first ones:\n{shown}", failures.len());
}
