//! The arguments of the sidecar (ADR 5): admission writes them into the VM, the sidecar reads them.
//!
//! ```text
//! vbios --rom <device>=<path> [--rom <device>=<path>]… [--plugin <name>]
//! edit  [--rom <device>=<path>]… [--hide-kvm] [--igd <device>] [--qemu-arg <text>]… [--plugin <name>]
//! ```
//!
//! A device is the alias of its `<hostdev>` (`ua-hostdevice-igpu`) or its PCI address on the host
//! (`0000:07:00.0`). `vbios` is the job of releases that knew ROMs alone; `edit` takes at least one
//! edit of any kind.

use std::fmt;
use std::path::PathBuf;

use crate::address::Address;

/// The most ROMs that one sidecar takes.
const MAX_ROMS: usize = 16;
/// The most arguments for QEMU.
pub const MAX_QEMU_ARGS: usize = 64;
/// The longest of them, in bytes.
pub const MAX_QEMU_ARG: usize = 1024;
/// The longest alias: KubeVirt's longest prefix and a name of 63.
const MAX_ALIAS: usize = 96;

/// Which `<hostdev>` a ROM is for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Device {
    /// By alias: known when a VM is admitted.
    Alias(String),
    /// By address on the host: for clusters where one resource is one device.
    Source(Address),
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => out.write_str(alias),
            Self::Source(address) => address.fmt(out),
        }
    }
}

/// One ROM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rom {
    /// Whose it is.
    pub device: Device,
    /// Where it is in the sidecar.
    pub path: PathBuf,
}

/// What the sidecar is to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Arguments {
    /// The ROMs of devices.
    pub roms: Vec<Rom>,
    /// The guest does not see that it runs in KVM.
    pub hide_kvm: bool,
    /// The Intel GPU that gets its `OpRegion` and slot 2 of the guest.
    pub igd: Option<Device>,
    /// Arguments of QEMU's command line, in order.
    pub qemu_args: Vec<String>,
    /// Serve as the domain hook of this `Plugin` (VEP 190) instead of as a hook sidecar.
    pub plugin: Option<String>,
}

/// The arguments cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ArgumentError {
    /// There is no job.
    #[error("the first argument has to be the job: vbios or edit")]
    Job,
    /// An argument that no release has written.
    #[error(
        "`{0}` is not an argument of this job; there are --rom <device>=<path> and --plugin <name>, and for the job edit --hide-kvm, --igd <device> and --qemu-arg <text>"
    )]
    Unknown(String),
    /// A flag at the end.
    #[error("`{0}` needs a value")]
    NoValue(&'static str),
    /// Not `<device>=<path>`.
    #[error(
        "`{0}` is not <device>=<path>, where a device is an alias or a PCI address and a path is absolute"
    )]
    Rom(String),
    /// Two ROMs for one device.
    #[error("device `{0}` is given two ROMs; give one")]
    Twice(Device),
    /// Not a device.
    #[error("`{0}` is not a device: give an alias or a PCI address")]
    Device(String),
    /// Something that stands once.
    #[error("`{0}` is given twice; give it once")]
    Repeated(&'static str),
    /// Not text that an attribute can hold.
    #[error("`{0}` cannot be an argument of QEMU: it is empty, too long or has control characters")]
    QemuArg(String),
    /// Too much to do.
    #[error("more than {MAX_QEMU_ARGS} arguments for QEMU are given; give fewer")]
    TooManyQemuArgs,
    /// Nothing to do.
    #[error("nothing is to be done; give --rom <device>=<path>, or another edit with the job edit")]
    Empty,
    /// Too much to do.
    #[error("more than {MAX_ROMS} ROMs are given; give fewer")]
    TooMany,
    /// Not usable as the name of a directory.
    #[error("`{0}` is not the name of a Plugin")]
    Plugin(String),
}

