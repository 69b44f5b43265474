//! Features by annotation: a VM and the facts of a cluster in, RFC 6902 operations out. No IO.
//!
//! ```text
//!  request ─► needs() ─► (caller reads) ─► needs() … until nothing new ─► admit() ─► Verdict
//! ```

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
extern crate self as features;
#[cfg(test)]
mod properties;

mod admission;
mod annotations;
mod availability;
mod compute;
mod config;
mod context;
mod cpu_pinning;
mod document;
mod dra_claims;
mod facts;
mod feature;
mod gpu_device_plugin;
mod hook_list;
mod host_device;
mod hugepages;
mod igd_opregion;
mod image;
mod instancetype;
mod json;
mod kvm_hidden;
pub mod launcher;
mod names;
mod nested_virt;
mod numa;
mod pci_passthrough;
pub mod policy;
mod preference;
mod qemu_arguments;
mod realtime;
mod record;
mod relevant;
mod scheduling;
mod sidecar;
mod site;
mod sriov;
mod terms;
mod text;
mod usb_passthrough;
mod user_data;
mod vbios_injection;
mod vfio_passthrough;
mod vgpu;
mod wishes;

pub use config::{
    Config, DeviceNames, ErrorMode, GpuDevicePlugin, GpuMode, HookPath, NestedVirtualization, PciPassthrough,
    QemuArguments, Source, Switch, VbiosInjection,
};
pub use facts::{ClusterFacts, Lookup, Lookups, Need, Node, PciDevice};

pub use availability::{Obstacle, obstacles};
use feature::Feature;
pub use relevant::Relevant;
use serde::Serialize;
use serde_json::Value;
use wishes::Wishes;

/// One CREATE or UPDATE of a `VirtualMachine`, as an API server shows it to a webhook.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The namespace of the request.
    pub namespace: &'a str,
    /// The object as it would be stored.
    pub object: &'a Value,
    /// The object as it is stored, on UPDATE.
    pub old_object: Option<&'a Value>,
}

/// What became of one feature in one request.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The feature's name, for example `nested-virt`.
    pub feature: &'static str,
    /// What was done.
    pub result: OutcomeResult,
    /// Why it failed, when it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The error mode that was in force.
    pub error_mode: ErrorMode,
}

/// What was done for a feature.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeResult {
    /// The spec was changed for it.
    Applied,
    /// It was asked for and everything was there already.
    Unchanged,
    /// It is no longer asked for; what had been added was taken away.
    Removed,
    /// It failed and the request is denied.
    Rejected,
    /// It failed and the request is allowed without it.
    Skipped,
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Why the request is denied; `None`: it is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<String>,
    /// What to change; empty when nothing changes.
    pub patch: json_patch::Patch,
    /// Warnings for the user, each under 256 characters.
    pub warnings: Vec<String>,
    /// One entry for each feature that was asked for or undone.
    pub outcomes: Vec<Outcome>,
}

/// The names of all features, in the order in which they are applied.
pub const FEATURES: [&str; Feature::ALL.len()] = {
    let mut names = [""; Feature::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = Feature::ALL[index].name();
        index += 1;
    }
    names
};

/// The annotation that chooses another hook image than the configured one.
pub const SIDECAR_IMAGE: &str = "vm-feature-manager.io/sidecar-image";

/// What has to be read before [`admit`] can decide: call it, read, call it again with the
/// answers, until it asks for nothing new (twice at the most: a Secret may ask for a ConfigMap).
pub fn needs(request: &Request<'_>, config: &Config, lookups: &Lookups) -> Vec<Need> {
    if admission::is_out_of_scope(request.object) {
        return Vec::new();
    }
    let mut needs: Vec<Need> = Vec::new();
    let mut ask = |need: Need| {
        if !lookups.contains_key(&need) && !needs.contains(&need) {
            needs.push(need);
        }
    };
    if config.user_data_secrets {
        user_data::secrets(request.object).for_each(|name| ask(Need::Secret(name.to_owned())));
    }
    let wishes = Wishes::collect(request.object, config, lookups);
    if config.sriov.enabled {
        let networks = wishes.get(Feature::Sriov).map(|wish| sriov::networks(&wish.value));
        networks.into_iter().flatten().for_each(|name| ask(Need::Network(name)));
    }
    if Feature::ALL.iter().any(|feature| feature.minds_instancetype() && wishes.get(*feature).is_some()) {
        instancetype::need(request.object).into_iter().for_each(&mut ask);
    }
    if Feature::ALL.iter().any(|feature| feature.minds_preference() && wishes.get(*feature).is_some()) {
        preference::need(request.object).into_iter().for_each(&mut ask);
    }
    if config.vbios_injection.enabled {
        let config_maps =
            wishes.get(Feature::VbiosInjection).map(|wish| vbios_injection::config_maps(&wish.value));
        config_maps.into_iter().flatten().for_each(|name| ask(Need::ConfigMap(name)));
    }
    needs
}

/// Decides one request.
pub fn admit(request: &Request<'_>, cluster: &ClusterFacts, lookups: &Lookups, config: &Config) -> Verdict {
    admission::admit(request, cluster, lookups, config, Feature::ALL)
}
