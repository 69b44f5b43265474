//! virt-api's admission of migrations and of evictions (`migration-create-admitter.go`,
//! `migration-update-admitter.go`, `pod-eviction-admitter.go`, v1.9).

use apimachinery::tree::{Value, json};

use super::KUBEVIRT_USERS;
use super::validate::{Cause, NOT_SUPPORTED, REQUIRED, refusal};
use crate::sim::cluster::ClusterConfig;
use crate::sim::json::{self, condition, has_condition, list, text};
use crate::sim::resource::VMIS;
use crate::sim::virt_controller::migration::decide::{FINALIZER, is_final};
use crate::sim::virt_controller::vm;
use crate::sim::write::{Op, Write};

const LABEL: &str = "kubevirt.io/vmi-name";

/// What a webhook looks up before it decides.
#[derive(Debug, Default)]
pub struct Lookups {
    /// The VMI that a migration or a pod belongs to.
    pub vmi: Option<Value>,
    /// The pod that is to be evicted.
    pub pod: Option<Value>,
    /// The migrations of the namespace.
    pub migrations: Vec<Value>,
}

/// The finalizer and the label of a new migration.
pub fn complete(request: &Value) -> Vec<Value> {
    let mut metadata = request["object"]["metadata"].clone();
    json::put(&mut metadata, &["labels", LABEL], text(&request["object"], "/spec/vmiName"));
    let mut finalizers = list(&metadata, "/finalizers").to_vec();
    finalizers.push(FINALIZER.into());
    metadata["finalizers"] = finalizers.into();
    vec![json!({"op": "replace", "path": "/metadata", "value": metadata})]
}

/// Go's `ToAdmissionResponseError`.
fn error(message: &str) -> Value {
    json!({"allowed": false, "status": {"message": message, "code": 400}})
}

fn causes(kind: &'static str, message: &str, field: &str) -> Value {
    let cause = Cause { kind, message: message.into(), field: field.into() };
    json!({"allowed": false, "status": refusal(&[cause])})
}

/// Whether a migration may be made.
pub fn create(request: &Value, lookups: &Lookups) -> Value {
    let migration = &request["object"];
    let name = text(migration, "/spec/vmiName");
    let namespace = text(request, "/namespace");
    if name.is_empty() {
        return causes(REQUIRED, "vmiName is missing", "spec.vmiName");
    }
    let user = text(request, "/userInfo/username");
    let controller = KUBEVIRT_USERS.contains(&user) && user.ends_with(":kubevirt-controller");
    if migration.pointer("/spec/priority").is_some() && !controller {
        let message = "Migration priority queue, only virt-controller is allowed to set priority field";
        return causes("FieldValueForbidden", message, "spec.migrationPriority");
    }
    let Some(vmi) = &lookups.vmi else {
        return error(&format!("the VMI \"{namespace}/{name}\" does not exist"));
    };
    if vm::is_final(vmi) {
        return error("Cannot migrate VMI in finalized state.");
    }
    if let Some(condition) = condition(vmi, "/status/conditions", "LiveMigratable")
        && condition["status"] == "False"
    {
        let (reason, message) = (text(condition, "/reason"), text(condition, "/message"));
        return error(&format!("Cannot migrate VMI, Reason: {reason}, Message: {message}"));
    }
    let in_flight = lookups.migrations.iter().find(|one| json::label(one, LABEL) == name && !is_final(one));
    if let Some(other) = in_flight {
        let uid = json::uid(other);
        return error(&format!(
            "in-flight migration detected. Active migration job ({uid}) is currently already in progress for VMI {name}."
        ));
    }
    json!({"allowed": true})
}

/// Whether a migration may be changed like this.
pub fn update(request: &Value) -> Value {
    let (new, old) = (&request["object"], &request["oldObject"]);
    if new.get("spec") != old.get("spec") {
        return causes(NOT_SUPPORTED, "update of Migration object's spec is restricted", "");
    }
    let (before, after) = (json::label(old, LABEL), json::label(new, LABEL));
    if !is_final(new) && !before.is_empty() && before != after {
        let how = if json::map(new, "/metadata/labels").is_none() { "removed from" } else { "modified on" };
        return causes(NOT_SUPPORTED, &format!("selector label can't be {how} an in-flight migration"), "");
    }
    json!({"allowed": true})
}

