//! What guests, pods and nodes use, as two servers of a real cluster tell it, behind one port on loopback:
//!
//! | asked through | answers as |
//! |---|---|
//! | `APIService` `v1beta1.metrics.k8s.io` | metrics-server: `kubectl top nodes`, `kubectl top pods` |
//! | `pods/https:virt-handler-…:8443/proxy/metrics`, or the address in the pod's annotation | the node's virt-handler |
//!
//! Nothing is measured or kept: figures follow from the seed, the VMI and the time ([`load`]), and are made when somebody
//! asks.

mod exposition;
mod load;
mod resource;

use std::net::SocketAddr;
use std::sync::Arc;

use apimachinery::Status;
use apimachinery::selector::LabelSelector as Selector;
use apimachinery::tree::{Map, Value, json};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::SimError;
use super::cache::Cache;
use super::client::Client;
use super::https::{self, Answer, Component};
use super::identity::KUBEVIRT_NAMESPACE;
use super::json::{self, text};
use super::resource::{DAEMON_SETS, PODS};
use super::version::Release;
use super::virt_api::registration;
pub use load::Load;

const SERVICE: &str = "metrics-server";
const NAMESPACE: &str = "kube-system";
/// The Service's name in the cluster's DNS.
const HOST: &str = "metrics-server.kube-system.svc";
/// On a pod: where a port of it is on this machine, as `ADDRESS[/PATH]`; the port stands behind this.
pub const ADDRESS: &str = "sandbox.vm-feature-manager.io/port-";

/// The server.
pub struct Metrics {
    client: Client,
    seed: u64,
    /// Indexed by the name of the node.
    vmis: Arc<Cache>,
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
}

impl Component for Metrics {
    const NAME: &str = "metrics";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, trusted: bool) -> Answer {
        self.respond(&request, trusted)
    }
}

impl Metrics {
    /// Serves, registers the API, and gives every node the pod of its virt-handler.
    pub async fn start(
        client: &Client,
        (vmis, pods, nodes): (&Arc<Cache>, &Arc<Cache>, &Arc<Cache>),
        (seed, release): (u64, Release),
        names: &[String],
        stop: &CancellationToken,
    ) -> Result<(), SimError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| SimError::Setup(error);
        let authority = client.network().authority(3).map_err(|error| failed(error.into()))?;
        let front = registration::front_proxy(client).await?;
        let hosts = ["localhost", "127.0.0.1", HOST];
        let tls = https::acceptor(&authority, &front, "metrics", &hosts).map_err(failed)?;
        let listener = client.network().listen(0).await.map_err(|error| failed(error.into()))?;
        let address = listener.address().map_err(|error| failed(error.into()))?;
        let server = Arc::new(Self {
            client: client.clone(),
            seed,
            vmis: vmis.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
        });
        tokio::spawn(https::serve(server, listener, tls, front, stop.clone()));
        let place = registration::Place { namespace: NAMESPACE, name: SERVICE, address };
        registration::serve(client, &place, (resource::GROUP, &[resource::VERSION]), &authority.pem())
            .await?;
        handlers(client, address, release, names).await
    }

    fn respond(&self, request: &Request<Incoming>, trusted: bool) -> Answer {
        let path = request.uri().path().trim_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        if let [node, "metrics"] = parts.as_slice() {
            // Anybody who reaches virt-handler's port can read this, as in the real one.
            let vmis = self.vmis.indexed(node);
            let page = exposition::page(vmis.iter().map(AsRef::as_ref), self.seed, self.client.now());
            return typed("text/plain; version=0.0.4; charset=utf-8", page);
        }
        if !trusted {
            return plain(StatusCode::UNAUTHORIZED, "only the API server's proxy is served");
        }
        let selector = selector(request.uri().query().unwrap_or_default());
        let now = self.client.now();
        let found = match (parts.as_slice(), selector) {
            (["apis", resource::GROUP, resource::VERSION], _) => Ok(resource::resources()),
            (["apis", resource::GROUP, resource::VERSION, rest @ ..], Ok(selector)) => {
                self.of(rest, &selector, now)
            }
            (_, Err(message)) => Err(Status::bad_request(message)),
            _ => Err(Status::new(404, "NotFound", "the server could not find the requested resource")),
        };
        match found {
            Ok(object) => typed("application/json", object.to_string()),
            Err(status) => {
                let mut answer = typed("application/json", status.to_json().to_string());
                *answer.status_mut() =
                    StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                answer
            }
        }
    }

    fn of(&self, rest: &[&str], selector: &Selector, now: Timestamp) -> Result<Value, Status> {
        match rest {
            ["nodes"] => {
                let mut nodes = self.nodes.all();
                nodes.retain(|node| selected(selector, node));
                nodes.sort_by(|one, other| json::name(one).cmp(json::name(other)));
                let items: Vec<Value> = nodes.iter().map(|node| self.node(node, now)).collect();
                Ok(resource::listed("NodeMetrics", &items))
            }
            ["nodes", name] => {
                let node = self.nodes.get(name).ok_or_else(|| missing("nodes", name))?;
                Ok(self.node(&node, now))
            }
            ["pods"] => Ok(self.pods_of("", selector, now)),
            ["namespaces", namespace, "pods"] => Ok(self.pods_of(namespace, selector, now)),
            ["namespaces", namespace, "pods", name] => {
                let pod = self.pods.get(&json::join_key(namespace, name)).filter(|pod| is_measured(pod));
                let pod = pod.ok_or_else(|| missing("pods", &format!("{namespace}/{name}")))?;
                Ok(self.pod(&pod, now))
            }
            _ => Err(Status::new(404, "NotFound", "the server could not find the requested resource")),
        }
    }

    fn pods_of(&self, namespace: &str, selector: &Selector, now: Timestamp) -> Value {
        let mut pods = self.pods.all();
        pods.retain(|pod| {
            (namespace.is_empty() || json::namespace(pod) == namespace)
                && is_measured(pod)
                && selected(selector, pod)
        });
        pods.sort_by_key(|pod| json::key(pod));
        {
            let items: Vec<Value> = pods.iter().map(|pod| self.pod(pod, now)).collect();
            resource::listed("PodMetrics", &items)
        }
    }

    fn pod(&self, pod: &Value, now: Timestamp) -> Value {
        let domain = json::annotation(pod, "kubevirt.io/domain");
        let vmi = domain.and_then(|name| self.vmis.get(&json::join_key(json::namespace(pod), name)));
        let here = vmi.filter(|vmi| text(vmi, "/status/nodeName") == text(pod, "/spec/nodeName"));
        resource::pod(pod, here.and_then(|vmi| Load::of(&vmi, self.seed, now)).as_ref(), now)
    }

    fn node(&self, node: &Value, now: Timestamp) -> Value {
        let vmis = self.vmis.indexed(json::name(node));
        let loads: Vec<Load> = vmis.iter().filter_map(|vmi| Load::of(vmi, self.seed, now)).collect();
        resource::node(node, &loads, now)
    }
}

