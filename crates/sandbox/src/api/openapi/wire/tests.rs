use apimachinery::tree::{Map, json};

use super::*;
use crate::api::openapi::gnostic::NamedAny;

/// A document with everything that documents have here.
const SMALL: &str = r##"{"swagger": "2.0", "info": {"title": "T", "version": "v1"},
 "paths": {"/things/{name}": {
   "parameters": [{"$ref": "#/parameters/name"}],
   "get": {"operationId": "g", "produces": ["a/json", "a/yaml"], "parameters": [], "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}, "401": {"description": "No"}}},
   "put": {"operationId": "u", "responses": {"200": {"description": "OK"}}},
   "post": {"operationId": "c", "responses": {"200": {"description": "OK"}}},
   "delete": {"operationId": "d", "responses": {"200": {"description": "OK"}}},
   "patch": {"operationId": "p", "consumes": ["a/patch"], "parameters": [{"$ref": "#/parameters/force"}, {"name": "body", "in": "body", "required": true, "schema": {"type": "object"}}],
     "responses": {"200": {"description": "OK"}}, "x-kubernetes-group-version-kind": {"group": "", "kind": "Thing"}}}},
 "parameters": {"force": {"name": "force", "in": "query", "type": "boolean", "uniqueItems": true},
   "name": {"name": "name", "in": "path", "required": true, "type": "string", "uniqueItems": true}},
 "definitions": {"Thing": {"type": "object", "title": "t", "description": "d", "required": ["a"], "minProperties": 1, "maxProperties": 9,
   "externalDocs": {"description": "e", "url": "u"}, "example": {"a": 1},
   "properties": {
     "a": {"type": "string", "format": "f", "pattern": "^a", "minLength": 2, "maxLength": 3, "default": "x", "enum": ["x", "y"]},
     "b": {"type": "array", "items": {"type": "number", "minimum": 0.5, "maximum": 2.5, "exclusiveMinimum": true, "exclusiveMaximum": true, "multipleOf": 0.25}, "minItems": 4, "maxItems": 5, "uniqueItems": true},
     "c": {"type": "object", "additionalProperties": {"type": "integer"}},
     "d": {"type": "object", "additionalProperties": true}},
   "x-kubernetes-group-version-kind": [{"group": "", "kind": "Thing"}]}}}"##;

/// The same as protoc's code for gnostic-models' `OpenAPIv2.proto` writes it.
const SMALL_BYTES: &[u8] = b"\n\x032.0\x12\x07\n\x01T\x12\x02v1B\xd9\x02\x12\xd6\x02\n\x0e/things/{name}\x12\xc3\x02\x12L*\x01g2\x06a\
    /json2\x06a/yamlJ7\n&\n\x03200\x12\x1f\n\x1d\n\x02OK\x12\x17\n\x15\n\x13#/definitions/Thing\n\x0d\n\x034\
    01\x12\x06\n\x04\n\x02No\x1a\x14*\x01uJ\x0f\n\x0d\n\x03200\x12\x06\n\x04\n\x02OK\"\x14*\x01cJ\x0f\n\x0d\
    \n\x03200\x12\x06\n\x04\n\x02OK*\x14*\x01dJ\x0f\n\x0d\n\x03200\x12\x06\n\x04\n\x02OKB\x99\x01*\x01p:\x07\
    a/patchB\x16\x12\x14\n\x12#/parameters/forceB\x1f\n\x1d\n\x1b\x12\x04body\x1a\x04body \x01*\x0b\xb2\x01\
    \x08\n\x06objectJ\x0f\n\x0d\n\x03200\x12\x06\n\x04\n\x02OKjA\n\x1fx-kubernetes-group-version-kind\x12\
    \x1e\x12\x1c{\"group\":\"\",\"kind\":\"Thing\"}\nJ\x15\x12\x13\n\x11#/parameters/nameJ\xc0\x02\n\xbd\x02\
    \n\x05Thing\x12\xb3\x02\x1a\x01t\"\x01d\x88\x01\x09\x90\x01\x01\x9a\x01\x01a\xb2\x01\x08\n\x06object\xca\
    \x01\xb8\x01\n5\n\x01a\x120\x12\x01f*\x06\x12\x04\"x\"\nX\x03`\x02j\x02^a\xa2\x01\x06\x12\x04\"x\"\n\xa2\
    \x01\x06\x12\x04\"y\"\n\xb2\x01\x08\n\x06string\nE\n\x01b\x12@p\x05x\x04\x80\x01\x01\xb2\x01\x07\n\x05ar\
    ray\xba\x01,\n*1\x00\x00\x00\x00\x00\x00\xd0?9\x00\x00\x00\x00\x00\x00\x04@@\x01I\x00\x00\x00\x00\x00\
    \x00\xe0?P\x01\xb2\x01\x08\n\x06number\n!\n\x01c\x12\x1c\xaa\x01\x0e\n\x0c\xb2\x01\x09\n\x07integer\xb2\
    \x01\x08\n\x06object\n\x15\n\x01d\x12\x10\xaa\x01\x02\x10\x01\xb2\x01\x08\n\x06object\xea\x01\x06\n\x01e\
    \x12\x01u\xf2\x01\n\x12\x08{\"a\":1}\n\xfa\x01C\n\x1fx-kubernetes-group-version-kind\x12 \x12\x1e[{\"gro\
    up\":\"\",\"kind\":\"Thing\"}]\nRP\n'\n\x05force\x12\x1e\x12\x1c\x1a\x1a\x12\x05query\"\x05force2\x07boo\
    lean\xa0\x01\x01\n%\n\x04name\x12\x1d\x12\x1b\"\x19\x08\x01\x12\x04path\"\x04name*\x06string\x98\x01\x01";

