//! `igd-opregion`: an Intel GPU as the guest's own, with the host's `OpRegion` and at slot 2, where its
//! drivers look for it (kubevirt#11338). KubeVirt has no field for either, so our hook does it.

use hook::arguments::{Arguments, Device};

use crate::context::{Context, Plan};
use crate::document::Addition;
use crate::sidecar::{self, devices, entry, find, way};
use crate::wishes::truth;

/// Intel.
const VENDOR: u16 = 0x8086;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Sidecar(#[from] sidecar::Error),
    #[error("device `{device}` is of vendor {vendor:04x}, only Intel's GPUs (8086) have an OpRegion")]
    Vendor { device: String, vendor: u16 },
    #[error(
        "spec.template.spec.architecture is {0}; an OpRegion is something of amd64 hosts, remove the request"
    )]
    Architecture(String),
}

/// Decides which hook to add: for the device that is named, or the only one.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let wanted = Some(text).filter(|text| truth(text) != Some(true));
    if context.architecture() != "amd64" {
        return Err(Error::Architecture(context.architecture().to_owned()));
    }
    let mut plan = Plan { applied: text.to_owned(), ..Plan::default() };
    let all = devices(context).map_err(sidecar::Error::from)?;
    let device = find(context, &all, wanted, || "the name of the device is the value".to_owned())?;
    if let Some((vendor, _)) = device.pci_id.filter(|(vendor, _)| *vendor != VENDOR) {
        return Err(Error::Vendor { device: device.name.to_owned(), vendor });
    }
    let site = way(context, &mut plan)?;
    let arguments = Arguments { igd: Some(Device::Alias(device.alias()?)), ..Arguments::default() };
    let value = entry(context, site, &arguments, None)?;
    plan.additions.push(Addition { site, value });
    Ok(plan)
}
