//! What refuses or completes a write before it is stored, and what is registered for that.

use serde_json::{Value, json};

use crate::cluster::{Cluster, config_map};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

#[tokio::test]
async fn policies_refuse_with_their_message() {
    let c = Cluster::new("policies").await;
    let name = c.namespace.clone();
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": "object.metadata.name != 'never'", "message": "not this name"}]}});
    c.post(&format!("{ADMISSION}/validatingadmissionpolicies"), &policy).await.is(201);
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}}});
    c.post(&format!("{ADMISSION}/validatingadmissionpolicybindings"), &binding).await.is(201);
    // A real API server takes a moment to notice.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let dry = format!("{}?dryRun=All", c.path("configmaps"));
    let refused = loop {
        let answer = c.post(&dry, &config_map("never")).await;
        if answer.code != 201 {
            break answer.fails(422, "Invalid");
        }
        assert!(tokio::time::Instant::now() < deadline, "the policy never took effect");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains(&format!("ValidatingAdmissionPolicy '{name}'")), "{message}");
    assert!(message.ends_with("denied request: not this name"), "{message}");
    c.post(&c.path("configmaps"), &config_map("always")).await.is(201);
    c.delete(&format!("{ADMISSION}/validatingadmissionpolicybindings/{name}")).await.is(200);
    c.delete(&format!("{ADMISSION}/validatingadmissionpolicies/{name}")).await.is(200);
    c.end().await;
}

/// The fields that a refusal names.
fn fields(refused: &Value) -> Vec<String> {
    let causes = refused["details"]["causes"].as_array().unwrap();
    causes.iter().map(|cause| cause["field"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_could_never_be_called_is_not_registered() {
    let c = Cluster::new("registration").await;
    let webhooks = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": c.namespace}, "webhooks": [{"name": "short", "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "timeoutSeconds": 31, "clientConfig": {"url": "http://127.0.0.1/"}}]});
    let path = format!("{ADMISSION}/validatingwebhookconfigurations?dryRun=All");
    let refused = c.post(&path, &webhooks).await.fails(422, "Invalid");
    assert_eq!(
        fields(&refused),
        ["webhooks[0].name", "webhooks[0].timeoutSeconds", "webhooks[0].clientConfig.url"]
    );
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": c.namespace}, "spec": {"validationActions": ["Deny"]}});
    let path = format!("{ADMISSION}/validatingadmissionpolicybindings?dryRun=All");
    let refused = c.post(&path, &binding).await.fails(422, "Invalid");
    assert_eq!(fields(&refused), ["spec.policyName"]);
    c.end().await;
}

#[tokio::test]
async fn limits_are_filled_in_and_quotas_kept() {
    let c = Cluster::new("limits").await;
    let limits = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": {"limits": [
        {"type": "Container", "defaultRequest": {"memory": "64Mi"}, "default": {"memory": "128Mi"}, "max": {"memory": "256Mi"}}]}});
    c.post(&c.path("limitranges"), &limits).await.is(201);
    let pod = |name: &str, memory: Option<&str>| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "nowhere", "containers": [{"name": "c", "image": "i"}]}});
        if let Some(memory) = memory {
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": memory}});
        }
        pod
    };
    // Until the limits are known to the admission of a real server.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let dry = format!("{}?dryRun=All", c.path("pods"));
    let filled = loop {
        let made = c.post(&dry, &pod("a", None)).await.is(201);
        let resources = made["spec"]["containers"][0]["resources"].clone();
        if resources["requests"].is_object() {
            break resources;
        }
        assert!(tokio::time::Instant::now() < deadline, "the limits never took effect");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(filled, json!({"requests": {"memory": "64Mi"}, "limits": {"memory": "128Mi"}}));
    let refused = c.post(&dry, &pod("a", Some("1Gi"))).await.fails(403, "Forbidden");
    assert!(refused["message"].as_str().unwrap().contains("maximum memory usage per Container is 256Mi"));

    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"},
        "spec": {"hard": {"count/secrets": "1"}}});
    c.post(&c.path("resourcequotas"), &quota).await.is(201);
    c.until(&c.path("resourcequotas/quota"), |answer| answer.json()["status"]["used"].is_object()).await;
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    c.post(&c.path("secrets"), &secret("one")).await.is(201);
    let refused = c.post(&c.path("secrets"), &secret("two")).await.fails(403, "Forbidden");
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("exceeded quota: quota, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1"), "{message}");
    c.end().await;
}

#[tokio::test]
async fn who_is_impersonated_is_who_asks() {
    let c = Cluster::new("impersonation").await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let headers = [
        ("content-type", "application/json"),
        ("impersonate-user", "jane"),
        ("impersonate-group", "readers"),
        ("impersonate-extra-scopes", "view"),
    ];
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = c.send("POST", path, &headers, review.to_string()).await.is(201);
    let user = &answer["status"]["userInfo"];
    assert_eq!(user["username"], "jane");
    assert!(user["groups"].as_array().unwrap().contains(&json!("readers")), "{user}");
    assert_eq!(user["extra"]["scopes"], json!(["view"]));
    let access = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": c.namespace, "verb": "create", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = c.send("POST", path, &headers, access.to_string()).await.is(201);
    assert_eq!(answer["status"]["allowed"], false);
    assert_eq!(c.post(path, &access).await.is(201)["status"]["allowed"], true);
    c.end().await;
}

#[tokio::test]
async fn a_webhook_that_is_away_fails_what_it_guards_or_is_passed_over() {
    let c = Cluster::new("away").await;
    // Nobody listens on port 1, wherever the API server is.
    let webhooks = |policy: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": c.namespace}, "webhooks": [{"name": "away.conformance.example.com",
                "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 5, "failurePolicy": policy,
                "clientConfig": {"url": "https://127.0.0.1:1/"},
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": c.namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]})
    };
    let registered = format!("{ADMISSION}/validatingwebhookconfigurations");
    c.post(&registered, &webhooks("Fail")).await.is(201);
    let dry = format!("{}?dryRun=All", c.path("configmaps"));
    // A real API server takes a moment to notice.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    let refused = loop {
        let answer = c.post(&dry, &config_map("a")).await;
        if answer.code != 201 {
            break answer.fails(500, "InternalError");
        }
        assert!(tokio::time::Instant::now() < deadline, "the webhook was never called");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("failed calling webhook \"away.conformance.example.com\""), "{message}");
    c.get(&c.path("configmaps")).await.is(200);
    c.delete(&format!("{registered}/{}", c.namespace)).await.is(200);
    c.post(&registered, &webhooks("Ignore")).await.is(201);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    while c.post(&dry, &config_map("a")).await.code != 201 {
        assert!(tokio::time::Instant::now() < deadline, "it is still waited for");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    c.delete(&format!("{registered}/{}", c.namespace)).await.is(200);
    c.end().await;
}
