//! Recorded exchanges with a webhook in between: it answers as the one of the recording did.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

use crate::server::{Reply, Server};
use crate::{Replay, compare, recorded, recordings};

const NAMESPACE: &str = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"golden"}}"#;
const OBJECT: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"l0","labels":{"n":"0","half":"0","set":"l"}},"data":{"n":"0"}}"#;

/// What the webhook said in each recording.
fn answers() -> Vec<(&'static str, Value)> {
    let denial = |code: u16, reason: &str, message: &str| json!({"allowed": false, "status": {"code": code, "reason": reason, "message": message}});
    let patch = base64::engine::general_purpose::STANDARD.encode("[]");
    vec![
        ("admission-01-deny-403", denial(403, "Forbidden", "no")),
        ("admission-02-deny-409", denial(409, "Conflict", "not now")),
        ("admission-04-deny-without-status", json!({"allowed": false})),
        (
            "admission-05-allow-with-warnings",
            json!({"allowed": true, "warnings": ["first", "second, with comma"]}),
        ),
        (
            "admission-07-patch-from-validating",
            json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}),
        ),
        ("admission-08-deny-delete", denial(403, "Forbidden", "kept")),
        ("admission-11-deny-update", denial(403, "Forbidden", "kept")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_exchanges_with_a_webhook_replay() {
    let Some(directory) = recordings() else { return };
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let mut replay = Replay::against(&sandbox).await;
    replay.fill("POST", "/api/v1/namespaces", "application/json", NAMESPACE, &[]).await;
    replay.fill("POST", "/api/v1/namespaces/golden/configmaps", "application/json", OBJECT, &[]).await;
    let says = Arc::new(Mutex::new(json!({"allowed": true})));
    let answer = says.clone();
    let server = Server::start("localhost", &["h2", "http/1.1"], move |_| {
        Reply::Response(answer.lock().unwrap().clone().into())
    })
    .await;
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "golden"},
        "webhooks": [{"name": "golden.lab.example", "clientConfig": server.client_config(), "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "golden"}},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}]});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    replay.fill("POST", path, "application/json", &configuration.to_string(), &[]).await;

    let mut failures = Vec::new();
    for (name, response) in answers() {
        *says.lock().unwrap() = response;
        for wrong in replay.replay(name, &recorded(&directory, name)).await {
            failures.push(format!("{name}: {wrong}"));
        }
        if name == "admission-08-deny-delete" {
            // What the webhook was asked then was recorded as well.
            let name = "admission-10-review-of-delete";
            let review = Value::from(server.reviews.lock().unwrap().last().cloned().unwrap());
            let mut asked = review["request"].clone();
            let recorded = recorded(&directory, name)["request"]["body"].clone();
            // Its name was not kept in the recording, and the lab's administrator had another one.
            asked.as_object_mut().unwrap().remove("name");
            asked["userInfo"] = recorded["userInfo"].clone();
            let mut wrong = Vec::new();
            compare::shape(name, &recorded, &asked, &mut wrong);
            failures.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
        }
    }
    sandbox.shutdown().await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
