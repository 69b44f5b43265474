//! Kubernetes, KubeVirt and the nodes.

use serde_json::Value;

use super::{Facts, Finding, State};
use crate::eligibility::FIRST_KUBERNETES;
use crate::json::{at, list, text};
use crate::view;

/// From here on in-place resize cannot be switched off (KEP-1287, stable).
const STABLE: u32 = 35;
/// From here on memory limits may be lowered.
const LOWER_LIMITS: u32 = 34;
/// The oldest KubeVirt whose calls were read.
const FIRST_KUBEVIRT: (u32, u32) = (1, 5);

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![kubernetes(facts), subresource(facts)];
    found.extend(kubevirt(facts));
    found.extend(nodes(facts));
    found
}

fn kubernetes(facts: &Facts) -> Finding {
    let check = "kubernetes";
    let Some(minor) = facts.minor() else { return Finding::unknown(check, "its version is not known") };
    let version = format!("1.{minor}");
    if minor < FIRST_KUBERNETES {
        let what = format!("{version} does not resize running pods");
        return Finding::new(check, State::Failed, what, format!("upgrade to 1.{FIRST_KUBERNETES} or newer"));
    }
    if minor < LOWER_LIMITS {
        let what = format!("{version} resizes running pods, and never lowers a memory limit");
        return Finding::new(
            check,
            State::Note,
            what,
            format!("memory limits go down from 1.{LOWER_LIMITS} on"),
        );
    }
    if minor < STABLE {
        return Finding::ok(check, format!("{version} resizes running pods (beta, on unless switched off)"));
    }
    Finding::ok(check, format!("{version} resizes running pods (stable)"))
}

/// The API server serves `pods/resize` only while its gate is on.
fn subresource(facts: &Facts) -> Finding {
    let check = "pods/resize";
    let Some(core) = &facts.core else { return Finding::unknown(check, "the API's resources are not known") };
    if list(core, "/resources").iter().any(|one| text(one, "/name") == "pods/resize") {
        return Finding::ok(check, "served");
    }
    Finding::new(
        check,
        State::Failed,
        "the API server does not serve it",
        "switch on the feature gate InPlacePodVerticalScaling in API server and kubelets",
    )
}

fn kubevirt(facts: &Facts) -> Vec<Finding> {
    let check = "kubevirt";
    let Some(all) = &facts.kubevirts else {
        return vec![Finding::unknown(check, "the KubeVirt object cannot be read")];
    };
    let Some(kubevirt) = all.first() else {
        return vec![Finding::new(check, State::Failed, "there is no KubeVirt object", "install KubeVirt")];
    };
    vec![version(kubevirt), rollout(kubevirt), update_methods(kubevirt)]
}

fn version(kubevirt: &Value) -> Finding {
    let check = "kubevirt";
    let (version, phase) =
        (text(kubevirt, "/status/observedKubeVirtVersion"), text(kubevirt, "/status/phase"));
    if phase != "Deployed" {
        let what = format!("it is {}", if phase.is_empty() { "not deployed" } else { phase });
        return Finding::new(check, State::Failed, what, "wait, or see `kubectl describe kubevirt -A`");
    }
    match numbers(version) {
        None => {
            let what = format!("its version is `{version}`");
            Finding::new(check, State::Note, what, "try it on a VM that may be lost")
        }
        Some(number) if number < FIRST_KUBEVIRT => {
            let what = format!("{version} is older than every version that was looked at");
            Finding::new(check, State::Note, what, "try it on a VM that may be lost")
        }
        Some(_) => Finding::ok(check, version.to_owned()),
    }
}

/// `v1.9.0-rc.1` is (1, 9).
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn rollout(kubevirt: &Value) -> Finding {
    let check = "live updates";
    if view::is_live_update(kubevirt) {
        return Finding::ok(check, "vmRolloutStrategy is LiveUpdate");
    }
    Finding::new(
        check,
        State::Failed,
        format!("vmRolloutStrategy is {}", text(kubevirt, "/spec/configuration/vmRolloutStrategy")),
        "set spec.configuration.vmRolloutStrategy of the KubeVirt object to LiveUpdate, and restart the VMs",
    )
}

