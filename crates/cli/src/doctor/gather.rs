//! What a checkup looks at, read as the caller. What may not be read, or is not there, is nothing.

use ::resize::checkup::{Facts, RIGHTS, Right, Who, webhook_service};
use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::problem::Problem;

/// Objects per page.
const PAGE: usize = 500;
/// The most pages of one list.
const PAGES: usize = 2000;

/// Reads it all.
pub async fn facts(cluster: &Cluster, namespace: Option<&str>) -> Result<Facts> {
    let within = |group: &str, resource: &str| match namespace {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{resource}"),
        None => format!("{group}/{resource}"),
    };
    let kubevirt = |resource: &str| within("/apis/kubevirt.io/v1", resource);
    let launchers = format!("{}?labelSelector=kubevirt.io%3Dvirt-launcher", within("/api/v1", "pods"));
    let mut facts = Facts {
        version: object(cluster, "/version").await?,
        core: object(cluster, "/api/v1").await?,
        kubevirts: list(cluster, "/apis/kubevirt.io/v1/kubevirts").await?,
        nodes: list(cluster, "/api/v1/nodes").await?,
        webhooks: list(cluster, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations")
            .await?,
        operators: None,
        answered: None,
        agents: list(cluster, "/api/v1/pods?labelSelector=app.kubernetes.io%2Fcomponent%3Dagent").await?,
        policies: policies(cluster).await?,
        namespaces: list(cluster, "/api/v1/namespaces").await?,
        vms: list(cluster, &kubevirt("virtualmachines")).await?,
        vmis: list(cluster, &kubevirt("virtualmachineinstances")).await?,
        pods: list(cluster, &launchers).await?,
        rights: Vec::new(),
    };
    if let Some((namespace, name)) = webhook_service(&facts) {
        facts.operators = behind(cluster, &namespace, &name).await?;
    }
    facts.rights = rights(cluster, &facts).await?;
    Ok(facts)
}

/// An object; nothing when it is not there, or not to be read.
async fn object(cluster: &Cluster, path: &str) -> Result<Option<Value>> {
    match cluster.get(path).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => Ok(None),
        Err(error) => {
            Err(Problem::new(format!("reading `{path}`"), error, "check `kubectl cluster-info`").into())
        }
    }
}

/// All objects of a list. A kind that does not exist has none; nothing when it may not be read.
async fn list(cluster: &Cluster, path: &str) -> Result<Option<Vec<Value>>> {
    let (join, mut token, mut found) =
        (if path.contains('?') { '&' } else { '?' }, String::new(), Vec::new());
    for _ in 0..PAGES {
        let page = format!("{path}{join}limit={PAGE}&continue={token}");
        let mut page = match cluster.get(&page).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Some(found)),
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => return Ok(None),
            Err(error) => {
                let remedy = "check `kubectl cluster-info`";
                return Err(Problem::new(format!("listing `{path}`"), error, remedy).into());
            }
        };
        let kind = page["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_owned();
        if let Value::Array(items) = page["items"].take() {
            // The items of a list do not carry their kind.
            found.extend(items.into_iter().map(|mut item| {
                item["kind"] = kind.clone().into();
                item
            }));
        }
        page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut token);
        if token.is_empty() {
            break;
        }
    }
    Ok(Some(found))
}

async fn policies(cluster: &Cluster) -> Result<Option<Vec<Value>>> {
    let group = "/apis/vm-feature-manager.io/v1alpha1";
    let mut all = list(cluster, &format!("{group}/clusterresizepolicies")).await?;
    let namespaced = list(cluster, &format!("{group}/resizepolicies")).await?;
    if let (Some(all), Some(namespaced)) = (&mut all, namespaced) {
        all.extend(namespaced);
    }
    Ok(all)
}

