//! The text format of metrics, as far as figures of VMs need it (Prometheus exposition format 0.0.4).

use std::collections::HashMap;

use super::{Key, is_read};

/// Values by metric and VM; series of one VM, such as its drives, are added up.
#[derive(Clone, Debug, Default)]
pub struct Samples(HashMap<String, HashMap<Key, f64>>);

impl Samples {
    /// Adds the metrics of one page. Lines that are no samples are left out.
    pub fn read(&mut self, page: &str) {
        for (name, key, value) in page.lines().filter_map(sample) {
            *self.0.entry(name.to_owned()).or_default().entry(key).or_default() += value;
        }
    }

    /// All VMs that have a metric.
    pub fn of(&self, name: &str) -> impl Iterator<Item = (&Key, f64)> {
        self.0.get(name).into_iter().flatten().map(|(key, value)| (key, *value))
    }

    /// The metric of one VM.
    pub fn get(&self, name: &str, key: &Key) -> Option<f64> {
        self.0.get(name)?.get(key).copied()
    }
}

/// `name{label="value",…} 1.5 [timestamp]`
fn sample(line: &str) -> Option<(&str, Key, f64)> {
    let (name, rest) = line.split_once('{')?;
    if !is_read(name) {
        return None;
    }
    let (mut namespace, mut vm) = (String::new(), String::new());
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(tail) = rest.strip_prefix('}') {
            let value = tail.split_whitespace().next()?.parse().ok()?;
            return Some((name, (namespace, vm), value));
        }
        let (label, tail) = rest.split_once("=\"")?;
        let (value, tail) = quoted(tail)?;
        match label {
            "namespace" => namespace = value,
            "name" => vm = value,
            _ => {}
        }
        rest = tail;
    }
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_in_any_order_and_may_hold_anything() {
        let metric = "kubevirt_vmi_cpu_usage_seconds_total";
        let mut samples = Samples::default();
        samples.read(&format!(
            "{metric}{{name=\"web\",x=\"}},{{\\\"\",namespace=\"a\"}} 1.5 1700000000\n{metric}{{broken\n{metric}{{name=\"x\n\
             other{{name=\"web\",namespace=\"a\"}} 9\n{metric} 3\n{metric}{{name=\"y\",namespace=\"a\",}} +Inf\n"
        ));
        assert_eq!(samples.get(metric, &("a".into(), "web".into())), Some(1.5));
        assert_eq!(samples.of(metric).count(), 2, "and the infinite one");
        assert_eq!(samples.of("other").count(), 0);
    }
}
