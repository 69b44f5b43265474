//! A list: one block of memory, shared until somebody changes it.

use std::fmt;
use std::ops::{Deref, DerefMut};

use ecow::EcoVec;
use smallvec::SmallVec;

use super::Value;

/// Values in their order. Reads as a slice does; who changes it has a copy if others hold it too.
///
/// ```
/// use apimachinery::tree::List;
///
/// let list = List::from(vec![1.into(), 2.into()]);
/// let mut longer = list.clone();
/// longer.push(3.into());
/// assert_eq!((list.len(), longer.len()), (2, 3));
/// ```
#[derive(Clone, Default, Eq)]
pub struct List(EcoVec<Value>);

impl List {
    /// An empty list, which takes no memory of its own.
    pub const fn new() -> Self {
        Self(EcoVec::new())
    }

    /// The values.
    pub fn as_slice(&self) -> &[Value] {
        &self.0
    }

    /// Puts a value at the end.
    pub fn push(&mut self, value: Value) {
        self.0.push(value);
    }

    /// Takes the last one.
    pub fn pop(&mut self) -> Option<Value> {
        self.0.pop()
    }

    /// Puts a value before the one at `at`.
    ///
    /// # Panics
    /// If `at` is behind the end.
    pub fn insert(&mut self, at: usize, value: Value) {
        self.0.insert(at, value);
    }

    /// Takes out the one at `at`.
    ///
    /// # Panics
    /// If there is none.
    pub fn remove(&mut self, at: usize) -> Value {
        self.0.remove(at)
    }

    /// Keeps the values of which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Value) -> bool) {
        self.0.retain(|value| keep(value));
    }

    /// Keeps the first `length` ones.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// The list with what `change` makes of its values. `None` if it changes none.
    pub fn changed<E>(
        &self,
        mut change: impl FnMut(usize, &Value) -> Result<Option<Value>, E>,
    ) -> Result<Option<Self>, E> {
        let mut changed = None;
        for (index, value) in self.iter().enumerate() {
            if let Some(value) = change(index, value)? {
                changed.get_or_insert_with(|| self.clone())[index] = value;
            }
        }
        Ok(changed)
    }

    /// As [`Value::share`].
    pub(super) fn share(&mut self, other: &Self) -> bool {
        if self.is(other) {
            return true;
        }
        let mut equal = self.len() == other.len();
        for (value, other) in self.0.make_mut().iter_mut().zip(other) {
            equal &= value.share(other);
        }
        if equal {
            self.clone_from(other);
        }
        equal
    }

    /// Whether it is the same list, in the same place.
    fn is(&self, other: &Self) -> bool {
        self.len() == other.len() && self.0.as_ptr() == other.0.as_ptr()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Values of a list that is being read: gathered on the stack, so that the list is made in one piece.
#[derive(Debug, Default)]
pub struct Items(SmallVec<[Value; 8]>);

impl Items {
    /// Adds one.
    pub fn push(&mut self, value: Value) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The list.
    pub fn finish(self) -> List {
        List(self.0.into_iter().collect())
    }
}

impl Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0
    }
}

impl DerefMut for List {
    fn deref_mut(&mut self) -> &mut [Value] {
        self.0.make_mut()
    }
}

/// What two lists share needs no look.
impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0 == other.0
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl From<Vec<Value>> for List {
    fn from(values: Vec<Value>) -> Self {
        values.into_iter().collect()
    }
}

impl<V: Into<Value>> FromIterator<V> for List {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        Self(values.into_iter().map(Into::into).collect())
    }
}

impl<V: Into<Value>> Extend<V> for List {
    fn extend<I: IntoIterator<Item = V>>(&mut self, values: I) {
        self.0.extend(values.into_iter().map(Into::into));
    }
}

impl IntoIterator for List {
    type Item = Value;
    type IntoIter = ecow::vec::IntoIter<Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a List {
    type Item = &'a Value;
    type IntoIter = std::slice::Iter<'a, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a mut List {
    type Item = &'a mut Value;
    type IntoIter = std::slice::IterMut<'a, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.make_mut().iter_mut()
    }
}
