//! No write is sent twice, whatever becomes of its answer.

use std::io::Read as _;

use super::*;

/// How a VM has to be for the write of an operation to be reached.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Is {
    Off,
    On,
    Paused,
    /// With a disk of its own.
    WithDisk,
    /// On its way to a node that there is not.
    Leaving,
    /// There is something else of its name.
    Something,
    /// There is nothing of its name.
    Absent,
    /// Off, with a volume that was plugged.
    Attached,
    /// There is an export job of its name.
    Job,
    /// The same, cancelled.
    Cancelled,
}

impl Is {
    const fn is_vm(self) -> bool {
        !matches!(self, Self::Absent | Self::Job | Self::Cancelled)
    }

    const fn runs(self) -> bool {
        matches!(self, Self::On | Self::Paused | Self::WithDisk | Self::Leaving)
    }
}

/// Every operation with one write. Each has a VM of its own, so that what was done by one whose answer was lost
/// stands in no other's way.
const WRITES: [(&str, Is); 34] = [
    ("start", Is::Off),
    ("stop", Is::On),
    ("restart", Is::On),
    ("pause", Is::On),
    ("unpause", Is::Paused),
    ("soft-reboot", Is::On),
    ("reset", Is::On),
    ("migrate", Is::On),
    ("cancel migration of", Is::Leaving),
    ("end migration", Is::Leaving),
    ("snapshot", Is::On),
    ("restore", Is::Off),
    ("clone", Is::On),
    ("clone snapshot", Is::Off),
    ("add nic", Is::Off),
    ("remove nic", Is::Off),
    ("set link", Is::Off),
    ("attach device", Is::Off),
    ("attach volume", Is::Off),
    ("detach volume", Is::Attached),
    ("expand volume", Is::WithDisk),
    ("make template", Is::On),
    ("create from template", Is::Something),
    ("delete template", Is::Something),
    ("export", Is::Off),
    ("delete export", Is::Something),
    ("delete snapshot", Is::Off),
    ("submit job", Is::Absent),
    ("cancel job", Is::Job),
    ("resume job", Is::Cancelled),
    ("delete job", Is::Job),
    ("create", Is::Absent),
    ("delete keeping disks", Is::On),
    ("delete", Is::On),
];

/// The VM of an operation.
fn subject(operation: &str) -> String {
    operation.replace(' ', "-")
}

impl Cluster {
    async fn prepare(&self) {
        let p = &self.provider;
        self.permit().await;
        // those that are under way stay where they are
        self.hold("virtualmachineinstancemigrations", "");
        self.claim().await;
        for (name, is) in WRITES {
            let name = subject(name);
            let object = match is {
                Is::WithDisk => with_disk(&name),
                is if is.runs() => vm(&name, "Always"),
                _ => vm(&name, "Halted"),
            };
            if is.is_vm() {
                p.create_vm("default", &object, false).await.unwrap();
            }
        }
        for (name, is) in WRITES {
            let vm = id(&subject(name));
            if is == Is::Attached {
                assert_eq!(p.step_volumes(&vm, &attach(), false).await.unwrap().state, "written");
            }
            if matches!(is, Is::Job | Is::Cancelled) {
                p.submit_job(&job(&vm), false).await.unwrap();
            }
            if is == Is::Cancelled {
                p.suspend_job("default", vm.name(), true, false).await.unwrap();
            }
            if is.runs() {
                p.wait(&vm, &Goal::Running, Duration::from_mins(4), &mut |_| ()).await.unwrap();
            }
            if is == Is::Paused {
                p.order(&vm, Order::Pause, false).await.unwrap();
                p.wait(&vm, &Goal::Paused, Duration::from_mins(2), &mut |_| ()).await.unwrap();
            }
            if is == Is::Leaving {
                let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
                let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                    "metadata": {"name": vm.name()}, "spec": {"vmiName": vm.name(),
                        "addedNodeSelector": {"kubernetes.io/hostname": "nowhere"}}});
                self.create(path, migration).await;
            }
        }
        for name in ["restore", "clone-snapshot", "delete-snapshot"] {
            let taken = p.snapshot(&id(name), Some(name), false).await.unwrap();
            p.wait_snapshot(&taken, Duration::from_mins(2), &mut |_| ()).await.unwrap();
        }
        let templates = "/apis/template.kubevirt.io/v1beta1/namespaces/default/virtualmachinetemplates";
        for name in ["create-from-template", "delete-template"] {
            self.create(templates, template(name)).await;
        }
        let exports = "/apis/export.kubevirt.io/v1/namespaces/default/virtualmachineexports";
        let export = json!({"apiVersion": "export.kubevirt.io/v1", "kind": "VirtualMachineExport",
            "metadata": {"name": "delete-export"},
            "spec": {"source": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "delete-export"}}});
        self.create(exports, export).await;
    }
}

