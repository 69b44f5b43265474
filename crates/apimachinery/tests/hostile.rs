//! Objects as deep and as wide as a client can make them: nothing overflows the stack, nothing takes ages.

use apimachinery::apply::{Reset, Writer, apply, track_update};
use apimachinery::cel::{Program, Variables};
use apimachinery::depth::MAX_DEPTH;
use apimachinery::patch::{json_patch, merge_patch, strategic_patch};
use apimachinery::schema::Schema;
use apimachinery::tree::{Map, Value, json};
use apimachinery::{ObjectType, validation};
use jiff::Timestamp;

fn deep(levels: usize, list: bool) -> Value {
    (0..levels).fold(json!("end"), |inner, _| if list { json!([inner]) } else { json!({"a": inner}) })
}

#[expect(clippy::needless_pass_by_value, reason = "literals read better than references to them")]
fn object(spec: Value) -> Value {
    json!({"apiVersion": "a.b/v1", "kind": "C", "metadata": {"name": "c", "namespace": "n"}, "spec": spec})
}

fn deep_schema(levels: usize) -> Value {
    (0..levels).fold(
        json!({"type": "string", "default": "x"}),
        |inner, _| json!({"type": "object", "properties": {"a": inner}}),
    )
}

#[test]
fn the_deepest_objects_fit_the_stack() {
    let writer = Writer { manager: "m", api_version: "a.b/v1", subresource: "" };
    let now = Timestamp::UNIX_EPOCH;
    let pod = ObjectType::builtin("v1", "Pod").unwrap();
    for list in [false, true] {
        let old = object(deep(MAX_DEPTH - 3, list));
        let new = object(json!({"a": deep(MAX_DEPTH - 4, list)}));
        for ty in [ObjectType::schemaless(), pod.clone()] {
            let mut tracked = new.clone();
            track_update(None, &mut tracked, &ty, &writer, Reset::Nothing, now);
            let mut again = old.clone();
            track_update(Some(&tracked), &mut again, &ty, &writer, Reset::Status, now);
            let _ = apply(Some(&tracked), &old, &ty, &writer, true, Reset::Nothing, now);
            let _ = ty.normalize(&mut again);
            let _ = strategic_patch(&old, &new, &ty);
        }
        let _ = merge_patch(&old, &new).unwrap();
        let _ = json_patch(&old, &json!([{"op": "add", "path": "/spec/a", "value": deep(60, list)}]));
        let mut variables = Variables::default();
        variables.bind("object", &old);
        let program = Program::compile("has(object.spec) && object.kind == 'C'").unwrap();
        assert_eq!(program.evaluate_bool(&variables), Ok(true));
    }
    let mut root = json!({"type": "object", "properties": {"spec": deep_schema(MAX_DEPTH - 5)}});
    let schema = Schema::parse(&root, "s").unwrap();
    let mut given = object(deep(MAX_DEPTH - 5, false));
    schema.default(&mut given);
    assert_eq!(schema.prune(&mut given), [""; 0]);
    assert_eq!(schema.validate(&given, None), []);
    root["properties"]["spec"] = deep_schema(400);
    assert!(Schema::parse(&root, "s").is_err());
    let _ = ObjectType::from_crd_schema(&root);
}

/// 10,000 items: anything quadratic would take minutes here.
#[test]
fn the_widest_objects_take_no_time() {
    const ITEMS: usize = 10_000;
    let names = || (0..ITEMS).map(|n| format!("n{n}"));
    let containers: Vec<Value> = names().map(|name| json!({"name": name, "image": "i"})).collect();
    let pod = |containers: &[Value]| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let backwards: Vec<Value> = containers.iter().rev().cloned().collect();
    let (one, other) = (pod(&containers), pod(&backwards));
    let ty = ObjectType::builtin("v1", "Pod").unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let writer = |manager| Writer { manager, api_version: "v1", subresource: "" };
    let applied = apply(None, &one, &ty, &writer("a"), false, Reset::Status, now).unwrap().object;
    let shared = apply(Some(&applied), &other, &ty, &writer("b"), false, Reset::Status, now).unwrap().object;
    let half =
        apply(Some(&shared), &pod(&containers[..ITEMS / 2]), &ty, &writer("a"), false, Reset::Status, now);
    assert_eq!(half.unwrap().object["spec"]["containers"].as_array().map(|list| list.len()), Some(ITEMS));
    let merged = strategic_patch(&one, &other, &ty).unwrap();
    assert_eq!(merged["spec"]["containers"][0]["name"], format!("n{}", ITEMS - 1));

    let labels: Map = names().map(|name| (name, "v")).collect();
    let object =
        json!({"metadata": {"name": "a", "labels": labels, "annotations": labels, "finalizers": ["a/b"]}});
    let meta = object["metadata"].as_object().unwrap();
    assert_eq!(validation::object_meta(meta, validation::NameRule::Subdomain), []);

    let schema = json!({"type": "object", "properties": {"spec": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"], "uniqueItems": true, "items": {"type": "object",
            "properties": {"name": {"type": "string"}, "image": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": "self.name != self.image"}]}}}});
    let schema = Schema::parse(&schema, "s").unwrap();
    let old = json!({"spec": containers});
    assert_eq!(schema.validate(&json!({"spec": backwards}), Some(&old)), []);
}

/// As many keys as an object of the largest size can have, read backwards, and as many put between them and taken out.
#[test]
fn a_hundred_thousand_keys_take_no_time() {
    const KEYS: usize = 100_000;
    let keys = |odd: usize| (0..KEYS).rev().map(move |n| format!("{:07}", 2 * n + odd));
    let text = |odd: usize, value: &str| {
        let fields: Vec<String> = keys(odd).map(|key| format!("{key:?}:{value}")).collect();
        format!("{{\"data\":{{{}}}}}", fields.join(","))
    };
    let object: Value = text(0, "\"\"").parse().unwrap();
    let (adds, takes): (Value, Value) = (text(1, "\"1\"").parse().unwrap(), text(0, "null").parse().unwrap());
    let ty = ObjectType::builtin("v1", "ConfigMap").unwrap();
    let strategic = |object: &Value, patch: &Value| strategic_patch(object, patch, &ty).unwrap();
    let merged = |object: &Value, patch: &Value| merge_patch(object, patch).unwrap();
    for patched in [&strategic as &dyn Fn(&Value, &Value) -> Value, &merged] {
        let both = patched(&object, &adds);
        let map = both["data"].as_object().unwrap();
        assert_eq!(map.len(), 2 * KEYS);
        assert!(map.keys().is_sorted());
        assert_eq!(patched(&both, &takes), adds);
    }
}
