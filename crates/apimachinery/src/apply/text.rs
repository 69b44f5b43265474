//! `fieldsV1` as text: sets read from it and written to it, and questions that are answered while reading. Most
//! writes look at every manager's fields and change those of one, so that trees of all of them would be the greater
//! part of the work.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::set::Set;

/// A member that has members below it says so itself by this key.
const SELF: &str = ".";

impl Set {
    /// Reads `fieldsV1`; what is no object has no members.
    pub fn from_text(text: &RawValue) -> Self {
        serde_json::from_str(text.get()).unwrap_or_default()
    }

    /// Writes `fieldsV1`.
    pub fn to_text(&self) -> Box<RawValue> {
        // A tree with texts as keys can be written.
        serde_json::value::to_raw_value(self).unwrap_or_default()
    }

    /// Whether a set written as `fieldsV1` has a member in common with this one. Allocates nothing.
    pub fn touches(&self, text: &RawValue) -> bool {
        ask(self, Question::Any, text)
    }

    /// Whether a set written as `fieldsV1` has all members of this one. Allocates nothing.
    pub fn is_within(&self, text: &RawValue) -> bool {
        ask(self, Question::All, text)
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.own && !self.children.is_empty() {
            map.serialize_entry(SELF, &BTreeMap::<&str, ()>::new())?;
        }
        for (element, child) in &self.children {
            map.serialize_entry(element, child)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Set;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("fieldsV1")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Set, A::Error> {
        let mut set = Set::default();
        while let Some(element) = map.next_key::<Box<str>>()? {
            if &*element == SELF {
                map.next_value::<IgnoredAny>()?;
                set.own = true;
                continue;
            }
            let mut child: Set = map.next_value()?;
            // an element with nothing below is a member itself
            child.own |= child.children.is_empty();
            set.children.insert(element, child);
        }
        Ok(set)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_unit<E>(self) -> Result<Set, E> {
        Ok(Set::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Set, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Set::default())
    }
}

/// What is asked about a set that is read.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Question {
    /// Does it have any of the members?
    Any,
    /// Does it have all of them?
    All,
}

fn ask(set: &Set, question: Question, text: &RawValue) -> bool {
    Asker { set, question }.deserialize(&mut serde_json::Deserializer::from_str(text.get())).unwrap_or(false)
}

#[derive(Clone, Copy)]
struct Asker<'a> {
    set: &'a Set,
    question: Question,
}

impl<'de> DeserializeSeed<'de> for Asker<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Asker<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("fieldsV1")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let (mut read, mut own, mut any, mut found) = (0_usize, false, false, 0_usize);
        while let Some(element) = map.next_key_seed(Element(self.set))? {
            read += 1;
            match element {
                Named::Itself => own = true,
                Named::Child(child) if !any || self.question == Question::All => {
                    let yes = map.next_value_seed(Asker { set: child, ..self })?;
                    any |= yes;
                    found += usize::from(yes);
                    continue;
                }
                Named::Child(_) | Named::Other => {}
            }
            map.next_value::<IgnoredAny>()?;
        }
        own |= read == 0;
        Ok(match self.question {
            Question::Any => any || self.set.own && own,
            Question::All => found == self.set.children.len() && (!self.set.own || own),
        })
    }
}

/// A key, as the set that is looked for has it.
struct Element<'a>(&'a Set);

enum Named<'a> {
    Itself,
    Child(&'a Set),
    Other,
}

impl<'de, 'a> DeserializeSeed<'de> for Element<'a> {
    type Value = Named<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Named<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Element<'a> {
    type Value = Named<'a>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a path element")
    }

    fn visit_str<E>(self, element: &str) -> Result<Named<'a>, E> {
        if element == SELF {
            return Ok(Named::Itself);
        }
        Ok(self.0.children.get(element).map_or(Named::Other, Named::Child))
    }
}
