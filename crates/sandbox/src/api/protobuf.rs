//! Protobuf bodies → JSON, for built-in kinds.
//!
//! kubectl 1.32 and newer encodes what `create deployment`, `create secret`, `auth can-i` and their
//! like make as `application/vnd.kubernetes.protobuf`, and has no second try after a 415. The wire
//! form is `k8s\0` and a `runtime.Unknown` (apimachinery `runtime/generated.proto`) around the
//! message; what is in messages stands in the table `protobuf.txt`.
//! Answers are JSON: every client that sends protobuf accepts it.

use std::collections::HashMap;
use std::sync::LazyLock;

use apimachinery::Status;
use apimachinery::tree::{List, Map, Value};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::negotiate::unsupported_media_type;
use crate::clock;

const MAGIC: &[u8] = b"k8s\0";

/// How a field is written.
#[derive(Clone, Debug)]
enum Form {
    Text,
    Bytes,
    Flag,
    Int,
    /// `metav1.Time`: seconds and nanoseconds; JSON has no fraction.
    Time,
    /// `metav1.MicroTime`: six digits of one.
    MicroTime,
    /// `resource.Quantity`: a text in a message.
    Quantity,
    /// `intstr.IntOrString`
    IntOrString,
    /// JSON as bytes in a message.
    Json,
    /// A list of texts in a message of its own.
    Texts,
    List(Box<Form>),
    /// A map from texts, each entry a message of key and value.
    Map(Box<Form>),
    Message(String),
}

/// One field of a message.
#[derive(Debug)]
struct Field {
    number: u64,
    /// `-`: its fields are fields of the message around it.
    name: &'static str,
    form: Form,
    /// Kept when it is empty.
    pointer: bool,
}

/// The messages that are understood.
#[derive(Debug, Default)]
struct Table {
    /// By apiVersion and kind.
    kinds: HashMap<(&'static str, &'static str), &'static str>,
    messages: HashMap<&'static str, Vec<Field>>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| table(include_str!("protobuf.txt")));

/// Reads the table; its head explains the format.
fn table(text: &'static str) -> Table {
    let mut table = Table::default();
    let mut current = "";
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["=", version, kind, message] => {
                table.kinds.insert((version, kind), message);
            }
            [">", message] => {
                current = message;
                table.messages.insert(current, Vec::new());
            }
            [number, name, ty, flags @ ..] => {
                let package = current.split('.').next().unwrap_or_default();
                if let (Ok(number), Some(fields)) = (number.parse(), table.messages.get_mut(current)) {
                    let pointer = flags.contains(&"?");
                    fields.push(Field { number, name, form: form(ty, package), pointer });
                }
            }
            _ => {}
        }
    }
    table
}

fn form(ty: &str, package: &str) -> Form {
    let inside = |open, close| ty.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    if let Some(item) = inside('[', ']') {
        return Form::List(Box::new(form(item, package)));
    }
    if let Some(value) = inside('{', '}') {
        return Form::Map(Box::new(form(value, package)));
    }
    match ty {
        "s" => Form::Text,
        "y" => Form::Bytes,
        "b" => Form::Flag,
        "i" => Form::Int,
        "t" => Form::Time,
        "u" => Form::MicroTime,
        "q" => Form::Quantity,
        "x" => Form::IntOrString,
        "r" => Form::Json,
        "e" => Form::Texts,
        other if other.contains('.') => Form::Message(other.to_owned()),
        other => Form::Message(format!("{package}.{other}")),
    }
}

/// The message of a kind. Options come in the version of what they are for.
fn message(version: &str, kind: &str) -> Option<&'static str> {
    if kind == "DeleteOptions" {
        return Some("meta.DeleteOptions");
    }
    TABLE.kinds.get(&(version, kind)).copied()
}

