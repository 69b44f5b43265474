//! Who owns which field: server-side apply, and the tracking of all other writes in `metadata.managedFields`
//! (`apimachinery/pkg/util/managedfields`, `structured-merge-diff` v6 `merge`, Kubernetes 1.36).
//!
//! ```text
//! create, update, patch ──► track_update: what differs from before is the writer's now
//! apply ──► check ─► merge over live ─► prune what this manager dropped ─► conflicts? ─► own the configuration
//! ```
//!
//! All versions of a kind are taken to have the same fields: nothing here converts between versions.

mod conflict;
mod managers;
pub mod sealed;
mod set;
mod text;
mod walk;

use crate::tree::{Map, Value};
use jiff::Timestamp;

use crate::Status;
use crate::types::ObjectType;

pub use managers::manager_from_user_agent;
use managers::{Entry, Operation};
use set::Set;

/// Who writes, and through what.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Writer<'a> {
    /// `fieldManager`, or for other writes than apply [`manager_from_user_agent`].
    pub manager: &'a str,
    /// The version that the request was made in, for example `apps/v1`.
    pub api_version: &'a str,
    /// Empty: the object itself.
    pub subresource: &'a str,
}

/// Fields that a request through this endpoint cannot write, so that nobody comes to own them through it
/// (`ResetFieldsStrategy`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reset {
    /// Everything can be written.
    #[default]
    Nothing,
    /// The object itself, of a kind with a status subresource.
    Status,
    /// `/status` of a built-in kind: labels and annotations can be written.
    Spec,
    /// `/status` of a custom kind.
    AllButStatus,
}

impl Reset {
    fn set(self) -> Set {
        match self {
            Self::Nothing => Set::default(),
            Self::Status => Set::of_paths(&[&["status"]]),
            Self::Spec => Set::of_paths(&[
                &["spec"],
                &["metadata", "deletionTimestamp"],
                &["metadata", "ownerReferences"],
            ]),
            Self::AllButStatus => Set::of_paths(&[&["spec"], &["metadata"]]),
        }
    }
}

/// Fields of `metadata` that nobody owns.
const STRIPPED: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Writes `metadata.managedFields` of `new`, [sealed], for a create (`old`: none), update or patch by a writer.
///
/// `new` may bring entries of its own, as a client that sends back what it read does; a client that sends none
/// does not lose those of `old`, and one that sends `[]` or `[{}]` drops them all. An object without entries is
/// not tracked again by updates.
pub fn track_update(
    old: Option<&Value>,
    new: &mut Value,
    ty: &ObjectType,
    writer: &Writer<'_>,
    reset: Reset,
    now: Timestamp,
) {
    let sent = take_managed_fields(new);
    let live = || managers::decode(old.map_or(&Value::Null, |old| &old["metadata"]["managedFields"]));
    let entries = if !writer.subresource.is_empty() && old.is_some() {
        live()
    } else if managers::is_reset(&sent) {
        Some(Vec::new())
    } else {
        managers::decode(&sent).filter(|entries| !entries.is_empty()).or_else(live)
    };
    let mut entries = entries.unwrap_or_default();
    if !(entries.is_empty() && old.is_some()) {
        record(old.unwrap_or(&ty.empty()), new, ty, writer, reset, now, &mut entries);
    }
    managers::write(new, entries);
}

/// What [`apply`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object with its new `managedFields`.
    pub object: Value,
    /// Whether anything but a timestamp of `managedFields` differs from the live object.
    pub changed: bool,
}

/// Whether a configuration can be applied at all.
///
/// # Errors
/// 400 when it brings `managedFields`; 500 when it does not fit the type (as a real server answers).
pub fn check(config: &Value, ty: &ObjectType) -> Result<(), Status> {
    if config["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if !config.is_object() {
        return Err(Status::bad_request(
            "error decoding patch: an apply configuration must be a JSON object",
        ));
    }
    ty.types.check(ty.root, config, &mut String::new()).map_err(|error| unfit(config, &error.0))
}

