//! `ValidatingAdmissionPolicy`.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use sandbox::admission::{Admission, Notes, Operation, REQUEST_TIMEOUT, Request};
use sandbox::attributes::Attributes;
use tokio::time::Instant;

use crate::memory::Memory;

const GROUP: &str = "admissionregistration.k8s.io";

/// The verdict on a configmap with the data `n: 5`.
async fn verdict(policy: Value, binding: Value) -> (Result<(), Status>, Notes) {
    let memory = Arc::new(Memory::default());
    memory.put("", "namespaces", json!({"metadata": {"name": "golden", "labels": {"team": "a"}}}));
    memory.put(
        "",
        "configmaps",
        json!({"metadata": {"name": "limit", "namespace": "golden"}, "data": {"max": "3"}}),
    );
    let mut spec = json!({"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
        "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
    spec.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
    let mut bound = json!({"policyName": "p", "validationActions": ["Deny"]});
    bound.as_object_mut().unwrap().extend(binding.as_object().unwrap().clone());
    memory.put(GROUP, "validatingadmissionpolicies", json!({"metadata": {"name": "p"}, "spec": spec}));
    memory.put(GROUP, "validatingadmissionpolicybindings", json!({"metadata": {"name": "b"}, "spec": bound}));
    let chain = Admission::new(memory, Arc::new(|| "u".into()));
    let attributes = Attributes {
        version: "v1".into(),
        resource: "configmaps".into(),
        namespace: "golden".into(),
        name: "adm".into(),
        ..Attributes::default()
    };
    let (options, mut notes) = (json!({}), Notes::default());
    let request = Request {
        attributes: &attributes,
        operation: Operation::Create,
        old: None,
        options: &options,
        deadline: Instant::now() + REQUEST_TIMEOUT,
    };
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "adm", "namespace": "golden"}, "data": {"n": "5"}});
    let result = chain.validate(&request, &object, &mut notes).await.map(drop);
    (result, notes)
}

#[tokio::test]
async fn a_denial_is_worded_and_coded_as_the_api_does() {
    let policy = json!({"validations": [{"expression": "int(object.data.n) < 5", "message": "too many"}]});
    let why = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: too many";
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 422,
        "reason": "Invalid", "message": format!("configmaps \"adm\" is forbidden: {why}"),
        "details": {"name": "adm", "kind": "configmaps", "causes": [{"message": why}]}});
    assert_eq!(verdict(policy, json!({})).await.0.unwrap_err().to_json(), want);
}

#[tokio::test]
async fn expressions_see_what_the_api_shows_them() {
    let param = json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    let missing = json!({"paramRef": {"name": "absent", "parameterNotFoundAction": "Deny"}});
    let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let one = |expression: &str| json!({"validations": [{"expression": expression}]});
    let with = |mut policy: Value, field: &str, value: Value| {
        policy[field] = value;
        policy
    };
    for (policy, binding, want) in [
        (one("int(object.data.n) == 5"), json!({}), None),
        (one("object.data.n == '6'"), json!({}), Some((422, "failed expression: object.data.n == '6'"))),
        (
            one("object.absent.x == 1"),
            json!({}),
            Some((422, "expression 'object.absent.x == 1' resulted in error: ")),
        ),
        (with(one("object.absent.x == 1"), "failurePolicy", json!("Ignore")), json!({}), None),
        (
            one("false"),
            json!({"matchResources": {"namespaceSelector": {"matchLabels": {"team": "b"}}}}),
            None,
        ),
        (
            with(
                one("false"),
                "matchConditions",
                json!([{"name": "no", "expression": "object.metadata.name != 'adm'"}]),
            ),
            json!({}),
            None,
        ),
        (
            with(
                one("variables.n > 4"),
                "variables",
                json!([{"name": "n", "expression": "int(object.data.n)"}]),
            ),
            json!({}),
            None,
        ),
        (one("namespaceObject.metadata.labels.team == 'a'"), json!({}), None),
        (
            with(one("int(object.data.n) <= int(params.data.max)"), "paramKind", kind.clone()),
            param,
            Some((422, "failed expression: int(object.data.n) <= int(params.data.max)")),
        ),
        (
            with(one("true"), "paramKind", kind),
            missing,
            Some((
                422,
                "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction",
            )),
        ),
        (
            json!({"validations": [{"expression": "false", "messageExpression": "'n is ' + object.data.n", "reason": "Forbidden"}]}),
            json!({}),
            Some((403, "denied request: n is 5")),
        ),
    ] {
        let (result, _) = verdict(policy.clone(), binding).await;
        match (result, want) {
            (Ok(()), None) => {}
            (Err(status), Some((code, text))) => {
                assert!(status.code == code && status.message.contains(text), "{policy}: {status}");
            }
            (result, want) => panic!("{policy}: {result:?}, not {want:?}"),
        }
    }
}

#[tokio::test]
async fn a_binding_may_warn_and_annotate_in_place_of_denying() {
    let policy = json!({"validations": [{"expression": "false", "message": "odd"}],
        "auditAnnotations": [{"key": "n", "valueExpression": "'n=' + object.data.n"}]});
    let (result, notes) = verdict(policy, json!({"validationActions": ["Warn", "Audit"]})).await;
    assert!(result.is_ok());
    assert_eq!(
        notes.warnings(),
        ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': odd"]
    );
    assert_eq!(notes.audit_annotations["p/n"], "n=5");
    let failures: Value = serde_json::from_str(
        &notes.audit_annotations["validation.policy.admission.k8s.io/validation_failure"],
    )
    .unwrap();
    assert_eq!(
        failures,
        json!([{"message": "odd", "policy": "p", "binding": "b", "expressionIndex": 0, "validationActions": ["Warn", "Audit"]}])
    );
}
