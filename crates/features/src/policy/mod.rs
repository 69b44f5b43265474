//! `FeaturePolicy`, `ClusterFeaturePolicy` and `FeaturePolicyException`: what VMs may use, and how
//! much of it. A request and facts in, a verdict with reasons out.
//!
//! ```text
//!  each policy of the namespace and the cluster ─► its rules ─► findings ─ exceptions ─► mode
//!                                                                         Enforce: denial │ Audit: warning
//! ```
//!
//! A VM that was admitted before stays editable: on UPDATE only what the request adds is denied.

mod rules;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::availability::{obstacles, sentence};
use crate::facts::Node;
use crate::json::at;
use crate::text::{MAX_WARNING, MAX_WARNINGS, clip};
pub(crate) use rules::resources;
use rules::{Finding, Uses, findings};

/// The API group and version of policies.
pub const API_VERSION: &str = "vm-feature-manager.io/v1alpha1";

/// What happens on a finding.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Mode {
    /// The request is denied.
    #[default]
    Enforce,
    /// The request is allowed with a warning.
    Audit,
}

/// What happens when no node can ever take the VM.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Availability {
    /// A warning names the nodes.
    #[default]
    Warn,
    /// The request is denied (in mode `Audit`: a warning).
    Deny,
    /// It is not looked at.
    Ignore,
}

/// The `spec` of a policy. What is absent is not restricted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicySpec {
    /// What happens on a finding.
    pub mode: Mode,
    /// Of a cluster policy: the namespaces that it is for, names or prefixes that end in `*`. Empty:
    /// all.
    pub namespaces: Vec<String>,
    /// Who may use which features; a feature that is not listed is not restricted.
    pub features: Vec<FeatureRule>,
    /// Resource names that VMs may have as host devices and GPUs.
    pub devices: Option<Allowed>,
    /// Images that hook sidecars may have.
    pub images: Option<Allowed>,
    /// The most devices.
    pub limits: Limits,
    /// When no node can ever take the VM.
    pub availability: Availability,
}

/// Who may use features.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FeatureRule {
    /// Names of features, or `*`.
    pub names: Vec<String>,
    /// Users who may.
    pub users: Vec<String>,
    /// Groups whose members may.
    pub groups: Vec<String>,
}

/// An allow-list: exact texts, or prefixes that end in `*`. Empty: nothing is allowed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Allowed {
    /// The entries.
    pub allow: Vec<String>,
}

/// The most devices; GPUs are those in `devices.gpus`, devices are all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Of one VM.
    #[serde(rename = "devicesPerVM")]
    pub devices_per_vm: Option<usize>,
    /// Of one VM.
    #[serde(rename = "gpusPerVM")]
    pub gpus_per_vm: Option<usize>,
    /// Of all VMs of a namespace together, running or not.
    pub devices_per_namespace: Option<usize>,
    /// Of all VMs of a namespace together, running or not.
    pub gpus_per_namespace: Option<usize>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Policy {
    /// `metadata.name`
    pub name: String,
    /// Its namespace; `None`: a cluster policy.
    pub namespace: Option<String>,
    /// What it says.
    pub spec: PolicySpec,
}

/// The `spec` of an exception.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExceptionSpec {
    /// Names of policies, of the namespace or the cluster; `*`: all.
    pub policies: Vec<String>,
    /// Names of VMs in the exception's namespace; an entry may end in `*`.
    pub virtual_machines: Vec<String>,
    /// Rules that do not count: `features`, `devices`, `images`, `limits`, `availability`. Empty: all.
    pub rules: Vec<String>,
}

/// An exception.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exception {
    /// `metadata.name`
    pub name: String,
    /// The namespace whose VMs it is for.
    pub namespace: String,
    /// What it excepts.
    pub spec: ExceptionSpec,
}

/// How many devices a VM has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Host devices and GPUs.
    pub devices: usize,
    /// GPUs among them.
    pub gpus: usize,
}

/// What is known about policies and what they count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyFacts {
    /// By `namespace/name`, or `name` for cluster policies.
    pub policies: BTreeMap<String, Policy>,
    /// By `namespace/name`.
    pub exceptions: BTreeMap<String, Exception>,
    /// What VMs have, by namespace and name.
    pub usage: BTreeMap<String, BTreeMap<String, Counted>>,
    /// What instancetypes give, by `namespace/name`, or `name` for cluster instancetypes.
    pub instancetypes: BTreeMap<String, Given>,
}

/// What one VM has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Of its own.
    pub own: Usage,
    /// The key of the instancetype that gives it more.
    pub instancetype: Option<String>,
}

