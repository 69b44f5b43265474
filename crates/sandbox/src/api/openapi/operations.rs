//! What can be done with the objects of a kind: paths, methods, parameters, bodies and answers. kubectl reads what
//! `PATCH` takes: media types say which patches there are, parameters whether the server validates fields.

use apimachinery::tree::{Map, Value, json};

use super::{root, schemas};
use crate::registry::{Kind, Subresource};

/// A verb of discovery as an operation.
struct Action {
    verb: &'static str,
    method: &'static str,
    /// `x-kubernetes-action`
    name: &'static str,
    /// How operation ids begin.
    id: &'static str,
    parameters: &'static [&'static str],
    codes: &'static [u16],
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];

/// On a collection.
const MANY: [Action; 3] = [
    Action { verb: "list", method: "get", name: "list", id: "list", parameters: LIST, codes: &[200] },
    Action {
        verb: "create",
        method: "post",
        name: "post",
        id: "create",
        parameters: WRITE,
        codes: &[200, 201, 202],
    },
    Action {
        verb: "deletecollection",
        method: "delete",
        name: "deletecollection",
        id: "deletecollection",
        parameters: &[
            "continue",
            "dryRun",
            "fieldSelector",
            "gracePeriodSeconds",
            "labelSelector",
            "limit",
            "orphanDependents",
            "propagationPolicy",
            "resourceVersion",
            "resourceVersionMatch",
            "timeoutSeconds",
        ],
        codes: &[200],
    },
];

/// On an object.
const ONE: [Action; 4] = [
    Action { verb: "get", method: "get", name: "get", id: "read", parameters: &[], codes: &[200] },
    Action {
        verb: "update",
        method: "put",
        name: "put",
        id: "replace",
        parameters: WRITE,
        codes: &[200, 201],
    },
    Action {
        verb: "patch",
        method: "patch",
        name: "patch",
        id: "patch",
        parameters: &["dryRun", "fieldManager", "fieldValidation", "force"],
        codes: &[200, 201],
    },
    Action {
        verb: "delete",
        method: "delete",
        name: "delete",
        id: "delete",
        parameters: &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"],
        codes: &[200, 202],
    },
];

/// Every path of a kind.
pub(super) fn paths(kind: &Kind) -> Vec<(String, Value)> {
    let all = format!("{}/{}", root(kind), kind.plural);
    let placed = if kind.namespaced {
        format!("{}/namespaces/{{namespace}}/{}", root(kind), kind.plural)
    } else {
        all.clone()
    };
    let one = format!("{placed}/{{name}}");
    let verbs = kind.verbs.names();
    let mut out = Vec::new();
    if kind.namespaced && verbs.contains(&"list") {
        let list = of_kind(kind, &MANY[0], "ForAllNamespaces");
        out.push(item(all, [("get", list)]));
    }
    let of = |actions: &'static [Action]| {
        let served = actions.iter().filter(|action| verbs.contains(&action.verb));
        served.map(|action| (action.method, of_kind(kind, action, ""))).collect::<Vec<_>>()
    };
    out.push(item(placed, of(&MANY)));
    out.push(item(one.clone(), of(&ONE)));
    for part in &kind.subresources {
        let operations = part.verbs.iter().filter_map(|verb| of_part(kind, part, verb));
        out.push(item(format!("{one}/{}", part.name), operations));
    }
    out.retain(|(_, item)| item.as_object().is_some_and(|item| item.keys().any(|key| key != "parameters")));
    out
}

