//! Changes of VMs that run: orders, interfaces, migrations, volumes, devices.

use provider::cluster::{Attach, MigrateTo, VolumeChange};
use provider::device::{Sort, Wish as Device};
use provider::network::{Binding, Effect, Nic, Wish as NicWish};
use provider::order::Order;
use provider::view::volume::Volume;

use super::changes::NAMES;
use super::*;

/// Asks until a VM stands where it should; KubeVirt says so a moment after the instance is there.
async fn stands(provider: Provider, name: String, status: &'static str) -> Result<String, Error> {
    let reached = async {
        loop {
            let now = provider.describe(&id(&name)).await?.summary.status;
            if now == status {
                return Ok(now);
            }
        }
    };
    tokio::time::timeout(MINUTES, reached).await.unwrap_or_else(|_| panic!("{name} is never {status}"))
}

/// An order, and where it leads.
fn order(line: &'static str, rest: &'static str, body: Value, order: Order, status: &'static str) -> Row {
    let wait = body["wait"] == true;
    row(line, rest, body, move |p, name| async move {
        let done = p.order(&id(&name), order, false).await?;
        if let Some(goal) = done.goal.filter(|_| wait) {
            p.wait(&id(&name), &goal, MINUTES, &mut |_| ()).await?;
        }
        Ok(())
    })
    .seen(move |p, name| stands(p, name, status))
}

/// An order that is refused.
fn refused(line: &'static str, rest: &'static str, order: Order) -> Row {
    row(line, rest, json!({}), move |p, name| async move { p.order(&id(&name), order, false).await })
        .refused()
}

/// The life of a VM.
fn orders() -> Vec<Row> {
    let wait = || json!({"wait": true, "timeoutSeconds": 180});
    let (start, pause, unpause) = (Order::Start { paused: false }, Order::Pause, Order::Unpause);
    vec![
        refused("vm pause {}", "POST /kubevirt/vms/default/{}/pause", pause),
        order(
            "vm start {} --paused --wait",
            "POST /kubevirt/vms/default/{}/start",
            json!({"paused": true, "wait": true, "timeoutSeconds": 180}),
            Order::Start { paused: true },
            "Paused",
        ),
        order("vm unpause {} --wait", "POST /kubevirt/vms/default/{}/unpause", wait(), unpause, "Running"),
        refused("vm start {}", "POST /kubevirt/vms/default/{}/start", start),
        order("vm pause {} --wait", "POST /kubevirt/vms/default/{}/pause", wait(), pause, "Paused"),
        refused("vm pause {}", "POST /kubevirt/vms/default/{}/pause", pause),
        order("vm unpause {} --wait", "POST /kubevirt/vms/default/{}/unpause", wait(), unpause, "Running"),
        refused("vm unpause {}", "POST /kubevirt/vms/default/{}/unpause", unpause),
        order(
            "vm restart {} --force --wait",
            "POST /kubevirt/vms/default/{}/restart",
            json!({"force": true, "wait": true, "timeoutSeconds": 180}),
            Order::Restart { force: true },
            "Running",
        ),
        order(
            "vm soft-reboot {}",
            "POST /kubevirt/vms/default/{}/soft-reboot",
            json!({}),
            Order::SoftReboot,
            "Running",
        ),
        order("vm reset {}", "POST /kubevirt/vms/default/{}/reset", json!({}), Order::Reset, "Running"),
        order(
            "vm stop {} --force --wait",
            "POST /kubevirt/vms/default/{}/stop",
            json!({"gracePeriodSeconds": 0, "wait": true, "timeoutSeconds": 180}),
            Order::Stop { grace: Some(0) },
            "Stopped",
        ),
        refused("vm stop {}", "POST /kubevirt/vms/default/{}/stop", Order::Stop { grace: None }),
        refused("vm reset {}", "POST /kubevirt/vms/default/{}/reset", Order::Reset),
        order("vm start {} --wait", "POST /kubevirt/vms/default/{}/start", wait(), start, "Running"),
    ]
}

