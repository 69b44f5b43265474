//! What a `VMExportJob` asks for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cron::Schedule;
use crate::run::Target;

/// The service account that pods run as when none is named.
pub const ACCOUNT: &str = "virt-steward-export";

/// `spec` of a `VMExportJob`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Which VMs.
    pub source: Source,
    /// What to make of each.
    #[serde(default)]
    pub format: Format,
    /// For qcow2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// The compressor's level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// Where to.
    pub destination: Destination,
    /// When, as cron(5) in UTC; once, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// A run that was missed is made up for within this time.
    #[serde(default = "defaults::deadline")]
    pub starting_deadline_seconds: u32,
    /// No run begins; one that is under way is ended.
    #[serde(default)]
    pub suspend: bool,
    /// Which results of earlier runs stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Only what changed, where the cluster tracks that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// How many VMs are exported at the same time.
    #[serde(default = "defaults::concurrency")]
    pub concurrency: u32,
    /// How often the export of a VM is tried again in a run.
    #[serde(default = "defaults::retries")]
    pub retries: u32,
    /// What happens to VMs that run.
    #[serde(default)]
    pub running: Running,
    /// The result is read again and compared.
    #[serde(default)]
    pub verify: bool,
    /// MiB a second of each export.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "limitRateMiB")]
    pub limit_rate_mib: Option<u64>,
    /// As whom the pods run; the account has to carry the label `vm-feature-manager.io/export-jobs`.
    #[serde(default = "defaults::account")]
    pub service_account_name: String,
}

mod defaults {
    pub fn concurrency() -> u32 {
        2
    }
    pub fn retries() -> u32 {
        3
    }
    pub fn deadline() -> u32 {
        3600
    }
    pub fn full_every() -> u32 {
        7
    }
    pub fn account() -> String {
        super::ACCOUNT.into()
    }
}

/// Which VMs; one of `virtualMachine` and `selector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// One by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<String>,
    /// A snapshot of it instead of its volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// All that match, a label selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Value>,
    /// Only these volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
}

/// What is made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "names of formats")]
pub enum Format {
    Raw,
    #[default]
    Qcow2,
    Vmdk,
    Ova,
    Ovf,
}

impl Format {
    /// As arguments and manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Ova => "ova",
            Self::Ovf => "ovf",
        }
    }

    /// The same for a run.
    pub fn target(self) -> Target {
        match self {
            Self::Raw => Target::Raw,
            Self::Qcow2 => Target::Qcow2,
            Self::Vmdk => Target::Vmdk,
            Self::Ova => Target::Ova,
            Self::Ovf => Target::Ovf,
        }
    }
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "names of methods")]
pub enum Compression {
    None,
    Deflate,
    Zstd,
}

impl Compression {
    /// As arguments write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }
}

/// Where to; one of `url` and `claim`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// A store: `s3://`, `gs://`, `az://`, `http(s)://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The Secret with its keys, under the names of the environment variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<Named>,
    /// A claim, which the pods mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

/// A reference by name in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: String,
}

/// A place on a claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The `PersistentVolumeClaim`.
    pub name: String,
    /// A directory on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// Which results stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// The newest runs of each VM, and what they build on.
    pub keep_last: u32,
}

/// Exports that build on earlier ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Incremental {
    /// Every so many exports of a VM one holds everything.
    #[serde(default = "defaults::full_every")]
    pub full_every: u32,
    /// A claim with a file system that `KubeVirt`'s backup uses meanwhile; without one, each export makes its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_claim: Option<String>,
}

/// What happens to VMs that run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Running {
    /// A snapshot is taken, exported, and removed.
    #[default]
    Snapshot,
    /// Their export fails.
    Fail,
}

/// What is wrong with a spec.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

