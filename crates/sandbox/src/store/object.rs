//! One stored object: its bytes as they go over the wire, and the few parsed fields that
//! selectors, ownership and concurrency need.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::apply::sealed;
use apimachinery::selector::value_of;
use apimachinery::tree::{Text, Value};
use bytes::Bytes;

use super::Error;
use crate::packing::{Packed, Packer};

/// How the line of a watch event ends behind its object.
const LINE_END: &[u8] = b"}\n";

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
    text: Mutex<Form>,
    event: EventType,
    shape: Shape,
    header: Header,
}

/// A whole watch event line.
#[derive(Debug)]
enum Form {
    /// With the object itself, [sealed], as long as it is likely to be written again soon.
    Plain(Bytes, Option<Arc<Value>>),
    Packed(Packed),
}

/// Where what is in a line.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Where the object begins.
    start: usize,
    /// Length of `{"apiVersion":"…","kind":"…"` in front of the object.
    head: usize,
    /// Where the object ends.
    end: usize,
}

impl Stored {
    /// The parsed part.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The type of the event in [`Wire::line`].
    pub fn event(&self) -> EventType {
        self.event
    }

    /// The object as it goes over the wire.
    pub fn wire(&self) -> Wire {
        let line = match &*self.text() {
            Form::Plain(line, _) => line.clone(),
            Form::Packed(packed) => packed.unpack().into(),
        };
        Wire { line, shape: self.shape }
    }

    /// The object, parsed.
    pub fn value(&self) -> Arc<Value> {
        Arc::new(self.wire().value())
    }

    /// The object, parsed, its `managedFields` [sealed]: what a write begins with.
    pub fn current(&self) -> Arc<Value> {
        match &*self.text() {
            Form::Plain(_, Some(object)) => return object.clone(),
            Form::Plain(_, None) | Form::Packed(_) => {}
        }
        Arc::new(self.wire().sealed())
    }

    /// Bytes of the object and the line around it.
    pub fn size(&self) -> usize {
        self.shape.end + LINE_END.len()
    }

    /// Keeps the text packed from now on, if that gains something.
    pub(super) fn pack(&self, packer: &mut Packer) {
        let mut text = self.text();
        if let Form::Plain(line, object) = &mut *text {
            match packer.pack(line) {
                Some(packed) => *text = Form::Packed(packed),
                None => *object = None,
            }
        }
    }

    fn text(&self) -> MutexGuard<'_, Form> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a stored object.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The object is a slice of its line, so that both share one allocation.
    line: Bytes,
    shape: Shape,
}

impl Wire {
    /// The object as JSON.
    pub fn bytes(&self) -> Bytes {
        self.line.slice(self.shape.start..self.shape.end)
    }

    /// `{"apiVersion":"…","kind":"…"`
    pub fn head(&self) -> &[u8] {
        &self.line[self.shape.start..self.shape.start + self.shape.head]
    }

    /// What follows apiVersion and kind: `,"metadata":{…},…}`.
    pub fn tail(&self) -> &[u8] {
        &self.line[self.shape.start + self.shape.head..self.shape.end]
    }

    /// The watch event that the write of the object caused, newline included.
    pub fn line(self) -> Bytes {
        self.line
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        // What was encoded here parses; an empty object would be visible at once.
        serde_json::from_slice(self.object()).unwrap_or_default()
    }

    /// The same, its `managedFields` [sealed].
    pub fn sealed(&self) -> Value {
        super::sealed::parse(self.object()).unwrap_or_default()
    }

    fn object(&self) -> &[u8] {
        &self.line[self.shape.start..self.shape.end]
    }
}

/// An object ready to be written: everything but its resourceVersion, which the store decides.
#[derive(Debug)]
pub struct Draft {
    object: Value,
    /// `{"apiVersion":"…","kind":"…"`
    head: Vec<u8>,
    /// From there up to where the resourceVersion belongs, without a comma at its end.
    before: Vec<u8>,
    /// From there on, without a comma at its beginning.
    after: Vec<u8>,
    header: Header,
}

const VERSION: &str = "resourceVersion";

