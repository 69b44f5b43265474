//! VMs that virt-api cannot read: fields of another type than its schema says (`ValidateSchema`), and numbers that Go
//! does not take into the field that they are for.

use std::sync::LazyLock;

use apimachinery::tree::{Value, json};

use super::validate::refusal_of;
use crate::sim::json::text;

/// vCPUs are `uint32` in Go.
const UNSIGNED: [&str; 4] = ["cores", "maxSockets", "sockets", "threads"];

/// The response that refuses a VM, if it cannot be read. Only the main fields are known here.
pub fn refused(vm: &Value) -> Option<Value> {
    static SCHEMA: LazyLock<Option<Value>> =
        LazyLock::new(|| crate::registry::fields::spec("virtualmachines"));
    let mut wrong = Vec::new();
    compare("spec", SCHEMA.as_ref()?, &vm["spec"], &mut wrong);
    if !wrong.is_empty() {
        let causes: Vec<Value> = wrong.iter().map(|message| json!({"message": message})).collect();
        return Some(json!({"allowed": false, "status": refusal_of(&wrong, &causes)}));
    }
    let cpu = vm.pointer("/spec/template/spec/domain/cpu")?;
    let (key, number) = UNSIGNED.iter().find_map(|key| {
        let number = cpu[*key].as_i64().filter(|number| *number < 0)?;
        Some((key, number))
    })?;
    let message = format!(
        "json: cannot unmarshal number {number} into Go struct field \
         VirtualMachineInstanceTemplateSpec.spec.template.spec.domain.cpu.{key} of type uint32"
    );
    Some(json!({"allowed": false, "status": {"message": message, "code": 400}}))
}

fn compare(path: &str, schema: &Value, value: &Value, wrong: &mut Vec<String>) {
    let found = match value {
        Value::Null => return,
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wanted = text(schema, "/type");
    let fits = wanted.is_empty() || wanted == found || (wanted == "integer" && value.is_i64());
    if !fits {
        wrong.push(format!("{path} in body must be of type {wanted}: \"{found}\""));
        return;
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(schema) = schema["properties"].get(name) {
            compare(&format!("{path}.{name}"), schema, value, wrong);
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        compare(&format!("{path}[{index}]"), &schema["items"], item, wrong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_cannot_read_is_refused_in_its_words() {
        for (spec, code, expected) in [
            (json!({"runStrategy": 7}), 422, "spec.runStrategy in body must be of type string: \"number\""),
            (
                json!({"template": {"spec": {"domain": {"cpu": {"cores": -1}}}}}),
                400,
                "json: cannot unmarshal number -1 into Go struct field \
                 VirtualMachineInstanceTemplateSpec.spec.template.spec.domain.cpu.cores of type uint32",
            ),
        ] {
            let response = refused(&json!({"spec": spec})).unwrap();
            assert_eq!(response["status"]["code"], code);
            assert_eq!(response["status"]["message"], expected);
        }
        let sound = json!({"spec": {"runStrategy": "Always", "running": null, "template": {"spec": {
            "domain": {"cpu": {"cores": 2}, "memory": {"guest": "1Gi"}}, "volumes": [{"name": "a"}]}}}});
        assert_eq!(refused(&sound), None);
    }
}
