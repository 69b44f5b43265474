//! A map in the order of its keys: one block of memory, shared until somebody changes it.

use std::fmt;
use std::ops;

use ecow::EcoVec;
use serde::ser::{Serialize, Serializer};
use smallvec::SmallVec;

use super::{Text, Value};

/// Fewer entries than that are put between others one by one.
const FEW: usize = 16;

/// Keys and values, each key once, in the order of the keys.
///
/// Objects of the API have few keys on each level, so that looking one up takes a few comparisons in
/// memory that lies together; a key put in between moves those behind it.
///
/// ```
/// use apimachinery::tree::Map;
///
/// let map: Map = [("b", 2), ("a", 1)].into_iter().collect();
/// assert_eq!(map.keys().map(|key| key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
/// ```
#[derive(Clone, Default, Eq)]
pub struct Map(EcoVec<(Text, Value)>);

impl Map {
    /// An empty map, which takes no memory of its own.
    pub const fn new() -> Self {
        Self(EcoVec::new())
    }

    /// An empty map with room for so many entries.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(EcoVec::with_capacity(capacity))
    }

    /// Where a key is, or would be.
    fn place(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(there, _)| there.as_str().cmp(key))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.place(key).ok().and_then(|at| self.0.get(at)).map(|(_, value)| value)
    }

    /// A key that is there, and its value.
    pub fn get_key_value(&self, key: &str) -> Option<(&Text, &Value)> {
        self.place(key).ok().and_then(|at| self.0.get(at)).map(|(key, value)| (key, value))
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let at = self.place(key).ok()?;
        Some(self.at_mut(at))
    }

    /// The value at a place that is there.
    fn at_mut(&mut self, at: usize) -> &mut Value {
        &mut self.0.make_mut()[at].1
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &str) -> bool {
        self.place(key).is_ok()
    }

    /// Gives a key a value, and returns the one that it had.
    pub fn insert(&mut self, key: Text, value: Value) -> Option<Value> {
        // What was written by this program comes in order.
        if self.0.last().is_none_or(|(last, _)| *last < key) {
            self.0.push((key, value));
            return None;
        }
        match self.place(&key) {
            Ok(at) => Some(std::mem::replace(self.at_mut(at), value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// The same, for a key of any kind.
    pub fn set(&mut self, key: impl AsRef<str>, value: impl Into<Value>) -> Option<Value> {
        self.insert(key.as_ref().into(), value.into())
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.remove_entry(key).map(|(_, value)| value)
    }

    /// The same, with the key.
    pub fn remove_entry(&mut self, key: &str) -> Option<(Text, Value)> {
        self.place(key).ok().map(|at| self.0.remove(at))
    }

    /// The place of a key, whether it is there or not.
    pub fn entry(&mut self, key: impl AsRef<str>) -> Entry<'_> {
        let key = key.as_ref();
        match self.place(key) {
            Ok(at) => Entry::Occupied(OccupiedEntry { map: self, at }),
            Err(at) => Entry::Vacant(VacantEntry { map: self, at, key: key.into() }),
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Text, &Value)> + ExactSizeIterator + Clone {
        self.0.iter().map(entry)
    }

    /// The same, the values to be changed.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (&Text, &mut Value)> + ExactSizeIterator {
        self.0.make_mut().iter_mut().map(entry_mut)
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Text> + ExactSizeIterator + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, in the order of the keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Value> + ExactSizeIterator {
        self.0.make_mut().iter_mut().map(|(_, value)| value)
    }

    /// Keeps the entries of which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Text, &mut Value) -> bool) {
        self.0.retain(|(key, value)| keep(key, value));
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The map with other values for some of its keys, in the order of the keys, and without those that have `None`
    /// now. `None` if there is nothing to change.
    ///
    /// ```
    /// use apimachinery::tree::Map;
    ///
    /// let map: Map = [("a", 1), ("b", 2), ("c", 3)].into_iter().collect();
    /// let changed = map.changed(vec![("a", Some(4.into())), ("b", None)]).unwrap();
    /// assert_eq!(changed, [("a", 4), ("c", 3)].into_iter().collect());
    /// assert_eq!(map.changed(Vec::new()), None);
    /// ```
    pub fn changed(&self, changes: Vec<(&str, Option<Value>)>) -> Option<Self> {
        if changes.is_empty() {
            return None;
        }
        let mut changes = changes.into_iter().peekable();
        let mut out = Entries::default();
        for (key, value) in self {
            match changes.next_if(|(changed, _)| changed == key) {
                Some((_, Some(changed))) => out.push(key.clone(), changed),
                Some((_, None)) => {}
                None => out.push(key.clone(), value.clone()),
            }
        }
        Some(out.finish())
    }

    /// As [`Value::share`].
    pub(super) fn share(&mut self, other: &Self) -> bool {
        if self.is(other) {
            return true;
        }
        let mut equal = self.len() == other.len();
        for (key, value) in self.0.make_mut() {
            equal &= other.get(key).is_some_and(|other| value.share(other));
        }
        if equal {
            self.clone_from(other);
        }
        equal
    }

    /// Whether it is the same map, in the same place.
    fn is(&self, other: &Self) -> bool {
        self.len() == other.len() && self.0.as_ptr() == other.0.as_ptr()
    }

    /// Takes everything out of another map and into this one.
    pub fn append(&mut self, other: &mut Self) {
        self.extend(std::mem::take(other));
    }
}

/// Entries of a map that is being read: gathered on the stack, so that the map is made in one piece.
///
/// ```
/// use apimachinery::tree::Entries;
///
/// let mut entries = Entries::default();
/// entries.push("b".into(), 1.into());
/// entries.push("a".into(), 2.into());
/// entries.push("b".into(), 3.into()); // the last one counts
/// assert_eq!(*entries.finish().get("b").unwrap(), 3);
/// ```
#[derive(Debug, Default)]
pub struct Entries {
    entries: SmallVec<[(Text, Value); 8]>,
    /// One came that does not sort behind the one before it.
    mixed: bool,
}

impl Entries {
    /// Adds one.
    pub fn push(&mut self, key: Text, value: Value) {
        self.mixed |= self.entries.last().is_some_and(|(last, _)| *last >= key);
        self.entries.push((key, value));
    }

    /// The keys so far, in the order in which they came.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Text> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// The map. Of several values of a key the last one counts.
    pub fn finish(mut self) -> Map {
        if self.mixed {
            // Stable: among equal keys the order stays.
            self.entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            self.entries.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    std::mem::swap(later, kept);
                }
                same
            });
        }
        Map(self.entries.into_iter().collect())
    }
}

