//! Exports beside each other in stores: what one may build on, and what retention removes.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use export::beside::{in_store, prune_store};
use export::store::Store;
use serde_json::json;

use super::{azure, gs, s3};

/// Five exports of which the fourth builds on the second, one that is not whole, and something else.
async fn fill(store: &Store, parent: &str) {
    for (id, base) in [("1", None), ("2", None), ("3", None), ("4", Some("2")), ("5", None)] {
        let report = json!({"base": base, "checkpoint": {"tracker": "t", "name": format!("c{id}")},
            "files": [{"name": "web-root.qcow2", "size": 5}],
            "disks": [{"name": "root", "file": "web-root.qcow2", "virtualSize": 100}]});
        let key = |name: &str| format!("{parent}{id}/{name}");
        store.put(&key("web-root.qcow2"), "image".into()).await.unwrap();
        store.put(&key("web.export.json"), report.to_string().into()).await.unwrap();
    }
    store.put(&format!("{parent}6/web-root.qcow2"), "half".into()).await.unwrap();
    store.put(&format!("{parent}notes.txt"), "by hand".into()).await.unwrap();
}

/// `store` is at `PARENT/5`.
async fn check(store: Store, parent: &str) {
    fill(&store, parent).await;
    // A file that is not as its report says is nothing to build on.
    store.put(&format!("{parent}1/web-root.qcow2"), "cut".into()).await.unwrap();
    let beside = in_store(&store, "web.export.json").await.unwrap();
    let ids: Vec<&str> = beside.iter().map(|base| base.id.as_str()).collect();
    assert_eq!(ids, ["2", "3", "4"]);
    assert_eq!(beside[2].lineage.base.as_deref(), Some("2"));
    let mut gone = prune_store(&store, "web.export.json", 2).await.unwrap();
    gone.sort();
    assert_eq!(gone, ["1", "3"]);
    let left = store.list(parent).await.unwrap();
    let expected = [
        "2/web-root.qcow2",
        "2/web.export.json",
        "4/web-root.qcow2",
        "4/web.export.json",
        "5/web-root.qcow2",
        "5/web.export.json",
        "6/web-root.qcow2",
        "notes.txt",
    ];
    let expected: Vec<String> = expected.iter().map(|name| format!("{parent}{name}")).collect();
    assert_eq!(left, expected, "what is not whole, and what others put there, is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_whole_exports_from_stores_and_keeps_what_others_build_on() {
    // A tenth of all requests fail, half of these after they were carried out.
    let (_backend, endpoint) = s3::Store::start(3, 10).await;
    let env = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some("test".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("secret".to_owned()),
        _ => None,
    };
    let store = Store::open(&format!("s3://bucket/nightly/web/5?endpoint={endpoint}"), &env).unwrap();
    check(store, "nightly/web/").await;
    // Google says 404 to who removes what is gone.
    let (_google, endpoint) = gs::start(3, 10).await;
    let store = Store::open(&format!("gs://bucket/nightly/web/5?endpoint={endpoint}"), &env).unwrap();
    check(store, "nightly/web/").await;
    let (_blobs, endpoint) = azure::start(3, 10).await;
    let env = |name: &str| match name {
        "AZURE_STORAGE_ACCOUNT" => Some("account".to_owned()),
        "AZURE_STORAGE_KEY" => Some(BASE64_STANDARD.encode(azure::KEY)),
        _ => None,
    };
    let store = Store::open(&format!("az://backups/nightly/web/5?endpoint={endpoint}"), &env).unwrap();
    check(store, "nightly/web/").await;
}