impl Spec {
    /// Reads and checks the spec of an object.
    ///
    /// # Errors
    /// Says what is wrong, and what would be right.
    pub fn read(object: &Value) -> Result<Self, Mistake> {
        let spec: Self = serde_json::from_value(object["spec"].clone())
            .map_err(|error| Mistake(format!("spec: {error}")))?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), Mistake> {
        let wrong = |text: &str| Err(Mistake(text.to_owned()));
        match (&self.source.virtual_machine, &self.source.selector) {
            (Some(_), Some(_)) => return wrong("spec.source: give virtualMachine or selector, not both"),
            (None, None) => return wrong("spec.source: give virtualMachine or selector"),
            (None, Some(_)) if self.source.snapshot.is_some() => {
                return wrong("spec.source.snapshot goes with virtualMachine");
            }
            _ => {}
        }
        if let Some(selector) = &self.source.selector {
            label_query(selector)?;
        }
        match (&self.destination.url, &self.destination.claim) {
            (Some(_), Some(_)) => return wrong("spec.destination: give url or claim, not both"),
            (None, None) => return wrong("spec.destination: give url or claim"),
            (Some(url), None) => self.check_url(url)?,
            (None, Some(claim)) => {
                let plain = claim.path.split('/').all(|part| part != "..");
                if claim.name.is_empty() || !plain {
                    return wrong("spec.destination.claim: give a name, and a path without `..`");
                }
            }
        }
        match (self.format, self.compression) {
            (Format::Qcow2, _) | (_, None) | (Format::Raw, Some(Compression::None)) => {}
            (Format::Raw, Some(_)) => return wrong("spec.compression: raw is never compressed; use qcow2"),
            (_, Some(Compression::Deflate)) => {}
            (_, Some(_)) => {
                return wrong("spec.compression: vmdk, ova and ovf are always deflated; use qcow2");
            }
        }
        if !(1..=64).contains(&self.concurrency) {
            return wrong("spec.concurrency is 1 to 64");
        }
        if self.retries > 20 {
            return wrong("spec.retries is at most 20");
        }
        if self.retention.is_some_and(|retention| retention.keep_last == 0) {
            return wrong("spec.retention.keepLast is at least 1");
        }
        if let Some(incremental) = &self.incremental {
            if self.format != Format::Qcow2 {
                return wrong("spec.incremental goes with format qcow2");
            }
            if !(1..=31).contains(&incremental.full_every) {
                return wrong("spec.incremental.fullEvery is 1 to 31");
            }
            if self.source.snapshot.is_some() || self.running == Running::Fail {
                return wrong(
                    "spec.incremental exports VMs while they run: neither snapshot nor running: Fail",
                );
            }
            if self.destination.url.as_deref().is_some_and(|url| url.starts_with("http")) {
                return wrong("spec.incremental: a plain HTTP server cannot list earlier exports");
            }
        }
        self.schedule().map(|_| ())
    }

    fn check_url(&self, url: &str) -> Result<(), Mistake> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        match scheme {
            "http" | "https" if self.retention.is_some() => {
                let text =
                    "spec.retention: a plain HTTP server cannot list what it has; use a store or a claim";
                Err(Mistake(text.into()))
            }
            "s3" | "gs" | "az" | "http" | "https" => Ok(()),
            _ => Err(Mistake(format!(
                "spec.destination.url `{url}` is no store: s3://, gs://, az://, https:// or http://"
            ))),
        }
    }

    /// When it runs.
    ///
    /// # Errors
    /// When it is no schedule.
    pub fn schedule(&self) -> Result<Option<Schedule>, Mistake> {
        let schedule = self.schedule.as_deref().map(Schedule::parse).transpose();
        schedule.map_err(|why| Mistake(format!("spec.schedule: {why}")))
    }
}

