//! virt-handler's own server (`cmd/virt-handler`, `pkg/virt-handler/rest`, v1.9), for a virt-api that is not simulated:
//!
//! ```text
//!  virtctl pause ──► virt-api ──► podIP of the node's virt-handler:8186/v1/namespaces/…/pause ──► guest
//! ```
//!
//! Both sides show certificates of `KubeVirt`'s authority: ours is that of virt-handler, from the Secret that
//! virt-operator keeps; the caller's has to be virt-api's. One server serves the guests of all nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use apimachinery::tree::{Value, json};
use base64::Engine as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::SimError;
use super::cache::Cache;
use super::client::Client;
use super::handler_calls::{HandlerCalls, Order, Question, Stream};
use super::https::{self, Answer, Component};
use super::identity::KUBEVIRT_NAMESPACE;
use super::json::{self, text};
use super::resource::{CONFIG_MAPS, SECRETS};
use super::virt_api::registration::FrontProxy;
use super::virt_api::subresources::{guest, streams};
use crate::network::Listener;

/// The Secret with virt-handler's certificate, and the `ConfigMap` with the authority of all of them.
const CERTIFICATE: &str = "kubevirt-virt-handler-server-certs";
const AUTHORITY: &str = "kubevirt-ca";
/// What virt-api calls itself to virt-handlers.
const CALLER: &str = "kubevirt.io:system:client:virt-handler";
/// A body is a handful of options.
const BODY: usize = 64 << 10;

/// The server.
pub struct HandlerServer {
    pub calls: HandlerCalls,
    pub vmis: Arc<Cache>,
    pub client: Client,
    pub stop: CancellationToken,
}

/// What the server shows, and whom it believes.
pub struct Credentials {
    tls: TlsAcceptor,
    callers: FrontProxy,
}

impl Credentials {
    /// Those that virt-operator keeps in the cluster.
    ///
    /// # Errors
    /// They are not there, or make no sense.
    pub async fn read(client: &Client) -> Result<Self, SimError> {
        let path = SECRETS.path(KUBEVIRT_NAMESPACE, CERTIFICATE, "");
        let secret = client.get(None, &path).await?;
        let path = CONFIG_MAPS.path(KUBEVIRT_NAMESPACE, AUTHORITY, "");
        let authority = client.get(None, &path).await?;
        let part = |key: &str| {
            let encoded = secret["data"][key].as_str().unwrap_or_default();
            base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default()
        };
        Self::of(&part("tls.crt"), &part("tls.key"), text(&authority, "/data/ca-bundle").as_bytes())
            .map_err(|error| {
                let why = format!(
                    "{KUBEVIRT_NAMESPACE}/{CERTIFICATE} and {AUTHORITY} hold no certificates to serve virt-api with: {error}"
                );
                SimError::Setup(why.into())
            })
    }

    fn of(certificate: &[u8], key: &[u8], authority: &[u8]) -> Result<Self, https::Failure> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let authority: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(authority).collect::<Result<_, _>>()?;
        let callers = FrontProxy { authority, names: vec![CALLER.into()] };
        let tls = https::with_certificate(chain, key, &callers)?;
        Ok(Self { tls, callers })
    }
}

impl HandlerServer {
    /// Serves at an address until it is stopped.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve(self, address: SocketAddr, credentials: Credentials) -> Result<(), SimError> {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
            SimError::Setup(format!("nobody can be served at {address} for virt-api: {error}").into())
        })?;
        let stop = self.stop.clone();
        let Credentials { tls, callers } = credentials;
        tokio::spawn(https::serve(Arc::new(self), Listener::Loopback(listener), tls, callers, stop));
        Ok(())
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Answer, (u16, String)> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let ["v1", "namespaces", namespace, "virtualmachineinstances", name, verb @ ..] = parts.as_slice()
        else {
            return Err((404, "404: Page Not Found".into()));
        };
        let key = json::join_key(namespace, name);
        let Some(vmi) = self.vmis.get(&key) else { return Err((404, format!("VMI {key} does not exist"))) };
        let now = self.client.now();
        let failed = |message: String| (500, message);
        match (request.method().clone(), verb) {
            (Method::PUT, [verb]) => {
                let order = match *verb {
                    "pause" => Order::Pause,
                    "unpause" => Order::Unpause,
                    "softreboot" => Order::SoftReboot,
                    "reset" => Order::Reset,
                    "unfreeze" => Order::Unfreeze,
                    "freeze" => {
                        let options = options(request).await?;
                        Order::Freeze(guest::thaw_after(&options).map_err(|message| (400, message))?)
                    }
                    _ => return Err((404, "404: Page Not Found".into())),
                };
                self.calls.order(&vmi, order, now).map_err(failed)?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            (Method::GET, [verb @ ("guestosinfo" | "userlist" | "filesystemlist")]) => {
                let question = match *verb {
                    "guestosinfo" => Question::System,
                    "userlist" => Question::Users,
                    _ => Question::FileSystems,
                };
                let answer = self.calls.ask(&vmi, question, now).map_err(failed)?;
                Ok(typed("application/json", answer.to_string()))
            }
            (Method::GET, ["vnc", "screenshot"]) => {
                Ok(typed("image/png", self.calls.screenshot(&vmi).map_err(failed)?))
            }
            (Method::GET, ["console"]) => self.connect(request, &vmi, Stream::Console),
            (Method::GET, ["vnc"]) => self.connect(request, &vmi, Stream::Vnc),
            (Method::GET, ["usbredir"]) => self.connect(request, &vmi, Stream::UsbRedirection),
            _ => Err((404, "404: Page Not Found".into())),
        }
    }

    fn connect(
        &self,
        request: Request<Incoming>,
        vmi: &Value,
        stream: Stream,
    ) -> Result<Answer, (u16, String)> {
        let refused = |status: apimachinery::Status| (status.code, status.message);
        // The handshake is looked at before the guest is disturbed.
        streams::key(request.headers()).map_err(refused)?;
        let guest = self.calls.connect(vmi, stream).map_err(|message| (500, message))?;
        streams::open(request, guest, self.stop.clone()).map_err(refused)
    }
}

