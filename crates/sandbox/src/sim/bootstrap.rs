//! What is in a cluster with `KubeVirt` before anybody makes a VM.

use apimachinery::tree::{Value, json};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::SimConfig;
use super::client::{Client, ClientError};
use super::identity::KUBEVIRT_NAMESPACE;
use super::json;
use super::resource::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, KUBEVIRTS, NAMESPACES, POLICIES, POLICY_BINDINGS, PRIORITY_CLASSES,
    Resource, SERVICE_ACCOUNTS, STORAGE_CLASSES, VMS,
};

/// How many VMs are created at once.
const CREATORS: usize = 16;

/// A role: groups, resources and verbs, each separated by spaces. A group `core` is the empty one.
pub(super) type Rules = &'static [(&'static str, &'static str, &'static str)];

const READ: &str = "get list watch";
const WRITE: &str = "get list watch create update patch delete";

/// What each component may do; of the real roles, the part that is simulated.
const ROLES: &[(&str, &str, Rules)] = &[
    (
        "system:kube-scheduler",
        "User system:kube-scheduler",
        &[
            ("core", "nodes namespaces persistentvolumeclaims persistentvolumes", READ),
            ("core", "pods", "get list watch delete"),
            ("core", "pods/binding bindings", "create"),
            ("core", "pods/status", "patch update"),
            ("resource.k8s.io", "deviceclasses resourceclaims resourceslices", READ),
            ("resource.k8s.io", "resourceclaims/status", "patch update"),
            ("core events.k8s.io", "events", "create patch update"),
        ],
    ),
    (
        "system:controller:resource-claim-controller",
        "User system:serviceaccount:kube-system:resource-claim-controller",
        &[
            ("core", "pods", READ),
            ("core", "pods/status", "patch update"),
            ("resource.k8s.io", "resourceclaims", "get list watch create delete"),
            ("resource.k8s.io", "resourceclaims/status", "patch update"),
            ("resource.k8s.io", "resourceclaimtemplates", READ),
        ],
    ),
    (
        "system:node",
        "Group system:nodes",
        &[
            ("core", "nodes", "create get list watch update patch"),
            ("core", "nodes/status", "update patch"),
            ("core", "pods", "get list watch create delete"),
            ("core", "pods/status", "update patch"),
            ("core", "secrets configmaps persistentvolumeclaims services", READ),
            ("core events.k8s.io", "events", "create patch update"),
            ("coordination.k8s.io", "leases", "create get update patch delete"),
        ],
    ),
    (
        "system:controller:node-controller",
        "User system:serviceaccount:kube-system:node-controller",
        &[
            ("core", "nodes", "get list watch update patch delete"),
            ("core", "nodes/status", "patch update"),
            ("core", "pods", "get list watch delete"),
            ("core", "pods/status", "patch update"),
            ("core events.k8s.io", "events", "create patch update"),
        ],
    ),
    (
        "system:controller:pod-garbage-collector",
        "User system:serviceaccount:kube-system:pod-garbage-collector",
        &[
            ("core", "pods", "delete list watch"),
            ("core", "nodes", "get list"),
            ("core", "pods/status", "patch"),
        ],
    ),
    (
        "sandbox-storage",
        "User system:serviceaccount:kube-system:sandbox-storage",
        &[
            ("core", "persistentvolumes persistentvolumeclaims", WRITE),
            ("core", "persistentvolumes/status persistentvolumeclaims/status", "patch update"),
            ("storage.k8s.io", "volumeattachments", WRITE),
            ("storage.k8s.io", "volumeattachments/status", "patch update"),
            ("core", "events", "create patch update"),
            ("snapshot.storage.k8s.io", "volumesnapshots volumesnapshotcontents", WRITE),
            (
                "snapshot.storage.k8s.io",
                "volumesnapshots/status volumesnapshotcontents/status",
                "patch update",
            ),
        ],
    ),
    (
        "cdi",
        "User system:serviceaccount:cdi:cdi-sa",
        &[
            ("core", "persistentvolumeclaims", WRITE),
            ("core", "events", "create patch update"),
            ("cdi.kubevirt.io", "*", "*"),
        ],
    ),
    (
        "system:controller:job-controller",
        "User system:serviceaccount:kube-system:job-controller",
        &[
            ("batch", "jobs", "get list watch update patch delete"),
            ("batch", "jobs/status jobs/finalizers", "update patch"),
            ("core", "pods", "create delete get list patch watch"),
            ("core events.k8s.io", "events", "create patch update"),
        ],
    ),
    (
        "kubevirt-controller",
        "kubevirt-controller",
        &[
            ("core", "namespaces", "get list watch patch"),
            ("core", "pods configmaps endpoints services persistentvolumeclaims", WRITE),
            ("core", "nodes", "get list watch update patch"),
            ("core", "pods/finalizers", "update"),
            ("core", "pods/eviction", "create"),
            ("core", "pods/status", "patch"),
            ("core", "events", "create update patch"),
            ("policy", "poddisruptionbudgets", WRITE),
            ("apps", "controllerrevisions", "get list watch create update delete"),
            ("kubevirt.io", "*", "*"),
            ("export.kubevirt.io snapshot.kubevirt.io clone.kubevirt.io backup.kubevirt.io", "*", "*"),
            ("cdi.kubevirt.io", "*", "*"),
            ("snapshot.storage.k8s.io", "volumesnapshots", "get list watch create update delete"),
            ("snapshot.storage.k8s.io", "volumesnapshotclasses", READ),
            (
                "subresources.kubevirt.io",
                "virtualmachineinstances/freeze virtualmachineinstances/unfreeze virtualmachines/stop",
                "update",
            ),
            ("core", "secrets", "get list watch create delete"),
            ("migrations.kubevirt.io", "migrationpolicies", READ),
            ("instancetype.kubevirt.io", "*", READ),
            ("storage.k8s.io", "storageclasses", READ),
            ("cdi.kubevirt.io", "datavolumes", READ),
            (
                "subresources.kubevirt.io",
                "virtualmachineinstances/addvolume virtualmachineinstances/removevolume",
                "update",
            ),
            ("k8s.cni.cncf.io", "network-attachment-definitions", "get list watch"),
        ],
    ),
    (
        "kubevirt-handler",
        "kubevirt-handler",
        &[
            ("kubevirt.io", "virtualmachineinstances", "update list watch"),
            ("kubevirt.io", "kubevirts", READ),
            (
                "backup.kubevirt.io",
                "virtualmachinebackuptrackers virtualmachinebackuptrackers/status",
                "list watch patch",
            ),
            ("core", "nodes", "patch get list watch"),
            ("core", "configmaps", READ),
            ("core", "events", "create patch"),
        ],
    ),
    (
        "kubevirt-apiserver",
        "kubevirt-apiserver",
        &[
            (
                "admissionregistration.k8s.io",
                "validatingwebhookconfigurations mutatingwebhookconfigurations",
                READ,
            ),
            ("core", "pods nodes namespaces", READ),
            ("kubevirt.io", "*", "get list watch patch update"),
            ("kubevirt.io", "virtualmachineinstancemigrations", "create"),
            ("snapshot.kubevirt.io backup.kubevirt.io", "*", READ),
            ("instancetype.kubevirt.io", "*", READ),
            ("apps", "controllerrevisions", READ),
            ("core", "persistentvolumeclaims", READ),
            ("cdi.kubevirt.io", "datavolumes datasources", READ),
            ("snapshot.storage.k8s.io", "volumesnapshots", READ),
        ],
    ),
    (
        "virt-template-apiserver",
        "virt-template-apiserver",
        &[
            ("template.kubevirt.io", "virtualmachinetemplates", READ),
            ("kubevirt.io", "virtualmachines", "create"),
        ],
    ),
    (
        "virt-template-controller",
        "virt-template-controller",
        &[
            ("template.kubevirt.io", "*", "get list watch create update patch"),
            ("snapshot.kubevirt.io", "virtualmachinesnapshots", "get list watch create delete"),
            ("snapshot.kubevirt.io", "virtualmachinesnapshotcontents", READ),
            ("kubevirt.io", "virtualmachines", READ),
            ("cdi.kubevirt.io", "datavolumes", "get list watch create patch"),
        ],
    ),
    ("kubevirt-operator", "kubevirt-operator", &[("*", "*", "*")]),
];

