//! Sets of field paths (`fieldsV1`), as a tree (`structured-merge-diff` v6 `fieldpath`). How they are written is
//! said by [`super::text`].

use std::collections::BTreeMap;

use crate::tree::{Map, Value};

use crate::field_error::quote;

/// Paths below some point, and whether that point itself is in the set. Path elements are kept in the form
/// of `fieldsV1`: `f:name`, `k:{"name":"a"}`, `v:"a"`, `i:0`. No child is empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Set {
    pub own: bool,
    pub children: BTreeMap<Box<str>, Set>,
}

impl Set {
    pub fn leaf() -> Self {
        Self { own: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.own && self.children.is_empty()
    }

    pub fn insert(&mut self, element: impl Into<Box<str>>, child: Self) {
        if !child.is_empty() {
            self.children.insert(element.into(), child);
        }
    }

    /// The set of paths given as `f:` elements.
    pub fn of_paths(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let mut node = &mut set;
            for name in *path {
                node = node.children.entry(format!("f:{name}").into()).or_default();
            }
            node.own = true;
        }
        set
    }

    pub fn union(&mut self, other: &Self) {
        self.own |= other.own;
        for (element, child) in &other.children {
            match self.children.get_mut(element) {
                Some(mine) => mine.union(child),
                None => {
                    self.children.insert(element.clone(), child.clone());
                }
            }
        }
    }

    /// Takes out the members of another set.
    pub fn subtract(&mut self, other: &Self) {
        self.own &= !other.own;
        if other.children.is_empty() {
            return;
        }
        self.children.retain(|element, child| {
            if let Some(theirs) = other.children.get(element) {
                child.subtract(theirs);
            }
            !child.is_empty()
        });
    }

    /// Takes out the members of another set and everything below them.
    pub fn subtract_deep(&mut self, other: &Self) {
        self.children.retain(|element, child| match other.children.get(element) {
            Some(theirs) if theirs.own => false,
            Some(theirs) => {
                child.subtract_deep(theirs);
                !child.is_empty()
            }
            None => true,
        });
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self { own: self.own && other.own, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                out.insert(element.clone(), child.intersection(theirs));
            }
        }
        out
    }

    /// The members as people read them: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths(&mut String::new(), &mut out);
        out
    }

    fn collect_paths(&self, prefix: &mut String, out: &mut Vec<String>) {
        if self.own && !prefix.is_empty() {
            out.push(prefix.clone());
        }
        let length = prefix.len();
        for (element, child) in &self.children {
            prefix.push_str(&readable(element));
            child.collect_paths(prefix, out);
            prefix.truncate(length);
        }
    }
}

pub(super) fn readable(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("i:", index)) => format!("[{index}]"),
        Some(("v:", value)) => format!("[={}]", readable_value(value)),
        Some(("k:", keys)) => {
            let keys: Map = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={}", readable_value(&value.to_string())))
                .collect();
            format!("[{}]", parts.join(","))
        }
        _ => element.to_owned(),
    }
}

fn readable_value(json: &str) -> String {
    match serde_json::from_str(json) {
        Ok(Value::String(text)) => quote(&text),
        _ => json.to_owned(),
    }
}
