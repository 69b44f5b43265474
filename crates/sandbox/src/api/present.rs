//! Stored objects → the bytes that a client asked for.

use std::sync::Arc;

use apimachinery::tree::{Value, json};
use bytes::Bytes;
use jiff::Timestamp;

use super::events;
use super::negotiate::Form;
use super::table;
use crate::registry::Kind;
use crate::store::{Stored, Wire};

/// `{"apiVersion":"v1","kind":"Pod"`: how every stored object begins.
fn head(kind: &Kind) -> String {
    format!("{{\"apiVersion\":{},\"kind\":{}", json!(kind.api_version()), json!(kind.kind))
}

/// Serves the objects of one kind in one version and form.
#[derive(Clone, Debug)]
pub struct Presenter {
    /// The kind, in the version of the request.
    pub kind: Arc<Kind>,
    head: String,
    /// The form that the client asked for.
    pub form: Form,
    /// What tables hold beside the cells: `Metadata` (default), `Object` or `None`.
    pub include: Include,
    /// Ages are counted from here.
    pub now: Timestamp,
}

/// `includeObject` of a table request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Include {
    /// Metadata alone.
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl Presenter {
    /// For the objects of `kind`.
    pub fn new(kind: Arc<Kind>, form: Form, include: Include, now: Timestamp) -> Self {
        let head = head(&kind);
        Self { kind, head, form, include, now }
    }

    /// Can the stored bytes go out as they are?
    pub fn verbatim(&self, wire: &Wire) -> bool {
        self.form == Form::Json && self.head.as_bytes() == wire.head()
    }

    /// The object in the version of the request.
    pub fn bytes(&self, wire: &Wire) -> Bytes {
        if self.head.as_bytes() == wire.head() {
            return wire.bytes();
        }
        if self.kind.group == "events.k8s.io" {
            return events::to_events_group(&wire.value()).to_string().into();
        }
        let mut out = Vec::with_capacity(self.head.len() + wire.tail().len());
        out.extend_from_slice(self.head.as_bytes());
        out.extend_from_slice(wire.tail());
        out.into()
    }

    /// The object in the version of the request, parsed.
    pub fn value(&self, stored: &Stored) -> Value {
        serde_json::from_slice(&self.bytes(&stored.wire())).unwrap_or_default()
    }

    /// One entry of a list. Lists of built-in kinds leave apiVersion and kind out, as the real
    /// server does.
    pub fn item(&self, stored: &Stored, out: &mut Vec<u8>) {
        let wire = stored.wire();
        if self.kind.definition().is_some() || self.kind.group == "events.k8s.io" {
            out.extend_from_slice(&self.bytes(&wire));
        } else {
            out.push(b'{');
            out.extend_from_slice(&wire.tail()[1..]);
        }
    }

    /// A single object (or a watch event's) in the form asked for.
    pub fn single(&self, object: &Value, columns: bool) -> Value {
        match self.form {
            Form::Table => {
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                table::table(
                    self,
                    std::slice::from_ref(object),
                    &json!({"resourceVersion": version}),
                    columns,
                )
            }
            Form::Metadata => partial(object),
            Form::Json | Form::Yaml | Form::Discovery(_) => object.clone(),
        }
    }
}

/// `PartialObjectMetadata`
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
