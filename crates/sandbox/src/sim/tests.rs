//! The start of a VM as a play: every component decides in its turn over objects in memory, and
//! the writes come in the order that was recorded of the real components.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::patch::json_patch;
use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::cluster::ClusterConfig;
use super::json::{self, list, put, update_condition};
use super::kubelet::decide::{self as kubelet, Step};
use super::launcher::Domain;
use super::resource::{CONTROLLER_REVISIONS, PODS, VMIS};
use super::storage::StorageCaches;
use super::virt_api::mutate;
use super::virt_controller::data_volumes::Volumes;
use super::virt_controller::{launcher_pod, vm, vm_status, vmi};
use super::virt_handler;
use super::write::{Op, Write};

/// Objects by plural, and what was written to them.
struct Stage {
    objects: BTreeMap<&'static str, Value>,
    config: ClusterConfig,
    log: Vec<String>,
    now: Timestamp,
}

impl Stage {
    fn new(vm: &Value) -> Self {
        let config = ClusterConfig::of(&json!({"status": {"defaultArchitecture": "amd64"}}));
        let mut stage =
            Self { objects: BTreeMap::new(), config, log: Vec::new(), now: Timestamp::UNIX_EPOCH };
        let request = json!({"uid": "1", "operation": "CREATE", "object": vm});
        let patch = mutate::virtual_machine(&request, request["object"].clone(), &stage.config).unwrap();
        let mut vm = json_patch(&request["object"], &patch.into()).unwrap();
        vm["metadata"]["uid"] = "vm-uid".into();
        vm["metadata"]["generation"] = 1.into();
        stage.objects.insert("virtualmachines", vm);
        stage
    }

    fn get(&self, plural: &str) -> Option<&Value> {
        self.objects.get(plural)
    }

    /// Carries a write out as the API server would, and writes a line about it.
    fn write(&mut self, who: &str, write: &Write) {
        let plural = write.resource.plural;
        let (verb, object) = match &write.op {
            Op::Create(body) if write.resource == &CONTROLLER_REVISIONS => ("create", body.clone()),
            Op::Create(body) => {
                let mut object = body.clone();
                if write.resource == &VMIS {
                    let request = json!({"operation": "CREATE", "object": body});
                    let patch = mutate::instance(&request, &self.config, self.now).unwrap();
                    object = json_patch(body, &patch.into()).unwrap();
                }
                object["metadata"]["uid"] = format!("{plural}-uid").into();
                if write.resource == &PODS {
                    object["metadata"]["name"] = "virt-launcher-vm1-abcde".into();
                    // The scheduler is quicker than the next pass of anybody.
                    object["spec"]["nodeName"] = "node01".into();
                    object["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
                }
                ("create", object)
            }
            Op::Update(body) => ("update", body.clone()),
            Op::JsonPatch(patch) => ("patch", json_patch(&self.objects[plural], patch).unwrap()),
            Op::StrategicPatch(patch) => {
                let mut object = self.objects[plural].clone();
                let mut conditions = list(&object, "/status/conditions").to_vec();
                for condition in list(patch, "/status/conditions") {
                    let mut condition = condition.clone();
                    for key in ["reason", "message"] {
                        if condition.get(key).is_some_and(Value::is_null) {
                            json::remove(&mut condition, &[key]);
                        }
                    }
                    update_condition(&mut conditions, condition);
                }
                for (key, value) in json::map(patch, "/status").into_iter().flatten() {
                    put(&mut object, &["status", key.as_str()], value.clone());
                }
                put(&mut object, &["status", "conditions"], conditions);
                ("patch", object)
            }
            Op::MergePatch(_) | Op::Delete(_) => panic!("not in a start: {write:?}"),
        };
        let target =
            [plural, write.subresource].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
        self.log.push(format!("{who} {verb} {}", target.join("/")));
        self.objects.insert(plural, object);
    }

    /// One pass of the VM controller; false: nothing was to be done.
    fn vm_pass(&mut self) -> bool {
        let (vm, vmi) =
            (self.objects["virtualmachines"].clone(), self.get("virtualmachineinstances").cloned());
        let volumes = Volumes::of(&vm, &StorageCaches::new());
        let seen = vm::Observation { vm: &vm, vmi: vmi.as_ref(), now: self.now, dice: 0, volumes: &volumes };
        let plan = vm::decide(&seen);
        for write in &plan.writes {
            self.write("controller", write);
        }
        if !plan.with_status {
            return true;
        }
        let status = vm_status::status(&seen, plan.expects, None);
        let changed = vm.get("status") != Some(&status);
        if changed {
            self.write("controller", &vm::status_write(&vm, status));
        }
        changed || !plan.writes.is_empty()
    }

    /// One pass of the VMI controller.
    fn vmi_pass(&mut self) -> bool {
        let Some(vmi) = self.get("virtualmachineinstances").cloned() else { return false };
        if let Some(annotated) = vm::with_observed_version(&vmi) {
            self.write("controller", &Write::to(&VMIS, &vmi, "", Op::Update(annotated)));
            return true;
        }
        let pods: Vec<Arc<Value>> = self.get("pods").cloned().map(Arc::new).into_iter().collect();
        let seen = vmi::Observation { vmi: &vmi, pods: &pods, has_owner: true, now: self.now };
        let before = self.log.len();
        if vmi::needs_pod(&seen) {
            let pod = launcher_pod::render(&vmi, &self.config).unwrap();
            self.write("controller", &Write::create(&PODS, pod));
        }
        let pod = self.get("pods").cloned();
        let now = self.now;
        for write in pod.iter().flat_map(|pod| vmi::pod_writes(&vmi, pod, now)) {
            self.write("controller", &write);
        }
        if let Some(write) = vmi::status_write(&seen, pod.as_ref(), None, None) {
            self.write("controller", &write);
        }
        self.log.len() > before
    }

    /// Runs the pod, then reports the guest, as kubelet and virt-handler do.
    fn node_pass(&mut self) -> bool {
        let Some(pod) = self.get("pods").cloned() else { return false };
        let seen = kubelet::Observation {
            unready: false,
            pod: &pod,
            domain: None,
            rejection: None,
            host_ip: "198.18.0.1",
            pod_ip: "10.128.0.1",
        };
        if let Step::Patch(status) = kubelet::decide(&seen, self.now) {
            let body = json!({"status": status});
            self.write("kubelet", &Write::to(&PODS, &pod, "status", Op::StrategicPatch(body)));
            return true;
        }
        let vmi = self.objects["virtualmachineinstances"].clone();
        let Some(updated) = virt_handler::decide(&vmi, &pod, Domain::Running, self.now) else { return false };
        self.write("handler", &Write::to(&VMIS, &vmi, "", Op::Update(updated)));
        true
    }
}

fn recorded_vm() -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "vm1", "namespace": "e1"},
        "spec": {"runStrategy": "Always", "template": {"metadata": {"annotations": {}}, "spec": {
            "domain": {"cpu": {"cores": 1, "sockets": 2, "threads": 1}, "memory": {"guest": "1Gi"},
                "devices": {"disks": [{"disk": {"bus": "virtio"}, "name": "root"}],
                    "interfaces": [{"masquerade": {}, "name": "default"}]}},
            "networks": [{"name": "default", "pod": {}}], "terminationGracePeriodSeconds": 5,
            "volumes": [{"containerDisk": {"image": "registry.example/fedora:41"}, "name": "root"}]}}},
    })
}

