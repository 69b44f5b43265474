//! `sriov`: network interfaces that are virtual functions of the host's NICs. The device resource,
//! and the VLAN, are those of the Multus `NetworkAttachmentDefinition`; KubeVirt takes them from
//! there.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::compute::some_node;
use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::facts::{Lookup, Need};
use crate::json::at;
use crate::names::{device_name, field};
use crate::site::Site;
use crate::text::candidates;

/// The most interfaces of one request.
const MAX_INTERFACES: usize = 16;
/// Which resource a network hands out (`sriov-network-operator`, `multus`).
const RESOURCE: &str = "k8s.v1.cni.cncf.io/resourceName";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "the request is not a list of networks ({0}); write <network>, <namespace>/<network> or {{\"network\":…,\"mac\":…,\"name\":…,\"vlan\":…}}"
    )]
    Json(#[from] serde_json::Error),
    #[error("between 1 and {MAX_INTERFACES} networks may be asked for")]
    Count,
    #[error("`{0}` is not the name of a NetworkAttachmentDefinition: <name> or <namespace>/<name>")]
    Network(String),
    #[error("`{0}` is not a unicast MAC address such as 02:00:00:00:00:01")]
    Mac(String),
    #[error("MAC address {0} is used twice in the VM; give each interface its own")]
    MacTwice(String),
    #[error("the interface name `{0}` is not a name: use lower case letters, digits and `-`")]
    Name(String),
    #[error("the VM has a network or interface `{0}` already; give this one another name")]
    Taken(String),
    #[error(
        "interface `{0}` is SR-IOV and has a state, which KubeVirt refuses (link state is for bridge and masquerade); remove `state`"
    )]
    State(String),
    #[error("NetworkAttachmentDefinition `{network}` {what}")]
    Definition { network: String, what: String },
    #[error(
        "NetworkAttachmentDefinition `{network}` has VLAN {found} and the request asks for {asked}; the VLAN is set there, not on the VM"
    )]
    Vlan { network: String, found: String, asked: u16 },
    #[error(
        "no node that this VM can land on has resource {resource} of network `{network}`; nodes: {nodes}"
    )]
    NoNode { resource: String, network: String, nodes: String },
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// One interface that is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Asked {
    network: String,
    #[serde(default, alias = "macAddress")]
    mac: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    vlan: Option<u16>,
}

/// The networks that have to be read.
pub(crate) fn networks(text: &str) -> impl Iterator<Item = String> {
    parse(text).unwrap_or_default().into_iter().map(|asked| asked.network)
}

fn parse(text: &str) -> Result<Vec<Asked>, Error> {
    let text = text.trim();
    let named = |network: &str| Asked { network: network.to_owned(), mac: None, name: None, vlan: None };
    let items: Vec<Value> = match text.as_bytes().first() {
        Some(b'[') => serde_json::from_str(text)?,
        Some(b'{') => vec![serde_json::from_str(text)?],
        _ => vec![Value::from(text)],
    };
    if !(1..=MAX_INTERFACES).contains(&items.len()) {
        return Err(Error::Count);
    }
    let mut asked = Vec::with_capacity(items.len());
    for item in items {
        let one: Asked = match item {
            Value::String(network) => named(&network),
            other => serde_json::from_value(other)?,
        };
        if one.network.split('/').count() > 2 || !one.network.split('/').all(is_subdomain) {
            return Err(Error::Network(one.network.chars().take(64).collect()));
        }
        asked.push(one);
    }
    Ok(asked)
}

/// Decides which networks and interfaces to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let asked = parse(&context.wish.value)?;
    let mut plan = Plan { applied: context.wish.value.trim().to_owned(), ..Plan::default() };
    let written: Vec<(Site, &Value)> = [Site::Interfaces, Site::Networks]
        .into_iter()
        .map(|site| Ok(context.written(site)?.map(move |entry| (site, entry)).collect::<Vec<_>>()))
        .collect::<Result<Vec<_>, ShapeError>>()?
        .concat();
    // `pkg/network/admitter/admit.go`, v1.9; `absent` is how an interface is unplugged
    let has_state =
        |entry: &Value| entry.get("sriov").is_some() && matches!(field(entry, "state"), "up" | "down");
    if let Some((_, entry)) =
        written.iter().find(|(site, entry)| *site == Site::Interfaces && has_state(entry))
    {
        return Err(Error::State(field(entry, "name").to_owned()));
    }
    if written.is_empty()
        && context.document.vm_spec(&["domain", "devices", "autoattachPodInterface"])
            != Some(&Value::Bool(false))
    {
        keep_pod_network(context, &mut plan);
    }
    let mut names: Vec<String> = written.iter().map(|(_, entry)| field(entry, "name").to_owned()).collect();
    if !plan.additions.is_empty() {
        names.push(DEFAULT.to_owned());
    }
    let mut macs: Vec<String> = written
        .iter()
        .map(|(_, entry)| field(entry, "macAddress").to_ascii_lowercase())
        .filter(|mac| !mac.is_empty())
        .collect();
    for one in &asked {
        let name = match &one.name {
            Some(name) if !is_label(name) => return Err(Error::Name(name.chars().take(64).collect())),
            Some(name) => name.clone(),
            None => unused(&device_name("", &one.network), &names),
        };
        if names.contains(&name) {
            return Err(Error::Taken(name));
        }
        let mut interface = json!({"name": name, "sriov": {}});
        if let Some(mac) = &one.mac {
            let mac = mac_address(mac)?;
            if macs.contains(&mac) {
                return Err(Error::MacTwice(mac));
            }
            interface["macAddress"] = mac.as_str().into();
            macs.push(mac);
        }
        plan.warnings.push(definition(context, one)?);
        plan.additions.push(Addition { site: Site::Interfaces, value: interface });
        let network = json!({"name": name, "multus": {"networkName": one.network}});
        plan.additions.push(Addition { site: Site::Networks, value: network });
        names.push(name);
    }
    Ok(plan)
}