/// Applies a configuration over the live object (none: creates it).
///
/// # Errors
/// 409 with a cause for each field that others own with another value, unless `force`; what [`check`] refuses.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    ty: &ObjectType,
    writer: &Writer<'_>,
    force: bool,
    reset: Reset,
    now: Timestamp,
) -> Result<Applied, Status> {
    check(config, ty)?;
    let (types, root) = (&*ty.types, ty.root);

    let mut before = live.cloned().unwrap_or_else(|| ty.empty());
    let mut entries = managers::decode(&take_managed_fields(&mut before)).unwrap_or_default();
    if entries.is_empty() && live.is_some() {
        let first = Writer { manager: "before-first-apply", subresource: "", ..*writer };
        record(&ty.empty(), &before, ty, &first, Reset::Nothing, now, &mut entries);
    }

    let mut claimed = types.field_set(root, config);
    claimed.subtract(&stripped());
    claimed.subtract_deep(&reset.set());
    let last =
        entries.iter().position(|entry| entry.is_of(Operation::Apply, writer)).map(|at| entries.remove(at));

    let merged = types.merge(root, &before, config);
    let mut after = match &last {
        Some(last) => prune(ty, &merged, &last.set(), config, &entries),
        None => merged,
    };

    let (mut taken, mut removed) = differences(ty, &before, &after);
    let ignored = reset.set();
    taken.subtract_deep(&ignored);
    removed.subtract_deep(&ignored);
    if !force {
        let overlap = |entry| (entry, Entry::set(entry).intersection(&taken));
        let conflicts: Vec<_> = entries.iter().map(overlap).filter(|(_, set)| !set.is_empty()).collect();
        if !conflicts.is_empty() {
            return Err(conflict::status(conflicts));
        }
    }
    entries.retain_mut(|entry| entry.subtract(&taken) && entry.subtract(&removed));
    if !claimed.is_empty() {
        let mut entry = Entry::new(Operation::Apply, writer, claimed.to_text(), &rfc3339(now));
        // Whoever says only what is so already changes nothing, and that has no time (`ManagedFieldsUpdater.Apply`).
        if before == after {
            match last {
                None => entry.time = None,
                Some(last) if last.set() == claimed => entry.time = last.time,
                Some(_) => {}
            }
        }
        entries.push(entry);
    }
    ensure_metadata(&mut after);
    managers::write(&mut after, entries);
    sealed::open(&mut after);
    let changed = live != Some(&after);
    Ok(Applied { object: after, changed })
}

/// Puts the old timestamps of `managedFields` back when nothing else differs between two objects, so that a write
/// that changes nothing can be seen as one. Returns whether nothing else differs.
pub fn restore_times(old: &Value, new: &mut Value) -> bool {
    let same = |key: &str, a: &Value, b: &Value| match key {
        "managedFields" => timeless(a) == timeless(b),
        _ => a == b,
    };
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else { return old == new };
    // Most writes differ outside of the metadata, which takes longest to compare.
    let equal = same_entries(a, b, |key, a, b| key == "metadata" || a == b)
        && match (old["metadata"].as_object(), new["metadata"].as_object()) {
            (Some(a), Some(b)) => same_entries(a, b, same),
            _ => old["metadata"] == new["metadata"],
        };
    if equal {
        let fields = old["metadata"]["managedFields"].clone();
        if let Some(meta) =
            new.get_mut("metadata").and_then(Value::as_object_mut).filter(|_| !fields.is_null())
        {
            meta.insert("managedFields".into(), fields);
        }
    }
    equal
}

fn same_entries(a: &Map, b: &Map, same: impl Fn(&str, &Value, &Value) -> bool) -> bool {
    a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(key, a, b)))
}

fn timeless(managed_fields: &Value) -> Value {
    let mut list = match sealed::text(managed_fields) {
        Some(text) => serde_json::from_str(text).unwrap_or_default(),
        None => managed_fields.clone(),
    };
    for entry in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        entry.remove("time");
    }
    list
}

