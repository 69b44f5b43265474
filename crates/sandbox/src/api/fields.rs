//! Which fields a kind has, and who owns them.

use apimachinery::apply::{Reset, Writer, manager_from_user_agent, sealed, track_update};
use apimachinery::schema::{strict_error, strict_patch_error, unknown_field_warnings};
use apimachinery::tree::Value;
use apimachinery::{FieldError, Status};

use super::query::FieldValidation;
use super::{Api, Call};
use crate::registry::Kind;

/// Drops fields that a kind does not have, as decoding and pruning do in a real server, and fills
/// in the defaults of a custom kind's schema. Says so when the client wants to know.
///
/// # Errors
/// 400 for values of the wrong type, and for fields that are unknown or there twice in strict mode (422 in a patch).
pub fn normalize(call: &mut Call, object: &mut Value, validation: FieldValidation) -> Result<(), Status> {
    let kind = call.kind.clone();
    // Kept where somebody may come to read it: what does not fit a built-in kind is an error.
    let told = kind.definition().is_none() || validation == FieldValidation::Strict;
    let told = told && call.content_type.contains("patch");
    let patched = told.then(|| object.clone());
    let written = |patched: &Value| serde_json::to_string(&sealed::Whole(patched)).unwrap_or_default();
    let tracked = sealed::take(object);
    let unknown = match kind.definition() {
        None => kind.object_type.normalize(object).map_err(|why: String| {
            // A patch is at fault for what it makes of the object.
            if let Some(patched) = &patched {
                return Status::invalid("", "", "", &[FieldError::invalid("patch", written(patched), why)]);
            }
            let (kind, version) = (&kind.kind, &kind.version);
            Status::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
            ))
        })?,
        Some(definition) => {
            let unknown = definition.schema.prune(object);
            definition.schema.default(object);
            unknown
        }
    };
    if let Some(tracked) = tracked {
        sealed::put(object, tracked);
    }
    let mut complaints = call.complaints.clone();
    complaints.extend(unknown_field_warnings(&unknown));
    match validation {
        _ if complaints.is_empty() => Ok(()),
        FieldValidation::Strict => Err(match patched {
            Some(patched) => strict_patch_error(&written(&patched), &complaints),
            None => strict_error(&kind.version, &kind.kind, &complaints),
        }),
        FieldValidation::Warn => {
            warn(call, &complaints);
            Ok(())
        }
        FieldValidation::Ignore => Ok(()),
    }
}

/// What is wrong with a body becomes warnings, those of YAML line by line (`parseYAMLWarnings`).
pub fn warn(call: &mut Call, complaints: &[String]) {
    for complaint in complaints {
        let complaint = complaint.strip_prefix("error converting YAML to JSON: ").unwrap_or(complaint);
        let lines = complaint.strip_prefix("yaml: unmarshal errors:\n").unwrap_or(complaint).lines();
        for warning in lines.map(str::trim) {
            if !call.warnings.iter().any(|one| one == warning) {
                call.warnings.push(warning.to_owned());
            }
        }
    }
}

/// What a request through this path cannot come to own.
pub fn reset(kind: &Kind, subresource: &str) -> Reset {
    match subresource {
        "" if kind.subresource("status").is_some() => Reset::Status,
        "status" if kind.definition().is_some() => Reset::AllButStatus,
        "status" => Reset::Spec,
        _ => Reset::Nothing,
    }
}

/// Who writes.
#[derive(Clone, Debug)]
pub struct Manager {
    name: String,
    api_version: String,
    subresource: String,
}

impl Manager {
    /// From `fieldManager`, or what the client calls itself.
    pub fn of(call: &Call) -> Self {
        let name = call
            .query
            .get("fieldManager")
            .map_or_else(|| manager_from_user_agent(&call.user_agent), str::to_owned);
        Self { name, api_version: call.kind.api_version(), subresource: call.target.subresource.clone() }
    }

    /// For the machinery.
    pub fn writer(&self) -> Writer<'_> {
        Writer { manager: &self.name, api_version: &self.api_version, subresource: &self.subresource }
    }
}

impl Api {
    /// Writes down which fields a create, update or patch made its own.
    pub fn track(&self, call: &Call, old: Option<&Value>, new: &mut Value) {
        let manager = Manager::of(call);
        let reset = reset(&call.kind, &call.target.subresource);
        track_update(old, new, &call.kind.object_type, &manager.writer(), reset, self.clock.now());
    }
}
