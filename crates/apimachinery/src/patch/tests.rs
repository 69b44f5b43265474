use crate::tree::{Value, json};
use proptest::prelude::*;

use super::*;

pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..3).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-d]|name|type|spec", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Operations over any object, many of which fail.
fn operations() -> impl Strategy<Value = Vec<Value>> {
    let path = || "(/([a-d]|name|type|spec|[0-2]|-|01|a~1b|~2)){0,3}|x";
    let kind = prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test", "other"]);
    let operation =
        (kind, path(), path(), prop::option::of(any_json())).prop_map(|(op, path, from, value)| {
            let mut operation = json!({"op": op, "path": path, "from": from});
            if let Some(value) = value {
                operation["value"] = value;
            }
            operation
        });
    prop::collection::vec(operation, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// What the `json-patch` crate applies by the letter of RFC 6902 is applied here with the same result. What it refuses is
    /// refused, but for what the API server's own library lets pass: keys that are not there replaced, or tested for null.
    #[test]
    fn json_patches_do_what_the_rfc_says(object in any_json(), operations in operations()) {
        let mut reference = serde_json::Value::from(object.clone());
        let patch = serde_json::from_value(serde_json::Value::from(Value::from(operations.clone())));
        let applied = patch.is_ok_and(|patch: ::json_patch::Patch| ::json_patch::patch(&mut reference, &patch).is_ok());
        let mut patched = object;
        let done = apply_operations(&mut patched, &operations);
        if applied {
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(serde_json::Value::from(patched), reference);
        } else if done.is_ok() {
            let lenient = |one: &Value| one["op"] == "replace" || one["op"] == "test" && one["value"].is_null();
            prop_assert!(operations.iter().any(lenient), "{operations:?}");
        }
    }
}

#[test]
fn json_patch_applies_all_or_nothing() {
    let object = json!({"data": {"x": "1"}, "list": [1, 2]});
    let patched = json_patch(
        &object,
        &json!([
            {"op": "test", "path": "/data/x", "value": "1"},
            {"op": "replace", "path": "/data/x", "value": "2"},
            {"op": "add", "path": "/list/-", "value": 3},
            {"op": "remove", "path": "/list/0"},
            {"op": "copy", "from": "/data", "path": "/copy"},
            {"op": "move", "from": "/copy/x", "path": "/data/y"},
        ]),
    );
    assert_eq!(patched.unwrap(), json!({"data": {"x": "2", "y": "2"}, "list": [2, 3], "copy": {}}));
}

#[test]
fn an_absent_key_is_replaced_and_tested_for_null() {
    let patched = json_patch(
        &json!({"metadata": {"name": "vm"}}),
        &json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "replace", "path": "/metadata/finalizers", "value": ["a/b"]},
        ]),
    );
    assert_eq!(patched.unwrap(), json!({"metadata": {"name": "vm", "finalizers": ["a/b"]}}));
}

#[test]
fn json_patches_that_fail() {
    let object = json!({"data": {"x": "1"}});
    let invalid = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "the server rejected our request due to an error in our request",
        "reason": "Invalid", "details": {}, "code": 422});
    for operation in [
        json!({"op": "test", "path": "/data/x", "value": "2"}),
        json!({"op": "remove", "path": "/data/none"}),
        json!({"op": "replace", "path": "/none/x", "value": 1}),
        json!({"op": "test", "path": "/data/none", "value": 1}),
        json!({"op": "add", "path": "/none/x", "value": 1}),
        json!({"op": "bogus", "path": "/data"}),
        json!({"op": "copy", "from": "/none", "path": "/data"}),
    ] {
        let status = json_patch(&object, &json!([operation.clone()])).unwrap_err();
        assert_eq!(status.to_json(), invalid, "{operation}");
    }
    assert_eq!(json_patch(&object, &json!({})).unwrap_err().code, 400);
    assert_eq!(json_patch(&object, &json!([1])).unwrap_err().code, 400);
    let many = vec![json!({"op": "test", "path": "", "value": object}); MAX_OPERATIONS + 1];
    let status = json_patch(&object, &many.into()).unwrap_err();
    assert_eq!((status.code, status.reason.as_ref()), (413, "RequestEntityTooLarge"));
    assert_eq!(
        status.message,
        "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
    );
}

#[test]
fn copies_cannot_explode() {
    let doubling: Vec<Value> =
        (0..40).map(|n| json!({"op": "copy", "from": "", "path": format!("/c{n}")})).collect();
    assert_eq!(json_patch(&json!({"a": "x".repeat(1000)}), &doubling.into()).unwrap_err().code, 422);
    let nesting: Vec<Value> =
        (0..200).map(|n| json!({"op": "add", "path": "/a".repeat(n + 1), "value": {}})).collect();
    assert_eq!(json_patch(&json!({}), &nesting.into()).unwrap_err().code, 422);
}

