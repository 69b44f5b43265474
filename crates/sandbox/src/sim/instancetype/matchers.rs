//! What virt-api refuses about the matchers of a VM (`instancetype/webhooks/vm/mutator.go`, v1.9).

use apimachinery::tree::Value;

use super::Matcher;
use crate::sim::json::text;
use crate::sim::virt_api::validate::{Cause, INVALID, NOT_FOUND, NOT_SUPPORTED};

/// The causes against a VM's matchers, those of the first matcher that has any. `old`: the VM before an update.
pub fn refused(vm: &Value, old: Option<&Value>) -> Vec<Cause> {
    let changed = Matcher::BOTH.into_iter().map(|matcher| renamed(matcher, vm, old?));
    let wrong = Matcher::BOTH.into_iter().map(|matcher| incomplete(matcher, vm));
    let mut all = changed.map(|cause| cause.into_iter().collect()).chain(wrong);
    all.find(|causes: &Vec<Cause>| !causes.is_empty()).unwrap_or_default()
}

/// A new name beside the old revision. As in v1.9, a VM that names no revision any more is let through, and so is one
/// that gets its first matcher.
fn renamed(matcher: Matcher, vm: &Value, old: &Value) -> Option<Cause> {
    let (new, old) = (vm["spec"].get(matcher.key())?, old["spec"].get(matcher.key())?);
    let revision = text(new, "/revisionName");
    let kept = !revision.is_empty() && revision == text(old, "/revisionName");
    (kept && text(new, "/name") != text(old, "/name")).then(|| Cause {
        kind: INVALID,
        message: "the Matcher Name has been updated without updating the RevisionName".into(),
        field: format!("spec.{}.revisionName", matcher.key()),
    })
}

fn incomplete(matcher: Matcher, vm: &Value) -> Vec<Cause> {
    if !matcher.is_in(vm) {
        return Vec::new();
    }
    let (given, key) = (&vm["spec"][matcher.key()], matcher.key());
    let mut causes = Vec::new();
    let mut blame = |kind, message: String, field: &str| {
        causes.push(Cause { kind, message, field: format!("spec.{key}{field}") });
    };
    let has = |field: &str| !text(given, field).is_empty();
    if !has("/name") && !has("/inferFromVolume") {
        let message =
            format!("Either Name or InferFromVolume should be provided within the {}", matcher.type_name());
        blame(NOT_FOUND, message, "");
    }
    if has("/inferFromVolume") {
        for (field, name) in [("/name", "Name"), ("/kind", "Kind")] {
            if has(field) {
                let message = format!("{name} already set, should be cleared before setting inferFromVolume");
                blame(NOT_SUPPORTED, message, &field.replace('/', "."));
            }
        }
    }
    if let Some(policy) = given.get("inferFromVolumeFailurePolicy").and_then(Value::as_str)
        && !matches!(policy, "Ignore" | "Reject")
    {
        let message = format!("Invalid value '{policy}' for InferFromVolumeFailurePolicy");
        blame(INVALID, message, ".inferFromVolumeFailurePolicy");
    }
    causes
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn a_matcher_names_an_object_or_a_volume_and_never_both() {
        let vm = |matcher: Value| json!({"spec": {"preference": matcher}});
        for (matcher, expected) in [
            (json!({"name": "a", "kind": "VirtualMachinePreference"}), &[][..]),
            (json!({"inferFromVolume": "root", "inferFromVolumeFailurePolicy": "Ignore"}), &[]),
            (
                json!({}),
                &[
                    "spec.preference Either Name or InferFromVolume should be provided within the PreferenceMatcher",
                ],
            ),
            (
                json!({"name": "a", "kind": "b", "inferFromVolume": "root"}),
                &[
                    "spec.preference.name Name already set, should be cleared before setting inferFromVolume",
                    "spec.preference.kind Kind already set, should be cleared before setting inferFromVolume",
                ],
            ),
            (
                json!({"inferFromVolume": "root", "inferFromVolumeFailurePolicy": "Maybe"}),
                &[
                    "spec.preference.inferFromVolumeFailurePolicy Invalid value 'Maybe' for InferFromVolumeFailurePolicy",
                ],
            ),
        ] {
            let causes: Vec<String> = refused(&vm(matcher.clone()), None)
                .iter()
                .map(|cause| format!("{} {}", cause.field, cause.message))
                .collect();
            assert_eq!(causes, expected, "{matcher}");
        }
    }

    #[test]
    fn a_new_name_needs_another_revision() {
        let vm = |name: &str, revision: &str| json!({"spec": {"instancetype": {"name": name, "revisionName": revision}}});
        for (old, new, refused_for) in [
            (vm("a", "r"), vm("b", "r"), true),
            (vm("a", "r"), vm("b", "s"), false),
            (vm("a", "r"), vm("b", ""), false),
            (vm("a", "r"), vm("a", "r"), false),
            (json!({"spec": {}}), vm("b", "r"), false),
        ] {
            assert_eq!(!refused(&new, Some(&old)).is_empty(), refused_for, "{old} {new}");
        }
    }
}
