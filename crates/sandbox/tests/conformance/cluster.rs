//! An API server, and requests to it as raw JSON.

use std::time::Duration;

use http_body_util::BodyExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

/// What a condition may take to come true.
const PATIENCE: Duration = Duration::from_mins(1);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The events of a watch.
    pub fn events(&self) -> Vec<(String, Value)> {
        let parse = |line: &str| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            (event["type"].as_str().unwrap().to_owned(), event["object"].take())
        };
        self.text.lines().map(parse).collect()
    }

    /// Checks the code and gives the body.
    #[track_caller]
    pub fn is(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.json()
    }

    /// Checks the code and the reason of a failure.
    #[track_caller]
    pub fn fails(&self, code: u16, reason: &str) -> Value {
        let body = self.is(code);
        assert_eq!(body["kind"], "Status", "{body}");
        assert_eq!(body["reason"].as_str().unwrap_or_default(), reason, "{body}");
        body
    }
}

/// An API server and a namespace of our own in it.
pub struct Cluster {
    client: kube::Client,
    sandbox: Option<Sandbox>,
    pub namespace: String,
}

impl Cluster {
    /// Connects, or starts a sandbox; `name` becomes part of the namespace.
    pub async fn new(name: &str) -> Self {
        let named = std::env::var_os("CONFORMANCE_KUBECONFIG");
        let (kubeconfig, sandbox) = if let Some(path) = named {
            (Kubeconfig::read_from(path).unwrap(), None)
        } else {
            let sandbox = Sandbox::start(Options::default()).await.unwrap();
            (Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap(), Some(sandbox))
        };
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        // Refusals are what is looked at.
        config.default_retry = false;
        let client = kube::Client::try_from(config).unwrap();
        let namespace = format!("conformance-{name}-{}", std::process::id());
        let cluster = Self { client, sandbox, namespace };
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}});
        cluster.post("/api/v1/namespaces", &body).await.is(201);
        // Pods need their service account.
        let account = cluster.path("serviceaccounts/default");
        cluster.until(&account, |answer| answer.code == 200).await;
        cluster
    }

    /// Removes the namespace.
    pub async fn end(self) {
        self.delete(&format!("/api/v1/namespaces/{}", self.namespace)).await;
        if let Some(sandbox) = self.sandbox {
            sandbox.shutdown().await;
        }
    }

    /// A core path in the namespace.
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// A path of a group in the namespace.
    pub fn group(&self, group_version: &str, rest: &str) -> String {
        format!("/apis/{group_version}/namespaces/{}/{rest}", self.namespace)
    }

    /// Any request.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let response = self.client.send(request.body(body.into_bytes().into()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], String::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], String::new()).await
    }

    pub async fn delete_with(&self, path: &str, options: &Value) -> Answer {
        self.send("DELETE", path, &[("content-type", "application/json")], options.to_string()).await
    }

    /// `kind` is `json`, `merge`, `strategic-merge`.
    pub async fn patch(&self, kind: &str, path: &str, body: &Value) -> Answer {
        let media = format!("application/{kind}-patch+json");
        self.send("PATCH", path, &[("content-type", &media)], body.to_string()).await
    }

    /// Server-side apply.
    pub async fn apply(&self, path: &str, manager: &str, force: bool, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}{}", if force { "&force=true" } else { "" });
        self.send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body.to_string()).await
    }

    /// Reads until a condition holds.
    pub async fn until(&self, path: &str, holds: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await;
            if holds(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} did not get there: {}", answer.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Creates a `ConfigMap`.
    pub async fn config_map(&self, name: &str, extra: Value) -> Value {
        let mut object = config_map(name);
        merge(&mut object, extra);
        self.post(&self.path("configmaps"), &object).await.is(201)
    }
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}
