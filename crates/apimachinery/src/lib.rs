//! What the Kubernetes API does to objects, as pure functions: patches, server-side apply,
//! structural schemas, selectors, RBAC, CEL. No IO, no async, no clock.

pub mod apply;
pub mod cel;
pub mod depth;
pub mod field_error;
pub mod jsonpath;
pub mod patch;
pub mod quantity;
pub mod rbac;
pub mod schema;
pub mod selector;
mod status;
pub mod tree;
mod types;
pub mod validation;

pub use field_error::{FieldError, FieldErrorKind};
pub use status::{Cause, Status};
pub use types::{ObjectType, shared_schemas};