/// The devices that an instancetype gives.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Given {
    /// Resource names of all devices.
    pub devices: Vec<String>,
    /// How many of them are GPUs.
    pub gpus: usize,
}

/// A document that is not a policy, or not one that can be read.
#[derive(Debug, thiserror::Error)]
#[error("{kind} `{name}`: {source}; it is not in force")]
pub struct PolicyError {
    kind: String,
    name: String,
    source: serde_json::Error,
}

impl PolicyFacts {
    /// Takes in a policy or an exception. True: it was one.
    pub fn add(&mut self, object: &Value) -> Result<bool, PolicyError> {
        let text = |path: &[&str]| at(object, path).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text(&["apiVersion"]).starts_with("instancetype.kubevirt.io/") {
            self.give(object);
        }
        if text(&["apiVersion"]) != API_VERSION {
            return Ok(false);
        }
        let (kind, name, namespace) =
            (text(&["kind"]), text(&["metadata", "name"]), text(&["metadata", "namespace"]));
        let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
        let spec = object.get("spec").cloned().unwrap_or(Value::Object(serde_json::Map::new()));
        let fail = |source| PolicyError { kind: kind.clone(), name: name.clone(), source };
        match kind.as_str() {
            "ClusterFeaturePolicy" => {
                let spec = serde_json::from_value(spec).map_err(fail)?;
                self.policies.insert(name.clone(), Policy { name, namespace: None, spec });
            }
            "FeaturePolicy" => {
                let spec = serde_json::from_value(spec).map_err(fail)?;
                let key = format!("{namespace}/{name}");
                self.policies.insert(key, Policy { name, namespace: Some(namespace), spec });
            }
            "FeaturePolicyException" => {
                let spec = serde_json::from_value(spec).map_err(fail)?;
                self.exceptions.insert(format!("{namespace}/{name}"), Exception { name, namespace, spec });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes in an instancetype.
    fn give(&mut self, object: &Value) {
        let text = |path: &[&str]| at(object, path).and_then(Value::as_str);
        let Some(name) = text(&["metadata", "name"]) else { return };
        let key = match text(&["kind"]) {
            Some("VirtualMachineClusterInstancetype") => name.to_owned(),
            Some("VirtualMachineInstancetype") => {
                format!("{}/{name}", text(&["metadata", "namespace"]).unwrap_or("default"))
            }
            _ => return,
        };
        self.instancetypes.insert(key, rules::given(object.get("spec").unwrap_or(&Value::Null)));
    }

    /// Counts a VM, or what it has now.
    pub fn count(&mut self, namespace: &str, name: &str, machine: &Value) {
        let counted = Counted { own: usage(machine), instancetype: rules::instancetype(machine, namespace) };
        if counted == Counted::default() {
            self.forget(namespace, name);
        } else {
            self.usage.entry(namespace.to_owned()).or_default().insert(name.to_owned(), counted);
        }
    }

    /// What a VM has, with what its instancetype gives.
    fn total(&self, counted: &Counted) -> Usage {
        let given = counted.instancetype.as_ref().and_then(|key| self.instancetypes.get(key));
        Usage {
            devices: counted.own.devices + given.map_or(0, |given| given.devices.len()),
            gpus: counted.own.gpus + given.map_or(0, |given| given.gpus),
        }
    }

    /// A VM is gone.
    pub fn forget(&mut self, namespace: &str, name: &str) {
        if let Some(machines) = self.usage.get_mut(namespace) {
            machines.remove(name);
        }
    }

    /// Whether some policy is about devices, which instancetypes may give.
    pub fn minds_devices(&self) -> bool {
        self.policies
            .values()
            .any(|policy| policy.spec.devices.is_some() || policy.spec.limits != Limits::default())
    }

    /// Whether some policy counts over a namespace.
    pub fn counts_namespaces(&self) -> bool {
        self.policies.values().any(|policy| {
            policy.spec.limits.devices_per_namespace.is_some()
                || policy.spec.limits.gpus_per_namespace.is_some()
        })
    }
}

/// How many devices a VM has of its own.
pub fn usage(machine: &Value) -> Usage {
    let uses = Uses::of(machine, None);
    Usage { devices: uses.devices.len(), gpus: uses.gpus }
}

/// A request, as policies see it.
#[derive(Clone, Copy, Debug)]
pub struct PolicyRequest<'a> {
    /// The VM's namespace.
    pub namespace: &'a str,
    /// The VM's name.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a str,
    /// The groups of who asks.
    pub groups: &'a [&'a str],
    /// The VM as it would be stored, after all features.
    pub object: &'a Value,
    /// The VM as it is stored, on UPDATE.
    pub old_object: Option<&'a Value>,
}

/// The answer of all policies.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyVerdict {
    /// Why the request is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<String>,
    /// Findings of policies that only audit, each under 256 characters.
    pub warnings: Vec<String>,
}

