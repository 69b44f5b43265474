//! What is written against the Kubernetes API bears what the sandbox lets go wrong: kube-rs'
//! watcher, reflector and Controller, server-side apply, locks on Leases, and virt-controller.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::utils::{Backoff, WatchStreamExt as _};
use kube::runtime::{reflector, watcher};
use sandbox::clock::Ids;
use sandbox::{Options, Sandbox};
use serde_json::{Value, json};

/// No condition of these tests takes longer, even on a busy machine.
const BOUND: Duration = Duration::from_mins(2);

async fn client(sandbox: &Sandbox) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // What is tested is what the libraries above the client do.
    config.default_retry = false;
    kube::Client::try_from(config).unwrap()
}

async fn start(faults: &[&str]) -> Sandbox {
    let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    Sandbox::start(Options { seed: 11, faults, ..Options::default() }).await.unwrap()
}

fn injected(sandbox: &Sandbox) -> u64 {
    sandbox.api().faults.list().iter().filter_map(|fault| fault["injected"].as_u64()).sum()
}

fn config_map(name: &str, text: &str) -> ConfigMap {
    let labels = json!({"of": "test"});
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "data": {"text": text}}))
        .unwrap()
}

/// Tries again soon, for ever.
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(5))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {}
}

/// Waits until a condition holds.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(BOUND, waiting).await.is_ok(), "never: {what}");
}

fn versions<'a>(maps: impl IntoIterator<Item = &'a ConfigMap>) -> BTreeMap<String, String> {
    let of = |map: &ConfigMap| {
        (map.metadata.name.clone().unwrap(), map.metadata.resource_version.clone().unwrap())
    };
    maps.into_iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_ends_up_with_what_the_server_has() {
    for streaming in [false, true] {
        let sandbox = start(&[
            "watch-drop:events=2,resource=configmaps",
            "watch-lag:ms=2,rate=0.5,resource=configmaps",
            "gone:rate=0.3,resource=configmaps",
            "error:code=500,rate=0.3,verb=list+watch,resource=configmaps",
            "error:code=429,rate=0.1,verb=list+watch,resource=configmaps",
        ])
        .await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client(&sandbox).await);
        let config = watcher::Config::default().labels("of=test").page_size(3);
        let config = if streaming { config.streaming_lists() } else { config };
        let (store, writer) = reflector::store();
        let events = watcher(maps.clone(), config).backoff(Soon).reflect(writer).for_each(|_| async {});
        let reflecting = tokio::spawn(events);
        let dice = Ids::new(3);
        for step in 0..5000 {
            if step > 150 && injected(&sandbox) > 20 {
                break;
            }
            let name = format!("c{}", dice.next() % 12);
            let map = config_map(&name, &step.to_string());
            match dice.next() % 3 {
                0 => drop(maps.delete(&name, &DeleteParams::default()).await),
                1 => drop(maps.create(&PostParams::default(), &map).await),
                _ => drop(maps.patch(&name, &PatchParams::default(), &Patch::Merge(&map)).await),
            }
        }
        assert!(injected(&sandbox) > 20, "{} faults", injected(&sandbox));
        sandbox.api().faults.clear(None);
        let there = versions(&maps.list(&ListParams::default().labels("of=test")).await.unwrap().items);
        until("the reflector has what the server has", || async {
            let state = store.state();
            versions(state.iter().map(AsRef::as_ref)) == there
        })
        .await;
        reflecting.abort();
        sandbox.shutdown().await;
    }
}

