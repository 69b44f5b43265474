//! create, read, update, patch, list.

use base64::Engine as _;
use serde_json::json;

use crate::cluster::{Answer, Cluster, config_map, version};

#[tokio::test]
async fn writes_are_guarded_by_their_version() {
    let c = Cluster::new("versions").await;
    let first = c.config_map("a", json!({})).await;
    let path = c.path("configmaps/a");
    let mut second = first.clone();
    second["data"]["a"] = "2".into();
    let second = c.put(&path, &second).await.is(200);
    assert_ne!(version(&first), version(&second));
    c.put(&path, &first).await.fails(409, "Conflict");
    let unchanged = c.put(&path, &second).await.is(200);
    assert_eq!(version(&unchanged), version(&second), "a write that changes nothing is none");
    let stale = json!({"metadata": {"resourceVersion": version(&first)}, "data": {"b": "1"}});
    c.patch("merge", &path, &stale).await.fails(409, "Conflict");
    c.delete_with(&path, &json!({"preconditions": {"uid": "other"}})).await.fails(409, "Conflict");
    c.post(&c.path("configmaps"), &config_map("a")).await.fails(409, "AlreadyExists");
    c.end().await;
}

#[tokio::test]
async fn the_server_names_and_stamps() {
    let c = Cluster::new("stamps").await;
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "gen-"}});
    let made = c.post(&c.path("configmaps"), &body).await.is(201);
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("gen-"));
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    c.post(&c.path("configmaps"), &config_map("Bad_Name")).await.fails(422, "Invalid");
    let nowhere = "/api/v1/namespaces/conformance-nowhere/configmaps";
    c.post(nowhere, &config_map("a")).await.fails(404, "NotFound");
    c.end().await;
}

#[tokio::test]
async fn a_dry_run_leaves_nothing_behind() {
    let c = Cluster::new("dry-run").await;
    c.post(&c.path("configmaps?dryRun=All"), &config_map("a")).await.is(201);
    c.get(&c.path("configmaps/a")).await.fails(404, "NotFound");
    let there = c.config_map("b", json!({})).await;
    let path = c.path("configmaps/b");
    let seen = c.patch("merge", &format!("{path}?dryRun=All"), &json!({"data": {"a": "2"}})).await.is(200);
    assert_eq!(seen["data"]["a"], "2");
    assert_eq!(c.get(&path).await.is(200), there);
    c.delete(&format!("{path}?dryRun=All")).await.is(200);
    c.get(&path).await.is(200);
    c.end().await;
}

#[tokio::test]
async fn patches_of_every_kind() {
    let c = Cluster::new("patches").await;
    c.config_map("a", json!({"metadata": {"finalizers": ["example.com/one"]}})).await;
    let path = c.path("configmaps/a");
    let guarded = json!([{"op": "test", "path": "/data/a", "value": "1"},
        {"op": "add", "path": "/data/b", "value": "2"}]);
    let done = c.patch("json", &path, &guarded).await.is(200);
    assert_eq!(done["data"], json!({"a": "1", "b": "2"}));
    c.patch("json", &path, &json!([{"op": "test", "path": "/data/a", "value": "9"}]))
        .await
        .fails(422, "Invalid");
    let done = c.patch("merge", &path, &json!({"data": {"a": null}})).await.is(200);
    assert_eq!(done["data"], json!({"b": "2"}));
    let done = c
        .patch("strategic-merge", &path, &json!({"metadata": {"finalizers": ["example.com/two"]}}))
        .await
        .is(200);
    assert_eq!(done["metadata"]["finalizers"].as_array().unwrap().len(), 2, "a set is merged");
    c.patch("bogus", &path, &json!({})).await.fails(415, "UnsupportedMediaType");
    c.patch("merge", &path, &json!({"metadata": {"finalizers": null}})).await.is(200);
    c.end().await;
}

#[tokio::test]
async fn pages_show_one_moment() {
    let c = Cluster::new("pages").await;
    for name in ["a", "b", "c", "d"] {
        c.config_map(name, json!({"metadata": {"labels": {"page": "1"}}})).await;
    }
    let path = c.path("configmaps?labelSelector=page%3D1&limit=3");
    let first = c.get(&path).await.is(200);
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    c.delete(&c.path("configmaps/d")).await.is(200);
    c.config_map("e", json!({"metadata": {"labels": {"page": "1"}}})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{path}&continue={token}")).await.is(200);
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["d"], "as when the first page was read");
    assert_eq!(version(&first), version(&rest));
    assert!(first["metadata"].get("remainingItemCount").is_none(), "with a selector nobody counts");
    let all = c.get(&c.path("configmaps?limit=1")).await.is(200);
    let count = c.get(&c.path("configmaps")).await.is(200)["items"].as_array().unwrap().len();
    assert_eq!(all["metadata"]["remainingItemCount"], count - 1);
    let now = c.get(&c.path("configmaps?labelSelector=page%3D1")).await.is(200);
    assert_eq!(now["items"].as_array().unwrap().len(), 4);
    c.end().await;
}