fn entry((key, value): &(Text, Value)) -> (&Text, &Value) {
    (key, value)
}

fn entry_mut((key, value): &mut (Text, Value)) -> (&Text, &mut Value) {
    (key, value)
}

/// What two maps share needs no look.
impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0 == other.0
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl ops::Index<&str> for Map {
    type Output = Value;

    /// `null` if the key is not there.
    fn index(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&Value::Null)
    }
}

impl<K: Into<Text>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut gathered = Entries::default();
        entries.into_iter().for_each(|(key, value)| gathered.push(key.into(), value.into()));
        gathered.finish()
    }
}

impl<K: Into<Text>, V: Into<Value>> Extend<(K, V)> for Map {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        let more: Self = entries.into_iter().collect();
        let few = more.len() < FEW || self.is_empty();
        if few || self.0.last().is_none_or(|(last, _)| more.0.first().is_some_and(|(first, _)| last < first))
        {
            more.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
        } else {
            *self = std::mem::take(self).into_iter().chain(more).collect();
        }
    }
}

impl IntoIterator for Map {
    type Item = (Text, Value);
    type IntoIter = ecow::vec::IntoIter<(Text, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Text, &'a Value);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (Text, Value)>, fn(&'a (Text, Value)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(entry)
    }
}

impl<'a> IntoIterator for &'a mut Map {
    type Item = (&'a Text, &'a mut Value);
    type IntoIter =
        std::iter::Map<std::slice::IterMut<'a, (Text, Value)>, fn(&'a mut (Text, Value)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.make_mut().iter_mut().map(entry_mut)
    }
}

/// The place of a key in a map.
#[derive(Debug)]
pub enum Entry<'a> {
    /// The key is not there.
    Vacant(VacantEntry<'a>),
    /// The key is there.
    Occupied(OccupiedEntry<'a>),
}

/// The place of a key that is not there.
#[derive(Debug)]
pub struct VacantEntry<'a> {
    map: &'a mut Map,
    at: usize,
    key: Text,
}

/// The place of a key that is there.
#[derive(Debug)]
pub struct OccupiedEntry<'a> {
    map: &'a mut Map,
    at: usize,
}

impl<'a> Entry<'a> {
    /// The value, or this one if there is none.
    pub fn or_insert(self, value: Value) -> &'a mut Value {
        self.or_insert_with(|| value)
    }

    /// The value, or what this function makes if there is none.
    pub fn or_insert_with(self, make: impl FnOnce() -> Value) -> &'a mut Value {
        match self {
            Self::Vacant(vacant) => vacant.insert(make()),
            Self::Occupied(occupied) => occupied.into_mut(),
        }
    }
}

impl<'a> VacantEntry<'a> {
    /// Puts a value there.
    pub fn insert(self, value: Value) -> &'a mut Value {
        self.map.0.insert(self.at, (self.key, value));
        self.map.at_mut(self.at)
    }
}

impl<'a> OccupiedEntry<'a> {
    /// The value.
    pub fn get(&self) -> &Value {
        &self.map.0[self.at].1
    }

    /// The value, to be changed.
    pub fn get_mut(&mut self) -> &mut Value {
        self.map.at_mut(self.at)
    }

    /// The same, for as long as the map is borrowed.
    pub fn into_mut(self) -> &'a mut Value {
        self.map.at_mut(self.at)
    }

    /// Puts another value there, and returns the one that was.
    pub fn insert(&mut self, value: Value) -> Value {
        std::mem::replace(self.get_mut(), value)
    }

    /// Takes the key out.
    pub fn remove(self) -> Value {
        self.map.0.remove(self.at).1
    }
}