/// Keeps a copy of each map, in capital letters, by server-side apply.
async fn copy(map: Arc<ConfigMap>, maps: Arc<Api<ConfigMap>>) -> Result<Action, kube::Error> {
    let text = map.data.as_ref().and_then(|data| data.get("text")).cloned().unwrap_or_default();
    let name = format!("copy-{}", map.metadata.name.as_deref().unwrap_or_default());
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"text": text.to_uppercase()}});
    maps.patch(&name, &PatchParams::apply("copier"), &Patch::Apply(&object)).await?;
    Ok(Action::await_change())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_with_server_side_apply_gets_its_work_done() {
    let sandbox = start(&[
        "error:code=500,rate=0.2,verb=patch,resource=configmaps,name=copy-*",
        "error:code=409,rate=0.1,resource=configmaps,name=copy-*",
        "lost-answer:rate=0.2,verb=patch,resource=configmaps,name=copy-*",
        "watch-drop:events=3,rate=0.5,resource=configmaps",
        "latency:ms=1,jitter=10,resource=configmaps",
    ])
    .await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&sandbox).await);
    let controller = Controller::new(maps.clone(), watcher::Config::default().labels("of=test"))
        .run(copy, |_, _: &kube::Error, _| Action::requeue(Duration::from_millis(20)), Arc::new(maps.clone()))
        .for_each(|_| async {});
    let running = tokio::spawn(controller);
    for index in 0..15 {
        maps.create(&PostParams::default(), &config_map(&format!("m{index}"), &format!("text {index}")))
            .await
            .unwrap();
    }
    until("every map has its copy", || async {
        let mut done = 0;
        for index in 0..15 {
            let copy = maps.get_opt(&format!("copy-m{index}")).await.unwrap();
            let text = copy.and_then(|copy| copy.data?.remove("text"));
            done += usize::from(text == Some(format!("TEXT {index}")));
        }
        done == 15
    })
    .await;
    assert!(injected(&sandbox) > 10);
    running.abort();
    sandbox.shutdown().await;
}

/// Takes the lock when it is free, for one turn: what counts is what the Lease says, not whether an
/// answer came.
async fn take_turns(leases: Api<Lease>, me: String, inside: Arc<AtomicUsize>, turns: Arc<AtomicUsize>) {
    let mut mine = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let Ok(mut lease) = leases.get("lock").await else { continue };
        let holder = lease.spec.clone().unwrap_or_default().holder_identity.unwrap_or_default();
        if mine >= 5 && holder != me {
            return;
        }
        if holder.is_empty() {
            lease.spec.get_or_insert_default().holder_identity = Some(me.clone());
            let _ = leases.replace("lock", &PostParams::default(), &lease).await;
        } else if holder == me {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            mine += 1;
            turns.fetch_add(1, Ordering::SeqCst);
            lease.spec.get_or_insert_default().holder_identity = None;
            // When the answer is lost or the write refused, the Lease still says whose turn it is.
            let _ = leases.replace("lock", &PostParams::default(), &lease).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_lease_is_held_by_one_at_a_time() {
    let sandbox = start(&[
        "error:code=500,rate=0.1,resource=leases,name=lock",
        "error:code=409,rate=0.1,resource=leases,name=lock",
        "lost-answer:rate=0.2,resource=leases,name=lock",
        "latency:ms=0,jitter=5,resource=leases,name=lock",
    ])
    .await;
    let leases: Api<Lease> = Api::default_namespaced(client(&sandbox).await);
    let lease = serde_json::from_value(json!({"metadata": {"name": "lock"}, "spec": {}})).unwrap();
    while leases.get_opt("lock").await.ok().flatten().is_none() {
        let _ = leases.create(&PostParams::default(), &lease).await;
    }
    let (inside, turns) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let all =
        (0..3).map(|index| take_turns(leases.clone(), format!("c{index}"), inside.clone(), turns.clone()));
    assert!(tokio::time::timeout(BOUND, futures::future::join_all(all)).await.is_ok(), "{turns:?} turns");
    assert!(injected(&sandbox) > 5);
    sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_run_although_virt_controller_dies_between_its_writes() {
    let options = Options { seed: 5, nodes: 1, ..Options::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    let user = "system:serviceaccount:kubevirt:kubevirt-controller";
    for fault in [
        format!("crash:user={user},rate=0.2,down=20,times=12"),
        format!("lost-answer:user={user},rate=0.1"),
        format!("error:code=500,user={user},rate=0.1,resource=virtualmachineinstances"),
    ] {
        sandbox.api().faults.add(fault.parse().unwrap()).unwrap();
    }
    let client = client(&sandbox).await;
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines";
    for index in 0..6 {
        let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": format!("vm-{index}")},
            "spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"devices": {},
                "resources": {"requests": {"memory": "64Mi"}}}}}}});
        let request = http::Request::post(path).header("content-type", "application/json");
        client.request::<Value>(request.body(vm.to_string().into_bytes()).unwrap()).await.unwrap();
    }
    until("all VMs are ready", || async {
        let list: Value = client.request(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
        list["items"].as_array().unwrap().iter().filter(|vm| vm["status"]["ready"] == true).count() == 6
    })
    .await;
    let faults = sandbox.api().faults.list();
    assert!(faults[0]["injected"].as_u64() > Some(2), "{faults:?}");
    sandbox.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_grows_and_lets_things_go() {
    let sandbox = start(&[]).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&sandbox).await);
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    sandbox.api().faults.add("disk-full".parse().unwrap()).unwrap();
    let full = |error: kube::Error| match error {
        kube::Error::Api(status) => {
            assert_eq!(
                (status.code, status.message.as_str()),
                (500, "etcdserver: mvcc: database space exceeded")
            );
        }
        other => panic!("{other}"),
    };
    full(maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap_err());
    let change = Patch::Merge(config_map("a", "2"));
    full(maps.patch("a", &PatchParams::default(), &change).await.unwrap_err());
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    sandbox.api().faults.clear(None);
    maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    sandbox.shutdown().await;
}

