use super::*;
use proptest::prelude::*;

/// Any document that JSON can say.
fn documents() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<i32>().prop_map(|n| (f64::from(n) / 4.0).into()),
        "\\PC{0,20}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            proptest::collection::btree_map("[a-d/~\"]{0,3}", inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Every pointer into a document.
fn pointers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, inner)| pointers(inner, &format!("{at}/{n}"), found));
        }
        serde_json::Value::Object(map) => map.iter().for_each(|(key, inner)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            pointers(inner, &format!("{at}/{key}"), found);
        }),
        _ => {}
    }
}

proptest! {
    /// It reads and writes what serde_json reads and writes, and finds what that finds.
    #[test]
    fn it_is_the_document_that_serde_json_knows(document in documents()) {
        let text = document.to_string();
        let tree: Value = text.parse().unwrap();
        prop_assert_eq!(tree.to_string(), text);
        prop_assert_eq!(format!("{tree:#}"), format!("{document:#}"));
        prop_assert_eq!(format!("{tree:?}"), format!("{document:?}"));
        prop_assert_eq!(&Value::from(document.clone()), &tree);
        prop_assert_eq!(&serde_json::Value::from(tree.clone()), &document);
        prop_assert_eq!(&from_value::<serde_json::Value>(&tree).unwrap(), &document);
        let mut found = Vec::new();
        pointers(&document, "", &mut found);
        for pointer in found {
            let there = document.pointer(&pointer).unwrap();
            prop_assert_eq!(tree.pointer(&pointer).unwrap().to_string(), there.to_string());
        }
    }

    /// A change in a copy is not seen in what it was copied from.
    #[test]
    fn a_copy_is_a_copy(document in documents(), pick in any::<prop::sample::Index>()) {
        let before = Value::from(document.clone());
        let mut after = before.clone();
        let mut found = Vec::new();
        pointers(&document, "", &mut found);
        let pointer = found[pick.index(found.len())].as_str();
        *after.pointer_mut(pointer).unwrap() = "changed".into();
        prop_assert_eq!(before.to_string(), document.to_string());
        prop_assert!(*after.pointer(pointer).unwrap() == "changed");
    }

    /// What is shared is what was there before, and equal is what is equal.
    #[test]
    fn sharing_changes_nothing((one, other) in (documents(), documents()), same in any::<bool>()) {
        let other = Value::from(if same { one.clone() } else { other });
        let mut tree = Value::from(one.clone());
        prop_assert_eq!(tree.share(&other), one == serde_json::Value::from(other.clone()));
        prop_assert_eq!(serde_json::Value::from(tree), one);
    }

    /// A map does what a map does, in whatever order.
    #[test]
    fn a_map_is_a_map(steps in proptest::collection::vec(("[a-e]{1,2}", any::<Option<u8>>()), 0..40)) {
        let (mut map, mut model) = (Map::new(), std::collections::BTreeMap::new());
        for (key, value) in steps {
            let same = match value {
                Some(value) => map.set(&key, value) == model.insert(key, value).map(Value::from),
                None => map.remove(&key) == model.remove(&key).map(Value::from),
            };
            prop_assert!(same);
            prop_assert!(map.keys().map(Text::as_str).eq(model.keys().map(String::as_str)));
        }
        for (key, value) in model {
            prop_assert!(*map.get(&key).unwrap() == value);
            prop_assert!(*map.entry(&key).or_insert(Value::Null) == value);
        }
    }
}

#[test]
fn what_is_not_there_is_null_and_can_be_put_there() {
    let mut object = json!({"list": [1]});
    assert_eq!(object["spec"]["paused"], Value::Null);
    object["spec"]["paused"] = true.into();
    object["list"][0] = 2.into();
    assert_eq!(object, json!({"list": [2], "spec": {"paused": true}}));
    assert_eq!(object.get("list").and_then(|list| list.get(1)), None);
    assert_eq!(object.pointer("/list/00"), None);
    assert_eq!(object["spec"].take(), json!({"paused": true}));
}

#[test]
fn structs_are_made_of_it_as_serde_json_makes_them() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    enum Mode {
        Off,
        Limit(u8),
        Range { from: u8, to: u8 },
    }
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Settings {
        modes: Vec<Mode>,
        name: Option<String>,
    }
    let tree = json!({"modes": ["Off", {"Limit": 3}, {"Range": {"from": 1, "to": 2}}], "name": null});
    let made: Settings = from_value(&tree).unwrap();
    assert_eq!(made.modes, [Mode::Off, Mode::Limit(3), Mode::Range { from: 1, to: 2 }]);
    for wrong in
        [json!({"modes": [{"Limit": 300}]}), json!({"modes": 1}), json!({"modes": ["On"]}), json!({})]
    {
        let other: serde_json::Value = wrong.clone().into();
        let said = serde_json::from_value::<Settings>(other).unwrap_err().to_string();
        assert_eq!(from_value::<Settings>(&wrong).unwrap_err().to_string(), said);
    }
}

#[test]
fn values_are_small() {
    assert_eq!(size_of::<Value>(), 24);
    assert_eq!(size_of::<(Text, Value)>(), 40);
}
