//! Files of Kubernetes objects: YAML or JSON, several documents, `List` kinds.

use std::io::Read;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::problem::Problem;

/// The most that is read from one file or from standard input, bytes. A Kubernetes object is at
/// most 1.5 MiB (etcd's request limit), so this is room for many.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Reads all objects of a file, or of standard input when the path is `-`. `List` kinds are
/// replaced by their items; empty documents are skipped.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    parse(&text(path)?, &path.display().to_string())
}

/// Reads a file, or standard input when the path is `-`, as text of a bounded size.
pub fn text(path: &Path) -> Result<String> {
    let doing = format!("reading `{}`", path.display());
    let remedy = "give a readable file of UTF-8 text, or `-` for standard input";
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| Problem::new(&doing, error, remedy))?;
    if bytes.len() as u64 > MAX_FILE {
        let wrong = format!("it is larger than {} MiB", MAX_FILE / 1024 / 1024);
        return Err(Problem::new(doing, wrong, "split the file").into());
    }
    String::from_utf8(bytes).map_err(|error| Problem::new(doing, error, remedy).into())
}

/// Parses the documents of a text; `origin` is named in errors.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Value>> {
    // no snippets in errors: the document may be a Secret
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        Problem::new(
            format!("parsing `{origin}`"),
            error,
            "correct the YAML; `kubectl apply --dry-run=client -f` shows it too",
        )
    })?;
    let mut objects = Vec::with_capacity(documents.len());
    for document in documents {
        if !document.is_object() {
            return Err(Problem::new(
                format!("parsing `{origin}`"),
                "a document is not a mapping",
                "write one Kubernetes object per YAML document",
            )
            .into());
        }
        flatten(document, &mut objects);
    }
    Ok(objects)
}

fn flatten(mut document: Value, objects: &mut Vec<Value>) {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if is_list => items.into_iter().for_each(|item| flatten(item, objects)),
        Some(items) => {
            document["items"] = items;
            objects.push(document);
        }
        None => objects.push(document),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "---\nkind: A\n---\n---\nkind: AList\nitems:\n- kind: B\n- kind: List\n  items: [{kind: C}]\n---\nkind: D\nitems: 3\n";
        let objects = parse(text, "x").unwrap();
        assert_eq!(
            objects,
            [
                json!({"kind": "A"}),
                json!({"kind": "B"}),
                json!({"kind": "C"}),
                json!({"kind": "D", "items": 3})
            ]
        );
    }

    #[test]
    fn json_is_yaml() {
        assert_eq!(parse("{\"kind\": \"A\", \"n\": 1}", "x").unwrap(), [json!({"kind": "A", "n": 1})]);
    }

    #[test]
    fn errors_name_the_file_and_show_none_of_its_text() {
        let error = parse("kind: Secret\ndata: {password: [hunter2\n", "s.yaml").unwrap_err().to_string();
        assert!(error.contains("parsing `s.yaml`"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(parse("- a\n", "x").unwrap_err().to_string().contains("not a mapping"));
    }
}