impl Arguments {
    /// Reads the arguments after the program's name.
    pub fn parse<A: AsRef<str>>(arguments: impl IntoIterator<Item = A>) -> Result<Self, ArgumentError> {
        let mut arguments = arguments.into_iter();
        let is_edit = match arguments.next().as_ref().map(AsRef::as_ref) {
            Some("vbios") => false,
            Some("edit") => true,
            _ => return Err(ArgumentError::Job),
        };
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            let mut value = |flag| arguments.next().ok_or(ArgumentError::NoValue(flag));
            match argument.as_ref() {
                "--rom" => {
                    let rom = rom(value("--rom")?.as_ref())?;
                    if parsed.roms.iter().any(|known| known.device == rom.device) {
                        return Err(ArgumentError::Twice(rom.device));
                    }
                    parsed.roms.push(rom);
                }
                "--plugin" => parsed.plugin = Some(plugin(value("--plugin")?.as_ref())?),
                "--hide-kvm" if is_edit => parsed.hide_kvm = true,
                "--igd" if is_edit => {
                    let text = value("--igd")?;
                    let device = device(text.as_ref());
                    let device = device.ok_or_else(|| ArgumentError::Device(shown(text.as_ref())))?;
                    if parsed.igd.replace(device).is_some() {
                        return Err(ArgumentError::Repeated("--igd"));
                    }
                }
                "--qemu-arg" if is_edit => parsed.qemu_args.push(qemu_arg(value("--qemu-arg")?.as_ref())?),
                other => return Err(ArgumentError::Unknown(shown(other))),
            }
        }
        parsed.checked()
    }

    fn checked(self) -> Result<Self, ArgumentError> {
        if self.roms.len() > MAX_ROMS {
            return Err(ArgumentError::TooMany);
        }
        if self.qemu_args.len() > MAX_QEMU_ARGS {
            return Err(ArgumentError::TooManyQemuArgs);
        }
        let is_empty = self.roms.is_empty() && self.is_roms_only();
        if is_empty { Err(ArgumentError::Empty) } else { Ok(self) }
    }

    /// Whether the job `vbios` can do it, which every release knows.
    fn is_roms_only(&self) -> bool {
        !self.hide_kvm && self.igd.is_none() && self.qemu_args.is_empty()
    }

    /// What both ask for, as one job; each device has one ROM.
    pub fn merged(mut self, other: Self) -> Result<Self, ArgumentError> {
        if let Some(twice) =
            other.roms.iter().find(|rom| self.roms.iter().any(|one| one.device == rom.device))
        {
            return Err(ArgumentError::Twice(twice.device.clone()));
        }
        if self.igd.is_some() && other.igd.is_some() {
            return Err(ArgumentError::Repeated("--igd"));
        }
        self.roms.extend(other.roms);
        self.hide_kvm |= other.hide_kvm;
        self.igd = self.igd.or(other.igd);
        self.qemu_args.extend(other.qemu_args);
        self.plugin = self.plugin.or(other.plugin);
        self.checked()
    }

    /// The arguments as [`Arguments::parse`] reads them.
    pub fn to_list(&self) -> Vec<String> {
        let mut list = vec![if self.is_roms_only() { "vbios" } else { "edit" }.to_owned()];
        for Rom { device, path } in &self.roms {
            list.extend(["--rom".to_owned(), format!("{device}={}", path.display())]);
        }
        list.extend(self.hide_kvm.then(|| "--hide-kvm".to_owned()));
        if let Some(device) = &self.igd {
            list.extend(["--igd".to_owned(), device.to_string()]);
        }
        for text in &self.qemu_args {
            list.extend(["--qemu-arg".to_owned(), text.clone()]);
        }
        if let Some(plugin) = &self.plugin {
            list.extend(["--plugin".to_owned(), plugin.clone()]);
        }
        list
    }
}

fn rom(text: &str) -> Result<Rom, ArgumentError> {
    let invalid = || ArgumentError::Rom(shown(text));
    let (named, path) = text.split_once('=').ok_or_else(invalid)?;
    if !path.starts_with('/') || path.contains('\0') {
        return Err(invalid());
    }
    Ok(Rom { device: device(named).ok_or_else(invalid)?, path: path.into() })
}

fn device(text: &str) -> Option<Device> {
    match text.parse() {
        Ok(address) => Some(Device::Source(address)),
        Err(_) if is_alias(text) => Some(Device::Alias(text.to_owned())),
        Err(_) => None,
    }
}

