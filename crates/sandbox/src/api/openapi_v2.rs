//! `/openapi/v2`: the same documents in the older form (Swagger 2.0), for clients that ask for JSON.
//! What that form has no words for is left out, as a real API server does.

use apimachinery::Status;
use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::Api;
use super::openapi::document;
use super::reply::{self, Reply};

impl Api {
    /// The document of everything.
    ///
    /// # Errors
    /// 406 for clients that take protobuf alone, which is not spoken here.
    pub fn openapi_v2(&self, headers: &HeaderMap) -> Result<Reply, Status> {
        let accepted =
            headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let json = |kind: &str| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            matches!(kind, "application/json" | "application/*" | "*/*")
        };
        if !accepted.split(',').any(json) {
            let message = "only the following media types are accepted: application/json";
            return Err(Status::new(406, "NotAcceptable", message));
        }
        let kinds = self.registry.kinds();
        let mut documents = self.documents.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let document = documents.of("v2", kinds.generation, || {
            let all: Vec<_> = kinds.iter().collect();
            swagger(&document(&all)).to_string().into()
        });
        Ok(reply::json_bytes(200, document))
    }
}

/// Version 3 → version 2.
fn swagger(document: &Value) -> Value {
    let paths = document["paths"].as_object().into_iter().flatten();
    let paths: Map<String, Value> = paths.map(|(path, item)| (path.clone(), operations(item))).collect();
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    let definitions: Map<String, Value> =
        schemas.map(|(name, schema)| (name.clone(), downgraded(schema))).collect();
    json!({"swagger": "2.0", "info": document["info"], "paths": paths, "definitions": definitions})
}

fn operations(item: &Value) -> Value {
    let all = item.as_object().into_iter().flatten();
    Value::Object(all.map(|(verb, operation)| (verb.clone(), of_operation(operation))).collect())
}

fn of_operation(operation: &Value) -> Value {
    let mut out = operation.clone();
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let mut parameters: Vec<Value> = parameters
        .map(|one| json!({"name": one["name"], "in": one["in"], "type": "string", "uniqueItems": true}))
        .collect();
    let content = |part: &Value| downgraded(&part["content"]["application/json"]["schema"]);
    if operation["requestBody"].is_object() {
        let body = json!({"name": "body", "in": "body", "required": true, "schema": content(&operation["requestBody"])});
        parameters.push(body);
    }
    out["parameters"] = parameters.into();
    out["responses"] =
        json!({"200": {"description": "OK", "schema": content(&operation["responses"]["200"])}});
    out["produces"] = json!(["application/json"]);
    out["consumes"] = json!(["application/json"]);
    if let Some(out) = out.as_object_mut() {
        out.remove("requestBody");
    }
    out
}

/// A schema without what version 2 has no words for, its references in the older place.
fn downgraded(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                match key.as_str() {
                    "nullable" | "oneOf" | "anyOf" | "allOf" | "not" | "x-kubernetes-validations" => {}
                    "$ref" => {
                        let name = value.as_str().unwrap_or_default();
                        let name = name.rsplit('/').next().unwrap_or_default();
                        out.insert(key.clone(), format!("#/definitions/{name}").into());
                    }
                    // Names of fields, not keywords.
                    "properties" => {
                        let fields = value.as_object().into_iter().flatten();
                        let fields = fields.map(|(name, schema)| (name.clone(), downgraded(schema)));
                        out.insert(key.clone(), Value::Object(fields.collect()));
                    }
                    "default" | "enum" | "x-kubernetes-group-version-kind" => {
                        out.insert(key.clone(), value.clone());
                    }
                    _ => {
                        out.insert(key.clone(), downgraded(value));
                    }
                }
            }
            Value::Object(out)
        }
        Value::Array(items) => items.iter().map(downgraded).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_version_2_has_no_words_for_is_left_out_and_references_move() {
        let schema = json!({"type": "object", "nullable": true, "properties": {
            "not": {"type": "string"},
            "size": {"anyOf": [{"type": "integer"}], "x-kubernetes-int-or-string": true},
            "next": {"$ref": "#/components/schemas/io.example.v1.Thing"}}});
        assert_eq!(
            downgraded(&schema),
            json!({"type": "object", "properties": {"not": {"type": "string"},
                "size": {"x-kubernetes-int-or-string": true},
                "next": {"$ref": "#/definitions/io.example.v1.Thing"}}})
        );
    }
}
