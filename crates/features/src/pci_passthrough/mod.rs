//! `pci-passthrough`: host devices by address, resource name or Harvester `PCIDevice`.

mod resolve;
mod wanted;

use kubevirt::{PciAddress, feature_gates};
use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::facts::PciDevice;
use crate::names::field;
use crate::site::Site;
use crate::text::candidates;
use crate::wishes::Origin;
use resolve::{Device, from_inventory, inventory, resolve};
pub(crate) use wanted::{ParseError, parse};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error(
        "KubeVirt refuses host devices: feature gate HostDevices is off; add it to spec.configuration.developerConfiguration.featureGates of the KubeVirt CR"
    )]
    GateOff,
    #[error("`{0}` is not a device name: use up to 63 letters, digits, `-` and `_`")]
    Name(String),
    #[error(
        "PCI address {address} cannot be resolved to a permitted device (KubeVirt selects devices by vendor and product, not by address); devices with a known address: {devices}; permitted resource names: {permitted}"
    )]
    NoAddress { address: PciAddress, devices: String, permitted: String },
    #[error(
        "PCI address {address} exists more than once: {devices}; name the node, as in {{\"address\":\"{address}\",\"node\":\"…\"}}, or the device"
    )]
    Ambiguous { address: PciAddress, devices: String },
    #[error(
        "PCI device {address} of node {node} is a {selector}, which permittedHostDevices of the KubeVirt CR does not permit (permitted: {permitted}); an administrator can permit it: virt-steward devices permit {address} --node {node}"
    )]
    SelectorNotPermitted { address: PciAddress, node: String, selector: String, permitted: String },
    #[error("no guest can have PCI device {address} of node {node}: {reason}")]
    NotFree { address: PciAddress, node: String, reason: String },
    #[error("there is no PCIDevice `{name}`; PCIDevices: {devices}; permitted resource names: {permitted}")]
    NoDevice { name: String, devices: String, permitted: String },
    #[error(
        "PCIDevice `{device}` ({address}) is not enabled for passthrough; enable it (create its PCIDeviceClaim) first"
    )]
    NotClaimed { device: String, address: String },
    #[error("PCIDevice `{0}` has no resource name yet; wait until its claim is bound")]
    NoResource(String),
    #[error(
        "`{resource}` is not permitted by permittedHostDevices of the KubeVirt CR; permitted: {permitted}"
    )]
    NotPermitted { resource: String, permitted: String },
    #[error(
        "the KubeVirt CR is not known, so it cannot be told whether `{0}` is permitted; let the operator read it"
    )]
    KubeVirtUnknown(String),
    #[error("`{0}` is asked for twice; name each device once, or give each a name of its own")]
    Duplicate(String),
    #[error(
        "`{shown}` is in devices.hostDevices or devices.gpus already, as `{name}`; remove one of the two"
    )]
    Written { shown: String, name: String },
    #[error("devices.hostDevices has an entry `{name}` for `{other}`; rename it or remove it")]
    NameTaken { name: String, other: String },
    #[error("the devices are on several nodes ({0}), and a VM runs on one; ask for devices of one node")]
    SeveralNodes(String),
    #[error(
        "{device} shares IOMMU group {group} with devices that are not enabled for passthrough: {mates}; enable them too"
    )]
    MatesNotClaimed { device: String, group: String, mates: String },
    #[error(
        "{wanted} devices are needed (with those of the same IOMMU groups), {max} are allowed; ask for fewer or raise maxDevices"
    )]
    TooMany { wanted: usize, max: usize },
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Decides which host devices to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let wanted = parse(&context.wish.value, context.wish.origin == Origin::Label)?;
    let mut plan = Plan::default();
    match context.gate(feature_gates::HOST_DEVICES) {
        Some(true) => {}
        Some(false) => return Err(Error::GateOff),
        None => plan
            .warnings
            .push("the KubeVirt CR is not known, so feature gate HostDevices was not checked".into()),
    }
    let max = context.config.pci_passthrough.max_devices;
    if wanted.len() > max {
        return Err(Error::TooMany { wanted: wanted.len(), max });
    }
    let mut devices: Vec<Device<'_>> = Vec::with_capacity(wanted.len());
    for wanted in &wanted {
        let device = resolve(context, wanted)?;
        if devices.iter().any(|known| is_same(known, &device)) {
            return Err(Error::Duplicate(device.shown));
        }
        devices.push(device);
    }
    plan.applied = devices.iter().map(|device| device.shown.as_str()).collect::<Value>().to_string();
    warn_of_pools(&devices, &mut plan.warnings);
    add_group_mates(context, &mut devices)?;
    if devices.len() > max {
        return Err(Error::TooMany { wanted: devices.len(), max });
    }
    check_node(&devices)?;
    for device in devices {
        if is_missing(context, &device)? {
            let value = json!({"name": device.name, "deviceName": device.resource});
            plan.additions.push(Addition { site: Site::HostDevices, value });
        }
    }
    Ok(plan)
}

