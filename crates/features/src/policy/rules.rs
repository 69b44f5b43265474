//! The rules of one policy.

use serde_json::Value;

use super::{Counted, Given, Policy, PolicyFacts, PolicyRequest, Usage, is_listed};
use crate::facts::Need;
use crate::feature::Feature;
use crate::hook_list;
use crate::json::at;
use crate::launcher;
use crate::names::field;
use crate::record::{MANAGED, Record};
use crate::site::HOOK_SIDECARS;
use crate::text::candidates;

/// Something that a policy does not allow.
pub(super) struct Finding {
    /// The rule, as exceptions name it.
    pub(super) rule: &'static str,
    /// What and what instead.
    pub(super) text: String,
    /// This request brings it about; what was so before is a warning.
    pub(super) is_new: bool,
}

impl Finding {
    fn new(rule: &'static str, text: String) -> Self {
        Self { rule, text, is_new: true }
    }
}

/// What of a VM policies are about.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Uses {
    /// Resource names of all devices, or the claim of those that have none.
    pub(super) devices: Vec<String>,
    /// How many of them are GPUs.
    pub(super) gpus: usize,
    /// Images of hook sidecars.
    pub(super) images: Vec<String>,
    /// Features that are asked for by annotation or label, or that were given for cloud-init's sake.
    pub(super) features: Vec<&'static str>,
}

impl Uses {
    /// What a VM uses; with facts and its namespace, also what its instancetype gives.
    pub(super) fn of(machine: &Value, types: Option<(&PolicyFacts, &str)>) -> Self {
        let spec = at(machine, &["spec", "template", "spec"]).unwrap_or(&Value::Null);
        let list = |name: &str| {
            at(spec, &["domain", "devices", name]).and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
        };
        let gpus = list("gpus");
        let shown = |entry: &Value| match field(entry, "deviceName") {
            "" => format!("claim/{}", field(entry, "claimName")),
            resource => resource.to_owned(),
        };
        let hooks = [HOOK_SIDECARS, launcher::HOOKS].into_iter().flat_map(|key| {
            let text = at(machine, &["spec", "template", "metadata", "annotations", key]);
            text.and_then(|text| hook_list::entries(text.as_str()?).ok()).unwrap_or_default()
        });
        // an entry without an image runs the one that is set
        let images = hooks.map(|hook| field(&hook, "image").to_owned()).filter(|image| !image.is_empty());
        let given =
            types.and_then(|(facts, namespace)| facts.instancetypes.get(&instancetype(machine, namespace)?));
        let keys = |section: &str| {
            at(machine, &["metadata", section]).and_then(Value::as_object).into_iter().flatten()
        };
        let is_asked = |feature: &Feature| {
            keys("annotations").chain(keys("labels")).any(|(key, value)| {
                feature.requests().contains(&key.as_str())
                    && value.as_str().is_some_and(|text| crate::wishes::truth(text) != Some(false))
            })
        };
        let record = at(machine, &["metadata", "annotations", MANAGED]).and_then(Value::as_str);
        let record = record.and_then(|text| Record::parse(text).ok()).unwrap_or_default();
        let is_used = |feature: &Feature| is_asked(feature) || !record.additions(*feature).is_empty();
        let own = list("hostDevices").iter().chain(gpus).map(shown);
        Self {
            devices: own.chain(given.into_iter().flat_map(|given| given.devices.clone())).collect(),
            gpus: gpus.len() + given.map_or(0, |given| given.gpus),
            images: images.collect(),
            features: Feature::ALL.into_iter().filter(is_used).map(Feature::name).collect(),
        }
    }
}

/// The key of a VM's instancetype.
pub(super) fn instancetype(machine: &Value, namespace: &str) -> Option<String> {
    match crate::instancetype::need(machine)? {
        Need::Instancetype(name) => Some(format!("{namespace}/{name}")),
        Need::ClusterInstancetype(name) => Some(name),
        _ => None,
    }
}

/// The devices that an instancetype gives.
pub(super) fn given(spec: &Value) -> Given {
    let list = |name: &str| at(spec, &[name]).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let gpus = list("gpus");
    let names = list("hostDevices").iter().chain(gpus).map(|entry| field(entry, "deviceName").to_owned());
    Given { devices: names.collect(), gpus: gpus.len() }
}

