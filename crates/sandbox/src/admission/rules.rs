//! Which requests a webhook is about (`k8s.io/apiserver pkg/admission/plugin/webhook/predicates/rules`, 1.36).

use apimachinery::tree::Value;

use crate::admission::{Operation, Resource};

/// Which scope a rule is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Any,
    Cluster,
    Namespaced,
}

/// One entry of `rules` of a webhook, or of `matchConstraints.resourceRules` of a policy.
#[derive(Clone, Debug)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// resource and subresource
    resources: Vec<(String, String)>,
    /// empty: any name
    names: Vec<String>,
    scope: Scope,
}

impl Rule {
    /// Reads `operations`, `apiGroups`, `apiVersions`, `resources`, `scope`, and `resourceNames` of policies.
    pub fn parse(rule: &Value) -> Self {
        let resources = strings(&rule["resources"]).into_iter().map(|resource| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource.as_str(), ""));
            (resource.to_owned(), subresource.to_owned())
        });
        Self {
            operations: strings(&rule["operations"]),
            groups: strings(&rule["apiGroups"]),
            versions: strings(&rule["apiVersions"]),
            resources: resources.collect(),
            names: strings(&rule["resourceNames"]),
            scope: match rule["scope"].as_str() {
                Some("Cluster") => Scope::Cluster,
                Some("Namespaced") => Scope::Namespaced,
                _ => Scope::Any,
            },
        }
    }

    /// Whether a request falls under this rule, in the version it was made in.
    pub fn matches(&self, operation: Operation, resource: &Resource<'_>) -> bool {
        self.matches_but_version(operation, resource) && has(&self.versions, resource.version)
    }

    /// The first of `served` that this rule names: under `matchPolicy: Equivalent` the webhook sees the object in
    /// that version.
    pub fn equivalent<'v>(
        &self,
        operation: Operation,
        resource: &Resource<'_>,
        served: &'v [String],
    ) -> Option<&'v str> {
        let version = served.iter().find(|version| has(&self.versions, version))?;
        self.matches_but_version(operation, resource).then_some(version.as_str())
    }

    /// Whether only the version may be in the way.
    pub fn matches_but_version(&self, operation: Operation, resource: &Resource<'_>) -> bool {
        let named = |(name, subresource): &(String, String)| {
            (name == "*" || name == resource.resource)
                && (subresource == "*" || subresource == resource.subresource)
        };
        has(&self.operations, operation.as_str())
            && has(&self.groups, resource.group)
            && self.resources.iter().any(named)
            && (self.names.is_empty() || self.names.iter().any(|name| name == resource.name))
            && match self.scope {
                Scope::Any => true,
                Scope::Cluster => resource.is_cluster_scoped(),
                Scope::Namespaced => !resource.is_cluster_scoped(),
            }
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == item)
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn resource<'a>(text: &'a str, namespace: &'a str) -> Resource<'a> {
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next().unwrap_or("");
        let (group, version, resource, subresource) = (next(), next(), next(), next());
        Resource { group, version, resource, subresource, namespace, name: "n" }
    }

    #[test]
    fn rules_match_as_the_api_matches_them() {
        let rule = |groups: &str, versions: &str, resources: &str, scope: &str| {
            Rule::parse(&json!({"operations": ["CREATE"], "apiGroups": [groups], "apiVersions": [versions],
                "resources": resources.split(',').collect::<Vec<_>>(), "scope": scope}))
        };
        for (rule, target, namespace, want) in [
            (rule("", "v1", "pods", "*"), "/v1/pods", "a", true),
            (rule("", "v1", "pods", "*"), "/v1/pods/status", "a", false),
            (rule("", "v1", "pods/*", "*"), "/v1/pods/status", "a", true),
            (rule("", "v1", "pods/*", "*"), "/v1/pods", "a", true),
            (rule("", "v1", "*/status", "*"), "/v1/pods/status", "a", true),
            (rule("", "v1", "*/status", "*"), "/v1/pods", "a", false),
            (rule("", "v1", "*", "*"), "/v1/pods", "a", true),
            (rule("", "v1", "*", "*"), "/v1/pods/status", "a", false),
            (rule("*", "*", "*/*", "*"), "kubevirt.io/v1/virtualmachines/status", "a", true),
            (rule("kubevirt.io", "v1", "virtualmachines", "*"), "/v1/virtualmachines", "a", false),
            (
                rule("kubevirt.io", "v1alpha3", "virtualmachines", "*"),
                "kubevirt.io/v1/virtualmachines",
                "a",
                false,
            ),
            (rule("", "v1", "configmaps,pods", "*"), "/v1/pods", "a", true),
            (rule("", "v1", "*", "Namespaced"), "/v1/pods", "a", true),
            (rule("", "v1", "*", "Namespaced"), "/v1/nodes", "", false),
            (rule("", "v1", "*", "Cluster"), "/v1/nodes", "", true),
            // a namespace's own requests carry its name as namespace, and are cluster-scoped
            (rule("", "v1", "*", "Cluster"), "/v1/namespaces", "a", true),
            (rule("", "v1", "*", "Namespaced"), "/v1/namespaces", "a", false),
        ] {
            let target = resource(target, namespace);
            assert_eq!(rule.matches(Operation::Create, &target), want, "{rule:?} {target:?}");
            assert!(!rule.matches(Operation::Delete, &target));
        }
    }

    #[test]
    fn an_equivalent_version_is_one_that_is_served() {
        let rule = Rule::parse(&json!({"operations": ["*"], "apiGroups": ["kubevirt.io"],
            "apiVersions": ["v1alpha3"], "resources": ["virtualmachines"]}));
        let target = resource("kubevirt.io/v1/virtualmachines", "a");
        let served = ["v1".to_owned(), "v1alpha3".to_owned()];
        assert_eq!(rule.equivalent(Operation::Update, &target, &served), Some("v1alpha3"));
        assert_eq!(rule.equivalent(Operation::Update, &target, &served[..1]), None);
    }
}
