//! What webhooks' answers and failures do to requests. Messages are those that a real kube-apiserver 1.36 gave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use base64::Engine as _;
use sandbox::admission::{Admission, Notes, Operation, REQUEST_TIMEOUT, Request};
use sandbox::attributes::{Attributes, User};
use tokio::time::Instant;

use crate::memory::Memory;
use crate::server::{Reply, Server};

const GROUP: &str = "admissionregistration.k8s.io";

fn chain(memory: &Arc<Memory>) -> Admission {
    let count = AtomicUsize::new(0);
    Admission::new(
        Arc::clone(memory) as _,
        Arc::new(move || format!("uid-{}", count.fetch_add(1, Ordering::SeqCst))),
    )
}

fn namespaced(memory: &Memory) {
    memory.put("", "namespaces", json!({"metadata": {"name": "golden", "labels": {"team": "a"}}}));
}

/// A configuration with one webhook for configmaps; `extra` overrides fields of the webhook.
fn configuration(name: &str, client: &Value, extra: Value) -> Value {
    let mut webhook = json!({"name": format!("{name}.lab.example"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 10,
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let Value::Object(extra) = extra else { panic!("an object") };
    webhook.as_object_mut().unwrap().extend(extra);
    json!({"metadata": {"name": name}, "webhooks": [webhook]})
}

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "adm", "namespace": "golden"}, "data": {}})
}

fn attributes(verb: &str) -> Attributes {
    Attributes {
        user: User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() },
        verb: verb.into(),
        version: "v1".into(),
        resource: "configmaps".into(),
        namespace: "golden".into(),
        name: "adm".into(),
        ..Attributes::default()
    }
}

type MakeReply = fn() -> Reply;

struct Outcome {
    result: Result<Value, Status>,
    notes: Notes,
}

async fn admit(chain: &Admission, attributes: &Attributes, object: Value) -> Outcome {
    let options = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
    let request = Request {
        attributes,
        operation: Operation::Create,
        old: None,
        options: &options,
        deadline: Instant::now() + REQUEST_TIMEOUT,
    };
    let mut notes = Notes::default();
    let result = match chain.mutate(&request, object, &mut notes).await {
        Ok((object, _)) => chain.validate(&request, &object, &mut notes).await.map(|_| object),
        Err(status) => Err(status),
    };
    Outcome { result, notes }
}

fn patch(operations: &Value) -> Reply {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    Reply::Response(json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}

/// The answer to a create that one validating webhook judges.
async fn validated(reply: impl Fn(&Value) -> Reply + Send + Sync + 'static, extra: Value) -> Outcome {
    judged("validatingwebhookconfigurations", reply, extra).await
}

async fn judged(
    resource: &str,
    reply: impl Fn(&Value) -> Reply + Send + Sync + 'static,
    extra: Value,
) -> Outcome {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let server = Server::start("localhost", &["h2", "http/1.1"], reply).await;
    memory.put(GROUP, resource, configuration("golden", &server.client_config(), extra));
    admit(&chain(&memory), &attributes("create"), config_map()).await
}

#[tokio::test]
async fn denials_become_the_answers_of_a_real_server() {
    for (status, want) in [
        (
            json!({"code": 403, "reason": "Forbidden", "message": "no"}),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "admission webhook \"golden.lab.example\" denied the request: no"}),
        ),
        (
            json!({"code": 409, "reason": "Conflict", "message": "not now"}),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 409,
                "reason": "Conflict", "message": "admission webhook \"golden.lab.example\" denied the request: not now"}),
        ),
        (
            Value::Null,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 400,
                "message": "admission webhook \"golden.lab.example\" denied the request without explanation"}),
        ),
    ] {
        let reply = move |_: &Value| Reply::Response(json!({"allowed": false, "status": status}));
        let outcome = validated(reply, json!({})).await;
        assert_eq!(outcome.result.unwrap_err().to_json(), want);
    }
}

