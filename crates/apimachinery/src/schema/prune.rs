//! Drops what a schema does not know.

use std::convert::Infallible;
use std::fmt::{self, Write as _};

use crate::tree::{Map, Value};

use super::{Additional, Node};
use crate::types::metadata_fields;

/// More dropped fields than this are not listed.
const MAX_LISTED: usize = 100;

pub(super) fn prune(root: &Node, object: &mut Value) -> Vec<String> {
    let mut walk = Walk { dropped: Vec::new(), path: String::new() };
    if let Some(left) = walk.value(root, object) {
        *object = left;
    }
    walk.dropped.sort();
    walk.dropped
}

struct Walk {
    dropped: Vec<String>,
    /// `.name` and `[0]` from the root
    path: String,
}

impl Walk {
    /// What is left of a value; `None`: all of it.
    fn value(&mut self, node: &Node, value: &Value) -> Option<Value> {
        match value {
            Value::Object(fields) => self.object(node, fields).map(Value::Object),
            Value::Array(items) => {
                let of = node.items.as_ref()?;
                let item = |index, item: &Value| -> Result<_, Infallible> {
                    Ok(self.at(format_args!("[{index}]"), |walk| walk.value(of, item)))
                };
                let Ok(changed) = items.changed(item);
                changed.map(Value::Array)
            }
            _ => None,
        }
    }

    fn object(&mut self, node: &Node, fields: &Map) -> Option<Map> {
        let keep_all = node.preserve_unknown || matches!(node.additional, Additional::Any);
        let mut changes = Vec::new();
        for (name, value) in fields {
            if node.embedded && matches!(name.as_str(), "apiVersion" | "kind") {
                continue;
            }
            let left = if node.embedded && name == "metadata" {
                self.at(format_args!(".metadata"), |walk| walk.metadata(value))
            } else if let Some(child) = node.field(name) {
                self.at(format_args!(".{name}"), |walk| walk.value(child, value))
            } else {
                if !keep_all {
                    self.drop(name);
                    changes.push((name.as_str(), None));
                }
                continue;
            };
            changes.extend(left.map(|left| (name.as_str(), Some(left))));
        }
        fields.changed(changes)
    }

    fn metadata(&mut self, metadata: &Value) -> Option<Value> {
        let fields = metadata.as_object()?;
        let unknown = fields.keys().filter(|name| !metadata_fields().contains_key(name.as_str()));
        let changes: Vec<_> = unknown.map(|name| (name.as_str(), None)).collect();
        for (name, _) in &changes {
            self.drop(name);
        }
        fields.changed(changes).map(Value::Object)
    }

    fn drop(&mut self, name: &str) {
        if self.dropped.len() < MAX_LISTED {
            self.dropped.push(format!("{}.{name}", self.path).trim_start_matches('.').to_owned());
        }
    }

    fn at<T>(&mut self, step: fmt::Arguments<'_>, walk: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        // Writing to a string does not fail.
        let _ = self.path.write_fmt(step);
        let left = walk(self);
        self.path.truncate(length);
        left
    }
}
