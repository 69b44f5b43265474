//! Bodies that name a field twice. The last one counts, and whoever asked for validation is told, in the words of
//! `sigs.k8s.io/json` for JSON and of go-yaml for YAML.

use std::collections::HashSet;
use std::fmt;

use apimachinery::tree::{Entries, Items, Map, Text, Value};
use apimachinery::visit_leaves;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Where the reader is: nothing is written out unless there is something to complain about.
#[derive(Clone, Copy)]
enum Path<'p> {
    Whole,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Field(Self::Whole, key) => out.write_str(key),
            Self::Field(parent, key) => write!(out, "{parent}.{key}"),
            Self::Item(parent, index) => write!(out, "{parent}[{index}]"),
        }
    }
}

/// Reads JSON, with a complaint for each field that an object has twice.
///
/// # Errors
/// When it is no JSON.
pub fn json(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut complaints = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Reader { path: Path::Whole, complaints: &mut complaints }.deserialize(&mut reader)?;
    reader.end()?;
    Ok((value, complaints))
}

/// What go-yaml says about the first key that a mapping has twice (`UnmarshalStrict`).
pub fn yaml(text: &str) -> Option<String> {
    let failed = serde_saphyr::from_str::<Value>(text).err()?;
    match failed.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), location } => Some(format!(
            "yaml: unmarshal errors:\n  line {}: key {key:?} already set in map",
            location.line()
        )),
        _ => None,
    }
}

/// Builds a value as `serde_json` does, and looks at each key.
struct Reader<'r> {
    path: Path<'r>,
    complaints: &'r mut Vec<String>,
}

impl Reader<'_> {
    /// Each field is complained about once.
    fn complain(&mut self, field: Path<'_>) {
        let complaint = format!("duplicate field {:?}", field.to_string());
        if !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any valid JSON value")
    }

    visit_leaves!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Items::default();
        while let Some(item) = items.next_element_seed(Reader {
            path: Path::Item(&self.path, list.len()),
            complaints: &mut *self.complaints,
        })? {
            list.push(item);
        }
        Ok(Value::Array(list.finish()))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Entries::default();
        let parent = self.path;
        // Keys that come in order are all different.
        let mut seen: Option<HashSet<Text>> = None;
        while let Some(key) = entries.next_key::<Text>()? {
            let path = Path::Field(&parent, &key);
            if seen.is_none() && object.keys().next_back().is_some_and(|last| *last >= key) {
                seen = Some(object.keys().cloned().collect());
            }
            if seen.as_mut().is_some_and(|seen| !seen.insert(key.clone())) {
                self.complain(path);
            }
            let value = entries.next_value_seed(Reader { path, complaints: &mut *self.complaints })?;
            object.push(key, value);
        }
        Ok(Value::Object(object.finish()))
    }
}

/// Reads a JSON patch, with a complaint for each field that is there twice or that no operation has.
///
/// # Errors
/// When it is no JSON.
pub fn json_patch(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let (patch, mut complaints) = json(body)?;
    for (index, operation) in patch.as_array().into_iter().flatten().enumerate() {
        for key in operation.as_object().into_iter().flat_map(Map::keys) {
            if !["op", "path", "from", "value"].contains(&key.as_str()) {
                complaints.push(format!("unknown field {:?}", format!("[{index}].{key}")));
            }
        }
    }
    let complaints = complaints.into_iter().map(|complaint| format!("json patch {complaint}")).collect();
    Ok((patch, complaints))
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn the_last_of_two_counts_and_both_are_told_with_their_path() {
        let (value, complaints) = json(
            br#"{"a": 1, "b": [{"c": "x", "c": "y", "c": null}], "a": -2.5, "d": {"e": true, "f": {}}}"#,
        )
        .unwrap();
        assert_eq!(value, json!({"a": -2.5, "b": [{"c": null}], "d": {"e": true, "f": {}}}));
        assert_eq!(complaints, [r#"duplicate field "b[0].c""#, r#"duplicate field "a""#]);
    }

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -1, 18446744073709551615, 1e3, 0.1, 123456789012345678901234567890]}"#,
            r#"["\u00e4\n", {"": {"": []}}, null, true, false]"#,
            "0",
        ] {
            let (value, complaints) = json(text.as_bytes()).unwrap();
            assert_eq!(
                (value, complaints),
                (serde_json::from_str::<Value>(text).unwrap(), Vec::new()),
                "{text}"
            );
        }
        for text in ["", "{", r#"{"a"}"#, "1 2", r#"{"a": 01}"#] {
            let error = json(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(error, serde_json::from_str::<Value>(text).unwrap_err().to_string());
        }
    }

    #[test]
    fn yaml_is_told_by_its_line() {
        let said = yaml("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n").unwrap();
        assert_eq!(said, "yaml: unmarshal errors:\n  line 5: key \"c\" already set in map");
        assert_eq!((yaml("a: 1\n"), yaml("{")), (None, None));
    }

    #[test]
    fn operations_of_a_patch_have_four_fields() {
        let said = json_patch(
            br#"[{"op":"test","path":"/a","value":1,"value":2},{"op":"remove","path":"/b","why":""}]"#,
        );
        let wanted = [r#"json patch duplicate field "[0].value""#, r#"json patch unknown field "[1].why""#];
        assert_eq!(said.unwrap().1, wanted);
    }
}
