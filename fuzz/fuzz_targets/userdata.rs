//! Any cloud-init user data is survived within its limits, and blocks nothing by itself.
#![no_main]

use features::{ClusterFacts, Config, ErrorMode, Lookups, Request};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|user_data: &str| {
    let with_map = format!("x_kubevirt_features:\n{user_data}");
    for text in [user_data, &with_map] {
        let object = json!({
            "metadata": {"name": "vm"},
            "spec": {"template": {"spec": {
                "domain": {"devices": {}},
                "volumes": [{"name": "init", "cloudInitNoCloud": {"userData": text}}],
            }}},
        });
        let config = Config { error_handling: ErrorMode::AllowAndLog, ..Config::default() };
        let request = Request { namespace: "default", object: &object, old_object: None };
        let verdict = features::admit(&request, &ClusterFacts::default(), &Lookups::new(), &config);
        assert_eq!(verdict.denial, None);
        assert!(verdict.warnings.iter().all(|warning| warning.len() < 256));
        let copied = |path: &str| features::FEATURES.iter().any(|name| path.ends_with(&format!("~1{name}")));
        assert!(!verdict.patch.0.iter().any(|operation| copied(operation.path().as_str())), "a wish was copied");
    }
});
