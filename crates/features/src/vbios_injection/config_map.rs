//! Whether a ConfigMap can be mounted into a hook sidecar and holds a ROM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hook::rom::{self, RomError};
use serde_json::Value;

use crate::context::Context;
use crate::facts::{Lookup, Need};
use crate::json::at;
use crate::names::field;

/// Volumes that every launcher pod may have (`pkg/virt-controller/services`, v1.9). KubeVirt
/// names the volume of a hook's ConfigMap after the ConfigMap.
const POD_VOLUMES: [&str; 12] = [
    "private",
    "public",
    "sockets",
    "virt-bin-share-dir",
    "libvirt-runtime",
    "ephemeral-disks",
    "container-disks",
    "hook-sidecar-sockets",
    "hotplug-disks",
    "hugepages",
    "hugetblfs-dir",
    "kubevirt-plugin-sockets",
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigMapError {
    #[error(
        "its name is not a DNS label (lower case letters, digits and `-`, at most 63), which KubeVirt needs to name a volume after it; rename it"
    )]
    Name,
    #[error("a volume of the launcher pod has the same name; rename the ConfigMap")]
    PodVolume,
    #[error("a volume of the VM has the same name, and KubeVirt would give the pod two; rename one")]
    VmVolume,
    #[error("another hook sidecar of the VM mounts the same volume; use a ConfigMap of its own")]
    OtherHook,
    #[error("it does not exist in namespace `{0}`; create it")]
    NotFound(String),
    #[error("it could not be read: {0}")]
    Failed(String),
    #[error("it has no binaryData key `{key}`; keys: {keys}")]
    NoKey { key: String, keys: String },
    #[error(
        "key `{0}` is under data, which is text; put the ROM under binaryData (kubectl create configmap --from-file does)"
    )]
    TextData(String),
    #[error("key `{0}` is not base64")]
    Base64(String),
    #[error("key `{key}`: {reason}")]
    Rom { key: String, reason: RomError },
}

/// Checks a ConfigMap; `others` are the hook sidecars of others.
pub(crate) fn check<'h>(
    context: &Context<'_>,
    name: &str,
    key: &str,
    mut others: impl Iterator<Item = &'h Value>,
) -> Result<(), ConfigMapError> {
    if !is_dns_label(name) {
        return Err(ConfigMapError::Name);
    }
    if POD_VOLUMES.contains(&name) {
        return Err(ConfigMapError::PodVolume);
    }
    let volumes = context.document.vm_spec(&["volumes"]).and_then(Value::as_array);
    if volumes.into_iter().flatten().any(|volume| field(volume, "name") == name) {
        return Err(ConfigMapError::VmVolume);
    }
    let mounts = |hook: &Value| {
        ["configMap", "pvc"].iter().any(|kind| at(hook, &[kind, "name"]).is_some_and(|other| other == name))
    };
    if others.any(mounts) {
        return Err(ConfigMapError::OtherHook);
    }
    match context.lookups.get(&Need::ConfigMap(name.to_owned())) {
        Some(Lookup::Found(config_map)) => check_content(config_map, key),
        Some(Lookup::NotFound) => Err(ConfigMapError::NotFound(context.namespace.to_owned())),
        Some(Lookup::Failed(reason)) => Err(ConfigMapError::Failed(reason.clone())),
        None => Err(ConfigMapError::Failed("nothing has asked for it".to_owned())),
    }
}

fn check_content(config_map: &Value, key: &str) -> Result<(), ConfigMapError> {
    let section = |name: &str| config_map.get(name).and_then(Value::as_object);
    let Some(encoded) = section("binaryData").and_then(|data| data.get(key)?.as_str()) else {
        if section("data").is_some_and(|data| data.contains_key(key)) {
            return Err(ConfigMapError::TextData(key.to_owned()));
        }
        let keys = crate::text::candidates(section("binaryData").into_iter().flat_map(|data| data.keys()));
        return Err(ConfigMapError::NoKey { key: key.to_owned(), keys });
    };
    let (start, length) = start(encoded, key)?;
    rom::check_start(&start, length)
        .map(drop)
        .map_err(|reason| ConfigMapError::Rom { key: key.to_owned(), reason })
}

/// The start of a ROM, in which its first image is described, and the length of the whole. Decoding a
/// megabyte would be the slowest part of admission.
pub(crate) fn start(encoded: &str, key: &str) -> Result<(Vec<u8>, usize), ConfigMapError> {
    let start = rom::HEADER.div_ceil(3) * 4;
    let start = STANDARD.decode(&encoded.as_bytes()[..encoded.len().min(start)]);
    let start = start.map_err(|_| ConfigMapError::Base64(key.to_owned()))?;
    let digits = encoded.trim_end_matches('=').len();
    Ok((start, digits / 4 * 3 + (digits % 4).saturating_sub(1)))
}

fn is_dns_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}
