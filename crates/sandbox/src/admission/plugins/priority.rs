//! `spec.priority` from the priority class (`plugin/pkg/admission/priority`, Kubernetes 1.36).

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use crate::admission::Request;
use crate::objects::Objects;

const GROUP: &str = "scheduling.k8s.io";
/// Classes that every cluster has.
const SYSTEM: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Sets the priority of a new pod.
///
/// # Errors
/// 403 for a class that is not there, and for a priority that is not that of the class.
pub fn add(objects: &dyn Objects, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let (value, preemption) = if name.is_empty() {
        let classes = objects.list(GROUP, "priorityclasses");
        let class = classes
            .iter()
            .filter(|class| class["globalDefault"] == true)
            .min_by_key(|class| class["value"].as_i64());
        if let Some(class) = class {
            pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        }
        class.map_or((0, Value::Null), |class| read(class))
    } else if let Some(class) = objects.get(GROUP, "priorityclasses", "", &name) {
        read(&class)
    } else if let Some((_, value)) = SYSTEM.iter().find(|(system, _)| *system == name) {
        (*value, Value::Null)
    } else {
        return Err(request.forbidden(pod, &format!("no PriorityClass with name {name} was found")));
    };
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(request.forbidden(pod, &why));
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] =
            if preemption.is_null() { json!("PreemptLowerPriority") } else { preemption };
    }
    Ok(())
}

fn read(class: &Value) -> (i64, Value) {
    (class["value"].as_i64().unwrap_or_default(), class["preemptionPolicy"].clone())
}
