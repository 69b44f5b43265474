//! `kvm-hidden`: the guest does not find KVM's signature (`features.kvm.hidden`), for drivers that
//! refuse to work in a VM. KubeVirt has a field for it, so no hook is needed.

use serde_json::json;

use crate::compute::{Error, setting};
use crate::context::{Context, Plan};
use crate::site::Site;
use crate::wishes::truth;

/// Decides what is missing.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    if truth(text) != Some(true) {
        return Err(Error::Value(text.chars().take(64).collect(), "`enabled`"));
    }
    let mut plan = Plan { applied: "true".to_owned(), ..Plan::default() };
    plan.additions.extend(setting(context, Site::Kvm, "features.kvm.hidden", "hidden", &json!(true))?);
    Ok(plan)
}
