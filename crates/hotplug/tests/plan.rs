//! The next step of a wish for volumes.
#![allow(clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

mod common;

use std::collections::BTreeMap;

use common::{NOW, Use, pod, ready, spec_volume, status, vmi};
use hotplug::plan::{
    Addition, Bus, Circumstances, Claim, DiskKind, Hold, PlanError, Seen, Source, Step, Wish, changes, next,
};
use hotplug::view::{AttachmentPod, Instance};
use serde_json::{Value, json};

fn vm(volumes: &[&str]) -> Value {
    let mut disks = vec![json!({"name": "root", "disk": {"bus": "virtio"}})];
    disks.extend(volumes.iter().map(|name| json!({"name": name, "disk": {"bus": "scsi"}})));
    let mut listed = vec![json!({"name": "root", "containerDisk": {"image": "x"}})];
    listed.extend(volumes.iter().map(|name| spec_volume(name)));
    json!({
        "metadata": {"name": "vm", "namespace": "ns", "resourceVersion": "7"},
        "spec": {"template": {"spec": {"domain": {"devices": {"disks": disks}}, "volumes": listed}}},
    })
}

fn addition(name: &str) -> Addition {
    Addition { source: Source::Claim(format!("pvc-{name}")), ..Addition::claim(name) }
}

fn bound() -> Claim {
    Claim { phase: "Bound".into(), access_modes: vec!["ReadWriteOnce".into()], ..Claim::default() }
}

struct Case {
    vm: Value,
    vmi: Value,
    pods: Vec<Value>,
    claims: BTreeMap<String, Claim>,
    around: Circumstances,
    wish: Wish,
}

impl Case {
    /// `a` is attached and settled; `b` and `c` are wished for.
    fn new() -> Self {
        Self {
            vm: vm(&["a"]),
            vmi: vmi(&["a"]),
            pods: vec![pod("old", &[("a", Use::Device)])],
            claims: ["pvc-b", "pvc-c"].into_iter().map(|name| (name.to_owned(), bound())).collect(),
            around: Circumstances::default(),
            wish: Wish { add: vec![addition("b"), addition("c")], remove: vec![], since: NOW, limit: 60 },
        }
    }

    fn at(&self, now: i64) -> Step {
        let seen = Seen {
            vm: &self.vm,
            instance: (!self.vmi.is_null()).then(|| Instance::read(&self.vmi)),
            pods: self.pods.iter().filter_map(AttachmentPod::read).collect(),
            claims: self.claims.clone(),
            circumstances: self.around.clone(),
        };
        next(&self.wish, &seen, now).expect("a step")
    }

    fn step(&self) -> Step {
        self.at(NOW)
    }
}

fn applied(vm: &Value, patch: &[Value]) -> Value {
    let mut vm = vm.clone();
    for operation in patch {
        let path = operation["path"].as_str().expect("a path");
        match operation["op"].as_str() {
            Some("test") => assert_eq!(vm.pointer(path), Some(&operation["value"]), "{path}"),
            Some("add") => *vm.pointer_mut(path).expect("there") = operation["value"].clone(),
            other => panic!("unexpected {other:?}"),
        }
    }
    vm
}

fn names(vm: &Value, path: &str) -> Vec<String> {
    vm.pointer(path).and_then(Value::as_array).map_or_else(Vec::new, |list| {
        list.iter().filter_map(|entry| Some(entry["name"].as_str()?.to_owned())).collect()
    })
}

const VOLUMES: &str = "/spec/template/spec/volumes";
const DISKS: &str = "/spec/template/spec/domain/devices/disks";

#[test]
fn all_additions_go_in_one_patch() {
    let case = Case::new();
    let Step::Patch { patch, adds, removes } = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!((adds, removes), (vec!["b".to_owned(), "c".into()], vec![]));
    assert_eq!(patch.iter().filter(|operation| operation["op"] == "test").count(), 2);
    let after = applied(&case.vm, &patch);
    assert_eq!(names(&after, VOLUMES), ["root", "a", "b", "c"]);
    assert_eq!(names(&after, DISKS), ["root", "a", "b", "c"]);
}

