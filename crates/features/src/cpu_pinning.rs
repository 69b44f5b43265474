//! `cpu-pinning`: CPUs of the host for this guest alone (`cpu.dedicatedCpuPlacement`), and one more
//! for QEMU's own work when asked for (`cpu.isolateEmulatorThread`).

use kubevirt::feature_gates;
use serde_json::{Value, json};

use crate::compute::{Error, check_dedicated, not_by_instancetype, setting, some_node};
use crate::context::{Context, Plan};
use crate::facts::Node;
use crate::preference;
use crate::site::Site;
use crate::wishes::truth;

const VALUES: &str = "`enabled`, `isolate-emulator-thread` or {\"isolateEmulatorThread\": true}";

/// What virt-handler labels nodes with that can pin CPUs; the first is of newer releases.
const LABELS: [&str; 2] = ["kubevirt.io/cpumanager", "cpumanager"];

/// Decides what pinning needs.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let isolate = parse(&context.wish.value)?;
    let mut plan = Plan { applied: "true".to_owned(), ..Plan::default() };
    plan.warnings.extend(context.instancetype_warning());
    plan.warnings.extend(preference::check(context, true)?);
    plan.additions.extend(pin(context)?);
    if isolate {
        not_by_instancetype(context, &["cpu", "isolateEmulatorThread"], "cpu.isolateEmulatorThread")?;
        let field = "cpu.isolateEmulatorThread";
        plan.additions.extend(setting(context, Site::Cpu, field, "isolateEmulatorThread", &json!(true))?);
        plan.applied = json!({"isolateEmulatorThread": true}).to_string();
    }
    Ok(plan)
}

/// The setting that pins CPUs, after all rules.
pub(crate) fn pin(context: &Context<'_>) -> Result<Option<crate::document::Addition>, Error> {
    not_by_instancetype(context, &["cpu", "dedicatedCPUPlacement"], "cpu.dedicatedCPUPlacement")?;
    check_dedicated(context)?;
    let hint = if context.gate(feature_gates::CPU_MANAGER) == Some(false) {
        "; feature gate CPUManager is off, so KubeVirt labels none"
    } else {
        "; start their kubelet with the static CPU manager policy"
    };
    let what = || format!("can pin CPUs (label {} or {})", LABELS[0], LABELS[1]);
    some_node(context, what, hint, can_pin)?;
    setting(context, Site::Cpu, "cpu.dedicatedCpuPlacement", "dedicatedCpuPlacement", &json!(true))
}

pub(crate) fn can_pin(node: &Node) -> bool {
    LABELS.iter().any(|label| node.labels.get(*label).is_some_and(|value| value == "true"))
}

/// Whether the emulator thread is to be isolated.
fn parse(text: &str) -> Result<bool, Error> {
    let text = text.trim();
    let invalid = || Error::Value(text.chars().take(64).collect(), VALUES);
    if truth(text) == Some(true) {
        return Ok(false);
    }
    if text == "isolate-emulator-thread" {
        return Ok(true);
    }
    let value: Value = serde_json::from_str(text).map_err(|_| invalid())?;
    match value.as_object().map(|members| (members.len(), members.get("isolateEmulatorThread"))) {
        Some((1, Some(Value::Bool(isolate)))) => Ok(*isolate),
        Some((0, _)) => Ok(false),
        _ => Err(invalid()),
    }
}

/// Whether CPUs are pinned after the features before.
pub(crate) fn is_pinned(context: &Context<'_>) -> Result<bool, Error> {
    let own = context.current(Site::Cpu, "dedicatedCpuPlacement")? == Some(&Value::Bool(true));
    let by_type = context.set_by_instancetype(&["cpu", "dedicatedCPUPlacement"]);
    Ok(own || by_type.is_some_and(|(_, value)| *value == true))
}