/// Plays until nobody has anything to do. Nodes are slower than the controllers.
fn played() -> Stage {
    let mut stage = Stage::new(&recorded_vm());
    for _ in 0..50 {
        let (vm, vmi) = (stage.vm_pass(), stage.vmi_pass());
        if !(vm || vmi || stage.node_pass()) {
            return stage;
        }
    }
    panic!("the play has no end: {:#?}", stage.log)
}

#[test]
fn a_start_writes_what_the_real_components_wrote_in_their_order() {
    let stage = played();
    let log: Vec<&str> =
        stage.log.iter().map(String::as_str).filter(|line| !line.starts_with("kubelet")).collect();
    assert_eq!(
        log,
        [
            "controller update virtualmachines/status",
            "controller update virtualmachines",
            "controller patch virtualmachines",
            "controller create controllerrevisions",
            "controller create virtualmachineinstances",
            "controller update virtualmachines/status",
            "controller update virtualmachineinstances",
            "controller update virtualmachines/status",
            "controller create pods",
            "controller patch pods/status",
            "controller update virtualmachineinstances",
            "controller update virtualmachines/status",
            "controller update virtualmachineinstances",
            "controller update virtualmachineinstances",
            "controller patch pods",
            "handler update virtualmachineinstances",
            "controller update virtualmachines/status",
            "controller patch virtualmachineinstances",
            "controller update virtualmachines/status",
        ]
    );
}

#[test]
fn the_objects_after_a_start_are_those_that_were_recorded() {
    let stage = played();
    let vm = &stage.objects["virtualmachines"];
    assert_eq!(vm["status"]["printableStatus"], "Running");
    let mut vmi = stage.objects["virtualmachineinstances"].clone();
    for pointer in ["uuid", "serial"] {
        vmi["spec"]["domain"]["firmware"][pointer] = "random".into();
    }
    insta::assert_json_snapshot!("vmi", vmi);
    let pod = &stage.objects["pods"];
    assert_eq!(pod["metadata"]["annotations"]["kubevirt.io/memory-overhead-bytes"], "310378496");
    assert_eq!(
        pod["spec"]["containers"][0]["resources"],
        json!({
            "limits": {"devices.kubevirt.io/kvm": "1", "devices.kubevirt.io/tun": "1", "devices.kubevirt.io/vhost-net": "1"},
            "requests": {"cpu": "200m", "devices.kubevirt.io/kvm": "1", "devices.kubevirt.io/tun": "1",
                "devices.kubevirt.io/vhost-net": "1", "ephemeral-storage": "50M", "memory": "1320Mi"},
        })
    );
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 35);
}
