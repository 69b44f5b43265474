//! Between JSON and CEL values.

use std::sync::Arc;

use crate::tree::{Text, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, TimeDelta};
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{ExecutionError, Value as Cel};

/// JSON to CEL. Integers become `int` (as in the API server), unlike what a generic serializer does.
pub(super) fn from_json(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(bool) => Cel::Bool(*bool),
        Value::Number(number) => match number.as_i64() {
            Some(int) => Cel::Int(int),
            None => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cel::String(Arc::new(text.to_string())),
        Value::Array(list) => Cel::List(Arc::new(list.iter().map(from_json).collect())),
        Value::Object(fields) => {
            let entry =
                |(key, value): (&Text, &Value)| (Key::String(Arc::new(key.to_string())), from_json(value));
            Cel::Map(Map { map: Arc::new(fields.iter().map(entry).collect()) })
        }
    }
}

/// CEL to JSON; `None` for what JSON cannot say.
pub(super) fn to_json(value: &Cel) -> Option<Value> {
    Some(match value {
        Cel::Null => Value::Null,
        Cel::Bool(bool) => (*bool).into(),
        Cel::Int(int) => (*int).into(),
        Cel::UInt(int) => (*int).into(),
        Cel::Float(float) => (*float).into(),
        Cel::String(text) => text.as_str().into(),
        Cel::List(list) => Value::Array(list.iter().map(to_json).collect::<Option<_>>()?),
        Cel::Map(map) => {
            let entry = |(key, value): (&Key, &Cel)| Some((key.to_string(), to_json(value)?));
            Value::Object(map.map.iter().map(entry).collect::<Option<_>>()?)
        }
        Cel::Timestamp(time) => time.to_rfc3339().into(),
        Cel::Duration(duration) => format!("{}s", duration.as_seconds_f64()).into(),
        Cel::Bytes(_) | Cel::Function(..) | Cel::Opaque(_) => return None,
    })
}

pub(super) fn type_name(value: &Cel) -> &'static str {
    match value {
        Cel::Null => "null",
        Cel::Bool(_) => "bool",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Timestamp(_) => "timestamp",
        Cel::Duration(_) => "duration",
        Cel::Bytes(_) => "bytes",
        Cel::Function(..) => "function",
        Cel::Opaque(_) => "object",
    }
}

/// What went wrong, in the words of cel-go where they differ. Values are not printed: they may be secret and
/// large.
pub(super) fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::DivisionByZero(_) => "division by zero".into(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".into(),
        ExecutionError::Overflow(..) => "integer overflow".into(),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".into(),
        ExecutionError::FunctionError { function, message } => format!("{function}: {message}"),
        ExecutionError::UnexpectedType { got, want } => format!("got '{got}', expected '{want}'"),
        ExecutionError::InvalidArgumentCount { expected, actual } => {
            format!("expected {expected} arguments, got {actual}")
        }
        _ => "no such overload".into(),
    }
}

/// Items in the largest list or map, and bytes of the longest string, anywhere in a JSON value.
pub(super) fn extent(value: &Value) -> (usize, usize) {
    let (mut largest, mut longest) = (0, 0);
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        match value {
            Value::String(text) => longest = longest.max(text.len()),
            Value::Array(list) => {
                largest = largest.max(list.len());
                stack.extend(list);
            }
            Value::Object(fields) => {
                largest = largest.max(fields.len());
                stack.extend(fields.values());
            }
            _ => {}
        }
    }
    (largest, longest)
}

/// Items in the largest list or map of a CEL value.
pub(super) fn items(value: &Cel) -> usize {
    match value {
        Cel::List(list) => list.iter().map(items).max().unwrap_or(0).max(list.len()),
        Cel::Map(map) => map.map.values().map(items).max().unwrap_or(0).max(map.map.len()),
        _ => 0,
    }
}

/// What a schema says about a value that CEL sees differently from JSON.
pub(crate) trait Typed {
    /// The schema of a field, and whether it is a named field (whose name is escaped) or a key of a map.
    fn property(&self, name: &str) -> Option<(&Self, bool)>;
    /// The schema of list items.
    fn item(&self) -> Option<&Self>;
    /// `date-time`, `duration`, `byte`, …
    fn format(&self) -> Option<&str>;
    /// Whether numbers are doubles even when they have no fraction.
    fn is_float(&self) -> bool;
}

/// JSON to CEL as a schema types it: times, durations and bytes by their format, names of fields escaped.
pub(super) fn from_typed<T: Typed>(value: &Value, ty: &T) -> Cel {
    match value {
        Value::String(text) => {
            let special = match ty.format() {
                Some("date-time" | "datetime") => DateTime::parse_from_rfc3339(text).ok().map(Cel::Timestamp),
                Some("duration") => duration(text).map(Cel::Duration),
                Some("byte") => BASE64.decode(text).ok().map(|bytes| Cel::Bytes(Arc::new(bytes))),
                _ => None,
            };
            special.unwrap_or_else(|| Cel::String(Arc::new(text.to_string())))
        }
        Value::Number(number) if ty.is_float() => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        Value::Array(list) => {
            let item = |value: &Value| ty.item().map_or_else(|| from_json(value), |ty| from_typed(value, ty));
            Cel::List(Arc::new(list.iter().map(item).collect()))
        }
        Value::Object(fields) => {
            let entry = |(key, value): (&Text, &Value)| match ty.property(key) {
                Some((ty, true)) => (Key::String(Arc::new(escaped(key))), from_typed(value, ty)),
                Some((ty, false)) => (Key::String(Arc::new(key.to_string())), from_typed(value, ty)),
                None => (Key::String(Arc::new(key.to_string())), from_json(value)),
            };
            Cel::Map(Map { map: Arc::new(fields.iter().map(entry).collect()) })
        }
        other => from_json(other),
    }
}

/// The name of a field as expressions spell it: CEL has keywords, and no `-`, `.`, `/` in names.
fn escaped(name: &str) -> String {
    const KEYWORDS: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    if KEYWORDS.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/', '_']) {
        return name.to_owned();
    }
    let name = name.replace("__", "__underscores__");
    name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

/// A Go duration: `1h30m`, `-1.5s`, `0`.
fn duration(text: &str) -> Option<TimeDelta> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let scale = match &after[..length] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = &after[length..];
    }
    let length = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    let length = TimeDelta::from_std(length).ok()?;
    Some(if negative { -length } else { length })
}

/// Whether a text is a duration as [`Typed::format`] `duration` means it.
pub(crate) fn is_duration(text: &str) -> bool {
    duration(text).is_some()
}

/// An optional value, for `oldSelf` of rules that want one.
pub(super) fn optional(value: Option<Cel>) -> Cel {
    Cel::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}