#[test]
fn every_field_has_its_number() {
    let document: Value = serde_json::from_str(SMALL).unwrap();
    let bytes = encode(&document);
    assert_eq!(bytes.escape_ascii().to_string(), SMALL_BYTES.escape_ascii().to_string());
}

#[test]
fn the_protobuf_document_says_what_the_json_document_says() {
    let document = crate::api::openapi::v2::swagger(&crate::api::openapi::tests::everything());
    let decoded = Document::decode(encode(&document).as_slice()).unwrap();
    let read = of_document(&decoded);
    for part in ["swagger", "info", "parameters"] {
        assert_eq!(read[part], document[part], "{part}");
    }
    for part in ["paths", "definitions"] {
        let (read, written) = (read[part].as_object().unwrap(), document[part].as_object().unwrap());
        assert!(written.len() > 50, "{part}");
        assert_eq!(read.len(), written.len(), "{part}");
        for (name, value) in written {
            assert_eq!(read[name], without_zeroes(value), "{name}");
        }
    }
}

#[test]
fn yaml_that_kubectl_reads_has_no_letters_that_yaml_refuses() {
    let value = json!({"a": "\u{7f}\u{85}\u{2028}\u{1f600}é\n"});
    let Any { yaml } = any(&value);
    assert_eq!(yaml, "{\"a\":\"\\U0000007F\\U00000085\\U00002028\\U0001F600\\U000000E9\\n\"}\n");
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value);
}

/// What protobuf does not write: a field that is zero.
fn without_zeroes(value: &Value) -> Value {
    let zero =
        |value: &Value| matches!(value, Value::Bool(false)) || *value == json!([]) || *value == json!(0);
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, value)| key.starts_with("x-") || !zero(value))
            .map(|(key, value)| {
                let verbatim =
                    key.starts_with("x-") || matches!(key.as_str(), "default" | "enum" | "example");
                (key.clone(), if verbatim { value.clone() } else { without_zeroes(value) })
            })
            .collect::<Map>()
            .into(),
        Value::Array(items) => items.iter().map(without_zeroes).collect(),
        other => other.clone(),
    }
}

