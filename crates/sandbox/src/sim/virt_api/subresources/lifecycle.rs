//! Start, stop, restart and migrate as virt-api decides them (`pkg/virt-api/rest/lifecycle.go`,
//! v1.9): what is written, or why not.
//!
//! ```text
//!              start                     stop                        restart
//!  Halted      runStrategy: Always       409, or a shorter grace     409
//!  Always      409                       runStrategy: Halted         Stop and Start requests
//!  Manual      Start request             Stop request                Stop and Start requests
//!  Rerun…      Start request             Stop request                Stop and Start requests
//!  Once        409                       runStrategy: Halted         409
//! ```

use apimachinery::Status;
use apimachinery::tree::{Value, json};

use super::refusal::{NOT_RUNNING, RECOVERY, vm_conflict};
use crate::sim::json::{self, has_condition, list, text};
use crate::sim::resource::{MIGRATIONS, VMIS, VMS};
use crate::sim::virt_controller::vm::{is_final, run_strategy};
use crate::sim::write::{Op, Write};

/// A VM and the VMI of its name, as virt-api reads them.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub vm: &'a Value,
    pub vmi: Option<&'a Value>,
}

/// What is to be written, in order; when a later write fails, `undo` takes the first one back.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub undo: Option<Write>,
}

impl From<Write> for Plan {
    fn from(write: Write) -> Self {
        Self { writes: vec![write], undo: None }
    }
}

fn strategy<'a>(seen: &Seen<'a>) -> Result<&'a str, Status> {
    let both = "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use \
                RunStrategy instead";
    run_strategy(seen.vm).ok_or_else(|| Status::internal(both))
}

/// `start`
pub fn start(seen: &Seen<'_>, options: &Value) -> Result<Plan, Status> {
    let name = json::name(seen.vm);
    let phase = seen.vmi.map_or("", |vmi| text(vmi, "/status/phase"));
    if seen.vmi.is_some_and(|vmi| !is_final(vmi)) && !matches!(phase, "" | "Unknown") {
        return Err(vm_conflict(name, "VM is already running"));
    }
    if has_condition(seen.vm, "ManualRecoveryRequired", "True") {
        return Err(vm_conflict(name, RECOVERY));
    }
    let mut request = json!({"action": "Start"});
    let paused = options["paused"] == true;
    if paused {
        request["data"] = json!({"paused": "true"});
    }
    match strategy(seen)? {
        "Halted" if paused => change_request(seen.vm, &[request]).map(Into::into),
        "Halted" => Ok(running(seen.vm, true).into()),
        strategy @ ("RerunOnFailure" | "Manual") => {
            if strategy == "RerunOnFailure" && phase == "Failed" {
                let message = format!("{strategy} does not support starting VM from failed state");
                return Err(vm_conflict(name, &message));
            }
            match seen.vmi.filter(|vmi| is_final(vmi)) {
                Some(vmi) => change_request(seen.vm, &[stop_of(vmi), request]).map(Into::into),
                None => change_request(seen.vm, &[request]).map(Into::into),
            }
        }
        strategy => Err(vm_conflict(name, &format!("{strategy} does not support manual start requests"))),
    }
}

/// `stop`
pub fn stop(seen: &Seen<'_>, options: &Value) -> Result<Plan, Status> {
    let name = json::name(seen.vm);
    let strategy = strategy(seen)?;
    let alive = seen.vmi.filter(|vmi| !is_final(vmi));
    let wanted = options.get("gracePeriod").and_then(Value::as_i64);
    let mut plan = Plan::default();
    if let (Some(vmi), Some(seconds)) = (alive, wanted) {
        plan.writes.push(grace_period(vmi, seconds));
    }
    match (strategy, alive) {
        ("Halted" | "RerunOnFailure" | "Manual", None) => return Err(vm_conflict(name, NOT_RUNNING)),
        ("Halted", Some(vmi)) => {
            let old = vmi.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
            if wanted.is_none_or(|wanted| old.is_some_and(|old| wanted >= old)) {
                // The shorter period is refused after the VMI was patched, as in v1.9.
                let message = "Halted only supports manual stop requests with a shorter graceperiod";
                return Err(vm_conflict(name, message));
            }
            plan.writes.push(change_request(seen.vm, &[stop_of(vmi)])?);
        }
        ("RerunOnFailure" | "Manual", Some(vmi)) => {
            plan.writes.push(change_request(seen.vm, &[stop_of(vmi)])?);
        }
        _ => plan.writes.push(running(seen.vm, false)),
    }
    Ok(plan)
}

