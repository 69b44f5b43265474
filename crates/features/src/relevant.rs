//! A VM as it is read from JSON for a decision: what no feature looks at is skipped.
//!
//! Reading an object costs more than deciding about it, and most of what API servers send is of no
//! concern here: who manages which field, status, disks, probes, clocks. A skipped part is `null`, so
//! that its parent is seen not to be empty: a container that a feature made, and to which a user has
//! added since, is not taken away.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A VM without what no feature looks at. For [`crate::needs`] and [`crate::admit`] alone: policies
/// look at more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Relevant(pub Value);

/// What to do with a member of an object.
#[derive(Clone, Copy)]
enum Part {
    Skip,
    /// Some of its members are skipped.
    Look(&'static [(&'static str, Part)]),
}

use Part::{Look, Skip};

/// Whatever is not named here is read. Fields of KubeVirt v1.9 (`core/v1/types.go`, `schema.go`).
const VM: &[(&str, Part)] = &[
    ("metadata", Look(&[("managedFields", Skip)])),
    ("status", Skip),
    ("spec", Look(&[("template", Look(&[("spec", Look(VMI_SPEC))]))])),
];
const VMI_SPEC: &[(&str, Part)] = &[
    ("accessCredentials", Skip),
    ("dnsConfig", Skip),
    ("livenessProbe", Skip),
    ("readinessProbe", Skip),
    ("topologySpreadConstraints", Skip),
    ("affinity", Look(&[("podAffinity", Skip), ("podAntiAffinity", Skip)])),
    ("domain", Look(DOMAIN)),
];
const DOMAIN: &[(&str, Part)] = &[("clock", Skip), ("devices", Look(&[("disks", Skip), ("inputs", Skip)]))];

/// Every path that is skipped.
#[cfg(test)]
pub(crate) fn skipped() -> Vec<Vec<&'static str>> {
    fn walk(parts: &[(&'static str, Part)], above: &[&'static str], found: &mut Vec<Vec<&'static str>>) {
        for (name, part) in parts {
            let path = [above, &[*name]].concat();
            match part {
                Skip => found.push(path),
                Look(inside) => walk(inside, &path, found),
            }
        }
    }
    let mut found = Vec::new();
    walk(VM, &[], &mut found);
    found
}

impl<'de> Deserialize<'de> for Relevant {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Members(VM).deserialize(from).map(Self)
    }
}

struct Members(&'static [(&'static str, Part)]);

impl<'de> DeserializeSeed<'de> for Members {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Key<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        from.deserialize_str(Keys)
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("any valid JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(Key(key)) = from.next_key()? {
            let value = match self.0.iter().find(|(name, _)| *name == key).map(|(_, part)| *part) {
                None => from.next_value()?,
                Some(Look(inside)) => from.next_value_seed(Members(inside))?,
                Some(Skip) => from.next_value::<IgnoredAny>().map(|_| Value::Null)?,
            };
            members.insert(key.into_owned(), value);
        }
        Ok(Value::Object(members))
    }

    // What is no mapping is read as it is: features say what is wrong with it.

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(from))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Feature;
    use crate::site::Site;

    /// A container that looks absent would be written anew, over what a user has in it.
    #[test]
    fn nothing_is_skipped_that_a_feature_writes_to_or_decides_by() {
        let sites = Site::ALL.iter().map(|site| site.path());
        let inputs = Feature::ALL.iter().flat_map(|feature| feature.inputs().iter().copied());
        for path in sites.chain(inputs) {
            for skipped in skipped() {
                assert!(!path.starts_with(&skipped), "{path:?} lies in {skipped:?}, which is not read");
            }
        }
    }
}
