//! `vfio-passthrough`: any device that VFIO can give, by resource name: PCI devices and mediated
//! ones that are no GPUs (crypto and storage accelerators, s390x channels).

use kubevirt::PermittedKind;

use crate::context::{Context, Plan};
use crate::host_device::{self, Error, Kind};
use crate::site::Site;

/// Decides which devices to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let kind = Kind {
        site: Site::HostDevices,
        prefix: "vfio-",
        what: "PCI or mediated device",
        list: "pciHostDevices and mediatedDevices",
        permitted: &[PermittedKind::Pci, PermittedKind::Mediated],
        instancetype: "hostDevices",
    };
    host_device::plan(context, &kind, |_, _| {})
}
