//! Export jobs: job files, the `VMExportJob` that they become, and how one is shown.
//!
//! A job file has the form that users of hypervisor exporters know: one job, an array of them, or
//! `{"jobs": […]}`, in JSON or YAML:
//!
//! ```json
//! {"vm_path": "default/ubuntu-vm-1", "output_dir": "s3://backups/nightly", "provider": "kubevirt",
//!  "metadata": {"namespace": "default", "secret": "s3-keys", "schedule": "0 2 * * *"}}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::view::text;
use crate::{Error, Kind, identity};

/// The most jobs of one file.
pub const MOST: usize = 500;
/// The longest beginning of a generated name: names of Jobs are made of it.
const PREFIX: usize = 40;

/// One job of a file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// `NAMESPACE/NAME`, or `NAME`; empty with `metadata.selector`.
    #[serde(default)]
    pub vm_path: String,
    /// A store's URL, or a path on the claim that `metadata.claim` names.
    #[serde(default, alias = "output_path")]
    pub output_dir: String,
    /// `kubevirt`, or nothing.
    #[serde(default)]
    pub provider: Option<String>,
    /// `qcow2`, `raw`, `vmdk`, `ova` or `ovf`.
    #[serde(default)]
    pub format: Option<String>,
    /// Whether qcow2 is compressed, or how.
    #[serde(default)]
    pub compress: Option<Value>,
    /// The name of the object; one is made when there is none.
    #[serde(default, alias = "id")]
    pub name: Option<String>,
    /// Everything that is `KubeVirt`'s own.
    #[serde(default)]
    pub metadata: Metadata,
    /// Settings of other exporters: `compress_level` counts.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// Of other exporters; it has no effect.
    #[serde(default, rename = "method", alias = "export_method", alias = "created_at", alias = "thin")]
    _ignored: Option<Value>,
}

/// `metadata` of a job. What is not known here is passed on to `spec` as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Where the VM is, when its path does not say.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The `PersistentVolumeClaim` that the output lies on.
    #[serde(default)]
    pub claim: Option<String>,
    /// The Secret with the store's keys.
    #[serde(default)]
    pub secret: Option<String>,
    /// A label selector instead of a VM.
    #[serde(default)]
    pub selector: Option<Value>,
    /// A snapshot of the VM.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Fields of `VMExportJob.spec`: `schedule`, `retention`, `concurrency`, …
    #[serde(flatten)]
    pub spec: Map<String, Value>,
}

/// Reads a job file.
///
/// # Errors
/// When it is no job file; it says which job is wrong.
pub fn read(file: &Value) -> Result<Vec<Request>, Error> {
    let wrong = |why: String| {
        let remedy = "send a job with `vm_path` and `output_dir`, an array of jobs, or {\"jobs\": […]}";
        Error::new(Kind::InvalidArgument, "reading the jobs", why, remedy)
    };
    let list = match file {
        Value::Array(list) => list.clone(),
        Value::Object(object) => match object.get("jobs") {
            Some(Value::Array(list)) if object.len() == 1 => list.clone(),
            Some(_) => return Err(wrong("`jobs` stands alone and is an array".into())),
            None => vec![file.clone()],
        },
        _ => return Err(wrong("it is neither a job nor an array of jobs".into())),
    };
    if list.is_empty() || list.len() > MOST {
        return Err(wrong(format!("it has {} jobs; 1 to {MOST} are taken", list.len())));
    }
    let numbered = list.into_iter().enumerate();
    numbered
        .map(|(at, job)| {
            serde_json::from_value(job).map_err(|error| wrong(format!("job {}: {error}", at + 1)))
        })
        .collect()
}

