//! The forms in which ROMs are asked for.

use std::collections::BTreeMap;

/// The most ROMs that one VM may have; each ConfigMap is a sidecar container.
const MAX_ROMS: usize = 8;

/// One ROM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Rom {
    /// The device that it is for; `None`: the only one of the VM.
    pub(crate) device: Option<String>,
    pub(crate) config_map: String,
    pub(crate) key: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseError {
    #[error(
        "the value is not a JSON mapping from devices to ConfigMaps ({0}); write <configmap>, <configmap>/<key> or {{\"<device>\":\"<configmap>\"}}"
    )]
    Json(#[from] serde_json::Error),
    #[error("the value names no ROM; remove it or name a ConfigMap")]
    Empty,
    #[error("more than {MAX_ROMS} ROMs are asked for; ask for fewer")]
    TooMany,
    #[error("`{0}` is not a key of a ConfigMap: use letters, digits, `-`, `_` and `.`")]
    Key(String),
}

/// Reads `<configmap>`, `<configmap>/<key>` or a JSON mapping from devices to those.
pub(crate) fn parse(text: &str, default_key: &str) -> Result<Vec<Rom>, ParseError> {
    let text = text.trim();
    if !text.starts_with('{') {
        return Ok(vec![rom(None, text, default_key)?]);
    }
    let devices: BTreeMap<String, String> = serde_json::from_str(text)?;
    match devices.len() {
        0 => Err(ParseError::Empty),
        1..=MAX_ROMS => {
            devices.into_iter().map(|(device, text)| rom(Some(device), &text, default_key)).collect()
        }
        _ => Err(ParseError::TooMany),
    }
}

/// The ConfigMaps that a request needs, if it can be read.
pub(crate) fn config_maps(text: &str) -> Vec<String> {
    parse(text, "rom").into_iter().flatten().map(|rom| rom.config_map).collect()
}

fn rom(device: Option<String>, text: &str, default_key: &str) -> Result<Rom, ParseError> {
    let (config_map, key) = text.trim().split_once('/').unwrap_or((text.trim(), default_key));
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.is_empty() || key.len() > 253 || key.starts_with("..") || !key.bytes().all(is_key) {
        return Err(ParseError::Key(key.chars().take(64).collect()));
    }
    Ok(Rom { device, config_map: config_map.to_owned(), key: key.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rom(device: Option<&str>, config_map: &str, key: &str) -> Rom {
        Rom { device: device.map(str::to_owned), config_map: config_map.into(), key: key.into() }
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(parse("vbios", "rom").unwrap(), [rom(None, "vbios", "rom")]);
        assert_eq!(parse(" vbios/gop.rom ", "rom").unwrap(), [rom(None, "vbios", "gop.rom")]);
        assert_eq!(
            parse(r#"{"igpu":"vbios","audio":"gop/efi"}"#, "rom").unwrap(),
            [rom(Some("audio"), "gop", "efi"), rom(Some("igpu"), "vbios", "rom")]
        );
        assert_eq!(config_maps(r#"{"a":"x","b":"y/k"}"#), ["x", "y"]);
        assert_eq!(config_maps("{"), Vec::<String>::new());
    }

    #[test]
    fn wrong_forms_are_errors() {
        for text in ["{}", "{", r#"{"a":1}"#, "vbios/", "vbios/a/b", "vbios/..x", "vbios/é"] {
            assert!(parse(text, "rom").is_err(), "{text}");
        }
    }
}
