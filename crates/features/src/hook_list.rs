//! The hook sidecar annotation: a JSON list inside of a string. Entries that others wrote keep
//! their text to the byte.

use serde_json::Value;
use serde_json::value::RawValue;

/// The list is not valid JSON, or not a list.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct InvalidList(#[from] serde_json::Error);

impl InvalidList {
    /// The same of an annotation that has a name.
    pub(crate) fn of(self, key: &'static str) -> InvalidHooks {
        InvalidHooks { key, source: self.0 }
    }
}

/// An annotation is not a list of hooks.
#[derive(Debug, thiserror::Error)]
#[error("the annotation {key} of the template is not a JSON list ({source}); correct or remove it")]
pub(crate) struct InvalidHooks {
    key: &'static str,
    source: serde_json::Error,
}

/// The entries of the list.
pub(crate) fn entries(text: &str) -> Result<Vec<Value>, InvalidList> {
    Ok(serde_json::from_str(text)?)
}

/// The list with one more entry at its end.
pub(crate) fn append(text: &str, entry: &Value) -> Result<String, InvalidList> {
    let is_empty = raw(text)?.is_empty();
    let end = text.trim_end().len() - 1; // the closing bracket of a valid list
    let body = text[..end].trim_end();
    let gap = &text[body.len()..end];
    let comma = if is_empty { "" } else { "," };
    Ok(format!("{body}{comma}{entry}{gap}{}", &text[end..]))
}

/// The list without the entry, or nothing when it has no such entry.
pub(crate) fn remove(text: &str, entry: &Value) -> Option<String> {
    let entries = raw(text).ok()?;
    let index = entries
        .iter()
        .position(|raw| serde_json::from_str::<Value>(raw.get()).ok().as_ref() == Some(entry))?;
    // raw values borrow from the text, so their offsets are known
    let start = |raw: &RawValue| raw.get().as_ptr().addr() - text.as_ptr().addr();
    let end = |raw: &RawValue| start(raw) + raw.get().len();
    let (from, to) = if index > 0 {
        (end(entries[index - 1]), end(entries[index]))
    } else if let Some(next) = entries.get(1) {
        (start(entries[0]), start(next))
    } else {
        (start(entries[0]), end(entries[0]))
    };
    Some(format!("{}{}", &text[..from], &text[to..]))
}

/// Whether the list has no entry.
pub(crate) fn is_empty(text: &str) -> bool {
    raw(text).is_ok_and(|entries| entries.is_empty())
}

fn raw(text: &str) -> Result<Vec<&RawValue>, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_appended_can_be_taken_away_without_a_trace() {
        let ours = json!({"image": "ours"});
        for text in
            ["[]", "[ ]", " [\n]\n", r#"[{"image" : "x"}]"#, "[{\"b\":1,\"a\":2}, {\"image\":\"y\"}\n]\n"]
        {
            let longer = append(text, &ours).unwrap();
            assert_eq!(entries(&longer).unwrap().last(), Some(&ours), "{longer}");
            let back = remove(&longer, &ours).unwrap();
            assert_eq!(back, text);
        }
    }

    #[test]
    fn an_entry_is_found_wherever_it_stands() {
        let ours = json!({"image": "ours", "n": 1});
        for (text, expected) in [
            (r#"[{"n":1, "image":"ours"}, {"a":1}]"#, r#"[{"a":1}]"#),
            (r#"[{"a":1}, {"n":1, "image":"ours"}, {"b":1}]"#, r#"[{"a":1}, {"b":1}]"#),
            (r#"[{"n":1, "image":"ours"}]"#, "[]"),
        ] {
            assert_eq!(remove(text, &ours).as_deref(), Some(expected));
        }
        assert_eq!(remove(r#"[{"image":"ours"}]"#, &ours), None);
        assert_eq!(remove("nonsense", &ours), None);
    }

    #[test]
    fn a_text_that_is_no_list_is_an_error() {
        for text in ["", "{}", r#"["image":"x"]"#, "[", "null"] {
            assert!(append(text, &json!(1)).is_err(), "{text}");
        }
    }
}
