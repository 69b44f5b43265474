use apimachinery::tree::json;
use proptest::prelude::*;

use super::*;

fn draft(name: &str, generation: u64) -> Draft {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}")}, "data": {"g": generation.to_string()}});
    Draft::new(object, &[]).unwrap()
}

/// name → version, of a list or of a replayed watch.
type State = BTreeMap<String, u64>;

fn state(objects: &[Arc<Stored>]) -> State {
    objects
        .iter()
        .map(|stored| (stored.header().name.to_string(), stored.header().resource_version))
        .collect()
}

fn apply(state: &mut State, event: &Event) {
    let header = event.object.header();
    match event.event {
        EventType::Deleted => state.remove(&*header.name),
        _ => state.insert(header.name.to_string(), header.resource_version),
    };
}

proptest! {
    /// Whatever was written: a list at any version plus the watch from there is the list of any
    /// later version.
    #[test]
    fn watch_replay_equals_list_at_every_version(steps in prop::collection::vec((0..3u8, 0..5u8), 0..60)) {
        let store = Store::new();
        let kind: Arc<str> = "configmaps.".into();
        let mut lists = vec![(store.version(), State::new())];
        for (generation, (operation, name)) in steps.into_iter().enumerate() {
            let name = format!("c{name}");
            let there = store.read(&kind, "n", &name).map(|stored| stored.header().resource_version);
            match (operation, there) {
                (0, None) => { store.create(&kind, draft(&name, generation as u64)).unwrap(); }
                (1, Some(version)) => { store.update(&kind, version, draft(&name, generation as u64)).unwrap(); }
                (2, Some(version)) => { store.remove(&kind, version, draft(&name, generation as u64)).unwrap(); }
                _ => continue,
            }
            let (version, objects) = store.select(&kind, Some("n"));
            lists.push((version, state(&objects)));
        }
        for (index, (version, list)) in lists.iter().enumerate() {
            prop_assert_eq!(&state(&store.at(&kind, *version).unwrap()), list);
            let mut cursor = store.follow_from(&kind, *version).unwrap();
            let mut replayed = list.clone();
            for (_, later) in &lists[index + 1..] {
                let (events, _) = store.next(&mut cursor, 1).unwrap();
                for event in &events {
                    apply(&mut replayed, event);
                }
                prop_assert_eq!(&replayed, later);
            }
        }
    }
}

#[test]
fn versions_guard_writes() {
    let store = Store::new();
    let kind: Arc<str> = "configmaps.".into();
    let first = store.create(&kind, draft("a", 0)).unwrap().header().resource_version;
    assert!(matches!(store.create(&kind, draft("a", 0)), Err(Error::Exists(_))));
    let second = store.update(&kind, first, draft("a", 1)).unwrap().header().resource_version;
    assert_eq!(second, first + 1);
    assert!(matches!(store.update(&kind, first, draft("a", 2)), Err(Error::Changed(_))));
    assert!(matches!(store.remove(&kind, first, draft("a", 2)), Err(Error::Changed(_))));
    assert!(matches!(store.update(&kind, 1, draft("b", 2)), Err(Error::NotFound)));
    store.remove(&kind, second, draft("a", 3)).unwrap();
    assert!(store.read(&kind, "n", "a").is_none());
    assert!(store.by_uid("uid-a").is_none());
}

#[test]
fn a_compacted_history_is_expired() {
    let store = Store::new();
    let kind: Arc<str> = "configmaps.".into();
    let mut cursor = store.follow_from(&kind, FIRST_VERSION).unwrap();
    store.create(&kind, draft("a", 0)).unwrap();
    store.compact(&kind);
    assert!(matches!(store.next(&mut cursor, 10), Err(Error::Expired { .. })));
    assert!(matches!(store.follow_from(&kind, 1), Err(Error::Expired { .. })));
    assert!(matches!(store.at(&kind, FIRST_VERSION), Err(Error::Expired { .. })));
}