/// The name that KubeVirt gives the pod network.
const DEFAULT: &str = "default";

/// KubeVirt attaches the pod network to VMs that name no interface at all (`pkg/defaults`, v1.9). A
/// VM that gets its first interface from us must not lose it.
fn keep_pod_network(context: &Context<'_>, plan: &mut Plan) {
    let configured = context.kubevirt().and_then(|kubevirt| {
        at(kubevirt.0, &["spec", "configuration", "network", "defaultNetworkInterface"])?.as_str()
    });
    let binding = configured.filter(|binding| *binding == "masquerade").unwrap_or("bridge");
    let value = json!({"name": DEFAULT, binding: {}});
    plan.additions.push(Addition { site: Site::Interfaces, value });
    plan.additions.push(Addition { site: Site::Networks, value: json!({"name": DEFAULT, "pod": {}}) });
}

/// Checks the definition of a network; returns what it gives, for the user to see.
fn definition(context: &Context<'_>, asked: &Asked) -> Result<String, Error> {
    let network = &asked.network;
    let wrong = |what: &str| Error::Definition { network: network.clone(), what: what.to_owned() };
    let found = match context.lookups.get(&Need::Network(network.clone())) {
        Some(Lookup::Found(found)) => found,
        Some(Lookup::NotFound) => {
            return Err(wrong(&format!(
                "does not exist in namespace `{}`; create it or name another as <namespace>/<name>",
                network.split_once('/').map_or(context.namespace, |(namespace, _)| namespace)
            )));
        }
        Some(Lookup::Failed(reason)) => return Err(wrong(&format!("could not be read: {reason}"))),
        None => return Err(wrong("could not be read: nothing has asked for it")),
    };
    let Some(resource) = at(found, &["metadata", "annotations", RESOURCE]).and_then(Value::as_str) else {
        return Err(wrong(&format!(
            "hands out no device (annotation {RESOURCE}); it is not an SR-IOV network"
        )));
    };
    let config: Value = at(found, &["spec", "config"])
        .and_then(|config| serde_json::from_str(config.as_str()?).ok())
        .unwrap_or_default();
    let plugin = config.get("type").and_then(Value::as_str);
    let chained = || config.get("plugins")?.as_array()?.first()?.get("type")?.as_str();
    if let Some(plugin) = plugin.or_else(chained).filter(|plugin| !plugin.contains("sriov")) {
        return Err(wrong(&format!("is of type {plugin}, not sriov")));
    }
    let vlan = config.get("vlan").and_then(Value::as_u64).unwrap_or_default();
    if let Some(asked) = asked.vlan
        && u64::from(asked) != vlan
    {
        let found = if vlan == 0 { "none".to_owned() } else { vlan.to_string() };
        return Err(Error::Vlan { network: network.clone(), found, asked });
    }
    let has = |node: &crate::facts::Node| {
        node.allocatable.is_empty() || node.allocatable.get(resource).is_some_and(|amount| amount != "0")
    };
    if some_node(context, String::new, "", has).is_err() {
        let nodes = context.landable()?.unwrap_or_default();
        return Err(Error::NoNode {
            resource: resource.to_owned(),
            network: network.clone(),
            nodes: candidates(nodes.iter().map(|node| &node.name)),
        });
    }
    let vlan = if vlan == 0 { String::new() } else { format!(", VLAN {vlan}") };
    Ok(format!("network `{network}` gives a device of {resource}{vlan}"))
}

/// A name that is not taken: the wanted one, or with a number.
fn unused(wanted: &str, names: &[String]) -> String {
    let free = |name: &String| !names.contains(name);
    let numbered = (2..).map(|number| format!("{wanted}-{number}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(free).unwrap_or_default()
}

/// A MAC address in lower case with colons.
fn mac_address(text: &str) -> Result<String, Error> {
    let invalid = || Error::Mac(text.chars().take(64).collect());
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(is_byte) {
        return Err(invalid());
    }
    let first = parts.first().and_then(|part| u8::from_str_radix(part, 16).ok()).unwrap_or(1);
    if first & 1 == 1 {
        return Err(invalid());
    }
    Ok(parts.join(":").to_ascii_lowercase())
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.contains('.') && is_subdomain(name)
}

/// An RFC 1123 subdomain, as far as names of objects go.
fn is_subdomain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && name.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && name.ends_with(|letter: char| letter.is_ascii_alphanumeric())
}
