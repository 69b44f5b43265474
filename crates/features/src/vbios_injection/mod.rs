//! `vbios-injection`: ROMs for passed-through devices.
//!
//! libvirt takes a ROM from a file that QEMU can open. Our hook sidecar gets the ConfigMap
//! mounted, copies the ROM into the directory that it shares with QEMU, and puts `<rom>` into
//! the domain (ADR 5). The VM never gets a volume for it: that would be a disk in the guest.

mod config_map;
mod request;

use std::collections::BTreeMap;

use kubevirt::feature_gates;
use serde_json::{Value, json};

use crate::context::{Context, Plan};
use crate::document::{Addition, ShapeError};
use crate::image::{is_allowed, is_reference};
use crate::json::at;
use crate::names::{field, is_alias};
use crate::site::Site;
use crate::text::candidates;
use config_map::{ConfigMapError, check};
pub(crate) use request::config_maps;
use request::{ParseError, Rom, parse};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("no hook image is set; the administrator has to set features.vbiosInjection.hookImage")]
    NoImage,
    #[error(
        "`{0}` is not an image reference; correct the annotation sidecar-image or features.vbiosInjection.hookImage"
    )]
    Image(String),
    #[error(
        "the image `{image}` of the annotation sidecar-image is not allowed (features.vbiosInjection.allowedImages: {allowed})"
    )]
    ImageRefused { image: String, allowed: String },
    #[error(
        "KubeVirt refuses hook sidecars: feature gate Sidecar is off; add it to spec.configuration.developerConfiguration.featureGates of the KubeVirt CR"
    )]
    GateOff,
    #[error(
        "the VM has no host device and no GPU that could use the ROM; ask for one with pci-passthrough or gpu-device-plugin"
    )]
    NoDevice,
    #[error(
        "the VM has several devices, say whose ROM it is: {{\"<device>\":\"{config_map}\"}}; devices: {devices}"
    )]
    WhichDevice { config_map: String, devices: String },
    #[error("the VM has no device `{device}`; devices: {devices}")]
    UnknownDevice { device: String, devices: String },
    #[error("the name of device `{0}` cannot be a libvirt alias; use letters, digits, `-` and `_`")]
    Alias(String),
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

/// Decides which hook sidecars to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let mut plan = Plan { applied: context.wish.value.trim().to_owned(), ..Plan::default() };
    let roms = parse(&context.wish.value, &context.config.vbios_injection.config_map_key)?;
    let image = image(context)?;
    match context.gate(feature_gates::SIDECAR) {
        Some(true) => {}
        Some(false) => return Err(Error::GateOff),
        None => {
            plan.warnings
                .push("the KubeVirt CR is not known, so feature gate Sidecar was not checked".into());
        }
    }
    if context.gate(feature_gates::PLUGINS) == Some(true) {
        plan.warnings
            .push("feature gate Plugins is on: while any Plugin exists KubeVirt drops <rom> again".into());
    }
    let hooks = context.document.hooks()?;
    let others = || hooks.iter().filter(|hook| !context.record.contains(hook));
    for (config_map, (key, aliases)) in by_config_map(context, &roms)? {
        let value = entry(context, image, &config_map, &key, &aliases);
        if others().any(|hook| *hook == value) {
            continue;
        }
        check(context, &config_map, &key, others())
            .map_err(|reason| Error::ConfigMap { config_map: config_map.clone(), reason })?;
        plan.additions.push(Addition { site: Site::HookSidecars, value });
    }
    Ok(plan)
}

/// Which image the hook runs from.
fn image<'a>(context: &Context<'a>) -> Result<&'a str, Error> {
    let settings = &context.config.vbios_injection;
    let chosen = at(context.document.base(), &["metadata", "annotations", crate::SIDECAR_IMAGE])
        .and_then(Value::as_str);
    let image = match chosen {
        Some(image) if !is_allowed(image, &settings.allowed_images) => {
            return Err(Error::ImageRefused {
                image: image.chars().take(128).collect(),
                allowed: candidates(&settings.allowed_images),
            });
        }
        Some(image) => image,
        None if settings.hook_image.is_empty() => return Err(Error::NoImage),
        None => &settings.hook_image,
    };
    if !is_reference(image) {
        return Err(Error::Image(image.chars().take(128).collect()));
    }
    Ok(image)
}

