//! Whether a VM can land on a node, by the rules of the scheduler that a VM carries itself:
//! `nodeSelector`, required node affinity, architecture (`k8s.io/component-helpers`
//! `scheduling/corev1/nodeaffinity`, v1.36). Taints and free capacity change too fast to
//! decide on them at admission.

use serde_json::Value;

use crate::facts::Node;

/// The label of a node's architecture.
pub(crate) const ARCH_LABEL: &str = "kubernetes.io/arch";
/// virt-handler sets it; launcher pods select `true`.
const SCHEDULABLE_LABEL: &str = "kubevirt.io/schedulable";

/// What a VM requires of a node.
pub(crate) struct Requirements<'a> {
    /// `spec.template.spec.nodeSelector`
    pub(crate) node_selector: Option<&'a Value>,
    /// The required node affinity terms; `None`: any node.
    pub(crate) terms: Option<&'a [Value]>,
    /// The architecture of the guest.
    pub(crate) architecture: Option<&'a str>,
}

impl Requirements<'_> {
    /// Whether the VM can land on the node.
    pub(crate) fn admits(&self, node: &Node) -> bool {
        !node.unschedulable
            && node.labels.get(SCHEDULABLE_LABEL).is_none_or(|value| value == "true")
            && self.matches_architecture(node)
            && self.matches_selector(node)
            && self.terms.is_none_or(|terms| terms.iter().any(|term| matches_term(node, term)))
    }

    fn matches_architecture(&self, node: &Node) -> bool {
        match (self.architecture, node.labels.get(ARCH_LABEL)) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        }
    }

    fn matches_selector(&self, node: &Node) -> bool {
        self.node_selector.and_then(Value::as_object).is_none_or(|selector| {
            selector.iter().all(|(key, value)| node.labels.get(key).map(String::as_str) == value.as_str())
        })
    }
}

fn matches_term(node: &Node, term: &Value) -> bool {
    let requirements = |field: &str| term.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (expressions, fields) = (requirements("matchExpressions"), requirements("matchFields"));
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.labels.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    expressions.iter().all(|expression| matches(expression, label))
        && fields.iter().all(|expression| matches(expression, field))
}

fn matches<'n>(expression: &Value, lookup: impl Fn(&str) -> Option<&'n str>) -> bool {
    let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
    let values = expression.get("values").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found = lookup(text("key"));
    let listed = || found.is_some_and(|found| values.iter().any(|value| value == found));
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let limit = values.first().and_then(Value::as_str).and_then(|value| value.parse::<i64>().ok());
        let found = found.and_then(|value| value.parse::<i64>().ok());
        found.zip(limit).is_some_and(|(found, limit)| holds(&found, &limit))
    };
    match text("operator") {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: &[(&str, &str)]) -> Node {
        Node {
            name: "n1".into(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Node::default()
        }
    }

    #[test]
    fn every_operator_means_what_the_scheduler_means() {
        let node = node(&[("zone", "a"), ("rank", "5")]);
        for (key, operator, values, expected) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("none", "In", json!(["b"]), false),
            ("zone", "NotIn", json!(["b"]), true),
            ("zone", "NotIn", json!(["a"]), false),
            ("none", "NotIn", json!(["a"]), true),
            ("zone", "Exists", json!([]), true),
            ("none", "Exists", json!([]), false),
            ("none", "DoesNotExist", json!([]), true),
            ("zone", "DoesNotExist", json!([]), false),
            ("rank", "Gt", json!(["4"]), true),
            ("rank", "Gt", json!(["5"]), false),
            ("rank", "Lt", json!(["6"]), true),
            ("zone", "Lt", json!(["6"]), false),
            ("none", "Gt", json!(["1"]), false),
            ("zone", "Near", json!(["a"]), false),
        ] {
            let term = json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
            let requirements = Requirements {
                node_selector: None,
                terms: Some(term.as_array().unwrap()),
                architecture: None,
            };
            assert_eq!(requirements.admits(&node), expected, "{key} {operator} {values}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_blank_terms_match_nothing() {
        let node = node(&[("zone", "a")]);
        let zone = json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]});
        let name = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        let other = json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]});
        for (terms, expected) in [
            (json!([]), false),
            (json!([{}]), false),
            (json!([{}, zone]), true),
            (json!([name]), true),
            (json!([other]), false),
            (json!([other, zone]), true),
        ] {
            let requirements = Requirements {
                node_selector: None,
                terms: Some(terms.as_array().unwrap()),
                architecture: None,
            };
            assert_eq!(requirements.admits(&node), expected, "{terms}");
        }
    }

    #[test]
    fn selector_architecture_and_cordons_count() {
        let any = Requirements { node_selector: None, terms: None, architecture: Some("amd64") };
        assert!(any.admits(&node(&[(ARCH_LABEL, "amd64")])));
        assert!(!any.admits(&node(&[(ARCH_LABEL, "arm64")])));
        assert!(!any.admits(&node(&[(SCHEDULABLE_LABEL, "false")])));
        assert!(!any.admits(&Node { unschedulable: true, ..node(&[]) }));
        let selector = json!({"zone": "a"});
        let pinned = Requirements { node_selector: Some(&selector), terms: None, architecture: None };
        assert!(pinned.admits(&node(&[("zone", "a")])));
        assert!(!pinned.admits(&node(&[("zone", "b")])));
    }
}
