//! Where the state of a VM, a gate, somebody else or the clock is in the way.

use provider::cluster::Expansion;
use provider::network::Effect;
use provider::snapshot::Snapshot;
use provider::view::export::Export;

use super::*;

const MERGE: &str = "application/merge-patch+json";

impl Cluster {
    /// Where the KubeVirt object is.
    async fn kubevirt(&self) -> String {
        let all = self.send("GET", "/apis/kubevirt.io/v1/kubevirts", "application/json", &json!({})).await;
        let text = |key: &str| all["items"][0]["metadata"][key].as_str().unwrap().to_owned();
        format!("/apis/kubevirt.io/v1/namespaces/{}/kubevirts/{}", text("namespace"), text("name"))
    }

    /// Lets KubeVirt permit the device that these tests ask for.
    pub async fn permit(&self) {
        let device = json!({"pciVendorSelector": "10DE:1EB8", "resourceName": "nvidia.com/T4"});
        let permitted = json!({"permittedHostDevices": {"pciHostDevices": [device]}});
        let path = self.kubevirt().await;
        self.send("PATCH", &path, MERGE, &json!({"spec": {"configuration": permitted}})).await;
    }

    /// Controllers go on with nothing of this kind, or of this name.
    pub fn hold(&self, resource: &str, name: &str) {
        let fault = format!("error:code=500,verb=update+patch,resource={resource}+{resource}/status{name}");
        self.sandbox.api().faults.add(fault.parse().unwrap()).unwrap();
    }

    /// Takes a snapshot of a VM under its own name.
    async fn snapshot(&self, name: &str) -> Snapshot {
        let taken = self.provider.snapshot(&id(name), Some(name), false).await.unwrap();
        self.provider.wait_snapshot(&taken, LONG, &mut |_| ()).await.unwrap()
    }

    /// A VM with a disk of its own, snapshots of which one never gets ready, and names that are taken.
    async fn more(&self) {
        self.provider.create_vm("default", &with_disk("disk"), false).await.unwrap();
        self.provider.wait(&id("disk"), &Goal::Running, LONG, &mut |_| ()).await.unwrap();
        self.provider.create_vm("default", &vm("on-copy", "Halted"), false).await.unwrap();
        self.create(
            "/apis/template.kubevirt.io/v1beta1/namespaces/default/virtualmachinetemplates",
            template("made"),
        )
        .await;
        self.snapshot("on").await;
        for name in ["on", "off"] {
            self.provider.submit_job(&job(&id(name)), false).await.unwrap();
        }
        self.provider.suspend_job("default", "off", true, false).await.unwrap();
        self.hold("virtualmachinesnapshots", ",name=begun");
        self.provider.snapshot(&id("off"), Some("begun"), false).await.unwrap();
    }
}

