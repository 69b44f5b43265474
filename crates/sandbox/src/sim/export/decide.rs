//! What an export's status should be.

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::super::json::{
    annotation, condition, list, name, namespace, new_condition, remove, text, time, update_condition,
};

/// How long an export lives when it does not say (`export.go`, 2 h).
const DEFAULT_TTL_SECONDS: i64 = 2 * 3600;

/// What the decision looks at.
pub struct Observation<'a> {
    pub export: &'a Value,
    /// The VM that is exported, or that the snapshot is of.
    pub vm: Option<&'a Value>,
    pub vmi: Option<&'a Value>,
    pub snapshot: Option<&'a Value>,
    /// The `VirtualMachineBackup` that is exported.
    pub backup: Option<&'a Value>,
    /// The claims that the source names, in its order; those that are not there are absent.
    pub claims: &'a [(String, Option<Value>)],
    /// The Secret with the token.
    pub token_secret: &'a str,
    /// It is there and holds a token.
    pub has_token: bool,
    /// `https://host:port` of the proxy, and the certificates to trust.
    pub url: &'a str,
    pub ca: &'a str,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The whole status.
    pub status: Value,
    /// The volumes to serve, by the name they have in the export, with the claim that holds them.
    pub serve: Vec<(String, String)>,
    /// Its time is over.
    pub delete: bool,
}

/// The claims that a source names.
pub fn claims_of(source: &Value, vm: Option<&Value>) -> Vec<String> {
    match text(source, "/kind") {
        "PersistentVolumeClaim" => vec![text(source, "/name").to_owned()],
        _ => list(vm.unwrap_or(&Value::Null), "/spec/template/spec/volumes")
            .iter()
            .filter_map(|volume| {
                let claim = volume.pointer("/persistentVolumeClaim/claimName");
                claim.or_else(|| volume.pointer("/dataVolume/name"))?.as_str().map(str::to_owned)
            })
            .collect(),
    }
}

