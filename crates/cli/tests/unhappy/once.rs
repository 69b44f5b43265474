//! No write is sent twice, whatever becomes of its answer.

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
}

/// Every operation with one write. Each has a VM of its own, so that what was done by one whose answer was lost
/// stands in no other's way.
const WRITES: [(&str, Is); 27] = [
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
    ("expand volume", Is::WithDisk),
    ("make template", Is::On),
    ("create from template", Is::Something),
    ("delete template", Is::Something),
    ("export", Is::Off),
    ("delete export", Is::Something),
    ("delete snapshot", Is::Off),
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
        for (name, is) in WRITES {
            let name = subject(name);
            let object = match is {
                Is::WithDisk => with_disk(&name),
                Is::On | Is::Paused | Is::Leaving => vm(&name, "Always"),
                Is::Off | Is::Something => vm(&name, "Halted"),
            };
            p.create_vm("default", &object, false).await.unwrap();
        }
        for (name, is) in WRITES {
            let vm = id(&subject(name));
            if !matches!(is, Is::Off | Is::Something) {
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

    /// The writes of the administrator so far.
    async fn writes(&self) -> Vec<String> {
        self.written_down().await;
        let text = std::fs::read_to_string(&self.audit).unwrap();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let writes = events.filter(|event| {
            let verb = event["verb"].as_str().unwrap_or_default();
            let groups = event["user"]["groups"].to_string();
            let review = event["objectRef"]["resource"].as_str().unwrap_or_default().ends_with("reviews");
            // the simulated controllers are the administrator who impersonates them
            let own = groups.contains("system:masters") && event["impersonatedUser"].is_null();
            ["create", "update", "patch", "delete"].contains(&verb) && own && !review
        });
        writes.map(|event| format!("{} {}", event["verb"], event["requestURI"])).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_sent_once_whatever_becomes_of_its_answer() {
    let cluster = Cluster::start().await;
    cluster.prepare().await;
    let all = operations();
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
            let before = cluster.writes().await.len();
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
            let writes = cluster.writes().await;
            assert_eq!(writes.len() - before, 1, "{name} under {fault}: {:?}", &writes[before..]);
        }
    }
    cluster.sandbox.shutdown().await;
}
