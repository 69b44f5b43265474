use serde_json::Value;

/// A read-only view of a KubeVirt CR (`kubevirt.io/v1`, kind `KubeVirt`).
#[derive(Clone, Copy, Debug)]
pub struct KubeVirtView<'a>(pub &'a Value);

/// A KubeVirt release, without the patch level.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// 1 in `v1.6.2`.
    pub major: u32,
    /// 6 in `v1.6.2`.
    pub minor: u32,
}

impl Version {
    /// A version from its two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Reads `v1.6.2`, `1.6.2-rc.0` or `v1.6`; development builds have no such version.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split(['.', '-', '+']);
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

/// The list of `permittedHostDevices` that an entry stands in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PermittedKind {
    /// `pciHostDevices`
    Pci,
    /// `mediatedDevices`
    Mediated,
    /// `usb`
    Usb,
}

/// One device that VMs may ask for by resource name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PermittedDevice<'a> {
    /// What a VM writes as `deviceName`.
    pub resource_name: &'a str,
    /// The list that it stands in.
    pub kind: PermittedKind,
    /// Of a PCI device `VENDOR:PRODUCT`, as it is written.
    pub selector: Option<&'a str>,
}

impl PermittedDevice<'_> {
    /// Vendor and product of a PCI device.
    pub fn pci_id(&self) -> Option<(u16, u16)> {
        let (vendor, product) = self.selector?.split_once(':')?;
        Some((u16::from_str_radix(vendor, 16).ok()?, u16::from_str_radix(product, 16).ok()?))
    }
}

impl<'a> KubeVirtView<'a> {
    /// The release that runs: `status.observedKubeVirtVersion`.
    pub fn version(self) -> Option<Version> {
        Version::parse(self.0.get("status")?.get("observedKubeVirtVersion")?.as_str()?)
    }

    /// The architecture of VMs that name none: `status.defaultArchitecture`, which
    /// virt-operator copies from `spec.configuration.architectureConfiguration`.
    pub fn default_architecture(self) -> Option<&'a str> {
        let status = self.0.get("status").and_then(|status| status.get("defaultArchitecture"));
        let configured =
            || self.configuration()?.get("architectureConfiguration")?.get("defaultArchitecture");
        status.or_else(configured)?.as_str().filter(|name| !name.is_empty())
    }

    /// `spec.configuration.developerConfiguration.featureGates` names the gate.
    pub fn lists_gate(self, gate: &str) -> bool {
        self.gate_list("featureGates", gate)
    }

    /// `spec.configuration.developerConfiguration.disabledFeatureGates` (v1.8) names the gate.
    pub fn disables_gate(self, gate: &str) -> bool {
        self.gate_list("disabledFeatureGates", gate)
    }

    /// The permitted devices, or nothing when `permittedHostDevices` is unset. KubeVirt checks
    /// `deviceName` against them as late as when it renders the launcher pod, and not at all
    /// when the list is unset (`pkg/virt-controller/services/renderresources.go`, v1.9).
    pub fn permitted_devices(self) -> impl Iterator<Item = PermittedDevice<'a>> {
        let permitted =
            self.configuration().and_then(|configuration| configuration.get("permittedHostDevices"));
        [
            ("pciHostDevices", PermittedKind::Pci),
            ("mediatedDevices", PermittedKind::Mediated),
            ("usb", PermittedKind::Usb),
        ]
        .into_iter()
        .filter_map(move |(list, kind)| Some((permitted?.get(list)?.as_array()?, kind)))
        .flat_map(|(list, kind)| {
            list.iter().filter_map(move |device| {
                let text = |field: &str| device.get(field)?.as_str();
                let selector = text("pciVendorSelector").filter(|_| kind == PermittedKind::Pci);
                Some(PermittedDevice { resource_name: text("resourceName")?, kind, selector })
            })
        })
    }

    fn configuration(self) -> Option<&'a Value> {
        self.0.get("spec")?.get("configuration")
    }

    fn gate_list(self, list: &str, gate: &str) -> bool {
        self.configuration()
            .and_then(|configuration| configuration.get("developerConfiguration")?.get(list)?.as_array())
            .is_some_and(|gates| gates.iter().any(|name| name == gate))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_read_as_kubevirt_writes_them() {
        for (text, expected) in [
            ("v1.6.2", Some(Version::new(1, 6))),
            ("1.10.0-rc.0", Some(Version::new(1, 10))),
            ("v1.9", Some(Version::new(1, 9))),
            ("devel", None),
            ("", None),
            ("v1", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
        assert!(Version::new(1, 10) > Version::new(1, 9));
    }

    #[test]
    fn permitted_devices_come_from_all_three_lists() {
        let cr = json!({"spec": {"configuration": {"permittedHostDevices": {
            "pciHostDevices": [{"pciVendorSelector": "10de:2236", "resourceName": "nvidia.com/GA102GL_A10"}],
            "mediatedDevices": [{"mdevNameSelector": "GRID", "resourceName": "nvidia.com/GRID"}],
            "usb": [{"resourceName": "kubevirt.io/stick"}, {"selectors": []}],
        }}}});
        let devices: Vec<_> =
            KubeVirtView(&cr).permitted_devices().map(|device| (device.resource_name, device.kind)).collect();
        assert_eq!(
            devices,
            [
                ("nvidia.com/GA102GL_A10", PermittedKind::Pci),
                ("nvidia.com/GRID", PermittedKind::Mediated),
                ("kubevirt.io/stick", PermittedKind::Usb),
            ]
        );
        let ids: Vec<_> = KubeVirtView(&cr).permitted_devices().map(|device| device.pci_id()).collect();
        assert_eq!(ids, [Some((0x10de, 0x2236)), None, None]);
        assert_eq!(KubeVirtView(&json!({"spec": 3})).permitted_devices().count(), 0);
    }
}
