//! Certificates from files, over real TLS handshakes and real symlink swaps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Pair, Running, Start, eventually, pair, pair_valid, provider};
use operator::readiness::State;
use operator::tls::{Files, Identity, Outlet, follow_files};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use tokio_util::sync::CancellationToken;

/// Lays a pair out as the kubelet does: `tls.crt -> ..data/tls.crt`, `..data -> <version>`.
fn mount(dir: &Path, version: &str, certificate: &str, key: &str) {
    let data = dir.join(version);
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("tls.crt"), certificate).unwrap();
    std::fs::write(data.join("tls.key"), key).unwrap();
    std::fs::write(data.join("ca.crt"), certificate).unwrap();
    symlink(version, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        if !dir.join(file).exists() {
            symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
        }
    }
}

struct Following {
    server: Running,
    outlet: Arc<Outlet>,
    _stop: tokio_util::sync::DropGuard,
}

async fn follow(dir: &Path) -> Following {
    let server = Start::default().run().await;
    let outlet = Arc::new(Outlet::new(server.resolver.clone(), server.metrics.clone()));
    let files = Files { certificate: dir.join("tls.crt"), key: dir.join("tls.key"), ca: dir.join("ca.crt") };
    let stop = CancellationToken::new();
    let (readiness, sink, ended) = (server.readiness.clone(), outlet.clone(), stop.clone());
    tokio::spawn(async move {
        follow_files(files, &sink, &readiness, provider(), Duration::from_millis(20), ended).await;
    });
    Following { server, outlet, _stop: stop.drop_guard() }
}

impl Following {
    async fn serves(&self, pair: &Pair) -> bool {
        self.server.connect_trusting("http/1.1", &pair.der).await.is_ok()
    }

    fn state(&self) -> Option<State> {
        self.server.readiness.report().parts.get("certificate files").cloned()
    }
}

/// Defect 27, second half: TLS was loaded once, and its expiry was a cluster-wide outage.
#[tokio::test]
async fn defect_27_a_symlink_swap_is_seen_and_open_connections_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (pair(), pair_valid(2001, 2099));
    mount(dir.path(), "..2026_01", &old.certificate, &old.key);
    let following = follow(dir.path()).await;
    eventually("the first pair is served", async || following.serves(&old).await).await;
    let io =
        hyper_util::rt::TokioIo::new(following.server.connect_trusting("http/1.1", &old.der).await.unwrap());
    let (mut before, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let ca = following.outlet.ca_bundle();
    assert_eq!(ca.borrow().as_deref(), Some(old.certificate.as_str()));

    mount(dir.path(), "..2026_02", &new.certificate, &new.key);
    eventually("the new pair is served", async || following.serves(&new).await).await;
    assert!(!following.serves(&old).await);
    assert_eq!(ca.borrow().as_deref(), Some(new.certificate.as_str()));
    assert_eq!(before.send_request(common::get("/healthz")).await.unwrap().status(), 200);
    let expiry = format!("webhook_certificate_expiry_timestamp_seconds {}", 4_070_908_800_u64); // 2099-01-01
    assert!(following.server.metrics.text().unwrap().contains(&expiry));
}

#[tokio::test]
async fn a_broken_pair_is_reported_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (old, other) = (pair(), pair());
    mount(dir.path(), "..1", &old.certificate, &old.key);
    let following = follow(dir.path()).await;
    eventually("the first pair is served", async || following.serves(&old).await).await;
    for (version, certificate, key, says) in [
        ("..2", other.certificate.as_str(), old.key.as_str(), "do not make a pair"),
        ("..3", "", other.key.as_str(), "no PEM certificate"),
        ("..4", other.certificate.as_str(), "not a key", "no private key"),
    ] {
        mount(dir.path(), version, certificate, key);
        eventually(
            says,
            async || matches!(following.state(), Some(State::Degraded(reason)) if reason.contains(says)),
        )
        .await;
        assert!(following.serves(&old).await);
        assert!(following.server.readiness.report().ready);
    }
    mount(dir.path(), "..5", &other.certificate, &other.key);
    eventually("repaired", async || following.serves(&other).await).await;
    assert_eq!(following.state(), Some(State::Ok));
}

#[tokio::test]
async fn files_that_are_not_there_yet_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let following = follow(dir.path()).await;
    eventually(
        "unready",
        async || matches!(following.state(), Some(State::Unready(reason)) if reason.contains("tls.crt")),
    )
    .await;
    let pair = pair();
    mount(dir.path(), "..1", &pair.certificate, &pair.key);
    eventually("served", async || following.serves(&pair).await).await;
}

/// ECDSA and RSA, in every PEM form that tools write.
#[tokio::test]
async fn key_kinds_and_forms() {
    let server = Start::default().run().await;
    for (key, inner) in [
        (KeyPair::generate().unwrap(), "EC PRIVATE KEY"),
        (KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(), "RSA PRIVATE KEY"),
    ] {
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
        for pem in [key.serialize_pem(), inner_key(&key, inner)] {
            let identity = Identity::from_pem(certificate.pem().as_bytes(), pem.as_bytes(), &provider())
                .unwrap_or_else(|error| panic!("{inner}: {error}"));
            server.resolver.serve(identity);
            server
                .connect_trusting("h2", certificate.der())
                .await
                .unwrap_or_else(|error| panic!("{inner}: {error}"));
        }
    }
}

/// PKCS#8 wraps what PKCS#1 and SEC1 files hold bare: version, algorithm, OCTET STRING.
fn inner_key(key: &KeyPair, label: &str) -> String {
    use base64::Engine;
    let der = key.serialize_der();
    let (_, parsed) = x509_parser::der_parser::parse_der(&der).unwrap();
    let bare = parsed.as_sequence().unwrap()[2].as_slice().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(bare);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