/// Namespaces, accounts, roles, and the `KubeVirt` object with its status.
pub async fn cluster(client: &Client, config: &SimConfig) -> Result<(), ClientError> {
    for name in [KUBEVIRT_NAMESPACE, "kube-node-lease", "default"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
            "labels": {"kubernetes.io/metadata.name": name}}});
        ensure(client, &NAMESPACES, namespace).await?;
    }
    for (name, subject, rules) in ROLES {
        let subject = if let Some((kind, name)) = subject.split_once(' ') {
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
        } else {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": subject, "namespace": KUBEVIRT_NAMESPACE, "labels": {"kubevirt.io": ""}}});
            ensure(client, &SERVICE_ACCOUNTS, account).await?;
            json!({"kind": "ServiceAccount", "name": subject, "namespace": KUBEVIRT_NAMESPACE})
        };
        ensure(client, &CLUSTER_ROLES, role(name, rules)).await?;
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [subject]});
        ensure(client, &CLUSTER_ROLE_BINDINGS, binding).await?;
    }
    let (roles, binding) = super::user_roles::objects();
    for role in roles {
        ensure(client, &CLUSTER_ROLES, role).await?;
    }
    ensure(client, &CLUSTER_ROLE_BINDINGS, binding).await?;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "kubevirt-cluster-critical"}, "value": 1_000_000_000, "globalDefault": false,
        "description": "This priority class should be used for core kubevirt components only."});
    ensure(client, &PRIORITY_CLASSES, class).await?;
    for class in super::hotplug::storage_classes::classes() {
        ensure(client, &STORAGE_CLASSES, class).await?;
    }
    for (resource, object) in super::storage::objects() {
        ensure(client, resource, object.clone()).await?;
        if object.get("status").is_some() {
            let path = resource.path("", json::name(&object), "status");
            let patch = json!({"status": object["status"]});
            client.send(None, http::Method::PATCH, &path, "application/merge-patch+json", &patch).await?;
        }
    }
    for policy in super::plugin_policies::objects() {
        let resource =
            if policy["kind"] == "ValidatingAdmissionPolicy" { &POLICIES } else { &POLICY_BINDINGS };
        ensure(client, resource, policy).await?;
    }
    let kubevirt = kubevirt(config);
    ensure(client, &KUBEVIRTS, kubevirt.clone()).await?;
    let path = KUBEVIRTS.path(KUBEVIRT_NAMESPACE, json::name(&kubevirt), "status");
    let patch = json!({"status": kubevirt["status"]});
    client.send(None, http::Method::PATCH, &path, "application/merge-patch+json", &patch).await?;
    Ok(())
}

