//! `objectgraph`: what a VM or a VMI consists of (`pkg/virt-api/rest/objectgraph.go`, v1.9).

use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Map, Value, json};

use crate::sim::json::{self, list, text};

/// A kind that a graph has nodes of: group, kind and what a VM needs it for.
type Kind = (&'static str, &'static str, &'static str);

const VM: Kind = ("kubevirt.io", "VirtualMachine", "compute");
const VMI: Kind = ("kubevirt.io", "VirtualMachineInstance", "compute");
const POD: Kind = ("", "Pod", "compute");
const DATA_VOLUME: Kind = ("cdi.kubevirt.io", "DataVolume", "storage");
const CLAIM: Kind = ("", "PersistentVolumeClaim", "storage");
const CONFIG_MAP: Kind = ("", "ConfigMap", "config");
const SECRET: Kind = ("", "Secret", "config");
const ACCOUNT: Kind = ("", "ServiceAccount", "config");
const REVISION: Kind = ("apps", "ControllerRevision", "config");
const NETWORK: Kind = ("k8s.cni.cncf.io", "NetworkAttachmentDefinition", "network");
const TYPES: &str = "instancetype.kubevirt.io";
const LABEL: &str = "kubevirt.io/dependency-type";

/// The graph of a VM. `launcher`: the name of its launcher pod, if it has one.
pub fn of_vm(vm: &Value, launcher: Option<&str>, options: &Value) -> Value {
    let (name, namespace) = (json::name(vm), json::namespace(vm));
    let mut children = Vec::new();
    if vm["status"]["created"] == true {
        let pods = launcher.map(|pod| node(POD, pod, namespace)).into_iter().collect();
        children.push(with(node(VMI, name, namespace), pods));
    }
    for (matcher, taken) in [("instancetype", "instancetypeRef"), ("preference", "preferenceRef")] {
        children.extend(matched(&vm["spec"][matcher], matcher, &vm["status"][taken], namespace));
    }
    children.extend(of_spec(&vm["spec"]["template"]["spec"], namespace));
    whole(node(VM, name, namespace), children, options)
}

/// The graph of a VMI.
pub fn of_vmi(vmi: &Value, launcher: Option<&str>, options: &Value) -> Value {
    let (name, namespace) = (json::name(vmi), json::namespace(vmi));
    let mut children: Vec<Value> = launcher.map(|pod| node(POD, pod, namespace)).into_iter().collect();
    children.extend(of_spec(&vmi["spec"], namespace));
    whole(node(VMI, name, namespace), children, options)
}

/// The launcher pod of a VMI among the pods of its namespace: the first that names it.
pub fn launcher<'a>(pods: &'a [Value], name: &str) -> Option<&'a str> {
    let owned = |pod: &&Value| {
        let owners = list(pod, "/metadata/ownerReferences");
        owners.iter().any(|owner| owner["kind"] == VMI.1 && owner["name"] == name)
            || json::annotation(pod, "kubevirt.io/domain") == Some(name)
    };
    pods.iter().find(owned).map(json::name)
}

fn node((group, kind, role): Kind, name: &str, namespace: &str) -> Value {
    json!({"objectReference": {"apiGroup": group, "kind": kind, "name": name, "namespace": namespace},
        "labels": {LABEL: role}})
}

fn optional(mut node: Value) -> Value {
    node["optional"] = true.into();
    node
}

fn with(mut node: Value, children: Vec<Value>) -> Value {
    if !children.is_empty() {
        node["children"] = children.into();
    }
    node
}

fn whole(root: Value, children: Vec<Value>, options: &Value) -> Value {
    let selector = options.get("labelSelector").filter(|one| one.is_object());
    // One that cannot be read selects everything.
    let selector = selector.and_then(|one| LabelSelector::from_object(one).ok());
    let without_optional = options["includeOptionalNodes"] == false;
    with(
        root,
        kept(children, &|node| {
            let labels = node["labels"].as_object();
            !(without_optional && node["optional"] == true)
                && selector.as_ref().is_none_or(|selector| selector.matches(labels.unwrap_or(&Map::new())))
        }),
    )
}

/// A node that is left out takes what is below it along.
fn kept(nodes: Vec<Value>, wanted: &dyn Fn(&Value) -> bool) -> Vec<Value> {
    let mut nodes: Vec<Value> = nodes.into_iter().filter(|node| wanted(node)).collect();
    for node in &mut nodes {
        if let Some(Value::Array(children)) = node.get_mut("children").map(Value::take) {
            *node = with(node.clone(), kept(children.into_iter().collect(), wanted));
            if node["children"].is_null() {
                json::remove(node, &["children"]);
            }
        }
    }
    nodes
}

/// An instance type or a preference, and the revision of it that the VM was given.
fn matched(matcher: &Value, what: &str, taken: &Value, namespace: &str) -> Vec<Value> {
    let name = text(matcher, "/name");
    if !matcher.is_object() {
        return Vec::new();
    }
    let (own, shared) = match what {
        "instancetype" => ("VirtualMachineInstancetype", "VirtualMachineClusterInstancetype"),
        _ => ("VirtualMachinePreference", "VirtualMachineClusterPreference"),
    };
    let kind = text(matcher, "/kind");
    let mut nodes = Vec::new();
    if kind.eq_ignore_ascii_case(shared) {
        nodes.push(optional(node((TYPES, shared, "config"), name, "")));
    } else if kind.eq_ignore_ascii_case(own) {
        nodes.push(optional(node((TYPES, own, "config"), name, namespace)));
    }
    let revision = match text(taken, "/controllerRevisionRef/name") {
        "" if taken.is_null() => text(matcher, "/revisionName"),
        revision => revision,
    };
    if !revision.is_empty() {
        nodes.push(node(REVISION, revision, namespace));
    }
    nodes
}

