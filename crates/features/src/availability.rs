//! Whether any node can ever take a VM, and the first thing that is in the way on each. Taints and
//! free capacity change too fast to decide on; what a node has at all does not.

use std::collections::BTreeMap;

use apimachinery::quantity;
use serde_json::Value;

use crate::cpu_pinning::can_pin;
use crate::facts::Node;
use crate::json::at;
use crate::scheduling::Requirements;
use crate::text::candidates;

/// Why a node cannot take a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obstacle {
    /// The node.
    pub node: String,
    /// The first reason.
    pub reason: String,
}

/// The obstacle on each node, when there is one on every node. `None`: some node can take the VM, or
/// nothing is known about nodes.
pub fn obstacles(machine: &Value, nodes: &[Node]) -> Option<Vec<Obstacle>> {
    let spec = at(machine, &["spec", "template", "spec"])?;
    if nodes.is_empty() {
        return None;
    }
    nodes
        .iter()
        .map(|node| Some(Obstacle { node: node.name.clone(), reason: obstacle(spec, node)? }))
        .collect()
}

/// The obstacles as a sentence.
pub(crate) fn sentence(obstacles: &[Obstacle]) -> String {
    let each = obstacles.iter().map(|one| format!("{}: {}", one.node, one.reason));
    format!("no node can take this VM ({})", candidates(each))
}

fn obstacle(spec: &Value, node: &Node) -> Option<String> {
    let part = |node_selector, terms, architecture| Requirements { node_selector, terms, architecture };
    let affinity =
        ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let terms = at(spec, &affinity).and_then(Value::as_array).map(Vec::as_slice);
    if !part(None, None, None).admits(node) {
        return Some("it is cordoned, or KubeVirt does not run there".to_owned());
    }
    let architecture = at(spec, &["architecture"]).and_then(Value::as_str).filter(|name| !name.is_empty());
    if !part(None, None, architecture).admits(node) {
        return Some(format!("its architecture is not {}", architecture.unwrap_or_default()));
    }
    if !part(at(spec, &["nodeSelector"]), None, None).admits(node) {
        return Some("nodeSelector".to_owned());
    }
    if !part(None, terms, None).admits(node) {
        return Some("node affinity".to_owned());
    }
    cpu_obstacle(spec, node)
        .or_else(|| amounts(spec).into_iter().find_map(|(name, wanted)| short(node, &name, wanted)))
}

fn cpu_obstacle(spec: &Value, node: &Node) -> Option<String> {
    let cpu = at(spec, &["domain", "cpu"])?;
    if cpu.get("dedicatedCpuPlacement") == Some(&Value::Bool(true)) && !can_pin(node) {
        return Some("it cannot pin CPUs".to_owned());
    }
    if at(cpu, &["realtime"]).is_some() && !node.labels.contains_key("kubevirt.io/realtime") {
        return Some("it runs no realtime guests".to_owned());
    }
    // an absent policy means `require`; KubeVirt selects nodes by the label then
    let required = at(cpu, &["features"]).and_then(Value::as_array).into_iter().flatten().filter(|feature| {
        matches!(feature.get("policy").and_then(Value::as_str).unwrap_or_default(), "" | "require")
    });
    let labelled = |name: &str| {
        node.labels.get(&format!("cpu-feature.node.kubevirt.io/{name}")).is_some_and(|value| value == "true")
    };
    let is_labeller_there = node.labels.keys().any(|key| key.starts_with("cpu-feature.node.kubevirt.io/"));
    required
        .filter_map(|feature| feature.get("name")?.as_str())
        .find(|name| is_labeller_there && !labelled(name))
        .map(|name| format!("its CPU has no {name}"))
}

/// What the VM takes of things that a node has a number of.
fn amounts(spec: &Value) -> BTreeMap<String, i64> {
    let mut amounts = BTreeMap::new();
    for name in crate::policy::resources(spec) {
        *amounts.entry(name.to_owned()).or_default() += 1;
    }
    let page = at(spec, &["domain", "memory", "hugepages", "pageSize"]).and_then(Value::as_str);
    let guest = at(spec, &["domain", "memory", "guest"]).and_then(quantity::units);
    if let (Some(page), Some(guest)) = (page, guest) {
        amounts.insert(format!("hugepages-{page}"), guest);
    }
    amounts
}

fn short(node: &Node, name: &str, wanted: i64) -> Option<String> {
    // a node that says nothing about its resources may have everything
    if node.allocatable.is_empty() {
        return None;
    }
    let has = node.allocatable.get(name).and_then(|amount| quantity::units(&Value::from(amount.as_str())));
    let has = has.unwrap_or_default();
    let is_memory = name.starts_with("hugepages-");
    let shown = |amount: i64| if is_memory { quantity::bytes(amount) } else { amount.to_string() };
    (has < wanted).then(|| format!("{} of {name}, {} wanted", shown(has), shown(wanted)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, labels: &[&str], allocatable: &[(&str, &str)]) -> Node {
        Node {
            name: name.into(),
            labels: labels.iter().map(|label| ((*label).to_owned(), "true".to_owned())).collect(),
            unschedulable: false,
            allocatable: allocatable.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn every_node_says_the_first_thing_that_is_in_the_way() {
        let machine = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        let gpus = json!({"domain": {"devices": {"gpus": [{"name": "a", "deviceName": "x.com/A"}, {"name": "b", "deviceName": "x.com/A"}]}}});
        let nodes = [
            Node { unschedulable: true, ..node("cordoned", &[], &[]) },
            node("few", &[], &[("x.com/A", "1")]),
            node("none", &[], &[("other.com/B", "1")]),
        ];
        let reasons: Vec<_> =
            obstacles(&machine(gpus.clone()), &nodes).unwrap().into_iter().map(|one| one.reason).collect();
        assert_eq!(
            reasons,
            [
                "it is cordoned, or KubeVirt does not run there",
                "1 of x.com/A, 2 wanted",
                "0 of x.com/A, 2 wanted"
            ]
        );
        assert_eq!(
            obstacles(&machine(gpus.clone()), &[node("silent", &[], &[])]),
            None,
            "not known is not short"
        );
        assert_eq!(obstacles(&machine(gpus), &[]), None);
        for (spec, node, reason) in [
            (json!({"nodeSelector": {"zone": "a"}}), node("n", &[], &[]), "nodeSelector"),
            (
                json!({"domain": {"cpu": {"dedicatedCpuPlacement": true}}}),
                node("n", &[], &[]),
                "it cannot pin CPUs",
            ),
            (
                json!({"domain": {"cpu": {"realtime": {"mask": "0"}}}}),
                node("n", &["kubevirt.io/cpumanager"], &[]),
                "it runs no realtime guests",
            ),
            (
                json!({"domain": {"cpu": {"features": [{"name": "vmx"}]}}}),
                node("n", &["cpu-feature.node.kubevirt.io/svm"], &[]),
                "its CPU has no vmx",
            ),
            (
                json!({"domain": {"memory": {"guest": "4Gi", "hugepages": {"pageSize": "1Gi"}}}}),
                node("n", &[], &[("hugepages-1Gi", "2Gi")]),
                "2Gi of hugepages-1Gi, 4Gi wanted",
            ),
        ] {
            let found = obstacles(&machine(spec), &[node]).unwrap();
            assert_eq!(found[0].reason, reason);
        }
    }
}
