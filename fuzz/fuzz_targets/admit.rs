//! Any object gets an answer: the patch of an allowed request applies, and a second call changes
//! nothing. The input is `object` or `{"object", "old", "facts", "lookups"}`, as JSON.
#![no_main]

use features::{ClusterFacts, Config, ErrorMode, Lookup, Lookups, Request, Verdict};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(mut input) = serde_json::from_slice::<Value>(data) else { return };
    let (object, old, facts, answer) = if input.get("object").is_some() {
        let mut take = |name: &str| input.get_mut(name).map(Value::take).unwrap_or_default();
        (take("object"), take("old"), take("facts"), take("answer"))
    } else {
        (input, Value::Null, Value::Null, Value::Null)
    };
    let cluster: ClusterFacts = serde_json::from_value(facts).unwrap_or_default();
    let old = (!old.is_null()).then_some(old);
    for mode in [ErrorMode::Reject, ErrorMode::AllowAndLog, ErrorMode::StripLabel] {
        let mut config = Config { error_handling: mode, ..Config::default() };
        config.vbios_injection.hook_image = "hook".into();
        check(&object, old.as_ref(), &cluster, &answer, &config);
    }
});

fn check(object: &Value, old: Option<&Value>, cluster: &ClusterFacts, answer: &Value, config: &Config) {
    let verdict = admit(object, old, cluster, answer, config);
    assert!(verdict.warnings.iter().all(|warning| warning.len() < 256));
    if verdict.denial.is_some() {
        assert!(verdict.patch.0.is_empty());
        return;
    }
    let mut stored = object.clone();
    json_patch::patch(&mut stored, &verdict.patch).expect("the patch applies");
    let again = admit(&stored, old, cluster, answer, config);
    if again.denial.is_none() {
        assert_eq!(again.patch.0, [], "a second call changes nothing");
    }
}

/// Answers every need with the same object.
fn admit(object: &Value, old: Option<&Value>, cluster: &ClusterFacts, answer: &Value, config: &Config) -> Verdict {
    let request = Request { namespace: "default", object, old_object: old };
    let mut lookups = Lookups::new();
    for _ in 0..3 {
        for need in features::needs(&request, config, &lookups) {
            assert!(!lookups.contains_key(&need), "a need is asked for once");
            lookups.insert(need, Lookup::Found(answer.clone()));
        }
    }
    assert_eq!(features::needs(&request, config, &lookups), [], "needs come to an end");
    features::admit(&request, cluster, &lookups, config)
}
