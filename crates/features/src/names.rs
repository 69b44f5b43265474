//! Names of devices in a VM, and of the resources that they come from.

use serde_json::Value;

use crate::context::Context;

/// The longest name that we write.
const MAX_NAME: usize = 63;

/// A device name made from any text: lower case letters, digits and single dashes.
pub(crate) fn device_name(prefix: &str, text: &str) -> String {
    let mut name = prefix.to_owned();
    for letter in text.chars() {
        if letter.is_ascii_alphanumeric() {
            name.push(letter.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(MAX_NAME);
    name.trim_matches('-').to_owned()
}

/// Whether KubeVirt can use a device name as (the end of) a libvirt alias as it is
/// (`pkg/virt-launcher/virtwrap/api/schema.go`, v1.9).
pub(crate) fn is_alias(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Whether a text is a name of an extended resource: `<DNS domain>/<name>`, where the name may
/// have upper case and `_`, as vendors write them (`k8s.io/apimachinery` `IsQualifiedName`).
pub(crate) fn is_resource(text: &str) -> bool {
    let Some((domain, name)) = text.split_once('/') else { return false };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    domain.len() <= 253
        && domain.split('.').all(is_label)
        && name.len() <= 63
        && is_edge(name.as_bytes().first())
        && is_edge(name.as_bytes().last())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A field of a device entry, as text.
pub(crate) fn field<'v>(entry: &'v Value, name: &str) -> &'v str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// What the KubeVirt CR says about a resource name.
pub(crate) enum Permission {
    /// It is permitted, spelt like this.
    Permitted(String),
    /// It is not in the list.
    Refused,
    /// The KubeVirt CR is not known.
    Unknown,
}

/// Looks a resource name up among the permitted devices, exactly or else in any case.
pub(crate) fn permission(context: &Context<'_>, name: &str, usb: bool) -> Permission {
    let Some(permitted) = context.permitted() else { return Permission::Unknown };
    let usable = permitted.filter(|device| usb || device.kind != kubevirt::PermittedKind::Usb);
    let mut folded = None;
    for device in usable {
        if device.resource_name == name {
            return Permission::Permitted(name.to_owned());
        }
        if folded.is_none() && device.resource_name.eq_ignore_ascii_case(name) {
            folded = Some(device.resource_name);
        }
    }
    folded.map_or(Permission::Refused, |name| Permission::Permitted(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_stable_aliases() {
        assert_eq!(device_name("gpu-", "nvidia.com/GA102GL_A10"), "gpu-nvidia-com-ga102gl-a10");
        assert_eq!(device_name("", "__a..b__"), "a-b");
        assert!(is_alias(&device_name("", &"x/".repeat(80))));
        for bad in ["", "a.b", "a=b", "a b"] {
            assert!(!is_alias(bad), "{bad}");
        }
    }

    #[test]
    fn resource_names_of_real_vendors_are_accepted() {
        for good in [
            "nvidia.com/gpu",
            "nvidia.com/GA102GL_A10",
            "intel.com/ETHERNET_CONNECTION_11_I219LM",
            "kubevirt.io/n-0627-0001-2",
        ] {
            assert!(is_resource(good), "{good}");
        }
        for bad in [
            "",
            "gpu",
            "/gpu",
            "nvidia.com/",
            "Nvidia.com/gpu",
            "nvidia.com/gpu_",
            "a/b/c",
            "nvidia .com/x",
            "a/é",
        ] {
            assert!(!is_resource(bad), "{bad}");
        }
    }
}
