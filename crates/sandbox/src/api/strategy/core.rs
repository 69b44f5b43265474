//! What is wrong with an object of the core group (`pkg/apis/core/validation`, Kubernetes 1.36): data, Services, claims,
//! Events, `LimitRanges`. Pods have their own module.

use apimachinery::quantity::Quantity;
use apimachinery::tree::{Map, Text, Value};
use apimachinery::validation::{dns1123_label, dns1123_subdomain};
use apimachinery::{FieldError, FieldErrorKind};

/// The data of a `ConfigMap` or Secret may be this large, in bytes.
const MAX_DATA: usize = 1 << 20;

const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn fields<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a Text, &'a Value)> {
    object[key].as_object().into_iter().flatten()
}

fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object[key].as_array().into_iter().flatten()
}

/// Keys and size of what a `ConfigMap` or Secret holds.
fn data(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for part in ["data", "binaryData"] {
        for (key, value) in fields(object, part) {
            let field = format!("{part}[{key}]");
            let valid = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if key.is_empty() || !key.chars().all(valid) {
                errors.push(FieldError::invalid(&field, key.as_str(), KEY));
            } else if key == "." || key.starts_with("..") {
                let what = if key == "." || key == ".." { "must not be" } else { "must not start with" };
                let shown = if key == "." { "." } else { ".." };
                errors.push(FieldError::invalid(&field, key.as_str(), format!("{what} '{shown}'")));
            }
            if part == "data" && object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    &field,
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > MAX_DATA {
        let detail = format!("may not be more than {MAX_DATA} bytes");
        errors.push(FieldError::new(FieldErrorKind::TooLong, "[]", "", detail));
    }
    errors
}

/// `ConfigMaps`.
pub fn config_map(object: &Value) -> Vec<FieldError> {
    data(object)
}

/// Secrets: some types ask for certain keys.
pub fn secret(object: &Value) -> Vec<FieldError> {
    let mut errors = data(object);
    let has = |key: &str| object["data"].get(key).is_some();
    let required = |key: &str| FieldError::required(format!("data[{key}]"), "");
    match object["type"].as_str().unwrap_or_default() {
        "kubernetes.io/tls" => {
            errors.extend(["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)).map(required));
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.extend(["username", "password"].into_iter().map(required));
        }
        "kubernetes.io/ssh-auth" if !has("ssh-privatekey") => errors.push(required("ssh-privatekey")),
        "kubernetes.io/dockerconfigjson" if !has(".dockerconfigjson") => {
            errors.push(required(".dockerconfigjson"));
        }
        "kubernetes.io/service-account-token" => {
            let field = "kubernetes.io/service-account.name";
            if object["metadata"]["annotations"][field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("metadata.annotations[{field}]"), ""));
            }
        }
        _ => {}
    }
    errors
}

/// Services.
pub fn service(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let ports: Vec<&Value> = items(spec, "ports").collect();
    let headless = spec["clusterIP"] == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let mut names = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        match port["name"].as_str().unwrap_or_default() {
            "" if ports.len() > 1 => errors.push(FieldError::required(field("name"), "")),
            "" => {}
            name => {
                let wrong = dns1123_label(name).into_iter();
                errors.extend(wrong.map(|why| FieldError::invalid(field("name"), name, why)));
                if names.contains(&name) {
                    errors.push(FieldError::duplicate(field("name"), name));
                }
                names.push(name);
            }
        }
        let range = |value: &Value, name: &str| {
            let number = value.as_i64().filter(|number| !(1..=65535).contains(number));
            number.map(|number| {
                FieldError::invalid(field(name), number, "must be between 1 and 65535, inclusive")
            })
        };
        errors.extend(range(&port["port"], "port"));
        let protocols = ["SCTP", "TCP", "UDP"];
        if !protocols.iter().any(|known| port["protocol"] == *known) {
            errors.push(FieldError::not_supported(field("protocol"), port["protocol"].clone(), &protocols));
        }
        errors.extend(range(&port["targetPort"], "targetPort"));
    }
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("spec.type", kind, &kinds));
    }
    if kind == "ExternalName" && spec["externalName"].as_str().is_none_or(str::is_empty) {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    errors
}

/// Claims.
pub fn claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let modes: Vec<&Value> = items(spec, "accessModes").collect();
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for mode in modes.iter().filter(|mode| !known.iter().any(|known| **mode == *known)) {
        errors.push(FieldError::not_supported("spec.accessModes", (*mode).clone(), &known));
    }
    let storage = &spec["resources"]["requests"]["storage"];
    match Quantity::parse(storage) {
        None => errors.push(FieldError::required("spec.resources[storage]", "")),
        Some(amount) if !amount.is_positive() => {
            errors.push(FieldError::invalid(
                "spec.resources[storage]",
                storage.clone(),
                "must be greater than zero",
            ));
        }
        Some(_) => {}
    }
    if let Some(class) = spec["storageClassName"].as_str().filter(|class| !class.is_empty()) {
        let wrong = dns1123_subdomain(class).into_iter();
        errors.extend(wrong.map(|why| FieldError::invalid("spec.storageClassName", class, why)));
    }
    let volume_modes = ["Block", "Filesystem"];
    if spec["volumeMode"].is_string() && !volume_modes.iter().any(|known| spec["volumeMode"] == *known) {
        errors.push(FieldError::not_supported("spec.volumeMode", spec["volumeMode"].clone(), &volume_modes));
    }
    errors
}

