//! Kubernetes quantities as whole numbers of thousandths (`apimachinery resource.Quantity`).

use serde_json::Value;

/// A quantity in thousandths of its unit. What cannot be read counts as `None`.
pub fn milli(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

/// A quantity in whole units, rounded up, as `Quantity.Value()` does.
pub fn units(value: &Value) -> Option<i64> {
    let milli = milli(value)?;
    i64::try_from(milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0)).ok()
}

fn parse(text: &str) -> Option<i128> {
    let digits =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (numerator, denominator) = scale(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.trim_start_matches(['+', '-']);
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 || whole.len() > 19 {
        return None;
    }
    let unsigned: i128 = format!("{whole}{fraction}").parse().ok()?;
    let base = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    let scaled = unsigned.checked_mul(numerator)?.checked_mul(1000)?;
    let milli = scaled.div_euclid(base) + i128::from(scaled.rem_euclid(base) != 0);
    Some(if negative { -milli } else { milli })
}

/// What a suffix multiplies with, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_i128.pow(power), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs().min(18))?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

/// Bytes in the shortest binary form, as a `BinarySI` quantity is written.
pub fn bytes(value: i64) -> String {
    let mut shown = value;
    for suffix in ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        if shown == 0 || shown % 1024 != 0 || suffix == "Ei" {
            return format!("{shown}{suffix}");
        }
        shown /= 1024;
    }
    value.to_string()
}

/// Thousandths in the shortest decimal form: `1`, `1500m`.
pub fn cpu(milli: i64) -> String {
    if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (value, expected) in [
            (json!("200m"), Some(200)),
            (json!("1"), Some(1000)),
            (json!(2), Some(2000)),
            (json!("1.5"), Some(1500)),
            (json!("1Ki"), Some(1_024_000)),
            (json!("35M"), Some(35_000_000_000)),
            (json!("1e3"), Some(1_000_000)),
            (json!("1E"), Some(1_000_000_000_000_000_000_000)),
            (json!("100n"), Some(1)),
            (json!("-1"), Some(-1000)),
            (json!("x"), None),
            (json!(""), None),
            (json!(null), None),
            (json!("999999999999999999999999Ei"), None),
        ] {
            assert_eq!(milli(&value), expected, "{value}");
        }
    }

    #[test]
    fn bytes_take_the_largest_whole_unit() {
        for (value, text) in
            [(0, "0"), (1023, "1023"), (1320 << 20, "1320Mi"), (4 << 30, "4Gi"), (310_378_496, "296Mi")]
        {
            assert_eq!(bytes(value), text);
        }
    }
}