/// See the module.
pub fn decide(seen: &Observation<'_>, now: Timestamp) -> Decision {
    let export = seen.export;
    let mut status = export.get("status").cloned().unwrap_or_else(|| json!({}));
    let expires = expiry(export);
    status["ttlExpirationTime"] = time(expires).into();
    status["tokenSecretRef"] = seen.token_secret.into();
    status["serviceName"] = format!("virt-export-{}", name(export)).into();
    let source = &export["spec"]["source"];
    let mut conditions = list(&status, "/conditions").to_vec();
    let mut verdict = |phase: &str, ready: (&str, &str, &str), claims: (&str, &str)| {
        update_condition(&mut conditions, new_condition("Ready", ready.0, ready.1, ready.2, now));
        update_condition(&mut conditions, new_condition("PVCReady", claims.0, claims.1, "", now));
        status["phase"] = phase.into();
    };
    let in_use = seen.vmi.is_some_and(|vmi| !matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed"));
    if text(source, "/kind") == "VirtualMachineBackup" {
        return of_backup(seen, status, now, now >= expires);
    }
    let missing = seen.claims.iter().find(|(_, claim)| claim.is_none()).map(|(name, _)| name);
    let mut serve = Vec::new();
    let kind = text(source, "/kind");
    if let Some(missing) = missing {
        let message = format!("PersistentVolumeClaim {}/{missing} not found", namespace(export));
        verdict("Pending", ("False", "Initializing", &message), ("False", "Unknown"));
    } else if kind == "VirtualMachine" && seen.vm.is_none() {
        let message = format!("{kind} {}/{} not found", namespace(export), text(source, "/name"));
        verdict("Pending", ("False", "Initializing", &message), ("False", "Unknown"));
    } else if kind == "VirtualMachineSnapshot"
        && !seen.snapshot.is_some_and(|snapshot| snapshot["status"]["readyToUse"] == true)
    {
        verdict("Pending", ("False", "Initializing", "the snapshot is not ready"), ("False", "Unknown"));
    } else if seen.claims.is_empty() {
        verdict("Skipped", ("False", "VMNoVolumes", "no volumes to export"), ("False", "VMNoVolumes"));
    } else if kind == "VirtualMachine" && in_use {
        let message = format!("Virtual Machine {}/{} is running", namespace(export), text(source, "/name"));
        verdict("Pending", ("False", "InUse", &message), ("False", "InUse"));
    } else if !seen.has_token {
        let message = "the token's secret does not exist";
        verdict("Pending", ("False", "PodPending", message), ("True", "PVCBound"));
    } else {
        verdict("Ready", ("True", "PodReady", ""), ("True", "PVCBound"));
        serve = seen.claims.iter().map(|(claim, _)| (claim.clone(), claim.clone())).collect();
    }
    status["conditions"] = conditions.into();
    if kind != "PersistentVolumeClaim"
        && let Some(vm) = seen.vm
    {
        status["virtualMachineName"] = name(vm).into();
    }
    status["links"] = if serve.is_empty() { Value::Null } else { links(seen, &serve) };
    Decision { status, serve, delete: now >= expires }
}

/// The export of a backup (`backup-source.go`): ready as long as the backup is under way.
fn of_backup(seen: &Observation<'_>, mut status: Value, now: Timestamp, delete: bool) -> Decision {
    let backup = seen.backup.unwrap_or(&Value::Null);
    let volumes = list(backup, "/status/includedVolumes");
    let progress = condition(backup, "/status/conditions", "Progressing");
    let under_way = progress.is_some_and(|one| one["status"] == "True") && !volumes.is_empty();
    let (phase, ready, reason, message) = match (under_way, seen.has_token) {
        (false, _) => ("Pending", "False", "Initializing", "VMBackup is not progressing"),
        (true, false) => ("Pending", "False", "PodPending", "the token's secret does not exist"),
        (true, true) => ("Ready", "True", "PodReady", ""),
    };
    let mut conditions = list(&status, "/conditions").to_vec();
    update_condition(&mut conditions, new_condition("Ready", ready, reason, message, now));
    status["conditions"] = conditions.into();
    status["phase"] = phase.into();
    // The service is there once the backup has a type; before, the controller gives up earlier.
    if text(backup, "/status/type").is_empty() {
        remove(&mut status, &["serviceName"]);
    }
    let names = volumes.iter().map(|volume| text(volume, "/volumeName").to_owned());
    let serve: Vec<(String, String)> =
        if phase == "Ready" { names.map(|name| (name.clone(), name)).collect() } else { Vec::new() };
    status["links"] = if serve.is_empty() { Value::Null } else { backup_links(seen, &serve) };
    Decision { status, serve, delete }
}

fn backup_links(seen: &Observation<'_>, serve: &[(String, String)]) -> Value {
    let side = |base: &str| {
        let backups: Vec<Value> = serve
            .iter()
            .map(|(volume, _)| {
                let endpoint =
                    |kind: &str| json!({"endpoint": kind, "url": format!("{base}/exports/{volume}/{kind}")});
                json!({"name": volume, "endpoints": [endpoint("data"), endpoint("map")]})
            })
            .collect();
        json!({"cert": seen.ca, "backups": backups})
    };
    sides(seen, side)
}

fn expiry(export: &Value) -> Timestamp {
    let created: Timestamp = text(export, "/metadata/creationTimestamp").parse().unwrap_or_default();
    let seconds = duration_seconds(text(export, "/spec/ttlDuration")).unwrap_or(DEFAULT_TTL_SECONDS);
    created.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// A Go duration of hours, minutes and seconds, such as `1h30m0s`.
fn duration_seconds(text: &str) -> Option<i64> {
    let (mut total, mut number) = (0_i64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let factor = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(factor)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then_some(total)
}

/// The links that a client outside the cluster uses; those inside name a Service, which nothing
/// resolves here.
fn links(seen: &Observation<'_>, serve: &[(String, String)]) -> Value {
    let side = |base: &str| {
        let volumes: Vec<Value> = serve
            .iter()
            .map(|(volume, claim)| {
                let object = seen.claims.iter().find(|(name, _)| name == claim);
                let kubevirt = object.and_then(|(_, claim)| claim.as_ref()).is_none_or(is_kubevirt_content);
                let entry = |format: &str, path: &str| {
                    json!({"format": format, "url": format!("{base}/volumes/{volume}/{path}")})
                };
                let formats = if kubevirt {
                    vec![entry("raw", "disk.img"), entry("gzip", "disk.img.gz")]
                } else {
                    vec![entry("dir", "dir"), entry("tar.gz", "disk.tar.gz")]
                };
                json!({"name": volume, "formats": formats})
            })
            .collect();
        json!({"cert": seen.ca, "volumes": volumes})
    };
    sides(seen, side)
}

/// What a function makes of the bases of both sides' URLs.
fn sides(seen: &Observation<'_>, side: impl Fn(&str) -> Value) -> Value {
    let export = seen.export;
    let (ns, export_name) = (namespace(export), name(export));
    let version = match text(export, "/apiVersion") {
        "" => "export.kubevirt.io/v1",
        version => version,
    };
    let base = format!("/api/{version}/namespaces/{ns}/virtualmachineexports/{export_name}");
    json!({
        "internal": side(&format!("https://virt-export-{export_name}.{ns}.svc")),
        "external": side(&format!("{}{base}", seen.url)),
    })
}

/// A block volume, or a file system that CDI marked as holding a disk (`isKubevirtContentType`).
fn is_kubevirt_content(claim: &Value) -> bool {
    let marked = annotation(claim, "cdi.kubevirt.io/storage.contentType");
    text(claim, "/spec/volumeMode") == "Block" || marked.is_some_and(|kind| matches!(kind, "" | "kubevirt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(kind: &str) -> Value {
        json!({"metadata": {"name": "e", "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"source": {"kind": kind, "name": "vm"}, "tokenSecretRef": "e", "ttlDuration": "1h30m"}})
    }

    fn claim(marked: bool) -> Value {
        let annotations = if marked { json!({"cdi.kubevirt.io/storage.contentType": ""}) } else { json!({}) };
        json!({"metadata": {"name": "root", "annotations": annotations}, "spec": {"volumeMode": "Filesystem"}})
    }

    #[test]
    fn phases_follow_the_source() {
        let (vm, running) = (json!({"metadata": {"name": "vm"}}), json!({"status": {"phase": "Running"}}));
        let ended = json!({"status": {"phase": "Succeeded"}});
        let there = [("root".to_owned(), Some(claim(true)))];
        let lost = [("root".to_owned(), None)];
        for (vmi, claims, has_token, phase, reason) in [
            (None, &there[..], true, "Ready", "PodReady"),
            (Some(&ended), &there[..], true, "Ready", "PodReady"),
            (Some(&running), &there[..], true, "Pending", "InUse"),
            (None, &there[..], false, "Pending", "PodPending"),
            (None, &lost[..], true, "Pending", "Initializing"),
            (None, &[][..], true, "Skipped", "VMNoVolumes"),
        ] {
            let export = export("VirtualMachine");
            let seen = Observation {
                export: &export,
                vm: Some(&vm),
                vmi,
                snapshot: None,
                backup: None,
                claims,
                token_secret: "t",
                has_token,
                url: "https://127.0.0.1:1",
                ca: "CA",
            };
            let decision = decide(&seen, "2026-01-01T00:10:00Z".parse().unwrap());
            assert_eq!(decision.status["phase"], phase);
            assert_eq!(decision.status["conditions"][0]["reason"], reason);
            assert_eq!(decision.status["links"].is_object(), phase == "Ready");
            assert!(!decision.delete);
            assert!(decide(&seen, "2026-01-01T01:30:00Z".parse().unwrap()).delete);
        }
    }

    #[test]
    fn a_plain_file_system_offers_only_a_directory() {
        let export = export("PersistentVolumeClaim");
        for (marked, format) in [(true, "raw"), (false, "dir")] {
            let claims = [("root".to_owned(), Some(claim(marked)))];
            let seen = Observation {
                export: &export,
                vm: None,
                vmi: None,
                snapshot: None,
                backup: None,
                claims: &claims,
                token_secret: "t",
                has_token: true,
                url: "https://127.0.0.1:1",
                ca: "CA",
            };
            let status = decide(&seen, Timestamp::UNIX_EPOCH).status;
            assert_eq!(status["links"]["external"]["volumes"][0]["formats"][0]["format"], format);
        }
    }
}
