//! What is exported: a VM of the cluster with its volumes, or a file of this machine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::export::lineage::Lineage;
use ::export::machine::{VmVolume, volumes};
use ::export::run::{ExportDisk, Job};
use ::export::source::backup::Backup;
use ::export::source::http::HttpSource;
use ::export::source::snapshot::Snapshot;
use ::export::source::vmexport::{Setup, Subject as Exported, VmExport};
use ::export::source::{FileSource, Source};
use anyhow::Result;
use serde_json::Value;

use super::destination::Destination;
use super::{Args, backup};
use crate::cluster::Cluster;
use crate::problem::Problem;

/// What was found.
pub enum Subject {
    Vm(Box<Vm>),
    File(Box<Job>),
}

/// A VM of the cluster.
pub struct Vm {
    pub cluster: Cluster,
    pub namespace: String,
    pub name: String,
    pub manifest: Value,
    /// With what its instance type and preference give; null: it has none, or nobody could tell.
    pub expanded: Value,
    pub vmi: Option<Value>,
    /// The volumes to export.
    pub volumes: Vec<VmVolume>,
    /// It is no VM but a claim of that name.
    pub is_claim: bool,
}

impl Vm {
    pub fn describe(&self) -> String {
        let kind = if self.is_claim { "PersistentVolumeClaim" } else { "VirtualMachine" };
        format!("{kind} {}/{}", self.namespace, self.name)
    }

    /// The phase of the guest, when there is one.
    pub fn running(&self) -> Option<&str> {
        let phase = self.vmi.as_ref()?["status"]["phase"].as_str().unwrap_or("Pending");
        (!matches!(phase, "Succeeded" | "Failed")).then_some(phase)
    }
}

/// What is ready to be read.
pub struct Opened {
    pub job: Job,
    pub export: Option<Arc<VmExport>>,
    /// Taken for this export.
    pub snapshot: Option<Snapshot>,
    /// Begun for this export.
    pub backup: Option<Arc<Backup>>,
}

impl Opened {
    fn file(job: Job) -> Self {
        Self { job, export: None, snapshot: None, backup: None }
    }
}

/// Finds what the arguments name.
pub async fn find(args: &Args) -> Result<Subject> {
    if let Some(path) = &args.file {
        let doing = || format!("opening `{}`", path.display());
        let source = FileSource::open(path)
            .map_err(|error| Problem::new(doing(), error, "give a raw file or a block device"))?;
        let stem = path.file_stem().map_or("disk".into(), |stem| stem.to_string_lossy().into_owned());
        let volume = VmVolume::plain("disk");
        let disks = vec![ExportDisk { volume, source: Arc::new(source), base: None }];
        let name = args.name.clone().unwrap_or(stem);
        let (source, lineage) = (format!("file {}", path.display()), Lineage::default());
        let (vm, expanded) = (Value::Null, Value::Null);
        return Ok(Subject::File(Box::new(Job { name, source, vm, expanded, vmi: None, disks, lineage })));
    }
    let Some(given) = args.vm_name().or(args.pvc.as_deref()) else {
        let remedy = "name a VM, a claim with --pvc, or a file with --file";
        return Err(Problem::new("choosing what to export", "nothing is named", remedy).into());
    };
    let cluster = Cluster::connect(args.kubeconfig.as_deref(), args.context.clone()).await?;
    let (namespace, name) = match given.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => (
            args.namespace.clone().unwrap_or_else(|| cluster.default_namespace().to_owned()),
            given.to_owned(),
        ),
    };
    let plain =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    let kind = if args.pvc.is_some() { "PersistentVolumeClaim" } else { "VirtualMachine" };
    let doing = || format!("reading {kind} {namespace}/{name}");
    if !plain(&namespace) || !plain(&name) {
        return Err(Problem::new(doing(), "this is no name", "give NAME or NAMESPACE/NAME").into());
    }
    if args.pvc.is_some() {
        let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
        let remedy = "check the name and the namespace: `kubectl get pvc -A`";
        cluster.get(&path).await.map_err(|error| Problem::new(doing(), error, remedy))?;
        let volumes = vec![VmVolume::of_claim(&name)];
        let (manifest, expanded) = (Value::Null, Value::Null);
        let vm = Vm { cluster, namespace, name, manifest, expanded, vmi: None, volumes, is_claim: true };
        return Ok(Subject::Vm(Box::new(vm)));
    }
    let path = |plural: &str| format!("/apis/kubevirt.io/v1/namespaces/{namespace}/{plural}/{name}");
    let remedy = "check the name and the namespace: `kubectl get vms -A`";
    let vm =
        cluster.get(&path("virtualmachines")).await.map_err(|error| Problem::new(doing(), error, remedy))?;
    let vmi = cluster.get(&path("virtualmachineinstances")).await.ok();
    let matched = !vm["spec"]["instancetype"].is_null() || !vm["spec"]["preference"].is_null();
    let expanded = if matched { expand(&cluster, &namespace, &name).await } else { Value::Null };
    let described = if expanded.is_null() { &vm } else { &expanded };
    let mut volumes = volumes(described, !args.disk.is_empty());
    if !args.disk.is_empty() {
        let known: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        if let Some(unknown) = args.disk.iter().find(|name| !known.contains(name.as_str())) {
            let names: Vec<&str> = known.into_iter().collect();
            let wrong = format!("it has no volume `{unknown}` on a claim; it has {}", names.join(", "));
            return Err(Problem::new(doing(), wrong, "name one of these with --disk").into());
        }
        volumes.retain(|volume| args.disk.contains(&volume.name));
    }
    let vm = Vm { cluster, namespace, name, manifest: vm, expanded, vmi, volumes, is_claim: false };
    Ok(Subject::Vm(Box::new(vm)))
}

