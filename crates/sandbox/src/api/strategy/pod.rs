//! Pods: defaults (`pkg/apis/core/v1/defaults.go`) and what may change later
//! (`pkg/apis/core/validation`), Kubernetes 1.36.

use apimachinery::tree::{Map, Value, json};
use apimachinery::validation::dns1123_label;
use apimachinery::{FieldError, FieldErrorKind};

use super::{items_mut, set, set_in};

use apimachinery::quantity::milli;

const LISTS: [&str; 2] = ["initContainers", "containers"];

/// What may change in a running pod, as the real server words it.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Fills in what a pod's author left out.
pub fn default(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    let Some(spec) = pod.get_mut("spec") else { return };
    template(spec);
    set(spec, "enableServiceLinks", json!(true));
    for list in LISTS {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
}

/// Defaults of a pod's spec, also inside templates.
pub fn template(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", json!("default-scheduler"));
    for list in LISTS {
        for container in items_mut(spec, list).filter(|container| container.is_object()) {
            default_container(container);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
    if spec["hostNetwork"] == true {
        for list in LISTS {
            for port in items_mut(spec, list).flat_map(|container| items_mut(container, "ports")) {
                let number = port["containerPort"].clone();
                set(port, "hostPort", number);
            }
        }
    }
}

fn default_container(container: &mut Value) {
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let pull = match tag {
        _ if image.contains('@') => "IfNotPresent",
        None | Some("latest") => "Always",
        Some(_) => "IfNotPresent",
    };
    set(container, "imagePullPolicy", json!(pull));
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    for port in items_mut(container, "ports") {
        set(port, "protocol", json!("TCP"));
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            for (key, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                set_in(container, probe, key, json!(value));
            }
            set_in(&mut container[probe], "httpGet", "scheme", json!("HTTP"));
        }
    }
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|volume| volume.keys().all(|key| key == "name")) {
        volume["emptyDir"] = json!({});
    }
    for (kind, mode) in [
        ("configMap", "defaultMode"),
        ("secret", "defaultMode"),
        ("downwardAPI", "defaultMode"),
        ("projected", "defaultMode"),
    ] {
        set_in(volume, kind, mode, json!(0o644));
    }
    let Some(projected) = volume.get_mut("projected") else { return };
    for source in items_mut(projected, "sources") {
        set_in(source, "serviceAccountToken", "expirationSeconds", json!(3600));
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let Some(resources) = container.get_mut("resources") else { return };
    set(resources, "requests", json!({}));
    for (name, value) in limits {
        set_in(resources, "requests", &name, value);
    }
}

/// Tolerations that every pod gets (admission plugin `DefaultTolerationSeconds`).
pub fn tolerate(pod: &mut Value) {
    let keys = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in keys {
        let covered = |there: &Value| {
            let all = there["key"].as_str().is_none_or(str::is_empty) && there["operator"] == "Exists";
            (there["key"] == key || all)
                && (there["effect"] == "NoExecute" || there["effect"].as_str().is_none_or(str::is_empty))
        };
        if !tolerations.iter().any(covered) {
            tolerations.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
    if pod["spec"].is_object() {
        pod["spec"]["tolerations"] = tolerations.into();
    }
}

/// The status of a pod that nothing has happened to yet.
pub fn first_status(pod: &mut Value) {
    pod["status"] = json!({"phase": "Pending", "qosClass": qos(pod)});
}

/// `Guaranteed`, `Burstable` or `BestEffort` (`pkg/apis/core/v1/helper/qos`).
pub fn qos(pod: &Value) -> &'static str {
    let containers = || LISTS.into_iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    let amount = |container: &Value, kind: &str, name: &str| {
        milli(&container["resources"][kind][name]).filter(|amount| *amount > 0)
    };
    let names = ["cpu", "memory"];
    let any = containers().any(|container| {
        names
            .iter()
            .any(|name| amount(container, "limits", name).or(amount(container, "requests", name)).is_some())
    });
    let guaranteed = containers().all(|container| {
        names.iter().all(|name| {
            let limit = amount(container, "limits", name);
            limit.is_some()
                && amount(container, "requests", name).is_none_or(|request| Some(request) == limit)
        })
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What is wrong with a pod that is to be created.
pub fn validate(pod: &Value) -> Vec<FieldError> {
    validate_spec(&pod["spec"], "spec")
}

/// What is wrong with a pod's spec, also inside templates; `at` is where it is.
pub fn validate_spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let named = |key: &str| {
        spec[key].as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap_or_default())
    };
    let mut volumes = Vec::new();
    for (index, volume) in named("volumes").enumerate() {
        let field = format!("{at}.volumes[{index}].name");
        errors.extend(named_once(volume, &field, &volumes));
        volumes.push(volume);
    }
    if spec["containers"].as_array().is_none_or(|list| list.is_empty()) {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut containers = Vec::new();
    for list in LISTS {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let field = format!("{at}.{list}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            errors.extend(named_once(name, &format!("{field}.name"), &containers));
            containers.push(name);
            if container["image"].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("{field}.image"), ""));
            }
            for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
                let name = mount["name"].as_str().unwrap_or_default();
                if !volumes.contains(&name) {
                    let field = format!("{field}.volumeMounts[{index}].name");
                    errors.push(FieldError::new(FieldErrorKind::NotFound, field, name, ""));
                }
            }
            errors.extend(amounts(container, &field));
            errors.extend(over_limits(container, &field));
        }
    }
    errors.extend(one_of(spec, at, "restartPolicy", &["Always", "OnFailure", "Never"]));
    errors.extend(one_of(
        spec,
        at,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    ));
    errors
}

/// A name that is a label and that no other has.
fn named_once(name: &str, field: &str, others: &[&str]) -> Option<FieldError> {
    if name.is_empty() {
        return Some(FieldError::required(field, ""));
    }
    if let Some(why) = dns1123_label(name).into_iter().next() {
        return Some(FieldError::invalid(field, name, why));
    }
    others.contains(&name).then(|| FieldError::duplicate(field, name))
}

fn one_of(spec: &Value, at: &str, key: &str, known: &[&str]) -> Option<FieldError> {
    let value = spec[key].as_str().filter(|value| !known.contains(value))?;
    Some(FieldError::not_supported(format!("{at}.{key}"), value, known))
}

/// Amounts below nothing, and devices that are asked for without a limit.
fn amounts(container: &Value, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let resources = &container["resources"];
    for part in ["limits", "requests"] {
        for (name, amount) in resources[part].as_object().into_iter().flatten() {
            if milli(amount).is_some_and(|amount| amount < 0) {
                let field = format!("{field}.resources.{part}[{name}]");
                errors.push(FieldError::invalid(field, amount.clone(), "must be greater than or equal to 0"));
            }
            if part == "requests" && name.contains('/') && resources["limits"].get(name).is_none() {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(format!("{field}.resources.limits"), detail));
            }
        }
    }
    errors
}

