//! The document in the older form (Swagger 2.0). What that form, or kubectl reading it, has no words for is left out,
//! by the rules of a real API server (apiextensions-apiserver `pkg/controller/openapi/v2/conversion.go`).

use std::collections::BTreeSet;

use apimachinery::tree::{Map, Text, Value, json};

/// Version 3 → version 2.
pub(super) fn swagger(document: &Value) -> Value {
    let mut parameters = Map::new();
    let paths: Map = object(&document["paths"])
        .map(|(path, item)| (path.clone(), path_item(item, &mut parameters)))
        .collect();
    let definitions: Map = object(&document["components"]["schemas"])
        .map(|(name, schema)| (name.clone(), definition(schema)))
        .collect();
    json!({"swagger": "2.0", "info": document["info"], "paths": paths, "definitions": definitions,
        "parameters": parameters})
}

fn object(value: &Value) -> impl Iterator<Item = (&Text, &Value)> {
    value.as_object().into_iter().flatten()
}

fn path_item(item: &Value, shared: &mut Map) -> Value {
    let of = |(key, part): (&Text, &Value)| {
        let part =
            if key == "parameters" { references(part, shared).into() } else { operation(part, shared) };
        (key.clone(), part)
    };
    Value::Object(object(item).map(of).collect())
}

fn operation(operation: &Value, shared: &mut Map) -> Value {
    let mut out = operation.clone();
    let mut parameters = references(&operation["parameters"], shared);
    let body = &operation["requestBody"];
    let mut consumes = BTreeSet::new();
    if let Some((_, content)) = object(&body["content"]).next() {
        let schema = downgraded(&content["schema"]);
        let mut body_parameter = json!({"name": "body", "in": "body", "schema": schema});
        if body["required"] == true {
            body_parameter["required"] = true.into();
        }
        parameters.push(body_parameter);
        consumes = object(&body["content"]).map(|(media, _)| media.clone()).collect();
    }
    let mut produces = BTreeSet::new();
    let responses: Map = object(&operation["responses"])
        .map(|(code, response)| {
            produces.extend(object(&response["content"]).map(|(media, _)| media.clone()));
            (code.clone(), of_response(response))
        })
        .collect();
    out["parameters"] = parameters.into();
    out["responses"] = responses.into();
    out["produces"] = produces.into_iter().collect();
    if let Some(out) = out.as_object_mut() {
        out.remove("requestBody");
        if !consumes.is_empty() {
            out.insert("consumes".into(), consumes.into_iter().collect());
        }
    }
    out
}

fn of_response(response: &Value) -> Value {
    let mut out = json!({"description": response["description"]});
    if let Some((_, content)) = object(&response["content"]).next() {
        out["schema"] = downgraded(&content["schema"]);
    }
    out
}

/// Parameters are written once for all operations that take them.
fn references(parameters: &Value, shared: &mut Map) -> Vec<Value> {
    let of = |parameter: &Value| {
        let name = parameter["name"].as_str().unwrap_or_default();
        let mut out = parameter.clone();
        if let Some(out) = out.as_object_mut()
            && let Some(Value::Object(schema)) = out.remove("schema")
        {
            out.extend(schema);
        }
        shared.set(name, out);
        json!({"$ref": format!("#/parameters/{name}")})
    };
    parameters.as_array().into_iter().flatten().map(of).collect()
}

fn definition(schema: &Value) -> Value {
    let mut out = downgraded(schema);
    if out["type"].is_null() {
        // An object all the same, of which kubectl checks nothing.
        out["type"] = "object".into();
    }
    out
}

/// A schema without what version 2 has no words for, its references in the older place.
fn downgraded(schema: &Value) -> Value {
    let mut out = Map::new();
    for (key, value) in object(schema) {
        let value = match key.as_str() {
            "nullable" | "oneOf" | "anyOf" | "allOf" | "not" | "x-kubernetes-validations" => continue,
            "$ref" => {
                let name = value.as_str().unwrap_or_default();
                format!("#/definitions/{}", name.rsplit('/').next().unwrap_or_default()).into()
            }
            "properties" => {
                let fields = object(value).map(|(name, schema)| (name.clone(), downgraded(schema)));
                Value::Object(fields.collect())
            }
            "items" | "additionalProperties" if value.is_object() => downgraded(value),
            _ => value.clone(),
        };
        out.set(key.clone(), value);
    }
    if schema["oneOf"][0]["type"].is_string() {
        // quantities and what is a number or a text
        out.insert("type".into(), "string".into());
    }
    loosen(schema, &mut out);
    Value::Object(out)
}

