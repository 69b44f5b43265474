//! Objects as a controller keeps them: without `metadata.managedFields`, which no decision reads and
//! which are half of many objects. As with client-go's cache transforms they are dropped while
//! reading, so they cost no memory at all; a write without them leaves them as they are in the server.

use std::fmt;

use apimachinery::tree::{Entries, Items, Text, Value};
use apimachinery::visit_leaves;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Reads JSON, leaving out the `managedFields` of every `metadata`.
///
/// # Errors
/// When it is no JSON.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Lean>(bytes).map(|lean| lean.0)
}

/// A value that was read so.
#[derive(Debug)]
pub struct Lean(pub Value);

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reader { of_metadata: false }.deserialize(deserializer).map(Lean)
    }
}

#[derive(Clone, Copy)]
struct Reader {
    /// The value is that of a key `metadata`.
    of_metadata: bool,
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    visit_leaves!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Items::default();
        while let Some(item) = list.next_element_seed(Reader { of_metadata: false })? {
            items.push(item);
        }
        Ok(Value::Array(items.finish()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Entries::default();
        while let Some(key) = map.next_key::<Text>()? {
            if self.of_metadata && key == "managedFields" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = map.next_value_seed(Reader { of_metadata: key == "metadata" })?;
            fields.push(key, value);
        }
        Ok(Value::Object(fields.finish()))
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9_f64).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let fields = prop::collection::btree_map("[a-z]{1,4}|metadata", inner.clone(), 0..5);
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::from),
                fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn everything_else_is_read_as_it_is(value in json()) {
            let text = value.to_string();
            let whole: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), whole);
        }
    }

    #[test]
    fn managed_fields_of_metadata_alone_are_left_out() {
        let text = json!({"metadata": {"name": "a", "managedFields": [{"fieldsV1": {"f:spec": {}}}]},
            "spec": {"managedFields": 1}, "items": [{"metadata": {"managedFields": [], "uid": "u"}}]});
        let want = json!({"metadata": {"name": "a"}, "spec": {"managedFields": 1}, "items": [{"metadata": {"uid": "u"}}]});
        assert_eq!(parse(text.to_string().as_bytes()).unwrap(), want);
        assert!(parse(b"{").is_err());
    }
}
