//! The configuration of one migration: the cluster's, and over it that of the `MigrationPolicy` that
//! fits best (`pkg/util/migrations`, `migrationpolicy.go`, v1.9).

use apimachinery::tree::{Map, Text, Value, json};

use crate::sim::json::{self, map, text};

/// The defaults of `spec.configuration.migrations` (`virt-config.go`, v1.9).
pub fn defaults() -> Value {
    json!({
        "allowAutoConverge": false,
        "allowPostCopy": false,
        "allowWorkloadDisruption": false,
        "bandwidthPerMigration": "0",
        "completionTimeoutPerGiB": 150,
        "maxDowntimeMs": 900,
        "nodeDrainTaintKey": "kubevirt.io/drain",
        "parallelMigrationsPerCluster": 5,
        "parallelOutboundMigrationsPerNode": 2,
        "progressTimeout": 150,
        "unsafeMigrationOverride": false,
        "utilityVolumesTimeout": 150,
    })
}

/// What a policy may say.
const FROM_POLICY: [&str; 7] = [
    "allowAutoConverge",
    "bandwidthPerMigration",
    "completionTimeoutPerGiB",
    "allowPostCopy",
    "allowWorkloadDisruption",
    "maxDowntimeMs",
    "experimental",
];

/// Lays what is given over what is there.
fn lay_over(base: &mut Value, more: Option<&Value>, keys: &[&str]) {
    for (key, value) in more.and_then(Value::as_object).into_iter().flatten() {
        if !value.is_null() && (keys.is_empty() || keys.contains(&key.as_str())) {
            base[key] = value.clone();
        }
    }
}

/// The cluster's configuration.
pub fn of_cluster(configured: Option<&Value>) -> Value {
    let mut configuration = defaults();
    lay_over(&mut configuration, configured, &[]);
    configuration
}

/// The configuration of a VMI's migration, and the policy that it comes from.
pub fn of_vmi<'a>(
    cluster: &Value,
    policies: impl Iterator<Item = &'a Value>,
    vmi: &Value,
    namespace: Option<&Value>,
) -> (Value, Option<String>) {
    let mut best: Option<(usize, &Value)> = None;
    for policy in policies {
        let Some(score) = score(policy, vmi, namespace) else { continue };
        let better = best.is_none_or(|(have, name)| {
            score > have || (score == have && json::name(policy) < json::name(name))
        });
        if better {
            best = Some((score, policy));
        }
    }
    let mut configuration = cluster.clone();
    let Some((_, policy)) = best else { return (configuration, None) };
    lay_over(&mut configuration, policy.get("spec"), &FROM_POLICY);
    (configuration, Some(json::name(policy).to_owned()))
}

/// How many labels of its selectors fit; `None`: it does not fit at all.
fn score(policy: &Value, vmi: &Value, namespace: Option<&Value>) -> Option<usize> {
    let fits = |selector: &str, labels: Option<&Map>| {
        let Some(wanted) = map(policy, &format!("/spec/selectors/{selector}")) else { return Some(0) };
        let fits = |(key, value): (&Text, &Value)| labels.and_then(|labels| labels.get(key)) == Some(value);
        wanted.iter().all(fits).then_some(wanted.len())
    };
    let of_vmi = fits("virtualMachineInstanceSelector", map(vmi, "/metadata/labels"))?;
    let of_namespace =
        fits("namespaceSelector", namespace.and_then(|namespace| map(namespace, "/metadata/labels")))?;
    let selects = policy.pointer("/spec/selectors").is_some_and(Value::is_object);
    (selects && of_vmi + of_namespace > 0).then_some(of_vmi + of_namespace)
}

/// A limit on parallel migrations.
pub fn limit(configuration: &Value, key: &str) -> usize {
    configuration[key].as_u64().and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// The taint that says that a node is to be emptied.
pub fn drain_taint(configuration: &Value) -> &str {
    text(configuration, "/nodeDrainTaintKey")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_with_most_labels_counts_and_then_the_first_name() {
        let policy = |name: &str, vmi: Value, namespace: Value, downtime: u32| {
            json!({"metadata": {"name": name}, "spec": {"maxDowntimeMs": downtime, "selectors": {
                "virtualMachineInstanceSelector": vmi, "namespaceSelector": namespace}}})
        };
        let policies = [
            policy("b", json!({"app": "x"}), json!({}), 1),
            policy("a", json!({"app": "x"}), json!({}), 2),
            policy("c", json!({"app": "x"}), json!({"team": "y"}), 3),
            policy("d", json!({"app": "other"}), json!({"team": "y", "more": "z"}), 4),
        ];
        let cluster = of_cluster(Some(&json!({"bandwidthPerMigration": "64Mi"})));
        let vmi = |app: &str| json!({"metadata": {"labels": {"app": app}}});
        let namespace = json!({"metadata": {"labels": {"team": "y"}}});
        for (app, namespace, name, downtime) in [
            ("x", Some(&namespace), Some("c"), 3),
            ("x", None, Some("a"), 2),
            ("nobody", Some(&namespace), None, 900),
        ] {
            let (configuration, policy) = of_vmi(&cluster, policies.iter(), &vmi(app), namespace);
            assert_eq!(
                (policy.as_deref(), &configuration["maxDowntimeMs"]),
                (name, &json!(downtime)),
                "{app}"
            );
            assert_eq!(configuration["bandwidthPerMigration"], "64Mi");
        }
        assert_eq!(limit(&cluster, "parallelMigrationsPerCluster"), 5);
        assert_eq!(drain_taint(&cluster), "kubevirt.io/drain");
    }
}
