//! From what is asked for to a permitted resource: Harvester's inventory, then the
//! administrator's map, then what node agents found, then the permitted devices themselves.
//! KubeVirt selects devices by vendor and product, never by address, so an address alone says
//! nothing to it.

use kubevirt::PciAddress;
use kubevirt::inventory::{Host, PciFunction};

use super::Error;
use super::wanted::{Wanted, What};
use crate::config::DeviceNames;
use crate::context::Context;
use crate::facts::PciDevice;
use crate::names::{Permission, device_name, is_alias, permission};
use crate::text::candidates;

/// A device as it goes into the VM.
#[derive(Clone, Debug)]
pub(crate) struct Device<'a> {
    /// The name of the entry.
    pub(crate) name: String,
    /// The `deviceName` of the entry.
    pub(crate) resource: String,
    /// The same, as it was asked for, in its usual spelling.
    pub(crate) shown: String,
    /// The device in Harvester's inventory.
    pub(crate) inventory: Option<&'a PciDevice>,
    /// No other device can be meant by the resource name, or none is known to.
    pub(crate) is_single: bool,
    /// How many devices are known to have the resource name; 0: nothing is known.
    pub(crate) pool: usize,
}

/// Finds the device that is meant.
pub(crate) fn resolve<'a>(context: &Context<'a>, wanted: &Wanted) -> Result<Device<'a>, Error> {
    let mut device = match &wanted.what {
        What::Address(address) => by_address(context, *address, wanted.node.as_deref())?,
        What::Resource(name) => by_resource(context, name)?,
        What::Device(name) => by_name(context, name)?,
    };
    if let Some(name) = &wanted.name {
        if !is_alias(name) {
            return Err(Error::Name(name.chars().take(64).collect()));
        }
        name.clone_into(&mut device.name);
        // a name of its own says that another device of the kind is meant
        device.is_single &= device.inventory.is_some() || !matches!(wanted.what, What::Resource(_));
    }
    Ok(device)
}

/// A device of Harvester's inventory, which must be claimed and permitted.
pub(crate) fn from_inventory<'a>(
    context: &Context<'a>,
    device: &'a PciDevice,
    shown: String,
) -> Result<Device<'a>, Error> {
    if !device.passthrough_enabled {
        return Err(Error::NotClaimed { device: device.name.clone(), address: device.address.clone() });
    }
    if device.resource_name.is_empty() {
        return Err(Error::NoResource(device.name.clone()));
    }
    let resource = permitted(context, &device.resource_name, true)?;
    let pool = pool(context, &device.resource_name);
    Ok(Device {
        name: device.name.clone(),
        resource,
        shown,
        inventory: Some(device),
        is_single: pool <= 1,
        pool,
    })
}

/// How many devices of the inventory have the resource name.
pub(crate) fn pool(context: &Context<'_>, resource: &str) -> usize {
    inventory(context).iter().filter(|device| device.resource_name == resource).count()
}

pub(crate) fn inventory<'a>(context: &Context<'a>) -> &'a [PciDevice] {
    context.cluster.pci_devices.as_deref().unwrap_or_default()
}

fn by_address<'a>(
    context: &Context<'a>,
    address: PciAddress,
    node: Option<&str>,
) -> Result<Device<'a>, Error> {
    if context.config.pci_passthrough.device_names == DeviceNames::Raw {
        return Ok(Device {
            name: format!("pci-{}", address.dashed()),
            resource: address.nodedev_name(),
            shown: address.to_string(),
            inventory: None,
            is_single: true,
            pool: 0,
        });
    }
    let landable = context.landable()?;
    let is_possible = |name: &str| match node {
        Some(node) => node == name,
        None => landable.as_ref().is_none_or(|nodes| nodes.iter().any(|node| node.name == name)),
    };
    let found: Vec<_> = inventory(context)
        .iter()
        .filter(|device| device.address.parse() == Ok(address) && is_possible(&device.node_name))
        .collect();
    match &found[..] {
        [device] => return from_inventory(context, device, address.to_string()),
        [] => {}
        several => {
            let devices = several.iter().map(|device| format!("{} on {}", device.name, device.node_name));
            return Err(Error::Ambiguous { address, devices: candidates(devices) });
        }
    }
    let mut mapped: Vec<(Option<&str>, &str)> = context
        .config
        .pci_passthrough
        .address_map
        .iter()
        .filter_map(|(key, resource)| {
            let (on, key) = key.split_once('/').map_or((None, key.as_str()), |(on, key)| (Some(on), key));
            (key.parse() == Ok(address) && on.is_none_or(is_possible)).then_some((on, resource.as_str()))
        })
        .collect();
    // an entry for the named node is more exact than one for all nodes, and otherwise the other
    // way round
    mapped.sort_by_key(|(on, _)| on.is_some() != node.is_some());
    match &mapped[..] {
        [] => by_host(context, address, is_possible),
        [(on, resource), rest @ ..]
            if on.is_none() || node.is_some() || rest.iter().all(|(_, other)| other == resource) =>
        {
            Ok(Device {
                name: format!("pci-{}", address.dashed()),
                resource: permitted(context, resource, true)?,
                shown: address.to_string(),
                inventory: None,
                is_single: false,
                pool: 0,
            })
        }
        several => {
            let devices =
                several.iter().map(|(on, resource)| format!("{resource} on {}", on.unwrap_or("any node")));
            Err(Error::Ambiguous { address, devices: candidates(devices) })
        }
    }
}

