//! Virtual time: nobody waits, and a seed decides everything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use http::Request;
use sandbox::{Simulation, World};
use serde_json::{Value, json};

const VMS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
const MINUTE: Duration = Duration::from_mins(1);

async fn all_ready(world: &World, count: usize) -> bool {
    let list = world.get(VMS).await.unwrap_or_default();
    let vms = list["items"].as_array().cloned().unwrap_or_default();
    vms.iter().filter(|vm| vm["status"]["ready"] == true).count() == count
}

async fn ready(world: &World, count: usize) {
    world.until("all VMs are ready", MINUTE, async || all_ready(world, count).await).await.unwrap();
}

/// Starts VMs, moves one, and lets a quarter of an hour pass.
fn life(simulation: Simulation) -> Vec<u8> {
    let lived = simulation.nodes(2).vms(3).run(async |world| {
        ready(world, 3).await;
        let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"generateName": "move-", "namespace": "default"}, "spec": {"vmiName": "vm-2"}});
        let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
        let made = world.send(Request::post(path).body(migration).unwrap()).await.unwrap();
        let path = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
        let done = async || world.get(&path).await.is_ok_and(|one| one["status"]["phase"] == "Succeeded");
        world.until("the guest has moved", MINUTE, done).await.unwrap();
        world.pass(15 * MINUTE).await;
        world.audit()
    });
    lived.unwrap()
}

#[test]
fn the_same_seed_gives_the_same_audit_log_byte_for_byte() {
    let (once, again, other) = (life(Simulation::new(7)), life(Simulation::new(7)), life(Simulation::new(8)));
    let lines = |log: &[u8]| String::from_utf8_lossy(log).lines().map(str::to_owned).collect::<Vec<_>>();
    for (number, (left, right)) in lines(&once).iter().zip(lines(&again)).enumerate() {
        assert_eq!(*left, right, "line {number}");
    }
    assert!(once == again, "one log is longer");
    assert!(once != other, "another seed gives another order");
}

#[test]
fn an_hour_passes_at_once_and_everybody_lives_through_it() {
    let begin = Instant::now();
    let heartbeats = Simulation::new(1).nodes(1).run(async |world| {
        let from = world.now();
        world.pass(60 * MINUTE).await;
        assert_eq!(world.now().duration_since(from).as_hours(), 1);
        let node = world.get("/api/v1/nodes/node01").await.unwrap();
        let is_ready = |one: &&Value| one["type"] == "Ready" && one["status"] == "True";
        assert!(
            node["status"]["conditions"].as_array().unwrap().iter().any(|one| is_ready(&one)),
            "{node:#}"
        );
        let log = String::from_utf8(world.audit()).unwrap();
        log.lines().filter(|line| line.contains("/leases/node01")).count()
    });
    assert!(heartbeats.unwrap() >= 360, "a lease is renewed every ten seconds");
    assert!(begin.elapsed() < 60 * MINUTE, "nobody waited for the hour");
}

#[test]
fn a_condition_that_never_holds_ends_the_wait() {
    let waited = Simulation::new(1).run(async |world| {
        let error = world.until("pigs fly", MINUTE, async || false).await.unwrap_err();
        (error.to_string(), world.elapsed())
    });
    let (error, elapsed) = waited.unwrap();
    assert_eq!(error, "waited 60 s of virtual time in vain: pigs fly");
    assert!(elapsed >= MINUTE && elapsed < 2 * MINUTE, "{elapsed:?}");
}

#[test]
fn faults_strike_where_the_seed_says_and_vms_run_in_spite_of_them() {
    let faults = ["error:code=500,rate=0.05", "lost-answer:rate=0.02", "watch-drop:events=20,rate=0.5"];
    let run = |seed| {
        let mut simulation = Simulation::new(seed).nodes(2).vms(3);
        for fault in faults {
            simulation = simulation.fault(fault.parse().unwrap());
        }
        simulation.run(async |world| {
            ready(world, 3).await;
            world.audit()
        })
    };
    for seed in 0..3 {
        assert!(run(seed).unwrap() == run(seed).unwrap(), "seed {seed}: run again, another log");
    }
}

fn vm(name: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name, "namespace": "default"},
        "spec": {"runStrategy": "Halted", "template": {"metadata": {}, "spec": {
            "domain": {"memory": {"guest": "1Gi"}, "devices": {}}}}}})
}

