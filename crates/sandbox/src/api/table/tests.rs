use apimachinery::tree::json;

use super::*;

fn now() -> Timestamp {
    "2026-11-21T01:00:10Z".parse().unwrap()
}

fn row(group: &str, plural: &str, object: &Value) -> Vec<String> {
    let (columns, row) = built_in(group, plural);
    let cells = row(object, now());
    assert_eq!(cells.len(), columns.len(), "{plural}");
    cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect()
}

#[test]
fn every_row_has_as_many_cells_as_columns() {
    for kind in crate::registry::Registry::new().kinds().iter() {
        row(&kind.group, &kind.plural, &json!({"metadata": {"name": "a"}}));
    }
}

#[test]
fn pods_say_what_they_are_doing() {
    let running = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let waiting = json!({"name": "c", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    let cases = [
        (json!({"phase": "Running", "containerStatuses": [running]}), json!(null), ["1/1", "Running", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [waiting]}),
            json!(null),
            ["0/1", "CrashLoopBackOff", "2"],
        ),
        (json!({"phase": "Pending"}), json!(null), ["0/1", "Pending", "0"]),
        (
            json!({"phase": "Running", "containerStatuses": [running]}),
            json!("2026-11-21T01:00:00Z"),
            ["1/1", "Terminating", "0"],
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), json!(null), ["0/1", "Evicted", "0"]),
    ];
    for (status, deleted, want) in cases {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-11-21T01:00:00Z", "deletionTimestamp": deleted},
            "spec": {"containers": [{"name": "c"}]}, "status": status});
        assert_eq!(row("", "pods", &pod)[1..4], want, "{pod}");
    }
    // A launcher has a container for its console's log, which is one of those that init and go on.
    let log =
        json!({"name": "log", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}});
    let launcher = json!({"metadata": {"name": "p", "creationTimestamp": "2026-11-21T01:00:00Z"},
        "spec": {"containers": [{"name": "c"}],
            "initContainers": [{"name": "log", "restartPolicy": "Always"}, {"name": "once"}]},
        "status": {"phase": "Running", "containerStatuses": [running], "initContainerStatuses": [log,
            {"name": "once", "ready": true, "restartCount": 3, "state": {"terminated": {"exitCode": 0}}}]}});
    assert_eq!(row("", "pods", &launcher)[1..4], ["2/2", "Running", "1"]);
}

#[test]
fn nodes_services_and_events_read_as_in_kubectl() {
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(row("", "nodes", &node)[..3], ["n", "Ready,SchedulingDisabled", "worker"]);
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1",
        "ports": [{"port": 443, "protocol": "TCP"}]}});
    assert_eq!(row("", "services", &service)[1..5], ["ClusterIP", "10.0.0.1", "<none>", "443/TCP"]);
    let event = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Started", "message": "m",
        "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2026-11-21T01:00:00Z"});
    assert_eq!(row("", "events", &event)[..4], ["10s", "Normal", "Started", "pod/p"]);
}
