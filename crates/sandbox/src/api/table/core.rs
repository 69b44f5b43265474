//! Rows of the core kinds.

use apimachinery::tree::Value;
use jiff::Timestamp;

use super::{Column, Row, age, count, entries, items, joined, labels, name, or_empty, or_none, pods, since};

/// Columns and row of a kind; `None`: the usual two columns.
pub fn layout(plural: &str) -> Option<(&'static [Column], Row)> {
    Some(match plural {
        "pods" => (pods::COLUMNS, pods::row),
        "nodes" => (NODES, node),
        "namespaces" => {
            (&[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)], |o, now| {
                vec![name(o), or_empty(&o["status"]["phase"]), age(o, now)]
            })
        }
        "configmaps" => (&[("Name", "string", 0), ("Data", "string", 0), ("Age", "string", 0)], |o, now| {
            vec![name(o), (entries(&o["data"]) + entries(&o["binaryData"])).into(), age(o, now)]
        }),
        "secrets" => (
            &[("Name", "string", 0), ("Type", "string", 0), ("Data", "string", 0), ("Age", "string", 0)],
            |o, now| vec![name(o), or_empty(&o["type"]), entries(&o["data"]).into(), age(o, now)],
        ),
        "serviceaccounts" => {
            (&[("Name", "string", 0), ("Secrets", "string", 0), ("Age", "string", 0)], |o, now| {
                vec![name(o), entries(&o["secrets"]).into(), age(o, now)]
            })
        }
        "services" => (SERVICES, service),
        "endpoints" => {
            (&[("Name", "string", 0), ("Endpoints", "string", 0), ("Age", "string", 0)], |o, now| {
                vec![name(o), endpoints(o), age(o, now)]
            })
        }
        "events" => (EVENTS, event),
        "persistentvolumeclaims" => (CLAIMS, claim),
        "persistentvolumes" => (VOLUMES, volume),
        "resourcequotas" => (
            &[("Name", "string", 0), ("Request", "string", 0), ("Limit", "string", 0), ("Age", "string", 0)],
            quota,
        ),
        "replicationcontrollers" => (super::workloads::REPLICAS, super::workloads::replicas),
        _ => return None,
    })
}

const NODES: &[Column] = &[
    ("Name", "string", 0),
    ("Status", "string", 0),
    ("Roles", "string", 0),
    ("Age", "string", 0),
    ("Version", "string", 0),
    ("Internal-IP", "string", 1),
    ("External-IP", "string", 1),
    ("OS-Image", "string", 1),
    ("Kernel-Version", "string", 1),
    ("Container-Runtime", "string", 1),
];

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = items(&node["status"]["conditions"]).find(|one| one["type"] == "Ready");
    let mut status = match ready.map(|ready| &ready["status"]) {
        Some(status) if status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let role = |key: &str| {
        key.strip_prefix("node-role.kubernetes.io/").filter(|role| !role.is_empty()).map(str::to_owned)
    };
    let roles: Vec<String> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| role(key))
        .collect();
    let address = |kind: &str| {
        let found = items(&node["status"]["addresses"]).find(|address| address["type"] == kind);
        found.map_or("<none>".into(), |address| or_none(&address["address"]))
    };
    let info = &node["status"]["nodeInfo"];
    let known = |key: &str| {
        info[key].as_str().filter(|text| !text.is_empty()).map_or("<unknown>".into(), Value::from)
    };
    vec![
        name(node),
        status.into(),
        joined(roles.iter().map(String::as_str)),
        age(node, now),
        or_empty(&info["kubeletVersion"]),
        address("InternalIP"),
        address("ExternalIP"),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

const SERVICES: &[Column] = &[
    ("Name", "string", 0),
    ("Type", "string", 0),
    ("Cluster-IP", "string", 0),
    ("External-IP", "string", 0),
    ("Port(s)", "string", 0),
    ("Age", "string", 0),
    ("Selector", "string", 1),
];

fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let port = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = count(&port["port"]);
        match port["nodePort"].as_i64().filter(|port| *port > 0) {
            Some(node) => format!("{number}:{node}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    };
    let ports: Vec<String> = items(&spec["ports"]).map(port).collect();
    let ingress = items(&service["status"]["loadBalancer"]["ingress"])
        .filter_map(|one| one["ip"].as_str().or_else(|| one["hostname"].as_str()));
    let external = match spec["type"].as_str() {
        Some("ExternalName") => or_none(&spec["externalName"]),
        Some("LoadBalancer") => match joined(ingress) {
            none if none == "<none>" => "<pending>".into(),
            some => some,
        },
        _ => joined(items(&spec["externalIPs"]).filter_map(Value::as_str)),
    };
    vec![
        name(service),
        or_empty(&spec["type"]),
        or_none(&spec["clusterIP"]),
        external,
        joined(ports.iter().map(String::as_str)),
        age(service, now),
        labels(&spec["selector"]),
    ]
}

fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(&object["subsets"]) {
        for address in items(&subset["addresses"]) {
            for port in items(&subset["ports"]) {
                all.push(format!("{}:{}", address["ip"].as_str().unwrap_or_default(), count(&port["port"])));
            }
        }
    }
    joined(all.iter().map(String::as_str))
}

const EVENTS: &[Column] = &[
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Subobject", "string", 1),
    ("Source", "string", 1),
    ("Message", "string", 0),
    ("First Seen", "string", 1),
    ("Count", "string", 1),
    ("Name", "string", 1),
];

/// Also for `events.k8s.io`, whose fields have other names.
fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let either =
        |one: &str, other: &str| if event[one].is_null() { event[other].clone() } else { event[one].clone() };
    let about = either("involvedObject", "regarding");
    let source = either("source", "deprecatedSource");
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let happened = &event["eventTime"];
    let first = if first.is_null() { happened.clone() } else { first };
    let last = if last.is_null() { first.clone() } else { last };
    let mut object = about["kind"].as_str().unwrap_or_default().to_lowercase();
    if let Some(name) = about["name"].as_str().filter(|name| !name.is_empty()) {
        object = format!("{object}/{name}");
    }
    let component = source["component"].as_str().or_else(|| event["reportingComponent"].as_str());
    let component = component.or_else(|| event["reportingController"].as_str()).unwrap_or_default();
    let source = match source["host"].as_str().filter(|host| !host.is_empty()) {
        Some(host) => format!("{component}, {host}"),
        None => component.to_owned(),
    };
    let message = either("message", "note").as_str().unwrap_or_default().trim().to_owned();
    let times = either("count", "deprecatedCount").as_i64().filter(|times| *times > 0).unwrap_or(1);
    vec![
        since(&last, now),
        or_empty(&event["type"]),
        or_empty(&event["reason"]),
        object.into(),
        or_empty(&about["fieldPath"]),
        source.into(),
        message.into(),
        since(&first, now),
        times.into(),
        name(event),
    ]
}

