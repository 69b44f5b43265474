//! What is wrong with what makes pods, and with what guards and coordinates them (`pkg/apis/{apps,batch,policy,
//! coordination}/validation`, Kubernetes 1.36), and what the server adds to a Job.

use apimachinery::FieldError;
use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Map, Value, json};

use super::pod;

fn not_negative(spec: &Value, fields: &[&str]) -> Vec<FieldError> {
    let negative = |field: &&str| {
        let number = spec[*field].as_i64().filter(|number| *number < 0)?;
        Some(FieldError::invalid(format!("spec.{field}"), number, "must be greater than or equal to 0"))
    };
    fields.iter().filter_map(negative).collect()
}

/// Deployments, `ReplicaSets`, `StatefulSets` and `DaemonSets`: `plural` is what they are.
pub fn workload(plural: &str, object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors = not_negative(spec, &["replicas"]);
    let selector = &spec["selector"];
    let empty = selector.as_object().is_none_or(|selector| {
        selector.values().all(|part| {
            part.as_object().is_none_or(Map::is_empty) && part.as_array().is_none_or(|list| list.is_empty())
        })
    });
    if selector.is_null() && plural != "daemonsets" {
        errors.push(FieldError::required("spec.selector", ""));
    } else if !selector.is_null() && empty {
        let kind = match plural {
            "statefulsets" => "statefulset",
            "daemonsets" => "daemonset",
            _ => "deployment",
        };
        let detail = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid("spec.selector", selector.clone(), detail));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if selector.is_null() || !empty && !selects(selector, labels) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
    }
    errors.extend(pod::validate_spec(&spec["template"]["spec"], "spec.template.spec"));
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy.is_string() && policy != "Always" {
        let field = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(field, policy.clone(), &["Always"]));
    }
    errors
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let labels = labels.as_object().cloned().unwrap_or_default();
    LabelSelector::from_object(selector).is_ok_and(|selector| selector.matches(&labels))
}

/// Jobs.
pub fn job(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let mut errors =
        not_negative(spec, &["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit"]);
    errors.extend(not_negative(spec, &["ttlSecondsAfterFinished"]));
    errors.extend(pod::validate_spec(&spec["template"]["spec"], "spec.template.spec"));
    if !matches!(spec["template"]["spec"]["restartPolicy"].as_str(), Some("OnFailure" | "Never")) {
        let field = "spec.template.spec.restartPolicy";
        errors.push(FieldError::required(field, "valid values: \"OnFailure\", \"Never\""));
    }
    errors
}

/// A Job selects its pods by its own uid (`generateSelector`), unless its author does.
pub fn name_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    let own = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    for (key, value) in own {
        labels[key] = value.clone();
    }
    if !job["metadata"]["labels"].is_object() {
        job["metadata"]["labels"] = job["spec"]["template"]["metadata"]["labels"].clone();
    }
    job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
}

/// `PodDisruptionBudgets`.
pub fn budget(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let (least, most) = (&spec["minAvailable"], &spec["maxUnavailable"]);
    if !least.is_null() && !most.is_null() {
        let shown = json!({"MinAvailable": least, "Selector": spec["selector"], "MaxUnavailable": most,
            "UnhealthyPodEvictionPolicy": spec["unhealthyPodEvictionPolicy"]});
        return vec![FieldError::invalid(
            "spec",
            shown,
            "minAvailable and maxUnavailable cannot be both set",
        )];
    }
    let share = |field: &str| {
        let wrong = |why: &str| Some(FieldError::invalid(format!("spec.{field}"), spec[field].clone(), why));
        match &spec[field] {
            Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => {
                wrong("must be greater than or equal to 0")
            }
            Value::String(text) => {
                let digits = text.strip_suffix('%').filter(|digits| !digits.is_empty());
                match digits.filter(|digits| digits.chars().all(|c| c.is_ascii_digit())) {
                    None => wrong(
                        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                    ),
                    Some(digits) if digits.parse::<u32>().is_ok_and(|share| share <= 100) => None,
                    Some(_) => wrong("must not be greater than 100%"),
                }
            }
            _ => None,
        }
    };
    ["minAvailable", "maxUnavailable"].into_iter().filter_map(share).collect()
}

