//! A simulated cluster, seen through the API alone.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::time::Duration;

use http::{Method, Request};
use sandbox::sim::{SimConfig, Simulation, connect};
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

/// No condition of these tests takes longer, even on a busy machine.
pub const BOUND: Duration = Duration::from_mins(3);

pub struct Cluster {
    pub client: kube::Client,
    /// The same without retries: shows every 429.
    plain: kube::Client,
    pub simulation: Simulation,
    pub sandbox: Sandbox,
}

impl Cluster {
    pub async fn start(config: SimConfig) -> Self {
        Self::with(Options::default(), config).await
    }

    pub async fn with(options: Options, config: SimConfig) -> Self {
        let sandbox = Sandbox::start(options).await.unwrap();
        let client = connect(&sandbox.kubeconfig()).await.unwrap();
        let simulation = Simulation::start(client.clone(), config).await.unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.default_retry = false;
        let plain = kube::Client::try_from(config).unwrap();
        Self { client, plain, simulation, sandbox }
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> Result<Value, kube::Error> {
        let mut request = Request::builder().method(method.clone()).uri(path);
        if method == Method::PATCH {
            request = request.header("content-type", "application/merge-patch+json");
        } else {
            request = request.header("content-type", "application/json");
        }
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.request(request.body(body).unwrap()).await
    }

    /// Patches by the merge keys of a built-in kind.
    pub async fn strategic(&self, path: &str, patch: &Value) -> Value {
        let request = Request::patch(path).header("content-type", "application/strategic-merge-patch+json");
        self.client.request(request.body(patch.to_string().into_bytes()).unwrap()).await.unwrap()
    }

    /// The code and the body of whatever is answered; a body that is no JSON as a string.
    pub async fn raw(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        self.raw_with(method, path, &[], body).await
    }

    /// As [`Self::raw`], with headers.
    pub async fn raw_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, Value) {
        let mut request =
            Request::builder().method(method).uri(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let answer = self.plain.send(request.body(body.into()).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(text)))
    }

    pub async fn get(&self, path: &str) -> Option<Value> {
        match self.call(Method::GET, path, Value::Null).await {
            Ok(object) => Some(object),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }

    /// Waits until a condition holds of what is at a path (`None`: nothing is there).
    pub async fn wait(
        &self,
        path: &str,
        what: &str,
        holds: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let mut last = None;
        let waited = tokio::time::timeout(BOUND, async {
            loop {
                match self.call(Method::GET, path, Value::Null).await {
                    Ok(object) => last = Some(object),
                    Err(kube::Error::Api(status)) if status.code == 404 => last = None,
                    Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                        panic!("GET {path}: {status}")
                    }
                    // On a machine that was away for a while, requests time out as anywhere.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                }
                if holds(last.as_ref()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let in_time = waited.await.is_ok();
        assert!(in_time, "{path} never was {what}: {last:#?}");
        last
    }

    /// Asks until an answer, whatever its code, is the one that is waited for.
    pub async fn wait_for(&self, path: &str, is_it: impl Fn(u16, &Value) -> bool) -> Value {
        let mut last = (0, Value::Null);
        let waited = tokio::time::timeout(BOUND, async {
            loop {
                last = self.raw(Method::GET, path, Value::Null).await;
                if is_it(last.0, &last.1) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let in_time = waited.await.is_ok();
        assert!(in_time, "{path} never answered as it should: {last:#?}");
        last.1
    }

    pub async fn printable(&self, name: &str, status: &str) -> Value {
        let is = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["printableStatus"] == status);
        self.wait(&vm_path(name), status, is).await.unwrap()
    }

    pub async fn stop(self) {
        drop(self.simulation);
        self.sandbox.shutdown().await;
    }
}

pub const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
pub const VMIS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

pub fn vm_path(name: &str) -> String {
    format!("{VMS}/{name}")
}

pub fn vmi_path(name: &str) -> String {
    format!("{VMIS}/{name}")
}

pub fn vm(name: &str, strategy: &str) -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": strategy, "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "domain": {"cpu": {"cores": 1, "sockets": 2, "threads": 1}, "memory": {"guest": "1Gi"},
                "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": "registry.example/fedora:41"}}]}}},
    })
}

pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}
