//! Walks over typed values: what is in one, what differs between two, merging two, removing parts.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{List, Map, Value};

use super::set::Set;
use crate::types::{ListKind, ListType, Node, Scalar, Shape, TypeId, Types};

/// Why a configuration cannot be applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WalkError(pub String);

/// The element of a list item in a path; `None`: the item has no identity.
fn element(list: &ListType, item: &Value) -> Option<String> {
    match &list.kind {
        ListKind::Atomic => None,
        ListKind::Set => (!item.is_object() && !item.is_array()).then(|| format!("v:{item}")),
        ListKind::Map(keys) => {
            let fields = item.as_object()?;
            let mut out = Map::new();
            for (key, default) in keys {
                let value = match (fields.get(key), default) {
                    (Some(value), _) if !value.is_null() => value.clone(),
                    (_, Some(default)) => default.as_str().into(),
                    _ => return None,
                };
                out.insert(key.into(), value);
            }
            Some(format!("k:{}", Value::Object(out)))
        }
    }
}

/// Items by element; `None` when one has no identity or two have the same: the list is one value then.
fn elements<'a>(list: &ListType, items: &'a [Value]) -> Option<BTreeMap<String, &'a Value>> {
    let mut out = BTreeMap::new();
    for item in items {
        if out.insert(element(list, item)?, item).is_some() {
            return None;
        }
    }
    Some(out)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], List::as_slice)
}

fn fields(value: &Value) -> Option<&Map> {
    value.as_object().filter(|fields| !fields.is_empty())
}

