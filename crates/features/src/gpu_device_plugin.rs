//! `gpu-device-plugin`: GPUs by the resource name of a device plugin.
//!
//! The guest gets a GPU through `devices.gpus`. A resource limit makes only the pod take one
//! (virt-launcher builds host devices from `gpus` and `hostDevices` alone), which the mode
//! `limits` does for those who rely on it.

use serde_json::json;

use crate::config::GpuMode;
use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::names::{Permission, device_name, field, is_resource, permission};
use crate::site::Site;
use crate::text::candidates;

/// The most GPUs that one request may name.
const MAX_GPUS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "`{0}` is not a value of gpu-device-plugin: use a resource name such as nvidia.com/GA102GL_A10, or a JSON list of them"
    )]
    Value(String),
    #[error("`{0}` is asked for twice; name each GPU once")]
    Duplicate(String),
    #[error("more than {MAX_GPUS} GPUs are asked for; ask for fewer")]
    TooMany,
    #[error("`{name}` is not among the device plugins that the administrator allows: {allowed}")]
    NotAllowed { name: String, allowed: String },
    #[error(
        "`{name}` is not a permitted device of this cluster (permittedHostDevices of the KubeVirt CR); permitted: {permitted}"
    )]
    NotPermitted { name: String, permitted: String },
    #[error(
        "the KubeVirt CR is not known, so it cannot be told whether `{0}` is permitted; let the operator read it"
    )]
    KubeVirtUnknown(String),
    #[error("devices.gpus has an entry `{name}` for `{other}`; rename it")]
    NameTaken { name: String, other: String },
    #[error(
        "devices.gpus has GPUs by resource claim, and KubeVirt does not mix them with GPUs by device plugin; use one kind"
    )]
    ResourceClaims,
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Decides which GPUs to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let settings = &context.config.gpu_device_plugin;
    let wanted = parse(context)?;
    let mut plan = Plan::default();
    let mut names: Vec<String> = Vec::with_capacity(wanted.len());
    for name in wanted {
        if !is_allowed(&name, &settings.allowed_plugins) {
            return Err(Error::NotAllowed { name, allowed: candidates(&settings.allowed_plugins) });
        }
        let name = match settings.mode {
            GpuMode::Limits => name,
            GpuMode::Devices => permitted(context, name)?,
        };
        if names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            return Err(Error::Duplicate(name));
        }
        let addition = match settings.mode {
            GpuMode::Limits => limit(context, &name)?,
            GpuMode::Devices => device(context, &name)?,
        };
        plan.additions.extend(addition);
        names.push(name);
    }
    if settings.mode == GpuMode::Limits {
        plan.warnings.push("a resource limit gives the GPU to the pod, not to the guest".to_owned());
    }
    plan.applied = match &names[..] {
        [name] => name.clone(),
        names => json!(names).to_string(),
    };
    Ok(plan)
}

fn parse(context: &Context<'_>) -> Result<Vec<String>, Error> {
    let text = context.wish.value.trim();
    let invalid = || Error::Value(text.chars().take(64).collect());
    let names: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|_| invalid())?
    } else {
        vec![context.resource_name(text).into_owned()]
    };
    if names.is_empty() || !names.iter().all(|name| is_resource(name)) {
        return Err(invalid());
    }
    if names.len() > MAX_GPUS {
        return Err(Error::TooMany);
    }
    Ok(names)
}

fn is_allowed(name: &str, allowed: &[String]) -> bool {
    allowed.is_empty()
        || allowed.iter().any(|entry| {
            entry == name
                || entry
                    .strip_suffix('*')
                    .is_some_and(|prefix| prefix.ends_with('/') && name.starts_with(prefix))
        })
}

fn permitted(context: &Context<'_>, name: String) -> Result<String, Error> {
    match permission(context, &name, false) {
        Permission::Permitted(name) => Ok(name),
        Permission::Unknown => Err(Error::KubeVirtUnknown(name)),
        Permission::Refused => {
            let permitted = context.permitted().into_iter().flatten().map(|device| device.resource_name);
            Err(Error::NotPermitted { name, permitted: candidates(permitted) })
        }
    }
}

/// The entry for a GPU, unless the user wrote one.
fn device(context: &Context<'_>, resource: &str) -> Result<Option<Addition>, Error> {
    let name = device_name("gpu-", resource);
    for entry in context.written(Site::Gpus)? {
        if entry.get("claimName").is_some() {
            return Err(Error::ResourceClaims);
        }
        if field(entry, "deviceName") == resource {
            return Ok(None);
        }
        if field(entry, "name") == name {
            return Err(Error::NameTaken { name, other: field(entry, "deviceName").to_owned() });
        }
    }
    Ok(Some(Addition { site: Site::Gpus, value: json!({"name": name, "deviceName": resource}) }))
}

/// The limit for a GPU, unless the user wrote one.
fn limit(context: &Context<'_>, resource: &str) -> Result<Option<Addition>, Error> {
    let addition = Addition { site: Site::Limits, value: json!({resource: "1"}) };
    let is_there =
        context.document.mapping(Site::Limits)?.is_some_and(|limits| limits.contains_key(resource));
    Ok((!is_there || context.owned.contains(&addition)).then_some(addition))
}
