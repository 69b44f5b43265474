//! The arguments of the sidecar (ADR 5): admission writes them into the VM, the sidecar reads them.
//!
//! ```text
//! vbios --rom <device>=<path> [--rom <device>=<path>]… [--plugin <name>]
//! ```
//!
//! A device is the alias of its `<hostdev>` (`ua-hostdevice-igpu`) or its PCI address on the host
//! (`0000:07:00.0`).

use std::fmt;
use std::path::PathBuf;

use crate::address::Address;

/// The most ROMs that one sidecar takes.
const MAX_ROMS: usize = 16;
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
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arguments {
    /// The ROMs, at least one.
    pub roms: Vec<Rom>,
    /// Serve as the domain hook of this `Plugin` (VEP 190) instead of as a hook sidecar.
    pub plugin: Option<String>,
}

/// The arguments cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ArgumentError {
    /// There is no job.
    #[error("the first argument has to be the job; there is one: vbios")]
    Job,
    /// An argument that no release has written.
    #[error("`{0}` is not an argument; arguments are --rom <device>=<path> and --plugin <name>")]
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
    /// Nothing to do.
    #[error("no ROM is given; give --rom <device>=<path>")]
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
        if arguments.next().is_none_or(|job| job.as_ref() != "vbios") {
            return Err(ArgumentError::Job);
        }
        let mut parsed = Self { roms: Vec::new(), plugin: None };
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
                other => return Err(ArgumentError::Unknown(shown(other))),
            }
        }
        match parsed.roms.len() {
            0 => Err(ArgumentError::Empty),
            1..=MAX_ROMS => Ok(parsed),
            _ => Err(ArgumentError::TooMany),
        }
    }

    /// The arguments as [`Arguments::parse`] reads them.
    pub fn to_list(&self) -> Vec<String> {
        let mut list = vec!["vbios".to_owned()];
        for Rom { device, path } in &self.roms {
            list.extend(["--rom".to_owned(), format!("{device}={}", path.display())]);
        }
        if let Some(plugin) = &self.plugin {
            list.extend(["--plugin".to_owned(), plugin.clone()]);
        }
        list
    }
}

fn rom(text: &str) -> Result<Rom, ArgumentError> {
    let invalid = || ArgumentError::Rom(shown(text));
    let (device, path) = text.split_once('=').ok_or_else(invalid)?;
    if !path.starts_with('/') || path.contains('\0') {
        return Err(invalid());
    }
    let device = match device.parse() {
        Ok(address) => Device::Source(address),
        Err(_) if is_alias(device) => Device::Alias(device.to_owned()),
        Err(_) => return Err(invalid()),
    };
    Ok(Rom { device, path: path.into() })
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
    fn wrong_arguments_are_refused() {
        for (list, expected) in [
            (&[][..], ArgumentError::Job),
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
