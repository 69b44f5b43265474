//! Any object as a `VMExportJob`: it is invalid, or decisions about it come to rest and make one Job for each VM.
#![no_main]

use std::collections::BTreeSet;

use export::job::plan::{Seen, decide};
use export::job::pod::Image;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(given) = serde_json::from_slice::<Value>(data) else { return };
    let object = json!({"metadata": {"name": "nightly", "namespace": "shop", "uid": "u",
        "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": given["spec"], "status": given["status"]});
    let image = Image { name: "virt-steward".into(), pull_policy: "IfNotPresent".into() };
    let vms = Ok(vec!["a".to_owned(), "b".to_owned()]);
    let seen = Seen { object: &object, vms, jobs: &[], account: Ok(()), image: &image };
    let plan = decide(&seen, "2026-11-30T02:00:01Z".parse().unwrap());
    let names: BTreeSet<&str> =
        plan.create.iter().filter_map(|job| job["metadata"]["name"].as_str()).collect();
    assert_eq!(names.len(), plan.create.len(), "no Job twice");
    assert!(names.iter().all(|name| name.len() <= 63));
    if plan.status["phase"] == "Invalid" {
        assert!(plan.create.is_empty());
    }
});
