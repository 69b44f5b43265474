//! A `VirtualMachineExport` (export.kubevirt.io): makes it, waits for it, and follows it through
//! pod swaps, new certificates and its own end.
//!
//! ```text
//!  Secret (token) ─► VirtualMachineExport ─► Pending ─► Ready ─► (TTL) gone ─► made again
//!                                              │                     raw offsets stay the same
//!                                              └─► Skipped: no volume can be exported
//! ```

use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::http::{Access, Directory, Secret};
use super::objects::{Objects, failed};
use crate::retry::{Looks, pause};
use crate::{Error, Result};

/// The versions of its API that are alike in all that is read and written here, newest first: v1 came with `KubeVirt`
/// 1.9; v1beta1 with 1.3, as an exact copy of v1alpha1 (kubevirt#11956), which releases before it have alone.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// The version of `export.kubevirt.io` to speak to a cluster.
///
/// # Errors
/// When the cluster cannot be asked, does not serve the group, or only versions that are not known here.
pub async fn served_version(client: &kube::Client) -> Result<&'static str> {
    let objects = Objects::new(client.clone(), "");
    let what = "the API group export.kubevirt.io";
    let group = objects.get("/apis/export.kubevirt.io", what).await?;
    choose(&group.unwrap_or_default()).map_err(|wrong| Error::Object { object: what.into(), wrong })
}

/// Chooses among the versions of an `APIGroup`.
fn choose(group: &Value) -> std::result::Result<&'static str, String> {
    let all = group["versions"].as_array().into_iter().flatten();
    let served: Vec<&str> = all.filter_map(|one| one["version"].as_str()).collect();
    let known = VERSIONS.into_iter().find(|version| served.contains(version));
    known.ok_or_else(|| match served.as_slice() {
        [] => "the cluster does not serve it; KubeVirt has it since 0.55".into(),
        others => format!("the cluster serves {} and none of {}", others.join(", "), VERSIONS.join(", ")),
    })
}

/// The header that carries the token.
pub(super) const TOKEN_HEADER: &str = "x-kubevirt-export-token";

/// What is exported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A stopped VM with all its volumes.
    VirtualMachine(String),
    /// A snapshot of a VM.
    Snapshot(String),
    /// One claim.
    Claim(String),
}

impl Subject {
    fn reference(&self) -> Value {
        let (group, kind, name) = match self {
            Self::VirtualMachine(name) => ("kubevirt.io", "VirtualMachine", name),
            Self::Snapshot(name) => ("snapshot.kubevirt.io", "VirtualMachineSnapshot", name),
            Self::Claim(name) => ("", "PersistentVolumeClaim", name),
        };
        json!({"apiGroup": group, "kind": kind, "name": name})
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match self {
            Self::VirtualMachine(name) => format!("VirtualMachine {name}"),
            Self::Snapshot(name) => format!("VirtualMachineSnapshot {name}"),
            Self::Claim(name) => format!("PersistentVolumeClaim {name}"),
        }
    }
}

/// An export in the cluster.
pub struct VmExport {
    objects: Objects,
    name: String,
    /// Of the API.
    version: &'static str,
    subject: Subject,
    ttl: Duration,
    ready_within: Duration,
    /// Use the links for clients inside the cluster.
    inside: bool,
    token: Secret,
}

impl std::fmt::Debug for VmExport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("VmExport").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A volume as the export offers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Volume {
    /// The name of the claim (of a snapshot: the claim that was made from it).
    pub name: String,
    /// Where its raw content is; `None`: it is offered only as an archive or compressed.
    pub url: Option<String>,
}

/// How an export is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of the object and its Secret.
    pub namespace: String,
    /// The object's name. One that is there already and exports the same is used.
    pub name: String,
    /// What is exported.
    pub subject: Subject,
    /// The export deletes itself after this time; it cannot be extended.
    pub ttl: Duration,
    /// How long it may take to be ready; a snapshot may have to be copied.
    pub ready_within: Duration,
    /// This process runs in the cluster.
    pub inside: bool,
}

impl VmExport {
    /// Makes the export, or takes over the one of an earlier run, and waits until it is ready.
    ///
    /// # Errors
    /// What the API refuses, and why the export does not become ready.
    pub async fn start(client: kube::Client, setup: Setup) -> Result<Self> {
        let token = Secret(token()?);
        let version = served_version(&client).await?;
        let Setup { namespace, name, subject, ttl, ready_within, inside } = setup;
        let objects = Objects::new(client, &namespace);
        let export = Self { objects, name, version, subject, ttl, ready_within, inside, token };
        export.make().await?;
        export.ready().await?;
        Ok(export)
    }

