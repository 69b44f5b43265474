//! What only reads.

use std::io::Read as _;

use provider::cluster::Parameters;
use provider::order::Order;
use provider::select::Selection;
use provider::template::Template;
use provider::usage::Source;
use provider::wait::Goal;

use super::*;

/// Lists and single objects, and what is said where there is none.
fn rows() -> Vec<Row> {
    let none = Value::Null;
    vec![
        row(
            "capabilities -n default",
            "GET /capabilities?namespace=default",
            none.clone(),
            |p, _| async move { p.capabilities("default").await },
        ),
        row(
            "node list",
            "GET /kubevirt/nodes",
            none.clone(),
            |p, _| async move { p.nodes().await.map(items) },
        ),
        row("node get node01", "GET /kubevirt/nodes/node01", none.clone(), |p, _| async move {
            p.node("node01").await
        }),
        row("node get nowhere", "GET /kubevirt/nodes/nowhere", none.clone(), |p, _| async move {
            p.node("nowhere").await
        })
        .refused(),
        row("instancetype list", "GET /kubevirt/instancetypes", none.clone(), |p, _| async move {
            p.instancetypes(Some("default")).await.map(items)
        }),
        row(
            "instancetype get u1.small",
            "GET /kubevirt/instancetypes/default/u1.small",
            none.clone(),
            |p, _| async move { p.instancetype(&id("u1.small")).await },
        ),
        row(
            "instancetype get none",
            "GET /kubevirt/instancetypes/default/none",
            none.clone(),
            |p, _| async move { p.instancetype(&id("none")).await },
        )
        .refused(),
        row(
            "preference list -A",
            "GET /kubevirt/preferences?allNamespaces=true",
            none.clone(),
            |p, _| async move { p.preferences(None).await.map(items) },
        ),
        row("preference get own", "GET /kubevirt/preferences/default/own", none.clone(), |p, _| async move {
            p.preference(&id("own")).await
        }),
        row(
            "preference get none",
            "GET /kubevirt/preferences/default/none",
            none.clone(),
            |p, _| async move { p.preference(&id("none")).await },
        )
        .refused(),
        row("template list", "GET /kubevirt/templates", none.clone(), |p, _| async move {
            p.templates(Some("default")).await.map(items)
        }),
        row("template get small", "GET /kubevirt/templates/default/small", none.clone(), |p, _| async move {
            p.template_object(&id("small")).await.map(|object| Template::of(&object))
        }),
        row("template get none", "GET /kubevirt/templates/default/none", none.clone(), |p, _| async move {
            p.template_object(&id("none")).await
        })
        .refused(),
        row(
            "template process small -p NAME=db",
            "POST /kubevirt/templates/default/small/process",
            json!({"parameters": {"NAME": "db"}}),
            |p, _| async move {
                let values = Parameters::from([("NAME".to_owned(), "db".to_owned())]);
                p.process_template(&id("small"), &values).await.map(|done| done.virtual_machine)
            },
        )
        .part("/virtualMachine"),
        row(
            "template process small",
            "POST /kubevirt/templates/default/small/process",
            json!({}),
            |p, _| async move { p.process_template(&id("small"), &Parameters::new()).await },
        )
        .refused(),
        row("snapshot list", "GET /kubevirt/snapshots", none.clone(), |p, _| async move {
            p.snapshots(Some("default"), None).await.map(items)
        }),
        row(
            "snapshot list --vm web",
            "GET /kubevirt/vms/default/web/snapshots",
            none.clone(),
            |p, _| async move { p.snapshots(Some("default"), Some("web")).await.map(items) },
        ),
        row(
            "snapshot get before",
            "GET /kubevirt/snapshots/default/before",
            none.clone(),
            |p, _| async move { p.get_snapshot("default", "before").await },
        ),
        row("snapshot get none", "GET /kubevirt/snapshots/default/none", none.clone(), |p, _| async move {
            p.get_snapshot("default", "none").await
        })
        .refused(),
        row("migration list", "GET /kubevirt/migrations", none.clone(), |p, _| async move {
            p.migrations(Some("default")).await.map(items)
        }),
        row(
            "migration get moved",
            "GET /kubevirt/migrations/default/moved",
            none.clone(),
            |p, _| async move { p.migration(&id("moved")).await },
        ),
        row("migration get none", "GET /kubevirt/migrations/default/none", none.clone(), |p, _| async move {
            p.migration(&id("none")).await
        })
        .refused(),
        row(
            "migration cancel moved",
            "POST /kubevirt/migrations/default/moved/cancel",
            json!({}),
            |p, _| async move { p.end_migration(&id("moved"), false).await },
        )
        .refused(),
        row("vm list", "POST /kubevirt/vms/list", json!({"namespace": "default"}), |p, _| async move {
            let here = Selection { namespace: Some("default".into()), ..Selection::default() };
            p.list_all(here).await.map(items)
        }),
        row("vm describe web", "GET /kubevirt/vms/default/web", none.clone(), |p, _| async move {
            p.describe(&id("web")).await
        }),
        row("vm describe none", "GET /kubevirt/vms/default/none", none.clone(), |p, _| async move {
            p.describe(&id("none")).await
        })
        .refused(),
        row("volume list web", "GET /kubevirt/vms/default/web/volumes", none.clone(), |p, _| async move {
            p.volumes(&id("web")).await.map(items)
        }),
        row("volume list none", "GET /kubevirt/vms/default/none/volumes", none.clone(), |p, _| async move {
            p.volumes(&id("none")).await
        })
        .refused(),
        row("nic list web", "GET /kubevirt/vms/default/web/nics", none.clone(), |p, _| async move {
            p.nics(&id("web")).await.map(items)
        }),
        row("nic list none", "GET /kubevirt/vms/default/none/nics", none.clone(), |p, _| async move {
            p.nics(&id("none")).await
        })
        .refused(),
        row("vm guest os web", "GET /kubevirt/vms/default/web/guest", none.clone(), |p, _| async move {
            p.guest_os(&id("web")).await
        })
        .part("/os"),
        row(
            "vm guest filesystems web",
            "GET /kubevirt/vms/default/web/guest",
            none.clone(),
            |p, _| async move { p.guest_file_systems(&id("web")).await.map(items) },
        )
        .part("/fileSystems"),
        row("vm guest users web", "GET /kubevirt/vms/default/web/guest", none, |p, _| async move {
            p.guest_users(&id("web")).await.map(items)
        })
        .part("/users"),
    ]
}

