//! Containers that `kubectl debug` puts into a pod that runs. Nothing runs in the pods of the sandbox, so they end at once,
//! as one whose program cannot be started: kubectl would wait for ever for a container of which nothing is said.

use apimachinery::tree::{Value, json};
use jiff::Timestamp;

use super::decide::{container_id, image_id};
use crate::sim::json::{self, is_deleting, list, text, time};

/// The next status of a pod with such a container; nothing when there is no new one.
pub fn decide(pod: &Value, now: Timestamp) -> Option<Value> {
    let known = list(pod, "/status/ephemeralContainerStatuses");
    let added = list(pod, "/spec/ephemeralContainers");
    if is_deleting(pod) || text(pod, "/status/phase") != "Running" || added.len() <= known.len() {
        return None;
    }
    let of = |container: &Value| {
        let was = known.iter().find(|status| status["name"] == container["name"]);
        was.cloned().unwrap_or_else(|| not_started(pod, container, now))
    };
    Some(json!({"ephemeralContainerStatuses": added.iter().map(of).collect::<Value>()}))
}

fn not_started(pod: &Value, container: &Value, now: Timestamp) -> Value {
    let image = text(container, "/image");
    let id = container_id(json::uid(pod), container);
    json!({"name": container["name"], "image": image, "imageID": image_id(image), "containerID": id, "ready": false,
        "restartCount": 0, "lastState": {}, "state": {"terminated": {"exitCode": 128, "reason": "StartError",
            "message": "the pod is simulated: nothing runs in its containers", "startedAt": time(now),
            "finishedAt": time(now), "containerID": id}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_container_ends_at_once_and_says_why() {
        let mut pod = json!({"metadata": {"uid": "u"}, "status": {"phase": "Running"},
            "spec": {"ephemeralContainers": [{"name": "a", "image": "busybox"}]}});
        assert_eq!(decide(&json!({"status": {"phase": "Running"}, "spec": {}}), Timestamp::UNIX_EPOCH), None);

        let first = decide(&pod, Timestamp::UNIX_EPOCH).unwrap();
        let ended = &first["ephemeralContainerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("StartError"), &json!(128)));
        assert!(ended["message"].as_str().unwrap().contains("simulated"));

        pod["status"]["ephemeralContainerStatuses"] = first["ephemeralContainerStatuses"].clone();
        let later = Timestamp::from_second(9).unwrap();
        assert_eq!(decide(&pod, later), None, "said once");
        pod["spec"]["ephemeralContainers"] = json!([{"name": "a", "image": "busybox"}, {"name": "b"}]);
        let second = decide(&pod, later).unwrap();
        assert_eq!(second["ephemeralContainerStatuses"][0], first["ephemeralContainerStatuses"][0]);
        assert_eq!(second["ephemeralContainerStatuses"][1]["name"], "b");
    }
}