/// Gives the writer what differs, and takes it from the others.
fn record(
    old: &Value,
    new: &Value,
    ty: &ObjectType,
    writer: &Writer<'_>,
    reset: Reset,
    now: Timestamp,
    entries: &mut Vec<Entry>,
) {
    let (mut taken, mut removed) = differences(ty, old, new);
    if reset != Reset::Nothing {
        let ignored = reset.set();
        taken.subtract_deep(&ignored);
        removed.subtract_deep(&ignored);
    }
    let mut found = false;
    entries.retain_mut(|entry| {
        if !entry.is_of(Operation::Update, writer) {
            return entry.subtract(&taken) && entry.subtract(&removed);
        }
        let left = entry.subtract(&removed);
        if taken.is_empty() {
            return left;
        }
        found = true;
        entry.time = Some(rfc3339(now));
        if !left || !taken.is_within(&entry.fields) {
            let mut set = entry.set();
            set.union(&taken);
            entry.fields = set.to_text();
        }
        true
    });
    if !found && !taken.is_empty() {
        entries.push(Entry::new(Operation::Update, writer, taken.to_text(), &rfc3339(now)));
    }
}

/// What is new or changed, and what is gone, without the fields that nobody owns.
fn differences(ty: &ObjectType, old: &Value, new: &Value) -> (Set, Set) {
    let (types, root) = (&*ty.types, ty.root);
    let (mut taken, mut removed) = types.compare_maps(root, old, new, &["apiVersion", "kind", "metadata"]);
    let metadata = types.field_type(root, "metadata");
    let (meta_taken, meta_removed) =
        types.compare_maps(metadata, &old["metadata"], &new["metadata"], &STRIPPED);
    taken.insert("f:metadata", meta_taken);
    removed.insert("f:metadata", meta_removed);
    (taken, removed)
}

/// Removes what this manager applied last time, does not apply now, and nobody else owns.
fn prune(ty: &ObjectType, merged: &Value, last: &Set, config: &Value, others: &[Entry]) -> Value {
    let (types, root) = (&*ty.types, ty.root);
    let named = |set: &Set, value: &Value| types.with_named_fields(root, set, value);
    let without = |set: &Set| types.remove(root, merged, set);
    let last = named(last, merged);
    let all = named(&types.field_set(root, merged), merged);

    // all that the configuration says, empty lists too, which nobody can own
    let mut managed = types.everything(root, config);
    for entry in others {
        managed.union(&entry.set());
    }
    let pruned = without(&last);
    let mut keep = types.everything(root, &pruned);
    keep.union(&named(&managed, merged));
    let mut gone = all.clone();
    gone.subtract(&keep);
    let pruned = without(&gone);

    // give back what never was this manager's
    let mut gone = all;
    gone.subtract(&types.everything(root, &pruned));
    without(&gone.intersection(&last))
}

fn stripped() -> Set {
    let mut set = Set::of_paths(&[&["apiVersion"], &["kind"], &["metadata"]]);
    let names: Vec<[&str; 2]> = STRIPPED.iter().map(|name| ["metadata", name]).collect();
    let paths: Vec<&[&str]> = names.iter().map(<[&str; 2]>::as_slice).collect();
    set.union(&Set::of_paths(&paths));
    set
}

fn take_managed_fields(object: &mut Value) -> Value {
    let meta = object.get_mut("metadata").and_then(Value::as_object_mut);
    meta.and_then(|meta| meta.remove("managedFields")).unwrap_or_default()
}

fn ensure_metadata(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        let meta = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if !meta.is_object() {
            *meta = Value::Object(Map::new());
        }
    }
}

fn unfit(config: &Value, why: &str) -> Status {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &config["metadata"];
    let version = text(&config["apiVersion"]);
    // Go prints the empty group of core, too.
    let core = if version.contains('/') { "" } else { "/" };
    let message = format!(
        "failed to create typed patch object ({}/{}; {core}{version}, Kind={}): {why}",
        text(&meta["namespace"]),
        text(&meta["name"]),
        text(&config["kind"]),
    );
    Status::new(500, "", message)
}

fn rfc3339(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
