//! Our own parts: webhook, agents, policies, rights.

use serde::Serialize;
use serde_json::Value;

use super::cluster::runs_vms;
use super::{Facts, Finding, State};
use crate::json::{at, list, text};
use crate::policy::{CLUSTER_KIND, NAMESPACE_KIND, POLICY_NAME, Policy, Sources};

/// The name of the webhook in its configuration.
const WEBHOOK: &str = "resize.vm-feature-manager.io";
/// How to install what is missing.
const INSTALL: &str = "install the chart with resize.enabled=true";

/// Whose right it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The operator's account.
    Operator,
    /// The agents' account.
    Agent,
    /// Whoever asks.
    You,
}

/// One right that somebody needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Right {
    /// Who.
    pub who: Who,
    /// The verb.
    pub verb: &'static str,
    /// The API group.
    pub group: &'static str,
    /// The resource, with its subresource.
    pub resource: &'static str,
    /// Nothing: it could not be asked for.
    pub allowed: Option<bool>,
    /// Without it something else works still.
    pub optional: bool,
}

const fn right(who: Who, verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { who, verb, group, resource, allowed: None, optional: false }
}

/// Every right that in-place resize needs, for an access review each.
pub const RIGHTS: [Right; 17] = [
    right(Who::Operator, "list", "kubevirt.io", "virtualmachines"),
    right(Who::Operator, "watch", "kubevirt.io", "virtualmachineinstances"),
    right(Who::Operator, "patch", "kubevirt.io", "virtualmachineinstances"),
    right(Who::Operator, "list", "kubevirt.io", "virtualmachineinstancemigrations"),
    right(Who::Operator, "list", "kubevirt.io", "kubevirts"),
    right(Who::Operator, "get", "", "nodes"),
    right(Who::Operator, "list", "", "pods"),
    right(Who::Operator, "list", "", "namespaces"),
    right(Who::Operator, "patch", "", "pods/resize"),
    right(Who::Operator, "create", "", "events"),
    Right { optional: true, ..right(Who::Operator, "list", "vm-feature-manager.io", "resizepolicies") },
    Right {
        optional: true,
        ..right(Who::Operator, "list", "vm-feature-manager.io", "clusterresizepolicies")
    },
    Right { optional: true, ..right(Who::Operator, "impersonate", "", "serviceaccounts") },
    right(Who::Agent, "watch", "kubevirt.io", "virtualmachineinstances"),
    right(Who::Agent, "patch", "kubevirt.io", "virtualmachineinstances"),
    Right { optional: true, ..right(Who::You, "patch", "kubevirt.io", "virtualmachines") },
    Right { optional: true, ..right(Who::You, "patch", "", "pods/resize") },
];

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = webhook(facts);
    found.push(agents(facts));
    found.extend(policies(facts));
    found.extend(rights(facts));
    found
}

/// The webhook as it is registered.
fn registered(facts: &Facts) -> Option<&Value> {
    let all = facts.webhooks.iter().flatten();
    all.flat_map(|one| list(one, "/webhooks")).find(|webhook| text(webhook, "/name") == WEBHOOK)
}

/// Namespace and name of the Service behind the webhook; nothing when it is registered by URL, or
/// not at all.
pub fn webhook_service(facts: &Facts) -> Option<(String, String)> {
    let service = at(registered(facts)?, "/clientConfig/service")?;
    Some((text(service, "/namespace").to_owned(), text(service, "/name").to_owned()))
}

fn webhook(facts: &Facts) -> Vec<Finding> {
    let check = "webhook";
    if facts.webhooks.is_none() {
        return vec![Finding::unknown(check, "webhook configurations cannot be read")];
    }
    let Some(webhook) = registered(facts) else {
        return vec![Finding::new(check, State::Failed, "it is not registered: KubeVirt migrates", INSTALL)];
    };
    let mut found = Vec::new();
    if text(webhook, "/clientConfig/caBundle").is_empty() {
        let what = "it has no caBundle, so the API server does not call it";
        found.push(Finding::new(check, State::Failed, what, "see the operator's log and `/readyz?verbose`"));
    }
    if text(webhook, "/failurePolicy") != "Ignore" {
        let what = "its failurePolicy is not Ignore: with the operator away KubeVirt could not change VMs";
        found.push(Finding::new(check, State::Failed, what, "set it back to Ignore"));
    }
    if found.is_empty() {
        found.push(Finding::ok(check, "registered, and fails open"));
    }
    found.push(reachable(facts));
    found
}

fn reachable(facts: &Facts) -> Finding {
    let check = "webhook answers";
    let see = "see `kubectl get pods` there, and NetworkPolicies between API server and operator";
    match (&facts.answered, webhook_service(facts), &facts.operators) {
        (Some(Ok(how)), ..) => Finding::ok(check, how.clone()),
        (Some(Err(why)), ..) => Finding::new(check, State::Failed, why.clone(), see),
        (None, Some((namespace, name)), Some(pods)) => {
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            if ready == 0 {
                let what = format!("no ready pod behind the Service {namespace}/{name}");
                return Finding::new(check, State::Failed, what, see);
            }
            let what = format!("{ready} ready behind the Service {namespace}/{name}; not called");
            Finding::new(check, State::Ok, what, "give --probe NAMESPACE/VM to call it in a dry run")
        }
        _ => Finding::new(
            check,
            State::Unknown,
            "it was not called",
            "give --probe NAMESPACE/VM to call it in a dry run",
        ),
    }
}

fn is_ready(pod: &Value) -> bool {
    crate::json::has_condition(pod, "Ready") && at(pod, "/metadata/deletionTimestamp").is_none()
}

