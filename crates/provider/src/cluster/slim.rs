//! What a summary reads of a VM and of its instance. Whoever has to hold many of them holds no more than this: an
//! object as the API gives it is some tens of times as large.

use serde_json::{Map, Value};

/// What is read of a VM.
const VM: [&str; 10] = [
    "/metadata/namespace",
    "/metadata/name",
    "/metadata/creationTimestamp",
    "/spec/runStrategy",
    "/spec/running",
    "/spec/template/spec/domain/cpu",
    "/spec/template/spec/domain/memory",
    "/spec/template/spec/domain/resources/requests",
    "/status/printableStatus",
    "/status/conditions",
];

/// What is read of an instance.
const VMI: [&str; 10] = [
    "/metadata/namespace",
    "/metadata/name",
    "/spec/domain/memory",
    "/status/nodeName",
    "/status/interfaces",
    "/status/currentCPUTopology",
    "/status/memory",
    "/status/guestOSInfo",
    "/status/conditions",
    "/status/phase",
];

/// A VM, as far as a summary reads it.
pub(super) fn vm(vm: &Value) -> Value {
    only(vm, &VM)
}

/// An instance, as far as a summary reads it.
pub(super) fn vmi(vmi: &Value) -> Value {
    only(vmi, &VMI)
}

/// The fields of an object at these pointers; what is not there is left out.
fn only(object: &Value, pointers: &[&str]) -> Value {
    let mut kept = Map::new();
    for pointer in pointers {
        if let Some(value) = object.pointer(pointer) {
            put(&mut kept, pointer.trim_start_matches('/'), value);
        }
    }
    kept.into()
}

fn put(into: &mut Map<String, Value>, path: &str, value: &Value) {
    match path.split_once('/') {
        None => drop(into.insert(path.to_owned(), value.clone())),
        Some((first, rest)) => {
            let below = into.entry(first).or_insert_with(|| Map::new().into());
            if let Value::Object(below) = below {
                put(below, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::VmSummary;

    #[test]
    fn a_summary_of_what_is_kept_is_that_of_the_whole() {
        let conditions =
            json!([{"type": "Ready", "status": "True"}, {"type": "RestartRequired", "status": "True"}]);
        let whole = json!({"metadata": {"namespace": "a", "name": "web", "creationTimestamp": "2026-11-01T00:00:00Z",
                "managedFields": [{"manager": "kubectl"}], "annotations": {"x": "y"}},
            "spec": {"runStrategy": "Always", "dataVolumeTemplates": [{"spec": {}}], "template": {"spec": {
                "volumes": [{"name": "root"}], "domain": {"cpu": {"sockets": 2, "cores": 3},
                    "memory": {"guest": "2Gi"}, "devices": {"disks": [{"name": "root"}]}}}}},
            "status": {"printableStatus": "Running", "conditions": conditions}});
        let by_request = json!({"metadata": {"namespace": "a", "name": "db"}, "spec": {"running": true, "template":
            {"spec": {"domain": {"resources": {"requests": {"memory": "1Gi"}}}}}}});
        let instance = json!({"metadata": {"name": "web", "uid": "u"}, "spec": {"domain": {"memory": {"guest": "3Gi"},
                "devices": {}}},
            "status": {"nodeName": "n", "phase": "Running", "guestOSInfo": {"prettyName": "Fedora"},
                "interfaces": [{"ipAddress": "10.0.0.1"}], "currentCPUTopology": {"sockets": 4},
                "memory": {"guestCurrent": "4Gi"}, "volumeStatus": [{"name": "root"}],
                "conditions": [{"type": "LiveMigratable", "status": "False"}, {"type": "AgentConnected", "status": "True"}]}});
        for (one, of) in [(&whole, Some(&instance)), (&whole, None), (&by_request, None), (&json!({}), None)]
        {
            let kept = of.map(vmi);
            assert_eq!(VmSummary::of(&vm(one), kept.as_ref()), VmSummary::of(one, of), "{one}");
        }
        assert!(!vm(&whole).to_string().contains("managedFields"));
        assert!(!vmi(&instance).to_string().contains("volumeStatus"));
    }
}