/// Reads a body.
///
/// # Errors
/// 400 for what is no such message, 415 for kinds whose messages are not known here.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    let wrong = || Status::bad_request("the body is not a protobuf message of Kubernetes");
    let unknown = body.strip_prefix(MAGIC).ok_or_else(wrong)?;
    let meta = bytes_at(unknown, 1).ok_or_else(wrong)?;
    let raw = bytes_at(unknown, 2).ok_or_else(wrong)?;
    let version = text_at(meta, 1).ok_or_else(wrong)?;
    let kind = text_at(meta, 2).ok_or_else(wrong)?;
    let known = message(version, kind).ok_or_else(unsupported_media_type)?;
    let mut object = fields(raw, known).ok_or_else(wrong)?;
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// The fields of a message that are known; what is empty is left out, as `omitempty` does.
fn fields(bytes: &[u8], message: &str) -> Option<Map> {
    let known = TABLE.messages.get(message)?;
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next().ok()? {
        let Some(field) = known.iter().find(|field| field.number == number) else { continue };
        match &field.form {
            Form::Map(form) => {
                let (key, value) = entry(wire, form)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut()?.set(key, value);
            }
            Form::List(form) => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(List::new()));
                list.as_array_mut()?.push(read(wire, form)?);
            }
            form if field.name == "-" => object.extend(read(wire, form)?.as_object()?.clone()),
            form => {
                let value = read(wire, form)?;
                if !value.is_null() && (field.pointer || !is_empty(&value)) {
                    object.set(field.name, value);
                }
            }
        }
    }
    Some(object)
}

fn entry(wire: Wire<'_>, form: &Form) -> Option<(String, Value)> {
    let Wire::Bytes(bytes) = wire else { return None };
    let key = text_at(bytes, 1)?.to_owned();
    let value = match last(bytes, 2).ok()? {
        Some(wire) => read(wire, form)?,
        None => match form {
            Form::Flag => false.into(),
            Form::Int => 0.into(),
            form => read(Wire::Bytes(&[]), form)?,
        },
    };
    Some((key, value))
}

fn read(wire: Wire<'_>, form: &Form) -> Option<Value> {
    Some(match (wire, form) {
        (Wire::Number(number), Form::Flag) => (number != 0).into(),
        // int32 and int64 are written in two's complement
        (Wire::Number(number), Form::Int) => number.cast_signed().into(),
        (Wire::Bytes(bytes), Form::Text) => std::str::from_utf8(bytes).ok()?.into(),
        (Wire::Bytes(bytes), Form::Bytes) => STANDARD.encode(bytes).into(),
        (Wire::Bytes(bytes), Form::Time | Form::MicroTime) => time(bytes, form)?,
        (Wire::Bytes(bytes), Form::Quantity) => text_at(bytes, 1)?.into(),
        (Wire::Bytes(bytes), Form::IntOrString) => match int_at(bytes, 1)? {
            0 => int_at(bytes, 2)?.into(),
            _ => text_at(bytes, 3)?.into(),
        },
        (Wire::Bytes(bytes), Form::Json) => match bytes_at(bytes, 1)? {
            [] => Value::Null,
            json => serde_json::from_slice(json).ok()?,
        },
        (Wire::Bytes(bytes), Form::Texts) => {
            let mut texts = Vec::new();
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next().ok()? {
                if number == 1 {
                    texts.push(read(wire, &Form::Text)?);
                }
            }
            texts.into()
        }
        (Wire::Bytes(bytes), Form::Message(message)) => Value::Object(fields(bytes, message)?),
        _ => return None,
    })
}

fn time(bytes: &[u8], form: &Form) -> Option<Value> {
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let (seconds, nanoseconds) = (int_at(bytes, 1)?, int_at(bytes, 2)?);
    let time = jiff::Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()?;
    let text = if matches!(form, Form::MicroTime) { clock::micros(time) } else { clock::seconds(time) };
    Some(text.into())
}

/// The last value of a field.
fn last(bytes: &[u8], wanted: u64) -> Result<Option<Wire<'_>>, Malformed> {
    let mut reader = Reader(bytes);
    let mut last = None;
    while let Some((number, wire)) = reader.next()? {
        if number == wanted {
            last = Some(wire);
        }
    }
    Ok(last)
}

fn bytes_at(bytes: &[u8], number: u64) -> Option<&[u8]> {
    match last(bytes, number).ok()? {
        Some(Wire::Bytes(bytes)) => Some(bytes),
        Some(Wire::Number(_)) => None,
        None => Some(&[]),
    }
}

fn text_at(bytes: &[u8], number: u64) -> Option<&str> {
    std::str::from_utf8(bytes_at(bytes, number)?).ok()
}

fn int_at(bytes: &[u8], number: u64) -> Option<i64> {
    match last(bytes, number).ok()? {
        Some(Wire::Number(number)) => Some(number.cast_signed()),
        Some(Wire::Bytes(_)) => None,
        None => Some(0),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The bytes are no message.
struct Malformed;

/// Takes a message apart, field by field.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Malformed> {
        if self.0.is_empty() { Ok(None) } else { self.field().map(Some).ok_or(Malformed) }
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
