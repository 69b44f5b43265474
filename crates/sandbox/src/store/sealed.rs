//! Reads objects with their `managedFields` [sealed](apimachinery::apply::sealed): as one text, which takes a copy
//! instead of the tree that would be half of many objects.

use std::fmt;

use apimachinery::apply::sealed;
use apimachinery::tree::{Entries, Text, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Reads an object.
///
/// # Errors
/// When it is none.
pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Fields { inner: "metadata" }.deserialize(&mut deserializer)
}

/// An object; the field `inner` of it is read apart.
#[derive(Clone, Copy)]
struct Fields {
    inner: &'static str,
}

impl<'de> DeserializeSeed<'de> for Fields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with metadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Entries::default();
        while let Some(key) = map.next_key::<Text>()? {
            let value = match (self.inner, key.as_str()) {
                ("metadata", "metadata") => map.next_value_seed(Self { inner: "managedFields" })?,
                ("managedFields", "managedFields") => sealed::seal(map.next_value::<&RawValue>()?),
                _ => map.next_value()?,
            };
            fields.push(key, value);
        }
        Ok(Value::Object(fields.finish()))
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn an_object_is_read_as_it_is_but_for_its_seal() {
        let whole = json!({"kind": "A", "metadata": {"name": "a", "managedFields": [{"fieldsV1": {"f:a": {}}}]},
            "spec": {"metadata": {"managedFields": [1]}}});
        let mut read = parse(whole.to_string().as_bytes()).unwrap();
        assert_eq!(sealed::of(&read), Some(r#"[{"fieldsV1":{"f:a":{}}}]"#));
        sealed::open(&mut read);
        assert_eq!(read, whole);
        assert!(parse(b"null").is_err() && parse(b"[]").is_err());
    }
}