    fn path(&self, resource: &str, name: &str) -> String {
        if resource == "secrets" {
            return self.objects.path("/api/v1", resource, name);
        }
        self.objects.path(&format!("/apis/export.kubevirt.io/{}", self.version), resource, name)
    }

    fn object(&self) -> String {
        format!("VirtualMachineExport {}/{}", self.objects.namespace, self.name)
    }

    async fn make(&self) -> Result<()> {
        let secret = token_secret(&self.objects, &self.name, &self.token);
        // A Secret of an earlier run is kept: its token is read back when the volume is accessed.
        self.create("secrets", "Secret", &secret).await?;
        let seconds = self.ttl.as_secs();
        let export = json!({"apiVersion": format!("export.kubevirt.io/{}", self.version),
            "kind": "VirtualMachineExport",
            "metadata": {"name": self.name, "namespace": self.objects.namespace,
                "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
            "spec": {"source": self.subject.reference(), "tokenSecretRef": self.name,
                "ttlDuration": format!("{seconds}s")}});
        if self.create("virtualmachineexports", "VirtualMachineExport", &export).await? {
            return Ok(());
        }
        let found = self.read().await?;
        let (here, there) = (self.subject.reference(), &found["spec"]["source"]);
        let same = ["kind", "name"].iter().all(|key| here[key] == there[key]);
        if same {
            return Ok(());
        }
        let wrong = format!("it is there already and exports {there}; delete it, or give another name");
        Err(Error::Object { object: self.object(), wrong })
    }

    /// Whether it was created now.
    async fn create(&self, resource: &str, kind: &str, object: &Value) -> Result<bool> {
        let what = format!("{kind} {}/{}", self.objects.namespace, self.name);
        self.objects.create(&self.path(resource, ""), &what, object).await
    }

    async fn read(&self) -> Result<Value> {
        let path = self.path("virtualmachineexports", &self.name);
        self.objects.send(Method::GET, &path, &Value::Null).await.map_err(failed("reading", &self.object()))
    }

    /// Waits until the export is ready, and answers it.
    async fn ready(&self) -> Result<Value> {
        let end = Instant::now() + self.ready_within;
        let mut looks = Looks::default();
        let mut failures = 0;
        loop {
            let found = match self.read().await {
                Ok(found) => found,
                Err(error) if error.is_passing() && failures < 8 => {
                    failures += 1;
                    tokio::time::sleep(pause(failures, 1)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match found["status"]["phase"].as_str() {
                Some("Ready") => return Ok(found),
                Some("Skipped") => {
                    let wrong = "it has no volume that can be exported (only claims and data volumes can)";
                    return Err(Error::Object { object: self.subject.describe(), wrong: wrong.into() });
                }
                Some("Terminated") => {
                    let wrong = "it has ended; delete it and export again".to_owned();
                    return Err(Error::Object { object: self.object(), wrong });
                }
                _ => {}
            }
            if Instant::now() >= end {
                let wrong = format!(
                    "it is not ready after {} s{}. A VM has to be stopped to be exported, and a claim unused; \
                     give a snapshot of a running one",
                    self.ready_within.as_secs(),
                    explanation(&found)
                );
                return Err(Error::Object { object: self.object(), wrong });
            }
            tokio::time::sleep(looks.next()).await;
        }
    }

    /// The volumes that it offers.
    ///
    /// # Errors
    /// When the object cannot be read.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        let found = self.ready().await?;
        let links = self.links(&found)?;
        let volumes = links["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(volumes
            .iter()
            .filter_map(|volume| {
                Some(Volume { name: volume["name"].as_str()?.to_owned(), url: raw_url(&volume["formats"]) })
            })
            .collect())
    }

    /// The links of the side that this process is on; the other side's when there are no others.
    fn links<'a>(&self, found: &'a Value) -> Result<&'a Value> {
        let sides = if self.inside { ["internal", "external"] } else { ["external", "internal"] };
        let links = sides.iter().map(|side| &found["status"]["links"][side]).find(|links| links.is_object());
        links.ok_or_else(|| Error::Object { object: self.object(), wrong: "it has no links yet".into() })
    }

    /// Removes the export and its Secret.
    ///
    /// # Errors
    /// What the API refuses; what is gone already is no error.
    pub async fn delete(&self) -> Result<()> {
        for resource in ["virtualmachineexports", "secrets"] {
            let what = format!("{} ({resource})", self.object());
            self.objects.delete(&self.path(resource, &self.name), &what).await?;
        }
        Ok(())
    }

    async fn current_token(&self) -> Result<Secret> {
        token_of(&self.objects, &self.name).await
    }
}

/// The token of a Secret as it is in the cluster now.
pub(super) async fn token_of(objects: &Objects, name: &str) -> Result<Secret> {
    let object = format!("Secret {}/{name}", objects.namespace);
    let found = objects.send(Method::GET, &objects.path("/api/v1", "secrets", name), &Value::Null).await;
    let found = found.map_err(failed("reading the token in", &object))?;
    let encoded = found["data"]["token"].as_str().unwrap_or_default();
    let raw = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded).unwrap_or_default();
    let token = String::from_utf8(raw).ok().filter(|token| !token.is_empty());
    token.map(Secret).ok_or(Error::Object { object, wrong: "it has no token".into() })
}

