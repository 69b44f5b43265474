//! One keep-alive HTTPS connection to the service.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::problem::Problem;

/// The largest answer that is read, bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Where to connect, and how to trust it.
#[derive(Clone)]
pub struct Target {
    /// The host of the URL with its port, for the Host header.
    authority: String,
    /// The path of the URL; `/mutate` when it has none.
    path: String,
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
}

/// Whose certificates are believed.
pub enum Trust<'a> {
    /// Those that a certificate authority in a PEM file has signed.
    Authority(&'a Path),
    /// Those that a certificate authority in a PEM text has signed.
    Pem(&'a [u8]),
    /// Any.
    Anyone,
}

impl Target {
    /// Resolves a URL. Hosts that are not this one need `allow_remote`.
    pub async fn resolve(url: &str, trust: &Trust<'_>, allow_remote: bool) -> Result<Self> {
        let doing = || format!("preparing to load `{url}`");
        let wrong_url =
            |wrong: &str| Problem::new(doing(), wrong, "give a URL such as `https://127.0.0.1:8443/mutate`");
        let uri: http::Uri =
            url.parse().map_err(|error: http::uri::InvalidUri| wrong_url(&error.to_string()))?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong_url("it is not an https URL").into());
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(443);
        let address = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map_err(|error| wrong_url(&error.to_string()))?
            .next()
            .ok_or_else(|| wrong_url("the host has no address"))?;
        if !address.ip().is_loopback() && !allow_remote {
            let wrong = format!("{} is another machine", address.ip());
            let remedy = "load only services that you run, and say so with `--allow-remote`";
            return Err(Problem::new(doing(), wrong, remedy).into());
        }
        let name = ServerName::try_from(host).map_err(|error| wrong_url(&error.to_string()))?;
        let path = match uri.path() {
            "" | "/" => "/mutate",
            path => path,
        };
        let tls = TlsConnector::from(Arc::new(client_config(trust)?));
        Ok(Self { authority: authority.to_string(), path: path.to_owned(), address, name, tls })
    }

    /// Opens a connection: TCP, TLS, HTTP/1.1. The error is its kind.
    pub async fn connect(&self) -> Result<Connection, &'static str> {
        let socket = TcpStream::connect(self.address).await.map_err(|_| "connection refused")?;
        // a request is one small write: waiting for more would measure Nagle's algorithm
        socket.set_nodelay(true).map_err(|_| "connection refused")?;
        let stream = self.tls.connect(self.name.clone(), socket).await.map_err(|_| "TLS handshake failed")?;
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|_| "HTTP handshake failed")?;
        tokio::spawn(driver);
        Ok(Connection { sender, authority: self.authority.clone(), path: self.path.clone() })
    }
}

impl Target {
    /// The same server, another path.
    pub fn with_path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// Whether `/readyz` says so.
    pub async fn ready(&self) -> bool {
        let Ok(mut connection) = self.connect().await else { return false };
        let request = http::Request::get("/readyz").header(http::header::HOST, &self.authority);
        let Ok(request) = request.body(Full::default()) else { return false };
        connection.sender.send_request(request).await.is_ok_and(|response| response.status().is_success())
    }
}

/// An open connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
    path: String,
}

impl Connection {
    /// Sends a body and reads the answer; the error is its kind.
    pub async fn post(&mut self, body: String) -> Result<Bytes, String> {
        let request = http::Request::post(&self.path)
            .header(http::header::HOST, &self.authority)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        self.sender.ready().await.map_err(|_| "connection closed")?;
        let response = self.sender.send_request(request).await.map_err(|_| "connection closed")?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|_| "answer cut off")?;
        if status == http::StatusCode::OK {
            Ok(body.to_bytes())
        } else {
            Err(format!("HTTP status {}", status.as_u16()))
        }
    }
}

fn client_config(trust: &Trust<'_>) -> Result<ClientConfig> {
    let doing = "preparing TLS";
    let remedy = "give a PEM file with the certificate authority of the service with `--ca`, or `--insecure`";
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Problem::new(doing, error, remedy))?;
    let pem = match trust {
        Trust::Anyone => {
            let verifier = Arc::new(AcceptAny(provider));
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        Trust::Pem(pem) => pem.to_vec(),
        Trust::Authority(path) => std::fs::read(path)
            .map_err(|error| Problem::new(format!("reading `{}`", path.display()), error, remedy))?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| Problem::new(doing, format!("{error:?}"), remedy))?;
        roots.add(certificate).map_err(|error| Problem::new(doing, error, remedy))?;
    }
    if roots.is_empty() {
        return Err(Problem::new(doing, "there is no certificate in the file", remedy).into());
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Believes every certificate (`--insecure`), but still checks that the peer holds its key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
