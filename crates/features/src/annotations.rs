use json_patch::PatchOperation;
use serde_json::{Map, Value};

use crate::json::{self, pointer};
use crate::wishes::metadata_map;

/// Edits of `metadata.annotations`, made into operations at the end.
pub(crate) struct Annotations<'a> {
    base: Option<&'a Map<String, Value>>,
    /// Few, and most of them remove what is not there: not worth a map.
    edits: Vec<(&'static str, Option<String>)>,
}

impl<'a> Annotations<'a> {
    pub(crate) fn new(object: &'a Value) -> Self {
        Self { base: metadata_map(object, "annotations"), edits: Vec::new() }
    }

    /// Sets an annotation, or removes it. The last edit of a key counts.
    pub(crate) fn set(&mut self, key: &'static str, value: Option<String>) {
        let known = self.edits.iter_mut().find(|(edited, _)| *edited == key);
        match known {
            Some((_, edit)) => *edit = value,
            None if value.is_none() && self.base.is_none_or(|base| !base.contains_key(key)) => {}
            None => self.edits.push((key, value)),
        }
    }

    /// Emits the edits that change something.
    pub(crate) fn finish(mut self, operations: &mut Vec<PatchOperation>) {
        self.edits.sort_unstable_by_key(|(key, _)| *key);
        let Some(base) = self.base else {
            let set = self.edits.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
            let created: Map<String, Value> = set.collect();
            if !created.is_empty() {
                operations.push(json::add(pointer(&["metadata", "annotations"]), Value::Object(created)));
            }
            return;
        };
        for (key, value) in self.edits {
            let path = || pointer(&["metadata", "annotations", key]);
            match (base.get(key), value) {
                (Some(before), Some(value)) if before.as_str() == Some(&value) => {}
                (Some(_), Some(value)) => operations.push(json::replace(path(), value.into())),
                (None, Some(value)) => operations.push(json::add(path(), value.into())),
                (Some(_), None) => operations.push(json::remove(path())),
                (None, None) => {}
            }
        }
    }
}