fn is_bare(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

impl Types {
    /// Every path of a value, containers too: what becomes owned when the value appears.
    pub(crate) fn everything(&self, id: TypeId, value: &Value) -> Set {
        let mut set = Set::leaf();
        match self.shape(id, value) {
            Shape::Leaf => {}
            Shape::List(list) => {
                for (element, item) in elements(list, items(value)).into_iter().flatten() {
                    set.insert(element, self.everything(list.item, item));
                }
            }
            Shape::Map(_) | Shape::Deduced => {
                for (name, value) in fields(value).into_iter().flatten() {
                    let child = self.field_type(id, name);
                    set.insert(format!("f:{name}"), self.everything(child, value));
                }
            }
        }
        set
    }

    /// The paths that a configuration claims: leaves, list items, and keys of maps, but not named fields that hold
    /// something.
    pub(crate) fn field_set(&self, id: TypeId, value: &Value) -> Set {
        let mut set = Set::default();
        match self.shape(id, value) {
            Shape::Leaf => set.own = true,
            Shape::List(list) => match elements(list, items(value)) {
                None => set.own = true,
                Some(elements) => {
                    for (element, item) in elements {
                        let mut child = self.field_set(list.item, item);
                        child.own = true;
                        set.insert(element, child);
                    }
                }
            },
            shape @ (Shape::Map(_) | Shape::Deduced) => {
                for (name, value) in fields(value).into_iter().flatten() {
                    let named = matches!(&shape, Shape::Map(map) if map.fields.contains_key(name.as_str()));
                    let mut child = self.field_set(self.field_type(id, name), value);
                    child.own |= !named || is_bare_map(value);
                    set.insert(format!("f:{name}"), child);
                }
            }
        }
        set
    }

    /// What is new or changed, and what is gone, from one value to another.
    pub(crate) fn compare(&self, id: TypeId, old: &Value, new: &Value, taken: &mut Set, removed: &mut Set) {
        if is_bare(old) && is_bare(new) {
            taken.own |= old != new;
            return;
        }
        let shape = if is_bare(new) { self.shape(id, old) } else { self.shape(id, new) };
        match &shape {
            Shape::List(list) if old.is_array() || old.is_null() => {
                match (elements(list, items(old)), elements(list, items(new))) {
                    (Some(old), Some(new)) => {
                        self.compare_children(list.item, &old, &new, taken, removed);
                    }
                    _ => taken.own |= old != new,
                }
            }
            Shape::Map(_) | Shape::Deduced if old.is_object() || old.is_null() => {
                let (map_taken, map_removed) = self.compare_maps(id, old, new, &[]);
                taken.union(&map_taken);
                removed.union(&map_removed);
            }
            _ => {
                if old != new {
                    taken.union(&Set { own: true, ..self.everything(id, new) });
                    removed.union(&Set { own: false, ..self.everything(id, old) });
                }
            }
        }
    }

    /// Compares two values as maps, whatever their type says, passing over some names.
    pub(crate) fn compare_maps(&self, id: TypeId, old: &Value, new: &Value, skip: &[&str]) -> (Set, Set) {
        let (mut taken, mut removed) = (Set::default(), Set::default());
        let of = |value, name| fields(value).and_then(|fields| fields.get(name));
        let named =
            |value| fields(value).into_iter().flatten().filter(|(name, _)| !skip.contains(&name.as_str()));
        for (name, gone) in named(old).filter(|(name, _)| of(new, name).is_none()) {
            removed.insert(format!("f:{name}"), self.everything(self.field_type(id, name), gone));
        }
        for (name, new) in named(new).filter(|(name, new)| of(old, name) != Some(*new)) {
            let (element, ty) = (format!("f:{name}"), self.field_type(id, name));
            self.compare_child(&element, ty, of(old, name), new, &mut taken, &mut removed);
        }
        (taken, removed)
    }

    /// The type of a field of a map; a field that the type does not have is taken as it is.
    pub(crate) fn field_type(&self, id: TypeId, name: &str) -> TypeId {
        match self.node(id) {
            Node::Map(map) => map.field(name).unwrap_or(id),
            _ => id,
        }
    }

    fn compare_children(
        &self,
        ty: TypeId,
        old: &BTreeMap<String, &Value>,
        new: &BTreeMap<String, &Value>,
        taken: &mut Set,
        removed: &mut Set,
    ) {
        for (element, old) in old {
            if !new.contains_key(element) {
                removed.insert(element.as_str(), self.everything(ty, old));
            }
        }
        for (element, new) in new {
            let old = old.get(element).copied();
            if old != Some(*new) {
                self.compare_child(element, ty, old, new, taken, removed);
            }
        }
    }

    /// A field or an item that is new or different.
    fn compare_child(
        &self,
        element: &str,
        ty: TypeId,
        old: Option<&Value>,
        new: &Value,
        taken: &mut Set,
        removed: &mut Set,
    ) {
        let Some(old) = old else { return taken.insert(element, self.everything(ty, new)) };
        let (mut child_taken, mut child_removed) = (Set::default(), Set::default());
        self.compare(ty, old, new, &mut child_taken, &mut child_removed);
        taken.insert(element, child_taken);
        removed.insert(element, child_removed);
    }

    /// Lays a configuration over a live value. Items of the configuration keep their order among each other.
    pub(crate) fn merge(&self, id: TypeId, live: &Value, config: &Value) -> Value {
        if is_bare(live) && is_bare(config) {
            return config.clone();
        }
        match self.shape(id, config) {
            Shape::List(list) if live.is_array() || live.is_null() => {
                self.merge_list(list, items(live), items(config))
            }
            Shape::Map(_) | Shape::Deduced if live.is_object() || live.is_null() => {
                let mut out = live.as_object().cloned().unwrap_or_default();
                for (name, value) in fields(config).into_iter().flatten() {
                    let merged = match out.get(name) {
                        Some(live) => self.merge(self.field_type(id, name), live, value),
                        None => value.clone(),
                    };
                    out.insert(name.clone(), merged);
                }
                Value::Object(out)
            }
            _ => config.clone(),
        }
    }

    fn merge_list(&self, list: &ListType, live: &[Value], config: &[Value]) -> Value {
        let right: Vec<Option<String>> = config.iter().map(|item| element(list, item)).collect();
        let left: Vec<Option<String>> = live.iter().map(|item| element(list, item)).collect();
        let index = |elements: &[Option<String>]| -> BTreeMap<String, usize> {
            elements.iter().enumerate().rev().filter_map(|(at, e)| Some((e.clone()?, at))).collect()
        };
        let (in_left, in_right) = (index(&left), index(&right));
        let mut shared = right.iter().flatten().filter(|element| in_left.contains_key(*element)).peekable();
        let mut done: BTreeSet<&str> = BTreeSet::new();
        let mut out = Vec::new();
        let (mut l, mut r) = (0, 0);
        while l < live.len() || r < config.len() {
            if let (Some(mine), Some(theirs)) = (left.get(l), right.get(r)) {
                if let Some(name) = mine.as_deref().filter(|_| mine == theirs) {
                    out.push(self.merge(list.item, &live[l], &config[r]));
                    done.insert(name);
                    (l, r) = (l + 1, r + 1);
                    shared.next();
                    continue;
                }
                // a shared item whose turn has not come
                let known = mine.as_ref().is_some_and(|name| in_right.contains_key(name));
                if known && shared.peek().is_some_and(|next| Some(*next) != mine.as_ref()) {
                    l += 1;
                    continue;
                }
            }
            if let Some(mine) = left.get(l) {
                match mine.as_deref() {
                    Some(name) if in_right.contains_key(name) => {
                        if done.contains(name) {
                            l += 1;
                        }
                    }
                    _ => {
                        out.push(live[l].clone());
                        l += 1;
                        continue;
                    }
                }
            }
            if let Some(theirs) = right.get(r) {
                let at = theirs.as_ref().and_then(|name| in_left.get(name));
                out.push(match at {
                    Some(at) => self.merge(list.item, &live[*at], &config[r]),
                    None => config[r].clone(),
                });
                if let Some(name) = theirs.as_deref() {
                    done.insert(name);
                    if shared.peek().is_some_and(|next| next.as_str() == name) {
                        shared.next();
                    }
                }
                r += 1;
            }
        }
        Value::from(out)
    }

    /// Takes out the paths of a set. A container that loses all it had stays, empty, unless it is in the set too.
    pub(crate) fn remove(&self, id: TypeId, value: &Value, set: &Set) -> Value {
        let kept = |element: &str, ty: TypeId, value: &Value| match set.children.get(element) {
            None => Some(value.clone()),
            Some(child) if child.own => None,
            Some(child) => Some(self.remove(ty, value, child)),
        };
        match self.shape(id, value) {
            Shape::Leaf => value.clone(),
            _ if is_bare(value) => value.clone(),
            Shape::List(list) => {
                let keep = |item: &Value| match element(list, item) {
                    Some(element) => kept(&element, list.item, item),
                    None => Some(item.clone()),
                };
                Value::Array(items(value).iter().filter_map(keep).collect())
            }
            Shape::Map(_) | Shape::Deduced => {
                let mut out = Map::new();
                for (name, value) in fields(value).into_iter().flatten() {
                    if let Some(value) = kept(&format!("f:{name}"), self.field_type(id, name), value) {
                        out.insert(name.clone(), value);
                    }
                }
                Value::Object(out)
            }
        }
    }

    /// The set with every named field on the way to a member as a member: what must stay for the members to stay.
    pub(crate) fn with_named_fields(&self, id: TypeId, set: &Set, value: &Value) -> Set {
        let mut out = Set { own: set.own, children: BTreeMap::new() };
        let shape = self.shape(id, value);
        let listed = match &shape {
            Shape::List(list) => elements(list, items(value)).unwrap_or_default(),
            _ => BTreeMap::new(),
        };
        let below = |element: &str| -> Option<(TypeId, &Value)> {
            match &shape {
                Shape::List(list) => Some((list.item, listed.get(element)?)),
                Shape::Map(_) | Shape::Deduced => {
                    let name = element.strip_prefix("f:")?;
                    Some((self.field_type(id, name), value.get(name)?))
                }
                Shape::Leaf => None,
            }
        };
        for (element, child) in &set.children {
            let named = matches!(&shape, Shape::Map(map)
                if element.strip_prefix("f:").is_some_and(|name| map.fields.contains_key(name)));
            let mut child = match below(element) {
                Some((ty, value)) => self.with_named_fields(ty, child, value),
                None => child.clone(),
            };
            child.own |= named;
            out.insert(element.clone(), child);
        }
        out
    }

    /// Checks that a configuration can be applied: known fields, and list items with unique keys.
    pub(crate) fn check(&self, id: TypeId, value: &Value, path: &mut String) -> Result<(), WalkError> {
        let length = path.len();
        match self.shape(id, value) {
            Shape::Leaf => {
                if let Some(why) = misfit(self.node(id), value) {
                    return Err(WalkError(format!("{path}: {why}")));
                }
            }
            Shape::List(list) => {
                let mut seen = BTreeSet::new();
                for (index, item) in items(value).iter().enumerate() {
                    let Some(element) = element(list, item) else {
                        return Err(WalkError(format!(
                            "{path}: element {index}: {}",
                            no_identity(list, item)
                        )));
                    };
                    let name = super::set::readable(&element);
                    path.push_str(&name);
                    if !seen.insert(element) {
                        path.truncate(length);
                        return Err(WalkError(format!("{path}: duplicate entries for key {name}")));
                    }
                    self.check(list.item, item, path)?;
                    path.truncate(length);
                }
            }
            shape @ (Shape::Map(_) | Shape::Deduced) => {
                for (name, value) in fields(value).into_iter().flatten() {
                    path.push('.');
                    path.push_str(name);
                    let known = !matches!(&shape, Shape::Map(map) if map.field(name).is_none());
                    if !known {
                        return Err(WalkError(format!("{path}: field not declared in schema")));
                    }
                    self.check(self.field_type(id, name), value, path)?;
                    path.truncate(length);
                }
            }
        }
        Ok(())
    }
}

/// Why a value is none of its type, in the words of `structured-merge-diff` (`typed/validate.go`). Quantities, times
/// and `IntOrString` are untyped there.
fn misfit(node: &Node, value: &Value) -> Option<String> {
    // Go prints a value behind a pointer.
    let shown = || match value {
        Value::String(text) => text.to_string(),
        Value::Object(_) => "map[]".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    };
    match (node, value) {
        (_, Value::Null) => None,
        (Node::Scalar(Scalar::String), value) if !value.is_string() => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", shown()))
        }
        (Node::Scalar(Scalar::Integer | Scalar::Number), value) if !value.is_number() => {
            let go = match value {
                Value::Bool(_) => "bool",
                Value::String(_) => "string",
                Value::Array(_) => "[]interface {}",
                _ => "map[string]interface {}",
            };
            Some(format!("expected numeric (int or float), got {go}"))
        }
        (Node::Scalar(Scalar::Boolean), value) if !value.is_boolean() => {
            Some(format!("expected boolean, got &{{{}}}", shown()))
        }
        (Node::List(_), value) if !value.is_array() => Some(format!("expected list, got &{{{}}}", shown())),
        (Node::Map(_), value) if !value.is_object() => Some(format!("expected map, got &{{{}}}", shown())),
        _ => None,
    }
}

fn is_bare_map(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

fn no_identity(list: &ListType, item: &Value) -> String {
    match &list.kind {
        ListKind::Map(keys) if item.is_object() => {
            let missing = keys.iter().find(|(key, default)| default.is_none() && item[key].is_null());
            let key = missing.map_or("", |(key, _)| key);
            format!(
                "associative list with keys has an element that omits key field {}",
                crate::field_error::quote(key)
            )
        }
        ListKind::Map(_) => "associative list with keys may not have non-map elements".into(),
        _ => "associative list without keys has an element that's a map or a list".into(),
    }
}
