//! Drops what a schema does not know.

use std::fmt::{self, Write as _};

use crate::tree::{Map, Value};

use super::{Additional, Node};
use crate::types::metadata_fields;

/// More dropped fields than this are not listed.
const MAX_LISTED: usize = 100;

pub(super) fn prune(root: &Node, object: &mut Value) -> Vec<String> {
    let mut walk = Walk { dropped: Vec::new(), path: String::new() };
    walk.value(root, object);
    walk.dropped.sort();
    walk.dropped
}

struct Walk {
    dropped: Vec<String>,
    /// `.name` and `[0]` from the root
    path: String,
}

impl Walk {
    fn value(&mut self, node: &Node, value: &mut Value) {
        match value {
            Value::Object(fields) => self.object(node, fields),
            Value::Array(items) => {
                let Some(of) = &node.items else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    self.at(format_args!("[{index}]"), |walk| walk.value(of, item));
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, node: &Node, fields: &mut Map) {
        let keep_all = node.preserve_unknown || matches!(node.additional, Additional::Any);
        fields.retain(|name, value| {
            if node.embedded && matches!(name.as_str(), "apiVersion" | "kind") {
                return true;
            }
            if node.embedded && name == "metadata" {
                self.at(format_args!(".metadata"), |walk| walk.metadata(value));
                return true;
            }
            if let Some(child) = node.field(name) {
                self.at(format_args!(".{name}"), |walk| walk.value(child, value));
                return true;
            }
            keep_all || self.drop(name)
        });
    }

    fn metadata(&mut self, metadata: &mut Value) {
        if let Some(fields) = metadata.as_object_mut() {
            fields.retain(|name, _| metadata_fields().contains_key(name.as_str()) || self.drop(name));
        }
    }

    fn drop(&mut self, name: &str) -> bool {
        if self.dropped.len() < MAX_LISTED {
            self.dropped.push(format!("{}.{name}", self.path).trim_start_matches('.').to_owned());
        }
        false
    }

    fn at(&mut self, step: fmt::Arguments<'_>, walk: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        // Writing to a string does not fail.
        let _ = self.path.write_fmt(step);
        walk(self);
        self.path.truncate(length);
    }
}
