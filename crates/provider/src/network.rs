//! Network interfaces: what a change of them looks like, and when it takes effect.
//!
//! ```text
//!                        VM off        VM runs
//!  add, bridge, sriov    next start    after a migration; after a restart where it cannot migrate
//!  add, anything else    next start    after a restart
//!  remove, bridge, sriov next start    now (`state: absent`; the controller takes the entry away)
//!  remove, anything else next start    after a restart
//!  link up, down         next start    now
//! ```
//!
//! Only `bridge` and `sriov` on Multus networks can be plugged (`pkg/network/controllers/vm.go`,
//! `pkg/liveupdate/memory`, v1.9); `state` is that of `schema.go`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::patch::put;
use crate::view::{condition, list, text};
use crate::{Error, Kind, identity};

const INTERFACES: &str = "/spec/template/spec/domain/devices/interfaces";
const NETWORKS: &str = "/spec/template/spec/networks";

/// How an interface is bound to its network.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// A bridge in the pod.
    #[default]
    Bridge,
    /// A virtual function of a network card.
    Sriov,
    /// NAT, for the pod network.
    Masquerade,
}

impl Binding {
    const fn key(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Sriov => "sriov",
            Self::Masquerade => "masquerade",
        }
    }
}

/// An interface to add.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nic {
    /// Its name in the VM.
    pub name: String,
    /// The network attachment definition, as `name` or `namespace/name`; `pod` is the pod network.
    pub network: String,
    /// How it is bound.
    #[serde(default)]
    pub binding: Binding,
    /// Its hardware address; KubeVirt draws one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The device that the guest sees, as in `virtio` or `e1000e`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// A change of a VM's interfaces.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    /// One more.
    Add(Nic),
    /// One less.
    Remove {
        /// Which.
        name: String,
    },
    /// The cable in, or out.
    Link {
        /// Which.
        name: String,
        /// In.
        up: bool,
    },
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// When the VM is started.
    NextStart,
    /// While it runs, by itself.
    Now,
    /// When it has moved to another node.
    AfterMigration,
    /// When it has been restarted.
    AfterRestart,
}

impl Effect {
    /// In a sentence about the change.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NextStart => "takes effect at the next start",
            Self::Now => "takes effect now",
            Self::AfterMigration => "takes effect with a migration",
            Self::AfterRestart => "takes effect after a restart",
        }
    }
}

/// What to write, and what comes of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The JSON patch; nothing is to be done when it is empty.
    pub patch: Vec<Value>,
    /// When it takes effect.
    pub effect: Effect,
    /// Why then.
    pub why: String,
}