/// Leases.
pub fn lease(object: &Value) -> Vec<FieldError> {
    let spec = &object["spec"];
    let short = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0);
    let short = short
        .map(|seconds| FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    short.into_iter().chain(not_negative(spec, &["leaseTransitions"])).collect()
}

/// Roles and `ClusterRoles`.
pub fn role(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in object["rules"].as_array().into_iter().flatten().enumerate() {
        let none = |key: &str| rule[key].as_array().is_none_or(|list| list.is_empty());
        let field = |key: &str| format!("rules[{index}].{key}");
        if none("verbs") {
            errors.push(FieldError::required(field("verbs"), "verbs must contain at least one value"));
        }
        if !none("nonResourceURLs") {
            let detail = match namespaced {
                true => "namespaced rules cannot apply to non-resource URLs",
                false if none("apiGroups") && none("resources") && none("resourceNames") => continue,
                false => "rules cannot apply to both regular resources and non-resource URLs",
            };
            let urls = rule["nonResourceURLs"].clone();
            errors.push(FieldError::invalid(field("nonResourceURLs"), urls, detail));
            continue;
        }
        if none("apiGroups") {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(field("apiGroups"), detail));
        }
        if none("resources") {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(field("resources"), detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn template(restart: &str) -> Value {
        json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "i"}]}})
    }

    #[test]
    fn workloads_select_the_pods_that_they_make() {
        let said = |plural: &str, spec: Value| said(&workload(plural, &json!({"spec": spec})));
        let selector = json!({"matchLabels": {"a": "b"}});
        assert!(
            said("deployments", json!({"selector": selector, "template": template("Always")})).is_empty()
        );
        assert_eq!(
            said(
                "deployments",
                json!({"selector": {"matchLabels": {"a": "c"}}, "template": template("Always")})
            ),
            [
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(
            said("deployments", json!({})),
            [
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`",
                "spec.template.spec.containers: Required value",
            ]
        );
        assert_eq!(
            said("statefulsets", json!({"selector": {}, "template": template("Never")})),
            [
                "spec.selector: Invalid value: {}: empty selector is invalid for statefulset",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ]
        );
    }

    #[test]
    fn a_job_ends_and_knows_its_pods() {
        let mut one = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": template("Never")}});
        assert!(job(&one).is_empty());
        name_pods(&mut one);
        assert_eq!(one["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(one["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(one["metadata"]["labels"]["controller-uid"], "u");
        assert_eq!(
            said(&job(&json!({"spec": {"template": template("Always")}}))),
            ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
        );
    }

    #[test]
    fn budgets_leases_and_roles_make_sense() {
        for (spec, why) in [
            (json!({"minAvailable": 1}), None),
            (json!({"minAvailable": "50%"}), None),
            (json!({"minAvailable": "150%"}), Some("must not be greater than 100%")),
            (json!({"minAvailable": -1}), Some("must be greater than or equal to 0")),
            (json!({"minAvailable": 1, "maxUnavailable": 1}), Some("cannot be both set")),
        ] {
            let errors = said(&budget(&json!({"spec": spec})));
            match why {
                None => assert!(errors.is_empty(), "{errors:?}"),
                Some(why) => assert!(errors.len() == 1 && errors[0].ends_with(why), "{errors:?}"),
            }
        }
        assert_eq!(
            said(&lease(&json!({"spec": {"leaseDurationSeconds": 0}}))),
            ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
        );
        assert!(role(&json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}), false).is_empty());
        assert_eq!(
            said(&role(&json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}), true)),
            [
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs"
            ]
        );
        assert_eq!(said(&role(&json!({"rules": [{"verbs": ["get"]}]}), true)).len(), 2);
    }
}
