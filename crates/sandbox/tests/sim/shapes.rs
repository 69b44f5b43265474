//! What objects look like at the end of a recording, and whether ours have the same fields.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// Objects by kind and name, as a recorded watch left them: each line is an object that came, or what changed of one.
pub fn recorded(path: &Path) -> BTreeMap<(String, String), Value> {
    let mut world = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let key = (word("kind"), word("name"));
        match word("type").as_str() {
            "ADDED" => {
                world.insert(key, event["object"].clone());
            }
            "DELETED" => {
                world.remove(&key);
            }
            "MODIFIED" => {
                let object = world.get_mut(&key).unwrap();
                for change in event["diff"].as_array().unwrap() {
                    apply(object, change[0].as_str().unwrap(), &change[2]);
                }
            }
            // A remark of the lab's.
            _ => {}
        }
    }
    world
}

/// Keys of labels and annotations have slashes of their own.
fn apply(object: &mut Value, path: &str, new: &Value) {
    let (mut at, mut rest) = (object, path.trim_start_matches('/'));
    loop {
        let (name, more) = rest.split_once('/').unwrap_or((rest, ""));
        if more.is_empty() {
            match at {
                Value::Array(list) => list[name.parse::<usize>().unwrap()] = new.clone(),
                Value::Object(map) if new.is_null() => drop(map.remove(name)),
                other => other[name] = new.clone(),
            }
            return;
        }
        at = match at {
            Value::Array(list) => &mut list[name.parse::<usize>().unwrap()],
            other => &mut other[name],
        };
        rest = more;
        if matches!(name, "annotations" | "labels") {
            match new {
                Value::Null => drop(at.as_object_mut().unwrap().remove(rest)),
                new => at[rest] = new.clone(),
            }
            return;
        }
    }
}

/// Every field with its type; elements of lists count together, and keys that are uids are one.
pub fn fields(object: &Value) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    walk(object, "", &mut all);
    all
}

fn walk(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| *key != "managedFields") {
                let is_uid = key.len() == 36 && key.matches('-').count() == 4;
                walk(value, &format!("{path}/{}", if is_uid { "UID" } else { key }), all);
            }
            return;
        }
        Value::Array(list) => {
            for value in list {
                walk(value, &format!("{path}[]"), all);
            }
            return;
        }
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
    };
    all.insert(format!("{path} {kind}"));
}

/// Fields that one has and the other has not, but for those below the named places.
pub fn differences(recorded: &Value, ours: &Value, but: &[&str]) -> Vec<String> {
    let (recorded, ours) = (fields(recorded), fields(ours));
    let counts = |field: &&String| !but.iter().any(|place| field.starts_with(place));
    let missing = recorded.difference(&ours).filter(counts).map(|field| format!("missing: {field}"));
    let more = ours.difference(&recorded).filter(counts).map(|field| format!("too much: {field}"));
    missing.chain(more).collect()
}
