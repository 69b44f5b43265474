//! What `admit` prints.

use std::fmt::Write as _;

use anyhow::Result;
use features::{Outcome, OutcomeResult};
use serde_json::{Value, json};

use super::{Admission, Output};
use crate::style::{Style, Tone};
use crate::table;
use crate::{diff, output};

/// Prints admissions, and for [`Output::Yaml`] the other objects of the files before them.
pub fn print(form: Output, others: &[Value], admissions: &[Admission]) -> Result<()> {
    let text = match form {
        Output::Diff => diffs(admissions, Style::of_stdout())?,
        Output::Patch => patches(admissions)?,
        Output::Yaml => documents(others, admissions)?,
        Output::Json => json(admissions)?,
    };
    if matches!(form, Output::Patch | Output::Yaml) {
        for admission in admissions {
            eprint!("{}", summary(admission, Style::PLAIN));
        }
    }
    output::print(&text)
}

/// The verdict in words: one line for the VM, one for each feature, one for each warning.
pub fn summary(admission: &Admission, style: Style) -> String {
    let verdict = &admission.verdict;
    let (word, tone) = match &verdict.denial {
        Some(_) => ("denied", Tone::Bad),
        None if verdict.patch.0.is_empty() => ("allowed, unchanged", Tone::Good),
        None => ("allowed, changed", Tone::Good),
    };
    let mut text = format!("VirtualMachine {}: {}\n", admission.key(), style.paint(tone, word));
    if let Some(denial) = &verdict.denial {
        let _ = writeln!(text, "  {denial}");
    }
    let rows: Vec<Vec<String>> = verdict.outcomes.iter().map(row).collect();
    text.push_str(&table::render(&rows));
    for warning in &verdict.warnings {
        let _ = writeln!(text, "  {} {warning}", style.paint(Tone::Caution, "warning:"));
    }
    text
}

fn row(outcome: &Outcome) -> Vec<String> {
    let result = match outcome.result {
        OutcomeResult::Applied => "applied",
        OutcomeResult::Unchanged => "already there",
        OutcomeResult::Removed => "removed",
        OutcomeResult::Rejected => "rejected",
        OutcomeResult::Skipped => "left out",
    };
    // the denial itself says why a feature was rejected
    let rejected = outcome.result == OutcomeResult::Rejected;
    let error = outcome.error.clone().filter(|_| !rejected).unwrap_or_default();
    vec![format!("  {}", outcome.feature), result.to_owned(), error]
}

fn diffs(admissions: &[Admission], style: Style) -> Result<String> {
    let mut text = String::new();
    for admission in admissions {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&summary(admission, style));
        let names = (admission.key(), format!("{} after admission", admission.key()));
        let before = diff::yaml(&admission.before)?;
        let after = diff::yaml(&admission.after)?;
        text.push_str(&diff::unified((&names.0, &names.1), &before, &after, style));
    }
    Ok(text)
}

fn patches(admissions: &[Admission]) -> Result<String> {
    let mut text = String::new();
    for admission in admissions.iter().filter(|admission| admission.verdict.denial.is_none()) {
        text.push_str(&serde_json::to_string(&admission.verdict.patch)?);
        text.push('\n');
    }
    Ok(text)
}

/// What would be stored: a denied VM is left out.
fn documents(others: &[Value], admissions: &[Admission]) -> Result<String> {
    let allowed = admissions.iter().filter(|admission| admission.verdict.denial.is_none());
    let mut text = String::new();
    for object in others.iter().chain(allowed.map(|admission| &admission.after)) {
        text.push_str("---\n");
        text.push_str(&diff::yaml(object)?);
    }
    Ok(text)
}

fn json(admissions: &[Admission]) -> Result<String> {
    let reports: Vec<Value> = admissions
        .iter()
        .map(|admission| {
            let verdict = &admission.verdict;
            json!({
                "namespace": admission.namespace,
                "name": crate::inventory::name(&admission.before),
                "allowed": verdict.denial.is_none(),
                "denial": verdict.denial,
                "warnings": verdict.warnings,
                "outcomes": verdict.outcomes,
                "patch": verdict.patch,
            })
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&json!({ "admissions": reports }))?;
    text.push('\n');
    Ok(text)
}