/// `restart`
pub fn restart(seen: &Seen<'_>, options: &Value) -> Result<Plan, Status> {
    let name = json::name(seen.vm);
    let wanted = options.get("gracePeriodSeconds").and_then(Value::as_i64);
    if wanted.is_some_and(|seconds| seconds > 0) {
        return Err(Status::bad_request("For force restart, only gracePeriod=0 is supported for now"));
    }
    if wanted.is_some_and(|seconds| seconds < 0) {
        return Err(Status::bad_request("gracePeriod has to be greater or equal to 0"));
    }
    if has_condition(seen.vm, "VolumesChange", "True") {
        return Err(vm_conflict(name, RECOVERY));
    }
    let strategy = strategy(seen)?;
    if matches!(strategy, "Halted" | "Once") {
        // The missing letter is KubeVirt's.
        return Err(vm_conflict(
            name,
            &format!("RunStategy {strategy} does not support manual restart requests"),
        ));
    }
    let Some(vmi) = seen.vmi else { return Err(vm_conflict(name, "VM is not running: Halted")) };
    let mut plan = Plan::default();
    if wanted == Some(0) {
        plan.writes.push(grace_period(vmi, 1));
        let old = vmi.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        let mut patched = vmi.clone();
        patched["spec"]["terminationGracePeriodSeconds"] = 1.into();
        plan.undo = Some(grace_period(&patched, old));
    }
    plan.writes.push(change_request(seen.vm, &[stop_of(vmi), json!({"action": "Start"})])?);
    Ok(plan)
}

/// `migrate`
pub fn migrate(seen: &Seen<'_>, options: &Value) -> Result<Plan, Status> {
    let name = json::name(seen.vm);
    let Some(vmi) = seen.vmi else {
        return Err(Status::not_found("kubevirt.io", "virtualmachineinstance", name));
    };
    if text(vmi, "/status/phase") != "Running" {
        return Err(vm_conflict(name, NOT_RUNNING));
    }
    let mut migration = json!({
        "apiVersion": MIGRATIONS.api_version(),
        "kind": MIGRATIONS.kind,
        "metadata": {"generateName": "kubevirt-migrate-vm-", "namespace": json::namespace(vmi)},
        "spec": {"vmiName": name},
        "status": {},
    });
    if let Some(selector) = options.get("addedNodeSelector").filter(|selector| selector.is_object()) {
        migration["spec"]["addedNodeSelector"] = selector.clone();
    }
    Ok(Write::create(&MIGRATIONS, migration).into())
}

fn stop_of(vmi: &Value) -> Value {
    json!({"action": "Stop", "uid": json::uid(vmi)})
}

/// Asks virt-controller for something through the VM's status (`getChangeRequestJson`).
fn change_request(vm: &Value, changes: &[Value]) -> Result<Write, Status> {
    let Some(status) =
        vm.get("status").filter(|status| status.as_object().is_some_and(|map| !map.is_empty()))
    else {
        let patch = json!([{"op": "add", "path": "/status", "value": {"stateChangeRequests": changes}}]);
        return Ok(Write::to(&VMS, vm, "status", Op::JsonPatch(patch)));
    };
    let path = "/status/stateChangeRequests";
    let old = list(status, "/stateChangeRequests");
    let tested = if old.is_empty() { Value::Null } else { old.into() };
    let only_stop = matches!(changes, [change] if change["action"] == "Stop");
    let op = match (old.is_empty(), only_stop) {
        (true, _) => "add",
        // A stop takes the place of whatever was asked for before.
        (false, true) => "replace",
        (false, false) => {
            return Err(Status::internal("unable to complete request: stop/start already underway"));
        }
    };
    let mut patch = vec![
        json!({"op": "test", "path": path, "value": tested}),
        json!({"op": op, "path": path, "value": changes}),
    ];
    if status.get("startFailure").is_some() {
        patch.push(json!({"op": "remove", "path": "/status/startFailure"}));
    }
    Ok(Write::to(&VMS, vm, "status", Op::JsonPatch(patch.into())))
}

/// Always or Halted, in the field that the VM uses (`getRunningPatch`).
fn running(vm: &Value, on: bool) -> Write {
    let patch = if let Some(old) = vm["spec"].get("runStrategy") {
        let new = if on { "Always" } else { "Halted" };
        Write::test_and_replace("/spec/runStrategy", old, &new.into())
    } else {
        let old = vm["spec"].get("running").unwrap_or(&Value::Null);
        Write::test_and_replace("/spec/running", old, &on.into())
    };
    Write::to(&VMS, vm, "", Op::JsonPatch(json!(patch)))
}

