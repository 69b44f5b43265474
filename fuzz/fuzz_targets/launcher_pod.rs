//! Whatever somebody writes into the annotation of a launcher pod, the patch applies and only our hook is added.
#![no_main]

use features::{Config, launcher};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut config = Config::default();
    config.vbios_injection.hook_image = "registry.example/hook:1".to_owned();
    config.qemu_arguments.allowed = vec!["-no-hpet".to_owned()];
    let pod = json!({"metadata": {"annotations": {launcher::HOOKS: text}},
        "spec": {"volumes": [{"name": "kubevirt-plugin-sockets"}], "containers": [{"name": "compute"}]}});
    let verdict = launcher::admit(&pod, &config);
    let mut after = pod.clone();
    json_patch::patch(&mut after, &verdict.patch).expect("the patch applies");
    assert_eq!(after["spec"]["containers"], pod["spec"]["containers"]);
    for added in after["spec"]["initContainers"].as_array().map_or(&[][..], Vec::as_slice) {
        assert_eq!(added["image"], "registry.example/hook:1");
        assert_eq!(added["securityContext"]["runAsNonRoot"], Value::Bool(true));
        let mounts = added["volumeMounts"].as_array().expect("mounts");
        assert!(mounts.iter().all(|mount| {
            let path = mount["mountPath"].as_str().unwrap_or_default();
            path.starts_with("/rom/") || path == "/var/run/kubevirt-plugin/virt-steward"
        }));
        assert!(mounts.iter().all(|mount| mount["subPath"].as_str().is_some_and(|path| !path.is_empty())));
    }
});
