//! One stored object: its bytes as they go over the wire, and the few parsed fields that
//! selectors, ownership and concurrency need.

use std::sync::Arc;

use apimachinery::selector::value_of;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::Error;

/// What happened to an object, as watch events spell it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventType {
    /// The object is new, or entered the selection.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone, or left the selection.
    Deleted,
}

impl EventType {
    /// `ADDED`, `MODIFIED` or `DELETED`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Added => br#"{"type":"ADDED","object":"#,
            Self::Modified => br#"{"type":"MODIFIED","object":"#,
            Self::Deleted => br#"{"type":"DELETED","object":"#,
        }
    }
}

/// The parsed part of an object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// Empty for cluster-scoped kinds.
    pub namespace: Box<str>,
    /// `metadata.name`
    pub name: Box<str>,
    /// `metadata.uid`
    pub uid: Box<str>,
    /// `metadata.labels`, in order of their keys.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the order of the kind's list.
    pub fields: Box<[Box<str>]>,
    /// The uids in `metadata.ownerReferences`.
    pub owners: Box<[Box<str>]>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `metadata.resourceVersion`
    pub resource_version: u64,
}

impl Header {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, value)| &**value)
    }
}

/// An object as it was written at one resourceVersion; never changes.
#[derive(Debug)]
pub struct Stored {
    /// A whole watch event line; the object is a slice of it, so that both share one allocation.
    line: Bytes,
    event: EventType,
    object: std::ops::Range<usize>,
    /// Length of `{"apiVersion":"…","kind":"…"` in front of the object.
    head: usize,
    header: Header,
}

impl Stored {
    /// The parsed part.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The object as JSON.
    pub fn bytes(&self) -> Bytes {
        self.line.slice(self.object.clone())
    }

    /// `{"apiVersion":"…","kind":"…"`
    pub fn head(&self) -> &[u8] {
        &self.line[self.object.start..self.object.start + self.head]
    }

    /// The type of the event in [`Stored::line`].
    pub fn event(&self) -> EventType {
        self.event
    }

    /// What follows apiVersion and kind: `,"metadata":{…},…}`.
    pub fn tail(&self) -> Bytes {
        self.line.slice(self.object.start + self.head..self.object.end)
    }

    /// The watch event that this write caused, newline included.
    pub fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// The object, parsed.
    pub fn value(&self) -> Arc<Value> {
        // What was encoded here parses; an empty object would be visible at once.
        Arc::new(serde_json::from_slice(&self.line[self.object.clone()]).unwrap_or_default())
    }

    /// Bytes kept alive by this object.
    pub(super) fn size(&self) -> usize {
        self.line.len()
    }
}

/// An object ready to be written: everything but its resourceVersion, which the store decides.
#[derive(Debug)]
pub struct Draft {
    head: Vec<u8>,
    before: Vec<u8>,
    after: Vec<u8>,
    header: Header,
}

/// Stands for the resourceVersion until it is known. As a JSON string cannot contain an unescaped
/// quote, no user value reads as the key and this value together unless it is that very key.
const PLACEHOLDER: &str = "\u{1}resourceVersion\u{1}";
const PLACED: &[u8] = br#""resourceVersion":"\u0001resourceVersion\u0001""#;