/// Requests above limits.
pub fn over_limits(container: &Value, field: &str) -> Vec<FieldError> {
    let limits = container["resources"]["limits"].as_object();
    let mut errors = Vec::new();
    for (name, limit) in limits.into_iter().flatten() {
        let request = &container["resources"]["requests"][name.as_str()];
        if let (Some(asked), Some(most)) = (milli(request), milli(limit))
            && asked > most
        {
            let detail = format!(
                "must be less than or equal to {name} limit of {}",
                limit.as_str().unwrap_or_default()
            );
            errors.push(FieldError::invalid(format!("{field}.resources.requests"), request.clone(), detail));
        }
    }
    errors
}

/// What is wrong with a change of a pod's spec.
pub fn validate_update(new: &Value, current: &Value) -> Vec<FieldError> {
    let (mut a, mut b) = (new["spec"].clone(), current["spec"].clone());
    for spec in [&mut a, &mut b] {
        for list in LISTS {
            for container in items_mut(spec, list) {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("activeDeadlineSeconds");
            spec.remove("ephemeralContainers");
        }
    }
    let list = |spec: &Value, key: &str| spec[key].as_array().cloned().unwrap_or_default();
    let kept = list(&b, "tolerations").iter().all(|toleration| list(&a, "tolerations").contains(toleration));
    let opened = list(&a, "schedulingGates").len() <= list(&b, "schedulingGates").len();
    for spec in [&mut a, &mut b] {
        let Some(spec) = spec.as_object_mut() else { continue };
        if kept {
            spec.remove("tolerations");
        }
        if opened {
            spec.remove("schedulingGates");
        }
    }
    if a == b {
        Vec::new()
    } else {
        vec![FieldError::forbidden("spec", format!("{MUTABLE}\n{}", difference(&a, &b)))]
    }
}

/// The parts that differ, for people.
fn difference(new: &Value, old: &Value) -> String {
    let (new, old) =
        (new.as_object().cloned().unwrap_or_default(), old.as_object().cloned().unwrap_or_default());
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(key)));
    let mut out = String::new();
    for key in keys.filter(|key| new.get(key) != old.get(key)) {
        out.push_str(&changed(key, old.get(key), new.get(key)));
    }
    out
}

