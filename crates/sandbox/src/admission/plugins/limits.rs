//! `LimitRange`: defaults for containers, and what pods and claims may ask for
//! (`plugin/pkg/admission/limitranger`, Kubernetes 1.36).

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::field_error::aggregate;
use apimachinery::tree::{Map, Value};

use super::{containers, each_container, is_new_pod, put};
use crate::admission::matcher::items;
use crate::admission::{Operation, Request};
use apimachinery::quantity::Quantity;

/// Gives containers the limits and requests that they do not name.
pub fn add_defaults(ranges: &[Arc<Value>], pod: &mut Value) {
    for range in ranges {
        let mut said = Vec::new();
        for entry in items(&range["spec"]["limits"]).filter(|entry| entry["type"] == "Container") {
            let limits = entry["default"].as_object().cloned().unwrap_or_default();
            let mut requests = entry["defaultRequest"].as_object().cloned().unwrap_or_default();
            for (resource, limit) in &limits {
                requests.entry(resource.clone()).or_insert(limit.clone());
            }
            each_container(pod, |word, container| {
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                for (list, defaults, what) in
                    [("requests", &requests, "request"), ("limits", &limits, "limit")]
                {
                    let added = fill(container, list, defaults);
                    if !added.is_empty() {
                        said.push(format!("{} {what} for {word} {name}", added.join(", ")));
                    }
                }
            });
        }
        if !said.is_empty() {
            let note = format!("LimitRanger plugin set: {}", said.join("; "));
            put(pod, &["metadata", "annotations", "kubernetes.io/limit-ranger"], note.into());
        }
    }
}

/// Adds what is missing of one list of resources; says what it added.
fn fill(container: &mut Value, list: &str, defaults: &Map) -> Vec<String> {
    let present = |resource: &str| container["resources"][list].get(resource).is_some();
    let missing: Vec<String> =
        defaults.keys().filter(|resource| !present(resource)).map(ToString::to_string).collect();
    for resource in &missing {
        put(container, &["resources", list, resource], defaults[resource].clone());
    }
    missing
}

/// Whether a request is about something that ranges limit.
pub fn concern(request: &Request<'_>) -> bool {
    is_limited_pod(request) || is_claim(request)
}

fn is_limited_pod(request: &Request<'_>) -> bool {
    let attributes = request.attributes;
    let resized = attributes.resource == "pods" && attributes.subresource == "resize";
    is_new_pod(request) || (request.operation == Operation::Update && attributes.group.is_empty() && resized)
}

fn is_claim(request: &Request<'_>) -> bool {
    let attributes = request.attributes;
    attributes.group.is_empty()
        && attributes.resource == "persistentvolumeclaims"
        && attributes.subresource.is_empty()
        && matches!(request.operation, Operation::Create | Operation::Update)
}

/// Refuses what the ranges of its namespace do not allow.
///
/// # Errors
/// 403 with everything that is wrong.
pub fn check(ranges: &[Arc<Value>], request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let (pod, claim) = (is_limited_pod(request), is_claim(request));
    let mut wrong = Vec::new();
    for entry in ranges.iter().flat_map(|range| items(&range["spec"]["limits"])) {
        match entry["type"].as_str() {
            Some("Container") if pod => {
                for container in containers(object) {
                    let resources = &container["resources"];
                    judge(
                        entry,
                        "Container",
                        &Asked {
                            requests: amounts(&resources["requests"]),
                            limits: amounts(&resources["limits"]),
                        },
                        &mut wrong,
                    );
                }
            }
            Some("Pod") if pod => {
                let asked = Asked { requests: total(object, "requests"), limits: total(object, "limits") };
                judge(entry, "Pod", &asked, &mut wrong);
            }
            Some("PersistentVolumeClaim") if claim => {
                let requests = amounts(&object["spec"]["resources"]["requests"]);
                let storage =
                    requests.iter().find(|(resource, _)| resource == "storage").map(|(_, amount)| *amount);
                let storage = storage.unwrap_or_default();
                let over = bound(entry, "max", "storage").filter(|max| storage > *max);
                let under = bound(entry, "min", "storage").filter(|min| storage < *min);
                wrong.extend(over.map(|max| {
                    format!(
                        "maximum storage usage per PersistentVolumeClaim is {max}, but request is {storage}"
                    )
                }));
                wrong.extend(under.map(|min| {
                    format!(
                        "minimum storage usage per PersistentVolumeClaim is {min}, but request is {storage}"
                    )
                }));
            }
            _ => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(request.forbidden(object, &aggregate(wrong))) }
}

type Amounts = Vec<(String, Quantity)>;

struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn of(list: &Amounts, resource: &str) -> Option<Quantity> {
        list.iter().find(|(name, _)| name == resource).map(|(_, amount)| *amount)
    }
}