/// What a page of a version that is gone says, and where it leads on.
#[tokio::test]
async fn a_page_of_a_lost_version_leads_on_without_it() {
    let c = Cluster::new("lost-page").await;
    for name in ["a", "b", "c"] {
        c.config_map(name, json!({})).await;
    }
    let first = c.get(&c.path("configmaps?limit=1")).await.is(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    // A token of a version that no server has any more.
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut old: serde_json::Value = serde_json::from_slice(&engine.decode(token).unwrap()).unwrap();
    old["rv"] = 2.into();
    let old = engine.encode(old.to_string());
    let page = |token: &str| c.path(&format!("configmaps?limit=500&continue={token}"));
    let expired = c.get(&page(&old)).await.fails(410, "Expired");
    let message = expired["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("The provided continue parameter is too old to display a consistent list result.")
    );
    let token = expired["metadata"]["continue"].as_str().unwrap();
    c.config_map("new", json!({})).await;
    let rest = c.get(&page(token)).await.is(200);
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b", "c", "kube-root-ca.crt", "new"], "what there is now, after the first page");
    c.get(&c.path("configmaps?resourceVersion=2&resourceVersionMatch=Exact")).await.fails(410, "Expired");
    c.end().await;
}

#[tokio::test]
async fn lists_are_selected() {
    let c = Cluster::new("selectors").await;
    for (name, zone) in [("a", "x"), ("b", "y"), ("c", "z")] {
        c.config_map(name, json!({"metadata": {"labels": {"zone": zone}}})).await;
    }
    let cases = [
        ("labelSelector=zone%20in%20(x,y)", 2),
        ("labelSelector=zone,zone!%3Dx", 2),
        ("labelSelector=zone&fieldSelector=metadata.name%3Da", 1),
        ("labelSelector=zone&fieldSelector=metadata.name!%3Da", 2),
        ("labelSelector=nowhere", 0),
    ];
    for (query, count) in cases {
        let list = c.get(&c.path(&format!("configmaps?{query}"))).await.is(200);
        assert_eq!(list["items"].as_array().map_or(0, Vec::len), count, "{query}");
    }
    c.get(&c.path("configmaps?labelSelector=%3D%3D")).await.fails(400, "BadRequest");
    c.get(&c.path("configmaps?fieldSelector=data.a%3D1")).await.fails(400, "BadRequest");
    c.delete(&c.path("configmaps?labelSelector=zone%3Dx")).await.is(200);
    c.get(&c.path("configmaps/a")).await.fails(404, "NotFound");
    c.get(&c.path("configmaps/b")).await.is(200);
    c.end().await;
}

#[tokio::test]
async fn unknown_fields_are_refused_or_warned_about() {
    let c = Cluster::new("fields").await;
    let mut odd = config_map("odd");
    odd["bogus"] = 1.into();
    c.post(&c.path("configmaps?fieldValidation=Strict"), &odd).await.fails(400, "BadRequest");
    let answer = c.post(&c.path("configmaps?fieldValidation=Warn"), &odd).await;
    assert!(answer.headers["warning"].to_str().unwrap().contains("unknown field"));
    assert!(answer.is(201)["bogus"].is_null());
    c.end().await;
}

/// The last one counts.
#[tokio::test]
async fn fields_that_are_there_twice_are_refused_or_warned_about() {
    let c = Cluster::new("twice").await;
    let json = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"t","name":"t"},"data":{"a":"1","a":"2"},"bogus":1}"#;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: t\ndata:\n  a: '1'\n  a: '2'\n";
    let send = async |method: &str, media: &str, query: &str, body: &str| {
        let name = if method == "POST" { "" } else { "/t" };
        let path = c.path(&format!("configmaps{name}?{query}"));
        c.send(method, &path, &[("content-type", media)], body.to_owned()).await
    };
    let said = |answer: &Answer| answer.json()["message"].as_str().unwrap_or_default().to_owned();
    let warned = |answer: &Answer| -> Vec<String> {
        let all = answer.headers.get_all("warning").iter();
        all.map(|one| one.to_str().unwrap().trim_start_matches("299 - ").replace("\\\"", "'")).collect()
    };
    let refused = send("POST", "application/json", "fieldValidation=Strict", json).await;
    refused.fails(400, "BadRequest");
    let why = r#"strict decoding error: duplicate field "metadata.name", duplicate field "data.a", unknown field "bogus""#;
    assert!(said(&refused).ends_with(why), "{}", said(&refused));
    let made = send("POST", "application/json", "", json).await;
    assert_eq!(made.is(201)["data"]["a"], "2");
    let warnings = [
        r#""duplicate field 'metadata.name'""#,
        r#""duplicate field 'data.a'""#,
        r#""unknown field 'bogus'""#,
    ];
    assert_eq!(warned(&made), warnings);
    let quiet = send("PUT", "application/json", "fieldValidation=Ignore", json).await;
    quiet.is(200);
    assert_eq!(warned(&quiet), Vec::<String>::new());

    let refused = send("PUT", "application/yaml", "fieldValidation=Strict", yaml).await;
    refused.fails(400, "BadRequest");
    let why = "strict decoding error: yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    assert!(said(&refused).ends_with(why), "{}", said(&refused));
    let written = send("PUT", "application/yaml", "", yaml).await;
    written.is(200);
    assert_eq!(warned(&written), [r#""line 7: key 'a' already set in map""#]);

    let patch = r#"{"data":{"b":"1","b":"2"}}"#;
    for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        let refused = send("PATCH", media, "fieldValidation=Strict", patch).await;
        refused.fails(422, "Invalid");
        assert!(
            said(&refused).ends_with(r#"strict decoding error: duplicate field "data.b""#),
            "{}",
            said(&refused)
        );
        assert_eq!(warned(&send("PATCH", media, "", patch).await), [r#""duplicate field 'data.b'""#]);
    }
    let patch = r#"[{"op":"add","path":"/data/b","value":"3","value":"4","why":""}]"#;
    let refused = send("PATCH", "application/json-patch+json", "fieldValidation=Strict", patch).await;
    let why = r#"strict decoding error: json patch duplicate field "[0].value", json patch unknown field "[0].why""#;
    assert!(said(&refused).ends_with(why), "{}", said(&refused));
    let apply = "application/apply-patch+yaml";
    let refused = send("PATCH", apply, "fieldManager=m&force=true&fieldValidation=Strict", yaml).await;
    refused.fails(400, "BadRequest");
    let why = "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    assert_eq!(said(&refused), why);
    let applied = send("PATCH", apply, "fieldManager=m&force=true", yaml).await;
    applied.is(200);
    assert_eq!(warned(&applied), [r#""line 7: key 'a' already set in map""#]);
    c.end().await;
}

#[tokio::test]
async fn a_patch_answers_for_what_it_makes() {
    let c = Cluster::new("patched").await;
    c.config_map("a", json!({})).await;
    let path = c.path("configmaps/a");
    for patch in [
        json!({"data": {"a": 1}}),
        json!({"data": "z"}),
        json!({"kind": "Secret"}),
        json!({"apiVersion": "v2"}),
    ] {
        let refused = c.patch("merge", &path, &patch).await.fails(422, "Invalid");
        assert_eq!(refused["details"]["causes"][0]["field"], "patch", "{patch}");
    }
    let strict = format!("{path}?fieldValidation=Strict");
    let refused = c.patch("merge", &strict, &json!({"bogus": 1})).await.fails(422, "Invalid");
    let message = refused["message"].as_str().unwrap();
    assert!(message.ends_with("strict decoding error: unknown field \"bogus\""), "{message}");
    assert!(message.contains("\\\"data\\\""), "what the patch makes is shown: {message}");
    let nameless =
        c.patch("merge", &path, &json!({"metadata": {"name": null}})).await.fails(400, "BadRequest");
    let message = "the name of the object (a based on URL) was undeterminable: name must be provided";
    assert_eq!(nameless["message"], message);
    let forgotten = c.patch("merge", &path, &json!({"metadata": {"managedFields": []}})).await.is(200);
    assert!(forgotten["metadata"].get("managedFields").is_none());
    c.end().await;
}

#[tokio::test]
async fn options_are_checked() {
    let c = Cluster::new("options").await;
    c.config_map("a", json!({})).await;
    let path = c.path("configmaps/a");
    let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
    c.delete_with(&path, &both).await.fails(422, "Invalid");
    c.delete_with(&path, &json!({"propagationPolicy": "Perhaps"})).await.fails(422, "Invalid");
    let long = format!("{}?fieldManager={}", c.path("configmaps"), "x".repeat(129));
    c.post(&long, &config_map("b")).await.fails(422, "Invalid");
    c.get(&c.path("configmaps?sendInitialEvents=true")).await.fails(422, "Invalid");
    c.get(&c.path("configmaps?timeoutSeconds=x")).await.fails(400, "BadRequest");
    assert_eq!(c.send("HEAD", &path, &[], String::new()).await.code, 405);
    c.end().await;
}
