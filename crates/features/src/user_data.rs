//! The cloud-init map `x_kubevirt_features`, for tools that can set user data and nothing else
//! on a VM. What it says is used and never copied to annotations.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::config::Config;
use crate::facts::{Lookup, Lookups, Need};
use crate::json::at;

/// The longest user data that is searched, in bytes.
const MAX_USER_DATA: usize = 64 * 1024;
/// The longest value of one feature, in bytes.
const MAX_VALUE: usize = 1024;
/// The most keys of the map that are looked at.
const MAX_KEYS: usize = 32;
/// The key of the map.
const MAP: &str = "x_kubevirt_features";
/// The keys of a Secret under which KubeVirt looks for user data.
const SECRET_KEYS: [&str; 3] = ["userdata", "userData", "user-data"];

#[derive(Default, Deserialize)]
#[serde(default)]
struct CloudConfig {
    x_kubevirt_features: Option<serde_json::Map<String, Value>>,
}

/// The names of the Secrets that hold user data of the VM.
pub(crate) fn secrets(object: &Value) -> impl Iterator<Item = &str> {
    sources(object)
        .filter_map(|source| at(source, &["secretRef", "name"])?.as_str())
        .filter(|name| !name.is_empty())
}

/// The entries of the map, as text; the first volume that has the map counts.
pub(crate) fn features(
    object: &Value,
    config: &Config,
    lookups: &Lookups,
    warnings: &mut Vec<String>,
) -> Vec<(String, String)> {
    for source in sources(object) {
        let field = |name: &str| source.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = if let Some(text) = field("userData") {
            Cow::Borrowed(text.as_bytes())
        } else if let Some(encoded) = field("userDataBase64") {
            match decode(encoded) {
                Ok(bytes) => Cow::Owned(bytes),
                Err(reason) => {
                    warnings.push(format!("x_kubevirt_features: userDataBase64 was not read: {reason}"));
                    continue;
                }
            }
        } else if let Some(name) = at(source, &["secretRef", "name"]).and_then(Value::as_str) {
            if !config.user_data_secrets {
                continue;
            }
            match secret(name, lookups) {
                Ok(Some(bytes)) => Cow::Owned(bytes),
                Ok(None) => continue,
                Err(reason) => {
                    warnings.push(format!(
                        "x_kubevirt_features in Secret `{name}`, if there is any, is not applied: {reason}"
                    ));
                    continue;
                }
            }
        } else {
            continue;
        };
        match parse(&text) {
            Ok(None) => {}
            Ok(Some(entries)) => return values(entries, warnings),
            Err(reason) => warnings.push(format!("x_kubevirt_features was not read: {reason}")),
        }
    }
    Vec::new()
}

/// Reads the map out of user data.
///
/// # Errors
/// A text that names the map and cannot be read, with the reason.
pub(crate) fn parse(text: &[u8]) -> Result<Option<serde_json::Map<String, Value>>, String> {
    // most user data has no such map: do not parse YAML to find that out
    let Ok(text) = std::str::from_utf8(text) else { return Ok(None) };
    if !text.contains(MAP) {
        return Ok(None);
    }
    if text.len() > MAX_USER_DATA {
        return Err(format!("the user data is longer than {MAX_USER_DATA} bytes"));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        budget: serde_saphyr::budget! {
            max_events: 20_000,
            max_aliases: 100,
            max_anchors: 100,
            max_depth: 64,
        },
    };
    serde_saphyr::from_str_with_options::<CloudConfig>(text, options)
        .map(|config| config.x_kubevirt_features)
        .map_err(|error| format!("the user data is not a YAML mapping: {}", first_line(&error.to_string())))
}

fn values(entries: serde_json::Map<String, Value>, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    if entries.len() > MAX_KEYS {
        warnings.push(format!("x_kubevirt_features: only the first {MAX_KEYS} keys are looked at"));
    }
    entries
        .into_iter()
        .take(MAX_KEYS)
        .filter_map(|(key, value)| {
            let text = match value {
                Value::Null => String::new(),
                Value::Bool(true) => "enabled".to_owned(),
                Value::Bool(false) => "disabled".to_owned(),
                Value::String(text) => text,
                other => other.to_string(),
            };
            if text.len() > MAX_VALUE {
                warnings.push(format!(
                    "x_kubevirt_features: the value of `{key}` is longer than {MAX_VALUE} bytes, it is ignored"
                ));
                return None;
            }
            Some((key, text))
        })
        .collect()
}

/// The cloud-init sections of the VM's volumes.
fn sources(object: &Value) -> impl Iterator<Item = &Value> {
    at(object, &["spec", "template", "spec", "volumes"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .flatten()
        .filter(|(kind, _)| matches!(kind.as_str(), "cloudInitNoCloud" | "cloudInitConfigDrive"))
        .map(|(_, source)| source)
}

fn secret(name: &str, lookups: &Lookups) -> Result<Option<Vec<u8>>, String> {
    match lookups.get(&Need::Secret(name.to_owned())) {
        None => Err("it was not read".to_owned()),
        Some(Lookup::NotFound) => Err("it does not exist".to_owned()),
        Some(Lookup::Failed(reason)) => Err(reason.clone()),
        Some(Lookup::Found(secret)) => {
            let field =
                |section: &str| SECRET_KEYS.iter().find_map(|key| secret.get(section)?.get(key)?.as_str());
            // stringData is how a manifest that was not applied yet may carry it
            match (field("data"), field("stringData")) {
                (Some(encoded), _) => decode(encoded).map(Some),
                (None, Some(text)) => Ok(Some(text.as_bytes().to_vec())),
                (None, None) => Ok(None),
            }
        }
    }
}

fn decode(encoded: &str) -> Result<Vec<u8>, String> {
    if encoded.len() > MAX_USER_DATA / 3 * 4 + 4 {
        return Err(format!("it is longer than {MAX_USER_DATA} bytes"));
    }
    let compact: Cow<'_, str> = if encoded.contains(|letter: char| letter.is_ascii_whitespace()) {
        Cow::Owned(encoded.split_ascii_whitespace().collect())
    } else {
        Cow::Borrowed(encoded)
    };
    STANDARD.decode(compact.as_bytes()).map_err(|error| format!("it is not base64: {error}"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
