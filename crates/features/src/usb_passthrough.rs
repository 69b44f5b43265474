//! `usb-passthrough`: USB devices of the host by resource name (`permittedHostDevices.usb`). In the
//! domain they are `ua-usb-host-<name>`.

use kubevirt::PermittedKind;

use crate::context::{Context, Plan};
use crate::host_device::{self, Error, Kind};
use crate::site::Site;

/// Decides which devices to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let kind = Kind {
        site: Site::HostDevices,
        prefix: "usb-",
        what: "USB device",
        list: "usb",
        permitted: &[PermittedKind::Usb],
        instancetype: "hostDevices",
    };
    host_device::plan(context, &kind, |_, _| {})
}