impl Draft {
    /// Encodes `object`; `selectable` are the fields beside name and namespace that field
    /// selectors of its kind may name (`spec.nodeName`).
    ///
    /// # Errors
    /// [`Error::NotAnObject`] when there is no metadata to write to.
    pub fn new(object: Value, selectable: &[String]) -> Result<Self, Error> {
        let header = header_of(&object, selectable)?;
        let Value::Object(root) = &object else { return Err(Error::NotAnObject) };
        let Some(Value::Object(metadata)) = root.get("metadata") else { return Err(Error::NotAnObject) };
        let mut head = Vec::with_capacity(64);
        head.extend_from_slice(br#"{"apiVersion":"#);
        write_json(&mut head, &root.get("apiVersion"))?;
        head.extend_from_slice(br#","kind":"#);
        write_json(&mut head, &root.get("kind"))?;

        let mut before = Vec::with_capacity(1024);
        before.extend_from_slice(br#","metadata":{"#);
        write_fields(&mut before, metadata.iter().filter(|(key, _)| key.as_str() < VERSION))?;
        let mut after = Vec::with_capacity(4096);
        write_fields(&mut after, metadata.iter().filter(|(key, _)| key.as_str() > VERSION))?;
        after.push(b'}');
        for (key, value) in root {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                after.push(b',');
                write_json(&mut after, key)?;
                after.push(b':');
                write_json(&mut after, value)?;
            }
        }
        after.push(b'}');
        Ok(Self { object, head, before, after, header })
    }

    /// What is known of the object before it is written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Finishes the bytes; runs inside the store's lock, so it only copies.
    pub(super) fn place(self, event: EventType, resource_version: u64) -> Stored {
        let prefix = event.prefix();
        let version = resource_version.to_string();
        let field = format!("\"{VERSION}\":\"{version}\"");
        let length = prefix.len()
            + self.head.len()
            + self.before.len()
            + field.len()
            + self.after.len()
            + 2
            + LINE_END.len();
        let mut line = Vec::with_capacity(length);
        line.extend_from_slice(prefix);
        line.extend_from_slice(&self.head);
        line.extend_from_slice(&self.before);
        separate(&mut line, field.as_bytes());
        line.extend_from_slice(field.as_bytes());
        separate(&mut line, &self.after);
        line.extend_from_slice(&self.after);
        let shape = Shape { start: prefix.len(), head: self.head.len(), end: line.len() };
        line.extend_from_slice(LINE_END);
        let header = Header { resource_version, ..self.header };
        let mut object = self.object;
        object["metadata"][VERSION] = version.into();
        Stored { text: Mutex::new(Form::Plain(line.into(), Some(Arc::new(object)))), event, shape, header }
    }

    /// The object as it would be stored, for `dryRun`: without a resourceVersion of its own.
    pub fn preview(self) -> Bytes {
        let mut out = self.head;
        out.extend_from_slice(&self.before);
        separate(&mut out, &self.after);
        out.extend_from_slice(&self.after);
        out.into()
    }
}

/// A comma between the fields of an object, if there are some on both sides.
fn separate(out: &mut Vec<u8>, next: &[u8]) {
    if out.last() != Some(&b'{') && next.first() != Some(&b'}') {
        out.push(b',');
    }
}

/// An event line of another type over the same object, for watches that start with a list.
pub fn line(event: EventType, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend_from_slice(event.prefix());
    out.extend_from_slice(object);
    out.extend_from_slice(LINE_END);
    out.into()
}

fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), Error> {
    serde_json::to_writer(out, value).map_err(Error::Encode)
}

/// Fields of metadata: the only place where something [sealed] is written as what it stands for.
fn write_fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a Text, &'a Value)>,
) -> Result<(), Error> {
    for (number, (key, value)) in fields.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        write_json(out, key)?;
        out.push(b':');
        match sealed::text(value).filter(|_| key == "managedFields") {
            Some(text) => out.extend_from_slice(text.as_bytes()),
            None => write_json(out, value)?,
        }
    }
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
    use apimachinery::tree::json;

    use super::*;

    fn config_map() -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"x": "y"},
                "annotations": {"resourceVersion": "7", "note": "long enough to be packed ".repeat(20)}}})
    }

    #[test]
    fn the_bytes_parse_to_the_object_with_its_version() {
        let stored = Draft::new(config_map(), &["metadata.name".into()]).unwrap().place(EventType::Added, 42);
        let mut want = config_map();
        want["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(*stored.value(), want);
        let event: Value = serde_json::from_slice(&stored.wire().line()).unwrap();
        assert_eq!(event, json!({"type": "ADDED", "object": want}));
        assert_eq!(stored.header().label("x"), Some("y"));
        assert_eq!(&*stored.header().fields, ["a".into()]);
        assert!(stored.wire().tail().starts_with(br#","metadata":"#));
    }

    #[test]
    fn a_packed_object_has_the_same_bytes() {
        let mut packer = Packer::default();
        let stored: Vec<Stored> = (0..40)
            .map(|version| Draft::new(config_map(), &[]).unwrap().place(EventType::Modified, version))
            .collect();
        for stored in &stored {
            let before = (stored.wire().line(), stored.size());
            stored.pack(&mut packer);
            assert_eq!((stored.wire().line(), stored.size()), before);
            assert_eq!(before.0.len(), before.1);
        }
        assert!(matches!(*stored[39].text(), Form::Packed(_)));
    }

    #[test]
    fn what_looks_sealed_is_a_text_like_others_outside_of_metadata() {
        let object =
            json!({"apiVersion": "v1", "kind": "A", "metadata": {}, "managedFields": "\u{1}no JSON"});
        let stored = Draft::new(object.clone(), &[]).unwrap().place(EventType::Added, 1);
        assert_eq!(stored.value()["managedFields"], object["managedFields"]);
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
