//! Strategic merge patch: a merge patch that knows which lists of built-in kinds are maps
//! (`apimachinery/pkg/util/strategicpatch`, Kubernetes 1.36).

use std::collections::{HashMap, HashSet};

use crate::tree::{List, Map, Value};

use crate::Status;
use crate::types::{MapType, Node, ObjectType, TypeId, Types};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of a built-in kind.
///
/// # Errors
/// 400 when a directive is malformed, 500 when a list item has no merge key or a directive is unknown (as a
/// real server answers).
pub fn strategic_patch(object: &Value, patch: &Value, ty: &ObjectType) -> Result<Value, Status> {
    let (Value::Object(fields), Value::Object(patch)) = (object, patch) else {
        return Err(Status::bad_request(
            "error decoding patch: a strategic merge patch must be a JSON object",
        ));
    };
    let mut patched = fields.clone();
    Merger { types: &ty.types }.map(Some(ty.root), &mut patched, patch)?;
    Ok(Value::Object(patched))
}

struct Merger<'a> {
    types: &'a Types,
}

impl<'a> Merger<'a> {
    fn map_type(&self, id: Option<TypeId>) -> Option<&'a MapType> {
        match self.types.node(id?) {
            Node::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The type of a field, of the items of its list, and the key that its items are merged by.
    fn field(&self, id: Option<TypeId>, name: &str) -> (Option<TypeId>, Option<TypeId>, Option<&'a str>) {
        let Some(map) = self.map_type(id) else { return (None, None, None) };
        let ty = map.field(name);
        let item = ty.and_then(|ty| match self.types.node(ty) {
            Node::List(list) => Some(list.item),
            _ => None,
        });
        (ty, item, map.fields.get(name).and_then(|field| field.merge_key.as_deref()))
    }

    fn map(&self, id: Option<TypeId>, original: &mut Map, patch: &Map) -> Result<(), Status> {
        match patch.get(PATCH).map(Value::as_str) {
            None | Some(Some("merge")) => {}
            Some(Some("replace")) => {
                *original = cleaned_map(patch);
                return Ok(());
            }
            Some(Some("delete")) => {
                original.clear();
                return Ok(());
            }
            Some(_) => return Err(unknown_directive(&patch[PATCH])),
        }
        retain_keys(original, patch)?;
        // Out and in all at once: one by one each would move those behind it.
        let goes = |key: &str| !key.starts_with('$') && patch.get(key).is_some_and(Value::is_null);
        if patch.keys().any(|key| goes(key)) {
            original.retain(|key, _| !goes(key));
        }
        let mut added = Vec::new();
        for (key, value) in patch {
            if let Some(name) = key.strip_prefix(DELETE_FROM) {
                let gone = list_of(value, "$deleteFromPrimitiveList")?;
                if let Some(Value::Array(list)) = original.get_mut(name) {
                    let gone: HashSet<String> = gone.iter().map(Value::to_string).collect();
                    list.retain(|item| !gone.contains(&item.to_string()));
                }
                continue;
            }
            if key.starts_with('$') {
                continue;
            }
            let ordered = patch.contains_key(&format!("{ORDER}{key}"));
            if !ordered && !value.is_null() && !original.contains_key(key) {
                added.push((key.clone(), cleaned(value)));
                continue;
            }
            let before = ordered.then(|| original.get(key).cloned());
            self.field_value(id, original, key, value)?;
            if let Some(before) = before {
                self.reorder(id, original, key, before.as_ref(), &patch[&format!("{ORDER}{key}")])?;
            }
        }
        original.extend(added);
        // an order without a change of the list
        for (key, order) in patch {
            if let Some(name) = key.strip_prefix(ORDER).filter(|name| !patch.contains_key(name)) {
                let before = original.get(name).cloned();
                self.reorder(id, original, name, before.as_ref(), order)?;
            }
        }
        Ok(())
    }

    fn field_value(
        &self,
        id: Option<TypeId>,
        original: &mut Map,
        key: &str,
        value: &Value,
    ) -> Result<(), Status> {
        if value.is_null() {
            original.remove(key);
            return Ok(());
        }
        let (ty, item, merge_key) = self.field(id, key);
        match (original.get_mut(key), value) {
            (Some(Value::Object(original)), Value::Object(patch)) => self.map(ty, original, patch),
            (Some(Value::Array(original)), Value::Array(patch)) if merge_key.is_some() => {
                self.list(item, original, patch, merge_key.unwrap_or_default())
            }
            _ => {
                original.insert(key.into(), cleaned(value));
                Ok(())
            }
        }
    }

    fn list(
        &self,
        item: Option<TypeId>,
        original: &mut List,
        patch: &[Value],
        merge_key: &str,
    ) -> Result<(), Status> {
        if merge_key.is_empty() {
            let mut seen = HashSet::new();
            let before = original.clone();
            original.extend(patch.iter().cloned());
            original.retain(|item| seen.insert(item.to_string()));
            *original = ordered(std::mem::take(original), patch, &before, merge_key);
            return Ok(());
        }
        let mut wanted: Vec<&Map> = Vec::new();
        let mut replace = false;
        let mut gone: HashSet<String> = HashSet::new();
        for entry in patch {
            let Value::Object(entry) = entry else {
                return Err(Status::new(
                    500,
                    "",
                    "invalid JSON document: a list of objects holds something else",
                ));
            };
            match entry.get(PATCH).map(Value::as_str) {
                None => wanted.push(entry),
                Some(Some("replace")) => replace = true,
                Some(Some("delete")) => {
                    let key = entry
                        .get(merge_key)
                        .ok_or_else(|| Status::new(500, "", "delete patch type with no merge key defined"))?;
                    gone.insert(key.to_string());
                }
                Some(Some("merge")) => {
                    return Err(Status::new(500, "", "merging lists cannot yet be specified in the patch"));
                }
                Some(_) => return Err(unknown_directive(&entry[PATCH])),
            }
        }
        if replace {
            *original = wanted.into_iter().map(|entry| Value::Object(cleaned_map(entry))).collect();
            return Ok(());
        }
        original.retain(|item| !gone.contains(&item[merge_key].to_string()));
        let before = original.clone();
        let mut at: HashMap<String, usize> = HashMap::new();
        for (index, item) in original.iter().enumerate() {
            at.entry(item[merge_key].to_string()).or_insert(index);
        }
        for entry in wanted {
            let Some(key) = entry.get(merge_key).map(Value::to_string) else {
                let message =
                    format!("map: {} does not contain declared merge key: {merge_key}", go_map(entry));
                return Err(Status::new(500, "", message));
            };
            let found =
                at.get(&key).and_then(|index| original.get_mut(*index)).and_then(Value::as_object_mut);
            if let Some(found) = found {
                self.map(item, found, entry)?;
            } else {
                at.insert(key, original.len());
                original.push(Value::Object(cleaned_map(entry)));
            }
        }
        *original = ordered(std::mem::take(original), patch, &before, merge_key);
        Ok(())
    }

    fn reorder(
        &self,
        id: Option<TypeId>,
        original: &mut Map,
        name: &str,
        before: Option<&Value>,
        order: &Value,
    ) -> Result<(), Status> {
        let order = list_of(order, "$setElementOrder")?;
        let merge_key = self.field(id, name).2.unwrap_or_default();
        if let Some(Value::Array(list)) = original.get_mut(name) {
            let before = before.and_then(Value::as_array).map_or(&[][..], List::as_slice);
            *list = ordered(std::mem::take(list), order, before, merge_key);
        }
        Ok(())
    }
}

/// Puts the items named in `order` into that order, and the others between them where the list had them before.
fn ordered(merged: List, order: &[Value], before: &[Value], merge_key: &str) -> List {
    let name = |item: &Value| -> String {
        if merge_key.is_empty() { item.to_string() } else { item[merge_key].to_string() }
    };
    let positions = |list: &[Value]| -> HashMap<String, usize> {
        list.iter().enumerate().rev().map(|(index, item)| (name(item), index)).collect()
    };
    let (wanted, old) = (positions(order), positions(before));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| wanted.contains_key(&name(item)));
    named.sort_by_key(|item| wanted.get(&name(item)).copied());
    others.sort_by_key(|item| old.get(&name(item)).copied().unwrap_or(usize::MAX));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut out = List::new();
    while let (Some(left), Some(right)) = (others.peek(), named.peek()) {
        let earlier = match (old.get(&name(left)), old.get(&name(right))) {
            (Some(left), Some(right)) => left < right,
            _ => false,
        };
        out.extend(if earlier { others.next() } else { named.next() });
    }
    out.extend(others);
    out.extend(named);
    out
}

