//! The part of `JSONPath` that CRDs use: printer columns, scale paths, selectable fields
//! (`client-go/util/jsonpath` and `apiextensions-apiserver` `registry/customresource/tableconvertor`, 1.36).

use crate::tree::{List, Value};
use jiff::Timestamp;

/// Longest path, in bytes.
const PATH_MAX: usize = 4096;

/// A path that cannot be understood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot read the path {path:?}: {why}")]
pub struct JsonPathError {
    /// The path.
    pub path: String,
    /// What is wrong with it.
    pub why: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// negative: from the end
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Filter(Filter),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    path: Vec<Step>,
    /// none: the path must be there
    test: Option<(Comparison, Value)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A compiled path.
///
/// ```
/// use apimachinery::jsonpath::JsonPath;
/// let path = JsonPath::compile(".status.conditions[?(@.type=='Ready')].status").unwrap();
/// let object = apimachinery::tree::json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
/// assert_eq!(path.first(&object).unwrap(), "True");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

impl JsonPath {
    /// Compiles `.a.b`, `.a['b.c']`, `.a\.b`, `.l[0]`, `.l[-1]`, `.l[1:3]`, `.l[*]`, `.l[?(@.x=='y')]`, with or
    /// without `$` and braces.
    pub fn compile(path: &str) -> Result<Self, JsonPathError> {
        let fail = |why| JsonPathError { path: path.into(), why };
        if path.len() > PATH_MAX {
            return Err(JsonPathError { path: path.chars().take(80).collect(), why: "it is too long" });
        }
        let text = path.trim();
        let text = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(text);
        steps(text.strip_prefix('$').unwrap_or(text), true).map(|steps| Self { steps }).map_err(fail)
    }

    /// Everything that the path leads to; nothing when a part is missing.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        follow(&self.steps, object)
    }

    /// The first that the path leads to.
    pub fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.find(object).into_iter().next()
    }

    /// The cell of a printer column of a CRD. `kind` is the column's type: `string`, `integer`, `number`,
    /// `boolean` or `date`. Null: nothing there, or something of another type.
    pub fn cell(&self, kind: &str, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.first(object) else { return Value::Null };
        match (kind, value) {
            ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => {
                value.clone()
            }
            ("string", Value::Null) => Value::Null,
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(number)) => {
                number.as_i64().map_or_else(|| truncated(number.as_f64()), Value::from)
            }
            ("date", Value::String(time)) => match time.parse::<Timestamp>() {
                Ok(time) => age(time, now).into(),
                Err(_) => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a printer column cuts numbers, as the API server does")]
fn truncated(number: Option<f64>) -> Value {
    number.map_or(Value::Null, |number| (number as i64).into())
}

/// How long ago something was, as kubectl prints it: `3s`, `4m5s`, `2h`, `3d4h`, `2y10d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - since.as_second();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, big_unit, small: i64, small_unit| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => pair(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

fn follow<'a>(steps: &[Step], object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in steps {
        found = found.into_iter().flat_map(|value| step.follow(value)).collect();
    }
    found
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let list = value.as_array().map_or(&[][..], List::as_slice);
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                position(*index, list.len()).and_then(|at| list.get(at)).into_iter().collect()
            }
            Self::Slice(from, to) => {
                let from = from.map_or(Some(0), |from| position(from, list.len())).unwrap_or(list.len());
                let to =
                    to.map_or(Some(list.len()), |to| position(to, list.len())).unwrap_or(0).min(list.len());
                list.get(from..to).unwrap_or_default().iter().collect()
            }
            Self::All => match value {
                Value::Object(fields) => fields.values().collect(),
                _ => list.iter().collect(),
            },
            Self::Filter(filter) => list.iter().filter(|item| filter.holds(item)).collect(),
        }
    }
}

fn position(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
    usize::try_from(index).ok()
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let Some(found) = follow(&self.path, item).into_iter().next() else { return false };
        let Some((comparison, wanted)) = &self.test else { return true };
        let order = match (found, wanted) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
        };
        match comparison {
            Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Comparison::NotEqual => !order.is_some_and(std::cmp::Ordering::is_eq),
            Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Comparison::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

/// Reads steps; a filter inside of a filter is refused.
fn steps(text: &str, filters: bool) -> Result<Vec<Step>, &'static str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner).ok_or("a bracket is not closed")?;
            out.push(bracket(&inner[..end], filters)?);
            rest = &inner[end + 1..];
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.starts_with('.') {
            return Err("recursive descent is not supported");
        }
        let (name, length) = field_name(rest);
        if length == 0 && !rest.starts_with('[') {
            return if rest.is_empty() && out.is_empty() { Ok(out) } else { Err("a field name is missing") };
        }
        if length > 0 {
            out.push(if name == "*" { Step::All } else { Step::Field(name) });
        }
        rest = &rest[length..];
    }
    Ok(out)
}

/// A field name up to the next unescaped `.` or `[`, and how many bytes it took.
fn field_name(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, at),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c => name.push(c),
        }
    }
    (name, text.len())
}