/// Evaluates all policies. Where none is in force, `availability` says what happens when no node can
/// ever take the VM.
pub fn evaluate(
    request: &PolicyRequest<'_>,
    facts: &PolicyFacts,
    nodes: Option<&[Node]>,
    availability: Availability,
) -> PolicyVerdict {
    let mut verdict = PolicyVerdict::default();
    let mut denials = Vec::new();
    let mut in_force = facts.policies.values().filter(|policy| is_for(policy, request.namespace)).peekable();
    let nowhere = nowhere(request, nodes);
    if in_force.peek().is_none() {
        match (availability, nowhere) {
            (Availability::Ignore, _) | (_, None) => {}
            (Availability::Deny, Some((text, true))) => denials.push(text),
            (_, Some((text, _))) => verdict.warnings.push(text),
        }
        return finished(verdict, &denials);
    }
    let uses = Uses::of(request.object, Some((facts, request.namespace)));
    let before = request.old_object.map(|old| Uses::of(old, Some((facts, request.namespace))));
    for policy in in_force {
        let mut found = findings(policy, request, &uses, before.as_ref(), facts);
        if policy.spec.availability != Availability::Ignore
            && let Some((text, is_new)) = &nowhere
        {
            found.push(Finding { rule: "availability", text: text.clone(), is_new: *is_new });
        }
        for finding in found {
            if let Some(exception) = excepted(facts, policy, request, finding.rule) {
                verdict
                    .warnings
                    .push(format!("policy `{}`: {} (excepted by `{exception}`)", policy.name, finding.text));
                continue;
            }
            let warns = policy.spec.mode == Mode::Audit
                || !finding.is_new
                || (finding.rule == "availability" && policy.spec.availability == Availability::Warn);
            let kind = if policy.namespace.is_some() { "policy" } else { "cluster policy" };
            let text = format!("{kind} `{}`: {}", policy.name, finding.text);
            if warns {
                verdict.warnings.push(text);
            } else {
                denials.push(text);
            }
        }
    }
    finished(verdict, &denials)
}

fn finished(mut verdict: PolicyVerdict, denials: &[String]) -> PolicyVerdict {
    verdict.warnings.truncate(MAX_WARNINGS);
    for warning in &mut verdict.warnings {
        *warning = clip(warning, MAX_WARNING);
    }
    verdict.denial = (!denials.is_empty()).then(|| denials.join("; "));
    verdict
}

/// What is said when no node can take the VM, and whether this request makes it so. An update that leaves
/// the template alone is not looked at.
fn nowhere(request: &PolicyRequest<'_>, nodes: Option<&[Node]>) -> Option<(String, bool)> {
    const TEMPLATE: [&str; 3] = ["spec", "template", "spec"];
    let is_same = |old: &Value| at(old, &TEMPLATE) == at(request.object, &TEMPLATE);
    if request.old_object.is_some_and(is_same) {
        return None;
    }
    let nodes = nodes?;
    let found = obstacles(request.object, nodes)?;
    let was_so = request.old_object.is_some_and(|old| obstacles(old, nodes).is_some());
    Some((sentence(&found), !was_so))
}

fn is_for(policy: &Policy, namespace: &str) -> bool {
    match &policy.namespace {
        Some(own) => own == namespace,
        None => policy.spec.namespaces.is_empty() || is_listed(namespace, &policy.spec.namespaces),
    }
}

/// Exact, or by a prefix that ends in `*`.
fn is_listed(text: &str, list: &[String]) -> bool {
    crate::image::is_allowed(text, list)
}

/// The exception by which a rule does not count for a VM.
fn excepted<'f>(
    facts: &'f PolicyFacts,
    policy: &Policy,
    request: &PolicyRequest<'_>,
    rule: &str,
) -> Option<&'f str> {
    let applies = |exception: &&Exception| {
        let spec = &exception.spec;
        exception.namespace == request.namespace
            && is_listed(&policy.name, &spec.policies)
            && is_listed(request.name, &spec.virtual_machines)
            && (spec.rules.is_empty() || spec.rules.iter().any(|listed| listed == rule))
    };
    facts.exceptions.values().find(applies).map(|exception| exception.name.as_str())
}