/// An object of the entries that are there.
fn object(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Map {
    entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn said(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| text.into())
}

fn flag(flag: bool) -> Option<Value> {
    flag.then(|| true.into())
}

fn several<T>(items: &[T], of: impl Fn(&T) -> Value) -> Option<Value> {
    (!items.is_empty()).then(|| items.iter().map(of).collect())
}

fn words(words: &[String]) -> Option<Value> {
    several(words, |word| word.as_str().into())
}

fn of_any(any: &Any) -> Value {
    serde_saphyr::from_str(&any.yaml).unwrap()
}

fn with_extensions(mut object: Map, extensions: &[NamedAny]) -> Value {
    object.extend(extensions.iter().map(|one| (one.name.clone(), of_any(one.value.as_ref().unwrap()))));
    object.into()
}

fn of_document(document: &Document) -> Value {
    let info = document.info.as_ref().unwrap();
    let paths = &document.paths.as_ref().unwrap().path;
    let paths: Map =
        paths.iter().map(|one| (one.name.clone(), of_path(one.value.as_ref().unwrap()))).collect();
    let definitions = &document.definitions.as_ref().unwrap().additional_properties;
    let definitions: Map =
        definitions.iter().map(|one| (one.name.clone(), of_schema(one.value.as_ref().unwrap()))).collect();
    let parameters = &document.parameters.as_ref().unwrap().additional_properties;
    let parameters: Map =
        parameters.iter().map(|one| (one.name.clone(), of_parameter(one.value.as_ref().unwrap()))).collect();
    json!({"swagger": document.swagger, "info": {"title": info.title, "version": info.version}, "paths": paths,
        "definitions": definitions, "parameters": parameters})
}

fn of_path(item: &PathItem) -> Value {
    let one = |operation: &Option<Operation>| operation.as_ref().map(of_operation);
    object([
        ("get", one(&item.get)),
        ("put", one(&item.put)),
        ("post", one(&item.post)),
        ("delete", one(&item.delete)),
        ("patch", one(&item.patch)),
        ("parameters", several(&item.parameters, of_parameters_item)),
    ])
    .into()
}

fn of_operation(operation: &Operation) -> Value {
    let responses = &operation.responses.as_ref().unwrap().response_code;
    let responses: Map = responses
        .iter()
        .map(|one| {
            let response = one.value.as_ref().unwrap().response.as_ref().unwrap();
            let schema = response.schema.as_ref().map(|item| of_schema(item.schema.as_ref().unwrap()));
            let fields = object([("description", said(&response.description)), ("schema", schema)]);
            (one.name.clone(), fields)
        })
        .collect();
    let fields = object([
        ("operationId", said(&operation.id)),
        ("produces", words(&operation.produces)),
        ("consumes", words(&operation.consumes)),
        ("parameters", several(&operation.parameters, of_parameters_item)),
        ("responses", Some(responses.into())),
    ]);
    with_extensions(fields, &operation.vendor_extension)
}

fn of_parameters_item(item: &ParametersItem) -> Value {
    match item.oneof.as_ref().unwrap() {
        OneParameter::Reference(reference) => json!({"$ref": reference.reference}),
        OneParameter::Parameter(parameter) => of_parameter(parameter),
    }
}

fn of_parameter(parameter: &Parameter) -> Value {
    let other = match parameter.oneof.as_ref().unwrap() {
        ParameterForm::Body(body) => {
            return object([
                ("name", said(&body.name)),
                ("in", said(&body.location)),
                ("required", flag(body.required)),
                ("schema", body.schema.as_ref().map(of_schema)),
            ])
            .into();
        }
        ParameterForm::Other(other) => other.oneof.as_ref().unwrap(),
    };
    let (name, location, required, ty, unique) = match other {
        Location::Query(one) => (&one.name, &one.location, one.required, &one.ty, one.unique_items),
        Location::Path(one) => (&one.name, &one.location, one.required, &one.ty, one.unique_items),
    };
    object([
        ("name", said(name)),
        ("in", said(location)),
        ("required", flag(required)),
        ("type", said(ty)),
        ("uniqueItems", flag(unique)),
    ])
    .into()
}

fn of_schema(schema: &Schema) -> Value {
    let whole = |number: i64| (number != 0).then(|| number.into());
    let additional = |one: &AdditionalProperties| match one.oneof.as_ref().unwrap() {
        Additional::Schema(schema) => of_schema(schema),
        Additional::Allowed(allowed) => (*allowed).into(),
    };
    let properties = |properties: &Properties| -> Value {
        let fields = properties.additional_properties.iter();
        fields.map(|one| (one.name.clone(), of_schema(one.value.as_ref().unwrap()))).collect::<Map>().into()
    };
    let fields = object([
        ("$ref", said(&schema.reference)),
        ("format", said(&schema.format)),
        ("description", said(&schema.description)),
        ("default", schema.default.as_ref().map(of_any)),
        ("pattern", said(&schema.pattern)),
        ("minLength", whole(schema.min_length)),
        ("maxLength", whole(schema.max_length)),
        ("minItems", whole(schema.min_items)),
        ("maxItems", whole(schema.max_items)),
        ("uniqueItems", flag(schema.unique_items)),
        ("required", words(&schema.required)),
        ("enum", several(&schema.choices, of_any)),
        ("additionalProperties", schema.additional_properties.as_deref().map(additional)),
        ("type", schema.ty.as_ref().map(|ty| ty.value[0].as_str().into())),
        ("items", schema.items.as_ref().map(|items| of_schema(&items.schema[0]))),
        ("properties", schema.properties.as_ref().map(properties)),
    ]);
    with_extensions(fields, &schema.vendor_extension)
}
