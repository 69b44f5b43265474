//! `nested-virt`: `svm` or `vmx` in `cpu.features`, whichever the nodes that the VM can land on
//! have.
//!
//! ```text
//!  landable nodes offer   written
//!  only svm               svm require                 (KubeVirt then selects svm nodes itself)
//!  only vmx               vmx require
//!  both kinds             svm optional, vmx optional, and a required node affinity svm | vmx
//!  neither                error
//! ```
//!
//! A node offers a feature when KubeVirt's node labeller says so (`cpu-feature.node.kubevirt.io/svm`,
//! from what libvirt finds usable with KVM): that is nested virtualisation switched on, which
//! the CPU vendor alone does not tell.

use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::facts::Node;
use crate::site::Site;
use crate::text::candidates;
use crate::wishes::truth;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{0}` is not a value of nested-virt: use `enabled` or `disabled`")]
    Value(String),
    #[error(
        "nested virtualisation needs an amd64 guest, this VM's architecture is {0}; remove the request or set spec.template.spec.architecture"
    )]
    Architecture(String),
    #[error(
        "spec.template.spec.domain.cpu.features has `{feature}` with policy `{policy}`, which contradicts nested-virt; remove one of the two"
    )]
    Conflict { feature: &'static str, policy: String },
    #[error(
        "the nodes of the cluster are not known, so svm or vmx cannot be chosen; let the operator list nodes, or set features.nestedVirtualization.autoDetect to false"
    )]
    NodesUnknown,
    #[error(
        "no node that this VM can land on offers svm or vmx (label cpu-feature.node.kubevirt.io/svm or /vmx); nodes it can land on: {0}; enable nested virtualisation in their kvm module or relax nodeSelector and affinity{1}"
    )]
    NoNode(String, String),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Decides what nested virtualisation needs on this VM.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    if truth(&context.wish.value) != Some(true) {
        return Err(Error::Value(context.wish.value.chars().take(64).collect()));
    }
    let architecture = context.architecture();
    if architecture != "amd64" {
        return Err(Error::Architecture(architecture.to_owned()));
    }
    let candidates = [candidate(context, "svm")?, candidate(context, "vmx")?];
    let chosen: Vec<&Candidate> = if context.config.nested_virtualization.auto_detect {
        choose(context, &candidates)?
    } else {
        candidates.iter().collect()
    };
    let mut plan = Plan { applied: "true".to_owned(), ..Plan::default() };
    let policy = if chosen.len() == 1 { "require" } else { "optional" };
    for candidate in &chosen {
        if !candidate.is_given()? {
            let value = json!({"name": candidate.name, "policy": policy});
            plan.additions.push(Addition { site: Site::CpuFeatures, value });
        }
    }
    // KubeVirt makes a node selector of a required feature, not of an optional one
    let is_optional = chosen.len() > 1 || chosen.iter().any(|candidate| candidate.is("optional"));
    if is_optional && context.config.nested_virtualization.auto_detect {
        let alternatives = chosen
            .iter()
            .map(|candidate| json!({"key": label(candidate.name), "operator": "In", "values": ["true"]}));
        plan.additions.push(Addition { site: Site::NodeAffinity, value: alternatives.collect() });
    }
    Ok(plan)
}

/// A CPU feature, and the policy that the user wrote for it.
struct Candidate {
    name: &'static str,
    policy: Option<String>,
}

impl Candidate {
    fn is(&self, policy: &str) -> bool {
        self.policy.as_deref() == Some(policy)
    }

    /// The user's entry asks for the feature on every node; an absent policy means `require`
    /// (`core/v1/schema.go`, v1.9).
    fn is_demanded(&self) -> bool {
        self.is("require") || self.is("force") || self.is("")
    }

    /// The user's entry gives the feature already.
    fn is_given(&self) -> Result<bool, Error> {
        match &self.policy {
            None => Ok(false),
            Some(_) if self.is_demanded() || self.is("optional") => Ok(true),
            Some(policy) => Err(Error::Conflict { feature: self.name, policy: policy.clone() }),
        }
    }
}

fn candidate(context: &Context<'_>, name: &'static str) -> Result<Candidate, ShapeError> {
    let policy = context
        .written(Site::CpuFeatures)?
        .find(|entry| entry["name"] == name)
        .map(|entry| entry.get("policy").and_then(Value::as_str).unwrap_or_default().to_owned());
    Ok(Candidate { name, policy })
}

/// The features that the landable nodes offer, among those that the user demands already if any.
fn choose<'c>(context: &Context<'_>, known: &'c [Candidate]) -> Result<Vec<&'c Candidate>, Error> {
    let landable = context.landable()?.ok_or(Error::NodesUnknown)?;
    let is_any_demanded = known.iter().any(Candidate::is_demanded);
    let chosen: Vec<_> = known
        .iter()
        .filter(|candidate| !is_any_demanded || candidate.is_demanded())
        .filter(|candidate| landable.iter().any(|node| offers(node, candidate.name)))
        .collect();
    if chosen.is_empty() {
        let off = landable.iter().filter(|node| is_switched_off(context, &node.name)).map(|node| &node.name);
        let off = match candidates(off).as_str() {
            "none" => String::new(),
            names => format!("; node agents report it switched off on {names}"),
        };
        return Err(Error::NoNode(candidates(landable.iter().map(|node| &node.name)), off));
    }
    Ok(chosen)
}

/// Whether the agent of a node found the kvm module without nested virtualisation.
fn is_switched_off(context: &Context<'_>, node: &str) -> bool {
    let mut hosts = context.cluster.hosts.iter().flatten();
    hosts.any(|host| host.node == node && host.cpu.nested == Some(false))
}

fn label(feature: &str) -> String {
    format!("cpu-feature.node.kubevirt.io/{feature}")
}

fn offers(node: &Node, feature: &str) -> bool {
    node.labels.get(&label(feature)).is_some_and(|value| value == "true")
}