/// The pods behind a Service; nothing when they may not be read.
async fn behind(cluster: &Cluster, namespace: &str, name: &str) -> Result<Option<Vec<Value>>> {
    let core = format!("/api/v1/namespaces/{namespace}");
    let Some(service) = object(cluster, &format!("{core}/services/{name}")).await? else {
        return Ok(Some(Vec::new()));
    };
    let selector: Vec<String> = service["spec"]["selector"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{}%3D{}", key.replace('/', "%2F"), value.as_str()?)))
        .collect();
    if selector.is_empty() {
        return Ok(None);
    }
    list(cluster, &format!("{core}/pods?labelSelector={}", selector.join("%2C"))).await
}

/// Namespace and name of the account of some pods.
fn account(pods: Option<&Vec<Value>>) -> Option<(String, String)> {
    let pod = pods?.first()?;
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    Some((text("/metadata/namespace")?.into(), text("/spec/serviceAccountName").unwrap_or("default").into()))
}

/// Whether the operator may act as virt-controller, which memory of VMs that cannot migrate needs;
/// nothing when the caller may not see who the operator is, or not ask about others.
pub async fn grant(cluster: &Cluster, kubevirt: &Value) -> Result<Option<bool>> {
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let facts = Facts { webhooks: list(cluster, configurations).await?, ..Facts::default() };
    let Some((namespace, name)) = webhook_service(&facts) else { return Ok(None) };
    let Some(account) = account(behind(cluster, &namespace, &name).await?.as_ref()) else { return Ok(None) };
    let namespace = kubevirt["metadata"]["namespace"].as_str().unwrap_or("kubevirt");
    ask(cluster, Some(&account), &impersonation(namespace)).await
}

/// The one right of design D2.
fn impersonation(kubevirt_namespace: &str) -> Value {
    json!({"verb": "impersonate", "group": "", "resource": "serviceaccounts",
        "namespace": kubevirt_namespace, "name": "kubevirt-controller"})
}

/// Asks the authorizer about every right. Asking about others needs a right of its own.
async fn rights(cluster: &Cluster, facts: &Facts) -> Result<Vec<Right>> {
    let (operator, agent) = (account(facts.operators.as_ref()), account(facts.agents.as_ref()));
    let kubevirt = facts.kubevirts.as_ref().and_then(|all| all.first());
    let kubevirt = kubevirt.and_then(|one| one["metadata"]["namespace"].as_str()).unwrap_or("kubevirt");
    let mut found = Vec::with_capacity(RIGHTS.len());
    for right in RIGHTS {
        let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
        let mut attributes = json!({"verb": right.verb, "group": right.group, "resource": resource});
        if !subresource.is_empty() {
            attributes["subresource"] = subresource.into();
        }
        if right.verb == "impersonate" {
            attributes = impersonation(kubevirt);
        }
        let allowed = match (right.who, &operator, &agent) {
            (Who::Operator, Some(account), _) | (Who::Agent, _, Some(account)) => {
                ask(cluster, Some(account), &attributes).await?
            }
            (Who::Operator | Who::Agent, ..) => None,
            (Who::You, ..) => ask(cluster, None, &attributes).await?,
        };
        found.push(Right { allowed, ..right });
    }
    Ok(found)
}

async fn ask(
    cluster: &Cluster,
    account: Option<&(String, String)>,
    attributes: &Value,
) -> Result<Option<bool>> {
    let mut spec = json!({"resourceAttributes": attributes});
    let kind = if let Some((namespace, name)) = account {
        spec["user"] = format!("system:serviceaccount:{namespace}:{name}").into();
        spec["groups"] = json!([
            "system:serviceaccounts",
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated"
        ]);
        "SubjectAccessReview"
    } else {
        "SelfSubjectAccessReview"
    };
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
    let path = format!("/apis/authorization.k8s.io/v1/{}s", kind.to_lowercase());
    let reply = cluster.send(Method::POST, &path, "application/json", &review).await?;
    Ok(if reply.status.is_success() { reply.body["status"]["allowed"].as_bool() } else { None })
}
