use crate::tree::json;

use super::*;
use crate::patch::tests::any_json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_223_751 + second).unwrap()
}

fn config_map() -> ObjectType {
    ObjectType::builtin("v1", "ConfigMap").unwrap()
}

fn writer(manager: &'static str) -> Writer<'static> {
    Writer { manager, api_version: "v1", subresource: "" }
}

fn map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ap", "namespace": "golden"}, "data": data})
}

fn apply_map(
    live: Option<&Value>,
    data: &Value,
    manager: &'static str,
    force: bool,
) -> Result<Applied, Status> {
    apply(live, &map(data), &config_map(), &writer(manager), force, Reset::Nothing, at(0))
}

/// As the real one, with what was sealed opened.
fn track_update(
    old: Option<&Value>,
    new: &mut Value,
    ty: &ObjectType,
    writer: &Writer<'_>,
    reset: Reset,
    now: Timestamp,
) {
    super::track_update(old, new, ty, writer, reset, now);
    sealed::open(new);
}

fn set_of(fields: &Value) -> Set {
    Set::from_text(&serde_json::value::to_raw_value(fields).unwrap())
}

fn managed(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

#[test]
fn applying_creates_conflicts_forces_and_drops_as_recorded() {
    let one = apply_map(None, &json!({"x": "1"}), "one", false).unwrap().object;
    assert_eq!(
        *managed(&one),
        json!([{"manager": "one", "operation": "Apply", "apiVersion": "v1", "time": "2026-11-21T01:15:51Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}}}}])
    );
    let refused = apply_map(Some(&one), &json!({"x": "2"}), "two", false).unwrap_err();
    assert_eq!(
        refused.to_json(),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Apply failed with 1 conflict: conflict with \"one\": .data.x", "reason": "Conflict",
            "details": {"causes": [{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.x"}]},
            "code": 409})
    );
    let two = apply_map(Some(&one), &json!({"x": "2"}), "two", true).unwrap().object;
    assert_eq!(managed(&two)[0]["manager"], "two");
    assert_eq!(managed(&two).as_array().unwrap().len(), 1);
    let dropped = apply_map(Some(&two), &json!({"w": "1"}), "two", false).unwrap().object;
    assert_eq!(dropped["data"], json!({"w": "1"}));
    assert_eq!(managed(&dropped)[0]["fieldsV1"], json!({"f:data": {"f:w": {}}}));
    let again = apply(
        Some(&dropped),
        &map(&json!({"w": "1"})),
        &config_map(),
        &writer("two"),
        false,
        Reset::Nothing,
        at(9),
    );
    assert_eq!(again.unwrap(), Applied { object: dropped, changed: false });
}

#[test]
fn fields_that_others_own_stay() {
    let one = apply_map(None, &json!({"x": "1", "y": "1"}), "one", false).unwrap().object;
    let shared = apply_map(Some(&one), &json!({"x": "1"}), "two", false).unwrap();
    assert!(shared.changed);
    assert_eq!(managed(&shared.object).as_array().unwrap().len(), 2);
    let dropped = apply_map(Some(&shared.object), &json!({}), "one", false).unwrap().object;
    assert_eq!(dropped["data"], json!({"x": "1"}));
    let mut by_update = one.clone();
    by_update["data"]["z"] = "9".into();
    track_update(Some(&one), &mut by_update, &config_map(), &writer("u"), Reset::Nothing, at(1));
    let dropped = apply_map(Some(&by_update), &json!({"y": "1"}), "one", false).unwrap().object;
    assert_eq!(dropped["data"], json!({"y": "1", "z": "9"}));
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let mut live = map(&json!({"x": "1", "y": "1"}));
    track_update(None, &mut live, &config_map(), &writer("kubectl-edit"), Reset::Nothing, at(0));
    let live = apply_map(Some(&live), &json!({"z": "1"}), "one", false).unwrap().object;
    let refused = apply_map(Some(&live), &json!({"x": "2", "y": "2", "z": "2"}), "two", false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 3 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .data.x\n- .data.y\nconflicts with \"one\":\n- .data.z"
    );
    assert_eq!(refused.causes.len(), 3);
    assert_eq!(refused.causes[0].message, "conflict with \"kubectl-edit\" using v1");
}

#[test]
fn creates_and_updates_are_tracked_as_recorded() {
    let mut created = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p", "labels": {"l": "1"}},
        "data": {"x": "1", "y": "2"}});
    track_update(None, &mut created, &config_map(), &writer("python-requests"), Reset::Nothing, at(0));
    assert_eq!(
        *managed(&created),
        json!([{"manager": "python-requests", "operation": "Update", "apiVersion": "v1", "time": "2026-11-21T01:15:51Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {".": {}, "f:x": {}, "f:y": {}},
                "f:metadata": {"f:labels": {".": {}, "f:l": {}}}}}])
    );
    let mut patched = created.clone();
    patched["data"] = json!({"y": "2", "z": "3"});
    patched["metadata"]["annotations"] = json!({"a.b/c": "1"});
    track_update(
        Some(&created),
        &mut patched,
        &config_map(),
        &writer("python-requests"),
        Reset::Nothing,
        at(0),
    );
    assert_eq!(
        managed(&patched)[0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:y": {}, "f:z": {}},
            "f:metadata": {"f:annotations": {".": {}, "f:a.b/c": {}}, "f:labels": {".": {}, "f:l": {}}}})
    );
    let mut by_other = patched.clone();
    by_other["data"]["y"] = "7".into();
    track_update(Some(&patched), &mut by_other, &config_map(), &writer("other"), Reset::Nothing, at(5));
    assert_eq!(managed(&by_other)[0]["fieldsV1"]["f:data"], json!({".": {}, "f:z": {}}));
    assert_eq!(managed(&by_other)[1]["fieldsV1"], json!({"f:data": {"f:y": {}}}));
    assert_eq!(managed(&by_other)[1]["time"], "2026-11-21T01:15:56Z");
}

#[test]
fn a_pod_is_tracked_as_recorded() {
    let ty = ObjectType::builtin("v1", "Pod").unwrap();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sp", "labels": {"app": "golden"}},
        "spec": {"containers": [{"name": "compute", "image": "x:1", "resources": {"limits": {"memory": "128Mi"}},
            "ports": [{"containerPort": 80}]}], "securityContext": {}}});
    ty.normalize(&mut pod).unwrap();
    track_update(None, &mut pod, &ty, &writer("m"), Reset::Status, at(0));
    assert_eq!(
        managed(&pod)[0]["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"compute\"}": {".": {}, "f:image": {}, "f:name": {},
                "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                "f:resources": {".": {}, "f:limits": {".": {}, "f:memory": {}}}}}, "f:securityContext": {}}})
    );
    let mut status = pod.clone();
    status["status"] = json!({"conditions": [{"type": "Golden", "status": "True"}]});
    ty.normalize(&mut status).unwrap();
    let through = Writer { subresource: "status", ..writer("m") };
    track_update(Some(&pod), &mut status, &ty, &through, Reset::Spec, at(0));
    assert_eq!(
        managed(&status)[1],
        json!({"manager": "m", "operation": "Update", "apiVersion": "v1", "time": "2026-11-21T01:15:51Z",
            "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {"f:status": {"f:conditions": {".": {},
                "k:{\"type\":\"Golden\"}": {".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {},
                    "f:status": {}, "f:type": {}}}}}})
    );
}

