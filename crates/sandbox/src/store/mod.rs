//! Every object of the sandbox, under one resourceVersion that only grows.
//!
//! Objects are kept as the bytes that go over the wire, shared by lists and watches and never
//! encoded again; a critical section copies pointers and, for a write, one object's bytes. What was not
//! written lately is kept packed.
//! A watch is a cursor into its kind's history: it holds no queue of its own, and one that falls
//! behind the history ends, so a slow peer costs nothing.

mod fresh;
mod history;
mod object;
mod sealed;
mod signal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::tree::Value;
use tokio::sync::watch;

use fresh::Fresh;
use signal::Signal;

pub use history::{Event, History};
pub use object::{Draft, EventType, Header, Stored, Wire, line};

use crate::objects::Objects;

/// What a real etcd has long compacted: clients that ask for resourceVersion 1 meet the same
/// `too old` as on a cluster that has run for a while.
pub const FIRST_VERSION: u64 = 1000;

/// Snapshots kept for clients that are paging through a list.
const SNAPSHOTS: usize = 32;

/// A write or read that the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a JSON object with metadata.
    #[error("encode object: it has no metadata")]
    NotAnObject,
    /// The object could not be written as JSON.
    #[error("encode object")]
    Encode(#[source] serde_json::Error),
    /// The name is taken.
    #[error("the object exists")]
    Exists(Arc<Stored>),
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// Someone else wrote in between.
    #[error("the object changed")]
    Changed(Arc<Stored>),
    /// There is no space left for what would grow.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// The history no longer reaches back to the version asked for.
    #[error("too old resource version: {asked} ({floor})")]
    Expired {
        /// What the client asked for.
        asked: u64,
        /// The oldest version still served.
        floor: u64,
    },
}

/// Where an object lives: `resource.group` of its storage and `namespace\0name`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Location {
    /// As [`storage_key`] makes it.
    pub kind: Arc<str>,
    /// As [`object_key`] makes it.
    pub key: Box<str>,
}

/// The name of a kind's collection.
pub fn storage_key(group: &str, resource: &str) -> String {
    format!("{resource}.{group}")
}

/// The name of an object in its collection; sorts by namespace, then name.
pub fn object_key(namespace: &str, name: &str) -> String {
    format!("{namespace}\0{name}")
}

#[derive(Debug)]
struct Collection {
    objects: BTreeMap<Box<str>, Arc<Stored>>,
    history: History,
    /// Wakes watches; the value is the last resourceVersion of this kind.
    changed: Arc<Signal>,
}

impl Collection {
    fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), history: History::new(floor), changed: Arc::default() }
    }
}

#[derive(Debug)]
struct Snapshot {
    kind: Arc<str>,
    version: u64,
    objects: Arc<[Arc<Stored>]>,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    kinds: HashMap<Arc<str>, Collection>,
    by_uid: HashMap<Box<str>, Location>,
    by_owner: HashMap<Box<str>, BTreeSet<Location>>,
    snapshots: std::collections::VecDeque<Snapshot>,
}

