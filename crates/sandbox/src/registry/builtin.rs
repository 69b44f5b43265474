//! The kinds that a Kubernetes 1.36 API server brings along, as far as they matter to virtual
//! machines and to the tools that look at them.

use apimachinery::ObjectType;
use apimachinery::selector::fields_of;
use apimachinery::validation::NameRule;

use super::{Kind, Source, Subresource, Verbs};

/// group, version, plural, kind, short names, categories, scope and verbs, subresources
type Row =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, Shape, &'static str);

/// Scope and verbs of a kind.
#[derive(Clone, Copy)]
enum Shape {
    Namespaced,
    Cluster,
    /// Namespaces: no deletecollection.
    Namespace,
    /// Answers a question; nothing is stored.
    Review,
    NamespacedReview,
}

use Shape::{Cluster, Namespace, Namespaced, NamespacedReview, Review};

/// A subresource `x` has its parent's kind; `x=group/version/Kind` has its own.
const ROWS: &[Row] = &[
    ("", "v1", "bindings", "Binding", "", "", NamespacedReview, ""),
    ("", "v1", "configmaps", "ConfigMap", "cm", "", Namespaced, ""),
    ("", "v1", "endpoints", "Endpoints", "ep", "", Namespaced, ""),
    ("", "v1", "events", "Event", "ev", "", Namespaced, ""),
    ("", "v1", "limitranges", "LimitRange", "limits", "", Namespaced, ""),
    ("", "v1", "namespaces", "Namespace", "ns", "", Namespace, "finalize status"),
    ("", "v1", "nodes", "Node", "no", "", Cluster, "status"),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", "", Namespaced, "status"),
    ("", "v1", "persistentvolumes", "PersistentVolume", "pv", "", Cluster, "status"),
    (
        "",
        "v1",
        "pods",
        "Pod",
        "po",
        "all",
        Namespaced,
        "attach=/v1/PodAttachOptions binding=/v1/Binding ephemeralcontainers eviction=policy/v1/Eviction \
         exec=/v1/PodExecOptions log portforward=/v1/PodPortForwardOptions resize status",
    ),
    ("", "v1", "podtemplates", "PodTemplate", "", "", Namespaced, ""),
    (
        "",
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        "rc",
        "all",
        Namespaced,
        "scale=autoscaling/v1/Scale status",
    ),
    ("", "v1", "resourcequotas", "ResourceQuota", "quota", "", Namespaced, "status"),
    ("", "v1", "secrets", "Secret", "", "", Namespaced, ""),
    (
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        "sa",
        "",
        Namespaced,
        "token=authentication.k8s.io/v1/TokenRequest",
    ),
    ("", "v1", "services", "Service", "svc", "all", Namespaced, "status"),
    ("apiregistration.k8s.io", "v1", "apiservices", "APIService", "", "api-extensions", Cluster, "status"),
    ("apps", "v1", "controllerrevisions", "ControllerRevision", "", "", Namespaced, ""),
    ("apps", "v1", "daemonsets", "DaemonSet", "ds", "all", Namespaced, "status"),
    (
        "apps",
        "v1",
        "deployments",
        "Deployment",
        "deploy",
        "all",
        Namespaced,
        "scale=autoscaling/v1/Scale status",
    ),
    ("apps", "v1", "replicasets", "ReplicaSet", "rs", "all", Namespaced, "scale=autoscaling/v1/Scale status"),
    (
        "apps",
        "v1",
        "statefulsets",
        "StatefulSet",
        "sts",
        "all",
        Namespaced,
        "scale=autoscaling/v1/Scale status",
    ),
    ("events.k8s.io", "v1", "events", "Event", "ev", "", Namespaced, ""),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", "", "", Review, ""),
    ("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", "", "", Review, ""),
    (
        "authorization.k8s.io",
        "v1",
        "localsubjectaccessreviews",
        "LocalSubjectAccessReview",
        "",
        "",
        NamespacedReview,
        "",
    ),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", "", "", Review, ""),
    ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", "", "", Review, ""),
    ("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", "", "", Review, ""),
    (
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "hpa",
        "all",
        Namespaced,
        "status",
    ),
    ("batch", "v1", "cronjobs", "CronJob", "cj", "all", Namespaced, "status"),
    ("batch", "v1", "jobs", "Job", "", "all", Namespaced, "status"),
    (
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
        "csr",
        "",
        Cluster,
        "approval status",
    ),
    ("networking.k8s.io", "v1", "ingressclasses", "IngressClass", "", "", Cluster, ""),
    ("networking.k8s.io", "v1", "ingresses", "Ingress", "ing", "", Namespaced, "status"),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", "", Namespaced, ""),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", "", Namespaced, "status"),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", "", "", Cluster, ""),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", "", "", Cluster, ""),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", "", "", Namespaced, ""),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", "", "", Namespaced, ""),
    ("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", "", "", Cluster, ""),
    ("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", "", "", Namespaced, "status"),
    ("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate", "", "", Namespaced, ""),
    ("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", "", "", Cluster, ""),
    ("storage.k8s.io", "v1", "csidrivers", "CSIDriver", "", "", Cluster, ""),
    ("storage.k8s.io", "v1", "csinodes", "CSINode", "", "", Cluster, ""),
    ("storage.k8s.io", "v1", "csistoragecapacities", "CSIStorageCapacity", "", "", Namespaced, ""),
    ("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", "", Cluster, ""),
    ("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", "", "", Cluster, "status"),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        "",
        "api-extensions",
        Cluster,
        "",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        "",
        "api-extensions",
        Cluster,
        "status",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        "",
        "api-extensions",
        Cluster,
        "",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        "",
        "api-extensions",
        Cluster,
        "",
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        "api-extensions",
        Cluster,
        "status",
    ),
    ("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", "", Cluster, ""),
    ("coordination.k8s.io", "v1", "leases", "Lease", "", "", Namespaced, ""),
    ("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", "", "", Cluster, ""),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "", "", Namespaced, ""),
];