#[test]
fn custom_objects_are_tracked_by_their_schema_or_by_what_they_hold() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "running": {"type": "boolean"}, "template": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"conditions": {"type": "array", "items": {"type": "object"}}}}}});
    let vm = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "v",
        "finalizers": ["a/b"]}, "spec": {"running": true, "template": {"spec": {"devices": {}}}},
        "status": {"conditions": [{"type": "Ready"}]}});
    for ty in [ObjectType::from_crd_schema(&schema), ObjectType::schemaless()] {
        let mut vm = vm.clone();
        track_update(None, &mut vm, &ty, &writer("m"), Reset::Nothing, at(0));
        assert_eq!(
            managed(&vm)[0]["fieldsV1"],
            json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"a/b\"": {}}},
                "f:spec": {".": {}, "f:running": {}, "f:template": {".": {}, "f:spec": {".": {}, "f:devices": {}}}},
                "f:status": {".": {}, "f:conditions": {}}})
        );
    }
}

#[test]
fn clients_that_know_nothing_of_managers_lose_nothing() {
    let mut created = map(&json!({"x": "1"}));
    track_update(None, &mut created, &config_map(), &writer("a"), Reset::Nothing, at(0));
    let mut put = map(&json!({"x": "1", "y": "2"}));
    track_update(Some(&created), &mut put, &config_map(), &writer("b"), Reset::Nothing, at(1));
    assert_eq!(managed(&put).as_array().unwrap().len(), 2);
    for reset in [json!([]), json!([{}])] {
        let mut dropped = put.clone();
        dropped["metadata"]["managedFields"] = reset;
        track_update(Some(&put), &mut dropped, &config_map(), &writer("b"), Reset::Nothing, at(2));
        assert!(managed(&dropped).is_null());
        let mut later = dropped.clone();
        later["data"]["x"] = "5".into();
        track_update(Some(&dropped), &mut later, &config_map(), &writer("b"), Reset::Nothing, at(3));
        assert!(managed(&later).is_null());
        let applied = apply_map(Some(&later), &json!({"n": "1"}), "one", false).unwrap().object;
        assert_eq!(managed(&applied)[1]["manager"], "before-first-apply");
    }
}