/// Where the bracket that was opened before `text` is closed.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str, filters: bool) -> Result<Step, &'static str> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(condition) = text.strip_prefix("?(").and_then(|inner| inner.strip_suffix(')')) {
        if !filters {
            return Err("a filter inside of a filter is not supported");
        }
        return filter(condition).map(Step::Filter);
    }
    if let Some(name) = unquoted(text) {
        return Ok(Step::Field(name.into()));
    }
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| "an index is no number");
    let bound = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
    match text.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(bound(from)?, bound(to)?)),
        None => number(text).map(Step::Index),
    }
}

fn filter(text: &str) -> Result<Filter, &'static str> {
    let (at, operator, comparison) = operator_of(text);
    let (path, literal) = match comparison {
        Some(_) => (&text[..at], Some(text[at + operator..].trim())),
        None => (text, None),
    };
    let path = path.trim().strip_prefix('@').ok_or("a filter must start with @")?;
    let test = match (comparison, literal) {
        (Some(comparison), Some(literal)) => {
            let value = match unquoted(literal) {
                Some(text) => text.into(),
                None => serde_json::from_str(literal).map_err(|_| "a filter compares with no literal")?,
            };
            Some((comparison, value))
        }
        _ => None,
    };
    Ok(Filter { path: steps(path, false)?, test })
}

/// The first operator outside of quotes: where it is, how long, and what it means.
fn operator_of(text: &str) -> (usize, usize, Option<Comparison>) {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '=' | '!' | '<' | '>') => {
                for (operator, comparison) in [
                    ("==", Comparison::Equal),
                    ("!=", Comparison::NotEqual),
                    ("<=", Comparison::LessOrEqual),
                    (">=", Comparison::GreaterOrEqual),
                    ("=", Comparison::Equal),
                    ("<", Comparison::Less),
                    (">", Comparison::Greater),
                ] {
                    if text[at..].starts_with(operator) {
                        return (at, operator.len(), Some(comparison));
                    }
                }
            }
            _ => {}
        }
    }
    (text.len(), 0, None)
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

#[cfg(test)]
mod tests {
    use crate::tree::json;

    use super::*;

    fn object() -> Value {
        json!({"metadata": {"creationTimestamp": "2026-11-21T01:15:51Z", "labels": {"a.b/c": "x"}},
            "spec": {"n": 3, "ratio": 1.5, "on": true, "list": ["a", "b", "c"]},
            "status": {"conditions": [{"type": "Paused", "status": "False", "n": 1}, {"type": "Ready", "status": "True", "n": 2}]}})
    }

    #[test]
    fn paths() {
        for (path, want) in [
            (".spec.n", json!([3])),
            ("{.spec.n}", json!([3])),
            ("$.spec['n']", json!([3])),
            (".metadata.labels['a.b/c']", json!(["x"])),
            (r".metadata.labels.a\.b/c", json!(["x"])),
            (".spec.list[0]", json!(["a"])),
            (".spec.list[-1]", json!(["c"])),
            (".spec.list[1:]", json!(["b", "c"])),
            (".spec.list[0:2]", json!(["a", "b"])),
            (".spec.list[*]", json!(["a", "b", "c"])),
            (".spec.list[9]", json!([])),
            (".spec.missing.n", json!([])),
            (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
            (r#".status.conditions[?(@.type == "Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type!='Ready')].status", json!(["False"])),
            (".status.conditions[?(@.n>1)].type", json!(["Ready"])),
            (".status.conditions[?(@.none)].type", json!([])),
            (".status.conditions[*].type", json!(["Paused", "Ready"])),
        ] {
            assert_eq!(json!(JsonPath::compile(path).unwrap().find(&object())), want, "{path}");
        }
        for path in ["..a", ".a[", ".a[x]", ".a[?(b==1)]", ".a..b", ".a[?(@.b==c)]", &".a".repeat(5000)] {
            assert!(JsonPath::compile(path).is_err(), "{path}");
        }
    }

    #[test]
    fn cells() {
        let now: Timestamp = "2026-11-21T01:15:54Z".parse().unwrap();
        for (path, kind, want) in [
            (".metadata.creationTimestamp", "date", json!("3s")),
            (".spec.n", "integer", json!(3)),
            (".spec.ratio", "integer", json!(1)),
            (".spec.ratio", "number", json!(1.5)),
            (".spec.on", "boolean", json!(true)),
            (".spec.n", "string", json!("3")),
            (".spec.list", "string", json!("[\"a\",\"b\",\"c\"]")),
            (".spec.list", "integer", json!(null)),
            (".spec.none", "string", json!(null)),
            (".spec.list[0]", "date", json!("<invalid>")),
        ] {
            assert_eq!(JsonPath::compile(path).unwrap().cell(kind, &object(), now), want, "{path} {kind}");
        }
    }

    #[test]
    fn ages() {
        let day = 86400;
        for (seconds, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (700, "11m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (3 * day + 7200, "3d2h"),
            (9 * day, "9d"),
            (800 * day, "2y70d"),
            (4000 * day, "10y"),
        ] {
            let now = Timestamp::from_second(1_000_000_000).unwrap();
            let then = Timestamp::from_second(1_000_000_000 - seconds).unwrap();
            assert_eq!(age(then, now), want);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(path in "[.\\[\\]a-b0-9:*?()@='!\\\\é-]{0,24}", value in crate::patch::tests::any_json()) {
            if let Ok(path) = JsonPath::compile(&path) {
                let _ = path.find(&value);
            }
        }
    }
}
