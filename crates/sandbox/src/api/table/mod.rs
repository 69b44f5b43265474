//! `as=Table`: what `kubectl get` prints (`pkg/printers/internalversion`, Kubernetes 1.36).

mod core;
mod pods;
mod workloads;

use apimachinery::jsonpath::{self, JsonPath};
use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;

use super::present::{Include, Presenter, partial};
use crate::registry::crd::Definition;

/// A column: heading, type, priority (above 0: only with `-o wide`).
type Column = (&'static str, &'static str, u8);

/// The cells of one object, in the order of the columns.
type Row = fn(&Value, Timestamp) -> Vec<Value>;

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// Objects as rows. `columns`: describe the columns too.
pub fn table(presenter: &Presenter, objects: &[Value], metadata: &Value, columns: bool) -> Value {
    let layout = Layout::of(presenter);
    let row = |object: &Value| {
        let cells = layout.cells(object, presenter.now);
        match presenter.include {
            Include::Metadata => json!({"cells": cells, "object": partial(object)}),
            Include::Object => json!({"cells": cells, "object": object}),
            Include::None => json!({"cells": cells}),
        }
    };
    let rows: Vec<Value> = objects.iter().map(row).collect();
    let definitions = if columns { layout.definitions() } else { Value::Null };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows})
}

/// How the objects of a kind are shown.
enum Layout<'a> {
    BuiltIn(&'static [Column], Row),
    Custom(&'a Definition, Vec<Option<JsonPath>>),
}

impl<'a> Layout<'a> {
    fn of(presenter: &'a Presenter) -> Self {
        let kind = &presenter.kind;
        if let Some(definition) = kind.definition() {
            let paths = definition.columns.iter().map(|column| JsonPath::compile(&column.path).ok());
            return Self::Custom(definition, paths.collect());
        }
        let (columns, row) = built_in(&kind.group, &kind.plural);
        Self::BuiltIn(columns, row)
    }

    fn definitions(&self) -> Value {
        let define = |name: &str, kind: &str, format: &str, description: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
        match self {
            Self::BuiltIn(columns, _) => columns
                .iter()
                .map(|&(name, kind, priority)| match name {
                    "Name" => define(name, kind, "name", NAME, priority.into()),
                    _ => define(name, kind, "", "", priority.into()),
                })
                .collect(),
            Self::Custom(definition, _) => {
                let mut all = vec![define("Name", "string", "name", NAME, 0)];
                if definition.columns.is_empty() {
                    all.push(define("Age", "date", "", "", 0));
                }
                all.extend(definition.columns.iter().map(|column| {
                    let described =
                        format!("Custom resource definition column (in JSONPath format): {}", column.path);
                    let text = if column.description.is_empty() { &described } else { &column.description };
                    define(&column.name, &column.kind, &column.format, text, column.priority)
                }));
                all.into()
            }
        }
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Self::BuiltIn(_, row) => row(object, now),
            Self::Custom(definition, paths) => {
                let mut cells = vec![object["metadata"]["name"].clone()];
                if definition.columns.is_empty() {
                    cells.push(age(object, now));
                }
                let columns = definition.columns.iter().zip(paths);
                cells.extend(columns.map(|(column, path)| {
                    path.as_ref().map_or(Value::Null, |path| path.cell(&column.kind, object, now))
                }));
                cells
            }
        }
    }
}

fn built_in(group: &str, plural: &str) -> (&'static [Column], Row) {
    match group {
        "" | "events.k8s.io" => core::layout(plural),
        _ => workloads::layout(group, plural),
    }
    .unwrap_or((DEFAULT, default_row))
}

const DEFAULT: &[Column] = &[("Name", "string", 0), ("Created At", "date", 0)];

fn default_row(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
}

/// The age of an object.
fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now)
}

/// How long ago a timestamp was.
fn since(at: &Value, now: Timestamp) -> Value {
    let Some(at) = at.as_str() else { return "<unknown>".into() };
    at.parse::<Timestamp>().map_or_else(|_| "<invalid>".into(), |at| jsonpath::age(at, now).into())
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// A field as text; `<none>` when it is not there.
fn or_none(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if !text.is_empty() => text.into(),
        _ => "<none>".into(),
    }
}

/// A field as text; empty when it is not there.
fn or_empty(value: &Value) -> Value {
    value.as_str().unwrap_or_default().into()
}

fn count(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn entries(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, Map::len), |list| list.len())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> Value {
    let all: Vec<&str> = texts.collect();
    if all.is_empty() { "<none>".into() } else { all.join(",").into() }
}

/// `a=b,c=d`, `<none>` when empty.
fn labels(map: &Value) -> Value {
    let pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
}

/// A `LabelSelector` object as kubectl prints it.
fn selector(object: &Value) -> Value {
    let text =
        apimachinery::selector::LabelSelector::from_object(object).map(|selector| selector.to_string());
    text.ok().filter(|text| !text.is_empty()).map_or("<none>".into(), Into::into)
}

#[cfg(test)]
mod tests;