/// Creates a VM, and says what became of it and how long it took.
async fn create(world: &World, name: &str) -> (Result<Value, String>, Duration) {
    let begin = world.elapsed();
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
    let made = world.send(Request::post(path).body(vm(name)).unwrap()).await;
    (made.map_err(|error| error.to_string()), world.elapsed().saturating_sub(begin))
}

fn add(world: &World, fault: &str) {
    world.sandbox().api().faults.add(fault.parse().unwrap()).unwrap();
}

#[test]
fn webhooks_that_are_away_slow_or_wrong_fail_what_they_guard_and_nothing_else() {
    let ran = Simulation::new(3).nodes(1).run(async |world| {
        let clear = || world.sandbox().api().faults.clear(None);
        assert!(create(world, "before").await.0.is_ok());
        add(world, "webhook-down");
        let (refused, _) = create(world, "down").await;
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("failed calling webhook") && refused.contains("connection refused"),
            "{refused}"
        );
        assert!(world.get("/api/v1/nodes").await.is_ok(), "what no webhook guards goes on");
        clear();
        add(world, "webhook-garbage:webhook=virtualmachine-validator.kubevirt.io");
        let (refused, _) = create(world, "garbage").await;
        let refused = refused.unwrap_err();
        assert!(refused.contains("virtualmachine-validator.kubevirt.io"), "{refused}");
        clear();
        add(world, "webhook-slow:ms=12000,webhook=virtualmachines-mutator.kubevirt.io");
        let (refused, took) = create(world, "slow").await;
        let refused = refused.unwrap_err();
        assert!(refused.contains("context deadline exceeded"), "{refused}");
        assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(11), "{took:?}");
        clear();
        add(world, "webhook-slow:ms=3000");
        let (made, took) = create(world, "patient").await;
        assert!(made.is_ok() && took >= Duration::from_secs(6), "both are waited for: {took:?}");
        clear();
        assert!(create(world, "after").await.0.is_ok());
    });
    ran.unwrap();
}