fn nic(network: &str) -> NicWish {
    let (name, network) = ("lan".to_owned(), network.to_owned());
    NicWish::Add(Nic { name, network, binding: Binding::Bridge, mac: None, model: None })
}

/// A change of interfaces; with `wait` until the guest has it.
fn change_nic(line: &'static str, rest: &'static str, body: Value, wish: NicWish) -> Row {
    let (dry, wait) = (body["dryRun"] == true, body["wait"] == true);
    row(line, rest, body, move |p, name| {
        let wish = wish.clone();
        async move {
            let change = p.change_nic(&id(&name), &wish, dry).await?;
            if wait {
                if change.effect == Effect::AfterMigration {
                    p.migrate(&id(&name), &MigrateTo::default(), false).await?;
                }
                p.wait_nic(&id(&name), &wish, &change, MINUTES, &mut |_| ()).await?;
            }
            Ok(change)
        }
    })
}

fn nics() -> Vec<Row> {
    let nics = "POST /kubevirt/vms/default/{}/nics";
    vec![
        change_nic(
            "nic add {} lan --network nowhere",
            nics,
            json!({"name": "lan", "network": "nowhere"}),
            nic("nowhere"),
        )
        .refused(),
        change_nic(
            "nic add {} lan --network vlan7 --dry-run",
            nics,
            json!({"name": "lan", "network": "vlan7", "dryRun": true}),
            nic("vlan7"),
        ),
        change_nic(
            "nic add {} lan --network vlan7 --migrate --wait --timeout 3m",
            nics,
            json!({"name": "lan", "network": "vlan7", "migrate": true, "wait": true, "timeoutSeconds": 180}),
            nic("vlan7"),
        ),
        change_nic(
            "nic add {} lan --network vlan7",
            nics,
            json!({"name": "lan", "network": "vlan7"}),
            nic("vlan7"),
        )
        .refused(),
        change_nic(
            "nic link {} lan down --wait",
            "POST /kubevirt/vms/default/{}/nics/lan/link",
            json!({"state": "down", "wait": true, "timeoutSeconds": 180}),
            NicWish::Link { name: "lan".into(), up: false },
        ),
        change_nic(
            "nic remove {} lan --wait",
            "POST /kubevirt/vms/default/{}/nics/lan/remove",
            json!({"wait": true, "timeoutSeconds": 180}),
            NicWish::Remove { name: "lan".into() },
        ),
        change_nic(
            "nic remove {} wan",
            "POST /kubevirt/vms/default/{}/nics/wan/remove",
            json!({}),
            NicWish::Remove { name: "wan".into() },
        )
        .refused(),
    ]
}

/// How many migrations of a VM have come to which end.
async fn migrations(provider: Provider, name: String) -> Result<Vec<String>, Error> {
    let all = provider.migrations(Some("default")).await?;
    Ok(all.into_iter().filter(|one| one.vm == name).map(|one| one.phase).collect())
}