fn by_resource<'a>(context: &Context<'a>, name: &str) -> Result<Device<'a>, Error> {
    let resource = permitted(context, name, false)?;
    Ok(Device {
        name: device_name("", &resource),
        shown: resource.clone(),
        is_single: pool(context, &resource) <= 1,
        resource,
        inventory: None,
        pool: 0,
    })
}

/// A device that node agents found. Its resource is the permitted one of its vendor and product; it must
/// be VFIO's, and so must the others of its IOMMU group, or no guest can have it.
fn by_host<'a>(
    context: &Context<'a>,
    address: PciAddress,
    is_possible: impl Fn(&str) -> bool,
) -> Result<Device<'a>, Error> {
    let hosts = context.cluster.hosts.as_deref().unwrap_or_default();
    let at_address = |host: &'a Host| {
        host.pci_devices
            .iter()
            .find(|device| device.address.parse() == Ok(address))
            .map(|device| (host, device))
    };
    let found: Vec<(&Host, &PciFunction)> =
        hosts.iter().filter(|host| is_possible(&host.node)).filter_map(at_address).collect();
    let Some((_, first)) = found.first() else { return Err(unresolved(context, address)) };
    if found.iter().any(|(_, other)| other.selector() != first.selector()) {
        let devices = found.iter().map(|(host, device)| format!("{} on {}", device.selector(), host.node));
        return Err(Error::Ambiguous { address, devices: candidates(devices) });
    }
    let selector = first.selector();
    let mut permitted = context.permitted().into_iter().flatten();
    let permitted =
        permitted.find(|known| known.selector.is_some_and(|one| one.eq_ignore_ascii_case(&selector)));
    let node = found[0].0.node.clone();
    let Some(permitted) = permitted else {
        return Err(Error::SelectorNotPermitted {
            address,
            node,
            selector,
            permitted: permitted_names(context),
        });
    };
    // one of them is enough: KubeVirt finds the node that has it
    let mut obstacles = found.iter().map(|(host, device)| obstacle(host, device));
    if let Some(reason) = obstacles.clone().next().flatten().filter(|_| obstacles.all(|one| one.is_some())) {
        return Err(Error::NotFree { address, node, reason });
    }
    let all = hosts.iter().flat_map(|host| &host.pci_devices);
    let pool = all.filter(|device| device.selector() == selector).count();
    Ok(Device {
        name: format!("pci-{}", address.dashed()),
        resource: permitted.resource_name.to_owned(),
        shown: address.to_string(),
        inventory: None,
        is_single: pool <= 1,
        pool,
    })
}

/// Why a guest cannot have a device of a host.
fn obstacle(host: &Host, device: &PciFunction) -> Option<String> {
    if device.iommu_group.is_empty() {
        return Some("it has no IOMMU group; switch the IOMMU on in firmware and kernel".to_owned());
    }
    if !device.is_free() {
        return Some(format!("its driver is {}; bind it to vfio-pci", device.driver));
    }
    let mut held = host.mates(device).filter(|mate| !mate.is_free()).peekable();
    held.peek()?;
    let mates = candidates(held.map(|mate| format!("{} ({})", mate.address, mate.driver)));
    Some(format!(
        "others of its IOMMU group {} are in use: {mates}; bind them to vfio-pci too",
        device.iommu_group
    ))
}

fn by_name<'a>(context: &Context<'a>, name: &str) -> Result<Device<'a>, Error> {
    let found = inventory(context).iter().find(|device| device.name == name);
    let Some(device) = found else {
        let known = inventory(context).iter().map(|device| &device.name);
        return Err(Error::NoDevice {
            name: name.to_owned(),
            devices: candidates(known),
            permitted: permitted_names(context),
        });
    };
    from_inventory(context, device, name.to_owned())
}

fn permitted(context: &Context<'_>, resource: &str, is_vouched_for: bool) -> Result<String, Error> {
    match permission(context, resource, true) {
        Permission::Permitted(name) => Ok(name),
        Permission::Unknown if is_vouched_for => Ok(resource.to_owned()),
        Permission::Unknown => Err(Error::KubeVirtUnknown(resource.to_owned())),
        Permission::Refused => {
            Err(Error::NotPermitted { resource: resource.to_owned(), permitted: permitted_names(context) })
        }
    }
}

fn permitted_names(context: &Context<'_>) -> String {
    candidates(context.permitted().into_iter().flatten().map(|device| device.resource_name))
}

fn unresolved(context: &Context<'_>, address: PciAddress) -> Error {
    let devices = inventory(context).iter().map(|device| format!("{} ({})", device.address, device.name));
    let mapped = &context.config.pci_passthrough.address_map;
    let mapped = mapped.iter().map(|(address, resource)| format!("{address} ({resource})"));
    let hosts = context.cluster.hosts.iter().flatten();
    let found = hosts.flat_map(|host| {
        host.pci_devices
            .iter()
            .filter(|device| device.driver == kubevirt::inventory::VFIO)
            .map(|device| &device.address)
    });
    Error::NoAddress {
        address,
        devices: candidates(devices.chain(mapped).chain(found.cloned())),
        permitted: permitted_names(context),
    }
}
