//! What a client is told about fields that are not known (`fieldValidation`).

use crate::field_error::quote;
use crate::{FieldError, Status};

/// The `400` of a create or update with `fieldValidation=Strict`; `unknown` are paths.
pub fn strict_error(version: &str, kind: &str, complaints: &[String]) -> Status {
    let kind_and_version = format!("{kind} in version {} cannot be handled as a {kind}", quote(version));
    Status::bad_request(format!("{kind_and_version}: {}", strict_message(complaints)))
}

/// The `422` of a patch with `fieldValidation=Strict`; `patched` is the object that it makes.
pub fn strict_patch_error(patched: &str, complaints: &[String]) -> Status {
    Status::invalid("", "", "", &[FieldError::invalid("patch", patched, strict_message(complaints))])
}

/// The texts of the warnings with `fieldValidation=Warn`.
pub fn unknown_field_warnings(unknown: &[String]) -> Vec<String> {
    unknown.iter().map(|path| format!("unknown field {}", quote(path))).collect()
}

fn strict_message(complaints: &[String]) -> String {
    format!("strict decoding error: {}", complaints.join(", "))
}
