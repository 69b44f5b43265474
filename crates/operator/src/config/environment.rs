//! The environment: every variable of both naming schemes, in one table.

use super::value::{
    boolean, device_names, error_mode, failure_policy, gpu_mode, list, log_format, log_level, number,
    register_mode, source, tls_source,
};
use super::{Config, Env, Error};

type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// One setting: the names it goes by, and how its text is taken.
pub(super) struct Setting {
    pub(super) names: &'static [&'static str],
    set: Setter,
}

const fn setting(names: &'static [&'static str], set: Setter) -> Setting {
    Setting { names, set }
}

#[allow(clippy::unnecessary_wraps)] // same shape as the other readers
fn text<T: From<String>>(text: &str) -> Result<T, String> {
    Ok(T::from(text.to_owned()))
}

/// KubeVirt's `sidecar-shim` runs scripts, not our hook: taking it over from an old manifest would
/// leave every such VM stuck at start.
fn hook_image(config: &mut Config, image: &str) -> Result<(), String> {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.starts_with("sidecar-shim") {
        config.notes.push(format!(
            "the hook image {image} is ignored: KubeVirt's sidecar-shim cannot place a ROM; \
             set features.vbiosInjection.hookImage to the hook image of virt-steward"
        ));
    } else {
        config.features.vbios_injection.hook_image = text(image)?;
    }
    Ok(())
}

