//! The pre-flight: gathers what `export::preflight` judges.

use std::path::Path;
use std::process::ExitCode;

use ::export::Error;
use ::export::preflight::{Facts, Finding, Grade, check};
use ::export::run::Target;
use ::export::source::vmexport::served_version;
use anyhow::Result;
use http::Method;
use kubevirt::{KubeVirtView, feature_gates};
use serde_json::{Value, json};

use super::destination::Destination;
use super::subject::{Subject, Vm};
use super::{Args, Output, backup, meter};
use crate::cli::DENIED;
use crate::output::print;
use crate::problem::Problem;
use crate::style::{Style, Tone};
use crate::table;

/// Requests of every export: group, resource, verbs.
const ALWAYS: (&str, &str, &[&str]) = ("", "secrets", &["create", "get"]);
/// Of one through a `VirtualMachineExport`.
const EXPORT: (&str, &str, &[&str]) =
    ("export.kubevirt.io", "virtualmachineexports", &["create", "get", "delete"]);
/// What it needs before `KubeVirt` 1.9.
const GATE: &str = "VMExport";
/// Of one that takes a snapshot first.
const SNAPSHOT: (&str, &str, &[&str]) =
    ("snapshot.kubevirt.io", "virtualmachinesnapshots", &["create", "get", "delete"]);
/// Of one through a backup.
const BACKUP: (&str, &str, &[&str]) =
    ("backup.kubevirt.io", "virtualmachinebackups", &["create", "get", "delete"]);
/// Of one that builds on others.
const TRACKER: (&str, &str, &[&str]) =
    ("backup.kubevirt.io", "virtualmachinebackuptrackers", &["create", "get"]);
/// Of one that makes the scratch claim.
const SCRATCH: (&str, &str, &[&str]) = ("", "persistentvolumeclaims", &["create"]);

/// Gathers and judges.
pub async fn look(
    args: &Args,
    subject: &Subject,
    place: &Destination,
    target: Target,
) -> Result<Vec<Finding>> {
    let mut facts = Facts {
        pipe: args.pipe(),
        snapshot: args.snapshot.is_some(),
        snapshot_first: !args.no_snapshot,
        ttl_seconds: super::hours(args.ttl).as_secs(),
        resume: args.resume,
        force: args.force,
        ..Facts::default()
    };
    let (name, volumes) = match subject {
        Subject::File(job) => {
            facts.source.clone_from(&job.source);
            facts.disks =
                job.disks.iter().map(|disk| (disk.volume.name.clone(), Some(disk.source.size()))).collect();
            (job.name.clone(), vec!["disk".to_owned()])
        }
        Subject::Vm(vm) => {
            facts.backup = backup::unfit(args, vm).is_none();
            of_cluster(args, vm, &mut facts).await;
            let names = vm.volumes.iter().map(|volume| volume.name.clone()).collect();
            (args.name.clone().unwrap_or_else(|| vm.name.clone()), names)
        }
    };
    facts.twice = match place {
        Destination::Directory(_) => false,
        Destination::Store(_) => target == Target::Ova && volumes.len() > 1,
        Destination::Pipe | Destination::Web(_) => matches!(target, Target::Ova | Target::Qcow2),
    };
    let files = results(&name, &volumes, target);
    if let Destination::Directory(directory) = place {
        if args.mkdir && !directory.exists() {
            // It is made when the export begins, where there is room now.
            facts.free = directory.ancestors().find(|above| above.exists()).and_then(free);
        } else {
            of_directory(directory, &files, volumes.len(), target, &mut facts)?;
        }
    } else {
        // Where a run goes on, what it finished before is no obstacle.
        match place.existing(&files).await {
            Ok(existing) if !args.resume => facts.existing = existing,
            Ok(_) => {}
            // Keys that may write alone are enough for an export that looks at nothing before.
            Err(Error::Answer { .. }) if args.force || args.resume => facts.unseen = true,
            Err(error) => facts.unreachable = Some(error.to_string()),
        }
    }
    Ok(check(&facts, target))
}

/// The names of what comes out, but for small files.
fn results(name: &str, volumes: &[String], target: Target) -> Vec<String> {
    let mut files: Vec<String> = match target {
        Target::Ova => vec![format!("{name}.ova")],
        _ => volumes.iter().map(|volume| format!("{name}-{volume}.{}", target.extension())).collect(),
    };
    if target == Target::Ovf {
        files.push(format!("{name}.ovf"));
    }
    files
}

async fn of_cluster(args: &Args, vm: &Vm, facts: &mut Facts) {
    facts.source = vm.describe();
    facts.running = vm.running().map(str::to_owned);
    if vm.is_claim {
        facts.used_by = users(vm).await;
    }
    for volume in &vm.volumes {
        let path = format!("/api/v1/namespaces/{}/persistentvolumeclaims/{}", vm.namespace, volume.claim);
        let claim = vm.cluster.get(&path).await.ok();
        facts.disks.push((volume.name.clone(), claim.as_ref().and_then(size_of)));
    }
    let listed = vm.manifest["spec"]["template"]["spec"]["volumes"].as_array().into_iter().flatten();
    facts.left_out = listed
        .filter(|volume| volume["persistentVolumeClaim"].is_null() && volume["dataVolume"].is_null())
        .filter_map(|volume| volume["name"].as_str().map(str::to_owned))
        .collect();
    // A backup's disks are served by an export that KubeVirt makes itself.
    facts.api = Some(export_api(vm).await);
    let mut requests = vec![ALWAYS];
    if facts.backup {
        requests.push(BACKUP);
        requests.extend(args.incremental.then_some(TRACKER));
        requests.extend(args.scratch.is_none().then_some(SCRATCH));
    } else {
        requests.push(EXPORT);
        let snapshot = facts.running.is_some() && facts.snapshot_first && !facts.snapshot;
        requests.extend(snapshot.then_some(SNAPSHOT));
    }
    let requests = requests
        .iter()
        .flat_map(|(group, resource, verbs)| verbs.iter().map(move |verb| (group, resource, verb)));
    for (group, resource, verb) in requests {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": vm.namespace, "verb": verb, "group": group,
                "resource": resource}}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let asked = vm.cluster.send(Method::POST, path, "application/json", &review).await;
        // A server that cannot be asked will tell when the request is made.
        if asked.is_ok_and(|reply| reply.body["status"]["allowed"] == false) {
            facts.forbidden.push(format!("{verb} {resource}"));
        }
    }
}

