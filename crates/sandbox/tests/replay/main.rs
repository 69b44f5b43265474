//! Replays exchanges that were recorded with a real kube-apiserver 1.36 and compares status,
//! reason, causes and shape. The recordings are not part of the repository: `GOLDEN_API` names
//! their directory (`../shared/golden/api` beside the
//! workspace otherwise); where there is none, the test says so and passes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod admission;
mod compare;
mod kubevirt;
mod script;
#[path = "../admission/server.rs"]
mod server;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

use script::{SCRIPT, Step};

/// What an exchange that is polled may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_API").map(PathBuf::from);
    let usual = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/api"));
    named.or(Some(usual)).filter(|path| path.is_dir())
}

struct Replay {
    client: kube::Client,
    /// Recorded uid, resourceVersion or continue token → ours.
    ours: HashMap<String, String>,
}

struct Answer {
    status: u16,
    warnings: Vec<String>,
    body: Value,
}

fn recorded(directory: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(directory.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Replay {
    async fn against(sandbox: &Sandbox) -> Self {
        let kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        // Refusals are what is replayed.
        config.default_retry = false;
        Self { client: kube::Client::try_from(config).unwrap(), ours: HashMap::new() }
    }

    async fn send(&self, method: &str, path: &str, headers: &Value, body: Option<&Value>) -> Answer {
        let mut request =
            http::Request::builder().method(method).uri(path).header("user-agent", "python-requests/2.32");
        for (key, value) in headers.as_object().into_iter().flatten() {
            request = request.header(key, value.as_str().unwrap());
        }
        let body = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
        let response = self.client.send(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|one| one.to_str().unwrap().to_owned()).collect();
        let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines = || text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
        let body = match serde_json::from_str(&text) {
            Ok(one) if !path.contains("watch=") => one,
            _ => lines().map_or_else(|_| text.clone().into(), Value::from),
        };
        Answer { status, warnings, body }
    }

    fn translate(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (recorded, ours) in &self.ours {
            out = out.replace(recorded.as_str(), ours);
        }
        out
    }

    /// A step of our own, for an exchange that was not kept.
    async fn fill(&mut self, method: &str, path: &str, media: &str, body: &str, stands_for: &[(&str, &str)]) {
        let body = self.translate(body);
        let body: Option<Value> = (!body.is_empty()).then(|| serde_json::from_str(&body).unwrap());
        let answer = self.send(method, path, &json!({"content-type": media}), body.as_ref()).await;
        assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.body);
        for (pointer, recorded) in stands_for {
            let ours = answer
                .body
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_else(|| panic!("{pointer} in {}", answer.body));
            self.ours.insert((*recorded).to_owned(), ours.to_owned());
        }
    }

    /// Waits until a field has a value.
    async fn wait(&self, path: &str, pointer: &str, want: &Value) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.send("GET", path, &json!({}), None).await;
            let got = if pointer.is_empty() {
                json!(answer.status)
            } else {
                answer.body.pointer(pointer).cloned().unwrap_or_default()
            };
            if got == *want {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} {pointer}: {got}, not {want}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn replay(&mut self, name: &str, recording: &Value) -> Vec<String> {
        let request = &recording["request"];
        let mut headers = request["headers"].clone();
        let user = request["user"].as_str().unwrap_or("admin");
        if user != "admin" {
            headers["impersonate-user"] = user.into();
        }
        let body: Option<Value> = (!request["body"].is_null())
            .then(|| serde_json::from_str(&self.translate(&request["body"].to_string())).unwrap());
        let path = self.translate(request["path"].as_str().unwrap());
        let method = request["method"].as_str().unwrap();
        let mut body = body;
        if let Some(body) = body.as_mut().filter(|body| method == "PUT" && !body["status"].is_null()) {
            // A client sends back what it read; the times in the recording are not ours.
            body["status"] = self.send("GET", &path, &json!({}), None).await.body["status"].clone();
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.send(method, &path, &headers, body.as_ref()).await;
            let wanted = &recording["response"];
            let mut wrong = Vec::new();
            if wanted["status"] == answer.status {
                compare::shape(name, &wanted["body"], &answer.body, &mut wrong);
                if let Some(warnings) = wanted["headers"]["warning"].as_str()
                    && warnings != answer.warnings.join(", ")
                {
                    wrong.push(format!("warnings are {:?} instead of {warnings:?}", answer.warnings));
                }
            } else {
                wrong.push(format!(
                    "status {} instead of {}: {}",
                    answer.status, wanted["status"], answer.body
                ));
            }
            // What controllers do takes a moment.
            if wrong.is_empty()
                || method != "GET"
                || !name.starts_with("gc-")
                || tokio::time::Instant::now() > deadline
            {
                self.learn(&wanted["body"], &answer.body);
                return wrong;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn learn(&mut self, recorded: &Value, ours: &Value) {
        for key in ["uid", "resourceVersion", "continue"] {
            let pair = (recorded["metadata"][key].as_str(), ours["metadata"][key].as_str());
            if let (Some(recorded), Some(ours)) = pair {
                self.ours.insert(recorded.to_owned(), ours.to_owned());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_exchanges_replay() {
    let Some(directory) = recordings() else {
        eprintln!("SKIPPED: no recordings of a real API server here; set GOLDEN_API to their directory");
        return;
    };
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let mut replay = Replay::against(&sandbox).await;

    let mut failures = Vec::new();
    let mut replayed = 0;
    for step in SCRIPT {
        match step {
            Step::Fill(method, path, media, body, stands_for) => {
                replay.fill(method, path, media, body, stands_for).await;
            }
            Step::Wait(path, pointer, want) => {
                replay.wait(path, pointer, &serde_json::from_str(want).unwrap()).await;
            }
            Step::Replay(name) => {
                let recording = recorded(&directory, name);
                replayed += 1;
                for wrong in replay.replay(name, &recording).await {
                    failures.push(format!("{name}: {wrong}"));
                }
            }
            Step::Elsewhere(_) => {}
        }
    }
    let known: Vec<&str> = SCRIPT.iter().filter_map(Step::recording).collect();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().trim_end_matches(".json").to_owned();
        if !known.contains(&name.as_str()) {
            failures.push(format!("{name}: is not replayed"));
        }
    }
    sandbox.shutdown().await;
    assert!(failures.is_empty(), "{} of {replayed} differ:\n{}", failures.len(), failures.join("\n"));
}