/// Decides. `default_binding` is what KubeVirt gives a VM that names no interface.
pub fn plan(vm: &Value, vmi: Option<&Value>, wish: &Wish, default_binding: &str) -> Result<Change, Error> {
    let id = format!("{}/{}", text(vm, "/metadata/namespace"), text(vm, "/metadata/name"));
    let doing = match wish {
        Wish::Add(nic) => format!("adding interface `{}` to VM `{id}`", nic.name),
        Wish::Remove { name } => format!("removing interface `{name}` from VM `{id}`"),
        Wish::Link { name, .. } => format!("setting the link of interface `{name}` of VM `{id}`"),
    };
    let running = vmi.filter(|vmi| !matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed"));
    match wish {
        Wish::Add(nic) => add(vm, running, nic, default_binding, &doing),
        Wish::Remove { name } => remove(vm, running, name, &doing),
        Wish::Link { name, up } => link(vm, running, name, *up, &doing),
    }
}

fn add(vm: &Value, vmi: Option<&Value>, nic: &Nic, default: &str, doing: &str) -> Result<Change, Error> {
    identity::label("interface", &nic.name)?;
    let wrong = |wrong: &str, remedy: &str| Err(Error::new(Kind::InvalidArgument, doing, wrong, remedy));
    if nic.mac.as_deref().is_some_and(|text| mac(text).is_none()) {
        let remedy = "write six bytes as in 02:00:00:12:34:56, the first of them even";
        return wrong("the hardware address is none of an interface", remedy);
    }
    let pod = nic.network == "pod";
    if pod && nic.binding == Binding::Sriov {
        return wrong("the pod network has no virtual functions", "choose `bridge` or `masquerade`");
    }
    if !pod && nic.binding == Binding::Masquerade {
        return wrong("`masquerade` is for the pod network alone", "choose `bridge` or `sriov`");
    }
    let (mut interfaces, mut networks) = (list(vm, INTERFACES).to_vec(), list(vm, NETWORKS).to_vec());
    // with nothing named KubeVirt gives the pod network, and with one named it does not any more
    let automatic =
        vm.pointer("/spec/template/spec/domain/devices/autoattachPodInterface") != Some(&Value::Bool(false));
    if interfaces.is_empty() && networks.is_empty() && automatic && !pod {
        interfaces.push(json!({"name": "default", default: {}}));
        networks.push(json!({"name": "default", "pod": {}}));
    }
    let named = |one: &Value| text(one, "/name") == nic.name;
    if interfaces.iter().chain(&networks).any(named) {
        let remedy = "choose another name, or remove that one first";
        return Err(Error::new(Kind::AlreadyExists, doing, "an interface of this name is there", remedy));
    }
    let mut interface = json!({"name": nic.name, nic.binding.key(): {}});
    if let Some(mac) = &nic.mac {
        interface["macAddress"] = mac.as_str().into();
    }
    if let Some(model) = &nic.model {
        interface["model"] = model.as_str().into();
    }
    interfaces.push(interface);
    networks.push(if pod {
        json!({"name": nic.name, "pod": {}})
    } else {
        json!({"name": nic.name, "multus": {"networkName": nic.network}})
    });
    let patch = [put(vm, INTERFACES, interfaces.into()), put(vm, NETWORKS, networks.into())].concat();
    let (effect, why) = match vmi {
        None => (Effect::NextStart, "the VM is off".into()),
        Some(_) if pod => (Effect::AfterRestart, "the pod network cannot be plugged".into()),
        Some(vmi) => match cannot_migrate(vmi) {
            None => (Effect::AfterMigration, "KubeVirt plugs it into the pod that the VM moves to".into()),
            Some(why) => (Effect::AfterRestart, format!("it would need a migration, and {why}")),
        },
    };
    Ok(Change { patch, effect, why })
}

/// Why a running VM cannot move.
fn cannot_migrate(vmi: &Value) -> Option<String> {
    let known = list(vmi, "/status/conditions").iter().find(|one| text(one, "/type") == "LiveMigratable");
    match known {
        Some(condition) if text(condition, "/status") == "True" => None,
        Some(condition) => Some(condition::blocker(text(condition, "/reason")).into()),
        None => Some("KubeVirt does not say yet whether it can migrate".into()),
    }
}

fn position(vm: &Value, name: &str, doing: &str) -> Result<(usize, Value), Error> {
    let found = list(vm, INTERFACES).iter().enumerate().find(|(_, one)| text(one, "/name") == name);
    found.map(|(at, one)| (at, one.clone())).ok_or_else(|| {
        let names: Vec<&str> = list(vm, INTERFACES).iter().map(|one| text(one, "/name")).collect();
        let (wrong, remedy) = match names.as_slice() {
            [] => ("its spec names no interface".to_owned(), "there is nothing to change: add one first"),
            names => (format!("it has no such interface; it has {}", names.join(", ")), "name one of these"),
        };
        Error::new(Kind::NotFound, doing, wrong, remedy)
    })
}

/// `bridge` or `sriov`, on a Multus network.
fn is_pluggable(vm: &Value, interface: &Value) -> bool {
    let name = text(interface, "/name");
    let multus = list(vm, NETWORKS)
        .iter()
        .any(|one| text(one, "/name") == name && !text(one, "/multus/networkName").is_empty());
    multus && (interface.get("bridge").is_some() || interface.get("sriov").is_some())
}

fn remove(vm: &Value, vmi: Option<&Value>, name: &str, doing: &str) -> Result<Change, Error> {
    let (at, interface) = position(vm, name, doing)?;
    let mut interfaces = list(vm, INTERFACES).to_vec();
    if vmi.is_some() && is_pluggable(vm, &interface) {
        if text(&interface, "/state") == "absent" {
            let why = "it is on its way out already".into();
            return Ok(Change { patch: Vec::new(), effect: Effect::Now, why });
        }
        if let Some(one) = interfaces.get_mut(at) {
            one["state"] = "absent".into();
        }
        let patch = put(vm, INTERFACES, interfaces.into());
        return Ok(Change { patch, effect: Effect::Now, why: "KubeVirt unplugs it from the guest".into() });
    }
    interfaces.remove(at);
    let networks: Vec<Value> =
        list(vm, NETWORKS).iter().filter(|one| text(one, "/name") != name).cloned().collect();
    let patch = [put(vm, INTERFACES, interfaces.into()), put(vm, NETWORKS, networks.into())].concat();
    let (effect, why) = match vmi {
        None => (Effect::NextStart, "the VM is off"),
        Some(_) => {
            (Effect::AfterRestart, "only bridge and sriov interfaces of Multus networks are unplugged")
        }
    };
    Ok(Change { patch, effect, why: why.into() })
}

fn link(vm: &Value, vmi: Option<&Value>, name: &str, up: bool, doing: &str) -> Result<Change, Error> {
    let (at, interface) = position(vm, name, doing)?;
    let state = text(&interface, "/state");
    if state == "absent" {
        let remedy = "add it again once it is gone";
        return Err(Error::new(Kind::WrongState, doing, "the interface is on its way out", remedy));
    }
    let (effect, why) = match vmi {
        None => (Effect::NextStart, "the VM is off"),
        Some(_) => (Effect::Now, "KubeVirt sets it in the running guest"),
    };
    let wanted = if up { "up" } else { "down" };
    if state == wanted || (up && state.is_empty()) {
        return Ok(Change { patch: Vec::new(), effect, why: format!("the link is {wanted} already") });
    }
    let mut interfaces = list(vm, INTERFACES).to_vec();
    if let Some(one) = interfaces.get_mut(at) {
        one["state"] = wanted.into();
    }
    Ok(Change { patch: put(vm, INTERFACES, interfaces.into()), effect, why: why.into() })
}

/// Whether the guest has what was wished; `None` while it does not.
pub fn is_done(vmi: Option<&Value>, wish: &Wish) -> bool {
    let Some(vmi) = vmi else { return true };
    let find = |name: &str| list(vmi, "/status/interfaces").iter().find(|one| text(one, "/name") == name);
    match wish {
        // `infoSource` says `domain` once the guest has the device (schema.go, v1.9)
        Wish::Add(nic) => find(&nic.name).is_some_and(|one| text(one, "/infoSource").contains("domain")),
        Wish::Remove { name } => find(name).is_none_or(|one| !text(one, "/infoSource").contains("domain")),
        Wish::Link { name, up } => {
            find(name).is_some_and(|one| text(one, "/linkState") == if *up { "up" } else { "down" })
        }
    }
}

/// Six bytes, with colons or hyphens between them. Group addresses are none: libvirt starts no VM with one.
pub(crate) fn mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    <[u8; 6]>::try_from(bytes?).ok().filter(|address| address[0] % 2 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Value {
        json!({"metadata": {"namespace": "a", "name": "web", "resourceVersion": "1"}, "spec": {"template": {"spec": {
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}},
                {"name": "lan", "bridge": {}, "state": "up"}, {"name": "vf", "sriov": {}}]}},
            "networks": [{"name": "default", "pod": {}}, {"name": "lan", "multus": {"networkName": "vlan7"}},
                {"name": "vf", "multus": {"networkName": "vf"}}]}}}})
    }

    fn vmi(migratable: &str) -> Value {
        json!({"status": {"phase": "Running", "conditions": [
            {"type": "LiveMigratable", "status": migratable, "reason": "HostDeviceNotLiveMigratable"}]}})
    }

    fn nic(name: &str, network: &str, binding: Binding) -> Wish {
        Wish::Add(Nic { name: name.into(), network: network.into(), binding, mac: None, model: None })
    }

    #[test]
    fn when_a_change_takes_effect_depends_on_the_binding_and_on_migration() {
        let (can, cannot) = (vmi("True"), vmi("False"));
        let remove = |name: &str| Wish::Remove { name: name.into() };
        let link = |name: &str, up| Wish::Link { name: name.into(), up };
        for (wish, off, moves, stuck) in [
            (nic("x", "v", Binding::Bridge), Effect::NextStart, Effect::AfterMigration, Effect::AfterRestart),
            (nic("x", "v", Binding::Sriov), Effect::NextStart, Effect::AfterMigration, Effect::AfterRestart),
            (nic("x", "pod", Binding::Bridge), Effect::NextStart, Effect::AfterRestart, Effect::AfterRestart),
            (remove("lan"), Effect::NextStart, Effect::Now, Effect::Now),
            (remove("vf"), Effect::NextStart, Effect::Now, Effect::Now),
            (remove("default"), Effect::NextStart, Effect::AfterRestart, Effect::AfterRestart),
            (link("lan", false), Effect::NextStart, Effect::Now, Effect::Now),
            (link("default", false), Effect::NextStart, Effect::Now, Effect::Now),
        ] {
            for (vmi, effect) in [(None, off), (Some(&can), moves), (Some(&cannot), stuck)] {
                let change = plan(&vm(), vmi, &wish, "masquerade").unwrap();
                assert_eq!(change.effect, effect, "{wish:?}");
                assert!(!change.patch.is_empty() && !change.why.is_empty());
            }
        }
        assert!(plan(&vm(), Some(&can), &link("lan", true), "masquerade").unwrap().patch.is_empty());
    }

    #[test]
    fn a_vm_that_names_no_interface_keeps_the_one_that_it_had() {
        let bare =
            json!({"metadata": {"resourceVersion": "1"}, "spec": {"template": {"spec": {"domain": {}}}}});
        let change = plan(&bare, None, &nic("lan", "vlan7", Binding::Bridge), "bridge").unwrap();
        assert_eq!(
            change.patch[1],
            json!({"op": "add", "path": "/spec/template/spec/domain/devices", "value": {"interfaces": [
                {"name": "default", "bridge": {}}, {"name": "lan", "bridge": {}}]}})
        );
        let none = json!({"spec": {"template": {"spec": {"domain": {"devices": {"autoattachPodInterface": false}}}}}});
        let change = plan(&none, None, &nic("lan", "vlan7", Binding::Bridge), "bridge").unwrap();
        assert_eq!(change.patch[1]["value"], json!([{"name": "lan", "bridge": {}}]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let with_mac = |mac: &str| match nic("x", "v", Binding::Bridge) {
            Wish::Add(nic) => Wish::Add(Nic { mac: Some(mac.into()), ..nic }),
            other => other,
        };
        for (wish, kind) in [
            (nic("lan", "v", Binding::Bridge), Kind::AlreadyExists),
            (nic("Lan", "v", Binding::Bridge), Kind::InvalidArgument),
            (nic("x", "pod", Binding::Sriov), Kind::InvalidArgument),
            (nic("x", "v", Binding::Masquerade), Kind::InvalidArgument),
            (with_mac("02:00"), Kind::InvalidArgument),
            (with_mac("01:00:5e:00:00:01"), Kind::InvalidArgument),
            (Wish::Remove { name: "no".into() }, Kind::NotFound),
            (Wish::Link { name: "no".into(), up: false }, Kind::NotFound),
        ] {
            let error = plan(&vm(), None, &wish, "masquerade").unwrap_err();
            assert_eq!(error.kind, kind, "{wish:?}: {error}");
            assert!(!error.remedy.is_empty());
        }
        assert!(plan(&vm(), None, &with_mac("02:00:00:12:34:56"), "masquerade").is_ok());
    }

    #[test]
    fn the_status_of_the_guest_says_when_it_is_done() {
        let status = |source: &str, link: &str| json!({"status": {"interfaces": [{"name": "x", "infoSource": source, "linkState": link}]}});
        let add = nic("x", "v", Binding::Bridge);
        assert!(!is_done(Some(&status("multus-status", "up")), &add));
        assert!(is_done(Some(&status("domain, multus-status", "up")), &add));
        assert!(!is_done(Some(&status("domain", "up")), &Wish::Remove { name: "x".into() }));
        assert!(is_done(Some(&json!({})), &Wish::Remove { name: "x".into() }));
        assert!(is_done(Some(&status("domain", "down")), &Wish::Link { name: "x".into(), up: false }));
        assert!(is_done(None, &add), "what is off has nothing to wait for");
    }
}