/// The store. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    fresh: Mutex<Fresh>,
    /// Wakes whoever follows every kind (the garbage collector); the value is the last version.
    changed: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        let inner = Inner {
            version: FIRST_VERSION,
            kinds: HashMap::new(),
            by_uid: HashMap::new(),
            by_owner: HashMap::new(),
            snapshots: std::collections::VecDeque::new(),
        };
        Self { inner: Mutex::new(inner), fresh: Mutex::default(), changed: watch::Sender::new(FIRST_VERSION) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resourceVersion of the last write of any kind.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// The resourceVersion of the last write of a kind, or that of the first list.
    pub fn latest(&self, kind: &str) -> u64 {
        self.lock().kinds.get(kind).map_or(FIRST_VERSION, |collection| collection.history.latest())
    }

    /// One object.
    pub fn read(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let key = object_key(namespace, name);
        self.lock().kinds.get(kind)?.objects.get(key.as_str()).cloned()
    }

    /// The object with this uid, of whatever kind.
    pub fn by_uid(&self, uid: &str) -> Option<(Location, Arc<Stored>)> {
        let inner = self.lock();
        let location = inner.by_uid.get(uid)?.clone();
        let stored = inner.kinds.get(&location.kind)?.objects.get(&location.key)?.clone();
        Some((location, stored))
    }

    /// Every object that names this uid as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(Location, Arc<Stored>)> {
        let inner = self.lock();
        let Some(locations) = inner.by_owner.get(uid) else { return Vec::new() };
        let find = |location: &Location| {
            let stored = inner.kinds.get(&location.kind)?.objects.get(&location.key)?.clone();
            Some((location.clone(), stored))
        };
        locations.iter().filter_map(find).collect()
    }

    /// All objects of a kind, or those of one namespace, and the version that they are at.
    pub fn select(&self, kind: &str, namespace: Option<&str>) -> (u64, Vec<Arc<Stored>>) {
        let inner = self.lock();
        let Some(collection) = inner.kinds.get(kind) else { return (inner.version, Vec::new()) };
        let objects = match namespace {
            None => collection.objects.values().cloned().collect(),
            Some(namespace) => in_namespace(&collection.objects, namespace),
        };
        (inner.version, objects)
    }

    /// All objects of a kind as they were at `version`.
    ///
    /// # Errors
    /// [`Error::Expired`] when the history does not reach that far back.
    pub fn at(&self, kind: &str, version: u64) -> Result<Arc<[Arc<Stored>]>, Error> {
        let inner = self.lock();
        if let Some(kept) = inner.snapshots.iter().find(|kept| kept.version == version && &*kept.kind == kind)
        {
            return Ok(kept.objects.clone());
        }
        let Some(collection) = inner.kinds.get(kind) else { return Ok(Arc::new([])) };
        let mut objects = collection.objects.clone();
        collection.history.undo(version, &mut objects)?;
        Ok(objects.into_values().collect())
    }

    /// Keeps a list for a client that pages through it; the oldest of `SNAPSHOTS` goes.
    pub fn keep(&self, kind: &Arc<str>, version: u64, objects: Arc<[Arc<Stored>]>) {
        let mut inner = self.lock();
        if inner.snapshots.iter().any(|kept| kept.version == version && kept.kind == *kind) {
            return;
        }
        if inner.snapshots.len() == SNAPSHOTS {
            inner.snapshots.pop_front();
        }
        inner.snapshots.push_back(Snapshot { kind: kind.clone(), version, objects });
    }

    /// Writes an object that must not exist.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken.
    pub fn create(&self, kind: &Arc<str>, draft: Draft) -> Result<Arc<Stored>, Error> {
        let key = object_key(&draft.header().namespace, &draft.header().name);
        let inner = self.lock();
        if let Some(there) = inner.kinds.get(kind).and_then(|kind| kind.objects.get(key.as_str())) {
            return Err(Error::Exists(there.clone()));
        }
        Ok(self.commit(inner, kind, key, draft, EventType::Added))
    }

    /// Replaces an object that must still be at `expected`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Changed`] when it is at another version.
    pub fn update(&self, kind: &Arc<str>, expected: u64, draft: Draft) -> Result<Arc<Stored>, Error> {
        let key = object_key(&draft.header().namespace, &draft.header().name);
        let inner = self.lock();
        expect(&inner, kind, &key, expected)?;
        Ok(self.commit(inner, kind, key, draft, EventType::Modified))
    }

    /// Removes an object that must still be at `expected`; `last` is its last state, which
    /// watches see with the version of the removal.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Changed`] when it is at another version.
    pub fn remove(&self, kind: &Arc<str>, expected: u64, last: Draft) -> Result<Arc<Stored>, Error> {
        let key = object_key(&last.header().namespace, &last.header().name);
        let inner = self.lock();
        expect(&inner, kind, &key, expected)?;
        Ok(self.commit(inner, kind, key, last, EventType::Deleted))
    }

    fn commit(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        kind: &Arc<str>,
        key: String,
        draft: Draft,
        event: EventType,
    ) -> Arc<Stored> {
        inner.version += 1;
        let version = inner.version;
        let stored = Arc::new(draft.place(event, version));
        let collection = inner.kinds.entry(kind.clone()).or_insert_with(|| Collection::new(FIRST_VERSION));
        let key: Box<str> = key.into();
        let previous = match event {
            EventType::Deleted => collection.objects.remove(&key),
            EventType::Added | EventType::Modified => collection.objects.insert(key.clone(), stored.clone()),
        };
        collection.history.push(Event { event, object: stored.clone(), previous: previous.clone() });
        collection.changed.raise(version);
        let location = Location { kind: kind.clone(), key };
        let now = (event != EventType::Deleted).then_some(&*stored);
        reindex(&mut inner, &location, previous.as_deref(), now);
        self.changed.send_replace(version);
        drop(inner);
        // Packing takes longer than all of the above, and nobody has to wait for it.
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(kind, stored.clone());
        stored
    }

    /// Everything of a kind and a cursor right behind it.
    pub fn follow(&self, kind: &Arc<str>, namespace: Option<&str>) -> (Vec<Arc<Stored>>, Cursor) {
        let mut inner = self.lock();
        let version = inner.version;
        let collection = inner.kinds.entry(kind.clone()).or_insert_with(|| Collection::new(FIRST_VERSION));
        let objects = match namespace {
            None => collection.objects.values().cloned().collect(),
            Some(namespace) => in_namespace(&collection.objects, namespace),
        };
        (objects, Cursor { kind: kind.clone(), after: version, changed: collection.changed.clone() })
    }

    /// A cursor behind `version`.
    ///
    /// # Errors
    /// [`Error::Expired`] when the history does not reach that far back.
    pub fn follow_from(&self, kind: &Arc<str>, version: u64) -> Result<Cursor, Error> {
        let mut inner = self.lock();
        let collection = inner.kinds.entry(kind.clone()).or_insert_with(|| Collection::new(FIRST_VERSION));
        collection.history.reaches(version)?;
        Ok(Cursor { kind: kind.clone(), after: version, changed: collection.changed.clone() })
    }

    /// The next events for a cursor, at most `limit`, and the version up to which it has now seen
    /// everything.
    ///
    /// # Errors
    /// [`Error::Expired`] when the cursor fell behind the history.
    pub fn next(&self, cursor: &mut Cursor, limit: usize) -> Result<(Vec<Arc<Event>>, u64), Error> {
        let inner = self.lock();
        let Some(collection) = inner.kinds.get(&cursor.kind) else { return Ok((Vec::new(), inner.version)) };
        let events = collection.history.after(cursor.after, limit)?;
        cursor.after = if events.len() < limit {
            inner.version
        } else {
            events.last().map_or(cursor.after, |event| event.object.header().resource_version)
        };
        Ok((events, cursor.after))
    }

    /// Drops the history of a kind, as a compaction does: watches and pages that are behind get 410.
    pub fn compact(&self, kind: &str) {
        let mut inner = self.lock();
        let version = inner.version;
        if let Some(collection) = inner.kinds.get_mut(kind) {
            collection.history = History::new(version);
        }
        inner.snapshots.retain(|kept| &*kept.kind != kind);
    }

    /// Follows the version of the whole store.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A watch's place in the history of its kind.