fn judge(entry: &Value, kind: &str, asked: &Asked, wrong: &mut Vec<String>) {
    for (resource, min) in amounts(&entry["min"]) {
        let (request, limit) = (Asked::of(&asked.requests, &resource), Asked::of(&asked.limits, &resource));
        let start = format!("minimum {resource} usage per {kind} is {min}");
        match (request, limit) {
            (None, _) => wrong.push(format!("{start}. No request is specified")),
            (Some(request), _) if request < min => wrong.push(format!("{start}, but request is {request}")),
            (_, Some(limit)) if limit < min => wrong.push(format!("{start}, but limit is {limit}")),
            _ => {}
        }
    }
    for (resource, max) in amounts(&entry["max"]) {
        let (request, limit) = (Asked::of(&asked.requests, &resource), Asked::of(&asked.limits, &resource));
        let start = format!("maximum {resource} usage per {kind} is {max}");
        match (request, limit) {
            (_, None) => wrong.push(format!("{start}. No limit is specified")),
            (_, Some(limit)) if limit > max => wrong.push(format!("{start}, but limit is {limit}")),
            (Some(request), _) if request > max => wrong.push(format!("{start}, but request is {request}")),
            _ => {}
        }
    }
    for (resource, ratio) in amounts(&entry["maxLimitRequestRatio"]) {
        let (request, limit) = (Asked::of(&asked.requests, &resource), Asked::of(&asked.limits, &resource));
        let start = format!("{resource} max limit to request ratio per {kind} is {ratio}");
        match (request, limit) {
            (Some(request), Some(limit)) if request.is_positive() => {
                if limit.exceeds_ratio(request, ratio) {
                    wrong.push(format!(
                        "{start}, but the limit {limit} is more than that times the request {request}"
                    ));
                }
            }
            _ => wrong.push(format!("{start}, but no request is specified or request is 0")),
        }
    }
}

fn bound(entry: &Value, list: &str, resource: &str) -> Option<Quantity> {
    Quantity::parse(&entry[list][resource])
}

fn amounts(list: &Value) -> Amounts {
    let fields = list.as_object().into_iter().flatten();
    fields.filter_map(|(name, amount)| Some((name.to_string(), Quantity::parse(amount)?))).collect()
}

/// What a pod's containers ask for together; one that prepares counts alone when it asks for more.
pub fn total(pod: &Value, list: &str) -> Amounts {
    let mut sum = Amounts::new();
    let put =
        |sum: &mut Amounts, name: String, amount: Quantity, join: fn(Quantity, Quantity) -> Quantity| {
            match sum.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = join(*known, amount),
                None => sum.push((name, amount)),
            }
        };
    // sidecars (init containers that are always restarted) run beside the others
    let sidecar = |container: &&Value| container["restartPolicy"] == "Always";
    for container in
        items(&pod["spec"]["containers"]).chain(items(&pod["spec"]["initContainers"]).filter(sidecar))
    {
        for (name, amount) in amounts(&container["resources"][list]) {
            put(&mut sum, name, amount, |one, other| one + other);
        }
    }
    for container in items(&pod["spec"]["initContainers"]).filter(|container| !sidecar(container)) {
        for (name, amount) in amounts(&container["resources"][list]) {
            put(&mut sum, name, amount, Quantity::max);
        }
    }
    if list == "requests" || pod["spec"]["overhead"].is_object() && !sum.is_empty() {
        for (name, amount) in amounts(&pod["spec"]["overhead"]) {
            put(&mut sum, name, amount, |one, other| one + other);
        }
    }
    sum
}
