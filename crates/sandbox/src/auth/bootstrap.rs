//! The roles and bindings that every cluster has (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`, 1.36): those of
//! users, of anonymous and authenticated callers, of the scheduler and of service accounts' controllers.

use apimachinery::tree::{Value, json};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];

/// Verbs, API groups, resources; separated by commas.
type Rule = (&'static [&'static str], &'static str, &'static str);

const VIEW: &[Rule] = &[
    (
        READ,
        "",
        "configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
    ),
    (
        READ,
        "",
        "bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status,namespaces",
    ),
    (READ, "discovery.k8s.io", "endpointslices"),
    (
        READ,
        "apps",
        "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
    ),
    (READ, "autoscaling", "horizontalpodautoscalers,horizontalpodautoscalers/status"),
    (READ, "batch", "cronjobs,cronjobs/status,jobs,jobs/status"),
    (READ, "policy", "poddisruptionbudgets,poddisruptionbudgets/status"),
    (READ, "networking.k8s.io", "ingresses,ingresses/status,networkpolicies"),
];

const EDIT: &[Rule] = &[
    (READ, "", "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy"),
    (&["impersonate"], "", "serviceaccounts"),
    (WRITE, "", "pods,pods/attach,pods/exec,pods/portforward,pods/proxy"),
    (&["create"], "", "pods/eviction"),
    (
        WRITE,
        "",
        "configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
    ),
    (&["create"], "", "serviceaccounts/token"),
    (
        WRITE,
        "apps",
        "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
    ),
    (WRITE, "autoscaling", "horizontalpodautoscalers"),
    (WRITE, "batch", "cronjobs,jobs"),
    (WRITE, "policy", "poddisruptionbudgets"),
    (WRITE, "networking.k8s.io", "ingresses,networkpolicies"),
    (
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "coordination.k8s.io",
        "leases",
    ),
];

const ADMIN: &[Rule] = &[
    (&["create"], "authorization.k8s.io", "localsubjectaccessreviews"),
    (
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "rbac.authorization.k8s.io",
        "rolebindings,roles",
    ),
];

const BASIC_USER: &[Rule] = &[
    (&["create"], "authorization.k8s.io", "selfsubjectaccessreviews,selfsubjectrulesreviews"),
    (&["create"], "authentication.k8s.io", "selfsubjectreviews"),
];

const AUTH_DELEGATOR: &[Rule] = &[
    (&["create"], "authentication.k8s.io", "tokenreviews"),
    (&["create"], "authorization.k8s.io", "subjectaccessreviews"),
];

const SCHEDULER: &[Rule] = &[
    (&["create", "patch", "update"], ",events.k8s.io", "events"),
    (&["create", "get", "list", "update", "watch"], "coordination.k8s.io", "leases"),
    (READ, "", "nodes,namespaces,persistentvolumes,replicationcontrollers,services"),
    (&["delete", "get", "list", "watch"], "", "pods"),
    (&["create"], "", "bindings,pods/binding"),
    (&["patch", "update"], "", "pods/status"),
    (READ, "apps", "replicasets,statefulsets"),
    (READ, "policy", "poddisruptionbudgets"),
    (READ, "resource.k8s.io", "deviceclasses,resourceslices"),
    (&["get", "list", "patch", "update", "watch"], "resource.k8s.io", "resourceclaims"),
    (&["patch", "update"], "resource.k8s.io", "resourceclaims/status"),
    (&["get", "list", "patch", "update", "watch"], "", "persistentvolumeclaims"),
    (READ, "storage.k8s.io", "csidrivers,csinodes,csistoragecapacities,storageclasses,volumeattachments"),
    (&["create"], "authentication.k8s.io", "tokenreviews"),
    (&["create"], "authorization.k8s.io", "subjectaccessreviews"),
];

const NAMESPACE_CONTROLLER: &[Rule] = &[
    (&["delete", "get", "list", "watch"], "", "namespaces"),
    (&["update"], "", "namespaces/finalize,namespaces/status"),
    (&["delete", "deletecollection", "get", "list"], "*", "*"),
];