impl Request {
    /// The object that it becomes; `namespace` is the context's.
    ///
    /// # Errors
    /// Says what is wrong, and what would be right.
    pub fn object(&self, namespace: &str) -> Result<Value, Error> {
        let wrong = |why: String, remedy: &str| {
            let of = if self.vm_path.is_empty() { "a job" } else { self.vm_path.as_str() };
            Error::new(Kind::InvalidArgument, format!("reading the job of `{of}`"), why, remedy)
        };
        if let Some(provider) = self.provider.as_deref().filter(|provider| *provider != "kubevirt") {
            return Err(wrong(format!("there is no provider `{provider}`"), "use `kubevirt`"));
        }
        let meant = self.metadata.namespace.as_deref().unwrap_or(namespace);
        let (namespace, vm) = self.vm_path.split_once('/').unwrap_or((meant, &self.vm_path));
        identity::label("namespace", namespace)?;
        let mut source = Map::new();
        match (&self.metadata.selector, vm) {
            (Some(selector), "") => {
                source.insert("selector".into(), selector.clone());
            }
            (Some(_), _) => {
                return Err(wrong(
                    "it has a VM and a selector".into(),
                    "give one of vm_path and metadata.selector",
                ));
            }
            (None, "") => return Err(wrong("it names no VM".into(), "give vm_path, or metadata.selector")),
            (None, vm) => {
                identity::subdomain("VM", vm)?;
                source.insert("virtualMachine".into(), vm.into());
            }
        }
        if let Some(snapshot) = &self.metadata.snapshot {
            source.insert("snapshot".into(), snapshot.as_str().into());
        }
        let mut spec = self.metadata.spec.clone();
        spec.insert("source".into(), source.into());
        spec.insert("destination".into(), self.destination(&wrong)?);
        spec.insert("format".into(), self.format.as_deref().unwrap_or("qcow2").into());
        let qcow2 = self.format.as_deref().is_none_or(|format| format == "qcow2");
        match &self.compress {
            None => {}
            // Everything else than qcow2 is compressed as far as it can be.
            Some(Value::Bool(_)) if !qcow2 => {}
            Some(Value::Bool(true)) => drop(spec.insert("compression".into(), "zstd".into())),
            Some(Value::Bool(false)) => drop(spec.insert("compression".into(), "none".into())),
            Some(how) => drop(spec.insert("compression".into(), how.clone())),
        }
        if let Some(level) = self.options.get("compress_level") {
            spec.insert("level".into(), level.clone());
        }
        let mut metadata = json!({"namespace": namespace});
        if let Some(name) = &self.name {
            identity::subdomain("job", name)?;
            metadata["name"] = name.as_str().into();
        } else {
            let start: String = if vm.is_empty() { "export" } else { vm }.chars().take(PREFIX).collect();
            metadata["generateName"] = format!("{}-", start.trim_end_matches(['-', '.'])).into();
        }
        Ok(
            json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "VMExportJob", "metadata": metadata,
            "spec": spec}),
        )
    }

    fn destination(&self, wrong: &dyn Fn(String, &str) -> Error) -> Result<Value, Error> {
        let output = self.output_dir.as_str();
        let mut out = match (&self.metadata.claim, output.contains("://")) {
            (None, true) => json!({"url": output}),
            (Some(claim), false) => json!({"claim": {"name": claim, "path": output.trim_matches('/')}}),
            (Some(_), true) => {
                let why = format!("`{output}` is a store, and metadata.claim a claim");
                return Err(wrong(why, "give one of them"));
            }
            (None, false) if output.is_empty() => {
                return Err(wrong(
                    "it has no output_dir".into(),
                    "give a store's URL, or a path with metadata.claim",
                ));
            }
            (None, false) => {
                let why = format!("`{output}` is a path, and pods have no disk of their own");
                let remedy = "name the PersistentVolumeClaim that it lies on as metadata.claim, give a store's URL \
                              (s3://, gs://, az://, https://), or export to this machine with `virt-steward export`";
                return Err(wrong(why, remedy));
            }
        };
        if let Some(secret) = &self.metadata.secret {
            out["secretRef"] = json!({"name": secret});
        }
        Ok(out)
    }
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// `NAMESPACE.NAME`: a namespace has no dots.
    pub id: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `pending`, `running`, `completed`, `failed`, `cancelled`, or `scheduled` between two runs.
    pub status: &'static str,
    /// What it exports.
    pub source: Value,
    /// Where to.
    pub destination: Value,
    /// The format.
    pub format: String,
    /// When it runs; absent: once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How far it is, over all VMs.
    pub progress: Progress,
    /// Each VM: phase, progress, message.
    pub exports: Value,
    /// Why it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was made.
    pub created: String,
    /// When its last run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<String>,
    /// When it runs next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "counts and bytes that say what they are")]