/// The VM as its instance type and preference make it; null where that may not be asked, or fails.
async fn expand(cluster: &Cluster, namespace: &str, name: &str) -> Value {
    let group = "/apis/subresources.kubevirt.io/v1";
    let path = format!("{group}/namespaces/{namespace}/virtualmachines/{name}/expand-spec");
    cluster.get(&path).await.unwrap_or_default()
}

/// Makes what can be read: for a VM, the export in the cluster.
pub async fn open(args: &Args, subject: Subject, destination: &Destination) -> Result<Opened> {
    let vm = match subject {
        Subject::File(job) => return Ok(Opened::file(*job)),
        Subject::Vm(vm) => vm,
    };
    let mut lineage = Lineage::default();
    match backup::unfit(args, &vm) {
        None => return backup::open(args, &vm, destination).await,
        Some(why) if args.incremental => {
            eprintln!("everything is exported: {why}");
            lineage.full_because = Some(why);
        }
        Some(_) => {}
    }
    let doing = || format!("exporting {}", vm.describe());
    let remedy = "see `kubectl describe vmexport` in the namespace of the VM";
    let failed = |error: ::export::Error| Problem::new(doing(), error, remedy);
    let taken = snapshot_first(args, &vm).await.map_err(failed)?;
    let snapshot = args.snapshot.clone().or_else(|| taken.as_ref().map(|taken| taken.name().to_owned()));
    let subject = match &snapshot {
        _ if vm.is_claim => Exported::Claim(vm.name.clone()),
        Some(snapshot) => Exported::Snapshot(snapshot.clone()),
        None => Exported::VirtualMachine(vm.name.clone()),
    };
    let setup = Setup {
        namespace: vm.namespace.clone(),
        name: export_name(&vm.name, if vm.is_claim { Some("claim/") } else { snapshot.as_deref() }),
        subject,
        ttl: super::hours(args.ttl),
        ready_within: Duration::from_secs(args.timeout),
        inside: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
    };
    let export = Arc::new(VmExport::start(vm.cluster.client(), setup).await.map_err(failed)?);
    let offered = export.volumes().await.map_err(failed)?;
    let mut disks = Vec::new();
    for volume in &vm.volumes {
        // A snapshot is restored into claims of other names, which end in the claim's own.
        let found = offered
            .iter()
            .find(|offer| offer.name == volume.claim || offer.name.ends_with(&format!("-{}", volume.claim)));
        let Some(found) = found else {
            let wrong = format!("the export does not offer its volume {} ({})", volume.name, volume.claim);
            return Err(Problem::new(doing(), wrong, "leave it out by naming the others with --disk").into());
        };
        if found.url.is_none() {
            let wrong = format!("its volume {} is offered only as an archive", volume.name);
            return Err(Problem::new(doing(), wrong, "leave it out by naming the others with --disk").into());
        }
        let what = format!("volume {} of {}", volume.name, vm.describe());
        let source = HttpSource::open(&what, &found.name, export.clone()).await.map_err(failed)?;
        let source: Arc<dyn Source> = Arc::new(source);
        disks.push(ExportDisk { volume: volume.clone(), source, base: None });
    }
    let source = match &snapshot {
        Some(snapshot) => format!("{} snapshot {snapshot}", vm.describe()),
        None => vm.describe(),
    };
    let name = args.name.clone().unwrap_or_else(|| vm.name.clone());
    let (manifest, expanded, vmi) = (vm.manifest.clone(), vm.expanded.clone(), vm.vmi.clone());
    let job = Job { name, source, vm: manifest, expanded, vmi, disks, lineage };
    Ok(Opened { job, export: Some(export), snapshot: taken, backup: None })
}

/// Takes a snapshot of a VM that runs, unless one is given. A resumed run uses that of the run before: it is
/// what the journal is about.
async fn snapshot_first(args: &Args, vm: &Vm) -> ::export::Result<Option<Snapshot>> {
    if vm.running().is_none() || args.snapshot.is_some() || args.no_snapshot {
        return Ok(None);
    }
    let within = Duration::from_secs(args.timeout);
    let name = export_name(&vm.name, Some("running"));
    let of = (vm.namespace.as_str(), vm.name.as_str());
    let taken = Snapshot::take(vm.cluster.client(), of, &name, args.resume, within).await?;
    for indication in &taken.indications {
        eprintln!("warning: the snapshot says: {indication}");
    }
    Ok(Some(taken))
}

/// The same for the same source, so that a resumed run finds the export of the one before. Names of
/// services have at most 63 characters, and `virt-export-` comes in front of this one.
pub fn export_name(vm: &str, snapshot: Option<&str>) -> String {
    let whole = format!("{vm}/{}", snapshot.unwrap_or_default());
    let digest = ::export::sums::hex(&::export::sums::sha256(whole.as_bytes()));
    let short: String = vm.chars().take(30).collect();
    format!("steward-{}-{}", short.trim_end_matches(['-', '.']), digest.get(..8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::export_name;

    #[test]
    fn names_are_stable_short_and_different() {
        let long = "a".repeat(63);
        assert_eq!(export_name("web", None), export_name("web", None));
        assert_ne!(export_name("web", None), export_name("web", Some("nightly")));
        assert_ne!(export_name(&long, None), export_name(&long[1..], None));
        assert!(export_name(&long, None).len() + "virt-export-".len() <= 63);
    }
}