/// The resource names of a VM's devices.
pub(crate) fn resources(spec: &Value) -> impl Iterator<Item = &str> {
    ["hostDevices", "gpus"]
        .into_iter()
        .filter_map(|name| at(spec, &["domain", "devices", name])?.as_array())
        .flatten()
        .map(|entry| field(entry, "deviceName"))
        .filter(|name| !name.is_empty())
}

/// What a policy finds in a request. What the VM had before is not found again.
pub(super) fn findings(
    policy: &Policy,
    request: &PolicyRequest<'_>,
    uses: &Uses,
    before: Option<&Uses>,
    facts: &PolicyFacts,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let spec = &policy.spec;
    let is_new_feature = |name: &&str| before.is_none_or(|before| !before.features.contains(name));
    for feature in uses.features.iter().filter(|name| is_new_feature(name)) {
        let rules =
            spec.features.iter().filter(|rule| rule.names.iter().any(|name| name == feature || name == "*"));
        let mut rules = rules.peekable();
        let may = |rule: &super::FeatureRule| {
            rule.users.iter().any(|user| user == request.user)
                || rule.groups.iter().any(|group| request.groups.contains(&group.as_str()))
        };
        if rules.peek().is_some() && !rules.any(may) {
            let text = format!("`{}` may not use {feature}", request.user);
            findings.push(Finding::new("features", text));
        }
    }
    if let Some(allowed) = &spec.devices {
        for device in new(&uses.devices, before.map(|before| &before.devices)) {
            if !is_listed(device, &allowed.allow) {
                let text =
                    format!("device `{device}` is not allowed; allowed: {}", candidates(&allowed.allow));
                findings.push(Finding::new("devices", text));
            }
        }
    }
    if let Some(allowed) = &spec.images {
        for image in new(&uses.images, before.map(|before| &before.images)) {
            if !is_listed(image, &allowed.allow) {
                let text = format!(
                    "image `{image}` of a hook sidecar is not allowed; allowed: {}",
                    candidates(&allowed.allow)
                );
                findings.push(Finding::new("images", text));
            }
        }
    }
    findings.extend(limits(policy, request, uses, before, facts));
    findings
}

/// The entries that were not there before.
fn new<'u>(uses: &'u [String], before: Option<&'u Vec<String>>) -> impl Iterator<Item = &'u String> {
    uses.iter().filter(move |one| before.is_none_or(|before| !before.contains(one)))
}

fn limits<'a>(
    policy: &'a Policy,
    request: &'a PolicyRequest<'_>,
    uses: &'a Uses,
    before: Option<&'a Uses>,
    facts: &'a PolicyFacts,
) -> impl Iterator<Item = Finding> + use<'a> {
    let limits = &policy.spec.limits;
    let own = Usage { devices: uses.devices.len(), gpus: uses.gpus };
    let old =
        before.map_or(Usage::default(), |before| Usage { devices: before.devices.len(), gpus: before.gpus });
    let others = facts.usage.get(request.namespace).into_iter().flatten();
    let others = others
        .filter(|(name, _)| *name != request.name)
        .map(|(_, counted): (_, &Counted)| facts.total(counted));
    let others = others.fold(Usage::default(), |sum, one| Usage {
        devices: sum.devices + one.devices,
        gpus: sum.gpus + one.gpus,
    });
    [
        (limits.devices_per_vm, own.devices, old.devices, 0, "devices", "of a VM"),
        (limits.gpus_per_vm, own.gpus, old.gpus, 0, "GPUs", "of a VM"),
        (
            limits.devices_per_namespace,
            own.devices,
            old.devices,
            others.devices,
            "devices",
            "of the namespace",
        ),
        (limits.gpus_per_namespace, own.gpus, old.gpus, others.gpus, "GPUs", "of the namespace"),
    ]
    .into_iter()
    .filter_map(move |(limit, own, old, others, what, whose)| {
        let limit = limit?;
        let total = own + others;
        // a VM that takes no more than it had is not held up by a limit that came later
        (total > limit && own > old).then(|| {
            let rest = if others > 0 { format!(" ({others} are other VMs')") } else { String::new() };
            Finding::new("limits", format!("{total} {what} {whose}{rest}, at most {limit} are allowed"))
        })
    })
}
