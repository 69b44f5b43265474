//! The recent changes of one kind: what watches read, and what takes a list back to an earlier
//! version.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::object::{EventType, Stored};
use super::{Error, object_key};

/// Changes kept per kind, at most.
const EVENTS: usize = 16_384;
/// Bytes of earlier states kept per kind, at most, as they were before they were packed; but never fewer
/// than [`ALWAYS`] changes.
const BYTES: usize = 4 << 20;
const ALWAYS: usize = 256;

/// One change.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub event: EventType,
    /// The object after the change; for a removal, its last state at the version of the removal.
    pub object: Arc<Stored>,
    /// The object before the change.
    pub previous: Option<Arc<Stored>>,
}

impl Event {
    /// Bytes that only this change keeps in memory: the state that it ended. What is there now is there anyway.
    fn cost(&self) -> usize {
        let before = self.previous.as_ref().map_or(0, |previous| previous.size());
        if self.event == EventType::Deleted { before + self.object.size() } else { before }
    }
}

/// A bounded ring of changes, oldest first.
#[derive(Debug)]
pub struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything after this version is here.
    floor: u64,
}

impl History {
    /// An empty history that begins after `floor`.
    pub fn new(floor: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor }
    }

    /// Adds a change and forgets the oldest that no longer fit.
    pub fn push(&mut self, event: Event) {
        self.bytes += event.cost();
        self.events.push_back(Arc::new(event));
        while self.events.len() > EVENTS || (self.bytes > BYTES && self.events.len() > ALWAYS) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.cost();
            self.floor = oldest.object.header().resource_version;
        }
    }

    /// # Errors
    /// [`Error::Expired`] unless everything after `version` is still here.
    pub fn reaches(&self, version: u64) -> Result<(), Error> {
        if version < self.floor { Err(Error::Expired { asked: version, floor: self.floor }) } else { Ok(()) }
    }

    /// The changes after `version`, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Expired`]
    pub fn after(&self, version: u64, limit: usize) -> Result<Vec<Arc<Event>>, Error> {
        self.reaches(version)?;
        let first = self.events.partition_point(|event| event.object.header().resource_version <= version);
        Ok(self.events.iter().skip(first).take(limit).cloned().collect())
    }

    /// Takes `objects` from now back to `version`.
    ///
    /// # Errors
    /// [`Error::Expired`]
    pub fn undo(&self, version: u64, objects: &mut BTreeMap<Box<str>, Arc<Stored>>) -> Result<(), Error> {
        self.reaches(version)?;
        for event in self.events.iter().rev() {
            let header = event.object.header();
            if header.resource_version <= version {
                break;
            }
            let key: Box<str> = object_key(&header.namespace, &header.name).into();
            match &event.previous {
                Some(previous) => objects.insert(key, previous.clone()),
                None => objects.remove(&key),
            };
        }
        Ok(())
    }
}
