//! Policies over the wire: what `/validate` answers, as an API server asks it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod common;

use std::sync::Arc;

use common::{Start, review_of, vm};
use operator::facts::Policies;
use serde_json::json;

#[tokio::test]
async fn validate_answers_with_the_reasons_of_policies() {
    let policies = Arc::new(Policies::default());
    let server = Start { policies: Arc::clone(&policies), ..Start::default() }.run().await;
    let mut object = vm(&json!({}));
    object["spec"]["template"]["spec"]["domain"]["devices"]["gpus"] =
        json!([{"name": "g", "deviceName": "nvidia.com/A10"}]);
    let mut review = review_of(&object);
    review["request"]["userInfo"] = json!({"username": "ann", "groups": ["dev"]});
    assert_eq!(
        server.review("/validate", &review).await["response"]["allowed"],
        true,
        "no policy, no question"
    );
    let policy = |mode: &str| {
        json!({"apiVersion": "vm-feature-manager.io/v1alpha1", "kind": "ClusterFeaturePolicy",
            "metadata": {"name": "gpus"}, "spec": {"mode": mode, "devices": {"allow": ["amd.com/*"]}}})
    };
    policies.add(&policy("Enforce"));
    let answer = server.review("/validate", &review).await;
    assert_eq!(
        (&answer["response"]["allowed"], &answer["response"]["status"]["code"]),
        (&json!(false), &json!(403))
    );
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("cluster policy `gpus`: device `nvidia.com/A10` is not allowed; allowed: amd.com/*")
    );
    policies.add(&policy("Audit"));
    let answer = server.review("/validate", &review).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("nvidia.com/A10"));
    // a policy that cannot be read is not in force, and the one before it is not forgotten half
    policies.add(&policy("Sometimes"));
    assert_eq!(server.review("/validate", &review).await["response"]["allowed"], true);
    // a VM that is going away is let go
    policies.add(&policy("Enforce"));
    review["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(server.review("/validate", &review).await["response"]["allowed"], true);
}
