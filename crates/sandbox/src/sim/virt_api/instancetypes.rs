//! Instance types and preferences in virt-api's webhooks about VMs (`instancetype/webhooks/vm`, v1.9). What cannot be
//! found is passed over: the VM may name it before it is there, and virt-controller tells.

use apimachinery::tree::{Value, json};

use super::mutate::set_spec_defaults;
use super::validate::{Cause, INVALID, NOT_FOUND, refusal};
use crate::sim::client::Client;
use crate::sim::cluster::ClusterConfig;
use crate::sim::identity::Identity;
use crate::sim::instancetype::infer::Reader;
use crate::sim::instancetype::{Error, Finder, IN_VM, Matcher, lay_over, matchers, requirements};
use crate::sim::json::{is_deleting, put, text};

/// The VM of a request with its matchers inferred from volumes, and with what a preference decides before defaults do.
///
/// # Errors
/// The response that refuses it.
pub async fn prepare(client: &Client, who: &Identity, request: &Value) -> Result<Value, Value> {
    let mut vm = request["object"].clone();
    if is_deleting(&vm) || !vm["spec"]["template"].is_object() {
        return Ok(vm);
    }
    let old = (request["operation"] == "UPDATE").then(|| &request["oldObject"]);
    let causes = matchers::refused(&vm, old);
    if !causes.is_empty() {
        return Err(json!({"allowed": false, "status": refusal(&causes)}));
    }
    Reader { client, who }
        .infer(&mut vm)
        .await
        .map_err(|error| json!({"allowed": false, "status": {"message": error.to_string(), "code": 400}}))?;
    let preference = Finder { client, who }.spec(Matcher::Preference, &vm).await;
    if let Ok(Some(preference)) = preference {
        prefer_early(&mut vm, &preference);
    }
    Ok(vm)
}

/// Architecture and machine of a template, and the storage class of `DataVolume` templates.
fn prefer_early(vm: &mut Value, preference: &Value) {
    for (wish, pointer, path) in [
        ("/preferredArchitecture", "/architecture", &["architecture"][..]),
        ("/machine/preferredMachineType", "/domain/machine/type", &["domain", "machine", "type"]),
    ] {
        let spec = &mut vm["spec"]["template"]["spec"];
        let wished = text(preference, wish);
        if !wished.is_empty() && text(spec, pointer).is_empty() {
            put(spec, path, wished);
        }
    }
    let class = text(preference, "/volumes/preferredStorageClassName");
    let templates = vm["spec"].get_mut("dataVolumeTemplates").and_then(Value::as_array_mut);
    for template in templates.into_iter().flatten().filter(|_| !class.is_empty()) {
        for kind in ["pvc", "storage"] {
            if let Some(storage) = template["spec"].get_mut(kind)
                && storage.get("storageClassName").is_none()
            {
                storage["storageClassName"] = class.into();
            }
        }
    }
}

/// The VM of a request as it is validated: with instance type and preference laid over it.
///
/// # Errors
/// The causes against what it names.
pub async fn laid_over(
    client: &Client,
    who: &Identity,
    vm: &Value,
    config: &ClusterConfig,
) -> Result<Value, Vec<Cause>> {
    let mut applied = vm.clone();
    if is_deleting(vm) || !vm["spec"]["template"].is_object() {
        return Ok(applied);
    }
    let finder = Finder { client, who };
    let mut found = [None, None];
    for (found, matcher) in found.iter_mut().zip(Matcher::BOTH) {
        match finder.spec(matcher, vm).await {
            Ok(spec) => *found = spec,
            Err(error) => tracing::debug!(%error, "passed over what a VM names"),
        }
    }
    let [instancetype, preference] = found.each_ref().map(Option::as_ref);
    if instancetype.is_none() && preference.is_none() {
        return Ok(applied);
    }
    let cause = |kind, message, field: &str| Cause { kind, message, field: field.to_owned() };
    if let Some(message) = requirements::uneven(instancetype, preference) {
        return Err(vec![cause(INVALID, message, "instancetype.spec.cpu.guest")]);
    }
    if let Err(Error::Conflict(fields)) = lay_over(&mut applied, instancetype, preference, IN_VM) {
        let blame = |field: &String| {
            let message = format!("VM field(s) {field} conflicts with selected instance type");
            cause(INVALID, message, field)
        };
        return Err(fields.iter().map(blame).collect());
    }
    let mut spec = applied["spec"]["template"]["spec"].clone();
    set_spec_defaults(&mut spec, config);
    requirements::check(instancetype, preference, &spec).map_err(|unmet| {
        let message = format!("failure checking preference requirements: {}", unmet.message);
        vec![cause(NOT_FOUND, message, &unmet.field)]
    })?;
    Ok(applied)
}
