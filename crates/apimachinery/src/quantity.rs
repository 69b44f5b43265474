//! Amounts of CPU, memory and the like (`apimachinery resource.Quantity`, Kubernetes 1.36): read,
//! added, compared and printed.
//!
//! Everything counts in whole thousandths of the unit, so `100m` of CPU is 100 and `1Ki` of memory is
//! 1,024,000. What is finer is rounded away from zero, as `Quantity.MilliValue` does.

use std::fmt;
use std::ops::{Add, Sub};

use std::borrow::Cow;

use crate::tree::Value;

/// Longest run of digits before and after the point: more than any amount has, and few enough that
/// nothing below overflows unnoticed.
const DIGITS_MAX: usize = 19;

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];

/// An amount in thousandths, and the family of suffixes that it is printed with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    milli: i128,
    binary: bool,
}

/// JSON of either library that may say an amount.
pub trait Amount {
    /// The text or the number that it is.
    fn said(&self) -> Option<Cow<'_, str>>;
    /// Whether it is a text.
    fn is_text(&self) -> bool;
}

impl Amount for Value {
    fn said(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::String(text) => Some(text.as_str().into()),
            Self::Number(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    fn is_text(&self) -> bool {
        self.is_string()
    }
}

impl Amount for serde_json::Value {
    fn said(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::String(text) => Some(text.into()),
            Self::Number(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    fn is_text(&self) -> bool {
        self.is_string()
    }
}

impl<T: Amount> Amount for &T {
    fn said(&self) -> Option<Cow<'_, str>> {
        (**self).said()
    }

    fn is_text(&self) -> bool {
        (**self).is_text()
    }
}

/// Thousandths of the unit; `None` for what is no quantity.
pub fn milli(value: &impl Amount) -> Option<i128> {
    Quantity::parse(value).map(|quantity| quantity.milli)
}

/// Whole units, rounded up, as `Quantity.Value` does; `None` also for what is out of range.
pub fn units(value: &impl Amount) -> Option<i64> {
    let milli = milli(value)?;
    i64::try_from(milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0)).ok()
}

/// A quantity as the API server writes what it has read: `1024Mi` is `1Gi`, `0.5` is `500m`. Exponents, and what is finer
/// than a thousandth, stay as they are. `None` for what is no quantity.
pub fn canonical(value: &impl Amount) -> Option<String> {
    let quantity = Quantity::parse(value)?;
    let said = value.said()?;
    let exponent = said.ends_with(|c: char| c.is_ascii_digit()) && said.contains('E');
    if value.is_text() && (exponent || said.contains(['e', 'n', 'u'])) {
        return Some(said.into_owned());
    }
    Some(quantity.to_string())
}

/// Bytes as a `BinarySI` quantity is written: the largest suffix that leaves a whole number.
pub fn bytes(value: i64) -> String {
    let mut shown = value;
    let mut suffix = "";
    for next in BINARY {
        if shown == 0 || shown % 1024 != 0 {
            break;
        }
        shown /= 1024;
        suffix = next;
    }
    format!("{shown}{suffix}")
}

/// Thousandths of a CPU in the shortest decimal form: `1`, `1500m`.
pub fn cpu(milli: i64) -> String {
    if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") }
}

impl Quantity {
    /// A number of things.
    pub fn count(count: usize) -> Self {
        Self { milli: i128::try_from(count).unwrap_or(i128::MAX / 1000) * 1000, binary: false }
    }

    /// Reads `500m`, `1Gi`, `1.5`, `2e3` or a number; `None` for what is none.
    pub fn parse(value: &impl Amount) -> Option<Self> {
        Self::read(&value.said()?)
    }

    fn read(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (up, down, binary) = scale(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty())
            || whole.len() > DIGITS_MAX
            || fraction.len() > DIGITS_MAX
        {
            return None;
        }
        // A second point does not parse.
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let down = down.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
        let scaled = digits.checked_mul(up)?.checked_mul(1000)?;
        let milli = scaled / down + i128::from(scaled % down != 0);
        Some(Self { milli: if negative { -milli } else { milli }, binary })
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

    /// Whether this is more than `ratio` times `of`.
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
            let (up, down) = if exponent < 0 { (1, power) } else { (power, 1) };
            (power <= 1_000_000_000_000_000_000).then_some((up, down, false))
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
    use crate::tree::json;

    use super::*;

    #[test]
    fn amounts_are_read_as_the_api_reads_them() {
        let cases = [
            (json!("100m"), Some(100)),
            (json!("1"), Some(1000)),
            (json!(2), Some(2000)),
            (json!("1.5"), Some(1500)),
            (json!("+.5"), Some(500)),
            (json!("64Mi"), Some(64 * 1024 * 1024 * 1000)),
            (json!("35M"), Some(35_000_000_000)),
            (json!("1e3"), Some(1_000_000)),
            (json!("1e-1"), Some(100)),
            (json!("1E"), Some(1_000_000_000_000_000_000_000)),
            (json!("-1"), Some(-1000)),
            (json!("1n"), Some(1)),
            (json!("-1n"), Some(-1)),
            (json!("1.2.3"), None),
            (json!("--1"), None),
            (json!("x"), None),
            (json!(""), None),
            (json!(".."), None),
            (json!("1Xi"), None),
            (json!("1e99"), None),
            (json!("999999999999999999999999Ei"), None),
            (json!(null), None),
        ];
        for (value, want) in cases {
            assert_eq!(milli(&value), want, "{value}");
        }
        assert_eq!((units(&json!("1001m")), units(&json!("-1500m"))), (Some(2), Some(-1)));
    }

    #[test]
    fn what_was_read_is_written_in_its_shortest_form() {
        for (value, want) in [
            (json!("1024Mi"), Some("1Gi")),
            (json!("1.5Gi"), Some("1536Mi")),
            (json!("0.5"), Some("500m")),
            (json!("1000m"), Some("1")),
            (json!("35M"), Some("35M")),
            (json!("1000M"), Some("1G")),
            (json!(2), Some("2")),
            (json!("1E"), Some("1E")),
            (json!("1e3"), Some("1e3")),
            (json!("1E3"), Some("1E3")),
            (json!("100n"), Some("100n")),
            (json!("1Qi"), None),
        ] {
            assert_eq!(canonical(&value).as_deref(), want, "{value}");
        }
    }

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
        let sum = Quantity::parse(&json!("1Gi")).unwrap() + Quantity::parse(&json!("512Mi")).unwrap();
        assert_eq!(sum.to_string(), "1536Mi");
    }

    #[test]
    fn bytes_take_the_largest_whole_unit() {
        for (value, text) in
            [(0, "0"), (1023, "1023"), (1320 << 20, "1320Mi"), (4 << 30, "4Gi"), (310_378_496, "296Mi")]
        {
            assert_eq!(bytes(value), text);
        }
        assert_eq!((cpu(2000), cpu(1500)), ("2".into(), "1500m".into()));
    }
}
