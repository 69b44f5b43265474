//! Plans and states as objects, for programs.

use ::resize::ledger::{self, LEDGER, Ledger, REPORT, Report, WISH, Wish};
use ::resize::plan::Plan;
use ::resize::quantity::{show_bytes, show_cpu};
use ::resize::size::{Amount, Compute, Size};
use ::resize::view;
use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Where;
use super::progress;
use super::read::Found;

fn size(size: Size) -> Value {
    json!({"sockets": size.sockets, "memory": show_bytes(size.guest)})
}

/// As Kubernetes writes them in a container.
pub fn resources(compute: Compute) -> Value {
    let side = |of: fn(Amount) -> Option<u64>| -> Map<String, Value> {
        let cpu = of(compute.cpu).map(|amount| ("cpu".to_owned(), show_cpu(amount).into()));
        let memory = of(compute.memory).map(|amount| ("memory".to_owned(), show_bytes(amount).into()));
        cpu.into_iter().chain(memory).collect()
    };
    let mut resources = json!({"requests": side(|amount| Some(amount.request))});
    let limits = side(|amount| amount.limit);
    if !limits.is_empty() {
        resources["limits"] = limits.into();
    }
    resources
}

/// What a resize would change.
pub fn plan(of: &Where, plan: &Plan, found: &Found) -> Value {
    let obstacles: Vec<Value> = plan
        .obstacles
        .iter()
        .map(|one| json!({"message": one.to_string(), "passesByItself": one.is_temporary()}))
        .collect();
    let mut object = json!({
        "namespace": of.namespace, "virtualMachine": of.name, "way": super::way(plan, found).name(),
        "from": size(plan.from), "to": size(plan.to), "obstacles": obstacles});
    if !found.pod.is_null() {
        object["pod"] = json!({"name": found.pod["metadata"]["name"], "now": resources(plan.now),
            "meanwhile": resources(plan.larger), "then": resources(plan.last)});
    }
    if let Some(policy) = &found.policy {
        object["fallback"] = json!({"action": policy.fallback, "deadlineSeconds": policy.deadline});
    }
    if super::asks_for_the_grant(plan, found) {
        object["declareMemoryGranted"] = found.grant.into();
    }
    object
}

fn at(second: i64) -> Value {
    Timestamp::from_second(second).map_or(Value::Null, |at| at.to_string().into())
}

/// How far a resize is.
pub fn status(of: &Where, found: &Found) -> Result<Value> {
    let vmi = view::vmi(&found.vmi);
    let mut object = json!({
        "namespace": of.namespace, "virtualMachine": of.name, "inPlace": found.policy.is_some(),
        "declared": size(vmi.size), "state": progress::state(found)?});
    if let Some(wanted) = view::wanted(&found.vm) {
        object["wanted"] = size(wanted.size);
    }
    if let Some(wish) = ledger::read::<Wish>(&found.vmi, WISH)? {
        let (sockets, memory) =
            (wish.sockets.map(Value::from), wish.guest.map(|guest| show_bytes(guest).into()));
        let parts = [("sockets", sockets), ("memory", memory)];
        object["held"] = parts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    }
    if let Some(report) = ledger::read::<Report>(&found.vmi, REPORT)? {
        object["guest"] = json!({"vcpus": report.vcpus, "memory": show_bytes(report.current),
            "requestedMemory": show_bytes(report.requested)});
        if let Some(trouble) = report.trouble {
            object["guest"]["trouble"] = trouble.into();
        }
    }
    if let Some(ledger) = ledger::read::<Ledger>(&found.vmi, LEDGER)? {
        object["phase"] = json!(ledger.phase);
        object["since"] = at(ledger.since);
        if ledger.begun > 0 {
            object["begun"] = at(ledger.begun);
        }
        if let Some(reason) = ledger.reason {
            object["reason"] = json!(reason);
        }
        if let Some(retry) = ledger.retry_at {
            object["retryAt"] = at(retry);
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of() -> Where {
        Where { name: "db".into(), namespace: "team".into(), kubeconfig: None, context: None }
    }

    fn amount(request: u64, limit: Option<u64>) -> Amount {
        Amount { request, limit }
    }

    #[test]
    fn a_plan_is_an_object_for_programs() {
        let compute = Compute { cpu: amount(200, None), memory: amount(1 << 30, Some(2 << 30)) };
        let to = Size { sockets: 2, guest: 2 << 30 };
        let one = Plan {
            from: Size { guest: 1 << 30, ..to },
            to,
            now: compute,
            larger: compute,
            last: compute,
            obstacles: vec![::resize::Obstacle::MemoryNeedsGrant],
        };
        let found = Found {
            pod: json!({"metadata": {"name": "launcher"}}),
            policy: Some(::resize::Policy { in_place: true, ..::resize::Policy::default() }),
            grant: Some(false),
            ..Found::default()
        };
        let shown = plan(&of(), &one, &found);
        assert_eq!(shown["from"], json!({"sockets": 2, "memory": "1Gi"}));
        assert_eq!(
            shown["pod"]["now"],
            json!({"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}})
        );
        assert_eq!(shown["fallback"], json!({"action": "Migrate", "deadlineSeconds": 300}));
        assert_eq!((&shown["declareMemoryGranted"], &shown["way"]), (&json!(false), &json!("not-in-place")));
        assert_eq!(shown["obstacles"][0]["passesByItself"], false);
        let asked = plan(&of(), &one, &Found { grant: None, ..found });
        assert_eq!(asked.get("declareMemoryGranted"), Some(&Value::Null), "asked for, and not known");
    }

    #[test]
    fn a_state_is_an_object_for_programs() {
        let found = Found {
            vmi: json!({"metadata": {"annotations": {
                    LEDGER: r#"{"phase":"Stopped","pod":"p","from":{"size":{"sockets":2,"guest":1073741824},
                        "pod":{"cpu":{"request":200},"memory":{"request":1}}},"to":{"size":{"sockets":4,"guest":1073741824},
                        "pod":{"cpu":{"request":400},"memory":{"request":1}}},"since":60,
                        "reason":{"cause":"Refused","message":"exceeded quota"}}"#,
                    WISH: r#"{"sockets":4}"#}},
                "spec": {"domain": {"cpu": {"sockets": 2}, "memory": {"guest": "1Gi"}}}}),
            ..Found::default()
        };
        let shown = status(&of(), &found).unwrap();
        assert_eq!((&shown["phase"], &shown["since"]), (&json!("Stopped"), &json!("1970-01-01T00:01:00Z")));
        assert_eq!(shown["reason"], json!({"cause": "Refused", "message": "exceeded quota"}));
        assert_eq!((&shown["held"], shown.get("guest")), (&json!({"sockets": 4}), None));
        assert_eq!(shown["state"], "given up (Refused: exceeded quota)");
    }
}