pub struct Progress {
    pub percent: u64,
    pub vms: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub done_bytes: u64,
    pub size_bytes: u64,
    pub stored_bytes: u64,
    /// Absent while nothing is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

impl Job {
    /// What an object says.
    pub fn of(object: &Value) -> Self {
        let status = &object["status"];
        let own =
            |pointer: &str| Some(text(status, pointer)).filter(|text| !text.is_empty()).map(str::to_owned);
        let number = |key: &str| status["progress"][key].as_u64().unwrap_or(0);
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let bad = conditions
            .filter(|one| one["status"] == "False" && matches!(text(one, "/type"), "Accepted" | "Succeeded"))
            .map(|one| text(one, "/message").to_owned());
        Self {
            id: format!("{namespace}.{name}"),
            namespace: namespace.into(),
            name: name.into(),
            status: match text(status, "/phase") {
                "Running" => "running",
                "Succeeded" => "completed",
                "Failed" | "Invalid" => "failed",
                "Suspended" => "cancelled",
                "Scheduled" => "scheduled",
                _ => "pending",
            },
            source: object["spec"]["source"].clone(),
            destination: object["spec"]["destination"].clone(),
            format: object["spec"]["format"].as_str().unwrap_or("qcow2").into(),
            schedule: object["spec"]["schedule"].as_str().map(str::to_owned),
            progress: Progress {
                percent: number("percent"),
                vms: number("vms"),
                succeeded: number("succeeded"),
                failed: number("failed"),
                done_bytes: number("doneBytes"),
                size_bytes: number("sizeBytes"),
                stored_bytes: number("storedBytes"),
                eta_seconds: status["progress"]["etaSeconds"].as_u64(),
            },
            exports: status["exports"].as_object().cloned().unwrap_or_default().into(),
            message: bad.into_iter().find(|text| !text.is_empty()),
            created: text(object, "/metadata/creationTimestamp").into(),
            completed: own("/run/completionTime"),
            next: own("/nextScheduleTime"),
        }
    }

    /// Whether nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        matches!(self.status, "completed" | "failed" | "cancelled")
    }
}

/// Why a job cannot be cancelled, or with `suspend` off resumed, and what to do; `None`: it can be. What counts is what
/// the job was told, since its status comes later. A schedule is never over.
pub(crate) fn unsuspendable(object: &Value, suspend: bool) -> Option<(String, &'static str)> {
    const NOTHING: &str = "nothing is to be done";
    let job = Job::of(object);
    let suspended = object["spec"]["suspend"] == true;
    match (suspend, suspended) {
        (true, true) => Some(("it is cancelled already".into(), NOTHING)),
        (true, false) if job.schedule.is_none() && job.is_over() && job.status != "cancelled" => {
            Some((format!("it is over: {}", job.status), NOTHING))
        }
        (false, false) => Some(("it is not cancelled".into(), NOTHING)),
        _ => None,
    }
}