/// What becomes of an eviction.
#[derive(Debug, PartialEq)]
pub enum Eviction {
    Pass,
    /// 429 with this message.
    Deny(String),
    /// The VMI is marked first, then 429.
    Mark(Write, String),
}

impl Eviction {
    /// The response; the mark has been written by then.
    pub fn response(message: Option<&str>) -> Value {
        match message {
            None => json!({"allowed": true}),
            Some(message) => json!({"allowed": false, "status": {"message": message, "code": 429}}),
        }
    }
}

/// An eviction of a launcher pod or of an attachment pod.
pub fn evict(request: &Value, lookups: &Lookups, config: &ClusterConfig) -> Eviction {
    let Some(pod) = &lookups.pod else { return Eviction::Pass };
    let completed = |pod: &Value| matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
    let (kind, name) = (json::label(pod, "kubevirt.io"), json::name(pod));
    if kind == "hotplug-disk" {
        // What was looked up is the VMI of the launcher pod that owns it.
        let Some(vmi) = &lookups.vmi else { return Eviction::Pass };
        let (vmi, namespace) = (json::name(vmi), json::namespace(pod));
        return Eviction::Deny(format!(
            "cannot evict hotplug pod: {name} associated with running vmi: {vmi} in namespace {namespace}"
        ));
    }
    let Some(domain) = json::annotation(pod, "kubevirt.io/domain") else { return Eviction::Pass };
    if kind != "virt-launcher" || completed(pod) {
        return Eviction::Pass;
    }
    let Some(vmi) = &lookups.vmi else {
        return Eviction::Deny(format!(
            "kubevirt failed getting the vmi: virtualmachineinstances.kubevirt.io \"{domain}\" not found"
        ));
    };
    let migratable = has_condition(vmi, "LiveMigratable", "True");
    let own = text(vmi, "/spec/evictionStrategy");
    match if own.is_empty() { config.eviction_strategy.as_str() } else { own } {
        "LiveMigrate" if !migratable => {
            let name = json::name(vmi);
            return Eviction::Deny(format!(
                "VMI {name} is configured with an eviction strategy but is not live-migratable"
            ));
        }
        "LiveMigrate" | "External" => {}
        "LiveMigrateIfPossible" if migratable => {}
        _ => return Eviction::Pass,
    }
    let message = format!("Eviction triggered evacuation of VMI \"{}\"", json::key(vmi));
    if !text(vmi, "/status/evacuationNodeName").is_empty() {
        return Eviction::Deny(format!("Evacuation in progress: {message}"));
    }
    let node = text(pod, "/spec/nodeName");
    if text(vmi, "/status/nodeName") != node {
        return Eviction::Deny("Eviction request for target Pod".into());
    }
    let mut patch = vec![json!({"op": "add", "path": "/status/evacuationNodeName", "value": node})];
    if json::annotation(&request["object"], "requested-by") == Some("sigs.k8s.io/descheduler") {
        let key = "kubevirt.io/eviction-source";
        patch.push(if json::map(vmi, "/metadata/annotations").is_some_and(|all| !all.is_empty()) {
            let path = format!("/metadata/annotations/{}", key.replace('/', "~1"));
            json!({"op": "replace", "path": path, "value": "descheduler"})
        } else {
            json!({"op": "add", "path": "/metadata/annotations", "value": {key: "descheduler"}})
        });
    }
    Eviction::Mark(Write::to(&VMIS, vmi, "", Op::JsonPatch(patch.into())), message)
}