fn grace_period(vmi: &Value, seconds: i64) -> Write {
    let path = "/spec/terminationGracePeriodSeconds";
    let old = vmi.pointer(path).unwrap_or(&Value::Null);
    Write::to(&VMIS, vmi, "", Op::JsonPatch(json!(Write::test_and_replace(path, old, &seconds.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(strategy: &str) -> Value {
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"runStrategy": strategy},
            "status": {"printableStatus": "Stopped"}})
    }

    fn vmi(phase: &str) -> Value {
        json!({"metadata": {"name": "v", "namespace": "n", "uid": "u"},
            "spec": {"terminationGracePeriodSeconds": 30}, "status": {"phase": phase}})
    }

    /// What is written to which part, or the refusal.
    fn shown(plan: Result<Plan, Status>) -> String {
        let plan = match plan {
            Ok(plan) => plan,
            Err(status) => {
                let why = status.message.rsplit(": ").next().unwrap_or_default();
                return format!("{} {why}", status.code);
            }
        };
        let line = |write: &Write| {
            let Op::JsonPatch(patch) = &write.op else { return format!("create {}", write.resource.plural) };
            let last = patch.as_array().and_then(|patch| patch.last()).unwrap();
            format!("{} {}", text(last, "/path"), last["value"])
        };
        plan.writes.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_each_run_strategy_makes_of_start_stop_and_restart() {
        type Verb = fn(&Seen<'_>, &Value) -> Result<Plan, Status>;
        let (begin, end, again): (Verb, Verb, Verb) = (start, stop, restart);
        let requests = r#"/status/stateChangeRequests [{"action":"Start"}]"#;
        let stop_only = r#"/status/stateChangeRequests [{"action":"Stop","uid":"u"}]"#;
        let both = r#"/status/stateChangeRequests [{"action":"Stop","uid":"u"},{"action":"Start"}]"#;
        for (verb, strategy, phase, options, expected) in [
            (begin, "Halted", "", json!({}), r#"/spec/runStrategy "Always""#),
            (
                begin,
                "Halted",
                "",
                json!({"paused": true}),
                r#"/status/stateChangeRequests [{"action":"Start","data":{"paused":"true"}}]"#,
            ),
            (begin, "Halted", "Running", json!({}), "409 VM is already running"),
            (begin, "Always", "", json!({}), "409 Always does not support manual start requests"),
            (begin, "Once", "Succeeded", json!({}), "409 Once does not support manual start requests"),
            (begin, "Manual", "", json!({}), requests),
            (begin, "Manual", "Failed", json!({}), both),
            (begin, "RerunOnFailure", "Succeeded", json!({}), both),
            (
                begin,
                "RerunOnFailure",
                "Failed",
                json!({}),
                "409 RerunOnFailure does not support starting VM from failed state",
            ),
            (end, "Always", "Running", json!({}), r#"/spec/runStrategy "Halted""#),
            (end, "Once", "", json!({}), r#"/spec/runStrategy "Halted""#),
            (end, "Manual", "Running", json!({}), stop_only),
            (end, "Manual", "Succeeded", json!({}), "409 VM is not running"),
            (
                end,
                "Always",
                "Running",
                json!({"gracePeriod": 0}),
                r#"/spec/terminationGracePeriodSeconds 0; /spec/runStrategy "Halted""#,
            ),
            (
                end,
                "Halted",
                "Running",
                json!({}),
                "409 Halted only supports manual stop requests with a shorter graceperiod",
            ),
            (
                end,
                "Halted",
                "Running",
                json!({"gracePeriod": 1}),
                &format!("/spec/terminationGracePeriodSeconds 1; {stop_only}"),
            ),
            (again, "Always", "Running", json!({}), both),
            (
                again,
                "Manual",
                "Running",
                json!({"gracePeriodSeconds": 0}),
                &format!("/spec/terminationGracePeriodSeconds 1; {both}"),
            ),
            (
                again,
                "Halted",
                "",
                json!({}),
                "409 RunStategy Halted does not support manual restart requests",
            ),
            (again, "Always", "", json!({}), "409 Halted"),
            (
                again,
                "Always",
                "Running",
                json!({"gracePeriodSeconds": 5}),
                "400 For force restart, only gracePeriod=0 is supported for now",
            ),
        ] {
            let (vm, vmi) = (vm(strategy), vmi(phase));
            let seen = Seen { vm: &vm, vmi: (!phase.is_empty()).then_some(&vmi) };
            assert_eq!(shown(verb(&seen, &options)), expected, "{strategy} {phase} {options}");
        }
    }

    #[test]
    fn a_request_under_way_stands_but_for_a_stop() {
        let mut vm = vm("Manual");
        vm["status"]["stateChangeRequests"] = json!([{"action": "Start"}]);
        let running = vmi("Running");
        let refused = start(&Seen { vm: &vm, vmi: None }, &json!({})).unwrap_err();
        assert_eq!(
            refused.message,
            "Internal error occurred: unable to complete request: stop/start already underway"
        );
        let plan = stop(&Seen { vm: &vm, vmi: Some(&running) }, &json!({})).unwrap();
        let Op::JsonPatch(patch) = &plan.writes[0].op else { panic!() };
        assert_eq!((&patch[0]["value"], &patch[1]["op"]), (&json!([{"action": "Start"}]), &json!("replace")));
    }

    #[test]
    fn a_migration_carries_the_selector_and_wants_a_running_guest() {
        let (vm, running) = (vm("Always"), vmi("Running"));
        let seen = Seen { vm: &vm, vmi: Some(&running) };
        let plan = migrate(&seen, &json!({"addedNodeSelector": {"zone": "b"}})).unwrap();
        let Op::Create(object) = &plan.writes[0].op else { panic!() };
        assert_eq!(object["spec"], json!({"vmiName": "v", "addedNodeSelector": {"zone": "b"}}));
        let scheduled = vmi("Scheduled");
        assert_eq!(migrate(&Seen { vm: &vm, vmi: Some(&scheduled) }, &json!({})).unwrap_err().code, 409);
        assert_eq!(migrate(&Seen { vm: &vm, vmi: None }, &json!({})).unwrap_err().code, 404);
    }
}