/// A label selector as the API's query parameter.
///
/// # Errors
/// When it is no selector.
pub fn label_query(selector: &Value) -> Result<String, Mistake> {
    let wrong = |why: &str| Mistake(format!("spec.source.selector: {why}"));
    let object = selector.as_object().ok_or_else(|| wrong("it is no label selector"))?;
    let mut parts = Vec::new();
    for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().ok_or_else(|| wrong("values are texts"))?));
    }
    for one in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = one["key"].as_str().ok_or_else(|| wrong("an expression has no key"))?;
        let values: Vec<&str> =
            one["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        parts.push(match one["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("Exists") => key.to_owned(),
            Some("DoesNotExist") => format!("!{key}"),
            _ => return Err(wrong("operators are In, NotIn, Exists and DoesNotExist")),
        });
    }
    if let Some(unknown) =
        object.keys().find(|key| !matches!(key.as_str(), "matchLabels" | "matchExpressions"))
    {
        return Err(wrong(&format!("`{unknown}` is not known")));
    }
    Ok(parts.join(","))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_spec_gets_the_defaults() {
        let spec = Spec::read(&json!({"spec": {"source": {"virtualMachine": "web"},
            "destination": {"url": "s3://backups/nightly"}}}))
        .unwrap();
        assert_eq!((spec.format, spec.concurrency, spec.retries), (Format::Qcow2, 2, 3));
        assert_eq!((spec.running, spec.service_account_name.as_str()), (Running::Snapshot, ACCOUNT));
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        let base = || json!({"source": {"virtualMachine": "web"}, "destination": {"url": "s3://b/x"}});
        let claim = json!({"claim": {"name": "c"}});
        for (path, value, part) in [
            ("/source", json!({}), "spec.source"),
            ("/source", json!({"virtualMachine": "a", "selector": {}}), "not both"),
            ("/source", json!({"selector": {"matchLabels": {"a": 1}}}), "texts"),
            ("/source", json!({"selector": {"labels": {}}}), "labels"),
            ("/source", json!({"selector": {}, "snapshot": "s"}), "snapshot"),
            ("/destination", json!({}), "spec.destination"),
            ("/destination", json!({"url": "/backups"}), "no store"),
            ("/destination", json!({"claim": {"name": "c", "path": "a/../b"}}), "claim"),
            ("/format", json!("vhd"), "vhd"),
            ("/compression", json!("lz4"), "lz4"),
            ("/schedule", json!("daily"), "fields"),
            ("/concurrency", json!(0), "concurrency"),
            ("/retention", json!({"keepLast": 0}), "keepLast"),
            ("/incremental", json!({"fullEvery": 0}), "fullEvery"),
            ("/colour", json!("red"), "colour"),
        ] {
            let mut spec = base();
            spec[&path[1..]] = value;
            let wrong = Spec::read(&json!({"spec": spec})).unwrap_err().0;
            assert!(wrong.contains(part), "{path}: {wrong}");
        }
        for (format, compression, wrong) in [
            ("vmdk", "zstd", Some("always deflated")),
            ("ova", "none", Some("always deflated")),
            ("raw", "deflate", Some("never compressed")),
            ("ovf", "deflate", None),
            ("raw", "none", None),
        ] {
            let mut spec = base();
            (spec["format"], spec["compression"]) = (format.into(), compression.into());
            let found = Spec::read(&json!({"spec": spec})).err().map(|mistake| mistake.0);
            assert_eq!(found.is_some(), wrong.is_some(), "{format} {compression}: {found:?}");
            assert!(found.unwrap_or_default().contains(wrong.unwrap_or_default()), "{format} {compression}");
        }
        let mut good = base();
        good["destination"] = claim;
        good["incremental"] = json!({});
        assert_eq!(
            Spec::read(&json!({"spec": good})).unwrap().incremental.map(|one| one.full_every),
            Some(7)
        );
        for (key, value) in [("format", json!("raw")), ("running", json!("Fail"))] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(Spec::read(&json!({"spec": bad})).unwrap_err().0.contains("incremental"), "{key}");
        }
    }

    #[test]
    fn selectors_become_queries() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"}]});
        assert_eq!(label_query(&selector).unwrap(), "app=web,tier in (a,b),!old");
        assert_eq!(label_query(&json!({})).unwrap(), "");
    }
}