/// Creates an object; one that is there already stays as it is.
async fn ensure(client: &Client, resource: &Resource, object: Value) -> Result<(), ClientError> {
    let path = resource.path(json::namespace(&object), "", "");
    match client.send(None, http::Method::POST, &path, "application/json", &object).await {
        Err(error) if error.code() != 409 => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn role(name: &str, rules: Rules) -> Value {
    let words = |text: &str| -> Vec<Value> {
        text.split(' ').map(|word| if word == "core" { "".into() } else { word.into() }).collect()
    };
    let rules: Vec<Value> = rules
        .iter()
        .map(|(groups, resources, verbs)| {
            json!({"apiGroups": words(groups), "resources": words(resources), "verbs": words(verbs)})
        })
        .collect();
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
        "rules": rules})
}

fn kubevirt(config: &SimConfig) -> Value {
    let devices: Vec<Value> = config
        .devices
        .iter()
        .map(|device| json!({"pciVendorSelector": device.selector, "resourceName": device.resource}))
        .collect();
    let version = |prefix: &str| {
        [
            (format!("{prefix}KubeVirtRegistry"), "quay.io/kubevirt"),
            (format!("{prefix}KubeVirtVersion"), config.release.tag()),
        ]
    };
    let mut status = json!({
        "phase": "Deployed",
        "defaultArchitecture": "amd64",
        "generations": [],
        "observedGeneration": 1,
        "operatorVersion": config.release.tag(),
        "outdatedVirtualMachineInstanceWorkloads": 0,
        "conditions": [
            {"type": "Available", "status": "True", "reason": "AllComponentsReady", "message": "All components are ready."},
            {"type": "Progressing", "status": "False", "reason": "AllComponentsReady", "message": "All components are ready."},
            {"type": "Degraded", "status": "False", "reason": "AllComponentsReady", "message": "All components are ready."},
            {"type": "Created", "status": "True", "reason": "AllResourcesCreated", "message": "All resources were created."},
        ],
    });
    for (key, value) in version("observed").into_iter().chain(version("target")) {
        status[key] = value.into();
    }
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": KUBEVIRT_NAMESPACE},
        "spec": {
            "certificateRotateStrategy": {},
            "configuration": {
                "developerConfiguration": {"featureGates": config.feature_gates},
                "permittedHostDevices": {"pciHostDevices": devices},
            },
            "customizeComponents": {},
            "imagePullPolicy": "IfNotPresent",
            "workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate"]},
        },
        "status": status,
    })
}

/// Creates the VMs of `--vms`, `vm-1` and so on: small, migratable, and always running.
pub async fn virtual_machines(client: &Client, config: &SimConfig) -> Result<(), ClientError> {
    stream::iter(1..=config.vms)
        .map(|number| async move { ensure(client, &VMS, virtual_machine(config.seed, number)).await })
        .buffer_unordered(CREATORS)
        .try_collect()
        .await
}

fn virtual_machine(seed: u64, number: u32) -> Value {
    let drawn = super::node::draw(seed, number.into());
    let memory = ["512Mi", "1Gi", "2Gi"][usize::try_from(drawn % 3).unwrap_or(0)];
    let sockets = 1 + drawn / 3 % 2;
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": format!("vm-{number}"), "namespace": "default"},
        "spec": {
            "runStrategy": "Always",
            "template": {
                "metadata": {"labels": {"kubevirt.io/vm": format!("vm-{number}")}},
                "spec": {
                    "domain": {
                        "cpu": {"cores": 1, "sockets": sockets, "threads": 1},
                        "devices": {
                            "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                            "interfaces": [{"name": "default", "masquerade": {}}],
                        },
                        "memory": {"guest": memory},
                    },
                    "networks": [{"name": "default", "pod": {}}],
                    "terminationGracePeriodSeconds": 30,
                    "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}}],
                },
            },
        },
    })
}