/// The ROMs by ConfigMap: its key, and the aliases of the devices that use it.
fn by_config_map(
    context: &Context<'_>,
    roms: &[Rom],
) -> Result<BTreeMap<String, (String, Vec<String>)>, Error> {
    let devices = devices(context)?;
    let mut maps: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for rom in roms {
        let device = find(context, &devices, rom)?;
        if !is_alias(device.name) {
            return Err(Error::Alias(device.name.chars().take(64).collect()));
        }
        let alias = format!("{}{}", device.prefix, device.name);
        if maps.values().any(|(_, aliases)| aliases.contains(&alias)) {
            return Err(Error::TwoRoms(device.name.to_owned()));
        }
        let (key, aliases) =
            maps.entry(rom.config_map.clone()).or_insert_with(|| (rom.key.clone(), Vec::new()));
        if *key != rom.key {
            return Err(Error::TwoKeys(rom.config_map.clone()));
        }
        aliases.push(alias);
    }
    Ok(maps)
}

/// The arguments are those of the hook (ADR 5).
fn entry(context: &Context<'_>, image: &str, config_map: &str, key: &str, aliases: &[String]) -> Value {
    let path = format!("/rom/{config_map}.rom");
    let rom = |alias: &String| hook::arguments::Rom {
        device: hook::arguments::Device::Alias(alias.clone()),
        path: path.as_str().into(),
    };
    let arguments = hook::arguments::Arguments { roms: aliases.iter().map(rom).collect(), plugin: None };
    json!({
        "image": image,
        "imagePullPolicy": context.config.vbios_injection.image_pull_policy,
        "args": arguments.to_list(),
        "configMap": {"name": config_map, "key": key, "hookPath": path},
    })
}

/// A device of the VM, as KubeVirt will name it in the domain.
struct Device<'v> {
    /// The prefix of its alias (`pkg/virt-launcher/virtwrap/device/hostdevice`, v1.9).
    prefix: &'static str,
    name: &'v str,
    resource: &'v str,
}

fn devices<'v>(context: &Context<'v>) -> Result<Vec<Device<'v>>, ShapeError> {
    let mut devices = Vec::new();
    for (site, plain, by_claim) in
        [(Site::HostDevices, "ua-hostdevice-", "ua-dra-hostdevice-"), (Site::Gpus, "ua-gpu-", "ua-dra-gpu-")]
    {
        // USB devices have no ROM
        let entries = context.document.list(site)?.iter().filter(|entry| !is_usb(context, entry));
        devices.extend(entries.map(|entry| Device {
            prefix: if entry.get("claimName").is_some() { by_claim } else { plain },
            name: field(entry, "name"),
            resource: field(entry, "deviceName"),
        }));
    }
    Ok(devices)
}

fn is_usb(context: &Context<'_>, entry: &Value) -> bool {
    let mut permitted = context.permitted().into_iter().flatten();
    permitted.any(|device| {
        device.kind == kubevirt::PermittedKind::Usb && device.resource_name == field(entry, "deviceName")
    })
}

/// The device that a ROM is for: by name, or else by what only one device has.
fn find<'d, 'v>(
    context: &Context<'_>,
    devices: &'d [Device<'v>],
    rom: &Rom,
) -> Result<&'d Device<'v>, Error> {
    let known = || candidates(devices.iter().map(|device| device.name));
    let Some(wanted) = &rom.device else {
        return match devices {
            [device] => Ok(device),
            [] => Err(Error::NoDevice),
            _ => Err(Error::WhichDevice { config_map: rom.config_map.clone(), devices: known() }),
        };
    };
    if let Some(device) = devices.iter().find(|device| device.name == wanted) {
        return Ok(device);
    }
    let is_meant = |device: &&Device<'_>| {
        device.resource == wanted
            || wanted.parse::<kubevirt::PciAddress>().is_ok_and(|address| {
                device.name == format!("pci-{}", address.dashed())
                    || device.resource == address.nodedev_name()
                    || context
                        .cluster
                        .pci_devices
                        .iter()
                        .flatten()
                        .any(|known| known.name == device.name && known.address.parse() == Ok(address))
            })
    };
    let mut meant = devices.iter().filter(is_meant);
    match (meant.next(), meant.next()) {
        (Some(device), None) => Ok(device),
        _ => Err(Error::UnknownDevice { device: wanted.chars().take(64).collect(), devices: known() }),
    }
}