fn changed(key: &str, old: Option<&Value>, new: Option<&Value>) -> String {
    let text = |value: Option<&Value>| value.map_or_else(|| "null".into(), Value::to_string);
    format!("- {key}: {}\n+ {key}: {}\n", text(old), text(new))
}

/// Resources of one container, `cpu` and `memory` apart from the rest.
fn others(resources: &Value, kind: &str) -> Map {
    let mut map = resources[kind].as_object().cloned().unwrap_or_default();
    map.remove("cpu");
    map.remove("memory");
    map
}

/// `pods/resize`: takes over the resources of containers that are there and nothing else.
pub fn confine_resize(new: &Value, current: &Value) -> Value {
    let mut kept = current.clone();
    for list in LISTS {
        for container in items_mut(&mut kept["spec"], list) {
            let name = container["name"].clone();
            let wanted =
                new["spec"][list].as_array().into_iter().flatten().find(|wanted| wanted["name"] == name);
            if let Some(wanted) = wanted {
                for key in ["resources", "resizePolicy"] {
                    match wanted.get(key) {
                        Some(value) => container[key] = value.clone(),
                        None => {
                            if let Some(container) = container.as_object_mut() {
                                container.remove(key);
                            }
                        }
                    }
                }
            }
        }
    }
    kept
}

/// What is wrong with a resize (KEP-1287; `ValidatePodResize`).
pub fn validate_resize(new: &Value, current: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in LISTS {
        let pairs = new["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .zip(current["spec"][list].as_array().into_iter().flatten());
        for (index, (new, old)) in pairs.enumerate() {
            let field = format!("spec.{list}[{index}]");
            errors.extend(over_limits(new, &field));
            let (a, b) = (&new["resources"], &old["resources"]);
            for (kind, word) in [("limits", "limits"), ("requests", "requests")] {
                let gone = |name: &str| !b[kind][name].is_null() && a[kind][name].is_null();
                if ["cpu", "memory"].iter().any(|name| gone(name)) {
                    let message = format!("resource {word} cannot be removed");
                    errors.push(FieldError::forbidden(format!("{field}.resources.{kind}"), message));
                }
            }
            if errors.is_empty()
                && ["limits", "requests"].iter().any(|kind| others(a, kind) != others(b, kind))
            {
                errors.push(FieldError::forbidden("spec", "only cpu and memory resources are mutable"));
            }
        }
    }
    if errors.is_empty() && qos(new) != qos(current) {
        let message = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", qos(new), message));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
    }

    #[test]
    fn classes_of_service() {
        let cases = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        ];
        for (resources, want) in cases {
            assert_eq!(qos(&pod(&resources)), want, "{resources}");
        }
    }

    #[test]
    fn a_resize_changes_cpu_and_memory_only() {
        let current = pod(&json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}));
        let cases = [
            (json!({"requests": {"cpu": "2"}, "limits": {"memory": "512Mi"}}), ""),
            (json!({"requests": {"cpu": "2"}}), "spec.containers[0].resources.limits"),
            (
                json!({"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
                "spec.containers[0].resources.requests",
            ),
            (json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi", "a/b": "1"}}), "spec"),
        ];
        for (resources, want) in cases {
            let errors = validate_resize(&pod(&resources), &current);
            assert_eq!(errors.first().map_or("", |error| error.field.as_str()), want, "{resources}");
        }
    }

    #[test]
    fn images_and_more_tolerations_are_the_only_changes() {
        let current = pod(&json!({}));
        let mut image = current.clone();
        image["spec"]["containers"][0]["image"] = "other".into();
        assert!(validate_update(&image, &current).is_empty());
        let mut tolerant = current.clone();
        tolerant["spec"]["tolerations"] = json!([{"key": "a"}]);
        assert!(validate_update(&tolerant, &current).is_empty());
        assert_eq!(validate_update(&current, &tolerant).len(), 1);
    }
}
