//! What virt-api's validating webhooks refuse, in its words (`validating-webhook/admitters`,
//! `pkg/network/admitter`, `pkg/storage/admitters`, v1.9).

use std::collections::{HashMap, HashSet};

use apimachinery::tree::{Text, Value, json};

use super::KUBEVIRT_USERS;
use super::mutate::set_spec_defaults;
use super::spec_rules;
use crate::sim::cluster::ClusterConfig;
use crate::sim::identity::NODE_NAME_EXTRA;
use crate::sim::json::{is_deleting, list, map, text};
use apimachinery::quantity::milli;

/// One reason for a refusal (`metav1.StatusCause`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cause {
    pub kind: &'static str,
    pub message: String,
    pub field: String,
}

pub const INVALID: &str = "FieldValueInvalid";
pub const NOT_SUPPORTED: &str = "FieldValueNotSupported";
pub const REQUIRED: &str = "FieldValueRequired";
pub const NOT_FOUND: &str = "FieldValueNotFound";
const DUPLICATE: &str = "FieldValueDuplicate";

const RUN_STRATEGIES: [&str; 6] = ["Halted", "Manual", "Always", "RerunOnFailure", "Once", "WaitAsReceiver"];
/// Labels that only `KubeVirt` itself may put on a VMI.
const RESERVED_LABELS: [&str; 6] = [
    "kubevirt.io/created-by",
    "kubevirt.io/migrationJobUID",
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationTargetNodeName",
    "kubevirt.io/schedulable",
    "kubevirt.io/install-strategy",
];
/// The sources of a volume, of which a volume has exactly one.
const VOLUME_SOURCES: [&str; 15] = [
    "persistentVolumeClaim",
    "sysprep",
    "cloudInitNoCloud",
    "cloudInitConfigDrive",
    "containerDisk",
    "ephemeral",
    "emptyDisk",
    "hostDisk",
    "dataVolume",
    "configMap",
    "secret",
    "downwardAPI",
    "serviceAccount",
    "downwardMetrics",
    "memoryDump",
];

pub(super) fn cause(kind: &'static str, message: impl Into<String>, field: impl Into<String>) -> Cause {
    Cause { kind, message: message.into(), field: field.into() }
}

fn is_kubevirt(request: &Value) -> bool {
    KUBEVIRT_USERS.contains(&text(request, "/userInfo/username"))
}

/// The causes against a VM, and warnings (`VMsAdmitter.Admit`). `vm` is the request's object with instance type and
/// preference laid over it.
pub fn virtual_machine(request: &Value, vm: &Value, config: &ClusterConfig) -> (Vec<Cause>, Vec<String>) {
    if is_deleting(vm) {
        return (Vec::new(), Vec::new());
    }
    let Some(template) = vm["spec"].get("template").filter(|template| template.is_object()) else {
        return (vec![cause(REQUIRED, "missing virtual machine template.", "spec.template")], Vec::new());
    };
    let mut spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
    set_spec_defaults(&mut spec, config);
    let mut causes = metadata("spec.template.metadata", &template["metadata"], config, is_kubevirt(request));
    causes.extend(instance_spec("spec.template.spec", &spec, config));
    spec_rules::data_volume_templates(vm, &mut causes);
    causes.extend(run_strategy(&vm["spec"]));
    let deprecated = vm["spec"].get("running").is_some();
    let warnings =
        deprecated.then(|| "spec.running is deprecated, please use spec.runStrategy instead.".to_owned());
    (causes, warnings.into_iter().collect())
}

/// The causes against a new VMI (`VMICreateAdmitter.Admit`).
pub fn instance_create(request: &Value, config: &ClusterConfig) -> Vec<Cause> {
    let vmi = &request["object"];
    let mut causes = instance_spec("spec", &vmi["spec"], config);
    let has_memory = ["/memory/guest", "/memory/hugepages", "/resources/requests/memory"]
        .iter()
        .any(|pointer| vmi["spec"]["domain"].pointer(pointer).is_some_and(|value| !value.is_null()));
    if !has_memory {
        let message = "no memory requested, at least one of 'spec.domain.memory.guest', \
                       'spec.domain.memory.hugepages.pageSize' or 'spec.domain.resources.requests.memory' must be set";
        causes.push(cause(REQUIRED, message, ""));
    }
    causes.extend(metadata("metadata", &vmi["metadata"], config, is_kubevirt(request)));
    causes
}

