//! Virtual time: nobody waits, and a seed decides everything.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

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
