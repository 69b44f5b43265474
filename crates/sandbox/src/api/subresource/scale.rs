//! `scale`: the number of replicas of any kind that has one (`autoscaling/v1 Scale`).

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::patch::{json_patch, merge_patch};
use apimachinery::selector::LabelSelector;
use apimachinery::tree::{Value, json};

use super::super::meta::text;
use super::super::negotiate::unsupported_media_type;
use super::super::reply::{self, Reply};
use super::super::{Api, Call, decode};
use crate::registry::Kind;
use crate::registry::crd::Scale;

impl Api {
    /// `GET`, `PUT` or `PATCH` of `…/x/scale`.
    ///
    /// # Errors
    /// 404; 409 for a stale resourceVersion; 422 for a negative number.
    pub async fn scale(self: &Arc<Self>, call: &mut Call, verb: &str) -> Result<Reply, Status> {
        let paths = paths(&call.kind);
        let current = self.stored(call)?.value();
        let scale = show(&paths, &current);
        if verb == "get" {
            return Ok(reply::json(200, &scale));
        }
        let body = decode::parse(
            if call.content_type.ends_with("+json") { "" } else { &call.content_type },
            &call.body,
        )?;
        let wanted = match (verb, call.content_type.as_str()) {
            ("update", _) => body,
            (_, "application/json-patch+json") => json_patch(&scale, &body)?,
            (_, "application/merge-patch+json" | "application/strategic-merge-patch+json") => {
                merge_patch(&scale, &body)?
            }
            _ => return Err(unsupported_media_type()),
        };
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or_default();
        if replicas < 0 {
            let error = apimachinery::FieldError::invalid(
                "spec.replicas",
                replicas,
                "must be greater than or equal to 0",
            );
            return Err(Status::invalid("autoscaling", "Scale", &call.target.name, &[error]));
        }
        let version = text(&wanted, "resourceVersion").to_owned();
        let written = self
            .change(call, &|current| {
                let mut object = current.clone();
                if !version.is_empty() {
                    object["metadata"]["resourceVersion"] = version.clone().into();
                }
                put(&mut object, &paths.spec, replicas.into());
                Ok(object)
            })
            .await?;
        Ok(reply::json(200, &show(&paths, &written.value())))
    }
}

fn paths(kind: &Kind) -> Scale {
    kind.definition().and_then(|definition| definition.scale.clone()).unwrap_or_else(|| Scale {
        spec: ".spec.replicas".into(),
        status: ".status.replicas".into(),
        selector: String::new(),
    })
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|key| !key.is_empty()).fold(object, |value, key| &value[key])
}

/// Sets a field where its parents are objects, or can become ones.
fn put(object: &mut Value, path: &str, new: Value) {
    let mut slot = object;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        if slot.is_null() {
            *slot = json!({});
        }
        let Some(map) = slot.as_object_mut() else { return };
        slot = map.entry(key).or_insert(Value::Null);
    }
    *slot = new;
}

fn show(paths: &Scale, object: &Value) -> Value {
    let selector = if paths.selector.is_empty() {
        LabelSelector::from_object(&object["spec"]["selector"])
            .map(|selector| selector.to_string())
            .unwrap_or_default()
    } else {
        at(object, &paths.selector).as_str().unwrap_or_default().to_owned()
    };
    let meta = &object["metadata"];
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !meta[key].is_null() {
            metadata[key] = meta[key].clone();
        }
    }
    let mut status = json!({"replicas": at(object, &paths.status).as_i64().unwrap_or_default()});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": at(object, &paths.spec).as_i64().unwrap_or_default()}, "status": status})
}
