//! What admission has to say beside its verdict.

use std::collections::{BTreeMap, HashSet};

/// Letters that the warnings of one answer may have together, before they are cut.
const TOTAL: usize = 4 * 1024;
/// Letters of one warning when they are cut.
const EACH: usize = 256;

/// Warnings for the client, annotations for the audit log.
#[derive(Debug, Default)]
pub struct Notes {
    recorded: Vec<String>,
    seen: HashSet<String>,
    /// `<webhook>/<key>` → value
    pub audit_annotations: BTreeMap<String, String>,
}

impl Notes {
    /// Adds a warning; empty ones and repetitions are dropped.
    pub fn warn(&mut self, text: &str) {
        if !text.is_empty() && self.seen.insert(text.to_owned()) {
            self.recorded.push(text.to_owned());
        }
    }

    /// The warnings as the client gets them: whole while they have up to 4096 letters together; else each is cut
    /// at 256, and those beyond 4096 are dropped (`k8s.io/apiserver pkg/endpoints/filters/warning.go`, 1.36).
    pub fn warnings(&self) -> Vec<String> {
        let total: usize = self.recorded.iter().map(|text| text.chars().count()).sum();
        if total <= TOTAL {
            return self.recorded.clone();
        }
        let mut written = 0;
        let mut out = Vec::new();
        for text in &self.recorded {
            if written >= TOTAL {
                break;
            }
            let cut: String = text.chars().take(EACH).collect();
            written += cut.chars().count();
            out.push(cut);
        }
        out
    }

    pub(crate) fn absorb(&mut self, other: Self) {
        for warning in &other.recorded {
            self.warn(warning);
        }
        self.audit_annotations.extend(other.audit_annotations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_warnings_are_cut_only_when_all_together_are_too_long() {
        let mut notes = Notes::default();
        notes.warn(&"ä".repeat(4000));
        notes.warn("");
        notes.warn("second");
        notes.warn("second");
        assert_eq!(notes.warnings().len(), 2);
        assert_eq!(notes.warnings()[0].chars().count(), 4000);
        notes.warn(&"b".repeat(100));
        let lengths: Vec<usize> = notes.warnings().iter().map(|text| text.chars().count()).collect();
        assert_eq!(lengths, [256, 6, 100]);
        for index in 0..40 {
            notes.warn(&format!("{index:>300}"));
        }
        assert!(notes.warnings().len() < 20);
    }
}
