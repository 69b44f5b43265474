//! Cluster roles whose rules are those of other cluster roles (`aggregationRule`).

use crate::tree::Value;

use super::Rule;
use crate::selector::LabelSelector;

/// Whether a cluster role takes its rules from others.
pub fn is_aggregated(role: &Value) -> bool {
    role["aggregationRule"].is_object()
}

/// The `rules` that an aggregated cluster role has: those of all cluster roles that one of its selectors
/// matches, by name, each rule once. `None`: the role is not aggregated.
pub fn aggregated_rules<'a>(role: &Value, all: impl IntoIterator<Item = &'a Value>) -> Option<Value> {
    if !is_aggregated(role) {
        return None;
    }
    let listed = role["aggregationRule"]["clusterRoleSelectors"].as_array();
    let selectors: Vec<LabelSelector> = listed
        .into_iter()
        .flatten()
        .filter_map(|selector| LabelSelector::from_object(selector).ok())
        .collect();
    let name = |role: &Value| role["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let own = name(role);
    let mut chosen: Vec<&Value> = all
        .into_iter()
        .filter(|other| name(other) != own && selectors.iter().any(|selector| selector.matches_object(other)))
        .collect();
    chosen.sort_by_key(|role| name(role));
    let mut rules: Vec<Value> = Vec::new();
    let mut seen: Vec<Rule> = Vec::new();
    for rule in chosen.iter().filter_map(|role| role["rules"].as_array()).flatten() {
        let read = Rule::new(rule);
        if !seen.contains(&read) {
            seen.push(read);
            rules.push(rule.clone());
        }
    }
    Some(rules.into())
}
