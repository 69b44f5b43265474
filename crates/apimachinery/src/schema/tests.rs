#![expect(clippy::needless_pass_by_value, reason = "literals read better than references to them")]

use crate::tree::json;

use super::*;
use crate::Status;
use crate::patch::tests::any_json;

fn schema(spec: Value) -> Schema {
    let root = json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object",
        "x-kubernetes-preserve-unknown-fields": true}}});
    Schema::parse(&root, "schema").unwrap()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "a.b/v1", "kind": "C", "metadata": {"name": "c", "labels": {"x": "y"}}, "spec": spec})
}

fn errors(node: Value, value: Value) -> Vec<String> {
    let schema = schema(json!({"type": "object", "properties": {"x": node}}));
    schema.validate(&object(json!({"x": value})), None).iter().map(ToString::to_string).collect()
}

#[test]
fn unknown_fields_are_dropped_and_named() {
    let schema = schema(json!({"type": "object", "properties": {
        "known": {"type": "object", "properties": {"a": {"type": "string"}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"b": {"type": "object", "properties": {}}}},
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true},
    }}));
    let mut all = object(json!({
        "known": {"a": "1", "z": 1}, "map": {"k": {"a": "1", "z": 1}}, "list": [{"a": "1", "z": 1}],
        "open": {"b": {"z": 1}, "c": 1}, "pod": {"kind": "Pod", "metadata": {"name": "p", "bogus": 1}, "spec": 1}, "z": 1,
    }));
    all["metadata"]["bogus"] = 1.into();
    let dropped = schema.prune(&mut all);
    assert_eq!(
        dropped,
        [
            "metadata.bogus",
            "spec.known.z",
            "spec.list[0].z",
            "spec.map.k.z",
            "spec.open.b.z",
            "spec.pod.metadata.bogus",
            "spec.pod.spec",
            "spec.z"
        ]
    );
    let kept = json!({"known": {"a": "1"}, "map": {"k": {"a": "1"}}, "list": [{"a": "1"}], "open": {"b": {}, "c": 1},
        "pod": {"kind": "Pod", "metadata": {"name": "p"}}});
    assert_eq!(all, object(kept));
}

#[test]
fn strictness_is_worded_as_recorded() {
    let unknown = ["bogus".to_owned()];
    let status = strict_error("v1", "ConfigMap", &unknown_field_warnings(&unknown));
    assert_eq!(
        status.to_json(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"bogus\"",
            "reason": "BadRequest", "code": 400})
    );
    assert_eq!(unknown_field_warnings(&unknown), ["unknown field \"bogus\""]);
    assert_eq!(strict_patch_error("{}", &unknown).code, 422);
}

#[test]
fn defaults_fill_what_is_missing() {
    let schema = schema(json!({"type": "object", "properties": {
        "n": {"type": "integer", "default": 1},
        "nullable": {"type": "integer", "default": 1, "nullable": true},
        "deep": {"type": "object", "default": {}, "properties": {"a": {"type": "string", "default": "b"}}},
        "absent": {"type": "object", "properties": {"a": {"type": "string", "default": "b"}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer", "default": 7}}}},
    }}));
    let mut given = object(json!({"n": null, "nullable": null, "list": [{}, {"a": 1}]}));
    schema.default(&mut given);
    assert_eq!(
        given["spec"],
        json!({"n": 1, "nullable": null, "deep": {"a": "b"}, "list": [{"a": 7}, {"a": 1}]})
    );
}

#[test]
fn null_goes_where_it_may_not_be() {
    let schema = schema(json!({"type": "object", "properties": {
        "foo": {"type": "string", "default": "x"}, "bar": {"type": "string", "nullable": true}, "baz": {"type": "string"},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "string"}}}}));
    let mut given = object(
        json!({"foo": null, "bar": null, "baz": null, "open": {"any": null}, "map": {"a": null, "b": "c"}, "list": [null]}),
    );
    schema.default(&mut given);
    let kept = json!({"foo": "x", "bar": null, "open": {"any": null}, "map": {"b": "c"}, "list": [null]});
    assert_eq!(given["spec"], kept, "an item of a list stays, and is refused");
}

