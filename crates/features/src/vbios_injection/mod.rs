//! `vbios-injection`: ROMs for passed-through devices.
//!
//! libvirt takes a ROM from a file that QEMU can open. Our hook sidecar gets the ConfigMap
//! mounted, copies the ROM into the directory that it shares with QEMU, and puts `<rom>` into
//! the domain (ADR 5). The VM never gets a volume for it: that would be a disk in the guest.

mod config_map;
mod request;

use std::collections::BTreeMap;

use hook::arguments::{Arguments, Device as Target};
use hook::rom::{check_start, check_vendor, names_device};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::facts::{Lookup, Need};
use crate::sidecar::{self, Device, Mount, devices, entry, find, way};
use crate::site::Site;
use config_map::{ConfigMapError, check};
pub(crate) use request::config_maps;
use request::{ParseError, Rom, parse};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error(transparent)]
    Sidecar(#[from] sidecar::Error),
    #[error("two ROMs are given for device `{0}`; give one")]
    TwoRoms(String),
    #[error("ConfigMap `{config_map}`: {reason}")]
    ConfigMap { config_map: String, reason: ConfigMapError },
    #[error(
        "ConfigMap `{0}` is asked for with two keys, and KubeVirt can mount it once; put each ROM into a ConfigMap of its own"
    )]
    TwoKeys(String),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// What one ConfigMap is for.
struct Use<'v> {
    key: String,
    devices: Vec<Device<'v>>,
}

/// Decides which hooks to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let mut plan = Plan { applied: context.wish.value.trim().to_owned(), ..Plan::default() };
    let roms = parse(&context.wish.value, &context.config.vbios_injection.config_map_key)?;
    let site = way(context, &mut plan)?;
    let mut others = Vec::new();
    for site in [Site::HookSidecars, Site::LauncherHooks] {
        others
            .extend(context.document.hooks(site)?.into_iter().filter(|hook| !context.record.contains(hook)));
    }
    for (config_map, used) in by_config_map(context, &roms)? {
        let path = format!("/rom/{config_map}.rom");
        let mut arguments = Arguments::default();
        for device in &used.devices {
            let device = Target::Alias(device.alias()?);
            arguments.roms.push(hook::arguments::Rom { device, path: path.as_str().into() });
        }
        let mount = Mount { config_map: &config_map, key: &used.key, path: &path };
        let value = entry(context, site, &arguments, Some(&mount))?;
        if others.contains(&value) {
            continue;
        }
        let wrong = |reason| Error::ConfigMap { config_map: config_map.clone(), reason };
        check(context, &config_map, &used.key, others.iter()).map_err(wrong)?;
        for device in &used.devices {
            plan.warnings.extend(fits(context, &config_map, &used.key, device).map_err(wrong)?);
        }
        plan.additions.push(Addition { site, value });
    }
    Ok(plan)
}

/// Whether a ROM is for a device, as far as its vendor and number are known here: another vendor's is
/// an error, another number a warning.
fn fits(
    context: &Context<'_>,
    config_map: &str,
    key: &str,
    device: &Device<'_>,
) -> Result<Option<String>, ConfigMapError> {
    let Some((vendor, number)) = device.pci_id else { return Ok(None) };
    let Some(Lookup::Found(found)) = context.lookups.get(&Need::ConfigMap(config_map.to_owned())) else {
        return Ok(None);
    };
    let encoded = found.get("binaryData").and_then(|data| data.get(key)?.as_str()).unwrap_or_default();
    let (start, length) = config_map::start(encoded, key)?;
    let reason = |reason| ConfigMapError::Rom { key: key.to_owned(), reason };
    let images = [check_start(&start, length).map_err(reason)?];
    // a later image may be for the right vendor; the sidecar, which sees all, decides then
    if images[0].is_last || images[0].length >= length {
        check_vendor(&images, vendor).map_err(reason)?;
    }
    if names_device(&start, &images, vendor, number) {
        return Ok(None);
    }
    let name = device.name;
    Ok(Some(format!(
        "the ROM in ConfigMap `{config_map}` does not name device {vendor:04x}:{number:04x} of `{name}`; it is given all the same"
    )))
}

/// What each ConfigMap is for.
fn by_config_map<'v>(context: &Context<'v>, roms: &[Rom]) -> Result<BTreeMap<String, Use<'v>>, Error> {
    let all = devices(context)?;
    let mut maps: BTreeMap<String, Use<'v>> = BTreeMap::new();
    for rom in roms {
        let example = || format!("{{\"<device>\":\"{}\"}}", rom.config_map);
        let device = find(context, &all, rom.device.as_deref(), example)?;
        let alias = device.alias()?;
        let has =
            |used: &Use<'_>| used.devices.iter().any(|known| known.alias().is_ok_and(|known| known == alias));
        if maps.values().any(has) {
            return Err(Error::TwoRoms(device.name.to_owned()));
        }
        let used = maps
            .entry(rom.config_map.clone())
            .or_insert_with(|| Use { key: rom.key.clone(), devices: Vec::new() });
        if used.key != rom.key {
            return Err(Error::TwoKeys(rom.config_map.clone()));
        }
        used.devices.push(device.clone());
    }
    Ok(maps)
}