/// What KubeVirt does with a change that is left to it.
fn update_methods(kubevirt: &Value) -> Finding {
    let check = "left to KubeVirt";
    let methods = list(kubevirt, "/spec/workloadUpdateStrategy/workloadUpdateMethods");
    let has = |name: &str| methods.iter().any(|method| method == name);
    match (has("LiveMigrate"), has("Evict")) {
        (_, true) => Finding::new(
            check,
            State::Note,
            "workloadUpdateMethods has Evict: a VM that cannot migrate is shut down for a change that is left to KubeVirt",
            "use the fallback Revert or Wait for such VMs, or take Evict out",
        ),
        (true, false) => Finding::ok(check, "it migrates what is not resized in place"),
        (false, false) => Finding::new(
            check,
            State::Note,
            "workloadUpdateMethods is empty: with the fallback Migrate a change waits for a migration that somebody else starts",
            "add LiveMigrate to spec.workloadUpdateStrategy.workloadUpdateMethods, or use the fallback Revert",
        ),
    }
}

fn nodes(facts: &Facts) -> Vec<Finding> {
    let Some(nodes) = &facts.nodes else { return vec![Finding::unknown("nodes", "they cannot be read")] };
    let vms = nodes.iter().filter(|node| runs_vms(node));
    let found: Vec<Finding> = vms.filter_map(|node| of_node(node, facts)).collect();
    if nodes.iter().any(runs_vms) {
        if found.is_empty() {
            let count = nodes.iter().filter(|node| runs_vms(node)).count();
            return vec![Finding::ok("nodes", format!("{count} run VMs, and all can resize them"))];
        }
        return found;
    }
    vec![Finding::new(
        "nodes",
        State::Note,
        "none runs VMs",
        "see `kubectl get nodes -l kubevirt.io/schedulable=true`",
    )]
}

pub(super) fn runs_vms(node: &Value) -> bool {
    label(node, "kubevirt.io/schedulable") == "true"
}

fn label<'a>(node: &'a Value, name: &str) -> &'a str {
    at(node, "/metadata/labels").and_then(|labels| labels.get(name)?.as_str()).unwrap_or_default()
}

/// What keeps a node from resizing some pods or all of them.
fn of_node(node: &Value, facts: &Facts) -> Option<Finding> {
    let (check, name) = ("nodes", text(node, "/metadata/name"));
    let kubelet = text(node, "/status/nodeInfo/kubeletVersion");
    if numbers(kubelet).is_some_and(|number| number < (1, FIRST_KUBERNETES)) {
        let what = format!("{name}: kubelet {kubelet} does not resize pods");
        return Some(Finding::new(check, State::Failed, what, "upgrade it, or keep such VMs off it"));
    }
    let launchers: Vec<&Value> =
        facts.pods.iter().flatten().filter(|pod| text(pod, "/spec/nodeName") == name).collect();
    let reports = |pod: &Value| {
        list(pod, "/status/containerStatuses")
            .iter()
            .any(|status| at(status, "/allocatedResources").is_some())
    };
    if !launchers.is_empty() && !launchers.iter().any(|pod| reports(pod)) {
        let runtime = text(node, "/status/nodeInfo/containerRuntimeVersion");
        let what = format!("{name}: it does not report what containers have ({runtime})");
        return Some(Finding::new(check, State::Failed, what, "upgrade kubelet or the container runtime"));
    }
    let swap = at(node, "/status/nodeInfo/swap/capacity").and_then(Value::as_u64).unwrap_or(0);
    let mut limits = Vec::new();
    if swap > 0 {
        limits.push("it swaps, so memory, and with it vCPUs, change only if its swapBehavior is NoSwap");
    }
    if label(node, "cpumanager") == "true" {
        limits.push("its CPU manager is static, so CPUs of Guaranteed VMs do not change");
    }
    if label(node, "vm-feature-manager.io/memory-manager") == "Static" {
        limits.push("its memory manager is static, so memory of Guaranteed VMs does not change");
    }
    (!limits.is_empty()).then(|| {
        let what = format!("{name}: {}", limits.join("; "));
        Finding::new(check, State::Note, what, "such VMs migrate, or need a restart")
    })
}