/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_state_of_a_vm_forbids_is_said_with_what_to_do() {
    let cluster = Cluster::start().await;
    cluster.three_vms().await;
    cluster.more().await;
    let all: Vec<Operation> = operations().into_iter().chain(makings()).collect();
    let act = |name: &str| &all.iter().find(|one| one.name == name).unwrap().act;
    let mut said = Messages::default();
    for (name, vm, kind, wrong) in [
        ("start", "on", Kind::WrongState, "VM is already running"),
        ("stop", "off", Kind::WrongState, "VM is not running"),
        ("restart", "off", Kind::WrongState, "Halted does not support manual restart"),
        ("pause", "off", Kind::WrongState, "the VM is off"),
        ("unpause", "on", Kind::WrongState, "VMI is not paused"),
        ("soft-reboot", "off", Kind::WrongState, "the VM is off"),
        ("reset", "off", Kind::WrongState, "the VM is off"),
        ("pause", "stuck", Kind::WrongState, "its instance is"),
        ("migrate", "off", Kind::WrongState, "the VM is off"),
        ("cancel migration of", "on", Kind::WrongState, "none is under way"),
        ("guest os", "off", Kind::WrongState, "the VM is off"),
        ("console", "off", Kind::WrongState, "the VM is off"),
        ("vnc", "stuck", Kind::WrongState, "its instance is"),
        ("port", "off", Kind::WrongState, "the VM is off"),
        ("screenshot", "off", Kind::WrongState, "the VM is off"),
        ("attach device", "on", Kind::MissingCapability, "permit"),
        ("expand volume", "on", Kind::NotFound, "no such volume; it has root"),
        ("export", "on", Kind::WrongState, "the VM runs"),
        ("restore", "on", Kind::WrongState, "the VM runs"),
        ("clone", "on", Kind::AlreadyExists, "a VM of this name is there"),
        ("make template", "on", Kind::AlreadyExists, "a template of this name is there"),
        ("delete keeping disks", "disk", Kind::WrongState, "its disks can be kept only while it is off"),
        ("restore", "begun", Kind::WrongState, "the snapshot is "),
        ("remove nic", "disk", Kind::NotFound, "its spec names no interface"),
        ("set link", "disk", Kind::NotFound, "its spec names no interface"),
        ("create", "on", Kind::AlreadyExists, "already exists"),
        ("attach volume", "disk", Kind::AlreadyExists, "in the VM already"),
        ("detach volume", "disk", Kind::WrongState, "is not hotpluggable"),
        ("submit job", "on", Kind::AlreadyExists, "already exists"),
        ("resume job", "on", Kind::WrongState, "it is not cancelled"),
        ("cancel job", "off", Kind::WrongState, "it is cancelled already"),
        ("guest users", "off", Kind::WrongState, "the VM is off"),
        ("guest file systems", "off", Kind::WrongState, "the VM is off"),
        ("vnc", "off", Kind::WrongState, "the VM is off"),
    ] {
        let error = act(name)(cluster.provider.clone(), id(vm)).await.expect_err(&format!("{name} {vm}"));
        assert_eq!(error.kind, kind, "{name} {vm}: {error:?}");
        assert!(error.wrong.contains(wrong), "{name} {vm}: {error:?}");
        readable(name, &error);
        // where an instance stands that no node takes is a matter of time
        if vm != "stuck" {
            said.add(&format!("{name} {vm}"), &error);
        }
    }
    said.are_those_that_were_reviewed("state");
    let now = device::Wish { on_next_start: false, ..gpu() };
    let error = cluster.provider.change_device(&id("on"), &now, false).await.unwrap_err();
    assert!(error.wrong.contains("cannot plug host devices"), "{error:?}");
    assert!(error.remedy.contains("--on-next-start"), "{error:?}");
    let spare = json!({"apiVersion": "v1", "kind": "Node", "spec": {"unschedulable": true},
        "metadata": {"name": "spare", "labels": {"kubernetes.io/hostname": "spare"}}});
    cluster.create("/api/v1/nodes", spare).await;
    for (node, kind, wrong) in [
        ("nowhere", Kind::NotFound, "there is no node `nowhere`"),
        ("spare", Kind::WrongState, "node `spare` is cordoned"),
    ] {
        let to = MigrateTo { node: Some(node.into()) };
        let error = cluster.provider.migrate(&id("on"), &to, false).await.unwrap_err();
        assert_eq!((error.kind, error.wrong.as_str()), (kind, wrong));
    }
    let error = cluster.provider.expand_volume(&id("on"), "root", "20Gi", false).await.unwrap_err();
    assert_eq!(
        (error.kind, error.wrong.as_str()),
        (Kind::WrongState, "it is a containerDisk and has no claim")
    );
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_is_off_is_named_before_anything_is_asked_for() {
    let cluster = Cluster::start().await;
    cluster.three_vms().await;
    cluster.provider.order(&id("on"), Order::Stop { grace: Some(0) }, false).await.unwrap();
    cluster.provider.wait(&id("on"), &Goal::Stopped, LONG, &mut |_| ()).await.unwrap();
    cluster.snapshot("on").await;
    let off = json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": [],
        "disabledFeatureGates": ["Snapshot", "Template", "DeclarativeHotplugVolumes"]}}}});
    let path = cluster.kubevirt().await;
    cluster.send("PATCH", &path, MERGE, &off).await;
    let mut said = Messages::default();
    let all = operations();
    for (name, gate) in [
        ("snapshot", "Snapshot"),
        ("restore", "Snapshot"),
        ("clone", "Snapshot"),
        ("clone snapshot", "Snapshot"),
        ("make template", "Template"),
        ("attach volume", "DeclarativeHotplugVolumes"),
        ("detach volume", "DeclarativeHotplugVolumes"),
        ("attach host device", "HostDevices"),
    ] {
        let one = all.iter().find(|one| one.name == name).unwrap();
        let error = (one.act)(cluster.provider.clone(), id("on")).await.unwrap_err();
        assert_eq!(error.kind, Kind::MissingCapability, "{name}: {error:?}");
        assert!(error.remedy.contains(gate) && error.remedy.contains("featureGates"), "{name}: {error:?}");
        readable(name, &error);
        said.add(name, &error);
    }
    said.are_those_that_were_reviewed("gates");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_somebody_was_faster_nothing_is_written_and_that_is_said() {
    let cluster = Cluster::start().await;
    cluster.permit().await;
    cluster.provider.create_vm("default", &with_disk("disk"), false).await.unwrap();
    cluster.provider.wait(&id("disk"), &Goal::Running, LONG, &mut |_| ()).await.unwrap();
    for name in ["off", "nics"] {
        cluster.provider.create_vm("default", &vm(name, "Halted"), false).await.unwrap();
    }
    cluster.snapshot("off").await;
    cluster
        .create(
            "/apis/template.kubevirt.io/v1beta1/namespaces/default/virtualmachinetemplates",
            template("off"),
        )
        .await;
    let all = operations();
    let mut said = Messages::default();
    for (name, vm, fault) in [
        ("add nic", "nics", "patch,resource=virtualmachines.kubevirt.io"),
        ("remove nic", "nics", "patch,resource=virtualmachines.kubevirt.io"),
        ("set link", "nics", "patch,resource=virtualmachines.kubevirt.io"),
        ("attach device", "off", "patch,resource=virtualmachines.kubevirt.io"),
        ("expand volume", "disk", "patch,resource=persistentvolumeclaims"),
        ("delete", "off", "delete,resource=virtualmachines.kubevirt.io"),
        ("delete snapshot", "off", "delete,resource=virtualmachinesnapshots.snapshot.kubevirt.io"),
        ("delete template", "off", "delete,resource=virtualmachinetemplates.template.kubevirt.io"),
    ] {
        let one = all.iter().find(|one| one.name == name).unwrap();
        let fault = format!("error:code=409,times=1,user=admin,verb={fault}");
        cluster.sandbox.api().faults.add(fault.parse().unwrap()).unwrap();
        let error = (one.act)(cluster.provider.clone(), id(vm)).await.unwrap_err();
        cluster.sandbox.api().faults.clear(None);
        assert_eq!(error.kind, Kind::Conflict, "{name}: {error:?}");
        assert!(error.remedy.contains("nothing was written"), "{name}: {error:?}");
        readable(name, &error);
        said.add(name, &error);
    }

    // volumes are looked at again instead: a step says so, and a change is made anew for some time
    cluster.claim().await;
    let p = &cluster.provider;
    let fault = |times: &str| {
        format!("error:code=409{times},user=admin,verb=patch,resource=virtualmachines.kubevirt.io")
    };
    for change in [attach(), detach()] {
        cluster.sandbox.api().faults.add(fault(",times=1").parse().unwrap()).unwrap();
        let held = p.step_volumes(&id("nics"), &change, false).await.unwrap();
        assert_eq!(
            (held.state, held.waits.join("")),
            ("held", "somebody else changed the VM meanwhile".into())
        );
        assert_eq!(p.step_volumes(&id("nics"), &change, false).await.unwrap().state, "written");
    }
    cluster.sandbox.api().faults.add(fault("").parse().unwrap()).unwrap();
    let error = p.change_volumes(&id("nics"), &attach(), LONG, &mut |_| ()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Conflict, "{error:?}");
    said.add("attach volume", &error);
    said.are_those_that_were_reviewed("conflict");
    cluster.sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_that_is_up_says_where_it_stands() {
    let cluster = Cluster::start().await;
    cluster.three_vms().await;
    cluster.provider.create_vm("default", &with_disk("disk"), false).await.unwrap();
    cluster.provider.wait(&id("disk"), &Goal::Running, LONG, &mut |_| ()).await.unwrap();
    cluster.snapshot("off").await;
    let p = &cluster.provider;
    let short = Duration::from_millis(300);
    let quiet = &mut |_: &str| ();
    let mut said = Messages::default();
    let mut late = |what: &str, outcome: Result<(), Error>, stands: &str| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, Kind::Timeout, "{what}: {error:?}");
        assert!(error.wrong.starts_with("not done after 0 s; it stands at: "), "{what}: {error:?}");
        assert!(error.wrong.contains(stands), "{what}: {error:?}");
        readable(what, &error);
        said.add(what, &error);
    };
    late("start", p.wait(&id("stuck"), &Goal::Running, short, quiet).await, "ErrorUnschedulable");
    late("stop", p.wait(&id("on"), &Goal::Stopped, short, quiet).await, "Running");
    late("delete", p.wait(&id("on"), &Goal::Deleted, short, quiet).await, "Running");

    // volumes come to rest, or say which of them does not
    let error = p.change_volumes(&id("on"), &attach(), short, quiet).await.unwrap_err();
    assert_eq!(error.kind, Kind::Timeout, "{error:?}");
    assert!(error.wrong.contains("there is no such claim"), "{error:?}");
    readable("attach volume", &error);

    // nobody works on it, so it goes nowhere
    cluster.hold("virtualmachineinstancemigrations", "");
    let migration = p.migrate(&id("on"), &MigrateTo::default(), false).await.unwrap();
    late("migrate", p.wait_migration(&migration, short, quiet).await.map(drop), "Pending");

    for kind in ["virtualmachinesnapshots", "virtualmachinerestores", "virtualmachineclones"] {
        cluster.hold(kind, "");
    }
    cluster.hold("virtualmachinetemplaterequests", "");
    cluster.hold("virtualmachineexports", "");
    let snapshot = p.snapshot(&id("disk"), Some("late"), false).await.unwrap();
    late("snapshot", p.wait_snapshot(&snapshot, short, quiet).await.map(drop), "Pending");
    let restore = p.restore(&id("off"), "off", false, false).await.unwrap();
    late("restore", p.wait_restore(&restore, short, quiet).await, "not seen by KubeVirt yet");
    let clone = p.clone_vm("default", &Origin::Vm("off".into()), &Copy::named("copy"), false).await.unwrap();
    late("clone", p.wait_clone(&clone, short, quiet).await, "not seen by KubeVirt yet");
    let made = p.make_template(&id("off"), "late", false).await.unwrap();
    late("make template", p.wait_template(&made, short, quiet).await, "not seen by KubeVirt yet");
    let export = p.export(&id("off"), &ExportWish::default(), false).await.unwrap();
    let outcome = p.wait_export(&Export { source: "VM".into(), ..export }, short, quiet).await;
    late("export", outcome.map(drop), "Pending");

    let grown = Expansion {
        namespace: "default".into(),
        claim: "disk-data".into(),
        from_bytes: 0,
        to_bytes: 1 << 60,
    };
    late("expand volume", p.wait_expansion(&grown, short, quiet).await, "waiting for the storage");
    let wish = Wish::Remove { name: "default".into() };
    let change =
        provider::network::Change { patch: Vec::new(), effect: Effect::Now, why: "of a test".into() };
    late("remove nic", p.wait_nic(&id("on"), &wish, &change, short, quiet).await, "waiting for the guest");
    let change = provider::network::Change { effect: Effect::AfterMigration, ..change };
    late(
        "add nic",
        p.wait_nic(&id("on"), &nic("lan"), &change, short, quiet).await,
        "waiting for a migration",
    );
    said.are_those_that_were_reviewed("timeout");
    cluster.sandbox.shutdown().await;
}