fn is_same(one: &Device<'_>, other: &Device<'_>) -> bool {
    match (one.inventory, other.inventory) {
        (Some(one), Some(other)) => one.name == other.name,
        _ => {
            one.name.eq_ignore_ascii_case(&other.name)
                || (one.is_single && other.is_single && one.resource.eq_ignore_ascii_case(&other.resource))
        }
    }
}

/// KubeVirt hands out any device of a resource name.
fn warn_of_pools(devices: &[Device<'_>], warnings: &mut Vec<String>) {
    for device in devices.iter().filter(|device| device.pool > 1) {
        let remedy = if device.inventory.is_some() {
            "; set disableResourcePooling on its PCIDeviceClaim"
        } else {
            ""
        };
        warnings.push(format!(
            "{} is one of {} devices of {}, any of them may be given{remedy}",
            device.shown, device.pool, device.resource
        ));
    }
}

/// VFIO gives a guest whole IOMMU groups only.
fn add_group_mates<'a>(context: &Context<'a>, devices: &mut Vec<Device<'a>>) -> Result<(), Error> {
    let asked: Vec<_> = devices.iter().filter_map(|device| device.inventory).collect();
    for device in asked.iter().filter(|device| !device.iommu_group.is_empty()) {
        let is_mate = |other: &&PciDevice| {
            other.node_name == device.node_name && other.iommu_group == device.iommu_group
        };
        let mates = || inventory(context).iter().filter(is_mate);
        let unclaimed: Vec<_> =
            mates().filter(|mate| !mate.passthrough_enabled).map(|mate| &mate.name).collect();
        if !unclaimed.is_empty() {
            return Err(Error::MatesNotClaimed {
                device: device.name.clone(),
                group: device.iommu_group.clone(),
                mates: candidates(unclaimed),
            });
        }
        for mate in mates() {
            if !devices.iter().any(|known| known.inventory.is_some_and(|known| known.name == mate.name)) {
                devices.push(from_inventory(context, mate, mate.name.clone())?);
            }
        }
    }
    Ok(())
}

fn check_node(devices: &[Device<'_>]) -> Result<(), Error> {
    let mut nodes: Vec<_> = devices
        .iter()
        .filter_map(|device| device.inventory)
        .map(|device| device.node_name.as_str())
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.len() > 1 { Err(Error::SeveralNodes(candidates(nodes))) } else { Ok(()) }
}

/// Whether the user has not written the device already.
fn is_missing(context: &Context<'_>, device: &Device<'_>) -> Result<bool, Error> {
    let is_resource = |entry: &&Value| field(entry, "deviceName").eq_ignore_ascii_case(&device.resource);
    for entry in context.written(Site::HostDevices)? {
        if field(entry, "name") == device.name {
            if is_resource(&entry) {
                return Ok(false);
            }
            return Err(Error::NameTaken {
                name: device.name.clone(),
                other: field(entry, "deviceName").to_owned(),
            });
        }
    }
    let mut written = context.written(Site::HostDevices)?.chain(context.written(Site::Gpus)?);
    match written.find(|entry| device.is_single && is_resource(entry)) {
        Some(entry) => {
            Err(Error::Written { shown: device.shown.clone(), name: field(entry, "name").to_owned() })
        }
        None => Ok(true),
    }
}
