//! The Job that exports one VM.

use serde_json::{Value, json};

use super::spec::{Running, Spec};
use super::{ANNOTATION_VM, GROUP, LABEL_JOB, LABEL_RUN, VERSION};
use crate::sums::{hex, sha256};

/// Where a claim is mounted.
pub const MOUNT: &str = "/destination";
/// A Job and its pods stay for so long after their end, for whoever looks at their logs.
const TTL_SECONDS: u32 = 3 * 86_400;

/// What pods need to be told besides the spec.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// Of this very program.
    pub name: String,
    /// `IfNotPresent`, `Always` or `Never`.
    pub pull_policy: String,
}

/// Names of the Job of a VM in a run: short enough for a label, and the same for the same three.
pub fn name(job: &str, run: &str, vm: &str) -> String {
    let digest = hex(&sha256(format!("{job}/{run}/{vm}").as_bytes()));
    let start: String = vm.chars().take(40).collect();
    format!("export-{}-{}", start.trim_end_matches(['-', '.']), digest.get(..10).unwrap_or_default())
}

/// Where the results of a VM in a run go.
pub fn output(spec: &Spec, run: &str, vm: &str) -> String {
    match (&spec.destination.url, &spec.destination.claim) {
        (Some(url), _) => {
            let (path, query) = url.split_once('?').map_or((url.as_str(), ""), |(path, query)| (path, query));
            let mark = if query.is_empty() { "" } else { "?" };
            format!("{}/{vm}/{run}{mark}{query}", path.trim_end_matches('/'))
        }
        (None, Some(claim)) => {
            let path = claim.path.trim_matches('/');
            let slash = if path.is_empty() { "" } else { "/" };
            format!("{MOUNT}{slash}{path}/{vm}/{run}")
        }
        (None, None) => String::new(),
    }
}

/// What the pod runs.
fn arguments(spec: &Spec, job: &str, namespace: &str, run: &str, vm: &str) -> Vec<String> {
    let mut out: Vec<String> = ["export", "--vm"].map(str::to_owned).into();
    let mut add = |words: &[&str]| out.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[&format!("{namespace}/{vm}"), "--format", spec.format.name(), "--output", &output(spec, run, vm)]);
    add(&["--name", vm, "--resume", "--mkdir", "--report", "json", "--job", job]);
    if let Some(compression) = spec.compression {
        add(&["--compress", compression.name()]);
    }
    if let Some(level) = spec.level {
        add(&["--level", &level.to_string()]);
    }
    if let Some(snapshot) = &spec.source.snapshot {
        add(&["--snapshot", snapshot]);
    } else if spec.running == Running::Fail {
        add(&["--no-snapshot"]);
    }
    if let Some(incremental) = &spec.incremental {
        add(&["--incremental", "--full-every", &incremental.full_every.to_string()]);
        if let Some(claim) = &incremental.scratch_claim {
            add(&["--scratch", claim]);
        }
    }
    for disk in &spec.source.disks {
        add(&["--disk", disk]);
    }
    if spec.verify {
        add(&["--verify"]);
    }
    if let Some(rate) = spec.limit_rate_mib {
        add(&["--limit-rate", &rate.to_string()]);
    }
    if let Some(retention) = spec.retention {
        add(&["--keep-last", &retention.keep_last.to_string()]);
    }
    out
}

/// The Job; `object` is the `VMExportJob` that owns it.
pub fn manifest(object: &Value, spec: &Spec, run: &str, vm: &str, image: &Image) -> Value {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (owner, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let labels = json!({LABEL_JOB: label(owner), LABEL_RUN: run,
        "app.kubernetes.io/managed-by": "virt-steward", "app.kubernetes.io/component": "export"});
    let mut container = json!({
        "name": "export",
        "image": image.name,
        "imagePullPolicy": image.pull_policy,
        "args": arguments(spec, owner, namespace, run, vm),
        "resources": {"requests": {"cpu": "500m", "memory": "192Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut pod = json!({
        "serviceAccountName": spec.service_account_name,
        "automountServiceAccountToken": true,
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"}},
    });
    if let Some(secret) = &spec.destination.secret_ref {
        container["envFrom"] = json!([{"secretRef": {"name": secret.name}}]);
    }
    if let Some(claim) = &spec.destination.claim {
        container["volumeMounts"] = json!([{"name": "destination", "mountPath": MOUNT}]);
        pod["volumes"] = json!([{"name": "destination", "persistentVolumeClaim": {"claimName": claim.name}}]);
    }
    pod["containers"] = json!([container]);
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name(owner, run, vm), "namespace": namespace, "labels": labels,
            "annotations": {ANNOTATION_VM: vm},
            "ownerReferences": [{"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "VMExportJob",
                "name": owner, "uid": text("/metadata/uid"), "controller": true,
                "blockOwnerDeletion": true}],
        },
        "spec": {
            "backoffLimit": spec.retries,
            "ttlSecondsAfterFinished": TTL_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    })
}

/// Values of labels have at most 63 characters; names may have more.
pub fn label(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    let digest = hex(&sha256(name.as_bytes()));
    let start: String = name.chars().take(52).collect();
    format!("{}-{}", start.trim_end_matches(['-', '.']), digest.get(..10).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    fn spec(destination: &Value) -> Spec {
        Spec::read(&json!({"spec": {"source": {"virtualMachine": "web"}, "destination": destination,
            "retention": {"keepLast": 3}, "compression": "zstd", "incremental": {"fullEvery": 5}}}))
        .unwrap()
    }

    #[test]
    fn results_of_a_run_go_below_the_vm_and_the_run() {
        for (destination, expected) in [
            (json!({"url": "s3://b/nightly/"}), "s3://b/nightly/web/r1"),
            (json!({"url": "az://c?endpoint=https://x"}), "az://c/web/r1?endpoint=https://x"),
            (json!({"claim": {"name": "backups"}}), "/destination/web/r1"),
            (json!({"claim": {"name": "backups", "path": "/a/b/"}}), "/destination/a/b/web/r1"),
        ] {
            let spec: Spec = serde_json::from_value(
                json!({"source": {"virtualMachine": "web"}, "destination": destination}),
            )
            .unwrap();
            assert_eq!(output(&spec, "r1", "web"), expected);
        }
    }

    #[test]
    fn a_job_runs_the_export_of_one_vm_and_is_owned() {
        let object = json!({"metadata": {"name": "nightly", "namespace": "shop", "uid": "u"}});
        let image = Image { name: "r.example/virt-steward:1".into(), pull_policy: "IfNotPresent".into() };
        let spec = spec(&json!({"claim": {"name": "backups"}}));
        let job = manifest(&object, &spec, "20260101-020000", "web", &image);
        let container = &job["spec"]["template"]["spec"]["containers"][0];
        let words: Vec<&str> =
            container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(
            words.join(" "),
            "export --vm shop/web --format qcow2 --output /destination/web/20260101-020000 --name web --resume \
             --mkdir --report json --job nightly --compress zstd --incremental --full-every 5 --keep-last 3"
        );
        assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(container["volumeMounts"][0]["mountPath"], MOUNT);
        assert!(job["metadata"]["name"].as_str().unwrap().len() <= 63);
        assert!(container.get("envFrom").is_none());
        assert_ne!(name("a", "r", "v"), name("b", "r", "v"));
        assert!(label(&"x".repeat(200)).len() <= 63);
    }
}