#[test]
fn values_are_checked_in_the_words_of_the_api() {
    for (node, value, want) in [
        (
            json!({"type": "string"}),
            json!(7),
            r#"spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer""#,
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            r#"spec.x: Invalid value: "number": spec.x in body must be of type integer: "number""#,
        ),
        (
            json!({"type": "string"}),
            json!(null),
            r#"spec.x: Invalid value: "null": spec.x in body must be of type string: "null""#,
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            r#"spec.x: Unsupported value: "c": supported values: "a", "b""#,
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            r#"spec.x: Invalid value: "b": spec.x in body should match '^a+$'"#,
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "maximum": 1, "exclusiveMaximum": true}),
            json!(1),
            "spec.x: Invalid value: 1: spec.x in body should be less than 1",
        ),
        (
            json!({"type": "integer", "multipleOf": 2}),
            json!(3),
            "spec.x: Invalid value: 3: spec.x in body should be a multiple of 2",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("a"),
            r#"spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long"#,
        ),
        (
            json!({"type": "string", "maxLength": 1}),
            json!("ab"),
            "spec.x: Too long: may not be more than 1 byte",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "spec.x: Too many: 2: must have at most 1 item",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            "spec.x: Invalid value: 0: spec.x in body should have at least 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
            json!(["a", "a"]),
            r#"spec.x[1]: Duplicate value: "a""#,
        ),
        (
            json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"]}),
            json!([{"n": "a", "v": 1}, {"n": "a"}]),
            r#"spec.x[1]: Duplicate value: {"n":"a"}"#,
        ),
        (json!({"type": "object", "required": ["y"]}), json!({}), "spec.x.y: Required value"),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("now"),
            r#"spec.x: Invalid value: "now": spec.x in body must be of type date-time: "now""#,
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            r#"spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean""#,
        ),
        (
            json!({"type": "object", "not": {"required": ["a"]}, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"a": 1}),
            r#"<nil>: Invalid value: "": "spec.x" must not validate the schema (not)"#,
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true}),
            json!({"apiVersion": "v1"}),
            "spec.x.kind: Required value: must not be empty",
        ),
    ] {
        assert_eq!(errors(node, value), [want]);
    }
}

#[test]
fn values_that_are_right() {
    for (node, value) in [
        (json!({"type": "integer"}), json!(2.0)),
        (json!({"type": "number"}), json!(2)),
        (json!({"x-kubernetes-int-or-string": true}), json!("50%")),
        (
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!(5),
        ),
        (json!({"type": "string", "nullable": true}), json!(null)),
        (json!({"x-kubernetes-preserve-unknown-fields": true}), json!([{"a": 1}])),
        (json!({"type": "string", "format": "duration"}), json!("1h30m")),
        (json!({"type": "string", "format": "cidr"}), json!("10.0.0.0/8")),
        (json!({"type": "string", "format": "nobody-knows"}), json!("x")),
    ] {
        assert_eq!(errors(node, value), [""; 0]);
    }
}

#[test]
fn alternatives() {
    let node = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(errors(node.clone(), json!({"a": ""})), [""; 0]);
    assert_eq!(
        errors(node.clone(), json!({})),
        [
            r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid"#,
            "spec.x.a: Required value"
        ]
    );
    assert_eq!(
        errors(node, json!({"a": "", "b": ""})),
        [
            r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
}

#[test]
fn several_errors_become_one_status() {
    let schema =
        schema(json!({"type": "object", "required": ["a"], "properties": {"n": {"type": "integer"}}}));
    let status = Status::invalid("a.b", "C", "c", &schema.validate(&object(json!({"n": "1"})), None));
    assert_eq!(
        status.message,
        r#"C.a.b "c" is invalid: [spec.a: Required value, spec.n: Invalid value: "string": spec.n in body must be of type integer: "string"]"#
    );
    assert_eq!(status.causes[1].reason, "FieldValueTypeInvalid");
}

#[test]
fn what_was_wrong_before_may_stay() {
    let schema = schema(
        json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}}}}),
    );
    let old = object(json!({"a": "long", "l": [{"k": "x", "v": 5}]}));
    let touched = object(json!({"a": "long", "b": "b", "l": [{"k": "y"}, {"k": "x", "v": 5}]}));
    assert_eq!(schema.validate(&touched, Some(&old)), []);
    assert_eq!(schema.validate(&touched, None).len(), 2);
    let worse = object(json!({"a": "longer"}));
    assert_eq!(schema.validate(&worse, Some(&old)).len(), 1);
}

