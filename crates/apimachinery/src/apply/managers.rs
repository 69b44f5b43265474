//! The entries of `metadata.managedFields` (`apimachinery/pkg/util/managedfields/internal`, Kubernetes 1.36).

use serde_json::{Map, Value};

use super::Writer;
use super::set::Set;

/// Entries of updates that an object keeps apart; older ones are merged into one.
const MAX_UPDATERS: usize = 10;
/// The manager of merged old entries.
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One entry. `fields` stays as written until it must change: most writes change no entry but one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub operation: Operation,
    pub time: Option<String>,
    pub manager: String,
    pub api_version: String,
    pub subresource: String,
    pub fields: Value,
}

impl Entry {
    pub fn new(operation: Operation, writer: &Writer<'_>, fields: Value, now: &str) -> Self {
        let manager = if writer.manager.is_empty() { "unknown" } else { writer.manager };
        Self {
            operation,
            time: Some(now.into()),
            manager: manager.into(),
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
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
        Set::from_json(&self.fields)
    }

    /// Takes out the members of a set; false when nothing is left.
    pub fn subtract(&mut self, set: &Set) -> bool {
        if set.touches(&self.fields) {
            let mut mine = self.set();
            mine.subtract(set);
            self.fields = mine.to_json();
        }
        self.fields.as_object().is_some_and(|fields| !fields.is_empty())
    }

    fn decode(mut json: Value) -> Option<Self> {
        let operation = match json["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let fields = json.get_mut("fieldsV1").map(Value::take).filter(Value::is_object)?;
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Self {
            operation,
            time: text("time"),
            manager: text("manager").unwrap_or_default(),
            api_version: text("apiVersion").unwrap_or_default(),
            subresource: text("subresource").unwrap_or_default(),
            fields,
        })
    }

    fn encode(self) -> Value {
        let mut out = Map::new();
        let operation = if self.operation == Operation::Apply { "Apply" } else { "Update" };
        out.insert("manager".into(), self.manager.into());
        out.insert("operation".into(), operation.into());
        out.insert("apiVersion".into(), self.api_version.into());
        if let Some(time) = self.time {
            out.insert("time".into(), time.into());
        }
        out.insert("fieldsType".into(), "FieldsV1".into());
        out.insert("fieldsV1".into(), self.fields);
        if !self.subresource.is_empty() {
            out.insert("subresource".into(), self.subresource.into());
        }
        Value::Object(out)
    }
}

/// Reads entries; `None` when one makes no sense.
pub(super) fn decode(managed_fields: Value) -> Option<Vec<Entry>> {
    match managed_fields {
        Value::Array(list) => list.into_iter().map(Entry::decode).collect(),
        _ => Some(Vec::new()),
    }
}

/// A client asks for all entries to be dropped by writing `[]` or `[{}]`.
pub(super) fn is_reset(managed_fields: &Value) -> bool {
    match managed_fields.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Writes the entries in their order: appliers first, then by time, manager, version, subresource.
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
            let list = entries.into_iter().map(Entry::encode).collect();
            meta.insert("managedFields".into(), Value::Array(list));
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
                first.fields = set.to_json();
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