fn modes(value: &Value) -> Value {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    items(value).map(short).filter(|mode| !mode.is_empty()).collect::<Vec<_>>().join(",").into()
}

const CLAIMS: &[Column] = &[
    ("Name", "string", 0),
    ("Status", "string", 0),
    ("Volume", "string", 0),
    ("Capacity", "string", 0),
    ("Access Modes", "string", 0),
    ("StorageClass", "string", 0),
    ("VolumeAttributesClass", "string", 0),
    ("Age", "string", 0),
    ("VolumeMode", "string", 1),
];

fn claim(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let bound = spec["volumeName"].as_str().is_some_and(|name| !name.is_empty());
    let phase = if claim["metadata"]["deletionTimestamp"].is_null() {
        or_empty(&status["phase"])
    } else {
        "Terminating".into()
    };
    let unset =
        |value: &Value| value.as_str().filter(|text| !text.is_empty()).map_or("<unset>".into(), Value::from);
    vec![
        name(claim),
        phase,
        or_empty(&spec["volumeName"]),
        if bound { or_empty(&status["capacity"]["storage"]) } else { "".into() },
        if bound { modes(&status["accessModes"]) } else { "".into() },
        or_empty(&spec["storageClassName"]),
        unset(&spec["volumeAttributesClassName"]),
        age(claim, now),
        unset(&spec["volumeMode"]),
    ]
}

const VOLUMES: &[Column] = &[
    ("Name", "string", 0),
    ("Capacity", "string", 0),
    ("Access Modes", "string", 0),
    ("Reclaim Policy", "string", 0),
    ("Status", "string", 0),
    ("Claim", "string", 0),
    ("StorageClass", "string", 0),
    ("VolumeAttributesClass", "string", 0),
    ("Reason", "string", 0),
    ("Age", "string", 0),
    ("VolumeMode", "string", 1),
];

fn volume(volume: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let claim = &spec["claimRef"];
    let claim = claim["name"].as_str().map_or("".into(), |claimed| {
        Value::from(format!("{}/{claimed}", claim["namespace"].as_str().unwrap_or_default()))
    });
    let phase = if volume["metadata"]["deletionTimestamp"].is_null() {
        or_empty(&status["phase"])
    } else {
        "Terminating".into()
    };
    let unset =
        |value: &Value| value.as_str().filter(|text| !text.is_empty()).map_or("<unset>".into(), Value::from);
    vec![
        name(volume),
        or_empty(&spec["capacity"]["storage"]),
        modes(&spec["accessModes"]),
        or_empty(&spec["persistentVolumeReclaimPolicy"]),
        phase,
        claim,
        or_empty(&spec["storageClassName"]),
        unset(&spec["volumeAttributesClassName"]),
        or_empty(&status["reason"]),
        age(volume, now),
        unset(&spec["volumeMode"]),
    ]
}

fn quota(quota: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (key, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
        let used = quota["status"]["used"][key.as_str()].as_str().unwrap_or("0").to_owned();
        let text = format!("{key}: {used}/{}", hard.as_str().unwrap_or_default());
        if key.starts_with("limits") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
}
