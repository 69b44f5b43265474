//! Every state that can be reached, and what has to hold in them.

use std::collections::HashMap;

use resize::Size;
use stateright::Model;

use super::world::{Event, Setting, World, agrees};

/// What was found.
pub struct Found {
    pub states: usize,
    pub quiet: usize,
}

/// Explores all states breadth first. Panics with the way to a state in which a property fails.
///
/// This is stateright's model; the search is our own because two properties need the whole graph:
/// what is true of states where nothing but faults can happen any more, and that such a state can
/// be reached from everywhere (no livelock).
pub fn explore(setting: Setting) -> Found {
    let mut states: Vec<World> = Vec::new();
    let mut known: HashMap<World, usize> = HashMap::new();
    let mut came: Vec<Option<(usize, Event)>> = Vec::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    let mut quiet = Vec::new();
    let mut rests = 0;
    for world in setting.init_states() {
        known.insert(world.clone(), states.len());
        states.push(world);
        came.push(None);
        before.push(Vec::new());
    }
    let mut next = 0;
    while next < states.len() {
        let world = states[next].clone();
        let mut events = Vec::new();
        setting.actions(&world, &mut events);
        let mut goes_on = false;
        for event in events {
            let Some(after) = setting.next_state(&world, event.clone()) else { continue };
            goes_on |= !event.is_fault();
            let index = *known.entry(after.clone()).or_insert_with(|| {
                states.push(after);
                came.push(Some((next, event)));
                before.push(Vec::new());
                states.len() - 1
            });
            before[index].push(next);
        }
        if let Some(broken) = broken(&setting, &world) {
            panic!("{broken}\n{}", way(&states, &came, next));
        }
        if !goes_on {
            if !agrees(&setting, &world) {
                panic!(
                    "it rests where pod, VMI and guest do not agree, deciding {:?}\n{}",
                    world.decision(&setting),
                    way(&states, &came, next)
                );
            }
            quiet.push(next);
            rests += usize::from(!world.deleted);
        }
        next += 1;
    }
    // Backwards from every quiet state.
    let mut can_rest = vec![false; states.len()];
    let mut work = quiet.clone();
    while let Some(index) = work.pop() {
        if !std::mem::replace(&mut can_rest[index], true) {
            work.extend(&before[index]);
        }
    }
    if let Some(index) = can_rest.iter().position(|rests| !rests) {
        panic!("from here on it never rests\n{}", way(&states, &came, index));
    }
    Found { states: states.len(), quiet: rests }
}

/// What must hold in every state.
pub fn broken(setting: &Setting, world: &World) -> Option<&'static str> {
    if world.deleted {
        return None;
    }
    if !world.carried && !world.pod_actual.covers(Setting::render(world.guest())) {
        return Some("the guest has more than its pod");
    }
    let sizes = || setting.changes.iter().chain([&setting.start, &setting.wish]);
    let most = Size {
        sockets: sizes().map(|size| size.sockets).max()?,
        guest: sizes().map(|size| size.guest).max()?,
    };
    if !Setting::render(most).covers(world.pod_spec) {
        return Some("the pod has more than anybody ever asked for");
    }
    // Where KubeVirt is not at it, the VMI says nothing that the guest does not have.
    if world.spec == world.status && world.status.sockets > world.vcpus {
        return Some("the VMI says more vCPUs than the guest has");
    }
    if world.spec == world.status
        && setting.start.guest <= setting.wish.guest
        && setting.changes.is_empty()
        && world.status.guest > world.current
    {
        return Some("the VMI says more memory than the guest has");
    }
    None
}

fn way(states: &[World], came: &[Option<(usize, Event)>], mut index: usize) -> String {
    let mut lines = vec![states[index].to_string()];
    while let Some((from, event)) = &came[index] {
        lines.push(format!("{event:?}"));
        index = *from;
    }
    lines.reverse();
    lines.join("\n")
}