/// The eviction is only for show.
pub fn is_dry_run(request: &Value) -> bool {
    request["dryRun"] == true || request["object"]["deleteOptions"]["dryRun"][0] == "All"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmi(strategy: &str, migratable: &str) -> Value {
        json!({"metadata": {"name": "v", "namespace": "n"}, "spec": {"evictionStrategy": strategy},
            "status": {"phase": "Running", "nodeName": "n1", "conditions": [{"type": "LiveMigratable",
                "status": migratable, "reason": "R", "message": "M"}]}})
    }

    fn pod(phase: &str, node: &str) -> Value {
        json!({"metadata": {"name": "virt-launcher-v", "namespace": "n", "labels": {"kubevirt.io": "virt-launcher"},
            "annotations": {"kubevirt.io/domain": "v"}}, "spec": {"nodeName": node}, "status": {"phase": phase}})
    }

    #[test]
    fn what_becomes_of_an_eviction() {
        let triggered = "Eviction triggered evacuation of VMI \"n/v\"";
        for (strategy, migratable, phase, node, marked, expected) in [
            ("LiveMigrate", "True", "Running", "n1", "", format!("mark {triggered}")),
            ("LiveMigrate", "True", "Running", "n1", "n1", format!("Evacuation in progress: {triggered}")),
            ("LiveMigrate", "True", "Running", "n2", "", "Eviction request for target Pod".into()),
            ("LiveMigrate", "True", "Succeeded", "n1", "", "pass".into()),
            (
                "LiveMigrate",
                "False",
                "Running",
                "n1",
                "",
                "VMI v is configured with an eviction strategy but is not live-migratable".into(),
            ),
            ("LiveMigrateIfPossible", "False", "Running", "n1", "", "pass".into()),
            ("LiveMigrateIfPossible", "True", "Running", "n1", "", format!("mark {triggered}")),
            ("External", "False", "Running", "n1", "", format!("mark {triggered}")),
            ("None", "True", "Running", "n1", "", "pass".into()),
            ("", "True", "Running", "n1", "", "pass".into()),
        ] {
            let mut vmi = vmi(strategy, migratable);
            if !marked.is_empty() {
                vmi["status"]["evacuationNodeName"] = marked.into();
            }
            let lookups = Lookups { vmi: Some(vmi), pod: Some(pod(phase, node)), migrations: vec![] };
            let got = match evict(&json!({"object": {}}), &lookups, &ClusterConfig::of(&Value::Null)) {
                Eviction::Pass => "pass".into(),
                Eviction::Deny(message) => message,
                Eviction::Mark(_, message) => format!("mark {message}"),
            };
            assert_eq!(got, expected, "{strategy} {migratable} {phase} {node} {marked}");
        }
    }

    #[test]
    fn who_may_make_a_migration_of_what() {
        let request = |user: &str, spec: Value| {
            json!({"namespace": "n", "userInfo": {"username": user},
            "object": {"metadata": {"generateName": "m-"}, "spec": spec}})
        };
        let known = |vmi: Value| Lookups { vmi: Some(vmi), ..Lookups::default() };
        let wanted = || json!({"vmiName": "v"});
        let message = |response: Value| text(&response, "/status/message").to_owned();
        assert_eq!(
            create(&request("admin", wanted()), &known(vmi("None", "True"))),
            json!({"allowed": true})
        );
        assert_eq!(message(create(&request("admin", json!({})), &Lookups::default())), "vmiName is missing");
        assert_eq!(
            message(create(&request("admin", wanted()), &Lookups::default())),
            "the VMI \"n/v\" does not exist"
        );
        assert_eq!(
            message(create(&request("admin", wanted()), &known(vmi("None", "False")))),
            "Cannot migrate VMI, Reason: R, Message: M"
        );
        let urgent = json!({"vmiName": "v", "priority": "system-critical"});
        assert!(
            message(create(&request("admin", urgent.clone()), &Lookups::default()))
                .contains("only virt-controller")
        );
        let mut lookups = known(vmi("None", "True"));
        assert_eq!(create(&request(KUBEVIRT_USERS[0], urgent), &lookups)["allowed"], true);
        lookups.migrations = vec![
            json!({"metadata": {"uid": "other", "labels": {LABEL: "v"}}, "status": {"phase": "Running"}}),
        ];
        assert!(
            message(create(&request("admin", wanted()), &lookups)).contains("Active migration job (other)")
        );
        let patch = complete(&request("admin", wanted()));
        assert_eq!(patch[0]["value"]["finalizers"], json!([FINALIZER]));
        assert_eq!(patch[0]["value"]["labels"][LABEL], "v");
    }

    #[test]
    fn a_migration_stays_what_it_is() {
        let request = |spec: Value, label: &str| {
            json!({"object": {"metadata": {"labels": {LABEL: label}}, "spec": spec},
                "oldObject": {"metadata": {"labels": {LABEL: "v"}}, "spec": {"vmiName": "v"}}})
        };
        for (spec, label, allowed) in [
            (json!({"vmiName": "v"}), "v", true),
            (json!({"vmiName": "w"}), "v", false),
            (json!({"vmiName": "v"}), "w", false),
        ] {
            assert_eq!(update(&request(spec, label))["allowed"], allowed);
        }
    }
}