/// Usage grows while it is asked for; what it is of, and where it is from, stays.
fn usage() -> Row {
    row(
        "top --source metrics.k8s.io",
        "GET /kubevirt/usage?source=metrics.k8s.io",
        Value::Null,
        |p, _| async move { p.usage(Some("default"), None, Some(Source::Pods)).await },
    )
}

fn without_figures(mut report: Value) -> Value {
    for one in report["items"].as_array_mut().unwrap() {
        let all = one.as_object_mut().unwrap();
        assert!(all["cpuMilli"].is_u64() && all["memoryBytes"].is_u64(), "{all:?}");
        all.retain(|key, _| ["namespace", "name", "memoryOf", "source", "window"].contains(&key.as_str()));
    }
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_the_same_through_every_face() {
    let faces = Faces::start("2").await;
    let library = &faces.library;
    let instancetypes = "/apis/instancetype.kubevirt.io/v1beta1";
    faces
        .create(
            &format!("{instancetypes}/virtualmachineclusterinstancetypes"),
            &json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachineClusterInstancetype",
                "metadata": {"name": "u1.small"}, "spec": {"cpu": {"guest": 1}, "memory": {"guest": "2Gi"}}}),
        )
        .await;
    faces
        .create(
            &format!("{instancetypes}/namespaces/default/virtualmachinepreferences"),
            &json!({"apiVersion": "instancetype.kubevirt.io/v1beta1", "kind": "VirtualMachinePreference",
                "metadata": {"name": "own"}, "spec": {"devices": {"preferredDiskBus": "virtio"}}}),
        )
        .await;
    faces
        .create(
            "/apis/template.kubevirt.io/v1beta1/namespaces/default/virtualmachinetemplates",
            &json!({"apiVersion": "template.kubevirt.io/v1beta1", "kind": "VirtualMachineTemplate",
                "metadata": {"name": "small"}, "spec": {"parameters": [{"name": "NAME", "required": true}],
                    "virtualMachine": {"metadata": {"name": "${NAME}"}, "spec": {"runStrategy": "Halted",
                        "template": {"spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {}}}}}}}}),
        )
        .await;
    let mut web = super::super::vm("web");
    let spec = &mut web["spec"]["template"]["spec"];
    spec["domain"]["devices"]["interfaces"] = json!([{"name": "default", "masquerade": {}}]);
    spec["networks"] = json!([{"name": "default", "pod": {}}]);
    library.create_vm("default", &web, false).await.unwrap();
    library.order(&id("web"), Order::Start { paused: false }, false).await.unwrap();
    library.wait(&id("web"), &Goal::Running, MINUTES, &mut |_| ()).await.unwrap();
    let snapshot = library.snapshot(&id("web"), Some("before"), false).await.unwrap();
    library.wait_snapshot(&snapshot, MINUTES, &mut |_| ()).await.unwrap();
    let migrations = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
    faces
        .create(
            migrations,
            &json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": "moved"}, "spec": {"vmiName": "web"}}),
        )
        .await;
    let moved = library.migration(&id("moved")).await.unwrap();
    library.wait_migration(&moved, MINUTES, &mut |_| ()).await.unwrap();

    for row in rows() {
        faces.same(&row, |answer| answer).await;
    }
    faces.same(&usage(), without_figures).await;
    let mut picture = Vec::new();
    let mut stream = faces.service.open("GET", "/kubevirt/vms/default/web/screenshot", &[], "");
    stream.read_to_end(&mut picture).unwrap();
    let head = String::from_utf8_lossy(&picture).into_owned();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: image/png"), "{head}");
    let png = b"\x89PNG\r\n";
    assert!(picture.windows(png.len()).any(|bytes| bytes == png), "{head}");
    assert!(library.screenshot(&id("web")).await.unwrap().starts_with(png));
}
