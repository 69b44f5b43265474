//! The cluster roles that `KubeVirt` brings for people (`resource/generate/rbac/cluster.go`, v1.9): what `admin`, `edit`
//! and `view` of Kubernetes may do with VMs, who may migrate them, and what everybody may know.

use apimachinery::tree::{Value, json};

use super::bootstrap::{Rules, role};

const EVERYTHING: &str = "get delete create update patch list watch deletecollection";
const CHANGES: &str = "get delete create update patch list watch";
const READS: &str = "get list watch";

const ASK: &str = "virtualmachineinstances/guestosinfo virtualmachineinstances/filesystemlist virtualmachineinstances/userlist virtualmachineinstances/sev/fetchcertchain virtualmachineinstances/sev/querylaunchmeasurement virtualmachines/objectgraph virtualmachineinstances/objectgraph virtualmachines/expand-spec";
const CONNECT: &str = "virtualmachineinstances/console virtualmachineinstances/vnc virtualmachineinstances/portforward virtualmachineinstances/usbredir virtualmachines/portforward";
const ORDER: &str = "virtualmachineinstances/pause virtualmachineinstances/unpause virtualmachineinstances/addvolume virtualmachineinstances/removevolume virtualmachineinstances/freeze virtualmachineinstances/unfreeze virtualmachineinstances/softreboot virtualmachineinstances/reset virtualmachineinstances/sev/setupsession virtualmachineinstances/sev/injectlaunchsecret virtualmachineinstances/evacuate/cancel virtualmachines/start virtualmachines/stop virtualmachines/restart virtualmachines/addvolume virtualmachines/removevolume virtualmachines/memorydump virtualmachines/removememorydump virtualmachines/evacuate/cancel expand-vm-spec";
const VMS: &str =
    "virtualmachines virtualmachineinstances virtualmachineinstancepresets virtualmachineinstancereplicasets";
const GROUPS: &str = "snapshot.kubevirt.io backup.kubevirt.io export.kubevirt.io clone.kubevirt.io instancetype.kubevirt.io pool.kubevirt.io";
const SUBRESOURCES: &str = "subresources.kubevirt.io";

/// Name, the role of Kubernetes that it adds to, and what it gives.
const ROLES: [(&str, Option<&str>, Rules); 5] = [
    (
        "kubevirt.io:admin",
        Some("admin"),
        &[
            (SUBRESOURCES, ASK, "get"),
            (SUBRESOURCES, CONNECT, "get"),
            (SUBRESOURCES, "virtualmachineinstances/vnc/screenshot", "get"),
            (SUBRESOURCES, ORDER, "update"),
            ("kubevirt.io", VMS, EVERYTHING),
            ("kubevirt.io", "virtualmachineinstancemigrations", READS),
            (GROUPS, "*", EVERYTHING),
            ("plugin.kubevirt.io", "plugins", EVERYTHING),
            ("migrations.kubevirt.io", "migrationpolicies", READS),
        ],
    ),
    (
        "kubevirt.io:edit",
        Some("edit"),
        &[
            (SUBRESOURCES, ASK, "get"),
            (SUBRESOURCES, CONNECT, "get"),
            (SUBRESOURCES, ORDER, "update"),
            ("kubevirt.io", VMS, CHANGES),
            ("kubevirt.io", "virtualmachineinstancemigrations", READS),
            (GROUPS, "*", CHANGES),
            ("kubevirt.io", "kubevirts", "get list"),
            ("migrations.kubevirt.io", "migrationpolicies", READS),
        ],
    ),
    (
        "kubevirt.io:view",
        Some("view"),
        &[
            ("kubevirt.io", "kubevirts", "get list"),
            (SUBRESOURCES, ASK, "get"),
            (SUBRESOURCES, "expand-vm-spec", "update"),
            ("kubevirt.io", VMS, READS),
            ("kubevirt.io", "virtualmachineinstancemigrations", READS),
            (GROUPS, "*", READS),
            ("migrations.kubevirt.io", "migrationpolicies", READS),
            ("plugin.kubevirt.io", "plugins", READS),
        ],
    ),
    (
        "kubevirt.io:migrate",
        None,
        &[
            (SUBRESOURCES, "virtualmachines/migrate", "update"),
            ("kubevirt.io", "virtualmachineinstancemigrations", EVERYTHING),
        ],
    ),
    (
        "kubevirt.io:default",
        None,
        &[("kubevirt.io", "kubevirts", "get list"), (SUBRESOURCES, "version guestfs", "get list")],
    ),
];

/// The roles, and the binding of what everybody may know.
pub fn objects() -> (Vec<Value>, Value) {
    let roles = ROLES.iter().map(|(name, adds_to, rules)| {
        let mut role = role(name, rules);
        role["metadata"]["labels"] = json!({"kubevirt.io": ""});
        if let Some(adds_to) = adds_to {
            role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{adds_to}")] =
                "true".into();
        }
        role
    });
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubevirt.io:default", "labels": {"kubevirt.io": ""}},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "kubevirt.io:default"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:authenticated"}]});
    (roles.collect(), binding)
}