/// All of them.
pub fn kinds() -> impl Iterator<Item = Kind> {
    ROWS.iter().map(kind)
}

fn kind(row: &Row) -> Kind {
    let &(group, version, plural, kind, short, categories, shape, subresources) = row;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let selectable = fields_of(group, kind).iter().map(|field| (*field).to_owned()).collect();
    // Both groups of Events are one storage; the other is converted at the edge.
    let storage_group = if group == "events.k8s.io" { "" } else { group };
    Kind {
        group: group.into(),
        version: version.into(),
        plural: plural.into(),
        singular: if plural == "endpoints" { "endpoints".into() } else { kind.to_lowercase() },
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        short_names: words(short),
        categories: words(categories),
        namespaced: matches!(shape, Namespaced | NamespacedReview),
        verbs: match shape {
            Namespaced | Cluster => Verbs::All,
            Namespace => Verbs::NoDeleteCollection,
            Review | NamespacedReview => Verbs::CreateOnly,
        },
        subresources: subresources
            .split_whitespace()
            .map(|text| subresource(text, group, version, kind))
            .collect(),
        storage: crate::store::storage_key(storage_group, plural).into(),
        storage_version: version.into(),
        selectable,
        object_type: ObjectType::builtin(&super::join(storage_group, version), kind)
            .unwrap_or_else(ObjectType::schemaless),
        name_rule: name_rule(group, plural),
        source: Source::BuiltIn,
    }
}

fn subresource(text: &str, group: &str, version: &str, kind: &str) -> Subresource {
    let (name, own) = text.split_once('=').unwrap_or((text, ""));
    let mut parts = own.split('/');
    let (group, version, kind) = match (parts.next(), parts.next(), parts.next()) {
        (Some(group), Some(version), Some(kind)) => (group, version, kind),
        _ => (group, version, kind),
    };
    let verbs: &[&str] = match name {
        "binding" | "eviction" | "token" => &["create"],
        "attach" | "exec" | "portforward" => &["create", "get"],
        "finalize" => &["update"],
        "log" => &["get"],
        _ => &["get", "patch", "update"],
    };
    Subresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: verbs.to_vec(),
    }
}

fn name_rule(group: &str, plural: &str) -> NameRule {
    match (group, plural) {
        ("", "namespaces") => NameRule::Label,
        ("", "services") => NameRule::Label1035,
        ("rbac.authorization.k8s.io", _) => NameRule::PathSegment,
        _ => NameRule::Subdomain,
    }
}