#[tokio::test]
async fn warnings_and_annotations_reach_the_caller() {
    let reply = |_: &Value| {
        Reply::Response(json!({"allowed": true, "warnings": ["first", "second, with comma"],
            "auditAnnotations": {"why": "because"}}))
    };
    let outcome = validated(reply, json!({})).await;
    assert!(outcome.result.is_ok());
    assert_eq!(outcome.notes.warnings(), ["first", "second, with comma"]);
    assert_eq!(outcome.notes.audit_annotations["golden.lab.example/why"], "because");
}

#[tokio::test]
async fn a_webhook_that_gives_no_verdict_fails_the_request_or_is_passed_over() {
    let called = "failed calling webhook \"golden.lab.example\": ";
    let garbage = || Reply::Raw(200, b"garbage".to_vec());
    let uid = || {
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": {"uid": "other", "allowed": true}});
        Reply::Raw(200, body.to_string().into_bytes())
    };
    let patching = || Reply::Response(json!({"allowed": true, "patch": "W10=", "patchType": "JSONPatch"}));
    let cases: [(MakeReply, &str); 7] = [
        (garbage, "failed to call webhook: couldn't get version/kind; json parse error"),
        (uid, "received invalid webhook response: expected response.uid=\"uid-0\", got \"other\""),
        (patching, "received invalid webhook response: validating webhook may not return response.patch"),
        (
            || Reply::Raw(500, b"boom".to_vec()),
            "failed to call webhook: an error on the server (\"boom\") has prevented the request from succeeding",
        ),
        (
            || Reply::Raw(404, Vec::new()),
            "failed to call webhook: the server could not find the requested resource",
        ),
        (|| Reply::Hang, "context deadline exceeded"),
        (|| Reply::Raw(200, vec![b'x'; 9 * 1024 * 1024]), "read answer of at most 8388608 bytes"),
    ];
    for (reply, want) in cases {
        let outcome = validated(move |_| reply(), json!({"timeoutSeconds": 1})).await;
        let status = outcome.result.unwrap_err();
        assert_eq!((status.code, status.reason.as_ref()), (500, "InternalError"));
        assert!(status.message.starts_with(&format!("Internal error occurred: {called}")), "{status}");
        assert!(status.message.contains(want), "{status}");
        assert!(status.causes[0].message.starts_with(called));

        let outcome =
            validated(move |_| reply(), json!({"timeoutSeconds": 1, "failurePolicy": "Ignore"})).await;
        assert!(outcome.result.is_ok(), "{want}");
        let key = "failed-open.validating.webhook.admission.k8s.io/round_0_index_0";
        assert_eq!(outcome.notes.audit_annotations[key], "golden.lab.example");
    }
}

#[tokio::test]
async fn a_patch_from_a_validating_webhook_is_answered_as_recorded() {
    let outcome = validated(|_| patch(&json!([])), json!({})).await;
    let why = "failed calling webhook \"golden.lab.example\": received invalid webhook response: validating webhook may not return response.patch";
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500,
        "reason": "InternalError", "message": format!("Internal error occurred: {why}"),
        "details": {"causes": [{"message": why}]}});
    assert_eq!(outcome.result.unwrap_err().to_json(), want);
}

#[tokio::test]
async fn unreachable_and_untrusted_servers_are_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap().port();
    drop(listener);
    let trusted = Server::start("localhost", &[], |_| Reply::Response(json!({"allowed": true}))).await;
    let other = Server::start("other.example", &[], |_| Reply::Response(json!({"allowed": true}))).await;
    let service = json!({"service": {"namespace": "n", "name": "absent", "path": "/p"}});
    for (client, want) in [
        (json!({"url": format!("https://127.0.0.1:{closed}/x")}),
            format!("failed to call webhook: Post \"https://127.0.0.1:{closed}/x?timeout=10s\": dial tcp 127.0.0.1:{closed}: connect: connection refused")),
        (json!({"url": trusted.client_config()["url"], "caBundle": other.ca_bundle}),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()),
        (other.client_config(), "x509: certificate is valid for".to_owned()),
        (service, "failed to call webhook: Post \"https://absent.n.svc:443/p?timeout=10s\": service \"absent\" not found".to_owned()),
        (json!({"url": "http://localhost/x"}), "could not get REST client: invalid webhook url".to_owned()),
        (json!({"url": "https://localhost/x", "caBundle": "AAAA"}), "could not get REST client: unable to load root certificates".to_owned()),
    ] {
        let memory = Arc::new(Memory::default());
        namespaced(&memory);
        memory.put(GROUP, "mutatingwebhookconfigurations", configuration("golden", &client, json!({})));
        let status = admit(&chain(&memory), &attributes("create"), config_map()).await.result.unwrap_err();
        assert!(status.message.contains(&want), "{status}\n{want}");
    }
}

