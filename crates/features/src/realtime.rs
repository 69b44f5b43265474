//! `realtime`: vCPUs with a realtime scheduler (`cpu.realtime`), all or those of a mask. It needs
//! pinned CPUs and NUMA passthrough.

use serde_json::json;

use crate::compute::{Error, not_by_instancetype, setting, some_node};
use crate::context::{Context, Plan};
use crate::cpu_pinning::is_pinned;
use crate::numa::is_passed_through;
use crate::preference;
use crate::site::Site;
use crate::wishes::truth;

/// virt-handler labels nodes whose kernel lets it use realtime scheduling.
const LABEL: &str = "kubevirt.io/realtime";

/// Decides what realtime needs.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let value = if truth(text) == Some(true) {
        json!({})
    } else if is_mask(text) {
        json!({"mask": text})
    } else {
        return Err(Error::Mask(text.chars().take(64).collect()));
    };
    let missing = |missing, annotation| Error::Missing { feature: "realtime", missing, annotation, hint: "" };
    if !is_pinned(context)? {
        return Err(missing("pinned CPUs", "cpu-pinning"));
    }
    if !is_passed_through(context)? {
        return Err(missing("NUMA passthrough", "numa"));
    }
    not_by_instancetype(context, &["cpu", "realtime"], "cpu.realtime")?;
    let what = || format!("runs realtime guests (label {LABEL})");
    let hint = "; set kernel.sched_rt_runtime_us to -1 there";
    some_node(context, what, hint, |node| node.labels.contains_key(LABEL))?;
    let mut plan = Plan { applied: text.to_owned(), ..Plan::default() };
    plan.warnings.extend(context.instancetype_warning());
    plan.warnings.extend(preference::check(context, true)?);
    plan.additions.extend(setting(context, Site::Cpu, "cpu.realtime", "realtime", &value)?);
    Ok(plan)
}

/// `0-3,^1,5`: vCPUs, ranges of them, and exceptions.
fn is_mask(text: &str) -> bool {
    let number =
        |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    !text.is_empty()
        && text.len() <= 256
        && text.split(',').all(|part| match part.split_once('-') {
            Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
            None => number(part.strip_prefix('^').unwrap_or(part)).is_some(),
        })
}