#[test]
fn merge_patch_follows_the_rfc() {
    for (target, patch, want) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "c": 1}), json!({"a": null}), json!({"c": 1})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!({}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
    ] {
        assert_eq!(merge_patch(&target, &patch).unwrap(), want);
    }
    assert_eq!(merge_patch(&json!({}), &json!([])).unwrap_err().code, 400);
}

fn strategic(object: &Value, patch: &Value) -> Result<Value, crate::Status> {
    strategic_patch(object, patch, &crate::ObjectType::builtin("v1", "Pod").unwrap())
}

#[test]
fn strategic_patches_merge_lists_by_key() {
    let pod = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x/a", "x/b"]},
        "spec": {"containers": [{"name": "a", "image": "i", "args": ["1"]}, {"name": "b", "image": "i"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "t"}]}});
    for (patch, path, want) in [
        (
            json!({"spec": {"containers": [{"name": "a", "image": "j", "args": ["2"]}]}}),
            "/spec/containers",
            json!([{"name": "a", "image": "j", "args": ["2"]}, {"name": "b", "image": "i"}]),
        ),
        (
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            "/spec/containers",
            json!([{"name": "b", "image": "i"}]),
        ),
        (
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}),
            "/spec/containers",
            json!([{"name": "c"}]),
        ),
        (
            json!({"spec": {"containers": [{"name": "c"}], "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}}),
            "/spec/containers",
            json!([{"name": "c"}, {"name": "b", "image": "i"}, {"name": "a", "image": "i", "args": ["1"]}]),
        ),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            "/spec/containers/0/name",
            json!("b"),
        ),
        (json!({"spec": {"tolerations": [{"key": "u"}]}}), "/spec/tolerations", json!([{"key": "u"}])),
        (json!({"metadata": {"labels": {"a": null, "b": "2"}}}), "/metadata/labels", json!({"b": "2"})),
        (
            json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
            "/metadata/labels",
            json!({"c": "3"}),
        ),
        (
            json!({"metadata": {"finalizers": ["x/c", "x/a"]}}),
            "/metadata/finalizers",
            json!(["x/c", "x/a", "x/b"]),
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/a"]}}),
            "/metadata/finalizers",
            json!(["x/b"]),
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}),
            "/spec/volumes",
            json!([{"name": "v", "secret": {"secretName": "s"}}]),
        ),
        (
            json!({"status": {"conditions": [{"type": "Golden", "status": "True"}]}}),
            "/status/conditions",
            json!([{"type": "Golden", "status": "True"}]),
        ),
    ] {
        assert_eq!(strategic(&pod, &patch).unwrap().pointer(path), Some(&want), "{patch}");
    }
}

#[test]
fn strategic_patches_that_make_no_sense() {
    let pod = json!({"spec": {"containers": [{"name": "a"}]}});
    let error = |patch: Value| strategic(&pod, &patch).unwrap_err();
    let no_key = error(json!({"spec": {"containers": [{"image": "i"}]}}));
    assert_eq!(
        (no_key.code, no_key.message.as_str()),
        (500, "map: map[image:i] does not contain declared merge key: name")
    );
    assert_eq!(error(json!({"spec": {"$patch": "bogus"}})).message, "unknown patch type: bogus");
    assert_eq!(error(json!({"spec": {"$retainKeys": ["a"], "b": 1}})).code, 400);
    assert_eq!(error(json!([])).code, 400);
}

proptest! {
    #[test]
    fn no_strategic_patch_panics(object in any_json(), patch in any_json()) {
        let _ = strategic(&object, &patch);
        let wrapped = |spec: &Value| json!({"metadata": {"finalizers": spec.clone()}, "spec": {"containers": spec.clone(),
            "volumes": [spec.clone()], "nodeSelector": spec.clone()}});
        let _ = strategic(&wrapped(&object), &wrapped(&patch));
    }

    #[test]
    fn a_strategic_patch_without_lists_is_a_merge_patch(object in any_json(), patch in any_json()) {
        let deployment = |value: &Value| json!({"spec": {"template": {"metadata": {"annotations": value}}}});
        let has_list = |value: &Value| value.to_string().contains('[');
        if !has_list(&object) && !has_list(&patch) {
            let (object, patch) = (deployment(&object), deployment(&patch));
            prop_assert_eq!(strategic(&object, &patch).unwrap(), merge_patch(&object, &patch).unwrap());
        }
    }

    #[test]
    fn merging_twice_changes_nothing_more(target in any_json(), patch in any_json()) {
        let mut once = target;
        merge(&mut once, &patch);
        let mut twice = once.clone();
        merge(&mut twice, &patch);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn no_json_patch_panics(object in any_json(), value in any_json(), path in "(/[a-d0-2-]{0,2}){0,3}", from in "(/[a-d0]){0,2}",
            op in "add|remove|replace|move|copy|test|x") {
        let operation = json!({"op": op, "path": path, "from": from, "value": value});
        let _ = json_patch(&object, &json!([operation.clone(), operation]));
    }
}