/// kubectl takes no null for a field with a type, and no field beside the properties that are named.
fn loosen(schema: &Value, out: &mut Map) {
    let nullable = schema["nullable"] == true;
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if nullable || open {
        out.remove("items");
        out.remove("properties");
    }
    if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
        out.remove("properties");
    }
    let ty = schema["type"].as_str().unwrap_or_default();
    if nullable || (open && ty == "object") || (ty == "array" && !out.contains_key("items")) {
        out.remove("type");
    }
    if schema["additionalProperties"]["nullable"] == true {
        out.remove("required");
    }
    if let Some(Value::Array(required)) = out.get_mut("required") {
        required.retain(|name| schema["properties"][name.as_str().unwrap_or_default()]["nullable"] != true);
        if required.is_empty() {
            out.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_version_2_has_no_words_for_is_left_out_and_references_move() {
        let schema = json!({"type": "object", "properties": {
            "not": {"type": "string"},
            "size": {"anyOf": [{"type": "integer"}], "x-kubernetes-int-or-string": true},
            "port": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
            "next": {"$ref": "#/components/schemas/io.example.v1.Thing"}}});
        assert_eq!(
            downgraded(&schema),
            json!({"type": "object", "properties": {"not": {"type": "string"},
                "size": {"x-kubernetes-int-or-string": true},
                "port": {"type": "string", "format": "int-or-string"},
                "next": {"$ref": "#/definitions/io.example.v1.Thing"}}})
        );
    }

    #[test]
    fn what_may_be_null_or_hold_anything_has_no_type_for_kubectl_to_insist_on() {
        let text = json!({"type": "string"});
        for (schema, want) in [
            (json!({"type": "array", "items": text, "nullable": true}), json!({})),
            (
                json!({"type": "object", "properties": {"a": text}, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"type": "array", "items": text, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"type": "object", "required": ["a", "b"],
                    "properties": {"a": {"type": "string", "nullable": true}, "b": text}}),
                json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": text}}),
            ),
            (
                json!({"type": "object", "required": ["a"], "additionalProperties": {"type": "string", "nullable": true}}),
                json!({"type": "object", "additionalProperties": {}}),
            ),
            (
                json!({"type": "object", "properties": {"kind": text}, "additionalProperties": {"x-a": 1}}),
                json!({"type": "object", "additionalProperties": {"x-a": 1}}),
            ),
        ] {
            assert_eq!(downgraded(&schema), want, "{schema}");
        }
    }

    #[test]
    fn an_operation_names_its_media_types_and_refers_to_parameters() {
        let content = json!({"schema": {"$ref": "#/components/schemas/A"}});
        let document = json!({"info": {}, "components": {"schemas": {"A": {}}}, "paths": {"/a/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}],
            "patch": {"operationId": "patchA", "x-kubernetes-action": "patch",
                "parameters": [{"name": "force", "in": "query", "schema": {"type": "boolean"}}],
                "requestBody": {"required": true, "content": {"a/patch": content, "b/patch": content}},
                "responses": {"200": {"description": "OK", "content": {"a/json": content}}, "401": {"description": "No"}}}}}});
        let schema = json!({"$ref": "#/definitions/A"});
        assert_eq!(
            swagger(&document),
            json!({"swagger": "2.0", "info": {}, "definitions": {"A": {"type": "object"}},
                "parameters": {"force": {"name": "force", "in": "query", "type": "boolean"},
                    "name": {"name": "name", "in": "path", "required": true, "type": "string"}},
                "paths": {"/a/{name}": {"parameters": [{"$ref": "#/parameters/name"}],
                    "patch": {"operationId": "patchA", "x-kubernetes-action": "patch", "consumes": ["a/patch", "b/patch"],
                        "produces": ["a/json"], "parameters": [{"$ref": "#/parameters/force"},
                            {"name": "body", "in": "body", "required": true, "schema": schema}],
                        "responses": {"200": {"description": "OK", "schema": schema}, "401": {"description": "No"}}}}}})
        );
    }
}
