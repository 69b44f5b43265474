use crate::tree::json;
use proptest::prelude::*;

use super::*;

fn matches(selector: &str, labels: &Value) -> bool {
    LabelSelector::parse(selector).unwrap().matches(labels.as_object().unwrap())
}

#[test]
fn label_requirements() {
    let labels = json!({"a": "1", "b": "x", "e": ""});
    for (selector, want) in [
        ("", true),
        ("  ", true),
        ("a=1", true),
        ("a==1,b = x", true),
        ("a!=1", false),
        ("z!=1", true),
        ("a in (1,2),b notin (y)", true),
        ("a in (2)", false),
        ("z in (2)", false),
        ("z notin (2)", true),
        ("a", true),
        ("!a", false),
        ("!z", true),
        ("a>0,a<2", true),
        ("a>1", false),
        ("b>1", false),
        ("e=", true),
        ("e in ()", true),
        ("e in (,q)", true),
        ("in=1", false),
        ("notin", false),
    ] {
        assert_eq!(matches(selector, &labels), want, "{selector}");
    }
}

#[test]
fn label_selectors_that_make_no_sense() {
    for (selector, want) in [
        ("==", "found '==', expected: !, identifier, or 'end of string'"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("!a=b", "found '=', expected: ',' or 'end of string'"),
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        (
            "a>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ] {
        assert_eq!(LabelSelector::parse(selector).unwrap_err().0, want, "{selector}");
    }
    let key = LabelSelector::parse("a/b/c=1").unwrap_err().0;
    assert!(
        key.starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a qualified name")
    );
    let value = LabelSelector::parse("a=b/c").unwrap_err().0;
    assert!(
        value.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"b/c\": a valid label")
    );
    assert_eq!(Status::from(LabelSelector::parse("==").unwrap_err()).code, 400);
    assert!(LabelSelector::parse(&"a".repeat(SELECTOR_MAX + 1)).is_err());
}

#[test]
fn label_selector_objects() {
    let object = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
        {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}]});
    let selector = LabelSelector::from_object(&object).unwrap();
    assert_eq!(selector.to_string(), "a=1,b in (x,y),!c");
    assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "1", "b": "y"}}})));
    assert!(!selector.matches_object(&json!({"metadata": {}})));
    assert!(LabelSelector::from_object(&json!({})).unwrap().is_everything());
    assert!(!LabelSelector::from_object(&Value::Null).unwrap().matches(&Map::new()));
    let wrong = json!({"matchExpressions": [{"key": "b", "operator": "Like"}]});
    assert_eq!(
        LabelSelector::from_object(&wrong).unwrap_err().0,
        "\"Like\" is not a valid label selector operator"
    );
}

#[test]
fn field_terms() {
    let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
    for (selector, want) in [
        ("", true),
        ("metadata.name=a", true),
        ("metadata.name==a,spec.nodeName!=m", true),
        ("spec.host=n", true),
        ("status.phase!=Running", false),
        ("spec.schedulerName=", true),
        ("spec.hostNetwork=false", true),
    ] {
        let parsed = FieldSelector::for_kind(selector, "", "Pod", &[]).unwrap();
        assert_eq!(parsed.matches(&pod), want, "{selector}");
    }
    let by_name = FieldSelector::parse("metadata.name=a").unwrap();
    assert_eq!(by_name.exact("metadata.name"), Some("a"));
    assert_eq!(by_name.exact("metadata.namespace"), None);
    let event = json!({"regarding": {"name": "a", "kind": "Pod"}, "reportingController": "c"});
    let selector = FieldSelector::for_kind("involvedObject.name=a,source=", "", "Event", &[]).unwrap();
    assert!(selector.matches(&event));
}

#[test]
fn fields_that_cannot_be_selected_by() {
    let error = |text, group, kind| FieldSelector::for_kind(text, group, kind, &[]).unwrap_err().0;
    assert_eq!(error("spec.x=1", "", "Pod"), "field label not supported: spec.x");
    assert_eq!(
        error("spec.x=1", "", "ConfigMap"),
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    assert_eq!(error("nonsense", "", "Pod"), "invalid selector: 'nonsense'; can't understand 'nonsense'");
    assert_eq!(error("type=a=b", "", "Secret"), "invalid field selector: unescaped character in value: =");
    let crd = FieldSelector::for_kind("spec.x=1", "a.b", "C", &[".spec.x".into()]).unwrap();
    assert!(crd.matches(&json!({"spec": {"x": 1}})));
}

proptest! {
    #[test]
    fn what_parses_prints_and_parses_again(text in "[a-c!=,() <>1]{0,24}|([a-c] (not)?in \\([a-c](,[a-c]){0,3}\\),?){0,3}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn field_selectors_print_and_parse_again(text in "([a-c]{1,3}!?=[a-c\\\\,=]{0,4},?){0,3}") {
        if let Ok(selector) = FieldSelector::parse(&text) {
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = LabelSelector::parse(&text);
        let _ = FieldSelector::for_kind(&text, "", "Pod", &[]);
    }
}
