//! What changes something: one VM for each face goes the same way.

use provider::clone::{Origin, Wish as Copy};
use provider::cluster::{Attach, ExportWish, MigrateTo, Parameters, VolumeChange};
use provider::device::{Sort, Wish as Device};
use provider::disposal::Disks;
use provider::network::{Binding, Effect, Nic, Wish as NicWish};
use provider::order::Order;
use provider::view::volume::Volume;
use provider::wait::Goal;

use super::*;

const NAMES: [&str; 3] = ["by-line", "by-rest", "by-code"];

/// What is of the time, or drawn.
const DRAWN: [&str; 10] = [
    "created",
    "started",
    "ended",
    "expires",
    "uid",
    "resourceVersion",
    "mac",
    "addresses",
    "url",
    "tokenSecret",
];

/// An answer without what differs between VMs that went the same way.
fn plain(answer: Value, name: &str) -> Value {
    match answer {
        Value::Object(all) => {
            // guards of patches hold what was read
            let guard = all.get("op").is_some_and(|op| op == "test");
            let kept = all
                .into_iter()
                .filter(|(key, _)| !DRAWN.contains(&key.as_str()) && !(guard && key == "value"));
            kept.map(|(key, value)| (key, plain(value, name))).collect()
        }
        Value::Array(all) => all.into_iter().map(|one| plain(one, name)).collect(),
        Value::String(text) => {
            let text = text.replace(name, "NAME");
            // what `generateName` adds (`k8s.io/apimachinery/pkg/util/rand`)
            let drawn = |end: &str| {
                end.len() == 5 && end.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
            };
            match text.rsplit_once('-') {
                Some((stem, end)) if drawn(end) => format!("{stem}-*").into(),
                _ => text.into(),
            }
        }
        other => other,
    }
}

