//! From what is asked for to a permitted resource: Harvester's inventory, then the
//! administrator's map, then the permitted devices themselves. KubeVirt selects devices by
//! vendor and product, never by address, so an address alone says nothing to it.

use kubevirt::PciAddress;

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
    let is_single = pool(context, &device.resource_name) <= 1;
    Ok(Device { name: device.name.clone(), resource, shown, inventory: Some(device), is_single })
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
        [] => Err(unresolved(context, address)),
        [(on, resource), rest @ ..]
            if on.is_none() || node.is_some() || rest.iter().all(|(_, other)| other == resource) =>
        {
            Ok(Device {
                name: format!("pci-{}", address.dashed()),
                resource: permitted(context, resource, true)?,
                shown: address.to_string(),
                inventory: None,
                is_single: false,
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
    })
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
    Error::NoAddress {
        address,
        devices: candidates(devices.chain(mapped)),
        permitted: permitted_names(context),
    }
}
