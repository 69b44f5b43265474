//! JSON documents as trees that cost little to copy: a map, a list or a long text is shared between all
//! copies until one of them changes it.
//!
//! An API server and its controllers do hardly anything else than to read an object, copy it, change one
//! corner and compare the two. With [`serde_json::Value`] each copy is as large as the object, and each
//! map of two entries has room for eleven. Here a copy is a counter, a change copies the maps on the way
//! to it, and what two trees share is equal without a look.
//!
//! The names are those of `serde_json`, so that who knows the one knows the other. Maps are in the
//! order of their keys.

mod convert;
mod de;
mod index;
mod list;
mod macros;
mod map;

use std::fmt;
use std::str::FromStr;

use serde::ser::{Serialize, Serializer};

pub use crate::json;
pub use convert::ToValue;
pub use de::from_value;
pub use ecow::EcoString as Text;
pub use index::Index;
pub use list::{Items, List};
pub use map::{Entries, Entry, Map, OccupiedEntry, VacantEntry};
pub use serde_json::Number;

/// Any JSON value.
///
/// ```
/// use apimachinery::tree::{Value, json};
///
/// let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": []}});
/// let mut named = pod.clone();
/// named["metadata"]["name"] = "db".into();
/// assert_eq!(pod["metadata"]["name"], "web");
/// assert_eq!(named.to_string(), r#"{"metadata":{"name":"db"},"spec":{"containers":[]}}"#);
/// # let _: Value = named;
/// ```
#[derive(Clone, Default, Eq, PartialEq)]
pub enum Value {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number or a fraction.
    Number(Number),
    /// A text.
    String(Text),
    /// A list.
    Array(List),
    /// A map.
    Object(Map),
}

impl Value {
    /// What is at an index of a list or a key of a map.
    pub fn get(&self, index: impl Index) -> Option<&Self> {
        index.find(self)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, index: impl Index) -> Option<&mut Self> {
        index.find_mut(self)
    }

    /// What a JSON pointer (RFC 6901) points to.
    pub fn pointer(&self, pointer: &str) -> Option<&Self> {
        if pointer.is_empty() {
            return Some(self);
        }
        pointer.strip_prefix('/')?.split('/').try_fold(self, |at, token| match at {
            Self::Object(map) => map.get(&index::unescape(token)),
            Self::Array(list) => list.get(index::position(token)?),
            _ => None,
        })
    }

    /// The same, to be changed.
    pub fn pointer_mut(&mut self, pointer: &str) -> Option<&mut Self> {
        if pointer.is_empty() {
            return Some(self);
        }
        pointer.strip_prefix('/')?.split('/').try_fold(self, |at, token| match at {
            Self::Object(map) => map.get_mut(&index::unescape(token)),
            Self::Array(list) => list.get_mut(index::position(token)?),
            _ => None,
        })
    }

    /// Takes over from another value what is equal in both, so that they share it from now on. True when all of it is.
    ///
    /// Who has read an object anew and compares it with the one before more than once compares it here.
    pub fn share(&mut self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(own), Self::Object(other)) => own.share(other),
            (Self::Array(own), Self::Array(other)) => own.share(other),
            (own, other) => own == other,
        }
    }

    /// Takes the value and leaves `null`.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is `true` or `false`.
    pub fn is_boolean(&self) -> bool {
        matches!(self, Self::Bool(_))
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }

    /// Whether it is a text.
    pub fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    /// Whether it is a list.
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Whether it is a map.
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// Whether it is a whole number that fits 64 bits with a sign.
    pub fn is_i64(&self) -> bool {
        self.as_i64().is_some()
    }

    /// Whether it is a whole number that fits 64 bits without a sign.
    pub fn is_u64(&self) -> bool {
        self.as_u64().is_some()
    }

    /// Whether it is a fraction.
    pub fn is_f64(&self) -> bool {
        matches!(self, Self::Number(number) if number.is_f64())
    }

    /// `true` or `false`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The number.
    pub fn as_number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The whole number.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.as_i64()
    }

    /// The whole number without a sign.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number()?.as_u64()
    }

    /// The number as a fraction.
    pub fn as_f64(&self) -> Option<f64> {
        self.as_number()?.as_f64()
    }

    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The list.
    pub fn as_array(&self) -> Option<&List> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// The list, to be changed.
    pub fn as_array_mut(&mut self) -> Option<&mut List> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// The map.
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Self::Object(map) => Some(map),
            _ => None,
        }
    }

    /// The map, to be changed.
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Object(map) => Some(map),
            _ => None,
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(list) => serializer.collect_seq(list),
            Self::Object(map) => map.serialize(serializer),
        }
    }
}

/// As JSON without spaces; with `{:#}` on many lines.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = if f.alternate() { serde_json::to_string_pretty } else { serde_json::to_string };
        f.write_str(&write(self).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bool(truth) => write!(f, "Bool({truth})"),
            Self::Number(number) => fmt::Debug::fmt(number, f),
            Self::String(text) => write!(f, "String({text:?})"),
            Self::Array(list) => {
                f.write_str("Array ")?;
                fmt::Debug::fmt(list, f)
            }
            Self::Object(map) => {
                f.write_str("Object ")?;
                fmt::Debug::fmt(map, f)
            }
        }
    }
}

impl FromStr for Value {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

#[cfg(test)]
mod tests;