impl Draft {
    /// Encodes `object`; `selectable` are the fields beside name and namespace that field
    /// selectors of its kind may name (`spec.nodeName`).
    ///
    /// # Errors
    /// [`Error::NotAnObject`] when there is no metadata to write to.
    pub fn new(mut object: Value, selectable: &[String]) -> Result<Self, Error> {
        let header = header_of(&object, selectable)?;
        let root = object.as_object_mut().ok_or(Error::NotAnObject)?;
        let mut head = Vec::with_capacity(64);
        head.extend_from_slice(br#"{"apiVersion":"#);
        write_json(&mut head, &root.remove("apiVersion").unwrap_or_default())?;
        head.extend_from_slice(br#","kind":"#);
        write_json(&mut head, &root.remove("kind").unwrap_or_default())?;

        let Some(Value::Object(mut metadata)) = root.remove("metadata") else {
            return Err(Error::NotAnObject);
        };
        metadata.insert("resourceVersion".into(), PLACEHOLDER.into());
        let mut encoded = Vec::with_capacity(1024);
        encoded.extend_from_slice(br#","metadata":"#);
        write_json(&mut encoded, &metadata)?;
        let at = memchr::memmem::find(&encoded, PLACED).ok_or(Error::NotAnObject)?;
        let mut after = encoded.split_off(at + PLACED.len());
        encoded.truncate(at);
        write_rest(&mut after, root)?;
        Ok(Self { head, before: encoded, after, header })
    }

    /// What is known of the object before it is written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Finishes the bytes; runs inside the store's lock, so it only copies.
    pub(super) fn place(self, event: EventType, resource_version: u64) -> Stored {
        let prefix = event.prefix();
        let version = format!("\"resourceVersion\":\"{resource_version}\"");
        let length =
            prefix.len() + self.head.len() + self.before.len() + version.len() + self.after.len() + 2;
        let mut line = Vec::with_capacity(length);
        line.extend_from_slice(prefix);
        line.extend_from_slice(&self.head);
        line.extend_from_slice(&self.before);
        line.extend_from_slice(version.as_bytes());
        line.extend_from_slice(&self.after);
        let object = prefix.len()..line.len();
        line.extend_from_slice(b"}\n");
        let header = Header { resource_version, ..self.header };
        Stored { line: line.into(), event, object, head: self.head.len(), header }
    }

    /// The object as it would be stored, for `dryRun`: without a resourceVersion of its own.
    pub fn preview(self) -> Bytes {
        let mut out = self.head;
        out.extend_from_slice(&self.before);
        // The placeholder leaves a comma behind or before it.
        let mut after = self.after;
        if out.last() == Some(&b',') {
            out.pop();
        } else if after.first() == Some(&b',') {
            after.remove(0);
        }
        out.extend_from_slice(&after);
        out.into()
    }
}

/// An event line of another type over the same object, for watches that start with a list.
pub fn line(event: EventType, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(event.prefix());
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}

fn write_json<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) -> Result<(), Error> {
    serde_json::to_writer(out, value).map_err(Error::Encode)
}

fn write_rest(out: &mut Vec<u8>, rest: &Map<String, Value>) -> Result<(), Error> {
    for (key, value) in rest {
        out.push(b',');
        write_json(out, key)?;
        out.push(b':');
        write_json(out, value)?;
    }
    out.push(b'}');
    Ok(())
}

fn header_of(object: &Value, selectable: &[String]) -> Result<Header, Error> {
    let metadata = object.get("metadata").ok_or(Error::NotAnObject)?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().into();
    let labels = metadata.get("labels").and_then(Value::as_object).map(|labels| {
        labels
            .iter()
            .map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into()))
            .collect()
    });
    let owners = metadata
        .get("ownerReferences")
        .and_then(Value::as_array)
        .map(|owners| owners.iter().filter_map(|owner| owner.get("uid")?.as_str()).map(Into::into).collect());
    Ok(Header {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        labels: labels.unwrap_or_default(),
        fields: selectable.iter().map(|field| value_of(object, field).into()).collect(),
        owners: owners.unwrap_or_default(),
        terminating: metadata.get("deletionTimestamp").is_some_and(|at| !at.is_null()),
        resource_version: 0,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config_map() -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"x": "y"},
                "annotations": {"trap": PLACEHOLDER, "other": "\"resourceVersion\":\"\u{1}resourceVersion\u{1}\""}}})
    }

    #[test]
    fn the_bytes_parse_to_the_object_with_its_version() {
        let stored = Draft::new(config_map(), &["metadata.name".into()]).unwrap().place(EventType::Added, 42);
        let mut want = config_map();
        want["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(*stored.value(), want);
        let event: Value = serde_json::from_slice(&stored.line()).unwrap();
        assert_eq!(event, json!({"type": "ADDED", "object": want}));
        assert_eq!(stored.header().label("x"), Some("y"));
        assert_eq!(&*stored.header().fields, ["a".into()]);
        assert!(stored.tail().starts_with(br#","metadata":"#));
    }

    #[test]
    fn a_preview_has_no_version() {
        let preview = Draft::new(config_map(), &[]).unwrap().preview();
        assert_eq!(serde_json::from_slice::<Value>(&preview).unwrap(), config_map());
        let bare = json!({"apiVersion": "v1", "kind": "A", "metadata": {}});
        assert_eq!(
            serde_json::from_slice::<Value>(&Draft::new(bare.clone(), &[]).unwrap().preview()).unwrap(),
            bare
        );
    }
}
