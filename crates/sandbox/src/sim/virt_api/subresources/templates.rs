//! `subresources.template.kubevirt.io`: templates filled in and turned into VMs
//! (`virt-template/internal/apiserver/storage/virtualmachinetemplate`, v0.2). In a cluster it is a server of
//! its own; here virt-api's answers for it.

use std::collections::BTreeMap;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use kubevirt::template::{TemplateError, fill_in};

use crate::clock::Ids;

/// The group.
pub const GROUP: &str = "subresources.template.kubevirt.io";
/// Its versions, the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// The values of a `ProcessOptions`.
///
/// # Errors
/// 400 when they are no texts.
pub fn parameters(options: &Value) -> Result<BTreeMap<String, String>, Status> {
    let given = options.get("parameters").cloned().filter(|given| !given.is_null());
    let given = given.unwrap_or_else(|| json!({}));
    apimachinery::tree::from_value(&given)
        .map_err(|error| Status::bad_request(format!("error parsing ProcessOptions: {error}")))
}

/// Fills a template in.
///
/// # Errors
/// 409 for parameters that are not there, 422 for everything else, as the real one answers.
pub fn process(
    name: &str,
    template: &Value,
    given: &BTreeMap<String, String>,
    dice: &Ids,
) -> Result<(Value, Option<String>), Status> {
    let mut random = |below: usize| {
        let below = u64::try_from(below.max(1)).unwrap_or(1);
        usize::try_from(dice.next() % below).unwrap_or_default()
    };
    let filled = fill_in(&template.clone().into(), given, &mut random);
    let (vm, message) = filled.map_err(|error| match error {
        TemplateError::Unknown(_) => Status::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on VirtualMachineTemplate.template.kubevirt.io \"{name}\": {error}"),
        ),
        error => Status::new(
            422,
            "Invalid",
            format!("VirtualMachineTemplate.template.kubevirt.io \"{name}\" is invalid: {error}"),
        ),
    })?;
    Ok((vm.into(), message))
}

/// `ProcessedVirtualMachineTemplate`
pub fn answer(version: &str, at: (&str, &str), vm: &Value, message: Option<String>) -> Value {
    let mut answer = json!({"apiVersion": format!("{GROUP}/{version}"), "kind": "ProcessedVirtualMachineTemplate",
        "templateRef": {"namespace": at.0, "name": at.1}, "virtualMachine": vm});
    if let Some(message) = message {
        answer["message"] = message.into();
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_codes_of_the_real_one() {
        let template = json!({"spec": {"parameters": [{"name": "NAME", "required": true}],
            "virtualMachine": {"metadata": {"name": "${NAME}"}}}});
        let code = |options: Value| {
            let given = parameters(&options)?;
            process("t", &template, &given, &Ids::new(1)).map(|(vm, _)| vm["metadata"]["name"].clone())
        };
        assert_eq!(code(json!({"parameters": {"NAME": "web"}})).unwrap(), "web");
        assert_eq!(code(json!({})).unwrap_err().code, 422);
        assert_eq!(code(json!({"parameters": {"SIZE": "1"}})).unwrap_err().code, 409);
        assert_eq!(code(json!({"parameters": {"NAME": 1}})).unwrap_err().code, 400);
    }
}
