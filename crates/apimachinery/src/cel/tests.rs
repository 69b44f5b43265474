use crate::tree::json;
use proptest::prelude::*;

use super::*;

fn object() -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "n", "labels": {"app.kubernetes.io/name": "x"},
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"replicas": 3, "memory": "2Gi", "list": [{"name": "a"}, {"name": "b"}], "ratio": 0.5, "on": true},
    })
}

fn variables() -> Variables {
    let request = json!({"operation": "UPDATE", "userInfo": {"username": "u", "groups": ["g", "h"]}, "dryRun": false,
        "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"}});
    Variables::admission(&object(), &Value::Null, &request)
}

fn bool_of(expression: &str) -> Result<bool, CelError> {
    Program::compile(expression)?.evaluate_bool(&variables())
}

#[test]
fn expressions_of_webhooks_and_policies() {
    for expression in [
        "object.spec.replicas == 3",
        "object.spec.replicas + 1 > 3 && object.spec.ratio < 1.0",
        "object.metadata.namespace == 'n'",
        "object.metadata.labels['app.kubernetes.io/name'] == 'x'",
        "'app.kubernetes.io/name' in object.metadata.labels",
        "!has(object.spec.missing) && has(object.spec.list)",
        "oldObject == null",
        "request.operation in ['CREATE', 'UPDATE']",
        "!('system:nodes' in request.userInfo.groups)",
        "request.userInfo.username.startsWith('u')",
        "request.resource.group != 'rbac.authorization.k8s.io'",
        "object.spec.list.exists(i, i.name == 'b')",
        "object.spec.list.all(i, i.name.matches('^[a-z]$'))",
        "object.spec.list.map(i, i.name) == ['a', 'b']",
        "object.spec.list.filter(i, i.name == 'a').size() == 1",
        "quantity(object.spec.memory).isGreaterThan(quantity('1Gi'))",
        "timestamp(object.metadata.creationTimestamp) < timestamp('2026-06-01T00:00:00Z')",
        "duration('1h') > duration('30m')",
        "object.?spec.?missing.orValue(7) == 7",
        "object.?a.?b.c.orValue('x') == 'x'",
        "object.?spec.replicas.orValue(7) == 3",
        "object.?spec.list[0].name.orValue('x') == 'a'",
        "object.spec[?'missing'].orValue(1) == 1",
        "object.spec.list[?5].hasValue() == false",
        "!object.?metadata.?annotations.hasValue()",
        "object.spec.missing == 1 || object.spec.on",
        "size(object.spec.list) == 2 ? true : false",
        "string(object.spec.replicas) == '3'",
    ] {
        assert_eq!(bool_of(expression), Ok(true), "{expression}");
    }
}

#[test]
fn an_object_cut_to_what_an_expression_names_gives_the_same() {
    let object = object();
    for (expression, cut) in [
        (
            "has(object.spec.list) && object.spec.list.all(i, has(i.name))",
            json!({"spec": {"list": object["spec"]["list"]}}),
        ),
        (
            "object.spec.replicas == 3 && object.metadata.name == 'a'",
            json!({"spec": {"replicas": 3}, "metadata": {"name": "a"}}),
        ),
        ("!has(object.spec.missing)", json!({"spec": {}})),
        ("has(object.spec.list)", json!({"spec": {"list": []}})),
        ("object.spec.list.all(i, !has(i.name))", json!({"spec": {"list": object["spec"]["list"]}})),
        ("object.spec.list.all(i, !has(i.size))", json!({"spec": {"list": [{}, {}]}})),
        ("object.spec.list.filter(i, has(i.size)) == []", json!({"spec": {"list": object["spec"]["list"]}})),
        ("object.metadata.all(object, object != '')", json!({"metadata": object["metadata"]})),
        ("[1].all(object, object == 1) && object.spec.on", json!({"spec": {"on": true}})),
        (
            "object.spec.list.all(i, i.name != '') && object.spec.list == []",
            json!({"spec": {"list": object["spec"]["list"]}}),
        ),
        ("object.spec.replicas.digits == 1", json!({"spec": {"replicas": 3}})),
        ("object.nothing.at.all", json!({})),
        ("object.spec.on && object.spec.size() == 5", json!({"spec": object["spec"]})),
        ("object != oldObject", object.clone()),
        ("object.?spec.on.orValue(false)", object.clone()),
        ("'x' == 'x'", json!({})),
    ] {
        let program = Program::compile(expression).unwrap();
        let mut reach = Reach::default();
        program.reach("object", &mut reach);
        assert_eq!(*reach.of(&object), cut, "{expression}");
        let [whole, part] =
            [&object, &cut].map(|object| Variables::admission(object, &Value::Null, &Value::Null));
        assert_eq!(program.evaluate_bool(&part), program.evaluate_bool(&whole), "{expression}");
    }
}

