//! `numa`: the guest sees the NUMA cells of the host that its pinned CPUs and huge pages come from
//! (`cpu.numa.guestMappingPassthrough`; the gate is GA since v1.4). It needs both; `auto` adds what
//! is missing.

use kubevirt::feature_gates;
use serde_json::json;

use crate::compute::{Error, not_by_instancetype, setting};
use crate::context::{Context, Plan};
use crate::cpu_pinning::{is_pinned, pin};
use crate::hugepages::{are_used, back};
use crate::preference;
use crate::site::Site;
use crate::wishes::truth;

const HINT: &str = ", or write `auto` to have what is missing added";

/// Decides what NUMA passthrough needs.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let is_auto = text == "auto";
    if !is_auto && truth(text) != Some(true) {
        return Err(Error::Value(text.chars().take(64).collect(), "`enabled` or `auto`"));
    }
    let mut plan = Plan { applied: if is_auto { "auto" } else { "true" }.to_owned(), ..Plan::default() };
    plan.warnings.extend(context.instancetype_warning());
    plan.warnings.extend(preference::check(context, true)?);
    // GA since v1.4; without a version nothing can be said about it
    let is_known = context.kubevirt().is_some_and(|kubevirt| kubevirt.version().is_some());
    if is_known && context.gate(feature_gates::NUMA) == Some(false) {
        return Err(Error::GateOff(feature_gates::NUMA));
    }
    // what `auto` added counts as missing, so that it is added again each time
    let ours = |site: Site, key: &str| {
        context.owned.iter().any(|addition| addition.site == site && addition.value.get(key).is_some())
    };
    let missing = |feature, missing, annotation| Error::Missing { feature, missing, annotation, hint: HINT };
    if !is_pinned(context)? || is_auto && ours(Site::Cpu, "dedicatedCpuPlacement") {
        if !is_auto {
            return Err(missing("NUMA passthrough", "pinned CPUs", "cpu-pinning"));
        }
        plan.additions.extend(pin(context)?);
    }
    if !are_used(context)? || is_auto && ours(Site::Memory, "hugepages") {
        if !is_auto {
            return Err(missing("NUMA passthrough", "huge pages", "hugepages"));
        }
        plan.additions.extend(back(context, None)?.1);
    }
    not_by_instancetype(context, &["cpu", "numa"], "cpu.numa")?;
    plan.additions.extend(setting(
        context,
        Site::Cpu,
        "cpu.numa",
        "numa",
        &json!({"guestMappingPassthrough": {}}),
    )?);
    Ok(plan)
}

/// Whether NUMA passthrough is on after the features before.
pub(crate) fn is_passed_through(context: &Context<'_>) -> Result<bool, Error> {
    let own = context.current(Site::Cpu, "numa")?;
    let by_type = context.set_by_instancetype(&["cpu", "numa", "guestMappingPassthrough"]);
    Ok(own.is_some_and(|numa| numa.get("guestMappingPassthrough").is_some()) || by_type.is_some())
}
