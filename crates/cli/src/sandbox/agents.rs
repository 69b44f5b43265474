//! Agents in the sandbox: one for each node in this process, and in the API what the chart would
//! have put there for them.

use std::path::Path;

use ::resize::checkup::{RIGHTS, Who};
use anyhow::Result;
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::problem::Problem;

const NAMESPACE: &str = "virt-steward";
const ACCOUNT: &str = "virt-steward-agent";

/// Starts an agent for every node, as the chart's `DaemonSet` does; they end with `stop`.
pub async fn start(kubeconfig: &Path, pods: &Path, stop: &CancellationToken) -> Result<()> {
    let cluster = Cluster::connect(Some(kubeconfig), None).await?;
    let nodes = cluster
        .get("/api/v1/nodes")
        .await
        .map_err(|error| Problem::new("listing the sandbox's nodes", error, "report this as a defect"))?;
    account(&cluster).await?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        make(&cluster, &format!("/api/v1/namespaces/{NAMESPACE}/pods"), pod(&name)).await?;
        let settings = ::agent::Settings { node: name, pods: pods.to_path_buf() };
        tokio::spawn(::agent::Agent::new(cluster.client(), settings).run(stop.clone()));
    }
    Ok(())
}

async fn make(cluster: &Cluster, path: &str, object: Value) -> Result<()> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let doing = format!("making the agents' {kind} in the sandbox");
    cluster.send(Method::POST, path, "application/json", &object).await?.object(&doing)?;
    Ok(())
}

async fn account(cluster: &Cluster) -> Result<()> {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let named = |name: &str| json!({"name": name});
    let rules: Vec<Value> = RIGHTS
        .iter()
        .filter(|right| right.who == Who::Agent)
        .map(|right| json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": ["get", "list", right.verb]}))
        .collect();
    for (path, object) in [
        (
            "/api/v1/namespaces".to_owned(),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": named(NAMESPACE)}),
        ),
        (
            format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(ACCOUNT)}),
        ),
        (
            format!("{rbac}/clusterroles"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": named(ACCOUNT), "rules": rules}),
        ),
        (
            format!("{rbac}/clusterrolebindings"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": named(ACCOUNT),
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT},
                "subjects": [{"kind": "ServiceAccount", "namespace": NAMESPACE, "name": ACCOUNT}]}),
        ),
    ] {
        make(cluster, &path, object).await?;
    }
    Ok(())
}

/// A pod that stands for an agent, for those who look for one.
fn pod(node: &str) -> Value {
    let labels =
        json!({"app.kubernetes.io/name": "virt-steward-agent", "app.kubernetes.io/component": "agent"});
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("virt-steward-agent-{node}"), "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": node, "serviceAccountName": ACCOUNT,
            "containers": [{"name": "agent", "image": "virt-steward", "args": ["agent"]}]}})
}