fn is_measured(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Running"
}

fn selected(selector: &Selector, object: &Value) -> bool {
    let none = Map::new();
    selector.matches(json::map(object, "/metadata/labels").unwrap_or(&none))
}

fn missing(resource: &str, name: &str) -> Status {
    Status::not_found(resource::GROUP, resource, name)
}

fn selector(query: &str) -> Result<Selector, String> {
    let given = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
    let text = crate::api::target::decode(&given.unwrap_or_default().replace('+', " "));
    Selector::parse(&text).map_err(|error| error.to_string())
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn plain(code: StatusCode, message: &'static str) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", message);
    *answer.status_mut() = code;
    answer
}

/// The `DaemonSet` of virt-handler, and its pods: where metrics are looked for.
async fn handlers(
    client: &Client,
    address: SocketAddr,
    release: Release,
    names: &[String],
) -> Result<(), SimError> {
    let labels = json!({"kubevirt.io": "virt-handler", "prometheus.kubevirt.io": "true"});
    let container = json!({"name": "virt-handler", "image": release.image("virt-handler"),
        "ports": [{"name": "metrics", "containerPort": 8443, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "10m", "memory": "325Mi"}}});
    let template = json!({"serviceAccountName": "kubevirt-handler", "hostPID": true, "containers": [container],
        "tolerations": [{"operator": "Exists"}], "priorityClassName": "kubevirt-cluster-critical"});
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "virt-handler", "namespace": KUBEVIRT_NAMESPACE, "labels": labels},
        "spec": {"selector": {"matchLabels": {"kubevirt.io": "virt-handler"}},
            "template": {"metadata": {"labels": labels}, "spec": template}}});
    let create = async |resource: &super::resource::Resource, object: &Value| {
        let path = resource.path(KUBEVIRT_NAMESPACE, "", "");
        match client.send(None, Method::POST, &path, "application/json", object).await {
            Err(error) if error.code() != 409 => Err(SimError::from(error)),
            _ => Ok(()),
        }
    };
    create(&DAEMON_SETS, &set).await?;
    let set = client.get(None, &DAEMON_SETS.path(KUBEVIRT_NAMESPACE, "virt-handler", "")).await?;
    let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "virt-handler", "uid": json::uid(&set),
        "controller": true, "blockOwnerDeletion": true});
    for name in names {
        let mut spec = template.clone();
        spec["nodeName"] = name.as_str().into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("virt-handler-{name}"), "namespace": KUBEVIRT_NAMESPACE, "labels": labels,
                "annotations": {(format!("{ADDRESS}8443")): format!("{address}/{name}")}, "ownerReferences": [owner]},
            "spec": spec});
        create(&PODS, &pod).await?;
    }
    Ok(())
}
