//! Rows of the kinds in named groups.

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::{Column, Row, age, count, entries, items, joined, labels, name, or_empty, selector, since};

/// Columns and row of a kind; `None`: the usual two columns.
pub fn layout(group: &str, plural: &str) -> Option<(&'static [Column], Row)> {
    Some(match (group, plural) {
        ("apps", "deployments") => (DEPLOYMENTS, deployment),
        ("apps", "replicasets") => (REPLICAS, replicas),
        ("apps", "statefulsets") => (
            &[
                ("Name", "string", 0),
                ("Ready", "string", 0),
                ("Age", "string", 0),
                ("Containers", "string", 1),
                ("Images", "string", 1),
            ],
            |o, now| {
                let ready =
                    format!("{}/{}", count(&o["status"]["readyReplicas"]), count(&o["spec"]["replicas"]));
                vec![name(o), ready.into(), age(o, now), containers(o), images(o)]
            },
        ),
        ("apps", "daemonsets") => (DAEMONS, daemon),
        ("batch", "jobs") => (JOBS, job),
        ("batch", "cronjobs") => (CRON, cron),
        ("coordination.k8s.io", "leases") => {
            (&[("Name", "string", 0), ("Holder", "string", 0), ("Age", "string", 0)], |o, now| {
                vec![name(o), or_empty(&o["spec"]["holderIdentity"]), age(o, now)]
            })
        }
        ("discovery.k8s.io", "endpointslices") => (
            &[
                ("Name", "string", 0),
                ("AddressType", "string", 0),
                ("Ports", "string", 0),
                ("Endpoints", "string", 0),
                ("Age", "string", 0),
            ],
            slice,
        ),
        ("policy", "poddisruptionbudgets") => (
            &[
                ("Name", "string", 0),
                ("Min Available", "string", 0),
                ("Max Unavailable", "string", 0),
                ("Allowed Disruptions", "integer", 0),
                ("Age", "string", 0),
            ],
            budget,
        ),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => (BINDINGS, binding),
        ("storage.k8s.io", "storageclasses") => (CLASSES, class),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => (&[("Name", "string", 0), ("Webhooks", "integer", 0), ("Age", "string", 0)], |o, now| {
            vec![name(o), entries(&o["webhooks"]).into(), age(o, now)]
        }),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => (
            &[
                ("Name", "string", 0),
                ("Validations", "integer", 0),
                ("ParamKind", "string", 0),
                ("Age", "string", 0),
            ],
            |o, now| vec![name(o), entries(&o["spec"]["validations"]).into(), parameters(o), age(o, now)],
        ),
        ("networking.k8s.io", "networkpolicies") => {
            (&[("Name", "string", 0), ("Pod-Selector", "string", 0), ("Age", "string", 0)], |o, now| {
                vec![name(o), selector(&o["spec"]["podSelector"]), age(o, now)]
            })
        }
        ("scheduling.k8s.io", "priorityclasses") => (
            &[
                ("Name", "string", 0),
                ("Value", "integer", 0),
                ("Global-Default", "boolean", 0),
                ("Age", "string", 0),
                ("PreemptionPolicy", "string", 0),
            ],
            |o, now| {
                let policy = o["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
                vec![
                    name(o),
                    count(&o["value"]).into(),
                    (o["globalDefault"] == true).into(),
                    age(o, now),
                    policy.into(),
                ]
            },
        ),
        ("apiregistration.k8s.io", "apiservices") => (
            &[
                ("Name", "string", 0),
                ("Service", "string", 0),
                ("Available", "string", 0),
                ("Age", "string", 0),
            ],
            api_service,
        ),
        _ => return None,
    })
}

fn containers(object: &Value) -> Value {
    joined(items(&object["spec"]["template"]["spec"]["containers"]).filter_map(|one| one["name"].as_str()))
}

fn images(object: &Value) -> Value {
    joined(items(&object["spec"]["template"]["spec"]["containers"]).filter_map(|one| one["image"].as_str()))
}

const DEPLOYMENTS: &[Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Up-to-date", "string", 0),
    ("Available", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    vec![
        name(object),
        format!("{}/{}", count(&status["readyReplicas"]), count(&object["spec"]["replicas"])).into(),
        count(&status["updatedReplicas"]).into(),
        count(&status["availableReplicas"]).into(),
        age(object, now),
        containers(object),
        images(object),
        selector(&object["spec"]["selector"]),
    ]
}

/// Of replica sets and replication controllers.
pub const REPLICAS: &[Column] = &[
    ("Name", "string", 0),
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

/// See [`REPLICAS`].
pub fn replicas(object: &Value, now: Timestamp) -> Vec<Value> {
    let chosen = &object["spec"]["selector"];
    let chosen = if chosen["matchLabels"].is_null() && chosen["matchExpressions"].is_null() {
        labels(chosen)
    } else {
        selector(chosen)
    };
    vec![
        name(object),
        count(&object["spec"]["replicas"]).into(),
        count(&object["status"]["replicas"]).into(),
        count(&object["status"]["readyReplicas"]).into(),
        age(object, now),
        containers(object),
        images(object),
        chosen,
    ]
}

const DAEMONS: &[Column] = &[
    ("Name", "string", 0),
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Up-to-date", "integer", 0),
    ("Available", "integer", 0),
    ("Node Selector", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

fn daemon(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    vec![
        name(object),
        count(&status["desiredNumberScheduled"]).into(),
        count(&status["currentNumberScheduled"]).into(),
        count(&status["numberReady"]).into(),
        count(&status["updatedNumberScheduled"]).into(),
        count(&status["numberAvailable"]).into(),
        labels(&object["spec"]["template"]["spec"]["nodeSelector"]),
        age(object, now),
        containers(object),
        images(object),
        selector(&object["spec"]["selector"]),
    ]
}

const JOBS: &[Column] = &[
    ("Name", "string", 0),
    ("Status", "string", 0),
    ("Completions", "string", 0),
    ("Duration", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];

fn job(job: &Value, now: Timestamp) -> Vec<Value> {
    let status = &job["status"];
    let condition =
        |kind: &str| items(&status["conditions"]).any(|one| one["type"] == kind && one["status"] == "True");
    let word = if condition("Complete") {
        "Complete"
    } else if condition("Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if condition("Suspended") {
        "Suspended"
    } else {
        "Running"
    };
    let done =
        format!("{}/{}", count(&status["succeeded"]), job["spec"]["completions"].as_i64().unwrap_or(1));
    let end = status["completionTime"].as_str().and_then(|at| at.parse().ok()).unwrap_or(now);
    let duration = if status["startTime"].is_null() { "".into() } else { since(&status["startTime"], end) };
    vec![
        name(job),
        word.into(),
        done.into(),
        duration,
        age(job, now),
        containers(job),
        images(job),
        selector(&job["spec"]["selector"]),
    ]
}

const CRON: &[Column] = &[
    ("Name", "string", 0),
    ("Schedule", "string", 0),
    ("Timezone", "string", 0),
    ("Suspend", "string", 0),
    ("Active", "integer", 0),
    ("Last Schedule", "string", 0),
    ("Age", "string", 0),
];

fn cron(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = if status["lastScheduleTime"].is_null() {
        "<none>".into()
    } else {
        since(&status["lastScheduleTime"], now)
    };
    let zone = spec["timeZone"].as_str().unwrap_or("<none>");
    let suspended = if spec["suspend"] == true { "True" } else { "False" };
    vec![
        name(object),
        or_empty(&spec["schedule"]),
        zone.into(),
        suspended.into(),
        entries(&status["active"]).into(),
        last,
        age(object, now),
    ]
}

fn slice(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(&slice["ports"]).map(|port| count(&port["port"]).to_string()).collect();
    let addresses =
        items(&slice["endpoints"]).flat_map(|one| items(&one["addresses"])).filter_map(Value::as_str);
    vec![
        name(slice),
        or_empty(&slice["addressType"]),
        if ports.is_empty() { "<unset>".into() } else { ports.join(",").into() },
        match joined(addresses) {
            none if none == "<none>" => "<unset>".into(),
            some => some,
        },
        age(slice, now),
    ]
}

fn budget(budget: &Value, now: Timestamp) -> Vec<Value> {
    let shown = |value: &Value| match value {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    };
    vec![
        name(budget),
        shown(&budget["spec"]["minAvailable"]),
        shown(&budget["spec"]["maxUnavailable"]),
        count(&budget["status"]["disruptionsAllowed"]).into(),
        age(budget, now),
    ]
}

const BINDINGS: &[Column] = &[
    ("Name", "string", 0),
    ("Role", "string", 0),
    ("Age", "string", 0),
    ("Users", "string", 1),
    ("Groups", "string", 1),
    ("ServiceAccounts", "string", 1),
];

fn binding(binding: &Value, now: Timestamp) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |kind: &str| {
        let subjects = items(&binding["subjects"]).filter(|subject| subject["kind"] == kind);
        let named = |subject: &Value| match kind {
            "ServiceAccount" => format!("{}/{}", text(&subject["namespace"]), text(&subject["name"])),
            _ => text(&subject["name"]),
        };
        Value::from(subjects.map(named).collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"]));
    vec![name(binding), role.into(), age(binding, now), of("User"), of("Group"), of("ServiceAccount")]
}

const CLASSES: &[Column] = &[
    ("Name", "string", 0),
    ("Provisioner", "string", 0),
    ("ReclaimPolicy", "string", 0),
    ("VolumeBindingMode", "string", 0),
    ("AllowVolumeExpansion", "boolean", 0),
    ("Age", "string", 0),
];

fn class(class: &Value, now: Timestamp) -> Vec<Value> {
    let default = class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
    let title = class["metadata"]["name"].as_str().unwrap_or_default();
    let title = if default { format!("{title} (default)") } else { title.to_owned() };
    vec![
        title.into(),
        or_empty(&class["provisioner"]),
        or_empty(&class["reclaimPolicy"]),
        or_empty(&class["volumeBindingMode"]),
        (class["allowVolumeExpansion"] == true).into(),
        age(class, now),
    ]
}

fn parameters(policy: &Value) -> Value {
    let kind = &policy["spec"]["paramKind"];
    if kind.is_null() {
        return "<unset>".into();
    }
    format!(
        "{}/{}",
        kind["apiVersion"].as_str().unwrap_or_default(),
        kind["kind"].as_str().unwrap_or_default()
    )
    .into()
}

fn api_service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"]["service"];
    let target = match (spec["namespace"].as_str(), spec["name"].as_str()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => "Local".into(),
    };
    let available = items(&service["status"]["conditions"]).find(|one| one["type"] == "Available");
    let available = available.map_or("Unknown".into(), |one| match one["status"].as_str() {
        Some("True") => "True".to_owned(),
        status => format!("{} ({})", status.unwrap_or_default(), one["reason"].as_str().unwrap_or_default()),
    });
    vec![name(service), target.into(), available.into(), age(service, now)]
}
