//! `metadata.managedFields` of an object as one text in its tree, from reading it to writing it.
//!
//! They are half of many objects, and nearly nobody but the tracking of fields looks at them. A sealed object has them as
//! a text that begins with a mark; no object from outside is taken to be sealed ([`distrust`]), and everybody
//! outside gets to see them as they are ([`open`], [`Whole`]).

use std::borrow::Cow;

use crate::tree::{Map, Text, Value};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

/// In front of a sealed text.
const MARK: char = '\u{1}';
const KEY: &str = "managedFields";

/// Seals the text of a list of entries.
pub fn seal(text: &RawValue) -> Value {
    let text = text.get();
    let mut sealed = Text::with_capacity(text.len() + 1);
    sealed.push(MARK);
    sealed.push_str(text);
    sealed.into()
}

/// The text in a sealed value.
pub fn text(managed_fields: &Value) -> Option<&str> {
    managed_fields.as_str()?.strip_prefix(MARK)
}

/// The text of a sealed object.
pub fn of(object: &Value) -> Option<&str> {
    text(object.get("metadata")?.get(KEY)?)
}

/// Makes a tree of what is sealed.
pub fn open(object: &mut Value) {
    let Some(tree) = of(object).map(|text| serde_json::from_str(text).unwrap_or_default()) else { return };
    put(object, tree);
}

/// An object with its `managedFields` as a tree.
pub fn opened(object: &Value) -> Cow<'_, Value> {
    let mut object = Cow::Borrowed(object);
    if of(&object).is_some() {
        open(object.to_mut());
    }
    object
}

/// Seals the entries of an object that are a tree.
pub fn close(object: &mut Value) {
    let Some(tree) = object.get("metadata").and_then(|metadata| metadata.get(KEY)) else { return };
    if tree.is_array()
        && let Ok(text) = serde_json::value::to_raw_value(tree)
    {
        put(object, seal(&text));
    }
}

/// Takes what is sealed out of an object; [`put`] puts it back.
pub fn take(object: &mut Value) -> Option<Value> {
    of(object)?;
    object.get_mut("metadata")?.as_object_mut()?.remove(KEY)
}

/// Sets the `managedFields` of an object that has metadata.
pub fn put(object: &mut Value, managed_fields: Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert(KEY.into(), managed_fields);
    }
}

/// Takes away what only looks sealed: a text that was not in the object that this one was made from.
pub fn distrust(object: &mut Value, made_from: Option<&Value>) {
    if of(object).is_some_and(|text| made_from.and_then(of) != Some(text)) {
        take(object);
    }
}

/// An object that is written with its `managedFields` as they are, sealed or not.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a>(pub &'a Value);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) if of(self.0).is_some() => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    match value.as_object().filter(|_| key == "metadata") {
                        Some(metadata) => map.serialize_entry(key, &Metadata(metadata))?,
                        None => map.serialize_entry(key, value)?,
                    }
                }
                map.end()
            }
            other => other.serialize(serializer),
        }
    }
}

struct Metadata<'a>(&'a Map);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            let raw = text(value).filter(|_| key == KEY);
            match raw.and_then(|text| serde_json::from_str::<&RawValue>(text).ok()) {
                Some(raw) => map.serialize_entry(key, raw)?,
                None => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::json;

    use super::*;

    fn object(managed_fields: &Value) -> Value {
        json!({"kind": "A", "metadata": {"name": "a", "managedFields": managed_fields}, "spec": {"metadata": 1}})
    }

    #[test]
    fn a_sealed_object_is_written_and_opened_as_it_was() {
        let list = json!([{"manager": "m", "fieldsV1": {"f:spec": {".": {}}}}]);
        let whole = object(&list);
        let raw = serde_json::value::to_raw_value(&list).unwrap();
        let mut sealed = object(&seal(&raw));
        assert_ne!(sealed, whole);
        assert_eq!(serde_json::to_string(&Whole(&sealed)).unwrap(), whole.to_string());
        assert_eq!(serde_json::to_string(&Whole(&whole)).unwrap(), whole.to_string());
        let taken = take(&mut sealed).unwrap();
        assert!(of(&sealed).is_none() && sealed["metadata"].get(KEY).is_none());
        put(&mut sealed, taken);
        open(&mut sealed);
        assert_eq!(sealed, whole);
        close(&mut sealed);
        assert_eq!(of(&sealed), Some(raw.get()));
    }

    #[test]
    fn what_a_client_sent_is_not_sealed() {
        let raw = serde_json::value::to_raw_value(&json!([])).unwrap();
        let current = object(&seal(&raw));
        let mut kept = current.clone();
        distrust(&mut kept, Some(&current));
        assert_eq!(kept, current);
        for made_from in [None, Some(object(&Value::Null)), Some(object(&json!("\u{1}[1]")))] {
            let mut forged = current.clone();
            distrust(&mut forged, made_from.as_ref());
            assert!(forged["metadata"].get(KEY).is_none());
        }
    }
}
