//! Values as text: what flags and environment variables may say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use features::{DeviceNames, ErrorMode, GpuMode, Source};

use super::{FailurePolicy, LogFormat, LogLevel, RegisterMode, TlsSource};

/// Spelling without case, dashes and underscores: `StripLabel` is `strip-label`.
fn plain(text: &str) -> String {
    text.trim().chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

fn one_of<T: Copy>(text: &str, accepted: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let wanted = plain(text);
    choices
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("unknown value \"{text}\"; accepted: {accepted}"))
}

pub(super) fn error_mode(text: &str) -> Result<ErrorMode, String> {
    one_of(
        text,
        "reject, allow-and-log (also: allow, KeepLabel), strip-label (also: StripLabel)",
        &[
            ("reject", ErrorMode::Reject),
            ("allowandlog", ErrorMode::AllowAndLog),
            ("allow", ErrorMode::AllowAndLog),
            ("keeplabel", ErrorMode::AllowAndLog),
            ("striplabel", ErrorMode::StripLabel),
        ],
    )
}

pub(super) fn source(text: &str) -> Result<Source, String> {
    one_of(
        text,
        "annotations, labels, both",
        &[("annotations", Source::Annotations), ("labels", Source::Labels), ("both", Source::Both)],
    )
}

pub(super) fn device_names(text: &str) -> Result<DeviceNames, String> {
    one_of(text, "resolve, raw", &[("resolve", DeviceNames::Resolve), ("raw", DeviceNames::Raw)])
}

pub(super) fn gpu_mode(text: &str) -> Result<GpuMode, String> {
    one_of(text, "devices, limits", &[("devices", GpuMode::Devices), ("limits", GpuMode::Limits)])
}

pub(super) fn log_level(text: &str) -> Result<LogLevel, String> {
    one_of(
        text,
        "trace, debug, info, warn, error",
        &[
            ("trace", LogLevel::Trace),
            ("debug", LogLevel::Debug),
            ("info", LogLevel::Info),
            ("warn", LogLevel::Warn),
            ("warning", LogLevel::Warn),
            ("error", LogLevel::Error),
        ],
    )
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    one_of(text, "json, text", &[("json", LogFormat::Json), ("text", LogFormat::Text)])
}

pub(super) fn register_mode(text: &str) -> Result<RegisterMode, String> {
    one_of(
        text,
        "service, url, none",
        &[("service", RegisterMode::Service), ("url", RegisterMode::Url), ("none", RegisterMode::None)],
    )
}

pub(super) fn failure_policy(text: &str) -> Result<FailurePolicy, String> {
    one_of(text, "Fail, Ignore", &[("fail", FailurePolicy::Fail), ("ignore", FailurePolicy::Ignore)])
}

pub(super) fn tls_source(text: &str) -> Result<TlsSource, String> {
    one_of(text, "files, self-signed", &[("files", TlsSource::Files), ("selfsigned", TlsSource::SelfSigned)])
}

/// What Go's `strconv.ParseBool` takes, and yes/no, on/off, enabled/disabled, in any case.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match plain(text).as_str() {
        "true" | "t" | "1" | "yes" | "y" | "on" | "enabled" => Ok(true),
        "false" | "f" | "0" | "no" | "n" | "off" | "disabled" => Ok(false),
        _ => Err(format!("\"{text}\" is not a boolean; accepted: true, false, 1, 0, yes, no, on, off")),
    }
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("\"{text}\" is not a number in range"))
}

/// A comma-separated list; blanks around entries and empty entries do not count.
#[allow(clippy::unnecessary_wraps)] // same shape as the other readers, for the table of settings
pub(super) fn list(text: &str) -> Result<Vec<String>, String> {
    Ok(text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect())
}

/// `:8080`, `address:8080`, `0` or nothing for "do not serve".
pub(super) fn bind_address(text: &str) -> Result<Option<SocketAddr>, String> {
    let text = text.trim();
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    if let Some(port) = text.strip_prefix(':') {
        let port = number(port)?;
        return Ok(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)));
    }
    text.replace("localhost", "127.0.0.1")
        .parse()
        .map(Some)
        .map_err(|_| format!("\"{text}\" is not an address; accepted: :PORT, ADDRESS:PORT, 0 for none"))
}

/// An HTTP URL of a collector; one with a password in it is refused, since it would be printed.
pub(super) fn otlp_endpoint(text: &str) -> Result<(), String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("\"{text}\" is not a URL: {error}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => Ok(()),
        (_, Some(authority)) if authority.as_str().contains('@') => {
            Err("user and password do not belong into the URL; put them into OTEL_EXPORTER_OTLP_HEADERS"
                .into())
        }
        _ => Err(format!("\"{text}\" must be http://HOST:PORT or https://HOST:PORT")),
    }
}