/// Events are in the namespace of what they are about.
pub fn event(object: &Value) -> Vec<FieldError> {
    let about = object["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let own = object["metadata"]["namespace"].as_str().unwrap_or_default();
    // Those about objects without a namespace are in `default`.
    let fits = if about.is_empty() { own == "default" } else { about == own };
    if fits {
        return Vec::new();
    }
    vec![FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace")]
}

/// `LimitRanges`: minimum, request, limit and maximum in this order.
pub fn limit_range(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, limit) in items(&object["spec"], "limits").enumerate() {
        let of = |key: &str| limit[key].as_object().cloned().unwrap_or_default();
        let (least, most, default, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
        let mut names: Vec<&Text> =
            [&least, &most, &default, &request].into_iter().flat_map(Map::keys).collect();
        names.sort();
        names.dedup();
        for name in names {
            let field = |part: &str| format!("spec.limits[{index}].{part}[{name}]");
            let over = |small: &Map, large: &Map| {
                let (small, large) = (small.get(name)?, large.get(name)?);
                let over = Quantity::parse(small)? > Quantity::parse(large)?;
                let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                over.then(|| (shown(small), shown(large)))
            };
            let mut check =
                |part: &str, what: &str, pair: Option<(String, String)>, than: &str, shown_large: bool| {
                    if let Some((small, large)) = pair {
                        let detail = format!("{what} value {small} is greater than {than} value {large}");
                        // For the default limit the real server shows the maximum as the value that is wrong.
                        let value = if shown_large { large } else { small };
                        errors.push(FieldError::invalid(field(part), value, detail));
                    }
                };
            check("min", "min", over(&least, &most), "max", false);
            check("defaultRequest", "default request", over(&request, &most), "max", false);
            check("defaultRequest", "default request", over(&request, &default), "default limit", false);
            check("default", "default", over(&default, &most), "max", true);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn said(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn data_has_keys_that_could_be_file_names() {
        assert!(config_map(&json!({"data": {"a.b_c-D": "1", ".hidden": "1"}})).is_empty());
        for (object, why) in [
            (json!({"data": {"a b": "1"}}), "data[a b]: Invalid value: \"a b\": a valid config key"),
            (json!({"data": {"..": "1"}}), "data[..]: Invalid value: \"..\": must not be '..'"),
            (
                json!({"data": {"a": "1"}, "binaryData": {"a": "MQ=="}}),
                "data[a]: Invalid value: \"a\": duplicate of key",
            ),
            (
                json!({"data": {"a": "x".repeat(MAX_DATA + 1)}}),
                "[]: Too long: may not be more than 1048576 bytes",
            ),
        ] {
            let errors = said(&config_map(&object));
            assert!(errors.len() == 1 && errors[0].starts_with(why), "{errors:?}");
        }
        let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "MQ=="}});
        assert_eq!(said(&secret(&tls)), ["data[tls.key]: Required value"]);
    }

    #[test]
    fn ports_of_a_service_have_names_and_numbers() {
        let ports = |ports: Value| said(&service(&json!({"spec": {"type": "ClusterIP", "ports": ports}})));
        let tcp = |port: i64| json!({"port": port, "targetPort": port, "protocol": "TCP"});
        assert_eq!(ports(json!([])), ["spec.ports: Required value"]);
        assert!(ports(json!([tcp(80)])).is_empty());
        assert_eq!(
            ports(json!([tcp(80), tcp(81)])),
            ["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"]
        );
        let range = "Invalid value: 99999: must be between 1 and 65535, inclusive";
        assert_eq!(
            ports(json!([tcp(99999)])),
            [format!("spec.ports[0].port: {range}"), format!("spec.ports[0].targetPort: {range}")]
        );
        assert!(service(&json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}})).is_empty());
        let outside = json!({"spec": {"type": "ExternalName"}});
        assert_eq!(said(&service(&outside)), ["spec.externalName: Required value"]);
    }

    #[test]
    fn claims_say_how_much_and_how() {
        let ask = |modes: Value, storage: &str| {
            said(&claim(
                &json!({"spec": {"accessModes": modes, "resources": {"requests": {"storage": storage}}}}),
            ))
        };
        assert!(ask(json!(["ReadWriteOnce"]), "1Gi").is_empty());
        assert_eq!(
            ask(json!([]), "1Gi"),
            ["spec.accessModes: Required value: at least 1 access mode is required"]
        );
        assert_eq!(
            ask(json!(["ReadWriteOnce"]), "0"),
            ["spec.resources[storage]: Invalid value: \"0\": must be greater than zero"]
        );
        assert_eq!(
            ask(json!(["Foo"]), "1Gi"),
            [
                "spec.accessModes: Unsupported value: \"Foo\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\""
            ]
        );
    }

    #[test]
    fn limits_are_in_order() {
        let limits = json!({"spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"},
            "min": {"memory": "2Gi"}, "default": {"memory": "3Gi"}, "defaultRequest": {"memory": "4Gi"}}]}});
        assert_eq!(
            said(&limit_range(&limits)),
            [
                "spec.limits[0].min[memory]: Invalid value: \"2Gi\": min value 2Gi is greater than max value 1Gi",
                "spec.limits[0].defaultRequest[memory]: Invalid value: \"4Gi\": default request value 4Gi is greater than max value 1Gi",
                "spec.limits[0].defaultRequest[memory]: Invalid value: \"4Gi\": default request value 4Gi is greater than default limit value 3Gi",
                "spec.limits[0].default[memory]: Invalid value: \"1Gi\": default value 3Gi is greater than max value 1Gi",
            ]
        );
    }
}