fn agents(facts: &Facts) -> Finding {
    let check = "agents";
    let (Some(nodes), Some(pods)) = (&facts.nodes, &facts.agents) else {
        return Finding::unknown(check, "nodes or pods cannot be read");
    };
    let nodes: Vec<&str> =
        nodes.iter().filter(|node| runs_vms(node)).map(|node| text(node, "/metadata/name")).collect();
    let serves = |node: &str| pods.iter().any(|pod| text(pod, "/spec/nodeName") == node && is_ready(pod));
    let without: Vec<&str> = nodes.iter().copied().filter(|node| !serves(node)).collect();
    if without.is_empty() {
        return Finding::ok(check, format!("one is ready on each of {} nodes", nodes.len()));
    }
    let what = format!("none is ready on {} of {} nodes: {}", without.len(), nodes.len(), few(&without));
    let remedy = if pods.is_empty() {
        INSTALL
    } else {
        "see `kubectl get pods -A -l app.kubernetes.io/component=agent`, and resize.agent.tolerations of the chart"
    };
    Finding::new(check, State::Failed, what, remedy)
}

/// The first few names.
fn few(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

/// The policy objects that count: the cluster's, and the one of a namespace.
pub(super) fn policy_objects<'a>(facts: &'a Facts, namespace: &str) -> (&'a Value, &'a Value) {
    let find = |kind: &str, namespace: &str| {
        let all = facts.policies.iter().flatten();
        let fits = |one: &&Value| {
            text(one, "/kind") == kind
                && text(one, "/metadata/namespace") == namespace
                && text(one, "/metadata/name") == POLICY_NAME
        };
        all.into_iter().find(fits).unwrap_or(&Value::Null)
    };
    (find(CLUSTER_KIND, ""), find(NAMESPACE_KIND, namespace))
}

/// Everything that may say something about the VMs of a namespace, with one of them.
pub(super) fn sources<'a>(facts: &'a Facts, namespace: &str, vm: &'a Value) -> Sources<'a> {
    let (cluster_policy, namespace_policy) = policy_objects(facts, namespace);
    let all = facts.namespaces.iter().flatten();
    let object = all.into_iter().find(|one| text(one, "/metadata/name") == namespace);
    Sources { vm, namespace: object.unwrap_or(&Value::Null), namespace_policy, cluster_policy }
}

fn policies(facts: &Facts) -> Vec<Finding> {
    let check = "policy";
    let Some(vms) = &facts.vms else { return vec![Finding::unknown(check, "VMs cannot be read")] };
    let mut mistakes = Vec::new();
    for vm in vms {
        let (namespace, name) = (text(vm, "/metadata/namespace"), text(vm, "/metadata/name"));
        if let Err(mistake) = Policy::of(&sources(facts, namespace, vm), Policy::default()) {
            let what = format!("{namespace}/{name} is not resized in place: {mistake}");
            mistakes.push(Finding::new(check, State::Failed, what, "correct it"));
        }
    }
    let stamped = facts.vmis.iter().flatten().filter(|vmi| super::machines::in_force(vmi)).count();
    let running = facts.vmis.as_ref().map_or(0, Vec::len);
    let (cluster, _) = policy_objects(facts, "");
    let namespaces =
        facts.policies.iter().flatten().filter(|one| text(one, "/kind") == NAMESPACE_KIND).count();
    let what = format!(
        "in force for {stamped} of {running} running VMs; {} for the cluster, {namespaces} for namespaces",
        if cluster.is_null() { "no ClusterResizePolicy" } else { "a ClusterResizePolicy" },
    );
    if mistakes.is_empty() && stamped == 0 && running > 0 {
        let remedy = "annotate a VM or a namespace with vm-feature-manager.io/in-place-resize: Enabled, or make a ClusterResizePolicy";
        return vec![Finding::new(check, State::Note, what, remedy)];
    }
    mistakes.insert(0, Finding::ok(check, what));
    mistakes
}

fn rights(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (who, check) in
        [(Who::Operator, "operator's rights"), (Who::Agent, "agents' rights"), (Who::You, "your rights")]
    {
        let all: Vec<&Right> = facts.rights.iter().filter(|right| right.who == who).collect();
        let name = |right: &&&Right| {
            let group = if right.group.is_empty() { "" } else { "." };
            format!("{} {}{group}{}", right.verb, right.resource, right.group)
        };
        let missing: Vec<String> = all
            .iter()
            .filter(|right| right.allowed == Some(false) && !right.optional)
            .map(|right| name(&right))
            .collect();
        let without: Vec<String> = all
            .iter()
            .filter(|right| right.allowed == Some(false) && right.optional)
            .map(|right| name(&right))
            .collect();
        let asked = all.iter().filter(|right| right.allowed.is_some()).count();
        found.push(if !missing.is_empty() {
            let what = format!("missing: {}", missing.join(", "));
            Finding::new(check, State::Failed, what, "install the chart with rbac.create=true, or grant them")
        } else if asked == 0 {
            Finding::unknown(check, "nobody could be asked about")
        } else if without.is_empty() {
            Finding::ok(check, "complete")
        } else {
            let what = format!("complete, but for: {}", without.join(", "));
            Finding::new(check, State::Note, what, meaning(&without))
        });
    }
    found
}

fn meaning(without: &[String]) -> &'static str {
    let has = |part: &str| without.iter().any(|one| one.contains(part));
    if has("impersonate") {
        "memory of VMs that cannot migrate needs resize.declareMemory=true, a large grant"
    } else if has("policies") {
        "policy objects are not looked at: install the chart's definitions"
    } else {
        "others may resize, you may not"
    }
}
