//! Server-side apply: `PATCH` with `application/apply-patch+yaml`.

use std::sync::Arc;

use apimachinery::apply::apply;
use apimachinery::{ObjectType, Status};
use jiff::Timestamp;
use serde_json::Value;

use super::fields::{Manager, reset};
use super::meta::text;
use super::query::invalid_options;
use super::reply::Reply;
use super::write::respond;
use super::{Api, Call, decode, fields};

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
        if !subresource && self.stored(call).is_err_and(|status| status.code == 404) {
            let uid = text(&merge.config, "uid");
            if !uid.is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(Status::conflict(&call.kind.group, &call.kind.plural, &call.target.name, &why));
            }
            let object = merge.over(None)?;
            let written = self.create_object(call, object, "PatchOptions").await?;
            return Ok(respond(&call.presenter(self), 201, &written));
        }
        let written = self.change(call, &|current| merge.over(Some(current))).await?;
        Ok(respond(&call.presenter(self), 200, &written))
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
        Ok(applied.object)
    }
}
