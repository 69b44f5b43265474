//! `pods/proxy`: a GET to a port of a pod, through the API server (`registry/core/pod/rest`, Kubernetes 1.36). Most pods
//! here have no containers; those that something stands for say in an annotation where it listens on this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::reply::Reply;
use super::{Api, not_allowed};
use crate::sim::POD_ADDRESS;

/// A connection is there, and the head of the answer has come, within this time.
const PATIENCE: Duration = Duration::from_secs(30);
const STORAGE: &str = "pods.";

impl Api {
    /// Answers `…/pods/[SCHEME:]NAME[:PORT]/proxy/…`.
    ///
    /// # Errors
    /// The pod is not there, or nothing answers on that port of it.
    pub async fn proxy_pod(&self, head: &Parts, namespace: &str, name: &str) -> Result<Reply, Status> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(not_allowed());
        }
        let (scheme, name, port) = parse(name);
        let stored = self.store.read(STORAGE, namespace, name);
        let pod = stored.ok_or_else(|| Status::not_found("", "pods", name))?.value();
        let first = &pod["spec"]["containers"][0]["ports"][0]["containerPort"];
        let port = port.map_or_else(|| first.to_string(), str::to_owned);
        let unavailable = |why: &str| {
            Status::new(503, "ServiceUnavailable", format!("error trying to reach service: {why}"))
        };
        let place = pod["metadata"]["annotations"][format!("{POD_ADDRESS}{port}")].as_str();
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        let refused = || unavailable(&format!("dial tcp {ip}:{port}: connect: connection refused"));
        let (address, prefix) =
            place.map(|place| place.split_once('/').unwrap_or((place, ""))).ok_or_else(refused)?;
        // Whoever writes a pod says where this goes: to this machine, and nowhere else.
        let address: SocketAddr =
            address.parse().ok().filter(|one: &SocketAddr| one.ip().is_loopback()).ok_or_else(refused)?;
        let rest = head.uri.path().split_once("/proxy").map_or("", |(_, rest)| rest);
        let query = head.uri.query().map_or(String::new(), |query| format!("?{query}"));
        let path = format!("/{prefix}{rest}{query}").replace("//", "/");
        let asked = tokio::time::timeout(PATIENCE, self.ask_pod(scheme == "https", address, head, &path));
        match asked.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(unavailable(&error.to_string())),
            Err(_) => Err(unavailable("it did not answer in time")),
        }
    }

    async fn ask_pod(
        &self,
        secure: bool,
        address: SocketAddr,
        head: &Parts,
        path: &str,
    ) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let link = self.network.connect(&address.ip().to_string(), address.port()).await?;
        let mut request = Request::builder().method(&head.method).uri(path).body(Empty::<Bytes>::new())?;
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_str(&address.to_string())?);
        let response = if secure {
            let connector = TlsConnector::from(Arc::new(trusting_anybody()?));
            let stream = connector.connect(ServerName::from(address.ip()), link).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(link)).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
    }
}

/// Scheme, name and port.
fn parse(name: &str) -> (&str, &str, Option<&str>) {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [name, port] => ("http", name, Some(port)),
        [scheme, name, port] => (
            if scheme.is_empty() { "http" } else { scheme },
            name,
            Some(port).filter(|port| !port.is_empty()).copied(),
        ),
        _ => ("http", name, None),
    }
}

/// Pods have certificates of their own making, which the API server does not look at.
fn trusting_anybody() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _stapled: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        for (name, parts) in [
            ("p", ("http", "p", None)),
            ("p:80", ("http", "p", Some("80"))),
            ("https:p:8443", ("https", "p", Some("8443"))),
            ("https:p:", ("https", "p", None)),
        ] {
            assert_eq!(parse(name), parts, "{name}");
        }
    }
}
