//! Aggregated APIs: groups that another server serves, behind an `APIService`
//! (`k8s.io/kube-aggregator`, Kubernetes 1.36). Requests are handed on with the user's name; the
//! other server trusts the certificate that they come with.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::reply::Reply;
use super::{Api, upgrade};
use crate::admission::service::{Service, resolve};
use crate::attributes::User;
use crate::certs::Identity;

/// The other server answers, at least with its head, within this time.
const ANSWER: Duration = Duration::from_mins(1);
/// Discovery does not wait longer for it.
const DISCOVERY: Duration = Duration::from_secs(3);
/// A connection is there within this time.
const CONNECT: Duration = Duration::from_secs(5);

const STORAGE: &str = "apiservices.apiregistration.k8s.io";

/// The other server could not be asked.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Service(String),
    #[error("caBundle holds no certificate")]
    Bundle,
    #[error("dial: {0}")]
    Dial(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("request: {0}")]
    Request(#[from] http::Error),
    #[error("it did not answer in time")]
    Late,
}

impl Api {
    /// The `APIService` that hands a group and version to another server, if one does.
    pub fn aggregated(&self, group: &str, version: &str) -> Option<Arc<Value>> {
        if group.is_empty() {
            return None;
        }
        let service = self.store.read(STORAGE, "", &format!("{version}.{group}"))?.value();
        service["spec"]["service"].is_object().then_some(service)
    }

    /// Groups and versions that other servers serve.
    pub fn aggregated_groups(&self) -> Vec<(String, String)> {
        let (_, services) = self.store.select(STORAGE, None);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let values = services
            .iter()
            .map(|stored| stored.value())
            .filter(|service| service["spec"]["service"].is_object());
        values.map(|service| (text(&service["spec"]["group"]), text(&service["spec"]["version"]))).collect()
    }

    /// Hands a request on.
    ///
    /// # Errors
    /// 503 when the other server cannot be asked.
    pub async fn forward(
        &self,
        service: &Value,
        head: &Parts,
        body: Bytes,
        user: &User,
    ) -> Result<Reply, Status> {
        let asked = self.ask(service, head, body, user).await;
        let response = asked.map_err(|error| {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            tracing::debug!(%error, name, "aggregated API is not available");
            Status::new(503, "ServiceUnavailable", format!("error trying to reach service: {error}"))
        })?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(head, response);
        }
        Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()))
    }

    async fn ask(
        &self,
        service: &Value,
        head: &Parts,
        body: Bytes,
        user: &User,
    ) -> Result<Response<hyper::body::Incoming>, Error> {
        let spec = &service["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let port = spec["service"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let target = Service {
            namespace: text(&spec["service"]["namespace"]),
            name: text(&spec["service"]["name"]),
            port,
        };
        let (address, port) = resolve(self.store.as_ref(), &target).map_err(Error::Service)?;
        let tls = TlsConnector::from(Arc::new(tls(spec, &self.proxy)?));
        let name = ServerName::try_from(target.host())
            .map_err(|_| Error::Service(format!("bad host {}", target.host())))?;
        let connect = async { tls.connect(name, self.network.connect(&address, port).await?).await };
        let stream = tokio::time::timeout(CONNECT, connect).await.map_err(|_| Error::Late)??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an aggregated API ended");
            }
        });
        let path = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut request = Request::builder().method(&head.method).uri(path).body(Full::new(body))?;
        *request.headers_mut() = headers(&head.headers, user);
        upgrade::ask(&head.headers, request.headers_mut());
        if let Ok(host) = HeaderValue::from_str(&target.host()) {
            request.headers_mut().insert(http::header::HOST, host);
        }
        tokio::time::timeout(ANSWER, sender.send_request(request))
            .await
            .map_err(|_| Error::Late)?
            .map_err(Error::Http)
    }

    /// What another server says that it serves; `None` when it cannot be asked.
    pub async fn aggregated_resources(&self, group: &str, version: &str) -> Option<Value> {
        let service = self.aggregated(group, version)?;
        let (head, ()) = Request::get(format!("/apis/{group}/{version}")).body(()).ok()?.into_parts();
        let user = User {
            name: "system:aggregator".into(),
            groups: vec!["system:masters".into()],
            ..User::default()
        };
        let asked = self.ask(&service, &head, Bytes::new(), &user);
        let response = tokio::time::timeout(DISCOVERY, asked).await.ok()?.ok()?;
        let body = http_body_util::Limited::new(response.into_body(), super::BODY_MAX).collect();
        let body = tokio::time::timeout(DISCOVERY, body).await.ok()?.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

/// The client's headers without credentials, and who it is.
fn headers(from: &HeaderMap, user: &User) -> HeaderMap {
    let own = |name: &HeaderName| {
        let name = name.as_str();
        name == AUTHORIZATION.as_str()
            || name.starts_with("impersonate-")
            || name.starts_with("x-remote-")
            || matches!(name, "connection" | "transfer-encoding" | "content-length" | "host" | "upgrade")
    };
    let mut headers: HeaderMap = from
        .iter()
        .filter(|(name, _)| !own(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut add = |name: String, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user".into(), &user.name);
    user.groups.iter().for_each(|group| add("x-remote-group".into(), group));
    for (key, values) in &user.extra {
        let escaped: String = key.bytes().map(escape).collect();
        for value in values {
            add(format!("x-remote-extra-{escaped}"), value);
        }
    }
    headers
}

fn escape(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_' {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

fn tls(spec: &Value, identity: &Identity) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let bundle = STANDARD.decode(spec["caBundle"].as_str().unwrap_or_default()).map_err(|_| Error::Bundle)?;
    for certificate in CertificateDer::pem_slice_iter(&bundle) {
        roots.add(certificate.map_err(|_| Error::Bundle)?)?;
    }
    if roots.is_empty() {
        return Err(Error::Bundle);
    }
    let (certificate, key) = identity.der();
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key)?)
}

/// `kube-system/extension-apiserver-authentication`: how servers behind `APIServices` know whom to
/// trust.
pub fn authentication(ca: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    "data": {
        "client-ca-file": ca,
        "requestheader-client-ca-file": ca,
        "requestheader-allowed-names": "[\"front-proxy-client\"]",
        "requestheader-username-headers": "[\"X-Remote-User\"]",
        "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
    }})
}
