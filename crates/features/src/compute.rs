//! What CPU pinning, huge pages, NUMA and realtime have in common: the rules by which KubeVirt
//! judges CPUs and memory (`vmi-create-admitter.go`, v1.9, lines 694 to 1216), told before it does.

use apimachinery::quantity;
use serde_json::{Value, json};

use crate::context::Context;
use crate::document::{Addition, ShapeError};
use crate::facts::Node;
use crate::json::at;
use crate::site::Site;
use crate::text::candidates;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{0}` is not a value of this feature: use {1}")]
    Value(String, &'static str),
    #[error("the VM sets {field} to {written}, which contradicts the request; remove one of the two")]
    Contradiction { field: &'static str, written: String },
    #[error(
        "instancetype `{instancetype}` sets {field} already, and KubeVirt refuses a VM that sets it as well; remove the annotation or choose another instancetype"
    )]
    Instancetype { instancetype: String, field: &'static str },
    #[error(
        "KubeVirt wants memory to be given with pinned CPUs and huge pages; set spec.template.spec.domain.memory.guest"
    )]
    NoMemory,
    #[error("{field} is `{value}`, which is no amount; correct it")]
    Quantity { field: &'static str, value: String },
    #[error(
        "KubeVirt wants cores, or a CPU request or limit, to be given with pinned CPUs; set spec.template.spec.domain.cpu.cores"
    )]
    NoCpu,
    #[error(
        "KubeVirt wants whole CPUs with pinned CPUs, and resources.{field} is {value}; make it a whole number"
    )]
    Fraction { field: &'static str, value: String },
    #[error("KubeVirt wants equal requests and limits of {resource} with pinned CPUs: {request} and {limit}")]
    Unequal { resource: &'static str, request: String, limit: String },
    #[error(
        "the VM has {vcpus} vCPUs (cores × sockets × threads) and asks for {asked} CPUs; KubeVirt wants them equal with pinned CPUs"
    )]
    Inconsistent { vcpus: i64, asked: i64 },
    #[error(
        "{threads} threads per core are more than KubeVirt allows with pinned CPUs ({most} on {architecture})"
    )]
    Threads { threads: i64, most: i64, architecture: String },
    #[error("`{0}` is not a size of huge pages; use 2Mi or 1Gi, or what the nodes have")]
    Page(String),
    #[error("{memory} of memory are less than one huge page of {page}; ask for smaller pages or more memory")]
    LessThanPage { memory: String, page: String },
    #[error(
        "{memory} of memory are not a multiple of the huge page size {page}; change domain.memory.guest or the page size"
    )]
    NoMultiple { memory: String, page: String },
    #[error("no page size that the nodes offer fits {memory} of memory (offered: {offered}); name one")]
    NoPage { memory: String, offered: String },
    #[error(
        "{feature} needs {missing}; ask for that too (annotation vm-feature-manager.io/{annotation}){hint}"
    )]
    Missing { feature: &'static str, missing: &'static str, annotation: &'static str, hint: &'static str },
    #[error("no node that this VM can land on {what}; nodes it can land on: {nodes}{hint}")]
    NoNode { what: String, nodes: String, hint: &'static str },
    #[error("KubeVirt refuses it: feature gate {0} is off; add it to the KubeVirt CR")]
    GateOff(&'static str),
    #[error(
        "preference `{preference}` lays the instancetype's vCPUs out as {threads} threads per core, more than KubeVirt allows with pinned CPUs ({most} on {architecture}); choose another preference or remove the annotation"
    )]
    PreferenceThreads { preference: String, threads: i64, most: i64, architecture: String },
    #[error(
        "preference `{preference}` requires {wanted} vCPUs and the VM has {has} (in the dimension that it prefers), which KubeVirt refuses; give more or choose another preference"
    )]
    PreferenceCpus { preference: String, has: i64, wanted: i64 },
    #[error(
        "preference `{preference}` requires {wanted} of memory and the VM has {has}, which KubeVirt refuses; give more or choose another preference"
    )]
    PreferenceMemory { preference: String, has: String, wanted: String },
    #[error("`{0}` is not a list of vCPUs such as 0-3,^1 (KubeVirt `cpu.realtime.mask`)")]
    Mask(String),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// One setting to add: nothing when the user wrote it, an error when the user wrote another.
pub(crate) fn setting(
    context: &Context<'_>,
    site: Site,
    field: &'static str,
    key: &str,
    value: &Value,
) -> Result<Option<Addition>, Error> {
    match context.setting(site, key)? {
        Some(written) if written == value => Ok(None),
        Some(written) => Err(Error::Contradiction { field, written: written.to_string() }),
        None => Ok(Some(Addition { site, value: json!({key: value}) })),
    }
}

/// Fails when the instancetype sets the same.
pub(crate) fn not_by_instancetype(
    context: &Context<'_>,
    path: &[&str],
    field: &'static str,
) -> Result<(), Error> {
    match context.set_by_instancetype(path) {
        Some((name, _)) => Err(Error::Instancetype { instancetype: name.to_owned(), field }),
        None => Ok(()),
    }
}

/// The memory of the guest in bytes: its own, its instancetype's, or what is requested for it.
pub(crate) fn memory(context: &Context<'_>) -> Result<Option<i64>, Error> {
    if let Some((_, guest)) = context.set_by_instancetype(&["memory", "guest"]) {
        return amount("the memory of the instancetype", guest).map(Some);
    }
    for (field, path) in [
        ("domain.memory.guest", &["domain", "memory", "guest"][..]),
        ("resources.requests.memory", &["domain", "resources", "requests", "memory"]),
        ("resources.limits.memory", &["domain", "resources", "limits", "memory"]),
    ] {
        if let Some(value) = context.document.vm_spec(path) {
            return amount(field, value).map(Some);
        }
    }
    Ok(None)
}

fn amount(field: &'static str, value: &Value) -> Result<i64, Error> {
    quantity::units(value)
        .filter(|amount| *amount > 0)
        .ok_or_else(|| Error::Quantity { field, value: shown(value) })
}

/// The rules for dedicated CPUs.
pub(crate) fn check_dedicated(context: &Context<'_>) -> Result<(), Error> {
    if memory(context)?.is_none() && context.current(Site::Memory, "hugepages")?.is_none() {
        return Err(Error::NoMemory);
    }
    let resource = |side: &str, name: &str| context.document.vm_spec(&["domain", "resources", side, name]);
    for (name, label) in [("cpu", "CPU"), ("memory", "memory")] {
        let (request, limit) = (resource("requests", name), resource("limits", name));
        if let (Some(request), Some(limit)) = (request, limit)
            && quantity::milli(request) != quantity::milli(limit)
        {
            let (request, limit) = (shown(request), shown(limit));
            return Err(Error::Unequal { resource: label, request, limit });
        }
    }
    let mut asked = None;
    for (side, field) in [("requests", "requests.cpu"), ("limits", "limits.cpu")] {
        let Some(value) = resource(side, "cpu") else { continue };
        let milli = quantity::milli(value)
            .ok_or_else(|| Error::Quantity { field: "the amount of CPUs", value: shown(value) })?;
        if milli % 1000 != 0 {
            return Err(Error::Fraction { field, value: shown(value) });
        }
        asked = i64::try_from(milli / 1000).ok();
    }
    if context.set_by_instancetype(&["cpu", "guest"]).is_some() {
        return Ok(());
    }
    let count =
        |name: &str| at(context.document.base(), Site::Cpu.path()).and_then(|cpu| cpu.get(name)?.as_i64());
    let (cores, sockets, threads) = (count("cores"), count("sockets"), count("threads"));
    let vcpus = cores.unwrap_or(1) * sockets.unwrap_or(1) * threads.unwrap_or(1);
    match (cores.or(sockets), asked) {
        (None, None) => return Err(Error::NoCpu),
        (Some(_), Some(asked)) if asked != vcpus => return Err(Error::Inconsistent { vcpus, asked }),
        _ => {}
    }
    let architecture = context.architecture();
    let most = if architecture == "arm64" { 1 } else { 2 };
    match threads {
        Some(threads) if threads > most => {
            Err(Error::Threads { threads, most, architecture: architecture.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The rules for a size of huge pages.
pub(crate) fn check_page(context: &Context<'_>, page: &str) -> Result<(), Error> {
    let size = quantity::units(&Value::from(page)).filter(|size| *size > 0);
    let size = size.ok_or_else(|| Error::Page(page.chars().take(32).collect()))?;
    let memory = memory(context)?.ok_or(Error::NoMemory)?;
    let (shown, page) = (quantity::bytes(memory), page.to_owned());
    if memory < size {
        return Err(Error::LessThanPage { memory: shown, page });
    }
    if memory % size != 0 {
        return Err(Error::NoMultiple { memory: shown, page });
    }
    Ok(())
}

/// The largest page size that fits the memory and that a landable node offers enough of.
pub(crate) fn choose_page(context: &Context<'_>) -> Result<String, Error> {
    let memory = memory(context)?.ok_or(Error::NoMemory)?;
    let landable = context.landable()?.unwrap_or_default();
    let mut offered: Vec<&str> = Vec::new();
    for (size, bytes) in [("1Gi", 1_i64 << 30), ("2Mi", 2 << 20)] {
        let most = landable.iter().map(|node| pages(node, size)).max().unwrap_or_default();
        if most > 0 {
            offered.push(size);
        }
        if memory % bytes == 0 && most >= memory {
            return Ok(size.to_owned());
        }
    }
    Err(Error::NoPage { memory: quantity::bytes(memory), offered: candidates(offered) })
}

/// How many bytes of huge pages a node has for pods.
pub(crate) fn pages(node: &Node, size: &str) -> i64 {
    let amount = node.allocatable.get(&format!("hugepages-{size}"));
    amount.and_then(|amount| quantity::units(&Value::from(amount.as_str()))).unwrap_or_default()
}

/// Fails when nodes are known and none that the VM can land on will do.
pub(crate) fn some_node(
    context: &Context<'_>,
    what: impl FnOnce() -> String,
    hint: &'static str,
    will_do: impl Fn(&Node) -> bool,
) -> Result<(), Error> {
    let Some(landable) = context.landable()? else { return Ok(()) };
    if landable.is_empty() || landable.iter().any(|node| will_do(node)) {
        return Ok(());
    }
    let nodes = candidates(landable.iter().map(|node| &node.name));
    Err(Error::NoNode { what: what(), nodes, hint })
}

/// A JSON value as text, without the quotes of a string.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(64).collect()
}
