//! Hotplugged volumes from end to end: a simulated KubeVirt whose guests do I/O on every disk, the operator with guard, gate
//! and healing, and the program, over real sockets. The same events without the operator break guests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod live;

use std::time::Duration;

use http::Method;
use live::{CLAIMS, Cluster, MIGRATIONS, PODS, VMIS, VMS, items, name_of};
use sandbox::sim::hotplug::{BROKEN, KEEPS, Timing};
use sandbox::sim::{Release, SimConfig};
use serde_json::{Value, json};

const STRICT: &str = "vm-feature-manager.io/hotplug-strict";
const ONCE: &str = "vm-feature-manager.io/hotplug-exclusive-publish";
const PIN: &str = "vm-feature-manager.io/hotplug-pin";

fn config(timing: Timing) -> SimConfig {
    SimConfig { nodes: 2, release: Release::Main, timing, ..SimConfig::default() }
}

/// A VM `v` on a cluster with the operator, and claims of a class.
async fn start(timing: Timing, class: &str, mode: &str, claims: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(config(timing)).await;
    for claim in claims {
        cluster.claim(claim, class, mode, "ReadWriteMany").await;
    }
    cluster.vm("v", None).await;
    cluster.operate().await;
    cluster
}

/// A replacement that runs a while before it is ready, and a cache that is behind: what users have met.
fn slow() -> Timing {
    Timing {
        ready_after: Duration::from_secs(2),
        informer_lag: Duration::from_millis(50),
        plug: Duration::from_millis(300),
        ..Timing::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_volumes_at_once_come_with_one_pod_and_leave_again() {
    let cluster = start(slow(), "force-teardown", "Block", &["a", "b", "c", "d"]).await;
    cluster.ok("volume add v --volume d").await;
    // Alone and at rest nothing is held up.
    let denied = |all: &[String]| all.iter().any(|one| one.contains("gate") && one.contains("denied"));
    assert!(!denied(&cluster.metric("hotplug_verdicts_total").await));
    let added = cluster.ok("volume add v --volume a --volume b --volume c").await;
    assert!(added.stderr.contains("default/v: attaching a, b, c"), "{}", added.stderr);
    assert!(added.stderr.contains("default/v: waiting: "), "{}", added.stderr);
    assert!(added.stderr.ends_with("default/v: done\n"), "{}", added.stderr);
    cluster.settle("v", &["a", "b", "c", "d"]).await;
    let status = cluster.ok("volume status v").await.stdout;
    assert!(status.contains("VOLUME") && status.contains("Settled: nothing is waited for."), "{status}");
    let report: Value = serde_json::from_str(&cluster.ok("volume status v -o json").await.stdout).unwrap();
    assert_eq!((&report["settled"], report["volumes"].as_array().unwrap().len()), (&json!(true), 4));
    cluster.ok("volume remove v --volume a --volume b").await;
    cluster.settle("v", &["c", "d"]).await;
    cluster.ok("volume swap v --remove c --volume a").await;
    cluster.settle("v", &["a", "d"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_writes_nothing_and_no_wait_returns_at_once() {
    let cluster = start(Timing::default(), "busy-check", "Block", &["a", "iso", "next"]).await;
    let shown = cluster.ok("volume add v --volume a --bus virtio --serial D7 --cache none --dry-run").await;
    let patch: Value = serde_json::from_str(&shown.stdout).unwrap();
    let text = patch.to_string();
    assert!(text.contains(r#""bus":"virtio""#) && text.contains("D7") && text.contains("\"test\""), "{text}");
    let vm = cluster.get(&format!("{VMS}/v")).await.unwrap();
    assert_eq!(vm["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(), 1);
    cluster.ok("volume add v --volume a --bus virtio --serial D7 --no-wait").await;
    cluster.settle("v", &["a"]).await;
    // A medium into the drive of its name, another one, and out; the drive stays.
    cluster.ok("volume add v --volume cd=iso --disk-type cdrom").await;
    cluster.settle("v", &["a", "cd"]).await;
    cluster.ok("volume swap v --remove cd --volume cd=next --disk-type cdrom").await;
    let vmi = cluster.settle("v", &["a", "cd"]).await;
    let medium = vmi["spec"]["volumes"].as_array().unwrap().iter().find(|one| one["name"] == "cd").unwrap();
    assert_eq!(medium["persistentVolumeClaim"]["claimName"], "next");
    cluster.ok("volume remove v --volume cd").await;
    let vmi = cluster.settle("v", &["a"]).await;
    let disks = vmi["spec"]["domain"]["devices"]["disks"].as_array().unwrap();
    assert!(disks.iter().any(|disk| disk["name"] == "cd"), "{disks:?}");
    let wrong = cluster.run("volume add v --volume a=other").await;
    assert!(
        wrong.status == 1 && wrong.stderr.contains("in the VM already, with another source"),
        "{}",
        wrong.stderr
    );
    let absent = cluster.run("volume status nobody").await;
    assert!(
        absent.status == 1 && absent.stderr.contains("reading the volumes of VM `default/nobody`"),
        "{}",
        absent.stderr
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_volume_is_found_and_named_and_the_others_are_attached() {
    let cluster = start(Timing::default(), "force-teardown", "Block", &["a", "b", "bad", "c"]).await;
    let broken = json!({"metadata": {"annotations": {BROKEN: "true"}}});
    cluster.merge(&format!("{CLAIMS}/bad"), &broken).await;
    let run = cluster.run("volume add v --volume a --volume b --volume bad --volume c --timeout 8").await;
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("volume bad did not reach the guest within 8 s"), "{}", run.stderr);
    cluster.settle("v", &["a", "b", "c"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// Up to v1.8 there is one call for each volume, through virt-api.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_are_only_calls_each_volume_is_waited_for() {
    let mut config = SimConfig { release: Release::V1_5, ..config(Timing::default()) };
    config.feature_gates.push("HotplugVolumes".into());
    let mut cluster = Cluster::start(config).await;
    for claim in ["a", "b"] {
        cluster.claim(claim, "force-teardown", "Block", "ReadWriteMany").await;
    }
    cluster.vm_without_drive("v").await;
    cluster.operate().await;
    cluster.ok("volume add v --volume a --volume b").await;
    cluster.settle("v", &["a", "b"]).await;
    cluster.ok("volume remove v --volume a --volume b").await;
    cluster.settle("v", &[]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// Six changes, faster than a handoff, by somebody who knows nothing of it. With filesystem volumes on a driver that tears
/// down what is open, guests do not survive that alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_faster_than_a_handoff_break_a_guest_without_the_operator_and_none_with_it() {
    let names = ["a", "b", "c", "d", "e", "f"];
    for operated in [false, true] {
        let mut cluster = Cluster::start(config(slow())).await;
        for name in names {
            cluster.claim(name, "force-teardown", "Filesystem", "ReadWriteMany").await;
        }
        cluster.vm("v", None).await;
        if operated {
            cluster.opt_in("force-teardown", STRICT).await;
            cluster.operate().await;
        }
        cluster.declare("v", &names[..1]).await;
        cluster.settle("v", &names[..1]).await;
        for count in 2..=names.len() {
            cluster.declare("v", &names[..count]).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if operated {
            cluster.settle("v", &names).await;
            cluster.is_unharmed();
        } else {
            let paused = |vmi: Option<&Value>| {
                vmi.is_some_and(|vmi| vmi["status"]["conditions"].to_string().contains("PausedIOError"))
            };
            cluster.wait(&format!("{VMIS}/v"), "paused", paused).await;
            assert!(!cluster.simulation.volumes().io_errors().is_empty());
        }
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_migrates_with_its_volumes_and_changes_wait_for_it() {
    let timing = Timing { unplug: Duration::from_secs(4), ..slow() };
    let cluster = start(timing, "force-teardown", "Block", &["a", "b", "c"]).await;
    cluster.ok("volume add v --volume a --volume b").await;
    let before = cluster.get(&format!("{VMIS}/v")).await.unwrap();
    let migration = |name: &str| {
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"vmiName": "v"}})
    };
    cluster.create(MIGRATIONS, &migration("m1")).await;
    cluster.declare("v", &["a", "b", "c"]).await;
    let done = |one: Option<&Value>| one.is_some_and(|one| one["status"]["phase"] == "Succeeded");
    cluster.wait(&format!("{MIGRATIONS}/m1"), "done", done).await;
    let vmi = cluster.settle("v", &["a", "b", "c"]).await;
    assert_ne!(vmi["status"]["nodeName"], before["status"]["nodeName"]);
    // A removed volume that the guest still has: a target without it would fail, so the migration waits.
    cluster.declare("v", &["b", "c"]).await;
    let leaving = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| !vmi["spec"]["volumes"].to_string().contains(r#""name":"a""#))
    };
    cluster.wait(&format!("{VMIS}/v"), "without a", leaving).await;
    let (code, answer) = cluster.send(Method::POST, MIGRATIONS, "application/json", &migration("m2")).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("has not let go of removed volumes a"), "{answer}");
    cluster.settle("v", &["b", "c"]).await;
    cluster.create(MIGRATIONS, &migration("m3")).await;
    cluster.wait(&format!("{MIGRATIONS}/m3"), "done", done).await;
    cluster.settle("v", &["b", "c"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// What `kubectl drain` does: everything on the node is evicted, again and again while it is told to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_and_the_guest_keeps_its_volumes() {
    let cluster = start(slow(), "force-teardown", "Block", &["a", "b"]).await;
    cluster.ok("volume add v --volume a --volume b").await;
    let vmi = cluster.get(&format!("{VMIS}/v")).await.unwrap();
    let node = vmi["status"]["nodeName"].as_str().unwrap().to_owned();
    cluster.merge(&format!("/api/v1/nodes/{node}"), &json!({"spec": {"unschedulable": true}})).await;
    let mut waited = 0;
    loop {
        let pods = cluster.get(PODS).await.unwrap();
        let left: Vec<String> = items(&pods)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == node.as_str())
            .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
            .map(name_of)
            .collect();
        if left.is_empty() {
            break;
        }
        for pod in left {
            let (code, answer) = cluster.evict(&pod).await;
            assert!(matches!(code, 200 | 201 | 404 | 429), "{pod}: {answer}");
            waited += u32::from(code == 429);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(waited > 0, "a guest was not waited for");
    let vmi = cluster.settle("v", &["a", "b"]).await;
    assert_ne!(vmi["status"]["nodeName"], node.as_str());
    cluster.is_unharmed();
    cluster.stop().await;
}

/// A node that is fenced (`out-of-service`): what is on it may be forced away, and the VM starts elsewhere with its volumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_holds_nothing_up() {
    let cluster = start(Timing::default(), "busy-check", "Block", &["a"]).await;
    cluster.ok("volume add v --volume a").await;
    let vmi = cluster.get(&format!("{VMIS}/v")).await.unwrap();
    let node = vmi["status"]["nodeName"].as_str().unwrap().to_owned();
    let pod = name_of(&cluster.attachments().await[0]);
    let force = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    let path = format!("{PODS}/{pod}");
    let (code, answer) = cluster.send(Method::DELETE, &path, "application/json", &force).await;
    assert_eq!(code, 403, "the node is well: {answer}");
    let fence = json!({"spec": {"unschedulable": true, "taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    cluster.merge(&format!("/api/v1/nodes/{node}"), &fence).await;
    let launcher = vmi["status"]["activePods"].as_object().unwrap().keys().next().unwrap().clone();
    let pods = cluster.get(PODS).await.unwrap();
    for pod in items(&pods).iter().filter(|pod| pod["spec"]["nodeName"] == node.as_str()) {
        let path = format!("{PODS}/{}", name_of(pod));
        let (code, answer) = cluster.send(Method::DELETE, &path, "application/json", &force).await;
        assert!(matches!(code, 200 | 404), "{answer}");
    }
    let elsewhere = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| {
            let moved = vmi["status"]["nodeName"].as_str().is_some_and(|at| !at.is_empty() && at != node);
            moved && vmi["status"]["activePods"].get(&launcher).is_none()
        })
    };
    cluster.wait(&format!("{VMIS}/v"), "elsewhere", elsewhere).await;
    cluster.settle("v", &["a"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_deleted_in_the_middle_of_a_handoff_goes_and_its_guest_flushes() {
    let cluster = start(slow(), "force-teardown", "Block", &["a", "b"]).await;
    cluster.ok("volume add v --volume a").await;
    cluster.declare("v", &["a", "b"]).await;
    cluster.wait_for_pods(2).await;
    cluster.delete(&format!("{VMS}/v")).await;
    cluster.wait(&format!("{VMIS}/v"), "gone", |vmi| vmi.is_none()).await;
    cluster.wait_for_pods(0).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// The namespace controller deletes attachment pods first, and must not be held up; before that somebody may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_its_vms_unless_it_is_protected() {
    let mut cluster = Cluster::start(config(Timing::default())).await;
    let label = |on: Value| json!({"vm-feature-manager.io/protect-running-vms": on});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "apps", "labels": label("true".into())}});
    cluster.create("/api/v1/namespaces", &namespace).await;
    let at = |path: &str| path.replace("/default/", "/apps/");
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a", "namespace": "apps"},
        "spec": {"storageClassName": "force-teardown", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
            "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create(&at(CLAIMS), &claim).await;
    let mut vm = live::vm("v");
    vm["metadata"]["namespace"] = "apps".into();
    cluster.create(&at(VMS), &vm).await;
    let ready = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["ready"] == true);
    cluster.wait(&at(&format!("{VMS}/v")), "ready", ready).await;
    cluster.operate().await;
    cluster.ok("volume add v --volume a -n apps").await;
    let path = "/api/v1/namespaces/apps";
    let (code, answer) = cluster.delete(path).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("VMs run in it: v"), "{answer}");
    cluster.is_unharmed();
    cluster.merge(path, &json!({"metadata": {"labels": label(Value::Null)}})).await;
    let (code, answer) = cluster.delete(path).await;
    assert!(code < 300, "{answer}");
    cluster.wait(path, "gone", |namespace| namespace.is_none()).await;
    cluster.stop().await;
}

/// The only replica dies in a handoff. What it has granted stands in a Lease; while it is away the old pod stays, and the VM
/// could be deleted; the next one lets the handoff end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_killed_in_the_middle_of_a_handoff_costs_time_and_no_volume() {
    let mut cluster = Cluster::start(config(slow())).await;
    for claim in ["a", "b", "c"] {
        cluster.claim(claim, "force-teardown", "Block", "ReadWriteMany").await;
    }
    cluster.vm("v", None).await;
    cluster.operate_process().await;
    cluster.ok("volume add v --volume a").await;
    cluster.declare("v", &["a", "b"]).await;
    cluster.wait_for_pods(2).await;
    cluster.kill_operator().await;
    // The new pod becomes ready and is used, the old one cannot go.
    let there = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["status"]["volumeStatus"].to_string().matches("\"Ready\"").count() == 2)
    };
    cluster.wait(&format!("{VMIS}/v"), "with both", there).await;
    let (code, _) = cluster.delete(&format!("{PODS}/{}", name_of(&cluster.attachments().await[0]))).await;
    assert!(code >= 500, "nobody answers: {code}");
    cluster.operate_process().await;
    cluster.settle("v", &["a", "b"]).await;
    cluster.ok("volume add v --volume c").await;
    cluster.settle("v", &["a", "b", "c"]).await;
    cluster.is_unharmed();
    // With all replicas dead a VM is still deleted.
    cluster.kill_operator().await;
    cluster.delete(&format!("{VMS}/v")).await;
    cluster.wait(&format!("{VMIS}/v"), "gone", |vmi| vmi.is_none()).await;
    cluster.wait_for_pods(0).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// Two VMs on two nodes exchange claims that one node may have: two commands at the same time, each in two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_vms_exchange_their_claims() {
    let mut cluster = Cluster::start(config(Timing::default())).await;
    for claim in ["own-v", "own-w", "p", "q"] {
        cluster.claim(claim, "force-teardown", "Block", "ReadWriteOnce").await;
    }
    let nodes: Vec<String> =
        items(&cluster.get("/api/v1/nodes").await.unwrap()).iter().map(name_of).collect();
    cluster.vm("v", Some(&nodes[0])).await;
    cluster.vm("w", Some(&nodes[1])).await;
    cluster.operate().await;
    cluster.ok("volume add v --volume own-v --volume p").await;
    cluster.ok("volume add w --volume own-w --volume q").await;
    let (one, other) = tokio::join!(
        cluster.run("volume swap v --remove p --volume q"),
        cluster.run("volume swap w --remove q --volume p"),
    );
    assert_eq!((one.status, other.status), (0, 0), "{}\n{}", one.stderr, other.stderr);
    let has = |name: &'static str, claims: [&'static str; 2]| {
        move |vmi: Option<&Value>| {
            vmi.is_some_and(|vmi| {
                let text = vmi["status"]["volumeStatus"].to_string();
                assert!(!text.is_empty(), "{name}");
                claims.iter().all(|claim| text.contains(&format!("\"name\":\"{claim}\"")))
            })
        }
    };
    cluster.wait(&format!("{VMIS}/v"), "with q", has("v", ["own-v", "q"])).await;
    cluster.wait(&format!("{VMIS}/w"), "with p", has("w", ["own-w", "p"])).await;
    let leases = cluster.get("/apis/coordination.k8s.io/v1/namespaces/default/leases").await.unwrap();
    let locks = items(&leases).iter().filter(|lease| name_of(lease).starts_with("hotplug-claim-")).count();
    assert_eq!(locks, 0, "locks are given back");
    cluster.is_unharmed();
    cluster.stop().await;
}

/// R1: without help the handoff stalls for ever. The old pod makes way when its replacement has been refused for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_publishes_once_gets_its_second_volume() {
    let cluster = start(Timing::default(), "exclusive-publish", "Block", &["a", "b"]).await;
    cluster.opt_in("exclusive-publish", ONCE).await;
    cluster.ok("volume add v --volume a").await;
    cluster.ok("volume add v --volume b --timeout 120").await;
    cluster.settle("v", &["a", "b"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// W11: a device for each publication. The pod that a volume was first taken from stays as long as the guest has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_for_each_publication_stays_with_its_pod() {
    let cluster = start(Timing::default(), "per-publish-device", "Block", &["a", "b"]).await;
    cluster.opt_in("per-publish-device", PIN).await;
    cluster.declare("v", &["a"]).await;
    cluster.settle("v", &["a"]).await;
    cluster.declare("v", &["a", "b"]).await;
    let both = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["status"]["volumeStatus"].to_string().matches("\"Ready\"").count() == 2)
    };
    cluster.wait(&format!("{VMIS}/v"), "with both", both).await;
    assert_eq!(cluster.wait_for_pods(2).await.len(), 2);
    cluster.is_unharmed();
    // `b` goes with its pod; all away and all again in one change leaves one pod.
    cluster.claim("c", "per-publish-device", "Block", "ReadWriteMany").await;
    cluster.ok("volume remove v --volume b").await;
    cluster.settle("v", &["a"]).await;
    cluster.ok("volume add v --volume c --detach-others").await;
    cluster.settle("v", &["a", "c"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// A guest that never lets go keeps its pod, and everything else goes on; stopping the VM ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_keeps_a_volume_is_said_and_ends_with_the_vm() {
    let mut cluster = Cluster::start(config(Timing::default())).await;
    cluster.claim("a", "force-teardown", "Block", "ReadWriteMany").await;
    let mut stubborn = live::vm("v");
    stubborn["spec"]["template"]["metadata"]["annotations"] = json!({KEEPS: "*"});
    cluster.create(VMS, &stubborn).await;
    let ready = |vm: Option<&Value>| vm.is_some_and(|vm| vm["status"]["ready"] == true);
    cluster.wait(&format!("{VMS}/v"), "ready", ready).await;
    cluster.operate().await;
    cluster.ok("volume add v --volume a").await;
    let run = cluster.run("volume remove v --volume a --timeout 5").await;
    assert!(run.status == 1 && run.stderr.contains("the guest has not let go of volume a"), "{}", run.stderr);
    let pod = name_of(&cluster.attachments().await[0]);
    let (code, answer) = cluster.delete(&format!("{PODS}/{pod}")).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("the guest has unplugged it, or stops"), "{answer}");
    cluster.delete(&format!("{VMS}/v")).await;
    cluster.wait_for_pods(0).await;
    cluster.is_unharmed();
    cluster.stop().await;
}

/// Two things that KubeVirt leaves as they are: an attachment pod that has failed, and a second one of the same volumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubevirt_leaves_behind_is_healed() {
    let cluster = start(Timing::default(), "busy-check", "Block", &["a"]).await;
    cluster.ok("volume add v --volume a").await;
    let first = cluster.attachments().await.remove(0);
    let failed = json!({"status": {"phase": "Failed"}});
    cluster.merge(&format!("{PODS}/{}/status", name_of(&first)), &failed).await;
    let healed = |pods: Option<&Value>| {
        let pods = items(pods.unwrap())
            .iter()
            .filter(|pod| pod["metadata"]["labels"]["kubevirt.io"] == "hotplug-disk");
        let live: Vec<&Value> = pods.filter(|pod| pod["status"]["phase"] == "Running").collect();
        live.len() == 1 && live[0]["metadata"]["uid"] != first["metadata"]["uid"]
    };
    cluster.wait(PODS, "healed", healed).await;
    cluster.settle("v", &["a"]).await;
    let mut twin = cluster.attachments().await.remove(0);
    twin["metadata"] = json!({"name": "hp-volume-twin", "labels": twin["metadata"]["labels"],
        "ownerReferences": twin["metadata"]["ownerReferences"]});
    twin.as_object_mut().unwrap().remove("status");
    cluster.create(PODS, &twin).await;
    // Either may stay: the one that the status names then.
    cluster.settle("v", &["a"]).await;
    cluster.is_unharmed();
    cluster.stop().await;
}
