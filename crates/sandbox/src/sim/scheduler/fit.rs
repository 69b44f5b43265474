//! Where a pod can run: the filters and the score of the default scheduler that matter to VMs
//! (`kube-scheduler` 1.36: `NodeUnschedulable`, `NodeName`, `TaintToleration`, `NodeAffinity`,
//! `NodeResourcesFit`, `InterPodAffinity`, `PodTopologySpread`), with its wording.

use std::collections::BTreeMap;

use apimachinery::tree::{Map, Value};

use crate::sim::json::{self, list, map, text};
use crate::sim::requests::{self, Amounts};

/// What the scheduler knows about a node.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    pub labels: Map,
    pub taints: Vec<Value>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub used: Amounts,
    pub pods: usize,
}

impl NodeInfo {
    /// Takes over what a Node object says; what is used stays.
    pub fn describe(&mut self, node: &Value) {
        json::name(node).clone_into(&mut self.name);
        self.labels = map(node, "/metadata/labels").cloned().unwrap_or_default();
        self.taints = list(node, "/spec/taints").to_vec();
        self.unschedulable = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
        self.allocatable = requests::of_list(map(node, "/status/allocatable"));
    }
}

/// A pod's demands, read once for all nodes.
pub struct Demand<'a> {
    pod: &'a Value,
    requests: Amounts,
}

impl<'a> Demand<'a> {
    pub fn of(pod: &'a Value) -> Self {
        Self { pod, requests: requests::of_pod(pod) }
    }
}

/// Why a node cannot take a pod, in the order of the filters; empty when it can. All missing
/// resources are named, of the other filters the first that fails.
pub fn misfits(demand: &Demand<'_>, node: &NodeInfo) -> Vec<String> {
    let pod = demand.pod;
    if node.unschedulable && !tolerates(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule") {
        return vec!["node(s) were unschedulable".into()];
    }
    for taint in &node.taints {
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        if matches!(effect, "NoSchedule" | "NoExecute") && !tolerates(pod, key, value, effect) {
            return vec![format!("node(s) had untolerated taint(s) {{{key}: {value}}}")];
        }
    }
    if !matches_node(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    let mut missing = Vec::new();
    let limit = node.allocatable.get("pods").copied().unwrap_or(0) / 1000;
    if i128::try_from(node.pods).unwrap_or(i128::MAX) >= limit {
        missing.push("Too many pods".into());
    }
    for (name, wanted) in &demand.requests {
        let free = node.allocatable.get(name).unwrap_or(&0) - node.used.get(name).unwrap_or(&0);
        if *wanted > 0 && *wanted > free {
            missing.push(format!("Insufficient {name}"));
        }
    }
    missing
}

/// How well a node fits, larger is better: the mean of the free shares of CPU and memory after
/// the pod (`LeastAllocated`), in thousandths.
pub fn score(demand: &Demand<'_>, node: &NodeInfo) -> i128 {
    ["cpu", "memory"]
        .iter()
        .map(|name| {
            let total = node.allocatable.get(*name).copied().unwrap_or(0).max(1);
            let used = node.used.get(*name).unwrap_or(&0) + demand.requests.get(*name).unwrap_or(&0);
            (total - used) * 1000 / total
        })
        .sum::<i128>()
        / 2
}

fn tolerates(pod: &Value, key: &str, value: &str, effect: &str) -> bool {
    list(pod, "/spec/tolerations").iter().any(|toleration| {
        let (want_key, want_effect) = (text(toleration, "/key"), text(toleration, "/effect"));
        let exists = text(toleration, "/operator") == "Exists";
        (want_effect.is_empty() || want_effect == effect)
            && (want_key == key || (want_key.is_empty() && exists))
            && (exists || text(toleration, "/value") == value)
    })
}

fn matches_node(pod: &Value, node: &NodeInfo) -> bool {
    let name = text(pod, "/spec/nodeName");
    if !name.is_empty() && name != node.name {
        return false;
    }
    let selected = map(pod, "/spec/nodeSelector")
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| node.labels.get(key) == Some(value)));
    let terms = pod.pointer(
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
    );
    selected
        && terms
            .and_then(Value::as_array)
            .is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &Value, node: &NodeInfo) -> bool {
    let (expressions, fields) = (list(term, "/matchExpressions"), list(term, "/matchFields"));
    // An empty term matches nothing.
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|one| requirement_matches(one, node.labels.get(text(one, "/key"))))
        && fields.iter().all(|one| {
            text(one, "/key") == "metadata.name"
                && requirement_matches(one, Some(&Value::from(node.name.clone())))
        })
}