/// Namespace and name of an id; a name alone is in `namespace`.
///
/// # Errors
/// When it is no id.
pub fn parse_id(id: &str, namespace: &str) -> Result<(String, String), Error> {
    let (namespace, name) = id.split_once(['.', '/']).unwrap_or((namespace, id));
    identity::label("namespace", namespace)?;
    identity::subdomain("job", name)?;
    Ok((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_job_file_is_one_job_an_array_or_a_list_of_jobs() {
        let job = json!({"vm_path": "default/ubuntu-vm-1", "output_dir": "s3://b/x", "provider": "kubevirt",
            "metadata": {"namespace": "default"}});
        for file in [job.clone(), json!([job]), json!({"jobs": [job]})] {
            let requests = read(&file).unwrap();
            assert_eq!(requests.len(), 1);
            let object = requests[0].object("other").unwrap();
            assert_eq!(object["metadata"]["namespace"], "default");
            assert_eq!(object["metadata"]["generateName"], "ubuntu-vm-1-");
            assert_eq!(object["spec"]["source"], json!({"virtualMachine": "ubuntu-vm-1"}));
        }
        for wrong in [json!([]), json!("x"), json!({"jobs": 1}), json!({"vm": "x"}), json!([{"vm_path": 1}])]
        {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_needs_a_claim_and_everything_else_becomes_the_spec() {
        let of = |job: Value| read(&job).unwrap()[0].object("ns");
        let object =
            of(json!({"vm_path": "web", "output_dir": "/backups/a", "compress": true, "name": "nightly",
            "options": {"compress_level": 5, "parallel_downloads": 8},
            "metadata": {"claim": "disk", "schedule": "@daily", "retention": {"keepLast": 3}}}))
            .unwrap();
        assert_eq!(object["spec"]["destination"], json!({"claim": {"name": "disk", "path": "backups/a"}}));
        assert_eq!((&object["spec"]["schedule"], &object["spec"]["level"]), (&json!("@daily"), &json!(5)));
        assert_eq!(
            (&object["metadata"]["name"], &object["spec"]["compression"]),
            (&json!("nightly"), &json!("zstd"))
        );
        // What can be compressed in one way alone is not asked for another.
        for (format, compress, asked) in [
            ("qcow2", json!(false), json!("none")),
            ("ova", json!(true), Value::Null),
            ("raw", json!(false), Value::Null),
            ("vmdk", json!("deflate"), json!("deflate")),
        ] {
            let job =
                json!({"vm_path": "web", "output_dir": "s3://b", "format": format, "compress": compress});
            assert_eq!(of(job).unwrap()["spec"]["compression"], asked, "{format} {compress}");
        }
        for (job, part) in [
            (json!({"vm_path": "web", "output_dir": "/backups"}), "metadata.claim"),
            (json!({"vm_path": "web"}), "output_dir"),
            (json!({"output_dir": "s3://b"}), "vm_path"),
            (json!({"vm_path": "a/b/c", "output_dir": "s3://b"}), "b/c"),
            (json!({"vm_path": "web", "output_dir": "s3://b", "provider": "vsphere"}), "vsphere"),
            (json!({"vm_path": "web", "output_dir": "s3://b", "metadata": {"selector": {}}}), "selector"),
        ] {
            let error = of(job.clone()).unwrap_err();
            assert!(format!("{error} {}", error.remedy).contains(part), "{job}: {error} {}", error.remedy);
        }
    }

    #[test]
    fn ids_name_namespace_and_job() {
        assert_eq!(parse_id("shop.nightly.v1", "x").unwrap(), ("shop".into(), "nightly.v1".into()));
        assert_eq!(parse_id("nightly", "x").unwrap(), ("x".into(), "nightly".into()));
        assert_eq!(parse_id("shop/nightly", "x").unwrap(), ("shop".into(), "nightly".into()));
        assert!(parse_id("../x", "y").is_err());
    }

    #[test]
    fn what_goes_on_is_cancelled_and_what_is_cancelled_is_resumed() {
        let job = |phase: &str, suspend: bool, schedule: Option<&str>| json!({"spec": {"suspend": suspend, "schedule": schedule}, "status": {"phase": phase}});
        for (object, cancel, resume) in [
            (job("", false, None), true, false),
            (job("Running", false, None), true, false),
            (job("Succeeded", false, None), false, false),
            (job("Failed", false, None), false, false),
            (job("Failed", false, Some("@daily")), true, false),
            (job("Scheduled", false, Some("@daily")), true, false),
            // the status comes after the wish
            (job("Running", true, None), false, true),
            (job("Suspended", true, None), false, true),
            (job("Suspended", false, None), true, false),
        ] {
            assert_eq!(unsuspendable(&object, true).is_none(), cancel, "{object}");
            assert_eq!(unsuspendable(&object, false).is_none(), resume, "{object}");
        }
    }

    #[test]
    fn a_job_is_shown_with_its_state_in_one_word() {
        let job = |phase: &str| {
            Job::of(&json!({"metadata": {"namespace": "a", "name": "b"}, "status": {"phase": phase}}))
        };
        for (phase, status) in [
            ("", "pending"),
            ("Running", "running"),
            ("Suspended", "cancelled"),
            ("Invalid", "failed"),
            ("Scheduled", "scheduled"),
            ("Succeeded", "completed"),
        ] {
            assert_eq!(job(phase).status, status);
        }
        assert_eq!(job("").id, "a.b");
    }
}
