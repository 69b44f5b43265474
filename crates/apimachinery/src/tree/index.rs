//! Keys of maps and places in lists: `object["spec"]["containers"][0]`.

use std::borrow::Cow;
use std::ops;

use super::{Map, Text, Value};

/// A key of a map or a place in a list.
pub trait Index {
    /// What is there.
    fn find<'a>(&self, value: &'a Value) -> Option<&'a Value>;
    /// The same, to be changed.
    fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value>;
    /// The same; a key that is missing is put there, with `null`, and what is no map becomes one.
    ///
    /// # Panics
    /// If a list is shorter than that, as with every list.
    fn find_or_insert<'a>(&self, value: &'a mut Value) -> &'a mut Value;
}

impl Index for str {
    fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        value.as_object()?.get(self)
    }

    fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        value.as_object_mut()?.get_mut(self)
    }

    fn find_or_insert<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        match value {
            Value::Object(map) => map.entry(self).or_insert(Value::Null),
            other => other,
        }
    }
}

impl Index for usize {
    fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        <[Value]>::get(value.as_array()?, *self)
    }

    fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        <[Value]>::get_mut(value.as_array_mut()?, *self)
    }

    fn find_or_insert<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        &mut value.as_array_mut().map_or(&mut [][..], |list| list)[*self]
    }
}

macro_rules! as_texts {
    ($($kind:ty),*) => {$(
        impl Index for $kind {
            fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
                <str as Index>::find(self, value)
            }

            fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
                <str as Index>::find_mut(self, value)
            }

            fn find_or_insert<'a>(&self, value: &'a mut Value) -> &'a mut Value {
                <str as Index>::find_or_insert(self, value)
            }
        }
    )*};
}

as_texts!(String, Text);

impl<I: Index + ?Sized> Index for &I {
    fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        (**self).find(value)
    }

    fn find_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        (**self).find_mut(value)
    }

    fn find_or_insert<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        (**self).find_or_insert(value)
    }
}

impl<I: Index> ops::Index<I> for Value {
    type Output = Self;

    /// `null` if there is none.
    fn index(&self, index: I) -> &Self {
        static NULL: Value = Value::Null;
        index.find(self).unwrap_or(&NULL)
    }
}

impl<I: Index> ops::IndexMut<I> for Value {
    /// # Panics
    /// As [`Index::find_or_insert`].
    fn index_mut(&mut self, index: I) -> &mut Self {
        index.find_or_insert(self)
    }
}

/// The key that a token of a JSON pointer stands for (RFC 6901, section 4).
pub(super) fn unescape(token: &str) -> Cow<'_, str> {
    if token.contains('~') { token.replace("~1", "/").replace("~0", "~").into() } else { token.into() }
}

/// The place that a token stands for: digits, without a zero in front.
pub(super) fn position(token: &str) -> Option<usize> {
    if token.starts_with('+') || token.starts_with('0') && token.len() > 1 {
        return None;
    }
    token.parse().ok()
}