/// A path, with the parameters that are in it.
fn item(path: String, operations: impl IntoIterator<Item = (&'static str, Value)>) -> (String, Value) {
    let mut item: Map =
        operations.into_iter().map(|(method, operation)| (method.to_owned(), operation)).collect();
    let named = ["name", "namespace"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    let parameters: Vec<Value> = named
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    if !parameters.is_empty() {
        item.insert("parameters".into(), parameters.into());
    }
    (path, item.into())
}

fn of_kind(kind: &Kind, action: &Action, scope: &str) -> Value {
    let object = schemas::reference(&schemas::name(kind));
    let answer = match action.verb {
        "list" => schemas::reference(&schemas::list_name(kind)),
        "delete" | "deletecollection" => schemas::of_meta("Status"),
        _ => object.clone(),
    };
    let id = operation_id(kind, action.id, scope);
    operation(&Form { kind, action, id, gvk: gvk(&kind.group, &kind.version, &kind.kind), object, answer })
}

fn of_part(kind: &Kind, part: &Subresource, verb: &str) -> Option<(&'static str, Value)> {
    let action = MANY.iter().chain(&ONE).find(|action| action.verb == verb)?;
    let object = schemas::of_part(kind, part);
    let suffix = capitalised(&part.name);
    let gvk = gvk(&part.group, &part.version, &part.kind);
    let connects = matches!(part.name.as_str(), "attach" | "exec" | "portforward");
    if connects {
        let id = operation_id(kind, &format!("connect{}", capitalised(action.method)), &suffix);
        let operation = json!({"operationId": id, "x-kubernetes-action": "connect", "parameters": [],
            "x-kubernetes-group-version-kind": gvk, "responses": responses(&[200], &object)});
        return Some((action.method, operation));
    }
    let id = operation_id(kind, action.id, &suffix);
    let answer = object.clone();
    Some((action.method, operation(&Form { kind, action, id, gvk, object, answer })))
}

/// What an operation is put together from.
struct Form<'a> {
    kind: &'a Kind,
    action: &'a Action,
    id: String,
    gvk: Value,
    object: Value,
    answer: Value,
}

fn operation(form: &Form<'_>) -> Value {
    let parameters: Vec<Value> = form.action.parameters.iter().map(|name| parameter(name)).collect();
    let mut out = json!({"operationId": form.id, "x-kubernetes-action": form.action.name,
        "x-kubernetes-group-version-kind": form.gvk, "parameters": parameters,
        "responses": responses(form.action.codes, &form.answer)});
    let body = match form.action.verb {
        "create" | "update" => {
            Some((&["application/json", "application/yaml"][..], form.object.clone(), true))
        }
        "patch" => Some((patches(form.kind), schemas::of_meta("Patch"), true)),
        "delete" | "deletecollection" => {
            Some((&["application/json", "application/yaml"][..], schemas::of_meta("DeleteOptions"), false))
        }
        _ => None,
    };
    if let Some((media, schema, required)) = body {
        out["requestBody"] = json!({"content": content(media, &schema)});
        if required {
            out["requestBody"]["required"] = true.into();
        }
    }
    out
}

/// The patches of a kind. Those of custom resources have no strategic merge; of built-in kinds whose fields are not
/// known here the server takes them too, but clients cannot compute them from the schema.
fn patches(kind: &Kind) -> &'static [&'static str] {
    const ALL: [&str; 4] = [
        "application/strategic-merge-patch+json",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
    ];
    if schemas::is_typed(kind) { &ALL } else { &ALL[1..] }
}

fn parameter(name: &str) -> Value {
    let ty = match name {
        "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": ty, "uniqueItems": true}})
}

fn responses(codes: &[u16], schema: &Value) -> Value {
    let media: &[&str] =
        if schema["type"] == "string" { &["text/plain"] } else { &["application/json", "application/yaml"] };
    let of = |code: &u16| {
        let description = match code {
            201 => "Created",
            202 => "Accepted",
            _ => "OK",
        };
        (code.to_string(), json!({"description": description, "content": content(media, schema)}))
    };
    let mut all: Map = codes.iter().map(of).collect();
    all.insert("401".into(), json!({"description": "Unauthorized"}));
    all.into()
}

fn content(media: &[&str], schema: &Value) -> Value {
    let all: Map = media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
    all.into()
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// `readCoreV1NamespacedPod`, `listKubevirtIoV1VirtualMachineForAllNamespaces`
fn operation_id(kind: &Kind, action: &str, suffix: &str) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group.trim_end_matches(".k8s.io") };
    let group: String = group.split(['.', '-']).map(capitalised).collect();
    let (action, collection) =
        if action == "deletecollection" { ("delete", "Collection") } else { (action, "") };
    let scope = if kind.namespaced && suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
    format!("{action}{group}{}{collection}{scope}{}{suffix}", capitalised(&kind.version), kind.kind)
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}
