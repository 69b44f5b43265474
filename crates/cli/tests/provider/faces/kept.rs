//! What is kept of VMs, and made from it: snapshots, exports, clones, templates; and their end.

use provider::clone::{Origin, Wish as Copy};
use provider::cluster::{ExportWish, Parameters};
use provider::disposal::Disks;
use provider::order::Order;
use provider::wait::Goal;

use super::changes::NAMES;
use super::*;

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