#[test]
fn a_write_that_changes_nothing_can_be_seen() {
    let mut created = map(&json!({"x": "1"}));
    track_update(None, &mut created, &config_map(), &writer("a"), Reset::Nothing, at(0));
    let mut put = map(&json!({"x": "1"}));
    track_update(Some(&created), &mut put, &config_map(), &writer("a"), Reset::Nothing, at(8));
    assert!(restore_times(&created, &mut put));
    assert_eq!(created, put);
    put["metadata"]["managedFields"][0]["time"] = "2027-01-01T00:00:00Z".into();
    assert!(restore_times(&created, &mut put));
    assert_eq!(created, put);
    put["data"]["x"] = "2".into();
    assert!(!restore_times(&created, &mut put));
}

#[test]
fn old_updates_are_merged() {
    let mut live = map(&json!({}));
    let names: Vec<String> = (0..15).map(|n| format!("m{n:02}")).collect();
    for (n, name) in names.iter().enumerate() {
        let mut next = live.clone();
        next["data"][name] = "1".into();
        let old = (n > 0).then_some(&live);
        let by = Writer { manager: name, api_version: "v1", subresource: "" };
        track_update(old, &mut next, &config_map(), &by, Reset::Nothing, at(i64::try_from(n).unwrap()));
        live = next;
    }
    let entries = managed(&live).as_array().unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(entries[0]["manager"], "ancient-changes");
    assert_eq!(entries[0]["fieldsV1"]["f:data"].as_object().unwrap().len(), 7);
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let pod = ObjectType::builtin("v1", "Pod").unwrap();
    let error = |spec: Value| {
        let config = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        apply(None, &config, &pod, &writer("m"), false, Reset::Nothing, at(0)).unwrap_err()
    };
    let unknown = error(json!({"bogus": 1}));
    assert_eq!(unknown.code, 500);
    assert_eq!(
        unknown.message,
        "failed to create typed patch object (n/p; /v1, Kind=Pod): .spec.bogus: field not declared in schema"
    );
    assert!(
        error(json!({"containers": [{"name": "a"}, {"name": "a"}]}))
            .message
            .ends_with(".spec.containers: duplicate entries for key [name=\"a\"]")
    );
    assert!(error(json!({"containers": [{"image": "a"}]})).message.ends_with(
        ".spec.containers: element 0: associative list with keys has an element that omits key field \"name\""
    ));
    for (spec, why) in [
        (
            json!({"nodeName": true}),
            ".spec.nodeName: expected string, got &value.valueUnstructured{Value:true}",
        ),
        (json!({"hostNetwork": "x"}), ".spec.hostNetwork: expected boolean, got &{x}"),
        (json!({"priority": "x"}), ".spec.priority: expected numeric (int or float), got string"),
        (json!({"containers": {}}), ".spec.containers: expected list, got &{map[]}"),
        (json!({"securityContext": 5}), ".spec.securityContext: expected map, got &{5}"),
    ] {
        assert!(error(spec.clone()).message.ends_with(why), "{}", error(spec).message);
    }
    let mut config = map(&json!({}));
    config["metadata"]["managedFields"] = json!([{}]);
    let refused =
        apply(None, &config, &config_map(), &writer("m"), false, Reset::Nothing, at(0)).unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (400, "metadata.managedFields must be nil"));
}