const SERVICE_ACCOUNT_CONTROLLER: &[Rule] =
    &[(&["create"], "", "serviceaccounts"), (&["create", "patch", "update"], ",events.k8s.io", "events")];

const GARBAGE_COLLECTOR: &[Rule] = &[
    (&["delete", "get", "list", "patch", "update", "watch"], "*", "*"),
    (&["create", "patch", "update"], ",events.k8s.io", "events"),
];

/// Cluster roles and bindings for a new cluster.
pub fn objects() -> Vec<Value> {
    let mut out = vec![
        with_paths(cluster_role("cluster-admin", &[(ALL, "*", "*")]), ALL, &["*"]),
        aggregated("admin", "admin", None),
        aggregated("edit", "edit", Some("admin")),
        aggregated("view", "view", Some("edit")),
        labelled(cluster_role("system:aggregate-to-admin", ADMIN), "admin"),
        labelled(cluster_role("system:aggregate-to-edit", EDIT), "edit"),
        labelled(cluster_role("system:aggregate-to-view", VIEW), "view"),
        cluster_role("system:basic-user", BASIC_USER),
        cluster_role("system:auth-delegator", AUTH_DELEGATOR),
        cluster_role("system:kube-scheduler", SCHEDULER),
        cluster_role("system:controller:namespace-controller", NAMESPACE_CONTROLLER),
        cluster_role("system:controller:service-account-controller", SERVICE_ACCOUNT_CONTROLLER),
        cluster_role("system:controller:generic-garbage-collector", GARBAGE_COLLECTOR),
    ];
    let (info, discovery) = (
        ["/healthz", "/livez", "/readyz", "/version", "/version/"],
        [
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version",
            "/version/",
        ],
    );
    out.push(with_paths(cluster_role("system:public-info-viewer", &[]), &["get"], &info));
    out.push(with_paths(cluster_role("system:discovery", &[]), &["get"], &discovery));
    let group = |name: &str| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name});
    out.push(binding("cluster-admin", &json!([group("system:masters")])));
    out.push(binding("system:discovery", &json!([group("system:authenticated")])));
    out.push(binding("system:basic-user", &json!([group("system:authenticated")])));
    let everyone = json!([group("system:authenticated"), group("system:unauthenticated")]);
    out.push(binding("system:public-info-viewer", &everyone));
    let scheduler =
        json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-scheduler"}]);
    out.push(binding("system:kube-scheduler", &scheduler));
    for controller in ["namespace-controller", "service-account-controller", "generic-garbage-collector"] {
        let account = json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": controller}]);
        out.push(binding(&format!("system:controller:{controller}"), &account));
    }
    out
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}})
}

fn cluster_role(name: &str, rules: &[Rule]) -> Value {
    let split = |list: &str| list.split(',').map(str::to_owned).collect::<Vec<_>>();
    let rules: Vec<Value> = rules
        .iter()
        .map(|(verbs, groups, resources)| {
            json!({"verbs": verbs, "apiGroups": split(groups), "resources": split(resources)})
        })
        .collect();
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

fn with_paths(mut role: Value, verbs: &[&str], paths: &[&str]) -> Value {
    if let Some(rules) = role["rules"].as_array_mut() {
        rules.push(json!({"verbs": verbs, "nonResourceURLs": paths}));
    }
    role
}

/// Adds the rules of a role to those of `admin`, `edit` or `view`.
fn labelled(mut role: Value, to: &str) -> Value {
    role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{to}")] = "true".into();
    role
}

fn aggregated(name: &str, from: &str, to: Option<&str>) -> Value {
    let mut role = cluster_role(name, &[]);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{from}");
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    match to {
        Some(to) => labelled(role, to),
        None => role,
    }
}

/// A binding of the cluster role of the same name.
fn binding(name: &str, subjects: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": metadata(name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}, "subjects": subjects})
}
