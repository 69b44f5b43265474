//! Keeping self-made certificates: in a Secret that replicas share, or in memory.
//!
//! observe (read) → decide ([`super::selfmade::decide`]) → act (write, guarded by the
//! resourceVersion that was read: of two replicas one wins, the other one reads again).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::CryptoProvider;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::identity::{Identity, IdentityError};
use super::outlet::Outlet;
use super::selfmade::{Material, MaterialError, Step, carry_out, decide};
use crate::clock::Clock;
use crate::kubernetes::{Raw, RawError};
use crate::readiness::{Readiness, State};

/// How often the store is looked at: for what other replicas wrote, and for what is due.
const INTERVAL: Duration = Duration::from_secs(30);
/// After a failure, or when another replica was quicker.
const RETRY: Duration = Duration::from_secs(1);

/// Where material is kept.
pub enum Store {
    /// Gone when the process ends; the webhook configuration is told about the new CA at each start.
    Memory,
    /// In a Secret.
    Secret {
        /// How it is reached.
        api: Raw,
        /// Our namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error(
        "cannot {verb} Secret {namespace}/{name}: {source}; give the operator's account get, create and update on it, or use certificates from files"
    )]
    Api { verb: &'static str, namespace: String, name: String, source: RawError },
    #[error("Secret {namespace}/{name} holds something else; remove it or choose another tls.secretName")]
    Foreign { namespace: String, name: String },
    #[error(transparent)]
    Material(#[from] MaterialError),
    #[error("the stored certificate cannot be served: {0}")]
    Identity(#[from] IdentityError),
}

/// What was read, with the version to guard a write with.
struct Stored {
    material: Option<Material>,
    version: Option<String>,
}

/// Serves a self-made certificate for `names` until `stop`.
pub async fn follow(
    store: Store,
    names: Vec<String>,
    outlet: &Outlet,
    readiness: &Readiness,
    provider: Arc<CryptoProvider>,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut memory: Option<Material> = None;
    loop {
        let turned = turn(&store, &mut memory, &names, &clock).await.and_then(|material| {
            if let Some(material) = &material {
                let identity =
                    Identity::from_pem(material.certificate.as_bytes(), material.key.as_bytes(), &provider)?;
                outlet.serve(identity, Some(material.ca_bundle.clone()));
            }
            Ok(material.is_some())
        });
        let (state, pause) = match turned {
            Ok(true) => (Some(State::Ok), INTERVAL),
            Ok(false) => (None, RETRY),
            // The certificate that is served stays; whether it is still valid is looked at apart.
            Err(error) => (Some(State::Degraded(error.to_string())), RETRY * 5),
        };
        if let Some(state) = state {
            readiness.set("certificate store", state);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look; `None`: another replica wrote at the same time, look again.
async fn turn(
    store: &Store,
    memory: &mut Option<Material>,
    names: &[String],
    clock: &Clock,
) -> Result<Option<Material>, StoreError> {
    let stored = match store {
        Store::Memory => Stored { material: memory.clone(), version: None },
        Store::Secret { .. } => store.read().await?,
    };
    let now = clock();
    let step = decide(stored.material.as_ref(), names, now);
    let Some(next) = carry_out(step, stored.material.as_ref(), names, now)? else {
        return Ok(stored.material);
    };
    tracing::info!(?step, certificate_names = ?names, "made new webhook certificates");
    match store {
        Store::Memory => *memory = Some(next.clone()),
        Store::Secret { .. } => {
            if !store.write(&next, stored.version).await? {
                return Ok(None);
            }
        }
    }
    debug_assert!(step != Step::Keep);
    Ok(Some(next))
}

impl Store {
    fn failed(&self, verb: &'static str, source: RawError) -> StoreError {
        match self {
            Self::Memory => StoreError::Material(MaterialError::Stored(source.to_string())),
            Self::Secret { namespace, name, .. } => {
                StoreError::Api { verb, namespace: namespace.clone(), name: name.clone(), source }
            }
        }
    }

    async fn read(&self) -> Result<Stored, StoreError> {
        let Self::Secret { api, namespace, name } = self else {
            return Ok(Stored { material: None, version: None });
        };
        let secret = match api.get(&format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await {
            Ok(secret) => secret,
            Err(error) if error.code() == Some(404) => return Ok(Stored { material: None, version: None }),
            Err(error) => return Err(self.failed("read", error)),
        };
        let version = secret["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let material = material(&secret);
        let ours = secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "virt-steward";
        let empty = secret["data"].as_object().is_none_or(serde_json::Map::is_empty);
        if material.is_none() && !ours && !empty {
            return Err(StoreError::Foreign { namespace: namespace.clone(), name: name.clone() });
        }
        Ok(Stored { material, version })
    }

    /// Whether it was written; `false`: somebody else was quicker.
    async fn write(&self, material: &Material, version: Option<String>) -> Result<bool, StoreError> {
        let Self::Secret { api, namespace, name } = self else { return Ok(true) };
        let data: BTreeMap<&str, String> =
            fields(material).into_iter().map(|(key, value)| (key, STANDARD.encode(value))).collect();
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
            "data": data,
        });
        let collection = format!("/api/v1/namespaces/{namespace}/secrets");
        let written = match version {
            None => api.create(&collection, &secret).await,
            Some(version) => {
                secret["metadata"]["resourceVersion"] = version.into();
                // An update may not change the type; one that was there before keeps its own.
                if let Some(fields) = secret.as_object_mut() {
                    fields.remove("type");
                }
                let patch = json!({"metadata": secret["metadata"], "data": secret["data"]});
                api.merge(&format!("{collection}/{name}"), &patch).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(409) => Ok(false),
            Err(error) => Err(self.failed("write", error)),
        }
    }
}

fn fields(material: &Material) -> [(&'static str, &str); 4] {
    [
        ("ca.crt", &material.ca_bundle),
        ("ca.key", &material.ca_key),
        ("tls.crt", &material.certificate),
        ("tls.key", &material.key),
    ]
}

fn material(secret: &Value) -> Option<Material> {
    let field = |key: &str| {
        let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    Some(Material {
        ca_bundle: field("ca.crt")?,
        ca_key: field("ca.key")?,
        certificate: field("tls.crt")?,
        key: field("tls.key")?,
    })
}
