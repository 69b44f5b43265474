//! Every operation where it cannot be done: the object is not there, the caller may not, the VM is in the
//! wrong state, somebody was faster, a gate is off, the time is up. And no write is sent twice, whatever
//! becomes of its answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod once;
mod state;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use ::sandbox::{Options, Sandbox};
use provider::clone::{Origin, Wish as Copy};
use provider::cluster::{Attach, Channel, ExportWish, MigrateTo, Parameters, VolumeChange};
use provider::disposal::Disks;
use provider::jobs::Request;
use provider::network::{Binding, Nic, Wish};
use provider::order::Order;
use provider::select::Selection;
use provider::wait::Goal;
use provider::{Error, Kind, Provider, VmId, device};
use serde_json::{Value, json};

/// What the chart installs for export jobs.
const EXPORT_JOBS: &str = include_str!("../../../../charts/virt-steward/crds/vmexportjobs.yaml");

/// A sandbox with one node, the library as its administrator, and where its audit log is.
struct Cluster {
    sandbox: Sandbox,
    provider: Provider,
    kubeconfig: String,
    audit: PathBuf,
    _folder: tempfile::TempDir,
}

async fn config(kubeconfig: &str) -> kube::Config {
    let file = kube::config::Kubeconfig::from_yaml(kubeconfig).unwrap();
    kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await.unwrap()
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let audit = folder.path().join("audit.jsonl");
        let options = Options { nodes: 1, audit_log: Some(audit.clone()), ..Options::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let kubeconfig = sandbox.kubeconfig();
        let provider = provider::cluster::connect(config(&kubeconfig).await).unwrap();
        let cluster = Self { sandbox, provider, kubeconfig, audit, _folder: folder };
        let definition = serde_saphyr::from_str(EXPORT_JOBS).unwrap();
        cluster.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
        cluster
    }

    /// A request of the administrator in raw JSON.
    async fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Value {
        let client = kube::Client::try_from(config(&self.kubeconfig).await).unwrap();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        client.request(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
    }

    async fn create(&self, path: &str, body: Value) -> Value {
        self.send("POST", path, "application/json", &body).await
    }

    /// The library as an account without any right.
    async fn nobody(&self) -> Provider {
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        self.create(
            accounts,
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}),
        )
        .await;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let token = self.create(&format!("{accounts}/nobody/token"), review).await;
        let anonymous = provider::cluster::connect_without_identity(config(&self.kubeconfig).await).unwrap();
        anonymous.with_bearer(token["status"]["token"].as_str().unwrap()).unwrap()
    }

    /// The claim that [`attach`] plugs, which many may have.
    async fn claim(&self) {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "64Mi"}}}});
        self.create("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    }

    /// VM `off`, that is off, VM `on`, that runs, and VM `stuck`, that no node takes.
    async fn three_vms(&self) {
        for (name, strategy, selector) in [
            ("off", "Halted", json!({})),
            ("on", "Always", json!({})),
            ("stuck", "Always", json!({"no": "where"})),
        ] {
            let mut vm = vm(name, strategy);
            vm["spec"]["template"]["spec"]["nodeSelector"] = selector;
            self.provider.create_vm("default", &vm, false).await.unwrap();
        }
        let minutes = Duration::from_mins(2);
        self.provider.wait(&id("on"), &Goal::Running, minutes, &mut |_| ()).await.unwrap();
        let unscheduled = async {
            while self.provider.describe(&id("stuck")).await.unwrap().summary.status != "ErrorUnschedulable" {
            }
        };
        tokio::time::timeout(minutes, unscheduled).await.unwrap();
    }
}