impl Component for HandlerServer {
    const NAME: &str = "virt-handler";

    async fn answer(self: Arc<Self>, request: Request<Incoming>, trusted: bool) -> Answer {
        let answer = if trusted {
            self.respond(request).await
        } else {
            Err((401, format!("only {CALLER} is served")))
        };
        answer.unwrap_or_else(|(code, message)| {
            let mut answer = typed("text/plain; charset=utf-8", message);
            *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer
        })
    }
}

async fn options(request: Request<Incoming>) -> Result<Value, (u16, String)> {
    let body = Limited::new(request.into_body(), BODY).collect().await;
    let body = body.map_err(|_| (400, "failed to retrieve unfreeze timeout".to_owned()))?.to_bytes();
    if body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(&body).map_err(|_| (400, "failed to unmarshal unfreeze timeout".into()))
}

fn empty(code: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = code;
    answer
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The pod of a node's virt-handler, for a cluster without virt-operator, which would make a `DaemonSet` of them.
pub fn pod(node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("virt-handler-{node}"), "namespace": KUBEVIRT_NAMESPACE,
            "labels": {"kubevirt.io": "virt-handler"}},
        "spec": {"nodeName": node, "serviceAccountName": "kubevirt-handler",
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "virt-handler", "image": "virt-handler"}]}})
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::certs::{Authority, Identity};
    use crate::sim::guest::Guest;
    use crate::sim::launcher::Launchers;
    use crate::sim::{events::Recorder, resource};

    /// One request over a connection of its own: the head of the answer and what follows.
    async fn ask(address: SocketAddr, authority: &Authority, who: Option<&Identity>, line: &str) -> String {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match who {
            Some(who) => {
                let (certificate, key) = who.der();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let request =
            format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn virt_api_alone_gives_orders_to_guests() {
        let authority = Authority::new().unwrap();
        let own = authority.serving("kubevirt.io:system:node:virt-handler", &["localhost"]).unwrap();
        let caller = authority.client(CALLER, &[]).unwrap();
        let stranger = authority.client("somebody", &[]).unwrap();
        let credentials =
            Credentials::of(own.certificate.as_bytes(), own.key.as_bytes(), authority.pem().as_bytes())
                .unwrap();

        let launchers = Arc::new(Launchers::default());
        let vmi = json!({"metadata": {"namespace": "default", "name": "web", "uid": "v", "resourceVersion": "1"},
            "status": {"phase": "Running", "nodeName": "node01"}});
        launchers.define("pod", "default/launcher", "default/web", || Guest::of(&vmi));
        let vmis = Cache::new(&resource::VMIS, |_| "");
        vmis.observe(vmi);
        let stop = CancellationToken::new();
        let nowhere = kube::Config::new(http::Uri::from_static("http://127.0.0.1:1"));
        let client = Client::new(kube::Client::try_from(nowhere).unwrap());
        let calls = HandlerCalls::new(launchers.clone(), Recorder::start(&client, &stop));
        let port = {
            let probe = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            probe.local_addr().unwrap()
        };
        let server = HandlerServer { calls, vmis, client, stop: stop.clone() };
        server.serve(port, credentials).await.unwrap();

        let path = "/v1/namespaces/default/virtualmachineinstances/web";
        let paused = || launchers.guest("pod", |guest| guest.paused).unwrap();
        for who in [None, Some(&stranger)] {
            let answer = ask(port, &authority, who, &format!("PUT {path}/pause")).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        }
        assert!(!paused());
        let caller = Some(&caller);
        let answer = ask(port, &authority, caller, &format!("PUT {path}/pause")).await;
        assert!(answer.starts_with("HTTP/1.1 202 ") && paused(), "{answer}");
        let answer = ask(port, &authority, caller, &format!("GET {path}/userlist")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"items\""), "{answer}");
        let answer = ask(port, &authority, caller, &format!("GET {path}/console")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "no WebSocket: {answer}");
        let absent = path.replace("web", "absent");
        let answer = ask(port, &authority, caller, &format!("PUT {absent}/pause")).await;
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("VMI default/absent does not exist"),
            "{answer}"
        );
        stop.cancel();
    }
}