/// Whether a text can be an argument of QEMU in a domain.
pub fn is_qemu_arg(text: &str) -> bool {
    (1..=MAX_QEMU_ARG).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn qemu_arg(text: &str) -> Result<String, ArgumentError> {
    if is_qemu_arg(text) { Ok(text.to_owned()) } else { Err(ArgumentError::QemuArg(shown(text))) }
}

/// The letters that libvirt takes in an alias.
fn is_alias(text: &str) -> bool {
    (1..=MAX_ALIAS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn plugin(text: &str) -> Result<String, ArgumentError> {
    let is_name = (1..=253).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    is_name.then(|| text.to_owned()).ok_or_else(|| ArgumentError::Plugin(shown(text)))
}

fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_adr_5_fixes_them() {
        let list =
            ["vbios", "--rom", "ua-hostdevice-igpu=/rom/a=b.rom", "--rom", "0000:07:00.1=/rom/gop.rom"];
        let arguments = Arguments::parse(list).unwrap();
        assert_eq!(
            arguments.roms,
            [
                Rom { device: Device::Alias("ua-hostdevice-igpu".into()), path: "/rom/a=b.rom".into() },
                Rom { device: Device::Source("0000:07:00.1".parse().unwrap()), path: "/rom/gop.rom".into() },
            ]
        );
        assert_eq!(arguments.to_list(), list);
        let plugin =
            Arguments::parse(["vbios", "--rom", "ua-gpu-a=/r", "--plugin", "vbios.example"]).unwrap();
        assert_eq!(plugin.plugin.as_deref(), Some("vbios.example"));
        assert_eq!(Arguments::parse(plugin.to_list()), Ok(plugin));
    }

    #[test]
    fn every_edit_has_an_argument_and_jobs_can_be_merged() {
        let list = [
            "edit",
            "--rom",
            "ua-gpu-a=/rom/a.rom",
            "--hide-kvm",
            "--igd",
            "ua-hostdevice-igpu",
            "--qemu-arg",
            "-fw_cfg",
            "--qemu-arg",
            "name=opt/a,string=--rom",
            "--plugin",
            "virt-steward",
        ];
        let all = Arguments::parse(list).unwrap();
        assert_eq!((all.hide_kvm, all.igd.clone()), (true, Some(Device::Alias("ua-hostdevice-igpu".into()))));
        assert_eq!(all.qemu_args, ["-fw_cfg", "name=opt/a,string=--rom"]);
        assert_eq!(all.to_list(), list);
        let roms = Arguments::parse(["vbios", "--rom", "ua-gpu-b=/rom/b.rom"]).unwrap();
        let both = roms.clone().merged(all.clone()).unwrap();
        assert_eq!((both.roms.len(), both.igd.is_some(), both.plugin.is_some()), (2, true, true));
        assert_eq!(Arguments::parse(both.to_list()), Ok(both));
        assert_eq!(roms.clone().merged(roms), Err(ArgumentError::Twice(Device::Alias("ua-gpu-b".into()))));
        assert_eq!(all.clone().merged(all), Err(ArgumentError::Twice(Device::Alias("ua-gpu-a".into()))));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (list, expected) in [
            (&["edit"][..], ArgumentError::Empty),
            (&["edit", "--igd", "a.b"], ArgumentError::Device("a.b".into())),
            (&["edit", "--igd", "a", "--igd", "b"], ArgumentError::Repeated("--igd")),
            (&["edit", "--qemu-arg", "a\nb"], ArgumentError::QemuArg("a\nb".into())),
            (&["edit", "--qemu-arg", ""], ArgumentError::QemuArg(String::new())),
            (&["vbios", "--rom", "a=/b", "--hide-kvm"], ArgumentError::Unknown("--hide-kvm".into())),
            (&[], ArgumentError::Job),
            (&["--rom", "a=/b"], ArgumentError::Job),
            (&["vbios"], ArgumentError::Empty),
            (&["vbios", "--rom"], ArgumentError::NoValue("--rom")),
            (&["vbios", "--rom", "a=/b", "--rom", "a=/c"], ArgumentError::Twice(Device::Alias("a".into()))),
            (&["vbios", "--rom", "a=/b", "--version"], ArgumentError::Unknown("--version".into())),
            (&["vbios", "--rom", "a=b"], ArgumentError::Rom("a=b".into())),
            (&["vbios", "--rom", "a"], ArgumentError::Rom("a".into())),
            (&["vbios", "--rom", "=/b"], ArgumentError::Rom("=/b".into())),
            (&["vbios", "--rom", "a.b=/b"], ArgumentError::Rom("a.b=/b".into())),
            (&["vbios", "--rom", "a=/b", "--plugin", "../x"], ArgumentError::Plugin("../x".into())),
        ] {
            assert_eq!(Arguments::parse(list), Err(expected), "{list:?}");
        }
        let many = (0..=MAX_ROMS).flat_map(|index| ["--rom".to_owned(), format!("a{index}=/b")]);
        assert_eq!(
            Arguments::parse(std::iter::once("vbios".to_owned()).chain(many)),
            Err(ArgumentError::TooMany)
        );
    }
}
