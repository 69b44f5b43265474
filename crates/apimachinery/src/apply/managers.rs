//! The entries of `metadata.managedFields` (`apimachinery/pkg/util/managedfields/internal`, Kubernetes 1.36).

use crate::tree::{List, Map, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::set::Set;
use super::{Writer, sealed};

/// Entries of updates that an object keeps apart; older ones are merged into one.
const MAX_UPDATERS: usize = 10;
/// The manager of merged old entries.
const ANCIENT: &str = "ancient-changes";
/// No fields at all.
const EMPTY: &str = "{}";

#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One entry, its fields in the order in which they are written. `fields` stays as written until it must change: most
/// writes change no entry but one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    fields_type: FieldsType,
    #[serde(rename = "fieldsV1")]
    pub fields: Box<RawValue>,
    #[serde(default)]
    pub manager: String,
    pub operation: Operation,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subresource: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// There is one way of writing fields; whatever an entry says, it is taken to be this one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
enum FieldsType {
    #[default]
    #[serde(other)]
    FieldsV1,
}

impl Entry {
    pub fn new(operation: Operation, writer: &Writer<'_>, fields: Box<RawValue>, now: &str) -> Self {
        let manager = if writer.manager.is_empty() { "unknown" } else { writer.manager };
        Self {
            operation,
            time: Some(now.into()),
            manager: manager.into(),
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
            fields_type: FieldsType::FieldsV1,
            fields,
        }
    }

    /// Whether this is the entry of a writer. Appliers keep theirs across versions.
    pub fn is_of(&self, operation: Operation, writer: &Writer<'_>) -> bool {
        let manager = if writer.manager.is_empty() { "unknown" } else { writer.manager };
        self.operation == operation
            && self.manager == manager
            && self.subresource == writer.subresource
            && (operation == Operation::Apply || self.api_version == writer.api_version)
    }

    pub fn set(&self) -> Set {
        Set::from_text(&self.fields)
    }

    /// Takes out the members of a set; false when nothing is left.
    pub fn subtract(&mut self, set: &Set) -> bool {
        if set.touches(&self.fields) {
            let mut mine = self.set();
            mine.subtract(set);
            self.fields = mine.to_text();
        }
        self.fields.get() != EMPTY
    }
}

/// Reads entries; `None` when one makes no sense.
pub(super) fn decode(managed_fields: &Value) -> Option<Vec<Entry>> {
    let entries: Vec<Entry> = match managed_fields {
        Value::Array(_) => serde_json::from_str(&managed_fields.to_string()).ok()?,
        other => match sealed::text(other) {
            Some(text) => serde_json::from_str(text).ok()?,
            None => return Some(Vec::new()),
        },
    };
    entries.iter().all(|entry| entry.fields.get().starts_with('{')).then_some(entries)
}

/// A client asks for all entries to be dropped by writing `[]` or `[{}]`.
pub(super) fn is_reset(managed_fields: &Value) -> bool {
    match managed_fields.as_array().map(List::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Writes the entries, sealed, in their order: appliers first, then by time, manager, version, subresource.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    cap(&mut entries);
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (e.operation, e.time.clone().unwrap_or_default());
        let rest = |e: &Entry| (e.manager.clone(), e.api_version.clone(), e.subresource.clone());
        key(a).cmp(&key(b)).then_with(|| rest(a).cmp(&rest(b)))
    });
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if entries.is_empty() {
            meta.remove("managedFields");
        } else {
            // Texts and texts with keys: this can be written.
            let text = serde_json::value::to_raw_value(&entries).unwrap_or_default();
            meta.insert("managedFields".into(), sealed::seal(&text));
        }
    }
}

/// Merges the oldest updates, per version, until few enough are left.
fn cap(entries: &mut Vec<Entry>) {
    let updaters = entries.iter().filter(|entry| entry.operation == Operation::Update).count();
    if updaters <= MAX_UPDATERS {
        return;
    }
    let mut excess = updaters - MAX_UPDATERS;
    let (mut old, mut out): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(entries).into_iter().partition(|entry| entry.operation == Operation::Update);
    old.sort_by(|a, b| (&a.time, &a.manager).cmp(&(&b.time, &b.manager)));
    let mut kept: Vec<Entry> = Vec::new();
    for entry in old {
        let first = kept.iter_mut().find(|first| first.api_version == entry.api_version);
        match first.filter(|_| excess > 0) {
            Some(first) => {
                let mut set = first.set();
                set.union(&entry.set());
                first.fields = set.to_text();
                first.manager = ANCIENT.into();
                first.subresource.clear();
                first.time = entry.time;
                excess -= 1;
            }
            None => kept.push(entry),
        }
    }
    out.extend(kept);
    *entries = out;
}

/// The manager of a request that names none: the `User-Agent` up to the first slash, at most 128 bytes.
pub fn manager_from_user_agent(user_agent: &str) -> String {
    let mut out = String::new();
    for c in user_agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > 128 {
            break;
        }
        out.push(c);
    }
    out
}
