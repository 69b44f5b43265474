//! The one diff printer: unified, over YAML.

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_saphyr::{LitStr, SingleQuoted};
use similar::{ChangeTag, TextDiff};

use crate::style::{Style, Tone};

/// Lines of context around a change, as `diff -u` has it.
const CONTEXT: usize = 3;

/// An object as YAML. Keys come in alphabetical order, strings are quoted as kubectl prints them.
pub fn yaml(object: &Value) -> Result<String, serde_saphyr::SerializeError> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&Readable(object), options)
}

/// A value that prints JSON in strings within single quotes, and texts of several lines as such.
struct Readable<'a>(&'a Value);

impl Serialize for Readable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(key, value)| (key, Readable(value))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Readable)),
            Value::String(text) if is_block(text) => LitStr(text).serialize(serializer),
            Value::String(text) if text.contains('"') && !text.contains(char::is_control) => {
                SingleQuoted(text).serialize(serializer)
            }
            other => other.serialize(serializer),
        }
    }
}

/// Whether a text is the same after it was written as a block (`|`): nothing that needs escapes,
/// no space that an indentation would swallow, and the end of a file or none.
fn is_block(text: &str) -> bool {
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    text.trim_end_matches('\n').contains('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && lines.all(|line| !line.ends_with(' ') && !line.contains(char::is_control))
}

/// A unified diff of two texts; empty when they are equal.
pub fn unified(names: (&str, &str), before: &str, after: &str, style: Style) -> String {
    if before == after {
        return String::new();
    }
    let diff = TextDiff::from_lines(before, after);
    let mut text = style.paint(Tone::Strong, &format!("--- {}\n+++ {}", names.0, names.1));
    text.push('\n');
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        text.push_str(&style.paint(Tone::Faint, &hunk.header().to_string()));
        text.push('\n');
        for change in hunk.iter_changes() {
            let line = change.value().trim_end_matches('\n');
            match change.tag() {
                ChangeTag::Delete => text.push_str(&style.paint(Tone::Bad, &format!("-{line}"))),
                ChangeTag::Insert => text.push_str(&style.paint(Tone::Good, &format!("+{line}"))),
                ChangeTag::Equal => text.extend([" ", line]),
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_texts_have_no_diff() {
        assert_eq!(unified(("a", "b"), "x\n", "x\n", Style::PLAIN), "");
    }

    #[test]
    fn changes_are_shown_with_context() {
        let before = "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1\n";
        let after = "a: 1\nb: 1\nc: 1\nd: 1\ne: 2\nf: 1\n";
        assert_eq!(
            unified(("vm", "vm after admission"), before, after, Style::PLAIN),
            "--- vm\n+++ vm after admission\n@@ -2,5 +2,5 @@\n b: 1\n c: 1\n d: 1\n-e: 1\n+e: 2\n f: 1\n"
        );
    }

    /// kubectl reads YAML 1.1, where a bare `yes` is a boolean and `012` an octal number.
    #[test]
    fn strings_that_look_like_something_else_are_quoted() {
        for text in
            ["true", "yes", "on", "n", "null", "~", "1", "012", "1e3", "0x1f", "1:30", "", "- a", "a: b"]
        {
            let printed = yaml(&json!({ "k": text })).unwrap();
            assert!(printed.contains('"') || printed.contains('\''), "{text} printed as {printed}");
            let read: Value = serde_saphyr::from_str(&printed).unwrap();
            assert_eq!(read, json!({ "k": text }));
        }
    }

    #[test]
    fn json_and_texts_stay_readable_and_every_string_survives() {
        let printed = yaml(&json!({ "k": "[\"it's\"]", "text": "#cloud-config\na: 1\n\nb: 2\n" })).unwrap();
        assert_eq!(printed, "k: '[\"it''s\"]'\ntext: |\n  #cloud-config\n  a: 1\n  \n  b: 2\n");
        for text in [
            "a\nb",
            "a\nb\n\n",
            " a\nb",
            "\na\nb",
            "a \nb",
            "a\t\nb",
            "a\n b",
            "\"\n",
            "\"\u{7}",
            "'\"",
            "---\na",
            "a\n---\nb",
            "\u{feff}a\nb",
            "a\u{2028}b\n\"c",
        ] {
            let object = json!({ "a": [{ "k": text }] });
            let printed = yaml(&object).unwrap();
            let read: Value = serde_saphyr::from_str(&printed).unwrap();
            assert_eq!(read, object, "{printed}");
        }
    }
}