#[test]
fn removals_go_first_and_alone_also_for_the_same_name() {
    let mut case = Case::new();
    case.wish.remove = vec!["a".into()];
    case.wish.add = vec![Addition { name: "a".into(), ..addition("b") }];
    let Step::Patch { patch, adds, removes } = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!((adds, removes), (vec![], vec!["a".to_owned()]));
    case.vm = applied(&case.vm, &patch);
    assert_eq!(names(&case.vm, VOLUMES), ["root"]);
    // the guest still has it
    case.vmi["spec"]["volumes"] = json!([]);
    assert!(matches!(case.step(), Step::Wait(_)));
    case.vmi["status"]["volumeStatus"] = json!([]);
    case.pods.clear();
    case.wish.remove.clear();
    let Step::Patch { adds, .. } = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!(adds, ["a"]);
}

#[test]
fn nothing_is_written_before_the_last_change_has_come_to_rest() {
    let mut case = Case::new();
    case.vm = vm(&["a", "b", "c"]);
    let Step::Wait(waits) = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!(waits.len(), 2, "the VMI has neither b nor c: {waits:?}");
    case.vmi = vmi(&["a", "b", "c"]);
    case.vmi["status"]["volumeStatus"] = json!([
        ready("a", "u-new"),
        status("b", "AttachedToNode", "", ""),
        status("c", "AttachedToNode", "", "")
    ]);
    case.pods.push(pod("new", &[("a", Use::Device), ("b", Use::Device), ("c", Use::Device)]));
    assert!(matches!(case.step(), Step::Wait(_)));
    case.vmi["status"]["volumeStatus"] =
        json!([ready("a", "u-new"), ready("b", "u-new"), ready("c", "u-new")]);
    case.pods.remove(0);
    assert_eq!(case.step(), Step::Done);
}

#[test]
fn what_goes_on_around_the_vm_holds() {
    let mut case = Case::new();
    case.around = Circumstances {
        migration: Some("m".into()),
        snapshot: Some("s".into()),
        backup: Some("b".into()),
        launcher_not_ready: true,
        node_not_ready: true,
    };
    case.vmi["status"]["evacuationNodeName"] = "n1".into();
    case.vmi["status"]["conditions"] = json!([{"type": "Paused", "reason": "PausedIOError"}]);
    case.vmi["status"]["migratedVolumes"] = json!([{"volumeName": "a"}]);
    assert_eq!(
        case.step(),
        Step::Hold(vec![
            Hold::Migration { name: "m".into() },
            Hold::Evacuating,
            Hold::Snapshot { name: "s".into() },
            Hold::Backup { name: "b".into() },
            Hold::IoError,
            Hold::Launcher,
            Hold::Node,
            Hold::VolumeMigration,
        ])
    );
    let mut case = Case::new();
    case.vmi["status"]["phase"] = "Scheduling".into();
    assert_eq!(case.step(), Step::Hold(vec![Hold::NotRunning]));
    let mut case = Case::new();
    case.vmi["status"]["migrationState"] = json!({"migrationUid": "m"});
    assert_eq!(case.step(), Step::Hold(vec![Hold::Migration { name: String::new() }]));
}

#[test]
fn a_claim_that_is_not_ready_waits_outside_the_batch() {
    let mut case = Case::new();
    case.claims.insert("pvc-c".into(), Claim { phase: "Pending".into(), ..bound() });
    let Step::Patch { adds, .. } = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!(adds, ["b"]);
    case.claims.clear();
    let Step::Claims(trouble) = case.step() else { panic!("{:?}", case.step()) };
    assert_eq!((trouble.len(), trouble[0].why.as_str()), (2, "there is no such claim"));
    assert_eq!(case.at(NOW + 61), Step::GiveUp(vec![]));
}

#[test]
fn a_batch_that_is_late_is_taken_back_without_what_got_ready() {
    let mut case = Case::new();
    case.vm = vm(&["a", "b", "c"]);
    case.vmi = vmi(&["a", "b", "c"]);
    case.vmi["status"]["volumeStatus"] =
        json!([ready("a", "u-old"), ready("b", "u-old"), status("c", "AttachedToNode", "", "")]);
    case.pods = vec![pod("old", &[("a", Use::Device), ("b", Use::Device), ("c", Use::Device)])];
    assert!(matches!(case.at(NOW + 60), Step::Wait(_)));
    let Step::RollBack { patch, volumes } = case.at(NOW + 61) else { panic!("{:?}", case.at(NOW + 61)) };
    assert_eq!(volumes, ["c"]);
    assert_eq!(names(&applied(&case.vm, &patch), VOLUMES), ["root", "a", "b"]);
}

