//! What an apply that meets other managers' fields is answered.

use super::managers::{Entry, Operation};
use super::set::Set;
use crate::field_error::quote;
use crate::{Cause, Status};

/// More conflicts than this are not listed.
const MAX_LISTED: usize = 200;

/// `409 Conflict` with one cause for each field of each manager, managers in a stable order.
pub(super) fn status(mut conflicts: Vec<(&Entry, Set)>) -> Status {
    conflicts.sort_by(|(a, _), (b, _)| (&a.manager, a.operation).cmp(&(&b.manager, b.operation)));
    let mut causes = Vec::new();
    let mut blocks = Vec::new();
    let mut total = 0;
    for (entry, set) in &conflicts {
        let manager = describe(entry);
        let paths = set.paths();
        total += paths.len();
        let lines: Vec<String> = paths.iter().take(MAX_LISTED).map(|path| format!("- {path}")).collect();
        blocks.push(format!("conflicts with {manager}:\n{}", lines.join("\n")));
        causes.extend(paths.into_iter().map(|field| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {manager}"),
            field,
        }));
    }
    causes.truncate(MAX_LISTED);
    let message = match causes.as_slice() {
        [one] if total == 1 => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        _ => format!("Apply failed with {total} conflicts: {}", blocks.join("\n")),
    };
    let mut status = Status::new(409, "Conflict", message);
    status.causes = causes;
    status
}

fn describe(entry: &Entry) -> String {
    let mut out = quote(&entry.manager);
    if !entry.subresource.is_empty() {
        out = format!("{out} with subresource {}", quote(&entry.subresource));
    }
    if entry.operation == Operation::Update {
        out = format!("{out} using {}", entry.api_version);
    }
    out
}
