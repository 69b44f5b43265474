//! `gpu-device-plugin`: GPUs by resource name.

mod common;

use common::*;
use features::{GpuMode, OutcomeResult};
use serde_json::{Value, json};

fn gpu(value: &str) -> Value {
    asking("gpu-device-plugin", value)
}

#[test]
fn a_gpu_is_an_entry_of_its_own_that_undo_takes_away() {
    let world = World::default();
    let plain = gpu(A10);
    let vm = world.created(&plain);
    assert_eq!(devices(&vm)["gpus"], json!([{"name": "gpu-nvidia-com-ga102gl-a10", "deviceName": A10}]));
    assert_eq!(annotation(&vm, "gpu-device-plugin-applied"), Some(A10));
    assert_eq!(world.updated(&without(&vm, "gpu-device-plugin"), &vm), without(&plain, "gpu-device-plugin"));
}

#[test]
fn only_allowed_and_permitted_devices_are_given() {
    let mut world = World::default();
    for (allowed, value, expected) in [
        (vec![], A10, None),
        (vec!["nvidia.com/*"], A10, None),
        (vec![A10], A10, None),
        (
            vec!["amd.com/*"],
            A10,
            Some("not among the device plugins that the administrator allows: amd.com/*"),
        ),
        (vec!["nvidia.*"], A10, Some("not among the device plugins")),
        (vec![], "nvidia.com/gpu", Some("not a permitted device")),
        (vec![], "amd.com/gpu", Some(A10)),
        (vec![], "gpu", Some("is not a value of gpu-device-plugin")),
        (vec![], "[]", Some("is not a value of gpu-device-plugin")),
        (vec![], "true", Some("is not a value of gpu-device-plugin")),
    ] {
        world.config.gpu_device_plugin.allowed_plugins = allowed.into_iter().map(str::to_owned).collect();
        let denial = world.create(&gpu(value)).denial;
        match expected {
            None => assert_eq!(denial, None, "{value}"),
            Some(text) => {
                assert!(denial.as_ref().is_some_and(|denial| denial.contains(text)), "{value}: {denial:?}");
            }
        }
    }
}

#[test]
fn several_gpus_may_be_asked_for_once_each() {
    let world = World::default();
    let vm = world.created(&gpu(&json!([A10, NIC]).to_string()));
    assert_eq!(devices(&vm)["gpus"].as_array().unwrap().len(), 2);
    assert!(world.denial(&gpu(&json!([A10, A10]).to_string())).contains("asked for twice"));
}

#[test]
fn gpus_that_the_user_wrote_count() {
    let written = |entry: Value| {
        let mut vm = gpu(A10);
        vm["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] = json!([entry]);
        vm
    };
    let world = World::default();
    let mine = written(json!({"name": "mine", "deviceName": A10}));
    assert_eq!(results(&world.create(&mine)), [("gpu-device-plugin", OutcomeResult::Unchanged)]);
    let claim = written(json!({"name": "mine", "claimName": "c", "requestName": "r"}));
    assert!(world.denial(&claim).contains("by resource claim"));
    let taken = written(json!({"name": "gpu-nvidia-com-ga102gl-a10", "deviceName": NIC}));
    assert!(world.denial(&taken).contains("rename it"));
}

#[test]
fn the_limits_mode_writes_limits_and_says_what_that_means() {
    let mut world = World::default();
    world.config.gpu_device_plugin.mode = GpuMode::Limits;
    let plain = gpu("nvidia.com/gpu");
    let limits = |vm: &Value| vm["spec"]["template"]["spec"]["domain"]["resources"]["limits"].clone();
    let vm = world.created(&plain);
    assert_eq!(limits(&vm), json!({"nvidia.com/gpu": "1"}));
    assert!(world.create(&plain).warnings[0].contains("not to the guest"));
    assert_eq!(world.updated(&without(&vm, "gpu-device-plugin"), &vm), without(&plain, "gpu-device-plugin"));
    let mut shared = plain.clone();
    shared["spec"]["template"]["spec"]["domain"]["resources"] = json!({"limits": {"memory": "1Gi"}});
    let vm = world.created(&shared);
    assert_eq!(limits(&vm), json!({"memory": "1Gi", "nvidia.com/gpu": "1"}));
    assert_eq!(world.updated(&without(&vm, "gpu-device-plugin"), &vm), without(&shared, "gpu-device-plugin"));
}

#[test]
fn an_entry_that_harvester_moved_is_still_ours() {
    let world = World::default();
    let mut moved = world.created(&gpu(A10));
    let devices_of =
        |vm: &mut Value| vm["spec"]["template"]["spec"]["domain"]["devices"].as_object_mut().unwrap().clone();
    let mut inside = devices_of(&mut moved);
    let gpus = inside.remove("gpus").unwrap();
    inside.insert("hostDevices".into(), gpus);
    moved["spec"]["template"]["spec"]["domain"]["devices"] = Value::Object(inside);
    assert_eq!(world.create(&moved).patch.0, [], "it is not added again");
    let undone = world.updated(&without(&moved, "gpu-device-plugin"), &moved);
    assert_eq!(devices(&undone)["hostDevices"], json!([]));
}
