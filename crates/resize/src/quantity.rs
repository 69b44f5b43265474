//! Kubernetes quantities as whole numbers: bytes of memory, thousandths of a CPU.

use serde_json::Value;

/// The longest text that is read as a quantity.
const LONGEST: usize = 40;

/// A quantity in whole units, rounded up, as `Quantity.Value()` does: bytes of memory. `None`: not
/// a quantity, negative, or more than fits.
pub fn bytes(value: &Value) -> Option<u64> {
    u64::try_from(milli(value)?.div_ceil(1000)).ok()
}

/// A quantity in thousandths, rounded up: CPUs as millicores.
pub fn millis(value: &Value) -> Option<u64> {
    u64::try_from(milli(value)?).ok()
}

/// Bytes in the largest binary unit that divides them, as Kubernetes writes them back.
///
/// ```
/// assert_eq!(resize::quantity::show_bytes(2 << 30), "2Gi");
/// assert_eq!(resize::quantity::show_bytes(1536 << 20), "1536Mi");
/// ```
pub fn show_bytes(bytes: u64) -> String {
    let mut shown = bytes;
    for suffix in ["", "Ki", "Mi", "Gi", "Ti"] {
        if shown == 0 || !shown.is_multiple_of(1024) {
            return format!("{shown}{suffix}");
        }
        shown /= 1024;
    }
    format!("{shown}Pi")
}

/// Millicores as Kubernetes writes them: `2`, `400m`.
pub fn show_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

fn milli(value: &Value) -> Option<u128> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

fn parse(text: &str) -> Option<u128> {
    if text.len() > LONGEST {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (numerator, denominator) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unsigned: u128 = format!("{whole}{fraction}").parse().ok()?;
    let base = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    Some(unsigned.checked_mul(numerator)?.checked_mul(1000)?.div_ceil(base))
}

/// What a suffix multiplies with, as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    match suffix {
        "n" => return Some((1, 1_000_000_000)),
        "u" => return Some((1, 1_000_000)),
        "m" => return Some((1, 1000)),
        "" => return Some((1, 1)),
        _ => {}
    }
    if let Some(power) = BINARY.iter().position(|one| *one == suffix) {
        return Some((1024_u128.checked_pow(u32::try_from(power).ok()? + 1)?, 1));
    }
    if let Some(power) = DECIMAL.iter().position(|one| *one == suffix) {
        return Some((1000_u128.checked_pow(u32::try_from(power).ok()? + 1)?, 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs().min(18))?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("2Gi", Some(2 << 30)),
            ("1536Mi", Some(1536 << 20)),
            ("310378496", Some(310_378_496)),
            ("1.5Gi", Some(3 << 29)),
            ("1e3", Some(1000)),
            ("1G", Some(1_000_000_000)),
            ("100m", Some(1)),
            ("+5", Some(5)),
            ("-1", None),
            ("", None),
            (".", None),
            ("1Xi", None),
            ("1e", None),
            ("99999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(bytes(&json!(text)), expected, "{text}");
        }
        assert_eq!(bytes(&json!(1024)), Some(1024));
        assert_eq!(bytes(&json!({})), None);
        assert_eq!(millis(&json!("0.5")), Some(500));
        assert_eq!(millis(&json!(2)), Some(2000));
    }

    #[test]
    fn what_is_shown_reads_back() {
        for value in [0, 1, 1024, 310_378_496, 2 << 30, 3 << 50, u64::MAX] {
            assert_eq!(bytes(&json!(show_bytes(value))), Some(value));
        }
        for value in [0, 1, 200, 1000, 12_345] {
            assert_eq!(millis(&json!(show_cpu(value))), Some(value));
        }
    }
}