#[tokio::test]
async fn a_service_leads_to_its_endpoints_and_the_certificate_is_for_its_name() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let server =
        Server::start("hook.lab.svc", &["http/1.1"], |_| Reply::Response(json!({"allowed": true}))).await;
    memory.put(
        "",
        "services",
        json!({"metadata": {"name": "hook", "namespace": "lab"},
        "spec": {"ports": [{"name": "https", "port": 443, "targetPort": 8443}]}}),
    );
    let client = json!({"service": {"namespace": "lab", "name": "hook", "path": "check"}, "caBundle": server.ca_bundle});
    memory.put(GROUP, "validatingwebhookconfigurations", configuration("golden", &client, json!({})));
    let chain = chain(&memory);
    let status = admit(&chain, &attributes("create"), config_map()).await.result.unwrap_err();
    assert!(status.message.contains("no endpoints available for service \"hook\""), "{status}");
    memory.put("discovery.k8s.io", "endpointslices", json!({"metadata": {"name": "hook-1", "namespace": "lab",
        "labels": {"kubernetes.io/service-name": "hook"}}, "ports": [{"name": "https", "port": server.port}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}, {"addresses": ["127.0.0.1"]}]}));
    for _ in 0..5 {
        assert!(admit(&chain, &attributes("create"), config_map()).await.result.is_ok());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "connections stay open");
}

#[tokio::test]
async fn http2_is_used_where_it_is_offered_and_clients_survive_other_changes() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let server =
        Server::start("localhost", &["h2", "http/1.1"], |_| Reply::Response(json!({"allowed": true}))).await;
    memory.put(
        GROUP,
        "validatingwebhookconfigurations",
        configuration("a", &server.client_config(), json!({})),
    );
    let chain = chain(&memory);
    assert!(admit(&chain, &attributes("create"), config_map()).await.result.is_ok());
    let narrow = json!({"objectSelector": {"matchLabels": {"no": "body"}}});
    memory.put(GROUP, "validatingwebhookconfigurations", configuration("b", &server.client_config(), narrow));
    assert!(admit(&chain, &attributes("create"), config_map()).await.result.is_ok());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(*server.versions.lock().unwrap(), [http::Version::HTTP_2, http::Version::HTTP_2]);
}

#[tokio::test]
async fn a_review_carries_what_the_recorded_one_carries() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let server = Server::start("localhost", &[], |_| {
        Reply::Response(
            json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "kept"}}),
        )
    })
    .await;
    memory.put(
        GROUP,
        "validatingwebhookconfigurations",
        configuration("golden", &server.client_config(), json!({})),
    );
    let attributes = Attributes { name: String::new(), ..attributes("deletecollection") };
    let (old, options) = (config_map(), json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}));
    let request = Request {
        attributes: &attributes,
        operation: Operation::Delete,
        old: Some(&old),
        options: &options,
        deadline: Instant::now() + REQUEST_TIMEOUT,
    };
    let status = chain(&memory).validate(&request, &Value::Null, &mut Notes::default()).await.unwrap_err();
    assert_eq!(status.message, "admission webhook \"golden.lab.example\" denied the request: kept");
    assert_eq!(status.code, 403);
    let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
    let resource = json!({"group": "", "version": "v1", "resource": "configmaps"});
    let want = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "uid-0",
        "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource, "namespace": "golden",
        "operation": "DELETE", "userInfo": {"username": "admin", "groups": ["system:masters"]},
        "object": null, "oldObject": old, "dryRun": false, "options": options}});
    assert_eq!(server.reviews.lock().unwrap()[0], want);
}

