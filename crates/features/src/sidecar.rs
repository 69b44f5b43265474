//! What goes through our hook: by which way it gets into the pod of a VM, from which image, and which
//! devices of the domain it can be told of.
//!
//! ```text
//!  gate Plugins (v1.9), our Plugin is there ──► launcher-hooks: our webhook adds the container to the pod
//!  gate Sidecar, no Plugin at all ────────────► hookSidecars: KubeVirt adds it
//!  gate Sidecar, some Plugin ─────────────────► refused: KubeVirt would drop what the hook writes
//! ```

use hook::arguments::Arguments;
use kubevirt::{PermittedDevice, PermittedKind, Version, feature_gates};
use serde_json::{Value, json};

use crate::config::HookPath;
use crate::context::{Context, Plan};
use crate::document::ShapeError;
use crate::image::{is_allowed, is_reference};
use crate::json::at;
use crate::launcher::PLUGIN;
use crate::names::{field, is_alias};
use crate::site::Site;
use crate::text::candidates;

/// The first release whose hook sidecars can have a ConfigMap.
const CONFIG_MAPS_SINCE: Version = Version::new(1, 2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
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
    SidecarOff,
    #[error(
        "KubeVirt takes no Plugins: feature gate Plugins is off or KubeVirt is older than v1.9; switch it on or set features.vbiosInjection.hookPath to sidecar"
    )]
    PluginsOff,
    #[error(
        "the Plugin `{PLUGIN}` is not there, so nothing would be done for this VM; set features.vbiosInjection.registerPlugin, or wait until the operator has registered it"
    )]
    NoPlugin,
    #[error(
        "KubeVirt drops what hook sidecars write while a Plugin exists (there is `{0}`); set features.vbiosInjection.registerPlugin, or hookPath to plugin"
    )]
    Dropped(String),
    #[error("KubeVirt {major}.{minor} cannot give a hook sidecar a ConfigMap; it can from v1.2 on", major = .0.major, minor = .0.minor)]
    TooOld(Version),
    #[error(
        "the VM has no host device and no GPU that could be meant; ask for one with pci-passthrough or gpu-device-plugin"
    )]
    NoDevice,
    #[error("the VM has several devices, say which is meant: {example}; devices: {devices}")]
    WhichDevice { example: String, devices: String },
    #[error("the VM has no device `{device}`; devices: {devices}")]
    UnknownDevice { device: String, devices: String },
    #[error("the name of device `{0}` cannot be a libvirt alias; use letters, digits, `-` and `_`")]
    Alias(String),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// By which way the hook gets into the pod; what cannot be checked is a warning.
pub(crate) fn way(context: &Context<'_>, plan: &mut Plan) -> Result<Site, Error> {
    let settings = &context.config.vbios_injection;
    let plugins = context.gate(feature_gates::PLUGINS);
    let known = context.cluster.plugins.as_deref();
    let is_ours_there = known.is_some_and(|names| names.iter().any(|name| name == PLUGIN));
    let by_plugin = match settings.hook_path {
        HookPath::Plugin => true,
        HookPath::Sidecar => false,
        HookPath::Auto => plugins == Some(true) && (is_ours_there || settings.register_plugin),
    };
    if by_plugin {
        match (plugins, known) {
            (Some(false), _) => return Err(Error::PluginsOff),
            (_, Some(_)) if !is_ours_there => return Err(Error::NoPlugin),
            (Some(true), Some(_)) => {}
            _ => plan.warnings.push(format!("it is not known whether the Plugin `{PLUGIN}` is in force")),
        }
        return Ok(Site::LauncherHooks);
    }
    match (plugins, known) {
        (Some(true), Some([first, ..])) => return Err(Error::Dropped(first.clone())),
        (Some(true), None) => plan.warnings.push(
            "feature gate Plugins is on: while any Plugin exists KubeVirt drops what the hook writes".into(),
        ),
        _ => {}
    }
    match context.gate(feature_gates::SIDECAR) {
        Some(true) => {}
        Some(false) => return Err(Error::SidecarOff),
        None => {
            plan.warnings
                .push("the KubeVirt CR is not known, so feature gate Sidecar was not checked".into());
        }
    }
    Ok(Site::HookSidecars)
}