#[test]
fn rules_see_self_and_old_self() {
    let schema = schema(json!({"type": "object", "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
        "until": {"type": "string", "format": "date-time"},
        "my-name": {"type": "string"}, "namespace": {"type": "string"}, "a_b": {"type": "string"},
        "ratio": {"type": "number"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.n % 2 == 0", "messageExpression": "'odd: ' + string(self.n)"}]}},
    }, "x-kubernetes-validations": [
        {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "fieldPath": ".max", "message": "max is less than min"},
        {"rule": "!has(self.until) || self.until > timestamp('2026-01-01T00:00:00Z')", "reason": "FieldValueForbidden"},
        {"rule": "!has(self.my__dash__name) || self.my__dash__name != self.__namespace__"},
        {"rule": "!has(self.a_b) || self.a_b == 'x'"},
        {"rule": "!has(self.ratio) || self.ratio < 1.5"},
    ]}));
    let check = |spec: Value, old: Option<Value>| -> Vec<String> {
        let old = old.map(object);
        schema.validate(&object(spec), old.as_ref()).iter().map(ToString::to_string).collect()
    };
    assert_eq!(check(json!({"min": 1, "max": 2, "ratio": 1, "a_b": "x"}), None), [""; 0]);
    assert_eq!(
        check(json!({"min": 3, "max": 2}), None),
        [r#"spec.max: Invalid value: "object": max is less than min"#]
    );
    assert_eq!(
        check(json!({"until": "2025-01-01T00:00:00Z"}), None),
        ["spec: Forbidden: failed rule: !has(self.until) || self.until > timestamp('2026-01-01T00:00:00Z')"]
    );
    assert_eq!(
        check(json!({"my-name": "a", "namespace": "a"}), None),
        [
            r#"spec: Invalid value: "object": failed rule: !has(self.my__dash__name) || self.my__dash__name != self.__namespace__"#
        ]
    );
    assert_eq!(
        check(json!({"my-name": "a"}), None),
        [
            r#"spec: Invalid value: "object": no such key: __namespace__ evaluating rule: !has(self.my__dash__name) || self.my__dash__name != self.__namespace__"#
        ]
    );
    assert_eq!(
        check(json!({"list": [{"n": 2}, {"n": 3}]}), None),
        [r#"spec.list[1]: Invalid value: "object": odd: 3"#]
    );
    assert_eq!(check(json!({"fixed": "a"}), None), [""; 0]);
    assert_eq!(check(json!({"fixed": "a"}), Some(json!({"fixed": "a"}))), [""; 0]);
    assert_eq!(
        check(json!({"fixed": "b"}), Some(json!({"fixed": "a"}))),
        [r#"spec.fixed: Invalid value: "string": is immutable"#]
    );
    assert_eq!(check(json!({"fixed": "b"}), Some(json!({}))), [""; 0]);
}

#[test]
fn schemas_that_make_no_sense() {
    let error = |schema: Value| -> Vec<String> {
        Schema::parse(&schema, "s").unwrap_err().iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        error(json!({"type": "array", "items": {"type": "string"}})),
        [r#"s.type: Invalid value: "array": must be object at the root"#]
    );
    assert_eq!(
        error(json!({"type": "object", "properties": {"a": {}}})),
        ["s.properties[a].type: Required value: must not be empty for specified object fields"]
    );
    assert!(
        error(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}))[0]
            .starts_with(
                r#"s.properties[a].pattern: Invalid value: "(": must be a valid regular expression"#
            )
    );
    assert!(
        error(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self."}]}))[0]
            .starts_with(r#"s.x-kubernetes-validations[0].rule: Invalid value: "self.": compilation failed"#)
    );
    assert!(
        error(json!({"type": "object", "properties": {"a": {"type": "strin"}}}))[0]
            .contains("Unsupported value: \"strin\"")
    );
}

proptest::proptest! {
    #[test]
    fn nothing_panics(node in any_json(), value in any_json(), old in any_json()) {
        if let Ok(schema) = Schema::parse(&json!({"type": "object", "properties": {"spec": node}}), "s") {
            let mut object = object(value);
            schema.default(&mut object);
            schema.prune(&mut object);
            let _ = schema.validate(&object, Some(&json!({"spec": old})));
        }
    }

    #[test]
    fn pruning_and_defaulting_twice_change_nothing_more(value in any_json()) {
        let schema = schema(json!({"type": "object", "properties": {"a": {"type": "object", "default": {"b": 1},
            "properties": {"b": {"type": "integer", "default": 2}, "spec": {"type": "string", "default": "x"}}},
            "name": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}}}}));
        let mut once = object(value);
        schema.prune(&mut once);
        schema.default(&mut once);
        let mut twice = once.clone();
        proptest::prop_assert_eq!(schema.prune(&mut twice), Vec::<String>::new());
        schema.default(&mut twice);
        proptest::prop_assert_eq!(once, twice);
    }
}