/// `$retainKeys`: all other fields go.
fn retain_keys(original: &mut Map, patch: &Map) -> Result<(), Status> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let keys: HashSet<&str> = list_of(keys, RETAIN_KEYS)?.iter().filter_map(Value::as_str).collect();
    let stray = patch
        .iter()
        .any(|(key, value)| !value.is_null() && !key.starts_with('$') && !keys.contains(key.as_str()));
    if stray {
        return Err(malformed(RETAIN_KEYS));
    }
    original.retain(|key, _| keys.contains(key.as_str()));
    Ok(())
}

/// What a patch puts where nothing was: its directives and nulls mean nothing there.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(cleaned_map(fields)),
        Value::Array(list) => list.iter().filter(|item| item.get(PATCH).is_none()).map(cleaned).collect(),
        other => other.clone(),
    }
}

fn cleaned_map(fields: &Map) -> Map {
    let directive = |key: &str| {
        key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_FROM) || key.starts_with(ORDER)
    };
    let kept = fields.iter().filter(|(key, value)| !value.is_null() && !directive(key));
    kept.map(|(key, value)| (key.clone(), cleaned(value))).collect()
}

fn list_of<'v>(value: &'v Value, directive: &str) -> Result<&'v [Value], Status> {
    value.as_array().map(List::as_slice).ok_or_else(|| malformed(directive))
}

fn malformed(directive: &str) -> Status {
    Status::bad_request(match directive {
        RETAIN_KEYS => "invalid patch format of retainKeys",
        "$setElementOrder" => "invalid patch format of setElementOrder list",
        _ => "invalid patch format of primitive list",
    })
}

fn unknown_directive(directive: &Value) -> Status {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    Status::new(500, "", format!("unknown patch type: {directive}"))
}

/// An object as Go prints it: `map[a:1 b:2]`.
fn go_map(fields: &Map) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let parts: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", text(value))).collect();
    format!("map[{}]", parts.join(" "))
}
