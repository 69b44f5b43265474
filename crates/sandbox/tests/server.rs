//! The sandbox over real HTTPS, with the client that the operator uses.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use sandbox::{Options, Sandbox};
use serde_json::json;

async fn client(sandbox: &Sandbox) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {"made-by": "test"}}, "data": {"a": "1"}}),
    )
    .unwrap()
}

#[tokio::test]
async fn objects_live_and_die_over_https() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&sandbox).await);
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &config_map(name)).await.unwrap();
    }
    let page = maps.list(&ListParams::default().labels("made-by=test").limit(2)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let rest = maps
        .list(
            &ListParams::default()
                .labels("made-by=test")
                .limit(2)
                .continue_token(&page.metadata.continue_.unwrap()),
        )
        .await;
    assert_eq!(rest.unwrap().items[0].metadata.name.as_deref(), Some("c"));
    let error = maps.create(&PostParams::default(), &config_map("a")).await.unwrap_err();
    assert!(
        matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
    );
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
    sandbox.shutdown().await;
}

#[tokio::test]
async fn watchers_see_everything_with_and_without_streaming_lists() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&sandbox).await);
    maps.create(&PostParams::default(), &config_map("early")).await.unwrap();
    for config in [
        watcher::Config::default().labels("made-by=test"),
        watcher::Config::default().labels("made-by=test").streaming_lists(),
    ] {
        let mut events = watcher(maps.clone(), config).boxed();
        let mut seen = Vec::new();
        loop {
            match events.try_next().await.unwrap().unwrap() {
                watcher::Event::Init => {}
                watcher::Event::InitApply(map) => seen.push(map.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(seen, ["early"]);
        maps.create(&PostParams::default(), &config_map("late")).await.unwrap();
        let next = events.try_next().await.unwrap().unwrap();
        assert!(matches!(next, watcher::Event::Apply(map) if map.metadata.name.as_deref() == Some("late")));
        maps.delete("late", &DeleteParams::default()).await.unwrap();
        let next = events.try_next().await.unwrap().unwrap();
        assert!(matches!(next, watcher::Event::Delete(map) if map.metadata.name.as_deref() == Some("late")));
    }
    sandbox.shutdown().await;
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let mut kubeconfig = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
    let user = kubeconfig.auth_infos[0].auth_info.as_mut().unwrap();
    user.client_certificate_data = None;
    user.client_key_data = None;
    user.token = Some("wrong".to_owned().into());
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
    let error = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 401));
    sandbox.shutdown().await;
}

#[tokio::test]
async fn both_forms_of_the_older_document_have_one_tag() {
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let client = client(&sandbox).await;
    let ask = async |accept: &str, known: &str| {
        let request =
            http::Request::get("/openapi/v2").header("accept", accept).header("if-none-match", known);
        let (head, body) = client.send(request.body(Vec::new().into()).unwrap()).await.unwrap().into_parts();
        let header = |name| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let [media, tag] = [header("content-type"), header("etag")];
        (head.status.as_u16(), media, tag, body.collect().await.unwrap().to_bytes())
    };
    let (code, _, tag, json) = ask("application/json", "").await;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((code, &json["swagger"]), (200, &json!("2.0")));
    let current = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    for name in [current, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"] {
        let (code, media, same, protobuf) = ask(name, "").await;
        assert_eq!((code, media.as_str(), &same), (200, current, &tag), "{name}");
        // the first field, a text of three bytes
        assert!(protobuf.starts_with(b"\n\x032.0"), "{name}");
        let (code, _, _, body) = ask(name, &tag).await;
        assert_eq!((code, body.len()), (304, 0), "{name}");
    }
    assert_eq!(ask("text/html", "").await.0, 406);
    sandbox.shutdown().await;
}
