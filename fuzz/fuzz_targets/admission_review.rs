//! Any body posted to `/mutate` gets an answer: an AdmissionReview with `allowed`, or 400 with a
//! message; never a panic and never a failure of ours.
#![no_main]

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use features::ClusterFacts;
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use operator::config::Config;
use operator::facts::Reader;
use operator::readiness::Readiness;
use operator::telemetry::Metrics;
use operator::tls::Resolver;
use operator::webhook::{Handler, Parts};
use tokio::runtime::{Builder, Runtime};

static SERVER: LazyLock<(Runtime, Handler)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let parts = Parts {
        facts: Arc::new(ArcSwap::from_pointee(ClusterFacts::default())),
        policies: Arc::default(),
        reader: Reader::offline(),
        readiness: Arc::new(Readiness::new(Arc::new(Resolver::default()), operator::system_clock())),
        metrics: Arc::new(Metrics::new("fuzz")),
        steward: None,
        tracer: None,
    };
    (runtime, Handler::new(&Config::default(), parts))
});

fuzz_target!(|data: &[u8]| {
    let (runtime, handler) = &*SERVER;
    let request = http::Request::post("/mutate")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::copy_from_slice(data)))
        .expect("a request");
    let response = runtime.block_on(handler.handle(request));
    let status = response.status().as_u16();
    let body = runtime.block_on(response.into_body().collect()).expect("a body").to_bytes();
    match status {
        200 => {
            let review: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert!(review["response"]["allowed"].is_boolean());
        }
        400 => assert!(!body.is_empty()),
        other => panic!("HTTP {other}: {}", String::from_utf8_lossy(&body)),
    }
});
