//! `dra-claims`: devices by claims of Kubernetes' dynamic resource allocation, instead of by the
//! resource name of a device plugin (gates `GPUsWithDRA` and `HostDevicesWithDRA`, Beta and on in v1.9).

use kubevirt::feature_gates::{GPUS_WITH_DRA, HOST_DEVICES_WITH_DRA};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::host_device::{self, free};
use crate::names::{field, is_alias};
use crate::site::Site;

/// The most claims of one request.
const MAX_CLAIMS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "the request is not a list of claims ({0}); write {{\"template\":\"<ResourceClaimTemplate>\",\"request\":\"<request>\",\"device\":\"gpu\"}} or {{\"claim\":\"<ResourceClaim>\",…}}"
    )]
    Json(#[from] serde_json::Error),
    #[error("between 1 and {MAX_CLAIMS} claims may be asked for")]
    Count,
    #[error("a claim is given by `claim` (an existing ResourceClaim) or by `template`; give one of the two")]
    Source,
    #[error("`{0}` is not a name; use lower case letters, digits and `-`")]
    Name(String),
    #[error("two claims would be named `{0}`; give them different names")]
    Twice(String),
    #[error("the VM has a claim `{0}` already; give this one another name")]
    Taken(String),
    #[error("KubeVirt refuses devices by claim: feature gate {0} is off; it is on from v1.9 unless disabled")]
    GateOff(&'static str),
    #[error(
        "devices.gpus has GPUs by device plugin, and KubeVirt does not mix them with GPUs by claim; use one kind"
    )]
    Mixed,
    #[error("instancetype `{0}` gives {1} already, and KubeVirt refuses a VM that has its own as well")]
    Instancetype(String, &'static str),
    #[error(transparent)]
    Device(#[from] host_device::Error),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// One claim that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Asked {
    #[serde(default)]
    claim: Option<String>,
    #[serde(default)]
    template: Option<String>,
    /// The request within the claim.
    request: String,
    #[serde(default)]
    device: Device,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Device {
    #[default]
    Gpu,
    Host,
}

/// Decides which claims and devices to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let asked: Vec<Asked> =
        if text.starts_with('[') { serde_json::from_str(text)? } else { vec![serde_json::from_str(text)?] };
    if !(1..=MAX_CLAIMS).contains(&asked.len()) {
        return Err(Error::Count);
    }
    let mut plan = Plan { applied: text.to_owned(), ..Plan::default() };
    plan.warnings.extend(context.instancetype_warning());
    let mut names: Vec<String> = Vec::new();
    for one in &asked {
        let (source, claim) = match (&one.claim, &one.template) {
            (Some(claim), None) => ("resourceClaimName", claim),
            (None, Some(template)) => ("resourceClaimTemplateName", template),
            _ => return Err(Error::Source),
        };
        for name in [claim, &one.request] {
            if !is_label(name) {
                return Err(Error::Name(name.chars().take(64).collect()));
            }
        }
        let (site, gate, list) = match one.device {
            Device::Gpu => (Site::Gpus, GPUS_WITH_DRA, "gpus"),
            Device::Host => (Site::HostDevices, HOST_DEVICES_WITH_DRA, "hostDevices"),
        };
        if context.gate(gate) == Some(false) {
            return Err(Error::GateOff(gate));
        }
        if let Some((name, given)) = context.set_by_instancetype(&[list])
            && given.as_array().is_some_and(|given| !given.is_empty())
        {
            return Err(Error::Instancetype(name.to_owned(), list));
        }
        let name = one.name.clone().unwrap_or_else(|| format!("{claim}-{}", one.request));
        if !is_alias(&name) || !is_label(&name) {
            return Err(Error::Name(name.chars().take(64).collect()));
        }
        if names.contains(&name) {
            return Err(Error::Twice(name));
        }
        free(context, &name)?;
        if context.written(Site::ResourceClaims)?.any(|entry| field(entry, "name") == name) {
            return Err(Error::Taken(name));
        }
        let value = json!({"name": name, source: claim});
        plan.additions.push(Addition { site: Site::ResourceClaims, value });
        let value = json!({"name": name, "claimName": name, "requestName": one.request});
        plan.additions.push(Addition { site, value });
        names.push(name);
    }
    let is_ours = |entry: &Value| context.owned.iter().any(|addition| addition.value == *entry);
    let by_plugin = |entry: &&Value| !is_ours(entry) && entry.get("deviceName").is_some();
    if asked.iter().any(|one| one.device == Device::Gpu)
        && context.document.list(Site::Gpus)?.iter().any(|entry| by_plugin(&entry))
    {
        return Err(Error::Mixed);
    }
    Ok(plan)
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}
