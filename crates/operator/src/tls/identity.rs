//! A certificate chain with its key, checked before it is served.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a pair cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No certificate in the PEM text.
    #[error("the certificate file holds no PEM certificate")]
    NoCertificate,
    /// PEM that cannot be read.
    #[error("the certificate file is not valid PEM: {0}")]
    CertificatePem(rustls_pki_types::pem::Error),
    /// No key that can be read: PKCS#8, PKCS#1 and SEC1 are.
    #[error("the key file holds no private key in PEM (PKCS#8, PKCS#1 or SEC1): {0}")]
    KeyPem(rustls_pki_types::pem::Error),
    /// The leaf is not an X.509 certificate.
    #[error("the certificate cannot be parsed: {0}")]
    Certificate(String),
    /// The key belongs to another certificate, or is of a kind that is not supported.
    #[error("certificate and key do not make a pair: {0}")]
    Pair(rustls::Error),
}

/// What is served, and from when to when.
#[derive(Debug)]
pub struct Identity {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// The leaf is not valid before.
    pub not_before: Timestamp,
    /// The leaf is not valid after.
    pub not_after: Timestamp,
}

impl Identity {
    /// Reads a PEM chain (leaf first) and a PEM key, and checks that they belong together.
    pub fn from_pem(
        certificates: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<Self, IdentityError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<_, _>>()
            .map_err(IdentityError::CertificatePem)?;
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let (not_before, not_after) = validity(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(IdentityError::KeyPem)?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(IdentityError::Pair)?;
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// Whether two identities serve the same chain.
    pub fn same_chain(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

/// From when to when a certificate is valid.
pub fn validity(certificate: &[u8]) -> Result<(Timestamp, Timestamp), IdentityError> {
    let broken = |error: String| IdentityError::Certificate(error);
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| broken(error.to_string()))?;
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| broken(error.to_string()));
    let validity = parsed.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}
