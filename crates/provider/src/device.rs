//! GPUs and other host devices of a VM. `KubeVirt` cannot plug them: they are not among what it takes
//! into a running guest (`pkg/virt-controller/watch/vm/vm.go`, v1.9), a change of them marks the VM
//! `RestartRequired`. So they are attached on the next start, and only when that was asked for.

use kubevirt::feature_gates;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::network::Effect;
use crate::patch::put;
use crate::view::{list, text};
use crate::{Error, Kind, identity};

/// Which list of the spec a device stands in.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// `spec.template.spec.domain.devices.gpus`
    #[default]
    Gpu,
    /// `spec.template.spec.domain.devices.hostDevices`
    HostDevice,
}

impl Sort {
    /// The gate without which `KubeVirt` refuses such devices, unless a `ResourceClaim` stands behind them.
    pub(crate) const fn gate(self) -> &'static str {
        match self {
            Self::Gpu => feature_gates::GPU,
            Self::HostDevice => feature_gates::HOST_DEVICES,
        }
    }

    const fn pointer(self) -> &'static str {
        match self {
            Self::Gpu => "/spec/template/spec/domain/devices/gpus",
            Self::HostDevice => "/spec/template/spec/domain/devices/hostDevices",
        }
    }
}

/// A change of a VM's host devices.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wish {
    /// Its name in the VM.
    pub name: String,
    /// The resource to attach, as in `nvidia.com/T4`; none detaches.
    #[serde(default)]
    pub device: Option<String>,
    /// GPU or other device.
    #[serde(default)]
    pub sort: Sort,
    /// The VM may run: it gets, or loses, the device when it is started the next time.
    #[serde(default)]
    pub on_next_start: bool,
}

/// What to write, and when it takes effect.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The JSON patch.
    pub patch: Vec<Value>,
    /// At the next start, or after a restart.
    pub effect: Effect,
}

/// Decides. `kubevirt` is the `KubeVirt` object, when the caller may read it.
pub fn plan(vm: &Value, vmi: Option<&Value>, kubevirt: Option<&Value>, wish: &Wish) -> Result<Change, Error> {
    let id = format!("{}/{}", text(vm, "/metadata/namespace"), text(vm, "/metadata/name"));
    let doing = match wish.device {
        Some(_) => format!("attaching device `{}` to VM `{id}`", wish.name),
        None => format!("detaching device `{}` from VM `{id}`", wish.name),
    };
    identity::label("device", &wish.name)?;
    let running = vmi.is_some_and(|vmi| !matches!(text(vmi, "/status/phase"), "Succeeded" | "Failed"));
    if running && !wish.on_next_start {
        let wrong = "the VM runs, and KubeVirt cannot plug host devices into a running guest";
        let remedy = "give `--on-next-start` to have it with the next start, or stop the VM first";
        return Err(Error::new(Kind::WrongState, doing, wrong, remedy));
    }
    let mut devices = list(vm, wish.sort.pointer()).to_vec();
    let at = devices.iter().position(|one| text(one, "/name") == wish.name);
    match (&wish.device, at) {
        (Some(_), Some(_)) => {
            let remedy = "choose another name, or detach that one first";
            return Err(Error::new(Kind::AlreadyExists, doing, "a device of this name is there", remedy));
        }
        (None, None) => {
            let names: Vec<&str> = devices.iter().map(|one| text(one, "/name")).collect();
            let wrong = match names.as_slice() {
                [] => "it has none".to_owned(),
                names => format!("it has no such device; it has {}", names.join(", ")),
            };
            let remedy = format!("look at the VM: `virt-steward vm describe {id}`");
            return Err(Error::new(Kind::NotFound, doing, wrong, remedy));
        }
        (None, Some(at)) => drop(devices.remove(at)),
        (Some(device), None) => {
            permitted(kubevirt, device, &doing)?;
            devices.push(json!({"name": wish.name, "deviceName": device}));
        }
    }
    let effect = if running { Effect::AfterRestart } else { Effect::NextStart };
    Ok(Change { patch: put(vm, wish.sort.pointer(), devices.into()), effect })
}

fn permitted(kubevirt: Option<&Value>, device: &str, doing: &str) -> Result<(), Error> {
    let Some(kubevirt) = kubevirt else { return Ok(()) };
    let devices = "/spec/configuration/permittedHostDevices";
    let known: Vec<&str> = ["pciHostDevices", "mediatedDevices", "usb"]
        .iter()
        .flat_map(|sort| list(kubevirt, &format!("{devices}/{sort}")))
        .map(|one| text(one, "/resourceName"))
        .collect();
    if known.contains(&device) {
        return Ok(());
    }
    let wrong = match known.as_slice() {
        [] => "KubeVirt permits no host device".to_owned(),
        known => format!("KubeVirt does not permit `{device}`; it permits {}", known.join(", ")),
    };
    let remedy = "see `virt-steward devices`, and have it permitted: `virt-steward devices permit`";
    Err(Error::new(Kind::MissingCapability, doing, wrong, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_attached_on_the_next_start_and_only_when_that_is_asked_for() {
        let vm = json!({"metadata": {"namespace": "a", "name": "ml", "resourceVersion": "3"},
            "spec": {"template": {"spec": {"domain": {"devices": {"gpus": [{"name": "old", "deviceName": "nvidia.com/T4"}]}}}}}});
        let vmi = json!({"status": {"phase": "Running"}});
        let kubevirt = json!({"spec": {"configuration": {"permittedHostDevices": {
            "pciHostDevices": [{"resourceName": "nvidia.com/T4"}]}}}});
        let wish = |name: &str, device: Option<&str>, next: bool| Wish {
            name: name.into(),
            device: device.map(str::to_owned),
            sort: Sort::Gpu,
            on_next_start: next,
        };
        let plan = |vmi: Option<&Value>, wish: Wish| plan(&vm, vmi, Some(&kubevirt), &wish);
        let error = plan(Some(&vmi), wish("new", Some("nvidia.com/T4"), false)).unwrap_err();
        assert!(error.remedy.contains("--on-next-start"), "{error:?}");
        let done = plan(Some(&vmi), wish("new", Some("nvidia.com/T4"), true)).unwrap();
        assert_eq!(done.effect, Effect::AfterRestart);
        assert_eq!(done.patch[1]["value"][1], json!({"name": "new", "deviceName": "nvidia.com/T4"}));
        assert_eq!(plan(None, wish("old", None, false)).unwrap().patch[1]["value"], json!([]));
        for (wish, kind) in [
            (wish("new", Some("nvidia.com/A100"), false), Kind::MissingCapability),
            (wish("old", Some("nvidia.com/T4"), false), Kind::AlreadyExists),
            (wish("no", None, false), Kind::NotFound),
        ] {
            assert_eq!(plan(None, wish).unwrap_err().kind, kind);
        }
    }
}
