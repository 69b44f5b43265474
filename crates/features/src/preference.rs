//! The preference of a VM. It says what a guest needs (`requirements`), and with an instancetype how vCPUs
//! are laid out; KubeVirt refuses a VM that does not meet it, or whose layout pinned CPUs do not allow
//! (`pkg/instancetype/preference`, v1.9).

use apimachinery::quantity;
use serde_json::Value;

use crate::compute::{Error, memory};
use crate::context::Context;
use crate::facts::{Lookup, Need};
use crate::json::at;

/// The object to read.
pub(crate) fn need(object: &Value) -> Option<Need> {
    let reference = at(object, &["spec", "preference"])?;
    let name = reference.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    match reference.get("kind").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase().as_str() {
        "virtualmachinepreference" | "virtualmachinepreferences" => Some(Need::Preference(name)),
        _ => Some(Need::ClusterPreference(name)),
    }
}

/// Its name and its spec; `Err`: why it is not known.
fn preference<'a>(context: &Context<'a>) -> Option<Result<(&'a str, &'a Value), String>> {
    let object = context.document.base();
    at(object, &["spec", "preference"])?;
    let Some(need) = need(object) else { return Some(Err("it is inferred from a volume".to_owned())) };
    Some(match context.lookups.get_key_value(&need) {
        Some((Need::Preference(name) | Need::ClusterPreference(name), Lookup::Found(found))) => {
            Ok((name, found.get("spec").unwrap_or(&Value::Null)))
        }
        Some((_, Lookup::NotFound)) => Err("it does not exist".to_owned()),
        Some((_, Lookup::Failed(reason))) => Err(reason.clone()),
        _ => Err("it was not read".to_owned()),
    })
}

/// Fails when the preference and the VM cannot be together; `is_pinned`: with pinned CPUs. A warning when
/// the preference is not known.
pub(crate) fn check(context: &Context<'_>, is_pinned: bool) -> Result<Option<String>, Error> {
    let (name, spec) = match preference(context) {
        None => return Ok(None),
        Some(Err(reason)) => {
            return Ok(Some(format!("the preference was not checked for conflicts: {reason}")));
        }
        Some(Ok(known)) => known,
    };
    let topology = Topology::of(spec);
    if is_pinned
        && let Some((_, vcpus)) = context.set_by_instancetype(&["cpu", "guest"])
        && let Some(vcpus) = vcpus.as_i64()
    {
        let architecture = context.architecture();
        let most = if architecture == "arm64" { 1 } else { 2 };
        let threads = topology.threads(vcpus);
        if threads > most {
            return Err(Error::PreferenceThreads {
                preference: name.to_owned(),
                threads,
                most,
                architecture: architecture.to_owned(),
            });
        }
    }
    if let Some(wanted) = at(spec, &["requirements", "cpu", "guest"]).and_then(Value::as_i64) {
        let has = vcpus(context, &topology);
        if has < wanted {
            return Err(Error::PreferenceCpus { preference: name.to_owned(), has, wanted });
        }
    }
    if let Some(wanted) = at(spec, &["requirements", "memory", "guest"]).and_then(quantity::units)
        && let Some(has) = memory(context)?
        && has < wanted
    {
        let [has, wanted] = [has, wanted].map(quantity::bytes);
        return Err(Error::PreferenceMemory { preference: name.to_owned(), has, wanted });
    }
    Ok(None)
}

/// How vCPUs are laid out.
enum Topology {
    Sockets,
    Cores,
    Threads,
    Any,
    /// Over `cores` and `threads` of a socket, so many of the latter.
    Spread {
        across: String,
        ratio: i64,
    },
}

impl Topology {
    fn of(spec: &Value) -> Self {
        let text = at(spec, &["cpu", "preferredCPUTopology"]).and_then(Value::as_str).unwrap_or_default();
        match text.strip_prefix("prefer").unwrap_or(text).to_ascii_lowercase().as_str() {
            "cores" => Self::Cores,
            "threads" => Self::Threads,
            "any" => Self::Any,
            "spread" => {
                let options = at(spec, &["cpu", "spreadOptions"]).unwrap_or(&Value::Null);
                let across = options.get("across").and_then(Value::as_str).unwrap_or("SocketsCores");
                let ratio =
                    options.get("ratio").and_then(Value::as_i64).filter(|ratio| *ratio > 0).unwrap_or(2);
                Self::Spread { across: across.to_owned(), ratio }
            }
            _ => Self::Sockets,
        }
    }

    /// Threads per core of so many vCPUs.
    fn threads(&self, vcpus: i64) -> i64 {
        match self {
            Self::Threads => vcpus,
            Self::Spread { across, ratio } if across == "CoresThreads" => *ratio,
            Self::Spread { across, .. } if across == "SocketsCoresThreads" => 2,
            _ => 1,
        }
    }
}

/// The vCPUs that count for a preference: its instancetype's, or the VM's in the dimension that is preferred.
fn vcpus(context: &Context<'_>, topology: &Topology) -> i64 {
    if let Some((_, vcpus)) = context.set_by_instancetype(&["cpu", "guest"]) {
        return vcpus.as_i64().unwrap_or_default();
    }
    let count = |name: &str| {
        let cpu = context.document.vm_spec(&["domain", "cpu"]);
        cpu.and_then(|cpu| cpu.get(name)?.as_i64()).unwrap_or(1).max(1)
    };
    match topology {
        Topology::Sockets => count("sockets"),
        Topology::Cores => count("cores"),
        Topology::Threads => count("threads"),
        Topology::Any | Topology::Spread { .. } => count("sockets") * count("cores") * count("threads"),
    }
}