#[test]
fn list_items_merge_by_key_and_keep_the_order_of_the_configuration() {
    let pod = ObjectType::builtin("v1", "Pod").unwrap();
    let config = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
    };
    let go = |live: Option<&Value>, names: &[&str], manager| {
        apply(live, &config(names), &pod, &writer(manager), false, Reset::Nothing, at(0)).unwrap().object
    };
    let order = |object: &Value| -> String {
        object["spec"]["containers"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect()
    };
    let one = go(None, &["a", "b"], "one");
    let both = go(Some(&one), &["c", "d"], "two");
    assert_eq!(order(&both), "abcd");
    assert_eq!(order(&go(Some(&both), &["d", "c"], "two")), "abdc");
    assert_eq!(order(&go(Some(&both), &["b"], "one")), "bcd");
}

#[test]
fn managers_come_from_user_agents() {
    assert_eq!(manager_from_user_agent("kubectl/v1.32.0 (linux/amd64)"), "kubectl");
    assert_eq!(manager_from_user_agent(""), "");
    assert_eq!(manager_from_user_agent(&"é".repeat(100)).len(), 128);
}

proptest::proptest! {
    #[test]
    fn applying_twice_changes_nothing_more(live in any_json(), spec in any_json()) {
        let live = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "a"}, "spec": live});
        let config = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "a"}, "spec": spec});
        let ty = ObjectType::schemaless();
        let once = apply(Some(&live), &config, &ty, &writer("one"), true, Reset::Nothing, at(0)).unwrap();
        let twice = apply(Some(&once.object), &config, &ty, &writer("one"), false, Reset::Nothing, at(1)).unwrap();
        proptest::prop_assert_eq!(&twice.object, &once.object);
        proptest::prop_assert!(!twice.changed);
    }

    #[test]
    fn applying_nothing_undoes_an_apply(spec in any_json()) {
        let live = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {"own": 1}});
        let config = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {"new": spec}});
        let bare = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "a"}});
        let ty = ObjectType::schemaless();
        let once = apply(Some(&live), &config, &ty, &writer("one"), true, Reset::Nothing, at(0)).unwrap().object;
        let gone = apply(Some(&once), &bare, &ty, &writer("one"), false, Reset::Nothing, at(1)).unwrap().object;
        proptest::prop_assert_eq!(&gone["spec"], &live["spec"]);
    }

    #[test]
    fn nothing_panics_and_sets_survive_json(old in any_json(), new in any_json(), entries in any_json()) {
        for ty in [ObjectType::builtin("v1", "Pod").unwrap(), ObjectType::schemaless()] {
            let mut object = json!({"metadata": {"name": "a", "managedFields": [{"operation": "Apply", "fieldsV1": entries.clone()}]},
                "spec": new.clone()});
            let live = json!({"metadata": old.clone(), "spec": old.clone()});
            track_update(Some(&live), &mut object, &ty, &writer("m"), Reset::Spec, at(0));
            let _ = apply(Some(&object), &new, &ty, &writer("m"), false, Reset::Status, at(0));
            let _ = apply(Some(&live), &object, &ty, &writer("m"), true, Reset::Nothing, at(0));
        }
        let set = set_of(&entries);
        let text = set.to_text();
        proptest::prop_assert_eq!(Set::from_text(&text), set.clone());
        proptest::prop_assert!(set.is_within(&text));
        proptest::prop_assert_eq!(set.touches(&text), !set.is_empty());
    }
}

