//! A document of version 2 → protobuf, as kube-openapi makes the one from the other (`ToProtoBinary`).

use std::fmt::Write as _;

use apimachinery::tree::Value;
use prost::Message as _;

use super::gnostic::{
    Additional, AdditionalProperties, Any, BodyParameter, Definitions, Document, ExternalDocs, Info,
    ItemsItem, JsonReference, Location, NamedAny, NamedDefinition, NamedParameter, NamedPathItem,
    NamedResponseValue, NamedSchema, NonBodyParameter, OneParameter, Operation, Parameter,
    ParameterDefinitions, ParameterForm, ParametersItem, PathItem, PathParameter, Paths, Properties,
    QueryParameter, Response, ResponseValue, Responses, Schema, SchemaItem, TypeItem,
};

/// The bytes of a document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    message(document).encode_to_vec()
}

fn message(document: &Value) -> Document {
    let definitions =
        named(&document["definitions"], |name, value| NamedDefinition { name, value: Some(schema(value)) });
    let parameters =
        named(&document["parameters"], |name, value| NamedParameter { name, value: Some(parameter(value)) });
    let path = named(&document["paths"], |name, value| NamedPathItem { name, value: Some(path_item(value)) });
    Document {
        swagger: text(&document["swagger"]),
        info: Some(Info {
            title: text(&document["info"]["title"]),
            version: text(&document["info"]["version"]),
        }),
        paths: Some(Paths { path }),
        definitions: Some(Definitions { additional_properties: definitions }),
        parameters: Some(ParameterDefinitions { additional_properties: parameters }),
    }
}

fn path_item(item: &Value) -> PathItem {
    let of = |method: &str| item.get(method).map(operation);
    PathItem {
        get: of("get"),
        put: of("put"),
        post: of("post"),
        delete: of("delete"),
        patch: of("patch"),
        parameters: list(&item["parameters"], parameters_item),
    }
}

fn operation(operation: &Value) -> Operation {
    let response_code = named(&operation["responses"], |name, value| {
        let schema = value.get("schema").map(|value| SchemaItem { schema: Some(schema(value)) });
        let response = Response { description: text(&value["description"]), schema };
        NamedResponseValue { name, value: Some(ResponseValue { response: Some(response) }) }
    });
    Operation {
        id: text(&operation["operationId"]),
        produces: list(&operation["produces"], text),
        consumes: list(&operation["consumes"], text),
        parameters: list(&operation["parameters"], parameters_item),
        responses: Some(Responses { response_code }),
        vendor_extension: extensions(operation),
    }
}

fn parameters_item(item: &Value) -> ParametersItem {
    let oneof = match item["$ref"].as_str() {
        Some(reference) => OneParameter::Reference(JsonReference { reference: reference.to_owned() }),
        None => OneParameter::Parameter(parameter(item)),
    };
    ParametersItem { oneof: Some(oneof) }
}

fn parameter(parameter: &Value) -> Parameter {
    let (name, location) = (text(&parameter["name"]), text(&parameter["in"]));
    let (required, unique_items) = (parameter["required"] == true, parameter["uniqueItems"] == true);
    let ty = text(&parameter["type"]);
    let other = match location.as_str() {
        "body" => {
            let schema = parameter.get("schema").map(schema);
            let body = BodyParameter { name, location, required, schema };
            return Parameter { oneof: Some(ParameterForm::Body(Box::new(body))) };
        }
        "path" => Location::Path(PathParameter { required, location, name, ty, unique_items }),
        _ => Location::Query(QueryParameter { required, location, name, ty, unique_items }),
    };
    Parameter { oneof: Some(ParameterForm::Other(NonBodyParameter { oneof: Some(other) })) }
}

fn schema(schema: &Value) -> Schema {
    let flag = |key: &str| schema[key] == true;
    let whole = |key: &str| schema[key].as_i64().unwrap_or_default();
    let number = |key: &str| schema[key].as_f64().unwrap_or_default();
    let words = |key: &str| text(&schema[key]);
    Schema {
        reference: words("$ref"),
        format: words("format"),
        title: words("title"),
        description: words("description"),
        default: schema.get("default").map(any),
        multiple_of: number("multipleOf"),
        maximum: number("maximum"),
        exclusive_maximum: flag("exclusiveMaximum"),
        minimum: number("minimum"),
        exclusive_minimum: flag("exclusiveMinimum"),
        max_length: whole("maxLength"),
        min_length: whole("minLength"),
        pattern: words("pattern"),
        max_items: whole("maxItems"),
        min_items: whole("minItems"),
        unique_items: flag("uniqueItems"),
        max_properties: whole("maxProperties"),
        min_properties: whole("minProperties"),
        required: list(&schema["required"], text),
        choices: list(&schema["enum"], any),
        additional_properties: schema.get("additionalProperties").map(additional).map(Box::new),
        ty: schema.get("type").map(|ty| TypeItem { value: vec![text(ty)] }),
        items: schema.get("items").map(|items| ItemsItem { schema: vec![self::schema(items)] }),
        properties: schema.get("properties").map(properties),
        external_docs: schema
            .get("externalDocs")
            .map(|docs| ExternalDocs { description: text(&docs["description"]), url: text(&docs["url"]) }),
        example: schema.get("example").map(any),
        vendor_extension: extensions(schema),
    }
}

fn properties(fields: &Value) -> Properties {
    let of = |name, value: &Value| NamedSchema { name, value: Some(schema(value)) };
    Properties { additional_properties: named(fields, of) }
}

fn additional(value: &Value) -> AdditionalProperties {
    let oneof = match value.as_bool() {
        Some(allowed) => Additional::Allowed(allowed),
        None => Additional::Schema(Box::new(schema(value))),
    };
    AdditionalProperties { oneof: Some(oneof) }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let fields = value.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-"));
    fields.map(|(name, value)| NamedAny { name: name.to_string(), value: Some(any(value)) }).collect()
}

/// JSON is YAML, but for letters that YAML takes for line ends or refuses: those are written by their numbers, as
/// YAML writes them.
fn any(value: &Value) -> Any {
    let mut yaml = String::new();
    for letter in value.to_string().chars() {
        if (' '..='~').contains(&letter) {
            yaml.push(letter);
        } else {
            let _ = write!(yaml, "\\U{:08X}", u32::from(letter));
        }
    }
    yaml.push('\n');
    Any { yaml }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(of).collect()
}

fn named<T>(value: &Value, of: impl Fn(String, &Value) -> T) -> Vec<T> {
    value.as_object().into_iter().flatten().map(|(name, value)| of(name.to_string(), value)).collect()
}

#[cfg(test)]
mod tests;