fn requirement_matches(requirement: &Value, have: Option<&Value>) -> bool {
    let values = list(requirement, "/values");
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok());
    let compare = |ordering| {
        let (Some(have), Some(wanted)) = (have.and_then(number), values.first().and_then(number)) else {
            return false;
        };
        have.cmp(&wanted) == ordering
    };
    match text(requirement, "/operator") {
        "In" => have.is_some_and(|have| values.contains(have)),
        "NotIn" => !have.is_some_and(|have| values.contains(have)),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => compare(std::cmp::Ordering::Greater),
        "Lt" => compare(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// A required anti-affinity term of a pod, as far as it is simulated: a label selector and a
/// topology key, within the pod's namespace.
pub fn anti_affinity_terms(pod: &Value) -> &[Value] {
    list(pod, "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution")
}

/// A required affinity term of a pod, as far as it is simulated: as those of anti-affinity.
pub fn affinity_terms(pod: &Value) -> &[Value] {
    list(pod, "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution")
}

/// Whether one of a pod's terms selects another pod.
pub fn are_about(terms: &[Value], owner: &Value, other: &Value) -> bool {
    terms.iter().any(|term| {
        let namespaces = list(term, "/namespaces");
        let there = if namespaces.is_empty() {
            json::namespace(owner) == json::namespace(other)
        } else {
            namespaces.iter().any(|one| one == json::namespace(other))
        };
        there && term.get("labelSelector").is_some_and(|selector| selects(selector, other))
    })
}

/// How a pod has to be spread (`topologySpreadConstraints` that must hold).
pub fn spread_constraints(pod: &Value) -> impl Iterator<Item = &Value> {
    let all = list(pod, "/spec/topologySpreadConstraints").iter();
    all.filter(|constraint| text(constraint, "/whenUnsatisfiable") == "DoNotSchedule")
}

/// Whether a pod counts for a constraint of another one in its namespace.
pub fn is_spread(constraint: &Value, owner: &Value, other: &Value) -> bool {
    let label = |pod: &Value, key: &Value| pod["metadata"]["labels"].get(key.as_str()?).cloned();
    json::namespace(owner) == json::namespace(other)
        && constraint.get("labelSelector").is_some_and(|selector| selects(selector, other))
        && list(constraint, "/matchLabelKeys").iter().all(|key| label(owner, key) == label(other, key))
}

/// Whether the nodes of a domain count for the spread of a pod: those that it could go to by affinity and selector,
/// unless the constraint says otherwise.
pub fn counts_for_spread(constraint: &Value, pod: &Value, node: &NodeInfo) -> bool {
    let affinity = text(constraint, "/nodeAffinityPolicy") == "Ignore" || matches_node(pod, node);
    let bears = |taint: &Value| {
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        !matches!(effect, "NoSchedule" | "NoExecute") || tolerates(pod, key, value, effect)
    };
    affinity && (text(constraint, "/nodeTaintsPolicy") != "Honor" || node.taints.iter().all(bears))
}

fn selects(selector: &Value, pod: &Value) -> bool {
    let empty = Map::new();
    let labels = map(pod, "/metadata/labels").unwrap_or(&empty);
    map(selector, "/matchLabels")
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
        && list(selector, "/matchExpressions")
            .iter()
            .all(|one| requirement_matches(one, labels.get(text(one, "/key"))))
}

/// What the `PodScheduled` condition and the `FailedScheduling` event say.
pub fn unschedulable_message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut counted: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    let resources: usize = reasons
        .iter()
        .filter(|(reason, _)| reason.starts_with("Insufficient") || *reason == "Too many pods")
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(0);
    let hopeless = nodes.saturating_sub(resources);
    let mut preemption = Vec::new();
    if resources > 0 {
        preemption.push(format!("{} No preemption victims found for incoming pod", resources.min(nodes)));
    }
    if hopeless > 0 {
        preemption.push(format!("{hopeless} Preemption is not helpful for scheduling"));
    }
    format!(
        "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {}.",
        counted.join(", "),
        preemption.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn node() -> NodeInfo {
        let mut info = NodeInfo::default();
        info.describe(&json!({
            "metadata": {"name": "n1", "labels": {"zone": "a", "cpus": "8"}},
            "spec": {"taints": [{"key": "drain", "value": "x", "effect": "NoSchedule"},
                {"key": "soft", "effect": "PreferNoSchedule"}]},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "2", "gpu": "1"}},
        }));
        info
    }

    #[test]
    fn filters_and_their_words() {
        let tolerant = json!([{"key": "drain", "operator": "Exists"}]);
        let required = |operator: &str, key: &str, values: Value| {
            json!({"tolerations": tolerant, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}})
        };
        let asks = |requests: Value| json!({"tolerations": tolerant, "containers": [{"resources": {"requests": requests}}]});
        let affinity = "node(s) didn't match Pod's node affinity/selector";
        let none: [&str; 0] = [];
        for (spec, expected) in [
            (json!({}), vec!["node(s) had untolerated taint(s) {drain: x}"]),
            (
                json!({"tolerations": [{"key": "drain", "value": "y"}]}),
                vec!["node(s) had untolerated taint(s) {drain: x}"],
            ),
            (json!({"tolerations": [{"key": "drain", "value": "x", "effect": "NoSchedule"}]}), none.to_vec()),
            (json!({"tolerations": [{"operator": "Exists"}]}), none.to_vec()),
            (json!({"tolerations": tolerant, "nodeSelector": {"zone": "b"}}), vec![affinity]),
            (required("In", "zone", json!(["a", "b"])), none.to_vec()),
            (required("NotIn", "zone", json!(["a"])), vec![affinity]),
            (required("DoesNotExist", "zone", json!([])), vec![affinity]),
            (required("Gt", "cpus", json!(["4"])), none.to_vec()),
            (required("Lt", "cpus", json!(["4"])), vec![affinity]),
            (asks(json!({"cpu": "1", "memory": "1Gi"})), none.to_vec()),
            (asks(json!({"cpu": "1001m", "gpu": "2"})), vec!["Insufficient cpu", "Insufficient gpu"]),
            (asks(json!({"fpga": "1"})), vec!["Insufficient fpga"]),
        ] {
            let pod = json!({"spec": spec});
            assert_eq!(misfits(&Demand::of(&pod), &node()), expected, "{pod}");
        }
    }

    #[test]
    fn a_cordoned_or_full_node_takes_nothing() {
        let pod = json!({"spec": {"tolerations": [{"key": "drain", "operator": "Exists"}]}});
        let cordoned = NodeInfo { unschedulable: true, ..node() };
        assert_eq!(misfits(&Demand::of(&pod), &cordoned), ["node(s) were unschedulable"]);
        let full = NodeInfo { pods: 2, ..node() };
        assert_eq!(misfits(&Demand::of(&pod), &full), ["Too many pods"]);
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let pod = json!({"spec": {}});
        let busy = NodeInfo { used: Amounts::from([("cpu".into(), 500)]), ..node() };
        assert!(score(&Demand::of(&pod), &node()) > score(&Demand::of(&pod), &busy));
    }

    #[test]
    fn anti_affinity_looks_at_labels_and_namespace() {
        let pod = |namespace: &str, app: &str| json!({"metadata": {"namespace": namespace, "labels": {"app": app}}});
        let terms = [
            json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}),
        ];
        for (other, repelled) in [(pod("a", "x"), true), (pod("a", "y"), false), (pod("b", "x"), false)] {
            assert_eq!(are_about(&terms, &pod("a", "x"), &other), repelled, "{other}");
        }
    }

    #[test]
    fn the_message_counts_reasons_and_says_what_preemption_could_do() {
        let reasons = BTreeMap::from([
            ("Insufficient memory".to_owned(), 2),
            ("node(s) were unschedulable".to_owned(), 1),
        ]);
        assert_eq!(
            unschedulable_message(3, &reasons),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory. preemption: 0/3 nodes \
             are available: 2 No preemption victims found for incoming pod, 1 Preemption is not helpful for \
             scheduling."
        );
        assert_eq!(unschedulable_message(0, &BTreeMap::new()), "no nodes available to schedule pods");
    }
}
