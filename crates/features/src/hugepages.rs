//! `hugepages`: the guest's memory in huge pages of the host (`memory.hugepages.pageSize`).

use apimachinery::quantity;
use serde_json::{Value, json};

use crate::compute::{
    Error, check_page, choose_page, memory, not_by_instancetype, pages, setting, some_node,
};
use crate::context::{Context, Plan};
use crate::document::Addition;
use crate::preference;
use crate::site::Site;
use crate::wishes::truth;

/// Decides on the size of pages: the one that is named, or the largest that fits.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let wanted = if truth(text) == Some(true) || text == "auto" { None } else { Some(text) };
    let (page, addition) = back(context, wanted)?;
    let mut plan = Plan { applied: page, ..Plan::default() };
    plan.additions.extend(addition);
    plan.warnings.extend(context.instancetype_warning());
    plan.warnings.extend(preference::check(context, false)?);
    Ok(plan)
}

/// The page size and the setting for it, after all rules.
pub(crate) fn back(context: &Context<'_>, wanted: Option<&str>) -> Result<(String, Option<Addition>), Error> {
    not_by_instancetype(context, &["memory", "hugepages"], "memory.hugepages")?;
    // a choice that was made stays, or every change of the nodes would change VMs
    let made = context.current(Site::Memory, "hugepages")?.and_then(|huge| huge.get("pageSize")?.as_str());
    let page = match (wanted, made) {
        (Some(page), _) => page.to_owned(),
        (None, Some(page)) if check_page(context, page).is_ok() => page.to_owned(),
        (None, _) => choose_page(context)?,
    };
    check_page(context, &page)?;
    let needed = memory(context)?.unwrap_or_default();
    // nodes without a word about this size may be ones that say nothing about their resources
    let is_known = |node: &crate::facts::Node| !node.allocatable.is_empty();
    if context.landable()?.is_some_and(|nodes| nodes.iter().any(|node| is_known(node))) {
        let what = || format!("has {} of huge pages of {page}", quantity::bytes(needed));
        let hint = "; reserve them on the host (hugepages= on the kernel's command line)";
        some_node(context, what, hint, |node| pages(node, &page) >= needed)?;
    }
    let value: Value = json!({"pageSize": page});
    let addition = setting(context, Site::Memory, "memory.hugepages", "hugepages", &value)?;
    Ok((page, addition))
}

/// Whether huge pages are used after the features before.
pub(crate) fn are_used(context: &Context<'_>) -> Result<bool, Error> {
    Ok(context.current(Site::Memory, "hugepages")?.is_some()
        || context.set_by_instancetype(&["memory", "hugepages"]).is_some())
}