#[test]
fn failures_say_what_is_wrong_without_the_values() {
    assert!(matches!(bool_of("object.").unwrap_err(), CelError::Compile(_)));
    assert_eq!(bool_of("object.spec.missing").unwrap_err().to_string(), "no such key: missing");
    assert_eq!(bool_of("nothing == 1").unwrap_err().to_string(), "undeclared reference to 'nothing'");
    assert_eq!(
        bool_of("object.spec.replicas").unwrap_err().to_string(),
        "expression 'object.spec.replicas' gave a int, not a boolean"
    );
    assert_eq!(bool_of("1 / (object.spec.replicas - 3) == 1").unwrap_err().to_string(), "division by zero");
}

#[test]
fn variables_of_a_policy_build_on_each_other() {
    let mut variables = variables();
    let compile = |source| Program::compile(source).unwrap();
    variables.compose("names", &compile("object.spec.list.map(i, i.name)")).unwrap();
    variables.compose("count", &compile("variables.names.size()")).unwrap();
    variables.compose("broken", &compile("object.spec.missing")).unwrap_err();
    assert_eq!(compile("variables.count == 2").evaluate_bool(&variables), Ok(true));
    assert_eq!(
        compile("variables.broken").evaluate(&variables).unwrap_err().to_string(),
        "no such key: broken"
    );
    assert_eq!(compile("'have ' + string(variables.count)").evaluate(&variables).unwrap(), json!("have 2"));
}

#[test]
fn what_could_take_too_long_is_not_begun() {
    let mut variables = Variables::default();
    let items: Vec<u32> = (0..3000).collect();
    variables.bind("l", &json!(items));
    let one = Program::compile("l.all(a, a >= 0)").unwrap();
    assert_eq!(one.evaluate_bool(&variables), Ok(true));
    let three = Program::compile("l.all(a, l.all(b, l.all(c, a + b + c >= 0)))").unwrap();
    assert!(matches!(three.evaluate_bool(&variables), Err(CelError::TooExpensive { .. })));
    for source in ["(".repeat(5000), "!".repeat(5000), "1+".repeat(5000), "a".repeat(20_000)] {
        assert!(matches!(Program::compile(&source), Err(CelError::Compile(_))));
    }
}

#[test]
fn expressions_too_deep_to_evaluate_are_refused_and_the_others_fit_the_stack() {
    let plus = |n| format!("1{} > 0", "+1".repeat(n));
    assert_eq!(bool_of(&plus(TREE_MAX - 2)), Ok(true));
    assert!(matches!(bool_of(&plus(TREE_MAX)), Err(CelError::Compile(_))));
    let or = format!("true{}", "||false".repeat(500));
    assert_eq!(bool_of(&or), Ok(true));
    for (open, inner, close) in
        [("(", "true", ")"), ("[", "1", "]"), ("{1:", "1", "}"), ("[1].all(a,", "true", ")")]
    {
        let nested = format!("{}{inner}{}", open.repeat(NESTING_MAX), close.repeat(NESTING_MAX));
        let _ = Program::compile(&nested).map(|program| program.evaluate(&variables()));
    }
    let paths = format!("has(object{})", ".a".repeat(5000));
    assert!(matches!(bool_of(&paths), Err(CelError::Compile(_))));
}

proptest! {
    #[test]
    fn nothing_panics(source in "([a-c0-9.()\\[\\]{}'\"+*/<>=!&|?: -]|object|spec|has|all|map|in|null){0,20}") {
        if let Ok(program) = Program::compile(&source) {
            let _ = program.evaluate(&variables());
        }
    }
}
