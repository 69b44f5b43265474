//! Certificates from files, read again when they change.
//!
//! The kubelet changes a mounted Secret by swapping the symlink `..data`, which watches on the files
//! themselves do not see (cilium #13636, certinel #20). Reading a few kilobytes every few seconds
//! and comparing them cannot miss anything. A read that falls between two swaps gives a pair that
//! does not match: the old pair stays, and the next look finds the new one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio_util::sync::CancellationToken;

use super::identity::{Identity, IdentityError};
use super::outlet::Outlet;
use crate::readiness::{Readiness, State};

/// Which files.
#[derive(Clone, Debug)]
pub struct Files {
    /// PEM chain, leaf first.
    pub certificate: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM bundle of the CA; need not exist.
    pub ca: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{certificate} and {key}: {source}", certificate = certificate.display(), key = key.display())]
    Identity { certificate: PathBuf, key: PathBuf, source: IdentityError },
}

/// What the files held.
#[derive(Eq, PartialEq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Option<String>,
}

impl Files {
    async fn read(&self) -> Result<Contents, LoadError> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|source| LoadError::Read { path: path.clone(), source })
        };
        let ca = tokio::fs::read_to_string(&self.ca).await.ok();
        Ok(Contents { certificate: read(&self.certificate).await?, key: read(&self.key).await?, ca })
    }
}

/// Looks at the files every `interval` until `stop`, and serves what they hold when that is new and
/// a pair. What is served already stays when they are broken.
pub async fn follow(
    files: Files,
    outlet: &Outlet,
    readiness: &Readiness,
    provider: Arc<CryptoProvider>,
    interval: Duration,
    stop: CancellationToken,
) {
    let mut served: Option<Contents> = None;
    loop {
        let state = match look(&files, served.as_ref(), &provider).await {
            Ok(None) => State::Ok,
            Ok(Some((contents, identity))) => {
                outlet.serve(identity, contents.ca.clone());
                served = Some(contents);
                State::Ok
            }
            Err(error) if served.is_some() => {
                State::Degraded(format!("{error}; the certificate loaded before is still served"))
            }
            Err(error) => State::Unready(error.to_string()),
        };
        readiness.set("certificate files", state);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn look(
    files: &Files,
    served: Option<&Contents>,
    provider: &CryptoProvider,
) -> Result<Option<(Contents, Identity)>, LoadError> {
    let contents = files.read().await?;
    if served == Some(&contents) {
        return Ok(None);
    }
    let identity = Identity::from_pem(&contents.certificate, &contents.key, provider).map_err(|source| {
        LoadError::Identity { certificate: files.certificate.clone(), key: files.key.clone(), source }
    })?;
    Ok(Some((contents, identity)))
}