#[tokio::test]
async fn mutating_webhooks_run_in_order_of_name_and_are_asked_again_when_they_wish() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let order = Arc::clone(&calls);
    // each appends a key when its predecessor's is there; `a` depends on what `b` adds
    let server = Server::start("localhost", &[], move |request| {
        let data = &request["object"]["data"];
        let seen: Vec<_> = data.as_object().unwrap().keys().collect();
        order.lock().unwrap().push(format!("{seen:?}"));
        if data["b"].is_null() {
            patch(&json!([{"op": "add", "path": "/data/b", "value": "1"}]))
        } else {
            Reply::Response(json!({"allowed": true}))
        }
    })
    .await;
    let gate =
        |key: &str| json!([{"name": "only", "expression": format!("has(object.data.{key}) == false")}]);
    let again =
        json!({"reinvocationPolicy": "IfNeeded", "matchConditions": [{"name": "any", "expression": "true"}]});
    let first = Server::start("localhost", &[], {
        let calls = Arc::clone(&calls);
        move |_| {
            calls.lock().unwrap().push("first".into());
            Reply::Response(json!({"allowed": true}))
        }
    })
    .await;
    memory.put(
        GROUP,
        "mutatingwebhookconfigurations",
        configuration("zz", &server.client_config(), json!({"matchConditions": gate("b")})),
    );
    memory.put(GROUP, "mutatingwebhookconfigurations", configuration("aa", &first.client_config(), again));
    let outcome = admit(&chain(&memory), &attributes("create"), config_map()).await;
    assert_eq!(outcome.result.unwrap()["data"]["b"], "1");
    assert_eq!(*calls.lock().unwrap(), ["first", "[]", "first"]);
}

#[tokio::test]
async fn patches_that_do_not_apply_fail_the_request_whatever_the_failure_policy() {
    for (operations, want) in [
        (json!([{"op": "remove", "path": "/spec/absent"}]), "Internal error occurred: "),
        (json!([{"op": "replace", "path": "", "value": 7}]), "made no object"),
    ] {
        let reply = move |_: &Value| patch(&operations);
        let extra = json!({"failurePolicy": "Ignore"});
        let outcome = judged("mutatingwebhookconfigurations", reply, extra).await;
        let status = outcome.result.unwrap_err();
        assert_eq!(status.code, 500);
        assert!(status.message.contains(want), "{status}");
    }
}

#[tokio::test]
async fn dry_runs_are_refused_for_webhooks_with_side_effects() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let client = json!({"url": "https://127.0.0.1:1/never-called"});
    let config = configuration("golden", &client, json!({"sideEffects": "Some", "failurePolicy": "Ignore"}));
    memory.put(GROUP, "mutatingwebhookconfigurations", config);
    let attributes = Attributes { dry_run: true, ..attributes("create") };
    let status = admit(&chain(&memory), &attributes, config_map()).await.result.unwrap_err();
    assert_eq!((status.code, status.reason.as_ref()), (400, "BadRequest"));
    assert_eq!(status.message, "admission webhook \"golden.lab.example\" does not support dry run");
}

#[tokio::test]
async fn selectors_and_conditions_decide_who_is_asked() {
    let deny = |_: &Value| Reply::Response(json!({"allowed": false}));
    let condition = |expression: &str| json!({"matchConditions": [{"name": "c", "expression": expression}]});
    for (extra, asked) in [
        (json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}), true),
        (json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}), false),
        (json!({"objectSelector": {"matchLabels": {"app": "x"}}}), false),
        (condition("request.userInfo.username == 'admin'"), true),
        (condition("object.metadata.name != 'adm'"), false),
        (condition("oldObject == null"), true),
    ] {
        let outcome = validated(deny, extra.clone()).await;
        assert_eq!(outcome.result.is_err(), asked, "{extra}");
    }
    let failing = condition("object.spec.absent == 1");
    let status = validated(deny, failing.clone()).await.result.unwrap_err();
    assert_eq!(status.code, 403);
    let want = "configmaps \"adm\" is forbidden: expression 'object.spec.absent == 1' resulted in error: ";
    assert!(status.message.starts_with(want), "{status}");
    let mut open = failing;
    open["failurePolicy"] = "Ignore".into();
    assert!(validated(deny, open).await.result.is_ok());
}

