use crate::tree::json;

use super::*;
use crate::patch::tests::any_json;

#[test]
fn the_table_reads_completely() {
    let (types, kinds) = &*BUILTIN;
    assert!(kinds.len() > 50);
    // a struct that is named but never described would stay `Any`
    for ((api_version, kind), root) in kinds {
        assert!(matches!(types.node(*root), Node::Map(_)), "{api_version} {kind}");
    }
    let pod = ObjectType::builtin("v1", "Pod").unwrap();
    assert_eq!(pod.empty(), json!({"metadata": {}, "spec": {"containers": null}, "status": {}}));
    let Node::Map(map) = types.node(pod.root) else { panic!() };
    let Node::Map(spec) = types.node(map.field("spec").unwrap()) else { panic!() };
    let Node::List(containers) = types.node(spec.field("containers").unwrap()) else { panic!() };
    let Node::Map(container) = types.node(containers.item) else { panic!() };
    let Node::List(ports) = types.node(container.field("ports").unwrap()) else { panic!() };
    let ListKind::Map(keys) = &ports.kind else { panic!() };
    assert_eq!(*keys, [("containerPort".into(), None), ("protocol".into(), Some("TCP".into()))]);
}

#[test]
fn objects_come_back_as_the_server_writes_them() {
    let normalize = |kind: &str, mut object: Value| {
        let unknown = ObjectType::builtin("v1", kind).unwrap().normalize(&mut object);
        unknown.map(|unknown| (object, unknown))
    };
    assert_eq!(
        normalize("ConfigMap", json!({"metadata": {"name": "a", "labels": {}}, "data": {}, "bogus": 1})),
        Ok((json!({"metadata": {"name": "a"}}), vec!["bogus".into()]))
    );
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "x": 1}], "hostNetwork": false,
        "automountServiceAccountToken": false, "securityContext": {}}});
    assert_eq!(
        normalize("Pod", pod),
        Ok((
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {}}],
                "automountServiceAccountToken": false, "securityContext": {}}, "status": {}}),
            vec!["spec.containers[0].x".into()]
        ))
    );
    assert_eq!(
        normalize("ConfigMap", json!({"data": {"a": 1}})),
        Err("json: cannot unmarshal number into Go struct field data.a of type string".into())
    );
}

#[test]
fn crd_schemas_say_how_lists_merge() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "disks": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "args": {"type": "array", "items": {"type": "string"}},
    }}}});
    let object = ObjectType::from_crd_schema(&schema);
    let Node::Map(map) = object.types.node(object.root) else { panic!() };
    let Node::Map(spec) = object.types.node(map.field("spec").unwrap()) else { panic!() };
    let kind = |name: &str| match object.types.node(spec.field(name).unwrap()) {
        Node::List(list) => list.kind.clone(),
        _ => panic!(),
    };
    assert!(matches!(kind("disks"), ListKind::Map(_)));
    assert!(matches!(kind("args"), ListKind::Atomic));
    let Node::Map(meta) = object.types.node(map.field("metadata").unwrap()) else { panic!() };
    assert!(meta.fields.contains_key("finalizers"));
    assert!(spec.field("unknown").is_none());
}

proptest::proptest! {
    #[test]
    fn normalizing_twice_changes_nothing_more(spec in any_json(), data in any_json()) {
        for (api_version, kind) in [("v1", "Pod"), ("v1", "ConfigMap"), ("apps/v1", "Deployment")] {
            let ty = ObjectType::builtin(api_version, kind).unwrap();
            let mut once = json!({"metadata": data.clone(), "spec": spec.clone(), "data": data.clone()});
            if ty.normalize(&mut once).is_ok() {
                let mut twice = once.clone();
                ty.normalize(&mut twice).unwrap();
                proptest::prop_assert_eq!(once, twice);
            }
        }
    }

    #[test]
    fn no_schema_panics(schema in any_json()) {
        let _ = ObjectType::from_crd_schema(&schema);
    }
}