#[test]
fn a_stopped_vm_is_changed_at_once() {
    let mut case = Case::new();
    case.vmi = Value::Null;
    case.claims.clear();
    case.wish.remove = vec!["a".into()];
    let Step::Patch { patch, .. } = case.step() else { panic!("{:?}", case.step()) };
    case.vm = applied(&case.vm, &patch);
    assert_eq!(names(&case.vm, VOLUMES), ["root", "b", "c"]);
    assert_eq!(case.step(), Step::Done);
}

#[test]
fn a_cdrom_drive_stays_and_takes_the_next_medium() {
    let mut vm = vm(&[]);
    vm["spec"]["template"]["spec"]["domain"]["devices"]["disks"] =
        json!([{"name": "cd", "cdrom": {"bus": "sata"}}]);
    let medium =
        Addition { kind: DiskKind::Cdrom, source: Source::DataVolume("iso".into()), ..Addition::claim("cd") };
    let inserted = applied(&vm, &changes(&vm, &[&medium], &[]).unwrap());
    assert_eq!(names(&inserted, DISKS), ["cd"]);
    assert_eq!(
        inserted.pointer(VOLUMES).unwrap()[1]["dataVolume"],
        json!({"name": "iso", "hotpluggable": true})
    );
    let ejected = applied(&inserted, &changes(&inserted, &[], &["cd"]).unwrap());
    assert_eq!(
        (names(&ejected, DISKS), names(&ejected, VOLUMES)),
        (vec!["cd".to_owned()], vec!["root".to_owned()])
    );
}

#[test]
fn a_disk_is_written_as_it_was_asked_for() {
    let disk = Addition {
        bus: Some(Bus::Virtio),
        serial: Some("S1".into()),
        cache: Some("none".into()),
        read_only: true,
        given: None,
        ..addition("b")
    };
    let vm = vm(&[]);
    let after = applied(&vm, &changes(&vm, &[&disk], &[]).unwrap());
    assert_eq!(
        after.pointer(DISKS).unwrap()[1],
        json!({"name": "b", "disk": {"bus": "virtio", "readonly": true}, "serial": "S1", "cache": "none"})
    );
}

#[test]
fn a_vm_without_arrays_is_guarded_as_a_whole() {
    let bare = json!({"metadata": {"resourceVersion": "7"}, "spec": {"template": {"spec": {"domain": {"devices": {}}}}}});
    let patch = changes(&bare, &[&addition("b")], &[]).unwrap();
    assert_eq!(patch[0], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "7"}));
}

#[test]
fn wishes_that_cannot_be_are_refused_with_the_reason() {
    let vm = vm(&["a"]);
    let kind = |kind, bus| Addition { kind, bus: Some(bus), ..addition("b") };
    let cases: [(Vec<Addition>, Vec<&str>, PlanError); 9] = [
        (vec![Addition { name: "a".into(), ..addition("b") }], vec![], PlanError::NameTaken("a".into())),
        (
            vec![Addition { name: "root".into(), ..addition("b") }],
            vec![],
            PlanError::NameTaken("root".into()),
        ),
        (
            vec![Addition { name: "x".into(), ..addition("a") }],
            vec![],
            PlanError::ClaimTaken { claim: "pvc-a".into(), volume: "a".into() },
        ),
        (vec![], vec!["root"], PlanError::NotHotpluggable("root".into())),
        (vec![], vec!["zzz"], PlanError::NotThere("zzz".into())),
        (vec![Addition { name: "Up_Per".into(), ..addition("b") }], vec![], PlanError::Name("Up_Per".into())),
        (
            vec![kind(DiskKind::Disk, Bus::Sata)],
            vec![],
            PlanError::Bus { bus: "sata".into(), kind: "a disk", choice: "scsi or virtio" },
        ),
        (
            vec![kind(DiskKind::Lun, Bus::Virtio)],
            vec![],
            PlanError::Bus { bus: "virtio".into(), kind: "a LUN", choice: "scsi" },
        ),
        (
            vec![kind(DiskKind::Cdrom, Bus::Virtio)],
            vec![],
            PlanError::Bus { bus: "virtio".into(), kind: "a CD-ROM", choice: "sata or scsi" },
        ),
    ];
    for (adds, removes, error) in cases {
        let adds: Vec<&Addition> = adds.iter().collect();
        assert_eq!(changes(&vm, &adds, &removes), Err(error));
    }
}