/// The cause against a change of a VMI, if there is one (`VMIUpdateAdmitter.Admit`).
pub fn instance_update(request: &Value, config: &ClusterConfig) -> Vec<Cause> {
    let (new, old) = (&request["object"], &request["oldObject"]);
    let found = node_restriction(request, config).or_else(|| spec_change(request)).or_else(|| {
        let reserved = |vmi: &Value| -> Vec<(Text, Value)> {
            let labels = map(vmi, "/metadata/labels").into_iter().flatten();
            let mut reserved: Vec<_> = labels
                .filter(|(key, _)| RESERVED_LABELS.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            reserved.sort_by(|(one, _), (other, _)| one.cmp(other));
            reserved
        };
        let message =
            "modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited";
        (!is_kubevirt(request) && reserved(new) != reserved(old)).then(|| cause(NOT_SUPPORTED, message, ""))
    });
    found.into_iter().collect()
}

/// A virt-handler only changes VMIs of its own node.
fn node_restriction(request: &Value, config: &ClusterConfig) -> Option<Cause> {
    let handler = KUBEVIRT_USERS.iter().find(|user| user.ends_with(":kubevirt-handler"))?;
    if text(request, "/userInfo/username") != *handler || !config.gate("NodeRestriction") {
        return None;
    }
    let denial = |message: &str| Some(cause(INVALID, message, ""));
    let Some(node) = request["userInfo"]["extra"][NODE_NAME_EXTRA][0].as_str() else {
        return denial("Node restriction failed, virt-handler service account is missing node name");
    };
    let (new, old) = (&request["object"], &request["oldObject"]);
    let target = |vmi| text(vmi, "/status/migrationState/targetNode");
    if node != text(old, "/status/nodeName") && (target(old).is_empty() || node != target(old)) {
        return denial("Node restriction, virt-handler is only allowed to modify VMIs it owns");
    }
    if target(old).is_empty() && !target(new).is_empty() {
        return denial("Node restriction, virt-handler is not allowed to set target node");
    }
    None
}

fn spec_change(request: &Value) -> Option<Cause> {
    let (new, old) = (&request["object"]["spec"], &request["oldObject"]["spec"]);
    if new == old {
        return None;
    }
    if !is_kubevirt(request) {
        return Some(cause(NOT_SUPPORTED, "update of VMI object is restricted", ""));
    }
    if new.pointer("/domain/cpu/maxSockets") != old.pointer("/domain/cpu/maxSockets") {
        return Some(cause(INVALID, "CPU topology maxSockets changed", ""));
    }
    let most = |spec: &Value| spec.pointer("/domain/memory/maxGuest").and_then(milli);
    match (most(old), most(new)) {
        (Some(before), Some(after)) if before != after => Some(cause(INVALID, "Memory maxGuest changed", "")),
        _ => None,
    }
}

fn run_strategy(spec: &Value) -> Vec<Cause> {
    let strategy = spec.get("runStrategy").and_then(Value::as_str);
    let running = spec.get("running").is_some_and(|running| !running.is_null());
    let mut causes = Vec::new();
    match strategy {
        Some(_) if running => causes.push(cause(
            INVALID,
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy \
             instead",
            "spec.running",
        )),
        None if !running => causes.push(cause(INVALID, "RunStrategy must be specified", "spec.running")),
        _ => {}
    }
    if let Some(strategy) = strategy.filter(|strategy| !RUN_STRATEGIES.contains(strategy)) {
        causes.push(cause(INVALID, format!("Invalid RunStrategy ({strategy})"), "spec.runStrategy"));
    }
    causes
}

fn metadata(field: &str, metadata: &Value, config: &ClusterConfig, kubevirt: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    let labelled = map(metadata, "/labels")
        .into_iter()
        .flatten()
        .any(|(key, _)| RESERVED_LABELS.contains(&key.as_str()));
    if labelled && !kubevirt {
        let message = "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited";
        causes.push(cause(NOT_SUPPORTED, message, format!("{field}.labels")));
    }
    for (key, gate, prefix) in [
        ("kubevirt.io/ignitiondata", "ExperimentalIgnitionSupport", "ExperimentalIgnitionSupport"),
        ("hooks.kubevirt.io/hookSidecars", "Sidecar", "sidecar"),
    ] {
        let asked =
            map(metadata, "/annotations").and_then(|all| all.get(key)).is_some_and(|value| value != "");
        if asked && !config.gate(gate) {
            let message = format!(
                "{prefix} feature gate is not enabled in kubevirt-config, invalid entry {field}.annotations.{key}"
            );
            causes.push(cause(INVALID, message, format!("{field}.annotations")));
        }
    }
    causes
}

/// The causes against a VMI spec (`ValidateVirtualMachineInstanceSpec`), for the rules that are
/// simulated.
fn instance_spec(field: &str, spec: &Value, config: &ClusterConfig) -> Vec<Cause> {
    let mut causes = Vec::new();
    resources(field, spec, &mut causes);
    cpu(field, spec, &mut causes);
    networks(field, spec, &mut causes);
    disks(field, spec, config, &mut causes);
    volumes(field, spec, &mut causes);
    spec_rules::check(field, spec, config, &mut causes);
    let host_devices = !list(spec, "/domain/devices/hostDevices").is_empty();
    if host_devices && !config.gate("HostDevices") {
        causes.push(cause(
            INVALID,
            "Host Devices feature gate is not enabled in kubevirt-config",
            format!("{field}.HostDevices"),
        ));
    }
    let strategy = text(spec, "/evictionStrategy");
    if !matches!(strategy, "" | "None" | "LiveMigrate" | "LiveMigrateIfPossible" | "External") {
        let message = format!("{field}.evictionStrategy is set with an unrecognized option: {strategy}");
        causes.push(cause(INVALID, message, format!("{field}.evictionStrategy")));
    }
    let architecture = text(spec, "/architecture");
    if !matches!(architecture, "amd64" | "arm64" | "s390x") {
        let message = format!("unsupported architecture: {architecture}");
        causes.push(cause(INVALID, message, format!("{field}.architecture")));
    }
    causes
}

fn resources(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let path = |side: &str, name: &str| format!("{field}.domain.resources.{side}.{name}");
    let given = |side: &str, name: &str| spec.pointer(&format!("/domain/resources/{side}/{name}"));
    for name in ["memory", "cpu"] {
        for side in ["requests", "limits"] {
            if let Some(value) =
                given(side, name).filter(|value| milli(value).is_some_and(|amount| amount < 0))
            {
                let shown = value.as_str().unwrap_or_default();
                let message = format!("{} '{shown}': must be greater than or equal to 0.", path(side, name));
                causes.push(cause(INVALID, message, path(side, name)));
            }
        }
        let (request, limit) = (given("requests", name), given("limits", name));
        if let (Some(request), Some(limit)) = (request, limit)
            && milli(limit).is_some_and(|limit| limit > 0)
            && milli(request) > milli(limit)
        {
            let message = format!(
                "{} '{}' is greater than {} '{}'",
                path("requests", name),
                request.as_str().unwrap_or_default(),
                path("limits", name),
                limit.as_str().unwrap_or_default()
            );
            causes.push(cause(INVALID, message, path("requests", name)));
        }
    }
}

fn cpu(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    for (index, feature) in list(spec, "/domain/cpu/features").iter().enumerate() {
        let policy = text(feature, "/policy");
        if !matches!(policy, "" | "force" | "require" | "optional" | "disable" | "forbid") {
            let message =
                format!("CPU feature {} uses policy {policy} that is not supported.", text(feature, "/name"));
            causes.push(cause(
                NOT_SUPPORTED,
                message,
                format!("{field}.domain.cpu.features[{index}].policy"),
            ));
        }
    }
    let count = |key: &str| spec.pointer(&format!("/domain/cpu/{key}")).and_then(Value::as_i64).unwrap_or(0);
    if count("maxSockets") != 0 && count("sockets") > count("maxSockets") {
        causes.push(cause(
            INVALID,
            "Number of sockets in CPU topology is greater than the maximum sockets allowed",
            format!("{field}.domain.cpu.sockets"),
        ));
    }
    let on = |key: &str| spec.pointer(&format!("/domain/cpu/{key}")) == Some(&Value::Bool(true));
    if on("isolateEmulatorThread") && !on("dedicatedCpuPlacement") {
        let message = "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement";
        causes.push(cause(INVALID, message, format!("{field}.domain.cpu.isolateEmulatorThread")));
    }
    if spec.pointer("/domain/cpu/numa/guestMappingPassthrough").is_some() {
        let path = format!("{field}.domain.cpu.numa.guestMappingPassthrough");
        if !on("dedicatedCpuPlacement") {
            let message = format!(
                "{field}.domain.cpu.dedicatedCpuPlacement must be set to true when NUMA topology strategy is set in {path}"
            );
            causes.push(cause(INVALID, message, format!("{field}.domain.cpu.dedicatedCpuPlacement")));
        }
        if spec.pointer("/domain/memory/hugepages").is_none() {
            let message = format!(
                "{field}.domain.memory.hugepages must be requested when NUMA topology strategy is set in {path}"
            );
            causes.push(cause(INVALID, message, format!("{field}.domain.memory.hugepages")));
        }
    }
}

fn networks(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let names = |pointer: &str| -> HashSet<String> {
        list(spec, pointer).iter().map(|one| text(one, "/name").to_owned()).collect()
    };
    let (interfaces, networks) = (names("/domain/devices/interfaces"), names("/networks"));
    let mut seen = HashSet::new();
    for (index, network) in list(spec, "/networks").iter().enumerate() {
        let (name, at) = (text(network, "/name"), format!("{field}.networks[{index}].name"));
        if !interfaces.contains(name) {
            causes.push(cause(REQUIRED, format!("{at} '{name}' not found."), at.clone()));
        }
        if !seen.insert(name) {
            let message =
                format!("Network with name \"{name}\" already exists, every network must have a unique name");
            causes.push(cause(DUPLICATE, message, at));
        }
    }
    let mut seen = HashSet::new();
    for (index, interface) in list(spec, "/domain/devices/interfaces").iter().enumerate() {
        let (name, at) =
            (text(interface, "/name"), format!("{field}.domain.devices.interfaces[{index}].name"));
        if !networks.contains(name) {
            causes.push(cause(INVALID, format!("{at} '{name}' not found."), at.clone()));
        }
        if !seen.insert(name) {
            let message = "Only one interface can be connected to one specific network";
            causes.push(cause(DUPLICATE, message, at));
        }
    }
}

fn disks(field: &str, spec: &Value, config: &ClusterConfig, causes: &mut Vec<Cause>) {
    let volumes: HashSet<&str> = list(spec, "/volumes").iter().map(|volume| text(volume, "/name")).collect();
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut orders = HashSet::new();
    for (index, disk) in list(spec, "/domain/devices/disks").iter().enumerate() {
        let (name, at) = (text(disk, "/name"), format!("{field}.domain.devices.disks[{index}]"));
        if !volumes.contains(name) {
            if disk.get("cdrom").is_none() {
                causes.push(cause(INVALID, format!("{at}.Name '{name}' not found."), format!("{at}.name")));
            } else if !config.gate("DeclarativeHotplugVolumes") {
                let message =
                    "DeclarativeHotplugVolumes feature gate not enabled, cannot define an empty CD-ROM disk";
                causes.push(cause(INVALID, message, format!("{at}.name")));
            }
        }
        if let Some(other) = names.insert(name, index) {
            let message =
                format!("{at} and {field}.domain.devices.disks[{other}] must not have the same Name.");
            causes.push(cause(INVALID, message, format!("{at}.name")));
        }
        if ["disk", "lun", "cdrom"].iter().filter(|kind| disk.get(**kind).is_some()).count() > 1 {
            causes.push(cause(
                INVALID,
                format!("{at} can only have a single target type defined"),
                at.clone(),
            ));
        }
        if let Some(order) = disk.get("bootOrder").and_then(Value::as_i64)
            && !orders.insert(order)
        {
            let message = format!("Boot order for {at}.bootOrder already set for a different device.");
            causes.push(cause(INVALID, message, format!("{at}.bootOrder")));
        }
    }
}

fn volumes(field: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let targets: HashSet<&str> = ["/domain/devices/disks", "/domain/devices/filesystems"]
        .iter()
        .flat_map(|pointer| list(spec, pointer))
        .map(|device| text(device, "/name"))
        .collect();
    let mut names: HashMap<&str, usize> = HashMap::new();
    for (index, volume) in list(spec, "/volumes").iter().enumerate() {
        let (name, at) = (text(volume, "/name"), format!("{field}.volumes[{index}]"));
        if volume.get("memoryDump").is_none() && !targets.contains(name) {
            let at = format!("{field}.domain.volumes[{index}].name");
            causes.push(cause(INVALID, format!("{at} '{name}' not found."), at));
        }
        if let Some(other) = names.insert(name, index) {
            let message = format!("{at} and {field}.volumes[{other}] must not have the same Name.");
            causes.push(cause(INVALID, message, format!("{at}.name")));
        }
        if VOLUME_SOURCES.iter().filter(|source| volume.get(**source).is_some()).count() != 1 {
            let message = format!("{at} must have exactly one source type set");
            causes.push(cause(INVALID, message, at));
        }
    }
}

/// The `Status` of a refusal (`webhookutils.ToAdmissionResponse`): at most ten causes, their
/// messages joined.
pub fn refusal(causes: &[Cause]) -> Value {
    let messages: Vec<String> = causes.iter().map(|cause| cause.message.clone()).collect();
    let listed: Vec<Value> = causes
        .iter()
        .map(|cause| {
            let mut one = json!({"reason": cause.kind, "message": cause.message});
            if !cause.field.is_empty() {
                one["field"] = cause.field.as_str().into();
            }
            one
        })
        .collect();
    refusal_of(&messages, &listed)
}

/// The status of a refusal for these reasons, of which ten are shown.
pub fn refusal_of(messages: &[String], causes: &[Value]) -> Value {
    let shown = &messages[..messages.len().min(10)];
    let mut message = shown.join(", ");
    if messages.len() > shown.len() {
        message = format!("{message}, and {} more validation errors", messages.len() - shown.len());
    }
    let causes = &causes[..causes.len().min(10)];
    json!({"message": message, "reason": "Invalid", "code": 422, "details": {"causes": causes}})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VM without instance type.
    fn judge(request: &Value, config: &ClusterConfig) -> (Vec<Cause>, Vec<String>) {
        virtual_machine(request, &request["object"], config)
    }

    fn config(gates: &[&str]) -> ClusterConfig {
        ClusterConfig::of(
            &json!({"spec": {"configuration": {"developerConfiguration": {"featureGates": gates}}},
            "status": {"defaultArchitecture": "amd64", "observedKubeVirtVersion": "v1.9.0"}}),
        )
    }

    fn vm(template: impl Into<Value>) -> Value {
        let template: Value = template.into();
        json!({"operation": "CREATE", "userInfo": {"username": "admin"},
            "object": {"spec": {"runStrategy": "Always", "template": template}}})
    }

    fn messages(causes: &[Cause]) -> Vec<&str> {
        causes.iter().map(|cause| cause.message.as_str()).collect()
    }

    #[test]
    fn vms_are_refused_in_the_words_of_virt_api() {
        let disk = |name: &str| json!({"name": name, "disk": {}});
        let root = json!({"name": "root", "containerDisk": {"image": "i"}});
        for (template, expected) in [
            (json!({"spec": {"domain": {"devices": {}}}}), vec![]),
            (
                json!({"spec": {"domain": {"devices": {"disks": [disk("root")]}}}}),
                vec!["spec.template.spec.domain.devices.disks[0].Name 'root' not found."],
            ),
            (
                json!({"spec": {"domain": {"devices": {"disks": [disk("root"), disk("root")]}}, "volumes": [root]}}),
                vec![
                    "spec.template.spec.domain.devices.disks[1] and spec.template.spec.domain.devices.disks[0] must not have the same Name.",
                ],
            ),
            (
                json!({"spec": {"domain": {"devices": {}}, "volumes": [root, root]}}),
                vec![
                    "spec.template.spec.volumes[1] and spec.template.spec.volumes[0] must not have the same Name.",
                    "spec.template.spec.domain.devices.disks[1] and spec.template.spec.domain.devices.disks[0] must not have the same Name.",
                ],
            ),
            (
                json!({"spec": {"domain": {"devices": {}}, "volumes": [{"name": "v"}]}}),
                vec!["spec.template.spec.volumes[0] must have exactly one source type set"],
            ),
            (
                json!({"spec": {"domain": {"devices": {"hostDevices": [{"name": "d"}]}}}}),
                vec!["Host Devices feature gate is not enabled in kubevirt-config"],
            ),
            (
                json!({"metadata": {"annotations": {"hooks.kubevirt.io/hookSidecars": "[]"}}, "spec": {"domain": {"devices": {}}}}),
                vec![
                    "sidecar feature gate is not enabled in kubevirt-config, invalid entry spec.template.metadata.annotations.hooks.kubevirt.io/hookSidecars",
                ],
            ),
            (
                json!({"spec": {"domain": {"cpu": {"features": [{"name": "vmx", "policy": "maybe"}]}, "devices": {}}}}),
                vec!["CPU feature vmx uses policy maybe that is not supported."],
            ),
            (
                json!({"spec": {"domain": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}, "devices": {}}}}),
                vec![
                    "spec.template.spec.domain.resources.requests.memory '2Gi' is greater than spec.template.spec.domain.resources.limits.memory '1Gi'",
                ],
            ),
            (
                json!({"spec": {"domain": {"devices": {"interfaces": [{"name": "a"}]}}, "networks": [{"name": "b"}]}}),
                vec![
                    "spec.template.spec.networks[0].name 'b' not found.",
                    "spec.template.spec.domain.devices.interfaces[0].name 'a' not found.",
                ],
            ),
        ] {
            let (causes, _) = judge(&vm(template.clone()), &config(&[]));
            let (mut got, mut expected) = (messages(&causes), expected);
            got.sort_unstable();
            expected.sort_unstable();
            assert_eq!(got, expected, "{template}");
        }
        let hooked = json!({"metadata": {"annotations": {"hooks.kubevirt.io/hookSidecars": "[]"}},
            "spec": {"domain": {"devices": {"hostDevices": [{"name": "d"}]}}}});
        assert_eq!(judge(&vm(hooked), &config(&["Sidecar", "HostDevices"])).0, []);
    }

    #[test]
    fn run_strategies() {
        for (spec, expected) in [
            (json!({"runStrategy": "Always"}), None),
            (json!({"running": true}), None),
            (json!({}), Some("RunStrategy must be specified")),
            (json!({"runStrategy": "Sometimes"}), Some("Invalid RunStrategy (Sometimes)")),
            (
                json!({"runStrategy": "Always", "running": false}),
                Some(
                    "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
                ),
            ),
        ] {
            let causes = run_strategy(&spec);
            assert_eq!(causes.first().map(|cause| cause.message.as_str()), expected, "{spec}");
        }
        let (_, warnings) =
            judge(&json!({"object": {"spec": {"running": true, "template": {}}}}), &config(&[]));
        assert_eq!(warnings, ["spec.running is deprecated, please use spec.runStrategy instead."]);
    }

    #[test]
    fn only_kubevirt_changes_a_vmi() {
        let handler = "system:serviceaccount:kubevirt:kubevirt-handler";
        let controller = "system:serviceaccount:kubevirt:kubevirt-controller";
        let vmi = |sockets: i64, labels: Value| {
            json!({"metadata": {"labels": labels}, "status": {"nodeName": "n1"},
            "spec": {"domain": {"cpu": {"sockets": sockets, "maxSockets": 8}}}})
        };
        let plain = || vmi(1, json!({"kubevirt.io/nodeName": "n1"}));
        for (user, node, new, expected) in [
            ("admin", None, plain(), None),
            (
                "admin",
                None,
                vmi(2, json!({"kubevirt.io/nodeName": "n1"})),
                Some("update of VMI object is restricted"),
            ),
            (
                "admin",
                None,
                vmi(1, json!({})),
                Some(
                    "modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited",
                ),
            ),
            (controller, None, vmi(2, json!({})), None),
            (
                handler,
                None,
                plain(),
                Some("Node restriction failed, virt-handler service account is missing node name"),
            ),
            (
                handler,
                Some("n2"),
                plain(),
                Some("Node restriction, virt-handler is only allowed to modify VMIs it owns"),
            ),
            (handler, Some("n1"), plain(), None),
        ] {
            let mut request = json!({"userInfo": {"username": user}, "object": new, "oldObject": plain()});
            if let Some(node) = node {
                request["userInfo"]["extra"][NODE_NAME_EXTRA] = json!([node]);
            }
            let causes = instance_update(&request, &config(&[]));
            assert_eq!(causes.first().map(|cause| cause.message.as_str()), expected, "{user} {node:?}");
        }
    }

    #[test]
    fn a_refusal_joins_ten_messages_and_counts_the_rest() {
        let causes: Vec<Cause> = (0..12).map(|index| cause(INVALID, format!("m{index}"), "f")).collect();
        let status = refusal(&causes);
        assert!(text(&status, "/message").ends_with("m9, and 2 more validation errors"), "{status}");
        assert_eq!(list(&status, "/details/causes").len(), 10);
    }
}