/// The names that a watch tells of, until it ends or breaks.
async fn told(client: &kube::Client) -> tokio::sync::mpsc::UnboundedReceiver<Result<String, ()>> {
    let path = "/api/v1/namespaces/default/configmaps?watch=true&labelSelector=of%3Dtest&resourceVersion=0";
    let answer = client.send(http::Request::get(path).body(Vec::new().into()).unwrap()).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut body = answer.into_body();
        // A watch has no end of its own here: whatever ends it has broken it.
        while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut body).await {
            for line in frame.into_data().unwrap_or_default().split(|byte| *byte == b'\n') {
                if let Ok(event) = serde_json::from_slice::<Value>(line) {
                    let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
                    let _ = sender.send(Ok(name.to_owned()));
                }
            }
        }
        let _ = sender.send(Err(()));
    });
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_run_already_break_and_lag_too() {
    let sandbox = start(&[]).await;
    let client = client(&sandbox).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let create = async |name: &str| {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    };
    create("a").await;
    let mut watch = told(&client).await;
    let hear = async |watch: &mut tokio::sync::mpsc::UnboundedReceiver<Result<String, ()>>| {
        tokio::time::timeout(BOUND, watch.recv()).await.unwrap().unwrap()
    };
    assert_eq!(hear(&mut watch).await, Ok("a".into()));

    let lag = sandbox.api().faults.add("watch-lag:ms=700,resource=configmaps".parse().unwrap()).unwrap();
    assert_eq!(lag["injected"], 1, "the watch that runs");
    let before = std::time::Instant::now();
    create("b").await;
    assert_eq!(hear(&mut watch).await, Ok("b".into()));
    assert!(before.elapsed() >= Duration::from_millis(700), "{:?}", before.elapsed());
    sandbox.api().faults.clear(None);

    sandbox.api().faults.add("watch-drop:events=1,resource=configmaps".parse().unwrap()).unwrap();
    create("c").await;
    assert_eq!((hear(&mut watch).await, hear(&mut watch).await), (Ok("c".into()), Err(())));

    sandbox.api().faults.clear(None);
    let mut quiet = told(&client).await;
    for name in ["a", "b", "c"] {
        assert_eq!(hear(&mut quiet).await, Ok(name.into()));
    }
    sandbox.api().faults.add("watch-drop:resource=configmaps".parse().unwrap()).unwrap();
    assert_eq!(hear(&mut quiet).await, Err(()), "without any event");
    sandbox.shutdown().await;
}
