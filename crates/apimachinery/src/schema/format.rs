//! The `format` of strings and integers, as far as the API server checks it and KubeVirt's CRDs use it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::tree::Value;

/// Whether a value has a format. Formats that are not known are not checked, as in the API server.
pub(super) fn fits(format: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => fits_text(format, text),
        Value::Number(number) => match format {
            "int32" => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            "int64" => number.is_i64(),
            _ => true,
        },
        _ => true,
    }
}

fn fits_text(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text),
        "byte" => is_base64(text),
        "duration" => crate::cel::is_duration(text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= most)
}

fn is_mac(text: &str) -> bool {
    let hex = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    [':', '-'].iter().any(|separator| {
        let parts: Vec<&str> = text.split(*separator).collect();
        matches!(parts.len(), 6 | 8 | 20) && parts.into_iter().all(hex)
    })
}

fn is_uuid(text: &str) -> bool {
    let digits: String = text.split('-').collect();
    let groups = text.split('-').map(str::len).collect::<Vec<_>>();
    digits.len() == 32
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && (groups == [8, 4, 4, 4, 12] || groups == [32])
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}