#[derive(Debug)]
pub struct Cursor {
    kind: Arc<str>,
    after: u64,
    changed: Arc<Signal>,
}

impl Cursor {
    /// Everything up to this version has been seen.
    pub fn version(&self) -> u64 {
        self.after
    }

    /// Waits until the kind may have changed since the last [`Store::next`].
    pub async fn changed(&self) {
        self.changed.above(self.after).await;
    }
}

impl Objects for Store {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.read(&storage_key(group, resource), namespace, name).map(|stored| stored.value())
    }

    fn list(&self, group: &str, resource: &str) -> Vec<Arc<Value>> {
        let (_, objects) = self.select(&storage_key(group, resource), None);
        objects.iter().map(|stored| stored.value()).collect()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        let inner = self.lock();
        inner.kinds.get(storage_key(group, resource).as_str()).map_or(0, |kind| kind.changed.value())
    }
}

fn in_namespace(objects: &BTreeMap<Box<str>, Arc<Stored>>, namespace: &str) -> Vec<Arc<Stored>> {
    use std::ops::Bound::Included;
    let first = object_key(namespace, "");
    let range = objects.range::<str, _>((Included(first.as_str()), std::ops::Bound::Unbounded));
    range.take_while(|(key, _)| key.starts_with(first.as_str())).map(|(_, stored)| stored.clone()).collect()
}

fn expect(inner: &Inner, kind: &str, key: &str, expected: u64) -> Result<(), Error> {
    let there = inner.kinds.get(kind).and_then(|kind| kind.objects.get(key)).ok_or(Error::NotFound)?;
    if there.header().resource_version == expected { Ok(()) } else { Err(Error::Changed(there.clone())) }
}

fn reindex(inner: &mut Inner, location: &Location, before: Option<&Stored>, after: Option<&Stored>) {
    let owners_of =
        |stored: Option<&Stored>| stored.map(|stored| stored.header().owners.clone()).unwrap_or_default();
    let (old, new) = (owners_of(before), owners_of(after));
    for owner in old.iter().filter(|owner| !new.contains(owner)) {
        if let Some(dependents) = inner.by_owner.get_mut(owner) {
            dependents.remove(location);
            if dependents.is_empty() {
                inner.by_owner.remove(owner);
            }
        }
    }
    for owner in new.iter().filter(|owner| !old.contains(owner)) {
        inner.by_owner.entry(owner.clone()).or_default().insert(location.clone());
    }
    match (before, after) {
        (None, Some(after)) => {
            inner.by_uid.insert(after.header().uid.clone(), location.clone());
        }
        (Some(before), None) => {
            inner.by_uid.remove(&before.header().uid);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