fn of_spec(spec: &Value, namespace: &str) -> Vec<Value> {
    let mut nodes = Vec::new();
    for credential in list(spec, "/accessCredentials") {
        let named = ["/sshPublicKey/source/secret/secretName", "/userPassword/source/secret/secretName"]
            .map(|pointer| text(credential, pointer));
        nodes.extend(
            named.into_iter().find(|name| !name.is_empty()).map(|name| node(SECRET, name, namespace)),
        );
    }
    for volume in list(spec, "/volumes") {
        nodes.extend(of_volume(volume, namespace));
    }
    for network in list(spec, "/networks") {
        let name = text(network, "/multus/networkName");
        if let Some((elsewhere, name)) = name.split_once('/').filter(|(_, name)| !name.contains('/')) {
            nodes.push(optional(node(NETWORK, name, elsewhere)));
        } else if !name.is_empty() {
            nodes.push(optional(node(NETWORK, name, namespace)));
        }
    }
    nodes
}

fn of_volume(volume: &Value, namespace: &str) -> Vec<Value> {
    if volume["dataVolume"].is_object() {
        let name = text(volume, "/dataVolume/name");
        return vec![with(node(DATA_VOLUME, name, namespace), vec![node(CLAIM, name, namespace)])];
    }
    for (source, key, kind) in [
        ("persistentVolumeClaim", "claimName", CLAIM),
        ("configMap", "name", CONFIG_MAP),
        ("secret", "secretName", SECRET),
        ("serviceAccount", "serviceAccountName", ACCOUNT),
    ] {
        if volume[source].is_object() {
            return vec![node(kind, volume[source][key].as_str().unwrap_or_default(), namespace)];
        }
    }
    ["cloudInitNoCloud", "cloudInitConfigDrive"]
        .iter()
        .flat_map(|source| {
            ["secretRef", "networkDataSecretRef"].map(|key| volume[*source][key]["name"].as_str())
        })
        .flatten()
        .map(|name| node(SECRET, name, namespace))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(graph: &Value) -> Vec<String> {
        let mut names = Vec::new();
        for child in list(graph, "/children") {
            names.push(format!(
                "{}/{}",
                text(child, "/objectReference/kind"),
                text(child, "/objectReference/name")
            ));
            names.extend(self::names(child).into_iter().map(|name| format!(" {name}")));
        }
        names
    }

    #[test]
    fn a_vm_is_shown_with_what_it_consists_of() {
        let vm = json!({"metadata": {"name": "v", "namespace": "n"}, "status": {"created": true,
                "instancetypeRef": {"controllerRevisionRef": {"name": "rev"}}},
            "spec": {"instancetype": {"kind": "VirtualMachineClusterInstancetype", "name": "small"},
                "template": {"spec": {
                    "accessCredentials": [{"sshPublicKey": {"source": {"secret": {"secretName": "key"}}}}],
                    "networks": [{"multus": {"networkName": "other/net"}}, {"pod": {}}],
                    "volumes": [{"dataVolume": {"name": "root"}}, {"persistentVolumeClaim": {"claimName": "data"}},
                        {"cloudInitNoCloud": {"secretRef": {"name": "user"}}}, {"containerDisk": {}}]}}}});
        let graph = of_vm(&vm, Some("launcher"), &json!({}));
        assert_eq!(
            names(&graph),
            [
                "VirtualMachineInstance/v",
                " Pod/launcher",
                "VirtualMachineClusterInstancetype/small",
                "ControllerRevision/rev",
                "Secret/key",
                "DataVolume/root",
                " PersistentVolumeClaim/root",
                "PersistentVolumeClaim/data",
                "Secret/user",
                "NetworkAttachmentDefinition/net",
            ]
        );
        assert_eq!(graph["children"][7]["objectReference"]["namespace"], "other");
        let fewer = of_vm(
            &vm,
            None,
            &json!({"includeOptionalNodes": false,
            "labelSelector": {"matchLabels": {LABEL: "storage"}}}),
        );
        assert_eq!(
            names(&fewer),
            ["DataVolume/root", " PersistentVolumeClaim/root", "PersistentVolumeClaim/data"]
        );
    }

    #[test]
    fn the_launcher_is_the_pod_that_names_its_vmi() {
        let pods = [
            json!({"metadata": {"name": "other", "ownerReferences": [{"kind": "VirtualMachineInstance", "name": "w"}]}}),
            json!({"metadata": {"name": "mine", "annotations": {"kubevirt.io/domain": "v"}}}),
        ];
        assert_eq!(launcher(&pods, "v"), Some("mine"));
        assert_eq!(launcher(&pods, "x"), None);
        let vmi = json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"volumes": [{"secret": {"secretName": "s"}}]}});
        assert_eq!(names(&of_vmi(&vmi, launcher(&pods, "v"), &json!({}))), ["Pod/mine", "Secret/s"]);
    }
}
