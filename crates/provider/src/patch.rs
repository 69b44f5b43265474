//! JSON patches that are written only onto what they were made for.

use serde_json::{Value, json};

/// Operations that put `value` at `pointer` of `object`, guarded: by what stands there now, or where
/// nothing does, by the object's resourceVersion. Parents that are missing are made.
pub(crate) fn put(object: &Value, pointer: &str, value: Value) -> Vec<Value> {
    if let Some(old) = object.pointer(pointer) {
        return vec![
            json!({"op": "test", "path": pointer, "value": old}),
            json!({"op": "replace", "path": pointer, "value": value}),
        ];
    }
    let (mut path, mut value) = (pointer.to_owned(), value);
    while let Some((parent, key)) = path.rsplit_once('/') {
        if parent.is_empty() || object.pointer(parent).is_some_and(Value::is_object) {
            break;
        }
        value = json!({key: value});
        path = parent.to_owned();
    }
    let version = &object["metadata"]["resourceVersion"];
    vec![
        json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}),
        json!({"op": "add", "path": path, "value": value}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_guards_itself_and_parents_are_made() {
        let object = json!({"metadata": {"resourceVersion": "7"}, "spec": {"a": [1]}});
        assert_eq!(
            put(&object, "/spec/a", json!([1, 2])),
            [
                json!({"op": "test", "path": "/spec/a", "value": [1]}),
                json!({"op": "replace", "path": "/spec/a", "value": [1, 2]})
            ]
        );
        assert_eq!(
            put(&object, "/spec/b/c/d", json!(1)),
            [
                json!({"op": "test", "path": "/metadata/resourceVersion", "value": "7"}),
                json!({"op": "add", "path": "/spec/b", "value": {"c": {"d": 1}}})
            ]
        );
        assert_eq!(put(&object, "/spec/e", json!(1))[1]["path"], "/spec/e");
    }
}
