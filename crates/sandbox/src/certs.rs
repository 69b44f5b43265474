//! The sandbox's own certificate authority, and the kubeconfig that trusts it.

use apimachinery::tree::json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::clock::Ids;

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: rcgen::Error,
}

fn making(what: &'static str) -> impl Fn(rcgen::Error) -> Error {
    move |source| Error { what, source }
}

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: String,
    /// The key, PEM (PKCS 8).
    pub key: String,
    der: (CertificateDer<'static>, Vec<u8>),
}

impl Identity {
    /// What rustls wants.
    pub fn der(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (self.der.0.clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.der.1.clone())))
    }
}

/// A certificate authority that lives as long as the sandbox.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    keys: Keys,
}

/// Where keys come from.
enum Keys {
    System,
    /// For networks that nobody else can reach: the same numbers give the same keys.
    Drawn(Ids),
}

/// An Ed25519 key in PKCS 8 (RFC 8410 section 7), up to its 32 bytes.
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

impl Keys {
    fn next(&self) -> Result<KeyPair, rcgen::Error> {
        let Self::Drawn(ids) = self else { return KeyPair::generate() };
        let mut key = PKCS8_ED25519.to_vec();
        (0..4).for_each(|_| key.extend_from_slice(&ids.next().to_be_bytes()));
        // Its signatures follow from key and text alone, unlike those of ECDSA.
        KeyPair::from_pkcs8_der_and_sign_algo(&key.into(), &rcgen::PKCS_ED25519)
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn new() -> Result<Self, Error> {
        Self::with(Keys::System)
    }

    /// An authority whose keys, and those that it certifies, follow from a seed: for connections that
    /// stay in this process's memory. Whoever knows the seed knows the keys.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn drawn(seed: u64) -> Result<Self, Error> {
        Self::with(Keys::Drawn(Ids::new(seed)))
    }

    fn with(keys: Keys) -> Result<Self, Error> {
        let make = making("certificate authority");
        let mut params = CertificateParams::new(Vec::new()).map_err(&make)?;
        params.distinguished_name.push(DnType::CommonName, "sandbox-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = keys.next().map_err(&make)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(&make)?;
        Ok(Self { issuer, keys })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's certificate, DER.
    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A serving certificate for the names that reach a server on this machine.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn server(&self) -> Result<Identity, Error> {
        let names = ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        self.serving("kube-apiserver", &names)
    }

    /// A serving certificate for these names and addresses.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn serving(&self, subject: &str, names: &[&str]) -> Result<Identity, Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(making("serving certificate"))?;
        params.distinguished_name.push(DnType::CommonName, subject);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params, "serving certificate")
    }

    /// A client certificate: the API reads the user's name from CN and the groups from O.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, Error> {
        let mut params = CertificateParams::new(Vec::new()).map_err(making("client certificate"))?;
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, "client certificate")
    }

    fn sign(&self, params: &CertificateParams, what: &'static str) -> Result<Identity, Error> {
        let make = making(what);
        let key = self.keys.next().map_err(&make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(&make)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: (certificate.der().clone(), key.serialize_der()),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// A kubeconfig with one cluster, one user and one context, all called `sandbox`. The user carries
/// both a certificate and a token: a client uses what it knows.
pub fn kubeconfig(url: &str, ca: &str, client: &Identity, token: &str) -> String {
    let encode = |pem: &str| STANDARD.encode(pem);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "sandbox", "preferences": {},
        "clusters": [{"name": "sandbox",
            "cluster": {"server": url, "certificate-authority-data": encode(ca)}}],
        "contexts": [{"name": "sandbox",
            "context": {"cluster": "sandbox", "user": "sandbox", "namespace": "default"}}],
        "users": [{"name": "sandbox", "user": {
            "client-certificate-data": encode(&client.certificate),
            "client-key-data": encode(&client.key), "token": token}}],
    });
    serde_json::to_string_pretty(&config).unwrap_or_default()
}