/// The version of `export.kubevirt.io` to speak, or why none can be spoken.
async fn export_api(vm: &Vm) -> Result<String, String> {
    let version = served_version(&vm.cluster.client()).await.map_err(|error| error.to_string())?;
    let all = vm.cluster.list("/apis/kubevirt.io/v1/kubevirts").await.ok().flatten().unwrap_or_default();
    // Who may not read the object is told when the export is made.
    let off = |kubevirt: &Value| !feature_gates::is_enabled(KubeVirtView(kubevirt), GATE);
    if all.first().is_some_and(off) {
        return Err(format!(
            "the gate {GATE} is off: add it to spec.configuration.developerConfiguration.featureGates of the \
             KubeVirt object (KubeVirt 1.9 needs none)"
        ));
    }
    Ok(version.to_owned())
}

/// Pods that have a claim; nobody is named when pods may not be listed.
async fn users(vm: &Vm) -> Vec<String> {
    let path = format!("/api/v1/namespaces/{}/pods", vm.namespace);
    let pods = vm.cluster.list(&path).await.ok().flatten().unwrap_or_default();
    let uses = |pod: &&Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        !ended && volumes.into_iter().any(|one| one["persistentVolumeClaim"]["claimName"] == vm.name.as_str())
    };
    pods.iter().filter(uses).filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// A claim's capacity, or what it asks for.
pub fn size_of(claim: &Value) -> Option<u64> {
    let stated = &claim["status"]["capacity"]["storage"];
    let stated = if stated.is_null() { &claim["spec"]["resources"]["requests"]["storage"] } else { stated };
    ::export::machine::bytes(stated.as_str()?)
}

/// Bytes that are free on the file system of a directory.
fn free(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

fn of_directory(
    directory: &Path,
    files: &[String],
    disks: usize,
    target: Target,
    facts: &mut Facts,
) -> Result<()> {
    let doing = || format!("looking at the destination `{}`", directory.display());
    let metadata = std::fs::metadata(directory)
        .map_err(|error| Problem::new(doing(), error, "give a directory that exists"))?;
    if !metadata.is_dir() {
        return Err(Problem::new(doing(), "it is no directory", "give a directory that exists").into());
    }
    facts.free = free(directory);
    for file in files {
        let journals = match target {
            Target::Ova => (1..=disks).map(|number| format!("{file}.{number}.journal")).collect(),
            _ => vec![format!("{file}.journal")],
        };
        let left: Vec<String> =
            journals.into_iter().filter(|journal| directory.join(journal).exists()).collect();
        // A disk that an earlier run finished has its name, and no journal.
        if directory.join(file).exists() && left.is_empty() {
            facts.existing.push(file.clone());
        }
        facts.journals.extend(left);
    }
    Ok(())
}

/// Prints the findings; exit status 2 when one of them blocks.
pub fn show(args: &Args, findings: &[Finding]) -> Result<ExitCode> {
    if args.o == Output::Json {
        print(&(serde_json::to_string_pretty(findings)? + "\n"))?;
    } else {
        let style = Style::of_stdout();
        let mut rows = vec![vec!["CHECK".into(), "RESULT".into(), "DETAIL".into()]];
        for finding in findings {
            let (tone, word) = match finding.grade {
                Grade::Ok => (Tone::Good, "ok"),
                Grade::Warning => (Tone::Caution, "warning"),
                Grade::Blocked => (Tone::Bad, "blocked"),
            };
            rows.push(vec![finding.check.into(), style.paint(tone, word), finding.detail.clone()]);
        }
        print(&table::render(&rows))?;
    }
    let blocked = findings.iter().any(|finding| finding.grade == Grade::Blocked);
    Ok(if blocked { ExitCode::from(DENIED) } else { ExitCode::SUCCESS })
}

/// Why the export must not begin; says it, too.
pub fn refuse(args: &Args, findings: &[Finding]) -> Option<String> {
    for finding in findings {
        match finding.grade {
            Grade::Blocked => eprintln!("error: {}: {}", finding.check, finding.detail),
            Grade::Warning if args.o == Output::Json => {
                let message = format!("{}: {}", finding.check, finding.detail);
                meter::line(args.pipe(), &json!({"event": "warning", "message": message}).to_string());
            }
            Grade::Warning if !args.quiet => eprintln!("warning: {}: {}", finding.check, finding.detail),
            _ => {}
        }
    }
    let blocked = findings.iter().filter(|finding| finding.grade == Grade::Blocked);
    let blocked: Vec<String> =
        blocked.map(|finding| format!("{}: {}", finding.check, finding.detail)).collect();
    (!blocked.is_empty()).then(|| blocked.join("; "))
}