/// A Secret with a token for an export.
pub(super) fn token_secret(objects: &Objects, name: &str, token: &Secret) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "namespace": objects.namespace,
            "labels": {"app.kubernetes.io/managed-by": "virt-steward"}},
        "stringData": {"token": token.0}})
}

#[async_trait]
impl Directory for VmExport {
    async fn access(&self, volume: &str) -> Result<Access> {
        let found = match self.read().await {
            Ok(found) if found["status"]["phase"] == "Ready" => found,
            // Its time is over, or its pod is being replaced.
            Ok(_) => self.ready().await?,
            Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 404) =>
            {
                self.make().await?;
                self.ready().await?
            }
            Err(error) => return Err(error),
        };
        let links = self.links(&found)?;
        let url = links["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|candidate| candidate["name"] == volume)
            .and_then(|candidate| raw_url(&candidate["formats"]));
        let url = url.ok_or_else(|| Error::Object {
            object: self.object(),
            wrong: format!("it offers no raw content of `{volume}`"),
        })?;
        let ca = links["cert"].as_str().unwrap_or_default().to_owned();
        let headers = vec![(TOKEN_HEADER.to_owned(), self.current_token().await?)];
        Ok(Access { url, ca, headers })
    }
}

/// The URL of raw content among a volume's formats. A file system that holds `disk.img` but is not
/// marked as KubeVirt's content offers only `dir` and `tar.gz` (export.go, `isKubevirtContentType`;
/// users meet it as kubevirt#16897): the directory is served with ranges, so its `disk.img` will do.
/// Its link has lost the slash at its end.
fn raw_url(formats: &Value) -> Option<String> {
    let formats = formats.as_array()?;
    let of = |wanted: &str| {
        let found = formats.iter().find(|entry| entry["format"] == wanted)?;
        found["url"].as_str().map(str::to_owned)
    };
    of("raw").or_else(|| of("dir").map(|dir| format!("{}/disk.img", dir.trim_end_matches('/'))))
}

fn explanation(export: &Value) -> String {
    let ready =
        export["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let text = |key: &str| ready.and_then(|condition| condition[key].as_str()).unwrap_or_default();
    match (text("reason"), text("message")) {
        ("", "") => String::new(),
        (reason, "") => format!(" ({reason})"),
        (reason, message) => format!(" ({reason}: {message})"),
    }
}

/// 32 random characters.
pub(super) fn token() -> Result<String> {
    let mut raw = [0; 24];
    aws_lc_rs::rand::fill(&mut raw).map_err(|_| Error::Request("no randomness for a token".into()))?;
    Ok(base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_served_and_known_is_spoken() {
        let group = |versions: &[&str]| {
            let versions: Vec<Value> = versions.iter().map(|version| json!({"version": version})).collect();
            json!({"versions": versions})
        };
        for (served, spoken) in [
            (&["v1beta1", "v1"][..], "v1"),
            (&["v1beta1", "v1alpha1"], "v1beta1"),
            (&["v1alpha1"], "v1alpha1"),
            (&["v2", "v1"], "v1"),
        ] {
            assert_eq!(choose(&group(served)), Ok(spoken), "{served:?}");
        }
        assert!(
            choose(&group(&["v2", "v3"])).is_err_and(|wrong| wrong.contains("serves v2, v3 and none of v1"))
        );
        assert!(choose(&Value::Null).is_err_and(|wrong| wrong.contains("does not serve it")));
    }

    #[test]
    fn raw_content_is_taken_from_the_directory_when_there_is_no_other() {
        let formats = |list: &[(&str, &str)]| {
            Value::from(list.iter().map(|(f, u)| json!({"format": f, "url": u})).collect::<Vec<_>>())
        };
        for (offered, url) in [
            (formats(&[("gzip", "https://x/d.img.gz"), ("raw", "https://x/d.img")]), Some("https://x/d.img")),
            (
                formats(&[("dir", "https://x/volumes/d/dir"), ("tar.gz", "t")]),
                Some("https://x/volumes/d/dir/disk.img"),
            ),
            (formats(&[("gzip", "https://x/d.img.gz")]), None),
            (Value::Null, None),
        ] {
            assert_eq!(raw_url(&offered).as_deref(), url, "{offered}");
        }
    }
}