pub(super) const SETTINGS: &[Setting] = &[
    setting(&["PORT"], |c, t| number(t).map(|v| c.server.port = v)),
    setting(&["BIND_ADDRESS"], |c, t| number(t).map(|v| c.server.bind_address = Some(v))),
    setting(&["MAX_BODY_BYTES"], |c, t| number(t).map(|v| c.server.max_body_bytes = v)),
    setting(&["DRAIN_SECONDS"], |c, t| number(t).map(|v| c.server.drain_seconds = v)),
    setting(&["CERT_DIR"], |c, t| text(t).map(|v| c.tls.cert_dir = v)),
    setting(&["TLS_CERT_FILE"], |c, t| text(t).map(|v| c.tls.cert_file = Some(v))),
    setting(&["TLS_KEY_FILE"], |c, t| text(t).map(|v| c.tls.key_file = Some(v))),
    setting(&["TLS_SOURCE"], |c, t| tls_source(t).map(|v| c.tls.source = Some(v))),
    setting(&["TLS_SECRET_NAME"], |c, t| text(t).map(|v| c.tls.secret_name = v)),
    setting(&["TLS_EXTRA_NAMES"], |c, t| list(t).map(|v| c.tls.extra_names = v)),
    setting(&["LOG_LEVEL"], |c, t| log_level(t).map(|v| c.telemetry.log_level = v)),
    setting(&["LOG_FORMAT"], |c, t| log_format(t).map(|v| c.telemetry.log_format = v)),
    setting(&["METRICS_BIND_ADDRESS"], |c, t| text(t).map(|v| c.telemetry.metrics_bind_address = v)),
    setting(&["OTEL_EXPORTER_OTLP_ENDPOINT"], |c, t| text(t).map(|v| c.telemetry.otlp_endpoint = Some(v))),
    setting(&["WEBHOOK_VERSION"], |c, t| text(t).map(|v| c.telemetry.version = Some(v))),
    setting(&["LEADER_ELECT"], |c, t| boolean(t).map(|v| c.kubernetes.leader_elect = v)),
    setting(&["READ_SECRETS"], |c, t| boolean(t).map(|v| c.kubernetes.read_secrets = v)),
    setting(&["POD_NAMESPACE"], |c, t| text(t).map(|v| c.kubernetes.namespace = Some(v))),
    setting(&["RESIZE"], |c, t| boolean(t).map(|v| c.resize.enabled = v)),
    setting(&["RESIZE_IN_PLACE"], |c, t| boolean(t).map(|v| c.resize.in_place = v)),
    setting(&["RESIZE_DECLARE_MEMORY"], |c, t| boolean(t).map(|v| c.resize.declare_memory = v)),
    setting(&["EXPORT_JOBS"], |c, t| boolean(t).map(|v| c.exports.enabled = v)),
    setting(&["EXPORT_IMAGE"], |c, t| text(t).map(|v| c.exports.image = v)),
    setting(&["HOTPLUG_GUARD"], |c, t| boolean(t).map(|v| c.hotplug.guard = v)),
    setting(&["HOTPLUG_GATE"], |c, t| boolean(t).map(|v| c.hotplug.gate = v)),
    setting(&["HOTPLUG_HEAL"], |c, t| boolean(t).map(|v| c.hotplug.heal = v)),
    setting(&["REST"], |c, t| boolean(t).map(|v| c.rest.enabled = v)),
    setting(&["REGISTER"], |c, t| register_mode(t).map(|v| c.register.mode = v)),
    setting(&["REGISTER_NAME"], |c, t| text(t).map(|v| c.register.name = v)),
    setting(&["REGISTER_SERVICE_NAME"], |c, t| text(t).map(|v| c.register.service_name = v)),
    setting(&["REGISTER_URL"], |c, t| text(t).map(|v| c.register.url = Some(v))),
    setting(&["WEBHOOK_FAILURE_POLICY"], |c, t| failure_policy(t).map(|v| c.register.failure_policy = v)),
    setting(&["WEBHOOK_TIMEOUT_SECONDS"], |c, t| number(t).map(|v| c.register.timeout_seconds = v)),
    setting(&["CONFIG_SOURCE"], |c, t| source(t).map(|v| c.features.source = v)),
    setting(&["ERROR_HANDLING_MODE"], |c, t| error_mode(t).map(|v| c.features.error_handling = v)),
    setting(&["ADD_TRACKING_ANNOTATIONS"], |c, t| {
        boolean(t).map(|v| c.features.add_tracking_annotations = v)
    }),
    setting(&["NESTED_VIRT_ENABLED", "FEATURE_NESTED_VIRT_ENABLED"], |c, t| {
        boolean(t).map(|v| c.features.nested_virtualization.enabled = v)
    }),
    setting(&["NESTED_VIRT_ERROR_HANDLING"], |c, t| {
        error_mode(t).map(|v| c.features.nested_virtualization.error_handling = Some(v))
    }),
    setting(&["NESTED_VIRT_AUTO_DETECT", "FEATURE_NESTED_VIRT_AUTO_DETECT"], |c, t| {
        boolean(t).map(|v| c.features.nested_virtualization.auto_detect = v)
    }),
    setting(&["VBIOS_INJECTION_ENABLED", "FEATURE_VBIOS_ENABLED"], |c, t| {
        boolean(t).map(|v| c.features.vbios_injection.enabled = v)
    }),
    setting(&["VBIOS_INJECTION_ERROR_HANDLING"], |c, t| {
        error_mode(t).map(|v| c.features.vbios_injection.error_handling = Some(v))
    }),
    setting(&["VBIOS_HOOK_IMAGE"], hook_image),
    setting(&["VBIOS_DEFAULT_SIDECAR_IMAGE", "VBIOS_SIDECAR_IMAGE"], hook_image),
    setting(&["VBIOS_SIDECAR_IMAGE_OVERRIDE"], hook_image),
    setting(&["VBIOS_IMAGE_PULL_POLICY"], |c, t| {
        text(t).map(|v| c.features.vbios_injection.image_pull_policy = v)
    }),
    setting(&["VBIOS_ALLOWED_IMAGES"], |c, t| list(t).map(|v| c.features.vbios_injection.allowed_images = v)),
    setting(&["VBIOS_SOURCE_CM_KEY"], |c, t| text(t).map(|v| c.features.vbios_injection.config_map_key = v)),
    setting(&["PCI_PASSTHROUGH_ENABLED", "FEATURE_PCI_PASSTHROUGH_ENABLED"], |c, t| {
        boolean(t).map(|v| c.features.pci_passthrough.enabled = v)
    }),
    setting(&["PCI_PASSTHROUGH_ERROR_HANDLING"], |c, t| {
        error_mode(t).map(|v| c.features.pci_passthrough.error_handling = Some(v))
    }),
    setting(&["PCI_MAX_DEVICES"], |c, t| number(t).map(|v| c.features.pci_passthrough.max_devices = v)),
    setting(&["PCI_DEVICE_NAMES"], |c, t| {
        device_names(t).map(|v| c.features.pci_passthrough.device_names = v)
    }),
    setting(&["GPU_DEVICE_PLUGIN_ENABLED", "FEATURE_GPU_DEVICE_PLUGIN_ENABLED"], |c, t| {
        boolean(t).map(|v| c.features.gpu_device_plugin.enabled = v)
    }),
    setting(&["GPU_DEVICE_PLUGIN_ERROR_HANDLING"], |c, t| {
        error_mode(t).map(|v| c.features.gpu_device_plugin.error_handling = Some(v))
    }),
    setting(&["GPU_ALLOWED_PLUGINS"], |c, t| {
        list(t).map(|v| c.features.gpu_device_plugin.allowed_plugins = v)
    }),
    setting(&["GPU_MODE"], |c, t| gpu_mode(t).map(|v| c.features.gpu_device_plugin.mode = v)),
];

/// Variables of the Go program that configured its ROM scripts, which nothing here needs: said
/// once at start instead of being dropped in silence.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "VBIOS_SIDECAR_VERSION",
    "VBIOS_AUTO_DETECT_VERSION",
    "VBIOS_HOOK_CM_TEMPLATE",
    "VBIOS_PATH",
    "VBIOS_VALIDATE_TOOLS",
    "VBIOS_REQUIRED_TOOLS",
];

/// Lays the environment over `config`. An empty variable counts as unset.
pub(super) fn apply(config: &mut Config, env: &Env<'_>) -> Result<(), Error> {
    let value_of = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    for setting in SETTINGS {
        let mut given: Option<(&'static str, String)> = None;
        for &name in setting.names {
            let Some(value) = value_of(name) else { continue };
            match &given {
                Some((first, earlier)) if *earlier != value => {
                    return Err(Error::Disagreement { first, second: name });
                }
                _ => given = Some((name, value)),
            }
        }
        if let Some((name, value)) = given {
            (setting.set)(config, &value).map_err(|problem| Error::Environment { name, problem })?;
        }
    }
    for name in WITHOUT_EFFECT.iter().filter(|name| value_of(name).is_some()) {
        config
            .notes
            .push(format!("environment variable {name} has no effect: the hook needs no such setting"));
    }
    Ok(())
}