fn vm(name: &str, strategy: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {"runStrategy": strategy, "template": {"spec": {
            "domain": {"memory": {"guest": "128Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}}]}}}})
}

/// One that runs, with a disk `data` of its own, and without any interface.
fn with_disk(name: &str) -> Value {
    let mut vm = vm(name, "Always");
    let claim = format!("{name}-data");
    vm["spec"]["dataVolumeTemplates"] = json!([{"metadata": {"name": claim}, "spec": {"source": {"blank": {}},
        "storage": {"resources": {"requests": {"storage": "64Mi"}}}}}]);
    vm["spec"]["template"]["spec"] = json!({
        "domain": {"memory": {"guest": "128Mi"}, "devices": {"autoattachPodInterface": false,
            "disks": [{"name": "data", "disk": {"bus": "virtio"}}]}},
        "volumes": [{"name": "data", "dataVolume": {"name": claim}}]});
    vm
}

fn template(name: &str) -> Value {
    json!({"apiVersion": "template.kubevirt.io/v1beta1", "kind": "VirtualMachineTemplate", "metadata": {"name": name},
        "spec": {"virtualMachine": {"metadata": {"name": format!("from-{name}")}, "spec": {"runStrategy": "Halted",
            "template": {"spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}}}}}})
}

fn id(name: &str) -> VmId {
    VmId::new("default", name).unwrap()
}

type Outcome = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Does something to a VM, or to what has its name.
type Act = Box<dyn Fn(Provider, VmId) -> Outcome>;

/// An operation.
struct Operation {
    name: &'static str,
    act: Act,
    /// It asks for a change by one write, once it has looked.
    writes: bool,
}

fn operation<F>(name: &'static str, writes: bool, act: impl Fn(Provider, VmId) -> F + 'static) -> Operation
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    Operation { name, writes, act: Box::new(move |provider, vm| Box::pin(act(provider, vm))) }
}

fn order(name: &'static str, order: Order) -> Operation {
    operation(name, true, move |p, vm| async move { p.order(&vm, order, false).await.map(drop) })
}

fn nic(name: &str) -> Wish {
    let (name, network) = (name.to_owned(), "pod".to_owned());
    Wish::Add(Nic { name, network, binding: Binding::Bridge, mac: None, model: None })
}

fn attach() -> VolumeChange {
    let add = Attach {
        name: "data".into(),
        claim: Some("data".into()),
        data_volume: None,
        bus: None,
        device: None,
        serial: None,
        cache: None,
        read_only: false,
    };
    VolumeChange { add: vec![add], remove: Vec::new() }
}

fn detach() -> VolumeChange {
    VolumeChange { add: Vec::new(), remove: vec!["data".into()] }
}

/// A job that exports a VM, under the VM's name.
fn job(vm: &VmId) -> Request {
    let file = json!({"vm_path": vm.to_string(), "output_dir": "s3://backups/nightly", "name": vm.name()});
    provider::jobs::read(&file).unwrap().remove(0)
}

fn gpu() -> device::Wish {
    let (name, device) = ("gpu1".to_owned(), Some("nvidia.com/T4".to_owned()));
    device::Wish { name, device, sort: device::Sort::Gpu, on_next_start: true }
}

/// Every operation on one object.
fn operations() -> Vec<Operation> {
    vec![
        operation("describe", false, |p, vm| async move { p.describe(&vm).await.map(drop) }),
        order("start", Order::Start { paused: false }),
        order("stop", Order::Stop { grace: None }),
        order("restart", Order::Restart { force: false }),
        order("pause", Order::Pause),
        order("unpause", Order::Unpause),
        order("soft-reboot", Order::SoftReboot),
        order("reset", Order::Reset),
        operation("migrate", true, |p, vm| async move {
            p.migrate(&vm, &MigrateTo::default(), false).await.map(drop)
        }),
        operation("cancel migration of", true, |p, vm| async move {
            p.cancel_migration(&vm, false).await.map(drop)
        }),
        operation("get migration", false, |p, vm| async move { p.migration(&vm).await.map(drop) }),
        operation("end migration", true, |p, vm| async move { p.end_migration(&vm, false).await.map(drop) }),
        operation("delete", true, |p, vm| async move {
            let plan = p.plan_delete(&vm, Disks::WithVm).await?;
            p.delete(&vm, &plan, false).await
        }),
        operation("delete keeping disks", true, |p, vm| async move {
            let plan = p.plan_delete(&vm, Disks::Keep).await?;
            p.delete(&vm, &plan, false).await
        }),
        operation("snapshot", true, |p, vm| async move { p.snapshot(&vm, None, false).await.map(drop) }),
        operation("get snapshot", false, |p, vm| async move {
            p.get_snapshot(vm.namespace(), vm.name()).await.map(drop)
        }),
        operation("delete snapshot", true, |p, vm| async move {
            p.delete_snapshot(vm.namespace(), vm.name(), false).await
        }),
        operation(
            "restore",
            true,
            |p, vm| async move { p.restore(&vm, vm.name(), false, false).await.map(drop) },
        ),
        operation("clone", true, |p, vm| async move {
            let wish = Copy::named(&format!("{}-copy", vm.name()));
            p.clone_vm(vm.namespace(), &Origin::Vm(vm.name().into()), &wish, false).await.map(drop)
        }),
        operation("clone snapshot", true, |p, vm| async move {
            let wish = Copy::named(&format!("{}-copy", vm.name()));
            p.clone_vm(vm.namespace(), &Origin::Snapshot(vm.name().into()), &wish, false).await.map(drop)
        }),
        operation("export", true, |p, vm| async move {
            p.export(&vm, &ExportWish::default(), false).await.map(drop)
        }),
        operation("get export", false, |p, vm| async move { p.get_export(&vm).await.map(drop) }),
        operation("delete export", true, |p, vm| async move { p.delete_export(&vm, false).await }),
        operation("get instance type", false, |p, vm| async move { p.instancetype(&vm).await.map(drop) }),
        operation("get preference", false, |p, vm| async move { p.preference(&vm).await.map(drop) }),
        operation("list nics", false, |p, vm| async move { p.nics(&vm).await.map(drop) }),
        operation(
            "add nic",
            true,
            |p, vm| async move { p.change_nic(&vm, &nic("lan"), false).await.map(drop) },
        ),
        operation("remove nic", true, |p, vm| async move {
            p.change_nic(&vm, &Wish::Remove { name: "default".into() }, false).await.map(drop)
        }),
        operation("set link", true, |p, vm| async move {
            p.change_nic(&vm, &Wish::Link { name: "default".into(), up: false }, false).await.map(drop)
        }),
        operation("attach device", true, |p, vm| async move {
            p.change_device(&vm, &gpu(), false).await.map(drop)
        }),
        operation("attach host device", true, |p, vm| async move {
            let wish = device::Wish { sort: device::Sort::HostDevice, ..gpu() };
            p.change_device(&vm, &wish, false).await.map(drop)
        }),
        operation("list volumes", false, |p, vm| async move { p.volumes(&vm).await.map(drop) }),
        operation("attach volume", true, |p, vm| async move {
            p.step_volumes(&vm, &attach(), false).await.map(drop)
        }),
        operation("detach volume", true, |p, vm| async move {
            p.step_volumes(&vm, &detach(), false).await.map(drop)
        }),
        operation("expand volume", true, |p, vm| async move {
            p.expand_volume(&vm, "data", "20Gi", false).await.map(drop)
        }),
        operation("guest os", false, |p, vm| async move { p.guest_os(&vm).await.map(drop) }),
        operation("guest users", false, |p, vm| async move { p.guest_users(&vm).await.map(drop) }),
        operation(
            "guest file systems",
            false,
            |p, vm| async move { p.guest_file_systems(&vm).await.map(drop) },
        ),
        operation("console", false, |p, vm| async move { p.open(&vm, Channel::Console).await.map(drop) }),
        operation("vnc", false, |p, vm| async move { p.open(&vm, Channel::Vnc).await.map(drop) }),
        operation("port", false, |p, vm| async move { p.open(&vm, Channel::Port(7)).await.map(drop) }),
        operation("screenshot", false, |p, vm| async move { p.screenshot(&vm).await.map(drop) }),
        operation("make template", true, |p, vm| async move {
            p.make_template(&vm, "made", false).await.map(drop)
        }),
        operation("process template", false, |p, vm| async move {
            p.process_template(&vm, &Parameters::new()).await.map(drop)
        }),
        operation("create from template", true, |p, vm| async move {
            p.create_from_template(&vm, &Parameters::new(), false).await.map(drop)
        }),
        operation("delete template", true, |p, vm| async move { p.delete_template(&vm, false).await }),
        operation("get node", false, |p, vm| async move { p.node(vm.name()).await.map(drop) }),
        operation("get job", false, |p, vm| async move { p.job(vm.namespace(), vm.name()).await.map(drop) }),
        operation(
            "job logs",
            false,
            |p, vm| async move { p.job_logs(vm.namespace(), vm.name()).await.map(drop) },
        ),
        operation("cancel job", true, |p, vm| async move {
            p.suspend_job(vm.namespace(), vm.name(), true, false).await.map(drop)
        }),
        operation("resume job", true, |p, vm| async move {
            p.suspend_job(vm.namespace(), vm.name(), false, false).await.map(drop)
        }),
        operation(
            "delete job",
            true,
            |p, vm| async move { p.delete_job(vm.namespace(), vm.name(), false).await },
        ),
    ]
}

/// Operations that make something of a name, which need not be there.
fn makings() -> Vec<Operation> {
    vec![
        operation("create", true, |p, id| async move {
            p.create_vm(id.namespace(), &vm(id.name(), "Halted"), false).await.map(drop)
        }),
        operation("submit job", true, |p, vm| async move { p.submit_job(&job(&vm), false).await.map(drop) }),
    ]
}

/// Operations on all objects of a kind.
fn listings() -> Vec<Operation> {
    vec![
        operation("list", false, |p, _| async move {
            let here = Selection { namespace: Some("default".into()), ..Selection::default() };
            p.list_all(here).await.map(drop)
        }),
        operation("watch", false, |p, _| async move { p.watch(Selection::default()).await.map(drop) }),
        operation("list snapshots", false, |p, _| async move {
            p.snapshots(Some("default"), None).await.map(drop)
        }),
        operation(
            "list migrations",
            false,
            |p, _| async move { p.migrations(Some("default")).await.map(drop) },
        ),
        operation(
            "list templates",
            false,
            |p, _| async move { p.templates(Some("default")).await.map(drop) },
        ),
        operation("list jobs", false, |p, _| async move { p.jobs(Some("default")).await.map(drop) }),
        operation("list nodes", false, |p, _| async move { p.nodes().await.map(drop) }),
        operation("list instance types", false, |p, _| async move {
            p.instancetypes(Some("default")).await.map(drop)
        }),
        operation(
            "list preferences",
            false,
            |p, _| async move { p.preferences(Some("default")).await.map(drop) },
        ),
        operation("usage", false, |p, _| async move { p.usage(None, None, None).await.map(drop) }),
    ]
}

/// What people read, operation by operation. They are kept in `tests/snapshots`, so that a change of them is seen
/// where changes are reviewed.
#[derive(Default)]
struct Messages(String);

impl Messages {
    fn add(&mut self, what: &str, error: &Error) {
        // writing to a String cannot fail
        let _ = write!(self.0, "[{what}]\nerror: {error}\n  try: {}\n\n", error.remedy);
    }

    fn are_those_that_were_reviewed(&self, name: &str) {
        insta::with_settings!({prepend_module_to_snapshot => false, snapshot_path => "../snapshots"}, {
            insta::assert_snapshot!(format!("unhappy__{name}"), self.0);
        });
    }
}

/// What a person reads must say what was being done to which object, and what to do.
fn readable(what: &str, error: &Error) {
    assert!(!error.wrong.is_empty() && !error.remedy.is_empty(), "{what}: {error:?}");
    let starts = error.doing.split(' ').next().unwrap_or_default();
    assert!(starts.ends_with("ing"), "{what}: {}", error.doing);
    let first = error.remedy.chars().next().unwrap_or_default();
    assert!(first.is_lowercase() || first == '`' || first == 'K', "{what}: {}", error.remedy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_and_what_is_not_allowed_is_said_by_every_operation() {
    let cluster = Cluster::start().await;
    cluster.three_vms().await;
    let nobody = cluster.nobody().await;
    let (mut said, mut refused) = (Messages::default(), Messages::default());
    for one in operations() {
        let error = (one.act)(cluster.provider.clone(), id("absent")).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{}: {error:?}", one.name);
        assert!(error.doing.contains("absent"), "{}: {error:?}", one.name);
        readable(one.name, &error);
        said.add(one.name, &error);
        let error = (one.act)(nobody.clone(), id("on")).await.unwrap_err();
        assert_eq!(error.kind, Kind::Forbidden, "{}: {error:?}", one.name);
        assert!(error.wrong.contains("system:serviceaccount:default:nobody"), "{}: {error:?}", one.name);
        readable(one.name, &error);
        refused.add(one.name, &error);
    }
    said.are_those_that_were_reviewed("absent");
    for one in makings().into_iter().chain(listings()) {
        let error = (one.act)(nobody.clone(), id("on")).await.unwrap_err();
        assert_eq!(error.kind, Kind::Forbidden, "{}: {error:?}", one.name);
        assert!(error.wrong.contains("system:serviceaccount:default:nobody"), "{}: {error:?}", one.name);
        readable(one.name, &error);
        refused.add(one.name, &error);
    }
    refused.are_those_that_were_reviewed("forbidden");
    cluster.sandbox.shutdown().await;
}
