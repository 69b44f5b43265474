//! Operations over REST from the operator, as callers in a cluster use it: over TLS, with identities of their
//! own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::operator::Operator;
use ::operator::config::{Config, RegisterMode, RestAuth};
use ::sandbox::{Options, Sandbox};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Takes any certificate of the server: its CA is made at the start and is another test's matter.
#[derive(Debug)]
struct Any(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client with a certificate, or without.
type Identity = Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>;

/// One request; status and body.
async fn ask(
    address: SocketAddr,
    identity: &Identity,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> (u16, Value) {
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(crypto.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(crypto)));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap(),
    };
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (content, text) = match body {
        Value::Null => ("", String::new()),
        body => ("application/json", body.to_string()),
    };
    let request = request.header("content-type", content).body(Full::new(Bytes::from(text))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

struct Cluster {
    sandbox: Sandbox,
    folder: tempfile::TempDir,
    client: kube::Client,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let sandbox = Sandbox::start(Options { nodes: 1, vms: 1, ..Options::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), sandbox.kubeconfig()).unwrap();
        let client = ::sandbox::sim::connect(&sandbox.kubeconfig()).await.unwrap();
        Self { sandbox, folder, client }
    }

    async fn create(&self, path: &str, object: Value) -> Value {
        let request = http::Request::post(path).header("content-type", "application/json");
        self.client.request(request.body(object.to_string().into_bytes()).unwrap()).await.unwrap()
    }

    /// A service account, and its token for an audience.
    async fn account(&self, name: &str, audience: Option<&str>) -> String {
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        self.create(accounts, account).await;
        let mut review =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        if let Some(audience) = audience {
            review["spec"]["audiences"] = json!([audience]);
        }
        let token = self.create(&format!("{accounts}/{name}/token"), review).await;
        token["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Lets a subject read VMs in `default`.
    async fn allow(&self, name: &str, subject: Value) {
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
        self.create(
            &format!("{rbac}/roles"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
                "rules": [{"verbs": ["get", "list"], "apiGroups": ["kubevirt.io"],
                    "resources": ["virtualmachines", "virtualmachineinstances"]}]}),
        )
        .await;
        self.create(
            &format!("{rbac}/rolebindings"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [subject]}),
        )
        .await;
    }

    /// An operator that serves operations; where, and how it is stopped.
    async fn operator(&self, change: impl FnOnce(&mut Config)) -> (SocketAddr, CancellationToken) {
        let mut config = Config::default();
        config.register.mode = RegisterMode::Url;
        config.server.port = 0;
        config.telemetry.metrics_bind_address = "0".into();
        config.kubernetes.kubeconfig = Some(self.folder.path().join("kubeconfig"));
        config.rest.enabled = true;
        config.rest.port = 0;
        config.rest.bind_address = [127, 0, 0, 1].into();
        change(&mut config);
        let operator = Operator::start(config).await.unwrap();
        let (address, stop) = (operator.rest_address().unwrap(), CancellationToken::new());
        let readiness = operator.readiness();
        tokio::spawn(operator.serve(stop.clone()));
        let ready = async {
            while !readiness.report().ready {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), ready).await.unwrap();
        (address, stop)
    }
}

const LIST: &str = "/kubevirt/vms/list";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_serves_callers_with_their_own_tokens() {
    let cluster = Cluster::start().await;
    let (address, stop) = cluster.operator(|_| ()).await;
    assert_eq!(ask(address, &None, "GET", "/health", &[], &Value::Null).await.0, 200);
    let (status, problem) = ask(address, &None, "POST", LIST, &[], &json!({})).await;
    assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")), "nobody acts as the operator");
    let token = format!("Bearer {}", cluster.account("reader", None).await);
    let list = async || {
        ask(address, &None, "POST", LIST, &[("authorization", &token)], &json!({"namespace": "default"}))
            .await
    };
    let (status, problem) = list().await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{problem}");
    cluster
        .allow("reader", json!({"kind": "ServiceAccount", "name": "reader", "namespace": "default"}))
        .await;
    let (status, answer) = list().await;
    assert_eq!((status, answer["items"].as_array().map(Vec::len)), (200, Some(1)), "{answer}");
    let name = answer["items"][0]["name"].as_str().unwrap().to_owned();
    let stop_it = format!("/kubevirt/vms/default/{name}/stop");
    let (status, problem) =
        ask(address, &None, "POST", &stop_it, &[("authorization", &token)], &json!({})).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "reading is not stopping: {problem}");
    stop.cancel();
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_impersonated_where_that_was_chosen_and_have_no_more_rights_for_it() {
    let cluster = Cluster::start().await;
    // an authority of clients, and somebody whom it knows
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let authority = ca.self_signed(&ca_key).unwrap();
    let ca_file = cluster.folder.path().join("ca.crt");
    std::fs::write(&ca_file, authority.pem()).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let person = |name: &str, group: &str| -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Some((vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap()))
    };
    let (address, stop) = cluster
        .operator(|config| {
            config.rest.auth = RestAuth::Impersonate;
            config.rest.audiences = vec!["virt-steward".into()];
            config.rest.client_ca_file = Some(ca_file);
        })
        .await;
    let here = json!({"namespace": "default"});

    // by certificate
    let ann = person("ann", "ops");
    let (status, problem) = ask(address, &ann, "POST", LIST, &[], &here).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("\"ann\""), "{problem}");
    cluster
        .allow("ops", json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "ops"}))
        .await;
    assert_eq!(ask(address, &ann, "POST", LIST, &[], &here).await.0, 200);
    let elsewhere = [("origin", "https://evil.example")];
    assert_eq!(ask(address, &ann, "POST", LIST, &elsewhere, &here).await.0, 403, "a page of another site");
    let masters = person("eve", "system:masters");
    assert_eq!(
        ask(address, &masters, "POST", LIST, &[], &here).await.0,
        403,
        "no authority of ours makes masters"
    );
    let admin = person("system:admin", "ops");
    assert_eq!(ask(address, &admin, "POST", LIST, &[], &here).await.0, 401, "nor parts of the cluster");

    // by token, for this audience and no other
    let other = format!("Bearer {}", cluster.account("other", Some("elsewhere")).await);
    let (status, problem) = ask(address, &None, "POST", LIST, &[("authorization", &other)], &here).await;
    assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")), "{problem}");
    let token = format!("Bearer {}", cluster.account("reader", Some("virt-steward")).await);
    let (status, problem) = ask(address, &None, "POST", LIST, &[("authorization", &token)], &here).await;
    assert_eq!(status, 403, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("system:serviceaccount:default:reader"),
        "{problem}"
    );
    cluster
        .allow("reader", json!({"kind": "ServiceAccount", "name": "reader", "namespace": "default"}))
        .await;
    assert_eq!(ask(address, &None, "POST", LIST, &[("authorization", &token)], &here).await.0, 200);
    let wrong = [("authorization", "Bearer no-such-token")];
    assert_eq!(ask(address, &None, "POST", LIST, &wrong, &here).await.0, 401);
    stop.cancel();
    cluster.sandbox.shutdown().await;
}