#[test]
fn a_clock_that_is_off_shows_in_what_the_server_writes_and_nowhere_else() {
    let ran = Simulation::new(3).nodes(1).vms(1).run(async |world| {
        add(world, "clock-skew:seconds=-7200");
        let (made, _) = create(world, "late").await;
        let stamped: jiff::Timestamp =
            made.unwrap()["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
        let behind = world.now().duration_since(stamped);
        assert!((7199..7202).contains(&behind.as_secs()), "{behind}");
        ready(world, 1).await;
        world.pass(MINUTE).await;
        let lease =
            world.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node01").await.unwrap();
        let renewed: jiff::Timestamp = lease["spec"]["renewTime"].as_str().unwrap().parse().unwrap();
        assert!(world.now().duration_since(renewed).as_secs() <= 11, "kubelets have clocks of their own");
    });
    ran.unwrap();
}

#[test]
fn a_partitioned_node_is_heard_of_again_when_it_is_over() {
    let ran = Simulation::new(3).nodes(2).vms(2).run(async |world| {
        ready(world, 2).await;
        let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node01";
        let renewed = async || {
            let lease = world.get(path).await.unwrap();
            lease["spec"]["renewTime"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
        };
        add(world, "partition:node=node01,for=120");
        world.pass(Duration::from_secs(100)).await;
        assert!(world.now().duration_since(renewed().await).as_secs() >= 90, "nothing is heard of it");
        let other =
            world.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node02").await.unwrap();
        let other: jiff::Timestamp = other["spec"]["renewTime"].as_str().unwrap().parse().unwrap();
        assert!(world.now().duration_since(other).as_secs() <= 11, "the other node is not cut off");
        world.pass(MINUTE).await;
        assert!(world.now().duration_since(renewed().await).as_secs() <= 11, "it is back");
        ready(world, 2).await;
    });
    ran.unwrap();
}

/// The node that a VMI runs on.
async fn node_of(world: &World, name: &str) -> String {
    let path = format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/{name}");
    let vmi = world.get(&path).await;
    vmi.unwrap_or_default()["status"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

async fn ready_of(world: &World, path: &str) -> String {
    let object = world.get(path).await.unwrap_or_default();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|one| one["type"] == "Ready");
    ready.and_then(|one| one["status"].as_str()).unwrap_or_default().to_owned()
}

/// Keys and effects of a node's taints.
async fn taints(world: &World, node: &str) -> Vec<String> {
    let node = world.get(&format!("/api/v1/nodes/{node}")).await.unwrap();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut taints: Vec<String> = taints
        .iter()
        .map(|taint| format!("{}:{}", taint["key"].as_str().unwrap(), taint["effect"].as_str().unwrap()))
        .collect();
    taints.sort();
    taints
}

async fn launchers(world: &World, vm: &str) -> Vec<Value> {
    let list = world.get("/api/v1/namespaces/default/pods").await.unwrap();
    let of_vm = |pod: &&Value| {
        pod["metadata"]["labels"]["kubevirt.io"] == "virt-launcher"
            && pod["metadata"]["labels"]["vm.kubevirt.io/name"] == vm
    };
    list["items"].as_array().unwrap().iter().filter(of_vm).cloned().collect()
}

const LOST: [&str; 2] =
    ["node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"];

#[test]
fn a_lost_node_is_unknown_and_ready_again_when_it_is_heard_of() {
    let ran = Simulation::new(3).nodes(3).vms(1).run(async |world| {
        ready(world, 1).await;
        let node = node_of(world, "vm-1").await;
        let path = format!("/api/v1/nodes/{node}");
        let begin = world.elapsed();
        add(world, &format!("node-loss:node={node},for=120"));
        let unknown = async || ready_of(world, &path).await == "Unknown";
        world.until("the node is lost", MINUTE * 2, unknown).await.unwrap();
        let took = world.elapsed().saturating_sub(begin);
        assert!(took > Duration::from_secs(40) && took < Duration::from_secs(70), "{took:?}");
        world.until("it is tainted", MINUTE, async || taints(world, &node).await == LOST).await.unwrap();
        let pod = &launchers(world, "vm-1").await[0];
        let pod = format!("/api/v1/namespaces/default/pods/{}", pod["metadata"]["name"].as_str().unwrap());
        world
            .until("its pod is unready", MINUTE, async || ready_of(world, &pod).await == "False")
            .await
            .unwrap();
        let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm-1";
        world.until("so is the VMI", MINUTE, async || ready_of(world, vmi).await == "False").await.unwrap();
        let events = world.get("/api/v1/namespaces/default/events").await.unwrap();
        let told = |one: &&Value| one["reason"] == "NodeNotReady" && one["involvedObject"]["name"] == *node;
        assert!(
            events["items"].as_array().unwrap().iter().any(|one| told(&one)),
            "an Event tells of the node"
        );

        world.until("it is back", MINUTE * 3, async || ready_of(world, &path).await == "True").await.unwrap();
        world.until("without taints", MINUTE, async || taints(world, &node).await.is_empty()).await.unwrap();
        world.until("with its pod", MINUTE, async || ready_of(world, &pod).await == "True").await.unwrap();
        ready(world, 1).await;
        assert_eq!(node_of(world, "vm-1").await, node, "the guest ran on");
        world.pass(10 * MINUTE).await;
        assert_eq!(launchers(world, "vm-1").await.len(), 1, "nobody drives its pod off any more");
    });
    ran.unwrap();
}

#[test]
fn pods_of_a_lost_node_hang_until_it_is_deleted_and_vms_start_elsewhere() {
    let ran = Simulation::new(4).nodes(3).vms(1).run(async |world| {
        ready(world, 1).await;
        let node = node_of(world, "vm-1").await;
        add(world, &format!("node-loss:node={node}"));
        world.until("it is tainted", MINUTE * 2, async || taints(world, &node).await == LOST).await.unwrap();
        world.pass(MINUTE * 4).await;
        let deleted = async || {
            let pods = launchers(world, "vm-1").await;
            pods.len() == 1 && pods[0]["metadata"]["deletionTimestamp"].is_string()
        };
        assert!(!deleted().await, "pods bear with it for five minutes");
        world.until("its pod is deleted", MINUTE * 2, deleted).await.unwrap();
        let unschedulable = async || {
            let node = world.get(&format!("/api/v1/nodes/{node}")).await.unwrap_or_default();
            node["metadata"]["labels"]["kubevirt.io/schedulable"] == "false"
        };
        world.until("virt-controller starts nothing there", MINUTE * 3, unschedulable).await.unwrap();
        world.pass(MINUTE * 10).await;
        assert!(deleted().await, "nobody is there to end it");
        assert_eq!(node_of(world, "vm-1").await, node, "and so the VM does not start elsewhere");

        let delete = Request::delete(format!("/api/v1/nodes/{node}")).body(Vec::new()).unwrap();
        world.client().request::<Value>(delete).await.unwrap();
        let elsewhere = async || {
            let now = node_of(world, "vm-1").await;
            !now.is_empty() && now != node && all_ready(world, 1).await
        };
        world.until("the VM runs on another node", MINUTE * 5, elsewhere).await.unwrap();
        assert_eq!(launchers(world, "vm-1").await.len(), 1);
    });
    ran.unwrap();
}

#[test]
fn when_no_node_is_heard_of_nobody_is_driven_off() {
    let ran = Simulation::new(5).nodes(2).vms(1).run(async |world| {
        ready(world, 1).await;
        let node = node_of(world, "vm-1").await;
        add(world, "partition:user=system:node:*,for=900");
        let path = format!("/api/v1/nodes/{node}");
        let unknown = async || ready_of(world, &path).await == "Unknown";
        world.until("the node is lost", MINUTE * 2, unknown).await.unwrap();
        world.pass(10 * MINUTE).await;
        assert_eq!(
            taints(world, &node).await,
            [LOST[1]],
            "no NoExecute: it is the control plane that is cut off"
        );
        assert!(launchers(world, "vm-1").await[0]["metadata"]["deletionTimestamp"].is_null());
        world
            .until("it is back", MINUTE * 10, async || ready_of(world, &path).await == "True")
            .await
            .unwrap();
        world.until("all is well", MINUTE * 2, async || all_ready(world, 1).await).await.unwrap();
    });
    ran.unwrap();
}

const CONTROLLER: &str = "system:serviceaccount:kubevirt:kubevirt-controller";

/// Lets the caches see pods two seconds late, and the answer to the next pod that virt-controller makes get lost: it
/// cannot know of the pod when it tries again.
async fn lose_an_answer(world: &World) {
    add(world, "watch-lag:ms=2000,resource=pods");
    // Faults hit watches when they are opened, which is again after 290 s.
    world.pass(5 * MINUTE).await;
    add(world, &format!("lost-answer:user={CONTROLLER},verb=create,resource=pods,times=1"));
}

#[test]
fn a_lost_answer_makes_no_second_launcher() {
    let ran = Simulation::new(6).nodes(1).run(async |world| {
        lose_an_answer(world).await;
        let mut made = vm("twin");
        made["spec"]["runStrategy"] = "Always".into();
        world.send(Request::post(VMS).body(made).unwrap()).await.unwrap();
        world.until("the VM is ready", 10 * MINUTE, async || all_ready(world, 1).await).await.unwrap();
        assert_eq!(launchers(world, "twin").await.len(), 1);
        assert_eq!(world.sandbox().api().faults.list()[1]["injected"], 1);
    });
    ran.unwrap();
}

#[test]
fn a_lost_answer_makes_no_second_target_of_a_migration() {
    let ran = Simulation::new(6).nodes(3).vms(1).run(async |world| {
        ready(world, 1).await;
        lose_an_answer(world).await;
        let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
        let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": "move", "namespace": "default"}, "spec": {"vmiName": "vm-1"}});
        world.send(Request::post(path).body(migration).unwrap()).await.unwrap();
        let done = async || {
            let one = world.get(&format!("{path}/move")).await.unwrap();
            one["status"]["phase"] == "Succeeded"
        };
        world.until("the guest has moved", 20 * MINUTE, done).await.unwrap();
        assert_eq!(launchers(world, "vm-1").await.len(), 2, "the one it left and the one it is in");
        assert_eq!(world.sandbox().api().faults.list()[1]["injected"], 1);
    });
    ran.unwrap();
}

#[test]
fn vms_start_move_and_stop_in_every_release() {
    for release in sandbox::sim::Release::ALL {
        let options = sandbox::Options { seed: 9, nodes: 2, vms: 1, release, ..sandbox::Options::default() };
        let ran = Simulation::of(options).run(async |world| {
            ready(world, 1).await;
            let kubevirt =
                world.get("/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt").await.unwrap();
            assert_eq!(kubevirt["status"]["observedKubeVirtVersion"], release.tag());
            let left = node_of(world, "vm-1").await;
            let api = "/apis/kubevirt.io/v1/namespaces/default";
            let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": "move", "namespace": "default"}, "spec": {"vmiName": "vm-1"}});
            let path = format!("{api}/virtualmachineinstancemigrations");
            world.send(Request::post(&path).body(migration).unwrap()).await.unwrap();
            let moved = async || {
                let done = world.get(&format!("{path}/move")).await.unwrap();
                done["status"]["phase"] == "Succeeded" && node_of(world, "vm-1").await != left
            };
            world.until("the guest has moved", 2 * MINUTE, moved).await.unwrap();
            let stop = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/vm-1/stop";
            let stop = Request::put(stop).header("content-type", "application/json").body(b"{}".to_vec());
            world.client().request_text(stop.unwrap()).await.unwrap();
            let stopped = async || {
                let vm = world.get(&format!("{api}/virtualmachines/vm-1")).await.unwrap();
                vm["status"]["printableStatus"] == "Stopped"
            };
            world.until("the VM has stopped", 2 * MINUTE, stopped).await.unwrap();
        });
        ran.unwrap_or_else(|error| panic!("{release}: {error}"));
    }
}

/// A live migration there and back, with messages that take up to a tenth of a second each, so that every
/// component is late in its own way. `MOVES=FIRST..LAST` tries other seeds.
#[test]
fn a_guest_moves_there_and_back_however_late_messages_are() {
    let chosen = std::env::var("MOVES").ok();
    let (first, last) = chosen
        .as_deref()
        .and_then(|range| range.split_once(".."))
        .map_or((1, 3), |(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
    for seed in first..=last {
        let simulation = Simulation::new(seed).transit(Duration::from_millis(100));
        let moved = simulation.nodes(2).vms(1).run(async |world| {
            ready(world, 1).await;
            let vmi = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm-1";
            let node = async || world.get(vmi).await.unwrap()["status"]["nodeName"].clone();
            let home = node().await;
            for (name, there) in [("there", false), ("back", true)] {
                let migration = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                    "metadata": {"name": name, "namespace": "default"}, "spec": {"vmiName": "vm-1"}});
                let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
                world.send(Request::post(path).body(migration).unwrap()).await.unwrap();
                let path = format!("{path}/{name}");
                let over = async || world.get(&path).await.is_ok_and(|one| one["status"]["phase"] == "Succeeded");
                let waited = world.until(name, MINUTE, over).await;
                assert!(waited.is_ok(), "seed {seed}: {:#}", world.get(&path).await.unwrap()["status"]);
                let phases = world.get(&path).await.unwrap()["status"]["phaseTransitionTimestamps"].clone();
                let phases: Vec<_> = phases.as_array().unwrap().iter().map(|one| one["phase"].clone()).collect();
                let order =
                    ["Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Succeeded"];
                assert_eq!(phases, order, "seed {seed}");
                let tidy = async || {
                    let vmi = world.get(vmi).await.unwrap();
                    let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
                    vmi["metadata"]["labels"].get("kubevirt.io/migrationTargetNodeName").is_none()
                        && vmi["status"]["conditions"].as_array().unwrap().iter().any(is_ready)
                };
                let waited = world.until("tidy", MINUTE, tidy).await;
                let vmi = world.get(vmi).await.unwrap();
                assert!(waited.is_ok(), "seed {seed}: {vmi:#}");
                let state = &vmi["status"]["migrationState"];
                assert_eq!((&state["completed"], &state["mode"]), (&json!(true), &json!("PreCopy")), "seed {seed}");
                assert_eq!(vmi["status"]["nodeName"] == home, there, "seed {seed}: {state:#}");
                assert_eq!(state["targetNode"], vmi["status"]["nodeName"], "seed {seed}");
                assert_eq!(vmi["metadata"]["labels"]["kubevirt.io/nodeName"], vmi["status"]["nodeName"], "seed {seed}");
                assert_eq!(vmi["status"]["interfaces"][0]["name"], "default", "seed {seed}");
                let old = format!("/api/v1/namespaces/default/pods/{}", state["sourcePod"].as_str().unwrap());
                let ended = async || world.get(&old).await.is_ok_and(|pod| pod["status"]["phase"] == "Succeeded");
                world.until("the old pod has ended", MINUTE, ended).await.unwrap();
            }
            ready(world, 1).await;
        });
        moved.unwrap();
    }
}