fn moves() -> Vec<Row> {
    vec![
        row(
            "vm migrate {} --wait",
            "POST /kubevirt/vms/default/{}/migrate",
            json!({"wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let migration = p.migrate(&id(&name), &MigrateTo::default(), false).await?;
                p.wait_migration(&migration, MINUTES, &mut |_| ()).await
            },
        )
        .seen(migrations),
        row(
            "vm migrate {} --node no_node",
            "POST /kubevirt/vms/default/{}/migrate",
            json!({"node": "no_node"}),
            |p, name| async move {
                p.migrate(&id(&name), &MigrateTo { node: Some("no_node".into()) }, false).await
            },
        )
        .refused(),
        row(
            "migration cancel --vm {}",
            "POST /kubevirt/vms/default/{}/migrate/cancel",
            json!({}),
            |p, name| async move { p.cancel_migration(&id(&name), false).await },
        )
        .refused(),
    ]
}

fn extra(name: &str) -> VolumeChange {
    let add = Attach {
        name: "extra".into(),
        claim: Some(format!("{name}-extra")),
        data_volume: None,
        bus: None,
        device: None,
        serial: None,
        cache: None,
        read_only: false,
    };
    VolumeChange { add: vec![add], remove: Vec::new() }
}

async fn attached(provider: Provider, name: String) -> Result<Vec<Volume>, Error> {
    provider.volumes(&id(&name)).await
}

fn volumes() -> Vec<Row> {
    vec![
        row(
            "volume add {} --volume extra={}-extra",
            "POST /kubevirt/vms/default/{}/volumes",
            json!({"add": [{"name": "extra", "claim": "{}-extra"}], "wait": true, "timeoutSeconds": 180}),
            |p, name| async move { p.change_volumes(&id(&name), &extra(&name), MINUTES, &mut |_| ()).await },
        )
        .in_words()
        .seen(attached),
        row(
            "volume remove {} --volume extra",
            "POST /kubevirt/vms/default/{}/volumes",
            json!({"remove": ["extra"], "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let change = VolumeChange { add: Vec::new(), remove: vec!["extra".into()] };
                p.change_volumes(&id(&name), &change, MINUTES, &mut |_| ()).await
            },
        )
        .in_words()
        .seen(attached),
        row(
            "volume expand {} --volume root --size 1Mi",
            "POST /kubevirt/vms/default/{}/volumes/root/expand",
            json!({"size": "1Mi"}),
            |p, name| async move { p.expand_volume(&id(&name), "root", "1Mi", false).await },
        )
        .refused(),
        row(
            "volume expand {} --volume root --size 256Mi --wait",
            "POST /kubevirt/vms/default/{}/volumes/root/expand",
            json!({"size": "256Mi", "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let expansion = p.expand_volume(&id(&name), "root", "256Mi", false).await?;
                p.wait_expansion(&expansion, MINUTES, &mut |_| ()).await?;
                Ok(expansion)
            },
        ),
    ]
}

/// A device that the simulated cluster permits.
const GPU: &str = "nvidia.com/TU104GL_Tesla_T4";

fn devices() -> Vec<Row> {
    let wish = |device: Option<&str>, on_next_start| Device {
        name: "gpu1".into(),
        device: device.map(str::to_owned),
        sort: Sort::Gpu,
        on_next_start,
    };
    let change = |line, body, wish: Device| {
        row(line, "POST /kubevirt/vms/default/{}/devices", body, move |p, name| {
            let wish = wish.clone();
            async move { p.change_device(&id(&name), &wish, false).await }
        })
    };
    vec![
        change(
            "vm attach-device {} gpu1 --device nvidia.com/TU104GL_Tesla_T4",
            json!({"name": "gpu1", "device": GPU}),
            wish(Some(GPU), false),
        )
        .refused(),
        change(
            "vm attach-device {} gpu1 --device vendor.example/none --on-next-start",
            json!({"name": "gpu1", "device": "vendor.example/none", "onNextStart": true}),
            wish(Some("vendor.example/none"), true),
        )
        .refused(),
        change(
            "vm attach-device {} gpu1 --device nvidia.com/TU104GL_Tesla_T4 --on-next-start",
            json!({"name": "gpu1", "device": GPU, "onNextStart": true}),
            wish(Some(GPU), true),
        ),
        change(
            "vm detach-device {} gpu1 --on-next-start",
            json!({"name": "gpu1", "onNextStart": true}),
            wish(None, true),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_faces_give_the_same_results() {
    let faces = Faces::start("2").await;
    faces
        .create(
            "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions",
            &json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": "vlan7"}, "spec": {"config": "{\"cniVersion\":\"0.3.1\",\"type\":\"bridge\"}"}}),
        )
        .await;
    for name in NAMES {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("{name}-extra")}, "spec": {"accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "32Mi"}}}});
        faces.create("/api/v1/namespaces/default/persistentvolumeclaims", &claim).await;
    }
    faces.machines().await;
    faces.go(orders()).await;
    faces.go(nics()).await;
    faces.go(moves()).await;
    faces.go(volumes()).await;
    faces.go(devices()).await;
    let log = faces.service.end();
    assert!(log.contains("/kubevirt/vms/default/by-rest/start") && log.contains("status=200"), "{log}");
}