/// What the administrator has written, as the audit log has it.
struct Writes {
    log: std::fs::File,
    /// What has been read of a line that is not whole yet.
    rest: Vec<u8>,
    asked: u64,
}

impl Writes {
    /// Those since this was asked last. A request is made and looked for, since the log lags behind.
    async fn since(&mut self, cluster: &Cluster) -> Vec<String> {
        self.asked += 1;
        let marker = format!("/api/v1/namespaces/marker-{}", self.asked);
        let client = kube::Client::try_from(config(&cluster.kubeconfig).await).unwrap();
        let _ = client.request::<Value>(http::Request::get(&marker).body(Vec::new()).unwrap()).await;
        let mut writes = Vec::new();
        let reading = async {
            loop {
                self.log.read_to_end(&mut self.rest).unwrap();
                let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let lines: Vec<u8> = self.rest.drain(..whole).collect();
                let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                let events: Vec<Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
                writes.extend(events.iter().filter_map(write));
                if events.iter().any(|event| event["requestURI"] == *marker) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(3), reading).await.unwrap();
        writes
    }
}

/// What an event of the audit log says that the administrator wrote.
fn write(event: &Value) -> Option<String> {
    let verb = event["verb"].as_str().unwrap_or_default();
    let groups = event["user"]["groups"].to_string();
    let review = event["objectRef"]["resource"].as_str().unwrap_or_default().ends_with("reviews");
    // the simulated controllers are the administrator who impersonates them
    let own = groups.contains("system:masters") && event["impersonatedUser"].is_null();
    let writes = ["create", "update", "patch", "delete"].contains(&verb) && own && !review;
    writes.then(|| format!("{verb} {}", event["requestURI"]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_sent_once_whatever_becomes_of_its_answer() {
    let cluster = Cluster::start().await;
    cluster.prepare().await;
    let log = std::fs::File::open(&cluster.audit).unwrap();
    let mut audit = Writes { log, rest: Vec::new(), asked: 0 };
    audit.since(&cluster).await;
    let all: Vec<Operation> = operations().into_iter().chain(makings()).collect();
    // the last one does what was asked for, so nothing comes after it
    for (fault, kind) in [
        ("error:code=504", Kind::Timeout),
        ("error:code=503", Kind::Cluster),
        ("error:code=429", Kind::TooManyRequests),
        ("lost-answer", Kind::Cluster),
    ] {
        for (name, _) in WRITES {
            let one = all.iter().find(|one| one.name == name).unwrap();
            assert!(one.writes, "{name}");
            let separator = if fault.contains(':') { ',' } else { ':' };
            let scope = "times=1,verb=create+update+patch+delete,user=admin";
            let fault = format!("{fault}{separator}{scope}");
            let faults = &cluster.sandbox.api().faults;
            let added = faults.add(fault.parse().unwrap()).unwrap()["id"].as_u64();
            let outcome = (one.act)(cluster.provider.clone(), id(&subject(name))).await;
            let error = outcome.expect_err(&format!("{name} under {fault}"));
            assert_eq!(error.kind, kind, "{name} under {fault}: {error:?}");
            readable(name, &error);
            let active = faults.list();
            let hits = active.iter().find(|one| one["id"].as_u64() == added).unwrap();
            assert_eq!(hits["injected"], 1, "{name} under {fault}");
            faults.clear(added);
            let writes = audit.since(&cluster).await;
            assert_eq!(writes.len(), 1, "{name} under {fault}: {writes:?}");
        }
    }
    cluster.sandbox.shutdown().await;
}
