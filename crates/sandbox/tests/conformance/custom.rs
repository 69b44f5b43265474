//! `CustomResourceDefinitions`.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(group: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("widgets.{group}")},
        "spec": {"group": group, "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "Size", "type": "string", "jsonPath": ".spec.size"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "string", "enum": ["small", "large"]},
                        "replicas": {"type": "integer", "default": 1, "minimum": 0}},
                        "x-kubernetes-validations": [{"rule": "self.size != 'large' || self.replicas < 5", "message": "too many large ones"}]},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}

fn widget(name: &str, spec: &Value, group: &str) -> Value {
    json!({"apiVersion": format!("{group}/v1"), "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_is_served_until_it_goes() {
    let c = Cluster::new("custom").await;
    let group = &format!("{}.example.com", c.namespace);
    let made = c.post(DEFINITIONS, &definition(group)).await.is(201);
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    let path = c.group(&format!("{group}/v1"), "widgets");
    c.until(&path, |answer| answer.code == 200).await;

    let made = c.post(&path, &widget("a", &json!({"size": "small", "bogus": 1}), group)).await.is(201);
    assert_eq!(made["spec"], json!({"size": "small", "replicas": 1}), "pruned and defaulted");
    assert_eq!(made["metadata"]["generation"], 1);
    c.post(&path, &widget("b", &json!({"size": "medium"}), group)).await.fails(422, "Invalid");
    c.post(&path, &widget("b", &json!({}), group)).await.fails(422, "Invalid");
    c.post(&path, &widget("b", &json!({"size": "large", "replicas": 9}), group)).await.fails(422, "Invalid");

    let one = format!("{path}/a");
    let status = c
        .patch(
            "merge",
            &format!("{one}/status"),
            &json!({"status": {"replicas": 1}, "spec": {"size": "large"}}),
        )
        .await
        .is(200);
    assert_eq!((&status["spec"]["size"], &status["status"]["replicas"]), (&json!("small"), &json!(1)));
    assert_eq!(status["metadata"]["generation"], 1);
    let spec =
        c.patch("merge", &one, &json!({"spec": {"size": "large"}, "status": {"replicas": 7}})).await.is(200);
    assert_eq!((&spec["status"]["replicas"], &spec["metadata"]["generation"]), (&json!(1), &json!(2)));
    let scale = c.patch("merge", &format!("{one}/scale"), &json!({"spec": {"replicas": 3}})).await.is(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    c.patch("strategic-merge", &one, &json!({})).await.fails(415, "UnsupportedMediaType");

    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = c.send("GET", &path, &accept, String::new()).await.is(200);
    assert_eq!(table["columnDefinitions"][1]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"], json!(["a", "large"]));

    c.delete(&format!("{DEFINITIONS}/{name}")).await.is(200);
    c.until(&format!("{DEFINITIONS}/{name}"), |answer| answer.code == 404).await;
    c.until(&path, |answer| answer.code == 404).await;
    c.end().await;
}
