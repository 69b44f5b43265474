//! Quantities that are added, compared and printed again (`apimachinery resource.Quantity`, Kubernetes 1.36).

use std::fmt;
use std::ops::{Add, Sub};

use serde_json::Value;

/// An amount in thousandths, and the family of suffixes that it is printed with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    milli: i128,
    binary: bool,
}

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];

impl Quantity {
    /// A number of things.
    pub fn count(count: usize) -> Self {
        Self { milli: i128::try_from(count).unwrap_or(i128::MAX / 1000) * 1000, binary: false }
    }

    /// Reads `500m`, `1Gi`, `1.5`, `2e3` or a number; `None` for what is none. Rounds up to thousandths.
    pub fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::read(text),
            Value::Number(number) => Self::read(&number.to_string()),
            _ => None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        let end =
            text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (up, down, binary) = scale(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.len() > 12 {
            return None;
        }
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let down = down.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
        let scaled = digits.checked_mul(up)?.checked_mul(1000)?;
        let milli = scaled.div_euclid(down) + i128::from(scaled.rem_euclid(down) != 0);
        Some(Self { milli, binary })
    }

    /// Whether there is any.
    pub fn is_positive(self) -> bool {
        self.milli > 0
    }

    /// The larger.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// How many times the other fits in, as a ratio.
    pub fn exceeds_ratio(self, of: Self, ratio: Self) -> bool {
        self.milli.saturating_mul(1000) > of.milli.saturating_mul(ratio.milli)
    }
}

/// What a suffix multiplies and divides with, and whether it is a power of two.
fn scale(suffix: &str) -> Option<(i128, i128, bool)> {
    let power = |index: usize| u32::try_from(index + 1).unwrap_or_default();
    if let Some(index) = BINARY.iter().position(|&known| known == suffix) {
        return Some((1024_i128.pow(power(index)), 1, true));
    }
    if let Some(index) = DECIMAL.iter().position(|&known| known == suffix) {
        return Some((1000_i128.pow(power(index)), 1, false));
    }
    match suffix {
        "" => Some((1, 1, false)),
        "m" => Some((1, 1000, false)),
        "u" => Some((1, 1_000_000, false)),
        "n" => Some((1, 1_000_000_000, false)),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            (power <= 1_000_000_000_000_000_000).then_some(if exponent < 0 {
                (1, power, false)
            } else {
                (power, 1, false)
            })
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.milli == other.milli
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.milli.partial_cmp(&other.milli)
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let binary = if self.milli == 0 { other.binary } else { self.binary };
        Self { milli: self.milli.saturating_add(other.milli), binary }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let binary = if self.milli == 0 { other.binary } else { self.binary };
        Self { milli: self.milli.saturating_sub(other.milli), binary }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli % 1000 != 0 {
            return write!(f, "{}m", self.milli);
        }
        let mut whole = self.milli / 1000;
        let (step, suffixes) =
            if self.binary && whole.abs() >= 1024 { (1024, BINARY) } else { (1000, DECIMAL) };
        let mut suffix = "";
        for next in suffixes {
            if whole == 0 || whole % step != 0 {
                break;
            }
            whole /= step;
            suffix = next;
        }
        write!(f, "{whole}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_printed_as_the_api_prints_them() {
        for (value, want) in [
            (json!("0.5"), "500m"),
            (json!("1500m"), "1500m"),
            (json!("1Gi"), "1Gi"),
            (json!("1.5Gi"), "1536Mi"),
            (json!("512"), "512"),
            (json!(2), "2"),
            (json!("2000"), "2k"),
            (json!("1e3"), "1k"),
            (json!("0"), "0"),
            (json!("100Ki"), "100Ki"),
        ] {
            assert_eq!(Quantity::parse(&value).unwrap().to_string(), want, "{value}");
        }
        for wrong in [json!("x"), json!(""), json!("1Xi"), json!(null), json!("1e99"), json!("..")] {
            assert!(Quantity::parse(&wrong).is_none(), "{wrong}");
        }
        let sum = Quantity::parse(&json!("1Gi")).unwrap() + Quantity::parse(&json!("512Mi")).unwrap();
        assert_eq!(sum.to_string(), "1536Mi");
    }
}