fn machine(name: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": {
        "runStrategy": "Manual",
        "dataVolumeTemplates": [{"metadata": {"name": format!("{name}-root")}, "spec": {"source": {"blank": {}},
            "storage": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "64Mi"}}}}}],
        "template": {"spec": {
            "domain": {"memory": {"guest": "128Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "dataVolume": {"name": format!("{name}-root")}}]}}}})
}

impl Faces {
    async fn machines(&self) {
        for name in NAMES {
            self.library.create_vm("default", &machine(name), false).await.unwrap();
        }
    }

    async fn go(&self, rows: Vec<Row>) {
        for row in rows {
            self.each(&row, NAMES, plain).await;
        }
    }
}

/// Where a VM stands.
async fn standing(provider: Provider, name: String) -> Result<String, Error> {
    Ok(provider.describe(&id(&name)).await?.summary.status)
}

/// An order, and where it leads.
fn order(line: &'static str, rest: &'static str, body: Value, order: Order) -> Row {
    let wait = body["wait"] == true;
    row(line, rest, body, move |p, name| async move {
        let done = p.order(&id(&name), order, false).await?;
        if let Some(goal) = done.goal.filter(|_| wait) {
            p.wait(&id(&name), &goal, MINUTES, &mut |_| ()).await?;
        }
        Ok(())
    })
    .seen(standing)
}

/// The life of a VM. What is not waited for is refused: its outcome would be one of time.
fn orders() -> Vec<Row> {
    let wait = || json!({"wait": true, "timeoutSeconds": 180});
    let none = || json!({});
    vec![
        order("vm pause {}", "POST /kubevirt/vms/default/{}/pause", none(), Order::Pause).refused(),
        order(
            "vm start {} --paused --wait",
            "POST /kubevirt/vms/default/{}/start",
            json!({"paused": true, "wait": true, "timeoutSeconds": 180}),
            Order::Start { paused: true },
        ),
        order("vm unpause {} --wait", "POST /kubevirt/vms/default/{}/unpause", wait(), Order::Unpause),
        order("vm start {}", "POST /kubevirt/vms/default/{}/start", none(), Order::Start { paused: false })
            .refused(),
        order("vm pause {} --wait", "POST /kubevirt/vms/default/{}/pause", wait(), Order::Pause),
        order("vm pause {}", "POST /kubevirt/vms/default/{}/pause", none(), Order::Pause).refused(),
        order("vm unpause {} --wait", "POST /kubevirt/vms/default/{}/unpause", wait(), Order::Unpause),
        order("vm unpause {}", "POST /kubevirt/vms/default/{}/unpause", none(), Order::Unpause).refused(),
        order(
            "vm restart {} --force --wait",
            "POST /kubevirt/vms/default/{}/restart",
            json!({"force": true, "wait": true, "timeoutSeconds": 180}),
            Order::Restart { force: true },
        ),
        order("vm soft-reboot {}", "POST /kubevirt/vms/default/{}/soft-reboot", none(), Order::SoftReboot),
        order("vm reset {}", "POST /kubevirt/vms/default/{}/reset", none(), Order::Reset),
        order(
            "vm stop {} --force --wait",
            "POST /kubevirt/vms/default/{}/stop",
            json!({"gracePeriodSeconds": 0, "wait": true, "timeoutSeconds": 180}),
            Order::Stop { grace: Some(0) },
        ),
        order("vm stop {}", "POST /kubevirt/vms/default/{}/stop", none(), Order::Stop { grace: None })
            .refused(),
        order("vm reset {}", "POST /kubevirt/vms/default/{}/reset", none(), Order::Reset).refused(),
        order(
            "vm start {} --wait",
            "POST /kubevirt/vms/default/{}/start",
            wait(),
            Order::Start { paused: false },
        ),
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

fn snapshots() -> Vec<Row> {
    vec![
        row(
            "snapshot create {} --name {}-before --wait",
            "POST /kubevirt/vms/default/{}/snapshot",
            json!({"name": "{}-before", "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let snapshot = p.snapshot(&id(&name), Some(&format!("{name}-before")), false).await?;
                p.wait_snapshot(&snapshot, MINUTES, &mut |_| ()).await
            },
        ),
        row(
            "snapshot create {} --name {}-before",
            "POST /kubevirt/vms/default/{}/snapshot",
            json!({"name": "{}-before"}),
            |p, name| async move { p.snapshot(&id(&name), Some(&format!("{name}-before")), false).await },
        )
        .refused(),
        row(
            "snapshot restore {}-before",
            "POST /kubevirt/vms/default/{}/restore",
            json!({"snapshot": "{}-before"}),
            |p, name| async move { p.restore(&id(&name), &format!("{name}-before"), false, false).await },
        )
        .refused(),
        row(
            "snapshot restore {}-before --stop --wait",
            "POST /kubevirt/vms/default/{}/restore",
            json!({"snapshot": "{}-before", "stop": true, "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let restore = p.restore(&id(&name), &format!("{name}-before"), true, false).await?;
                p.wait_restore(&restore, MINUTES, &mut |_| ()).await?;
                Ok(restore)
            },
        ),
        row(
            "snapshot restore {}-before --to {}-other --wait",
            "POST /kubevirt/vms/default/{}/restore",
            json!({"snapshot": "{}-before", "target": "{}-other", "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let other = id(&format!("{name}-other"));
                let restore = p.restore(&other, &format!("{name}-before"), false, false).await?;
                p.wait_restore(&restore, MINUTES, &mut |_| ()).await?;
                Ok(restore)
            },
        ),
        // the program fetches what is exported; the service and the library say where it is
        row(
            "",
            "POST /kubevirt/vms/default/{}/export",
            json!({"snapshot": "{}-before", "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let wish = ExportWish { snapshot: Some(format!("{name}-before")), ttl_hours: None };
                let export = p.export(&id(&name), &wish, false).await?;
                let ready = p.wait_export(&export, MINUTES, &mut |_| ()).await?;
                assert_eq!((ready.phase.as_str(), ready.links.is_empty()), ("Ready", false), "{ready:?}");
                assert!(ready.links.iter().all(|link| link.url.starts_with("https://")), "{ready:?}");
                Ok(ready)
            },
        ),
    ]
}

/// A copy with addresses and a serial number that were chosen.
fn chosen(name: &str) -> Copy {
    let macs = [("default".to_owned(), "02:00:00:00:00:AA".to_owned())].into();
    Copy { target: format!("{name}-copy"), macs, serial: Some("SN-7".into()) }
}

fn clones() -> Vec<Row> {
    let path = "POST /kubevirt/vms/default/{}/clone";
    vec![
        row(
            "clone {} {}-copy --mac wan=02:00:00:00:00:AA",
            path,
            json!({"target": "{}-copy", "macAddresses": {"wan": "02:00:00:00:00:AA"}}),
            |p, name| async move {
                let macs = [("wan".to_owned(), "02:00:00:00:00:AA".to_owned())].into();
                let wish = Copy { target: format!("{name}-copy"), macs, serial: None };
                p.clone_vm("default", &Origin::Vm(name), &wish, false).await
            },
        )
        .refused(),
        row(
            "clone {} {}-copy --mac default=02:00:00:00:00:AA --serial SN-7 --wait",
            path,
            json!({"target": "{}-copy", "macAddresses": {"default": "02:00:00:00:00:AA"}, "serial": "SN-7",
                "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let wish = chosen(&name);
                let clone = p.clone_vm("default", &Origin::Vm(name), &wish, false).await?;
                p.wait_clone(&clone, MINUTES, &mut |_| ()).await
            },
        )
        .seen(async |p: Provider, name: String| {
            let copy = p.vm_object(&id(&format!("{name}-copy")), "looking at a copy").await?;
            let domain = &copy["spec"]["template"]["spec"]["domain"];
            let seen = (&domain["devices"]["interfaces"][0]["macAddress"], &domain["firmware"]["serial"]);
            // with hyphens, as libvirt takes them as well
            assert_eq!(seen, (&json!("02-00-00-00-00-aa"), &json!("SN-7")), "{domain}");
            Ok(())
        }),
        row("clone {} {}-copy", path, json!({"target": "{}-copy"}), |p, name| async move {
            let wish = Copy::named(&format!("{name}-copy"));
            p.clone_vm("default", &Origin::Vm(name), &wish, false).await
        })
        .refused(),
        row(
            "clone --snapshot {}-before {}-third --wait",
            path,
            json!({"target": "{}-third", "snapshot": "{}-before", "wait": true, "timeoutSeconds": 180}),
            |p, name| async move {
                let (origin, wish) =
                    (Origin::Snapshot(format!("{name}-before")), Copy::named(&format!("{name}-third")));
                let clone = p.clone_vm("default", &origin, &wish, false).await?;
                p.wait_clone(&clone, MINUTES, &mut |_| ()).await?;
                Ok(clone)
            },
        ),
    ]
}

/// What REST and the program say when something is deleted.
fn gone(name: &str) -> Value {
    json!({"namespace": "default", "name": name, "dryRun": false})
}

fn templates() -> Vec<Row> {
    let golden = |name: &str| id(&format!("{name}-golden"));
    vec![
        row(
            "template make {}-golden --from {} --wait",
            "POST /kubevirt/vms/default/{}/template",
            json!({"name": "{}-golden", "wait": true, "timeoutSeconds": 180}),
            move |p, name| async move {
                let made = p.make_template(&id(&name), golden(&name).name(), false).await?;
                p.wait_template(&made, MINUTES, &mut |_| ()).await?;
                Ok(json!({"namespace": "default", "name": made.name(), "vm": name}))
            },
        ),
        row(
            "template create {}-golden -p NAME={}-made",
            "POST /kubevirt/templates/default/{}-golden/create",
            json!({"parameters": {"NAME": "{}-made"}}),
            move |p, name| async move {
                let values = Parameters::from([("NAME".to_owned(), format!("{name}-made"))]);
                p.create_from_template(&golden(&name), &values, false).await
            },
        )
        .seen(async |p: Provider, name: String| {
            let summary = p.describe(&id(&format!("{name}-made"))).await?.summary;
            Ok((summary.name, summary.run_strategy, summary.vcpus, summary.memory_bytes))
        }),
        row(
            "template create {}-golden -p SIZE=1",
            "POST /kubevirt/templates/default/{}-golden/create",
            json!({"parameters": {"SIZE": "1"}}),
            move |p, name| async move {
                let values = Parameters::from([("SIZE".to_owned(), "1".to_owned())]);
                p.create_from_template(&golden(&name), &values, false).await
            },
        )
        .refused(),
        row(
            "template delete {}-golden",
            "POST /kubevirt/templates/default/{}-golden/delete",
            json!({}),
            move |p, name| async move {
                p.delete_template(&golden(&name), false).await?;
                Ok(gone(golden(&name).name()))
            },
        ),
        row(
            "template delete {}-golden",
            "POST /kubevirt/templates/default/{}-golden/delete",
            json!({}),
            move |p, name| async move { p.delete_template(&golden(&name), false).await },
        )
        .refused(),
    ]
}

/// The claims of a VM that are there.
async fn claims(provider: Provider, name: String) -> Result<Vec<String>, Error> {
    let request = http::Request::get("/api/v1/namespaces/default/persistentvolumeclaims");
    let list: Value = provider.client().request(request.body(Vec::new()).unwrap()).await.unwrap();
    let all = list["items"].as_array().unwrap().iter();
    let names = all.filter(|claim| claim["metadata"]["deletionTimestamp"].is_null());
    let own = [format!("{name}-root"), format!("{name}-extra")];
    Ok(names.map(|claim| text(&claim["metadata"]["name"])).filter(|name| own.contains(name)).collect())
}

fn ends() -> Vec<Row> {
    let path = "POST /kubevirt/vms/default/{}/delete";
    let delete = |disks, dry| {
        move |p: Provider, name: String| async move {
            let plan = p.plan_delete(&id(&name), disks).await?;
            p.delete(&id(&name), &plan, dry).await?;
            if !dry {
                p.wait(&id(&name), &Goal::Deleted, MINUTES, &mut |_| ()).await?;
            }
            Ok(plan)
        }
    };
    vec![
        row(
            "snapshot delete {}-before",
            "POST /kubevirt/snapshots/default/{}-before/delete",
            json!({}),
            |p, name| async move {
                let snapshot = format!("{name}-before");
                p.delete_snapshot("default", &snapshot, false).await?;
                Ok(gone(&snapshot))
            },
        ),
        row(
            "vm delete {} --disks all --dry-run",
            path,
            json!({"disks": "all", "dryRun": true}),
            delete(Disks::All, true),
        )
        .seen(claims),
        row(
            "vm delete {} --disks keep --yes --wait",
            path,
            json!({"disks": "keep", "wait": true}),
            delete(Disks::Keep, false),
        )
        .seen(claims),
        row("vm delete {} --yes", path, json!({}), delete(Disks::WithVm, false)).refused(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_of_vms_is_the_same_through_every_face() {
    let faces = Faces::start("1").await;
    faces.machines().await;
    let start = Order::Start { paused: false };
    for name in NAMES {
        faces.library.order(&id(name), start, false).await.unwrap();
    }
    for name in NAMES {
        faces.library.wait(&id(name), &Goal::Running, MINUTES, &mut |_| ()).await.unwrap();
    }
    faces.go(snapshots()).await;
    faces.go(clones()).await;
    faces.go(templates()).await;
    faces.go(ends()).await;
}