/// A ConfigMap for the hook.
pub(crate) struct Mount<'a> {
    pub(crate) config_map: &'a str,
    pub(crate) key: &'a str,
    pub(crate) path: &'a str,
}

/// The entry that asks for a hook. What our webhook adds to launcher pods has the image that is set
/// when the pod is made, unless the VM chose one.
pub(crate) fn entry(
    context: &Context<'_>,
    site: Site,
    arguments: &Arguments,
    mount: Option<&Mount<'_>>,
) -> Result<Value, Error> {
    let (image, is_chosen) = image(context)?;
    let mut entry = json!({"args": arguments.to_list()});
    if site == Site::HookSidecars {
        entry["imagePullPolicy"] = context.config.vbios_injection.image_pull_policy.as_str().into();
    }
    if site == Site::HookSidecars || is_chosen {
        entry["image"] = image.into();
    }
    if let Some(Mount { config_map, key, path }) = mount {
        let version = context.kubevirt().and_then(kubevirt::KubeVirtView::version);
        if let Some(version) =
            version.filter(|version| site == Site::HookSidecars && *version < CONFIG_MAPS_SINCE)
        {
            return Err(Error::TooOld(version));
        }
        entry["configMap"] = json!({"name": config_map, "key": key, "hookPath": path});
    }
    Ok(entry)
}

/// Which image the hook runs from, and whether the VM chose it.
fn image<'a>(context: &Context<'a>) -> Result<(&'a str, bool), Error> {
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
    Ok((image, chosen.is_some()))
}

/// A device of the VM, as KubeVirt will name it in the domain.
#[derive(Clone, Debug)]
pub(crate) struct Device<'v> {
    /// The prefix of its alias (`pkg/virt-launcher/virtwrap/device/hostdevice`, v1.9).
    prefix: &'static str,
    pub(crate) name: &'v str,
    resource: &'v str,
    /// Vendor and product, when the resource is permitted by them.
    pub(crate) pci_id: Option<(u16, u16)>,
}

impl Device<'_> {
    /// Its alias in the domain.
    pub(crate) fn alias(&self) -> Result<String, Error> {
        if !is_alias(self.name) {
            return Err(Error::Alias(self.name.chars().take(64).collect()));
        }
        Ok(format!("{}{}", self.prefix, self.name))
    }
}

/// The devices of the VM that the hook can be told of; USB devices have neither a ROM nor an address.
pub(crate) fn devices<'v>(context: &Context<'v>) -> Result<Vec<Device<'v>>, ShapeError> {
    let permitted = |entry: &Value| -> Option<PermittedDevice<'_>> {
        context.permitted()?.find(|device| device.resource_name == field(entry, "deviceName"))
    };
    let mut devices = Vec::new();
    for (site, plain, by_claim) in
        [(Site::HostDevices, "ua-hostdevice-", "ua-dra-hostdevice-"), (Site::Gpus, "ua-gpu-", "ua-dra-gpu-")]
    {
        for entry in context.document.list(site)? {
            let known = permitted(entry);
            if known.is_some_and(|known| known.kind == PermittedKind::Usb) {
                continue;
            }
            devices.push(Device {
                prefix: if entry.get("claimName").is_some() { by_claim } else { plain },
                name: field(entry, "name"),
                resource: field(entry, "deviceName"),
                pci_id: known.and_then(|known| known.pci_id()),
            });
        }
    }
    Ok(devices)
}

/// The device that is meant: by name, or else by what only one device has; the only one, when none
/// is named. `example` says how one is named.
pub(crate) fn find<'d, 'v>(
    context: &Context<'_>,
    devices: &'d [Device<'v>],
    wanted: Option<&str>,
    example: impl FnOnce() -> String,
) -> Result<&'d Device<'v>, Error> {
    let known = || candidates(devices.iter().map(|device| device.name));
    let Some(wanted) = wanted else {
        return match devices {
            [device] => Ok(device),
            [] => Err(Error::NoDevice),
            _ => Err(Error::WhichDevice { example: example(), devices: known() }),
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