#[tokio::test]
async fn webhook_configurations_and_unmatched_requests_are_never_sent() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let all = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    let dead = json!({"url": "https://127.0.0.1:1/dead"});
    memory.put(GROUP, "mutatingwebhookconfigurations", configuration("dead", &dead, all));
    let chain = chain(&memory);
    assert!(admit(&chain, &attributes("create"), config_map()).await.result.is_err());
    let own = Attributes {
        group: GROUP.into(),
        resource: "mutatingwebhookconfigurations".into(),
        namespace: String::new(),
        ..attributes("create")
    };
    let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "adm"}});
    assert!(admit(&chain, &own, object).await.result.is_ok());
}

#[tokio::test]
async fn an_equivalent_version_is_what_the_webhook_sees_and_the_client_never() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    memory.put(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        json!({"metadata":
        {"name": "virtualmachines.kubevirt.io"}, "spec": {"versions": [{"name": "v1", "served": true},
        {"name": "v1alpha3", "served": true}]}}),
    );
    let server =
        Server::start("localhost", &[], |_| patch(&json!([{"op": "add", "path": "/spec/x", "value": 1}])))
            .await;
    let rules = json!([{"operations": ["CREATE"], "apiGroups": ["kubevirt.io"], "apiVersions": ["v1alpha3"],
        "resources": ["virtualmachines"]}]);
    memory.put(
        GROUP,
        "mutatingwebhookconfigurations",
        configuration("golden", &server.client_config(), json!({"rules": rules})),
    );
    let attributes = Attributes {
        group: "kubevirt.io".into(),
        resource: "virtualmachines".into(),
        ..attributes("create")
    };
    let object = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "adm"}, "spec": {}});
    let admitted = admit(&chain(&memory), &attributes, object.clone()).await.result.unwrap();
    assert_eq!(
        admitted,
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "adm"}, "spec": {"x": 1}})
    );
    let request = server.reviews.lock().unwrap()[0]["request"].clone();
    assert_eq!(request["object"]["apiVersion"], "kubevirt.io/v1alpha3");
    assert_eq!(
        (&request["kind"]["version"], &request["requestKind"]["version"]),
        (&json!("v1alpha3"), &json!("v1"))
    );

    let exact = json!({"rules": rules, "matchPolicy": "Exact"});
    memory.put(
        GROUP,
        "mutatingwebhookconfigurations",
        configuration("golden", &server.client_config(), exact),
    );
    let admitted = admit(&chain(&memory), &attributes, object.clone()).await.result.unwrap();
    assert_eq!(admitted, object);
}

#[tokio::test]
async fn the_deadline_of_the_whole_request_bounds_every_call() {
    let memory = Arc::new(Memory::default());
    namespaced(&memory);
    let server = Server::start("localhost", &[], |_| Reply::Hang).await;
    memory.put(
        GROUP,
        "validatingwebhookconfigurations",
        configuration("golden", &server.client_config(), json!({"timeoutSeconds": 30})),
    );
    let (attributes, options) = (attributes("create"), json!({}));
    let chain = chain(&memory);
    for (left, code) in [(200, 500), (0, 504)] {
        let request = Request {
            attributes: &attributes,
            operation: Operation::Create,
            old: None,
            options: &options,
            deadline: Instant::now() + std::time::Duration::from_millis(left),
        };
        let status = chain.validate(&request, &config_map(), &mut Notes::default()).await.unwrap_err();
        assert_eq!(status.code, code, "{status}");
    }
}
