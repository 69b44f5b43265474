//! Server-side apply: `PATCH` with `application/apply-patch+yaml`.

use std::sync::Arc;

use apimachinery::apply::{self, apply, sealed};
use apimachinery::tree::Value;
use apimachinery::{FieldError, ObjectType, Status};
use jiff::Timestamp;

use super::fields::{Manager, reset};
use super::meta::text;
use super::query::{FieldValidation, invalid_options};
use super::reply::Reply;
use super::write::respond;
use super::{Api, Call, decode, fields, twice};

impl Api {
    /// Applies a configuration; creates the object when it is not there.
    ///
    /// # Errors
    /// 409 with one cause for each field that others own; 422 without a field manager.
    pub async fn apply(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        if call.query.get("fieldManager").is_none() {
            let message = "Required value: is required for apply patch";
            return Err(invalid_options("PatchOptions", "fieldManager", "FieldValueRequired", message));
        }
        let validation = call.query.field_validation("PatchOptions")?;
        let mut config = decode::parse("application/apply-patch+yaml", &call.body)?;
        let subresource = !call.target.subresource.is_empty();
        decode::check_kind(&mut config, &call.kind)?;
        apply::check(&config, &call.kind.object_type)?;
        if let Some(said) = std::str::from_utf8(&call.body).ok().and_then(twice::yaml) {
            let said = format!("error converting YAML to JSON: {said}");
            match validation {
                FieldValidation::Strict => {
                    return Err(Status::bad_request(format!("error strict decoding YAML: {said}")));
                }
                FieldValidation::Warn => fields::warn(call, &[said]),
                FieldValidation::Ignore => {}
            }
        }
        let named = text(&config, "name");
        if named.is_empty() {
            super::meta::metadata(&mut config).insert("name".into(), call.target.name.clone().into());
        } else if named != call.target.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({})",
                call.target.name
            )));
        }
        // A configuration owns what it names, so only what cannot be kept is taken out of it.
        let mut probe = config.clone();
        fields::normalize(call, &mut probe, validation)?;
        let merge = Merge {
            config,
            ty: call.kind.object_type.clone(),
            manager: Manager::of(call),
            reset: reset(&call.kind, &call.target.subresource),
            force: call.query.flag("force"),
            now: self.clock.now(),
        };
        let live = self.stored(call);
        refuse_uid(call, text(&merge.config, "uid"), live.as_ref().ok().map(|live| live.value()).as_deref())?;
        if !subresource && live.is_err_and(|status| status.code == 404) {
            let mut object = merge.over(None)?;
            // There is no version yet that it could insist on.
            super::meta::metadata(&mut object).remove("resourceVersion");
            let written = self.create_object(call, object, "PatchOptions").await?;
            return Ok(respond(&call.presenter(self), 201, &written));
        }
        let written = self.change(call, &|current| merge.over(Some(current))).await?;
        Ok(respond(&call.presenter(self), 200, &written))
    }
}

/// A configuration may name the uid of the very object that it is applied to.
fn refuse_uid(call: &Call, uid: &str, live: Option<&Value>) -> Result<(), Status> {
    let (kind, name) = (&call.kind, &call.target.name);
    match live {
        _ if uid.is_empty() => Ok(()),
        Some(live) if text(live, "uid") == uid => Ok(()),
        Some(_) => {
            let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
            Err(Status::invalid(&kind.group, &kind.kind, name, &[error.clone(), error]))
        }
        None => {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            Err(Status::conflict(&kind.group, &kind.plural, name, &why))
        }
    }
}

struct Merge {
    config: Value,
    ty: ObjectType,
    manager: Manager,
    reset: apimachinery::apply::Reset,
    force: bool,
    now: Timestamp,
}

impl Merge {
    fn over(&self, live: Option<&Value>) -> Result<Value, Status> {
        let applied =
            apply(live, &self.config, &self.ty, &self.manager.writer(), self.force, self.reset, self.now)?;
        let mut object = applied.object;
        sealed::close(&mut object);
        Ok(object)
    }
}