/// What several managers do to one Pod: each applies or updates with some containers and labels.
fn any_config() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::collection::btree_map;
    use proptest::prelude::*;
    let containers = btree_map("[abc]", ("[12]", prop::option::of("[xy]")), 0..3);
    let labels = btree_map("[pq]", "[12]", 0..3);
    (containers, labels).prop_map(|(containers, labels)| {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, policy))| {
                let mut container = json!({"name": name, "image": image});
                if let Some(policy) = policy {
                    container["imagePullPolicy"] = policy.into();
                }
                container
            })
            .collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": labels},
            "spec": {"containers": containers}})
    })
}

fn owned_by(object: &Value, manager: &str) -> Vec<String> {
    let entries =
        managed(object).as_array().into_iter().flatten().filter(|entry| entry["manager"] == manager);
    entries.flat_map(|entry| set_of(&entry["fieldsV1"]).paths()).collect()
}

proptest::proptest! {
    #[test]
    fn several_managers_keep_their_promises(
        steps in proptest::collection::vec((0_usize..3, any_config(), proptest::bool::ANY), 1..7),
    ) {
        let ty = ObjectType::builtin("v1", "Pod").unwrap();
        let mut live: Option<Value> = None;
        for (n, config, force) in steps {
            let by = writer(["one", "two", "three"][n]);
            let before = live.clone();
            let go = |live: Option<&Value>, force| apply(live, &config, &ty, &by, force, Reset::Status, at(0));
            let applied = match go(before.as_ref(), force) {
                Ok(applied) => applied.object,
                // a conflict goes away with force, and names fields that others own
                Err(conflict) => {
                    proptest::prop_assert_eq!(conflict.code, 409);
                    let before = before.as_ref().unwrap();
                    let others: Vec<String> = ["one", "two", "three"].iter().filter(|name| **name != by.manager)
                        .flat_map(|name| owned_by(before, name)).collect();
                    for cause in &conflict.causes {
                        proptest::prop_assert!(others.contains(&cause.field), "{} of {:?}", cause.field, others);
                    }
                    go(Some(before), true).unwrap().object
                }
            };
            // what was applied is there
            proptest::prop_assert_eq!(&strip(ty.types.merge(ty.root, &applied, &config)), &strip(applied.clone()));
            // once more is nothing more
            let again = go(Some(&applied), false).unwrap();
            proptest::prop_assert_eq!(&again.object, &applied);
            // every owned path leads to something
            let present = ty.types.everything(ty.root, &applied).paths();
            for name in ["one", "two", "three"] {
                for path in owned_by(&applied, name) {
                    proptest::prop_assert!(present.contains(&path), "{name} owns {path} of {applied}");
                }
            }
            live = Some(applied);
        }
    }
}

/// The object without managers and without what is empty: an empty list is nobody's, and goes with its parents.
fn strip(mut object: Value) -> Value {
    fn without_bare(value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, without_bare(value)));
                let bare = [json!({}), json!([]), json!(null)];
                Value::Object(fields.filter(|(_, value)| !bare.contains(value)).collect())
            }
            other => other,
        }
    }
    take_managed_fields(&mut object);
    without_bare(object)
}
