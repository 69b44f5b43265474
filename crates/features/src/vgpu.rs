//! `vgpu`: mediated GPUs, with a display if wanted. ramFB shows the guest before it has a driver;
//! KubeVirt allows it for one display (`vmi-create-admitter.go`, v1.9).

use kubevirt::PermittedKind;
use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::host_device::{self, Error, Kind};
use crate::json::at;
use crate::site::Site;

/// Decides which vGPUs to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let kind = Kind {
        site: Site::Gpus,
        prefix: "vgpu-",
        what: "mediated device",
        list: "mediatedDevices",
        permitted: &[PermittedKind::Mediated],
        instancetype: "gpus",
    };
    let plan = host_device::plan(context, &kind, |asked, entry| {
        let display = asked.display.or(asked.ram_fb.map(|_| true));
        if let Some(enabled) = display {
            entry["virtualGPUOptions"] = json!({"display": {"enabled": enabled,
                "ramFB": {"enabled": asked.ram_fb.unwrap_or(enabled)}}});
        }
    })?;
    let is_ours = |entry: &Value| context.owned.iter().any(|addition| addition.value == *entry);
    let others: Vec<&Value> =
        context.document.list(Site::Gpus)?.iter().filter(|entry| !is_ours(entry)).collect();
    if others.iter().any(|entry| entry.get("claimName").is_some()) {
        return Err(Error::ResourceClaims);
    }
    let planned = plan.additions.iter().map(|addition| &addition.value);
    if others.into_iter().chain(planned).filter(|entry| uses_ram_fb(entry)).count() > 1 {
        return Err(Error::RamFb);
    }
    Ok(plan)
}

/// A display that does not say no to ramFB uses it.
fn uses_ram_fb(entry: &Value) -> bool {
    let Some(display) = at(entry, &["virtualGPUOptions", "display"]) else { return false };
    display.get("enabled") != Some(&Value::Bool(false))
        && at(display, &["ramFB", "enabled"]) != Some(&Value::Bool(false))
}
