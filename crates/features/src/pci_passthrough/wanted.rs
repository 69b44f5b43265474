//! The forms in which PCI devices are asked for.

use kubevirt::{ParsePciAddressError, PciAddress};
use serde::Deserialize;
use serde_json::Value;

/// The longest request that is read, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// One device that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) what: What,
    /// The node that has it.
    pub(crate) node: Option<String>,
    /// The name that it shall have in the VM.
    pub(crate) name: Option<String>,
}

/// How a device is identified.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A PCI address.
    Address(PciAddress),
    /// A permitted resource name.
    Resource(String),
    /// The name of a Harvester `PCIDevice`.
    Device(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("the value is longer than {MAX_REQUEST} bytes; ask for fewer devices")]
    TooLong,
    #[error(
        "the value is not valid JSON ({0}); write {{\"devices\":[\"0000:00:02.0\"]}}, a list, an address, a resource name or a PCIDevice name"
    )]
    Json(#[from] serde_json::Error),
    #[error("the value names no device; remove it or name one")]
    Empty,
    #[error(
        "a device is {0}; write an address, a resource name, a PCIDevice name or {{\"address\":…,\"node\":…,\"name\":…}}"
    )]
    Kind(&'static str),
    #[error(transparent)]
    Address(#[from] ParsePciAddressError),
    #[error("`{0}` is neither a PCI address, nor a resource name, nor a PCIDevice name")]
    Unknown(String),
}

/// One device as a JSON mapping.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(alias = "device", alias = "resource", alias = "resourceName", alias = "deviceName")]
    address: String,
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Devices {
    devices: Vec<Value>,
}

/// Reads a request. In a label the first `_` of a resource name stands for its `/`.
pub(crate) fn parse(text: &str, is_label: bool) -> Result<Vec<Wanted>, ParseError> {
    let text = text.trim();
    if text.len() > MAX_REQUEST {
        return Err(ParseError::TooLong);
    }
    let items: Vec<Value> = match text.as_bytes().first() {
        Some(b'[') => serde_json::from_str(text)?,
        Some(b'{') => {
            let value: Value = serde_json::from_str(text)?;
            if value.get("devices").is_some() {
                serde_json::from_value::<Devices>(value)?.devices
            } else {
                vec![value]
            }
        }
        _ => return Ok(vec![identify(text, is_label)?]),
    };
    if items.is_empty() {
        return Err(ParseError::Empty);
    }
    items.into_iter().map(|item| entry(item, is_label)).collect()
}

fn entry(item: Value, is_label: bool) -> Result<Wanted, ParseError> {
    match item {
        Value::String(text) => identify(&text, is_label),
        Value::Object(_) => {
            let entry: Entry = serde_json::from_value(item)?;
            let wanted = identify(&entry.address, is_label)?;
            Ok(Wanted { node: entry.node.or(wanted.node), name: entry.name, ..wanted })
        }
        other => Err(ParseError::Kind(crate::json::kind(&other))),
    }
}

fn identify(text: &str, is_label: bool) -> Result<Wanted, ParseError> {
    let text = text.trim();
    let wanted = |what| Wanted { what, node: None, name: None };
    if let Ok(address) = text.parse() {
        return Ok(wanted(What::Address(address)));
    }
    if let Some((node, Ok(address))) = text.split_once('/').map(|(node, address)| (node, address.parse())) {
        return Ok(Wanted { node: Some(node.to_owned()), ..wanted(What::Address(address)) });
    }
    if text.contains(':') {
        text.parse::<PciAddress>()?;
    }
    let resource = if is_label { text.replacen('_', "/", 1) } else { text.to_owned() };
    if crate::names::is_resource(&resource) {
        return Ok(wanted(What::Resource(resource)));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(is_name) {
        return Ok(wanted(What::Device(text.to_ascii_lowercase())));
    }
    // a resource name in the wrong case is found among the permitted ones
    if text.split_once('/').is_some_and(|(domain, name)| {
        crate::names::is_resource(&format!("{}/{name}", domain.to_ascii_lowercase()))
    }) {
        return Ok(wanted(What::Resource(text.to_owned())));
    }
    Err(ParseError::Unknown(text.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> What {
        What::Address(text.parse().unwrap())
    }

    #[test]
    fn every_documented_form_is_read() {
        let first = Wanted { what: address("0000:00:02.0"), node: None, name: None };
        for text in [
            r#"{"devices":["0000:00:02.0"]}"#,
            r#"["0000:00:02.0"]"#,
            r#"[{"address":"0000:00:02.0"}]"#,
            r#"{"address":"0000:00:02.0"}"#,
            "0000:00:02.0",
            " 00:02.0 ",
            "pci_0000_00_02_0",
        ] {
            assert_eq!(parse(text, false).unwrap(), std::slice::from_ref(&first), "{text}");
        }
        assert_eq!(
            parse(r#"[{"address":"0000:0A:02.0","name":"nic","node":"n1"}, "n2/0000:01:00.0"]"#, false)
                .unwrap(),
            [
                Wanted { what: address("0000:0a:02.0"), node: Some("n1".into()), name: Some("nic".into()) },
                Wanted { what: address("0000:01:00.0"), node: Some("n2".into()), name: None },
            ]
        );
        let what = |text, is_label| parse(text, is_label).unwrap().remove(0).what;
        assert_eq!(what("nvidia.com/GA102GL_A10", false), What::Resource("nvidia.com/GA102GL_A10".into()));
        assert_eq!(what("nvidia.com_GA102GL_A10", true), What::Resource("nvidia.com/GA102GL_A10".into()));
        assert_eq!(what("pci_0000_00_02_0", true), address("0000:00:02.0"));
        assert_eq!(what("dell-190-000001105", true), What::Device("dell-190-000001105".into()));
    }

    #[test]
    fn wrong_forms_say_what_is_wrong() {
        for (text, expected) in [
            (r#"{"devices":[]}"#, "names no device"),
            ("[]", "names no device"),
            (r#"{"devices":"x"}"#, "not valid JSON"),
            (r#"{"devices":[3]}"#, "a device is a number"),
            (r#"{"devices":["0000:00:02.0"],"extra":1}"#, "unknown field `extra`"),
            (r#"[{"adress":"0000:00:02.0"}]"#, "unknown field `adress`"),
            (r#"["0000:00:02.9"]"#, "not a PCI address"),
            ("0000:00:zz.0", "not a PCI address"),
            ("[", "not valid JSON"),
            ("what ever", "neither a PCI address"),
            ("", "neither a PCI address"),
        ] {
            let error = parse(text, false).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(matches!(parse(&" x".repeat(MAX_REQUEST), false), Err(ParseError::TooLong)));
    }
}
