//! Host devices by resource name: what USB, VFIO and vGPU requests have in common.

use std::collections::BTreeMap;

use kubevirt::{PermittedKind, feature_gates};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::names::{device_name, field, is_alias, is_resource};
use crate::site::Site;
use crate::text::candidates;

/// The most devices of one request.
const MAX_DEVICES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "`{0}` is not a request for devices: use a resource name such as vendor.com/NAME, a JSON list of them, or {{\"resource\":…,\"name\":…}}"
    )]
    Value(String),
    #[error(
        "the request is not a list of devices ({0}); entries are resource names or {{\"resource\":…,\"name\":…}}"
    )]
    Json(#[from] serde_json::Error),
    #[error("the request names no device; remove it or name one")]
    Empty,
    #[error("more than {MAX_DEVICES} devices are asked for; ask for fewer")]
    TooMany,
    #[error("`{0}` is not a resource name such as vendor.com/NAME")]
    Resource(String),
    #[error("the device name `{0}` cannot be a libvirt alias; use letters, digits, `-` and `_`")]
    Alias(String),
    #[error("two devices would be named `{0}`; give them different names")]
    Twice(String),
    #[error("the VM has a device `{0}` already; give this one another name")]
    NameTaken(String),
    #[error("KubeVirt refuses host devices: feature gate HostDevices is off; add it to the KubeVirt CR")]
    GateOff,
    #[error(
        "`{name}` is not a permitted {what} of this cluster (permittedHostDevices.{list} of the KubeVirt CR); permitted: {permitted}"
    )]
    NotPermitted { name: String, what: &'static str, list: &'static str, permitted: String },
    #[error(
        "the KubeVirt CR is not known, so it cannot be told whether `{0}` is permitted; let the operator read it"
    )]
    KubeVirtUnknown(String),
    #[error(
        "instancetype `{instancetype}` gives {field} already, and KubeVirt refuses a VM that has its own as well; remove the annotation or choose another instancetype"
    )]
    Instancetype { instancetype: String, field: &'static str },
    #[error("several displays would use ramFB, and KubeVirt allows one; set \"ramFB\": false for the others")]
    RamFb,
    #[error(
        "devices.gpus has GPUs by resource claim, and KubeVirt does not mix them with GPUs by device plugin; use one kind"
    )]
    ResourceClaims,
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// One device that is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Asked {
    #[serde(alias = "resourceName", alias = "deviceName")]
    pub(crate) resource: String,
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// vGPUs: whether the guest sees a display.
    #[serde(default)]
    pub(crate) display: Option<bool>,
    /// vGPUs: whether the display works before the guest has a driver.
    #[serde(default, alias = "ramfb", rename = "ramFB")]
    pub(crate) ram_fb: Option<bool>,
}

/// Reads a request: a resource name, an object, or a list of both.
pub(crate) fn parse(context: &Context<'_>) -> Result<Vec<Asked>, Error> {
    let text = context.wish.value.trim();
    let named =
        |resource: &str| Asked { resource: resource.to_owned(), name: None, display: None, ram_fb: None };
    let items: Vec<Value> = match text.as_bytes().first() {
        Some(b'[') => serde_json::from_str(text)?,
        Some(b'{') => vec![serde_json::from_str(text)?],
        _ => {
            let resource = context.resource_name(text);
            if !is_resource(&resource) {
                return Err(Error::Value(text.chars().take(64).collect()));
            }
            return Ok(vec![named(&resource)]);
        }
    };
    match items.len() {
        0 => return Err(Error::Empty),
        1..=MAX_DEVICES => {}
        _ => return Err(Error::TooMany),
    }
    let mut asked = Vec::with_capacity(items.len());
    for item in items {
        let one = match item {
            Value::String(resource) => named(&resource),
            other => serde_json::from_value(other)?,
        };
        if !is_resource(&one.resource) {
            return Err(Error::Resource(one.resource.chars().take(64).collect()));
        }
        asked.push(one);
    }
    Ok(asked)
}

/// What a feature may give.
pub(crate) struct Kind {
    pub(crate) site: Site,
    /// Names of devices begin with it, so that features do not meet.
    pub(crate) prefix: &'static str,
    pub(crate) what: &'static str,
    pub(crate) list: &'static str,
    pub(crate) permitted: &'static [PermittedKind],
    /// The same in an instancetype.
    pub(crate) instancetype: &'static str,
}

/// Plans an entry for each device; `options` adds to an entry what only this feature has.
pub(crate) fn plan(
    context: &Context<'_>,
    kind: &Kind,
    options: impl Fn(&Asked, &mut Value),
) -> Result<Plan, Error> {
    let asked = parse(context)?;
    if kind.site == Site::HostDevices && context.gate(feature_gates::HOST_DEVICES) == Some(false) {
        return Err(Error::GateOff);
    }
    if let Some((name, given)) = context.set_by_instancetype(&[kind.instancetype])
        && given.as_array().is_some_and(|given| !given.is_empty())
    {
        return Err(Error::Instancetype { instancetype: name.to_owned(), field: kind.instancetype });
    }
    let mut plan = Plan::default();
    plan.warnings.extend(context.instancetype_warning());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut names: Vec<String> = Vec::with_capacity(asked.len());
    for one in &asked {
        let resource = permitted(context, kind, &one.resource)?;
        let count = counts.entry(resource.clone()).or_default();
        *count += 1;
        let name = match (&one.name, *count) {
            (Some(name), _) => name.clone(),
            (None, 1) => device_name(kind.prefix, &resource),
            (None, count) => device_name(kind.prefix, &format!("{resource}-{count}")),
        };
        if !is_alias(&name) {
            return Err(Error::Alias(name.chars().take(64).collect()));
        }
        if names.contains(&name) {
            return Err(Error::Twice(name));
        }
        let mut value = json!({"name": name, "deviceName": resource});
        options(one, &mut value);
        free(context, &name)?;
        plan.additions.push(Addition { site: kind.site, value });
        names.push(name);
    }
    plan.applied = json!(asked.iter().map(|one| &one.resource).collect::<Vec<_>>()).to_string();
    Ok(plan)
}

/// Whether no other device of the VM has a name: KubeVirt makes aliases of them.
pub(crate) fn free(context: &Context<'_>, name: &str) -> Result<(), Error> {
    for site in [Site::HostDevices, Site::Gpus] {
        let is_ours = |entry: &Value| context.owned.iter().any(|addition| addition.value == *entry);
        if context.document.list(site)?.iter().any(|entry| field(entry, "name") == name && !is_ours(entry)) {
            return Err(Error::NameTaken(name.to_owned()));
        }
    }
    Ok(())
}

/// The resource as it is permitted, exactly or else in any case.
fn permitted(context: &Context<'_>, kind: &Kind, name: &str) -> Result<String, Error> {
    let Some(all) = context.permitted() else { return Err(Error::KubeVirtUnknown(name.to_owned())) };
    let usable: Vec<&str> = all
        .filter(|device| kind.permitted.contains(&device.kind))
        .map(|device| device.resource_name)
        .collect();
    let exact = usable.iter().find(|known| **known == name);
    match exact.or_else(|| usable.iter().find(|known| known.eq_ignore_ascii_case(name))) {
        Some(known) => Ok((*known).to_owned()),
        None => Err(Error::NotPermitted {
            name: name.to_owned(),
            what: kind.what,
            list: kind.list,
            permitted: candidates(usable),
        }),
    }
}
