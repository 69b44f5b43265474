//! `subresources.kubevirt.io` through the API server: what people do with `virtctl`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod sim;

use std::sync::Arc;

use futures::{SinkExt as _, StreamExt as _};
use http::Method;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use sandbox::sim::SimConfig;
use serde_json::{Value, json};
use sim::{BOUND, Cluster, VMIS, VMS, vm, vm_path, vmi_path};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const API: &str = "/apis/subresources.kubevirt.io/v1/namespaces/default";

fn of_vm(name: &str, verb: &str) -> String {
    format!("{API}/virtualmachines/{name}/{verb}")
}

fn of_vmi(name: &str, verb: &str) -> String {
    format!("{API}/virtualmachineinstances/{name}/{verb}")
}

/// What a `Status` says behind the object's name.
fn why(answer: &Value) -> &str {
    let message = answer["message"].as_str().unwrap_or_default();
    message.split_once("\": ").map_or(message, |(_, why)| why)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_started_restarted_and_stopped() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let put = async |verb: &str, body: Value| cluster.raw(Method::PUT, &of_vm("web", verb), body).await;
    let (code, answer) = put("start", json!({})).await;
    assert_eq!((code, &answer["reason"]), (404, &json!("NotFound")), "{answer}");
    assert_eq!(answer["message"], "virtualmachine.kubevirt.io \"web\" not found");

    cluster.call(Method::POST, VMS, vm("web", "Halted")).await.unwrap();
    cluster.printable("web", "Stopped").await;
    assert_eq!(put("start", json!({"dryRun": ["All"]})).await.0, 202);
    assert_eq!(cluster.get(&vm_path("web")).await.unwrap()["spec"]["runStrategy"], "Halted", "only for show");
    assert_eq!(put("start", json!({})).await.0, 202);
    let started = cluster.printable("web", "Running").await;
    assert_eq!(started["spec"]["runStrategy"], "Always");
    let (code, answer) = put("start", json!({})).await;
    assert_eq!((code, why(&answer)), (409, "VM is already running"));

    let first = cluster.get(&vmi_path("web")).await.unwrap()["metadata"]["uid"].clone();
    assert_eq!(put("restart", json!({"gracePeriodSeconds": 3})).await.0, 400);
    assert_eq!(put("restart", json!({"gracePeriodSeconds": 0})).await.0, 202);
    let again = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["metadata"]["uid"] != first && vmi["status"]["phase"] == "Running")
    };
    cluster.wait(&vmi_path("web"), "another one that runs", again).await;

    assert_eq!(put("stop", json!({"gracePeriod": 0})).await.0, 202);
    let stopped = cluster.printable("web", "Stopped").await;
    assert_eq!(stopped["spec"]["runStrategy"], "Halted");
    cluster.wait(&vmi_path("web"), "gone", |vmi| vmi.is_none()).await;
    let (code, answer) = put("stop", json!({})).await;
    assert_eq!((code, why(&answer)), (409, "VM is not running"));
    let (code, answer) = put("restart", json!({})).await;
    assert_eq!((code, why(&answer)), (409, "RunStategy Halted does not support manual restart requests"));

    // A VM with its own hand keeps its strategy.
    cluster.call(Method::POST, VMS, vm("manual", "Manual")).await.unwrap();
    cluster.printable("manual", "Stopped").await;
    assert_eq!(cluster.raw(Method::PUT, &of_vm("manual", "start"), json!({"paused": true})).await.0, 202);
    let vm = cluster.printable("manual", "Paused").await;
    assert_eq!(vm["spec"]["runStrategy"], "Manual");
    assert_eq!(cluster.raw(Method::PUT, &of_vm("manual", "stop"), json!({})).await.0, 202);
    cluster.printable("manual", "Stopped").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_guest_takes_orders_and_answers() {
    let cluster = Cluster::start(SimConfig::default()).await;
    cluster.call(Method::POST, VMS, vm("web", "Always")).await.unwrap();
    cluster.printable("web", "Running").await;
    let put = async |verb: &str, body: Value| cluster.raw(Method::PUT, &of_vmi("web", verb), body).await;
    let has = |kind: &'static str| {
        move |vmi: Option<&Value>| vmi.is_some_and(|vmi| sim::condition(vmi, kind).is_some())
    };

    let (code, answer) = put("unpause", json!({})).await;
    assert_eq!((code, why(&answer)), (409, "VMI is not paused"));
    assert_eq!(put("pause", json!({})).await.0, 200);
    let vmi = cluster.wait(&vmi_path("web"), "paused", has("Paused")).await.unwrap();
    assert_eq!(sim::condition(&vmi, "Paused").unwrap()["reason"], "PausedByUser");
    cluster.printable("web", "Paused").await;
    assert_eq!(why(&put("pause", json!({})).await.1), "VMI is already paused");
    assert_eq!(why(&put("softreboot", json!({})).await.1), "VMI is paused");
    assert_eq!(put("unpause", json!({})).await.0, 200);
    cluster.printable("web", "Running").await;
    assert_eq!(put("softreboot", json!({})).await.0, 200);
    assert_eq!(put("reset", json!({})).await.0, 200);

    let (code, answer) = put("freeze", json!({})).await;
    assert_eq!(code, 500);
    assert_eq!(
        answer["message"],
        "Internal error occurred: unexpected return code 400 (400 Bad Request), message: Unfreeze timeout in freeze \
         request is not set"
    );
    assert_eq!(put("freeze", json!({"unfreezeTimeout": "5m0s"})).await.0, 200);
    let frozen = |vmi: Option<&Value>| vmi.is_some_and(|vmi| vmi["status"]["fsFreezeStatus"] == "frozen");
    cluster.wait(&vmi_path("web"), "frozen", frozen).await;
    let (_, info) = cluster.raw(Method::GET, &of_vmi("web", "guestosinfo"), Value::Null).await;
    assert_eq!((&info["fsFreezeStatus"], &info["hostname"]), (&json!("frozen"), &json!("web")));
    assert_eq!(put("unfreeze", json!({})).await.0, 200);
    cluster.wait(&vmi_path("web"), "thawed", |vmi| !frozen(vmi)).await;
    assert_eq!(put("freeze", json!({"unfreezeTimeout": "50ms"})).await.0, 200);
    cluster.wait(&vmi_path("web"), "thawed by itself", |vmi| !frozen(vmi)).await;

    let (_, disks) = cluster.raw(Method::GET, &of_vmi("web", "filesystemlist"), Value::Null).await;
    assert_eq!(disks["items"][0]["mountPoint"], "/");
    let (_, users) = cluster.raw(Method::GET, &of_vmi("web", "userlist"), Value::Null).await;
    assert_eq!(users["items"], json!([]));
    let (code, text) = cluster.raw(Method::GET, &of_vmi("none", "guestosinfo"), Value::Null).await;
    assert_eq!((code, text), (500, json!("virtualmachineinstance.kubevirt.io \"none\" not found")));
    let (code, answer) = cluster.raw(Method::GET, &of_vmi("web", "sev/fetchcertchain"), Value::Null).await;
    assert_eq!((code, why(&answer)), (400, "'WorkloadEncryptionSEV' feature gate is not enabled"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_added_to_the_spec() {
    let cluster = Cluster::start(SimConfig::default()).await;
    cluster.call(Method::POST, VMS, vm("web", "Halted")).await.unwrap();
    let put = async |verb: &str, body: Value| cluster.raw(Method::PUT, &of_vm("web", verb), body).await;
    let data = json!({"name": "data", "disk": {"disk": {"bus": "scsi"}},
        "volumeSource": {"persistentVolumeClaim": {"claimName": "c"}}});
    assert_eq!(put("addvolume", data.clone()).await.0, 202);
    let vm = cluster.get(&vm_path("web")).await.unwrap();
    assert_eq!(
        vm["spec"]["template"]["spec"]["volumes"][1],
        json!({"name": "data", "persistentVolumeClaim": {"claimName": "c", "hotpluggable": true}})
    );
    let (code, answer) = put("addvolume", data).await;
    assert_eq!(
        (code, why(&answer)),
        (409, "Unable to add volume [data] because volume with that name already exists")
    );
    assert_eq!(put("removevolume", json!({"name": "data"})).await.0, 202);
    let (code, answer) = put("removevolume", json!({"name": "root"})).await;
    assert_eq!((code, why(&answer)), (409, "Unable to remove volume [root] because it is not hotpluggable"));
    // The words of admission come through.
    let (code, answer) = put(
        "addvolume",
        json!({"name": "two", "disk": {"disk": {}, "lun": {}}, "volumeSource": {"persistentVolumeClaim": {"claimName": "d"}}}),
    )
    .await;
    assert_eq!(code, 422, "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("can only have a single target type defined"),
        "{answer}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_discovered_and_only_the_proxy_is_served() {
    let cluster = Cluster::start(SimConfig { nodes: 1, ..SimConfig::default() }).await;
    for version in ["v1", "v1alpha3"] {
        let base = format!("/apis/subresources.kubevirt.io/{version}");
        let (code, list) = cluster.raw(Method::GET, &base, Value::Null).await;
        assert_eq!(code, 200);
        assert_eq!(list["groupVersion"], format!("subresources.kubevirt.io/{version}"));
        assert!(
            list["resources"].as_array().unwrap().iter().any(|one| one["name"] == "virtualmachines/start")
        );
        let (_, answer) = cluster.raw(Method::GET, &format!("{base}/version"), Value::Null).await;
        assert_eq!(answer["gitVersion"], "v1.9.0");
        let (_, answer) = cluster.raw(Method::GET, &format!("{base}/healthz"), Value::Null).await;
        assert_eq!(answer["apiserver"]["connectivity"], "ok");
        let (_, answer) = cluster.raw(Method::GET, &format!("{base}/guestfs"), Value::Null).await;
        assert_eq!(answer["tag"], "v1.9.0");
        let (code, _) = cluster.raw(Method::GET, &format!("{base}/nothing"), Value::Null).await;
        assert_eq!(code, 404);
    }
    // Past the API server, without its certificate.
    let slices = "/apis/discovery.k8s.io/v1/namespaces/kubevirt/endpointslices/virt-api";
    let port = cluster.get(slices).await.unwrap()["ports"][0]["port"].as_u64().unwrap();
    let (_, service) = cluster
        .raw(
            Method::GET,
            "/apis/apiregistration.k8s.io/v1/apiservices/v1.subresources.kubevirt.io",
            Value::Null,
        )
        .await;
    let bundle = base64_decode(service["spec"]["caBundle"].as_str().unwrap());
    let stream = tls(&bundle, "virt-api.kubevirt.svc", u16::try_from(port).unwrap()).await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::put(of_vm("web", "start")).header("host", "x").header("x-remote-user", "admin");
    let request = request.body(http_body_util::Full::new(bytes::Bytes::new())).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 401);
    cluster.stop().await;
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.decode(text).unwrap()
}

async fn tls(
    bundle: &[u8],
    host: &'static str,
    port: u16,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from(host).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;

/// A WebSocket through the API server, or the code and message of its refusal.
async fn socket(cluster: &Cluster, path: &str) -> Result<Socket, (u16, String)> {
    let kubeconfig: Value = serde_saphyr::from_str(&cluster.sandbox.kubeconfig()).unwrap();
    let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let bundle =
        base64_decode(kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap());
    let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
    let port = server.rsplit(':').next().unwrap().parse().unwrap();
    let mut request = format!("wss://localhost:{port}{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    headers.insert("sec-websocket-protocol", "plain.kubevirt.io".parse().unwrap());
    let stream = tls(&bundle, "localhost", port).await;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, answer)) => {
            assert_eq!(answer.headers()["sec-websocket-protocol"], "plain.kubevirt.io");
            Ok(socket)
        }
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            Err((answer.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
        }
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Reads until the text is there.
async fn expect(socket: &mut Socket, text: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        while let Some(message) = socket.next().await {
            if let Message::Binary(data) = message.unwrap() {
                seen.extend_from_slice(&data);
            }
            if String::from_utf8_lossy(&seen).contains(text) {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(BOUND, read).await.is_ok(), "never saw {text:?}");
    String::from_utf8_lossy(&seen).into_owned()
}

async fn send(socket: &mut Socket, data: &[u8]) {
    socket.send(Message::Binary(data.to_vec().into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_into_a_guest_go_through_the_api_server() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let mut object = vm("web", "Always");
    object["spec"]["template"]["spec"]["domain"]["devices"]["clientPassthrough"] = json!({});
    cluster.call(Method::POST, VMS, object).await.unwrap();
    cluster.printable("web", "Running").await;

    let mut console = socket(&cluster, &of_vmi("web", "console")).await.unwrap();
    expect(&mut console, "web login: ").await;
    send(&mut console, b"root\r").await;
    expect(&mut console, "[root@web ~]# ").await;
    send(&mut console, b"hostname\r").await;
    expect(&mut console, "\r\nweb\r\n").await;
    // Who comes later takes the line, and finds the guest as it was left.
    let mut second = socket(&cluster, &of_vmi("web", "console")).await.unwrap();
    expect(&mut second, "[root@web ~]# ").await;
    let ended = async { while let Some(Ok(_)) = console.next().await {} };
    assert!(tokio::time::timeout(BOUND, ended).await.is_ok(), "the first connection ends");

    let mut vnc = socket(&cluster, &of_vmi("web", "vnc")).await.unwrap();
    expect(&mut vnc, "RFB 003.008\n").await;
    send(&mut vnc, b"RFB 003.008\n").await;
    expect(&mut vnc, "\x01\x01").await;
    send(&mut vnc, &[1, 1]).await;
    expect(&mut vnc, "QEMU (default/web)").await;
    let (code, _) = cluster.raw(Method::GET, &of_vmi("web", "vnc/screenshot"), Value::Null).await;
    assert_eq!(code, 200);

    let mut echo = socket(&cluster, &of_vm("web", "portforward/7")).await.unwrap();
    send(&mut echo, b"there and back").await;
    expect(&mut echo, "there and back").await;
    let (code, message) = socket(&cluster, &of_vmi("web", "portforward/22/tcp")).await.unwrap_err();
    assert_eq!(code, 500);
    assert!(message.contains("connect: connection refused"), "{message}");
    let mut usb = socket(&cluster, &of_vmi("web", "usbredir")).await.unwrap();
    expect(&mut usb, "QEMU usb-redir").await;

    // A guest that is switched off from inside takes its VMI along.
    send(&mut second, b"poweroff\r").await;
    let first = cluster.get(&vmi_path("web")).await.unwrap()["metadata"]["uid"].clone();
    let again = |vmi: Option<&Value>| {
        vmi.is_some_and(|vmi| vmi["metadata"]["uid"] != first && vmi["status"]["phase"] == "Running")
    };
    cluster.wait(&format!("{VMIS}/web"), "started again", again).await;
    let (code, message) = socket(&cluster, &of_vmi("none", "console")).await.unwrap_err();
    assert_eq!(code, 404, "{message}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rarely_asked_answers_as_virt_api_does() {
    let cluster = Cluster::start(SimConfig::default()).await;
    let get = async |path: &str| cluster.raw(Method::GET, path, Value::Null).await;
    let put = async |path: &str, body: Value| cluster.raw(Method::PUT, path, body).await;
    cluster.call(Method::POST, VMS, vm("web", "Always")).await.unwrap();
    cluster.printable("web", "Running").await;
    let profile = "/apis/subresources.kubevirt.io/v1/start-cluster-profiler";
    for (path, code, message) in [
        (
            of_vm("web", "objectgraph"),
            400,
            "ObjectGraph feature gate not enabled: Unable to return object graph.",
        ),
        (of_vmi("web", "sev/fetchcertchain"), 400, "'WorkloadEncryptionSEV' feature gate is not enabled"),
        (of_vmi("web", "vsock?port=7"), 400, "VSOCK is not attached."),
    ] {
        let (got, answer) = get(&path).await;
        assert_eq!((got, why(&answer)), (code, message), "{path}");
    }
    let (code, answer) = get(profile).await;
    assert_eq!(code, 403, "{answer}");
    assert!(
        answer.as_str().unwrap().contains("\"ClusterProfiler\" feature gate must be enabled"),
        "{answer}"
    );
    let (code, answer) = put(&of_vmi("web", "redefine-checkpoint"), json!({})).await;
    assert_eq!((code, why(&answer)), (409, "ChangedBlockTracking is not enabled"));

    let gates = json!({"spec": {"configuration": {"developerConfiguration": {"featureGates":
        ["ObjectGraph", "WorkloadEncryptionSEV", "ClusterProfiler"]}}}});
    let kubevirt = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts/kubevirt";
    cluster.call(Method::PATCH, kubevirt, gates).await.unwrap();
    let path = of_vm("web", "objectgraph");
    let graph = cluster.wait_for(&path, |code, graph| code == 200 && graph["children"].is_array()).await;
    assert_eq!(graph["objectReference"]["name"], "web");
    let vmi = &graph["children"][0];
    assert_eq!(vmi["objectReference"]["kind"], "VirtualMachineInstance");
    let launcher = vmi["children"][0]["objectReference"]["name"].as_str().unwrap();
    assert!(launcher.starts_with("virt-launcher-web-"), "{graph}");
    let (code, graph) = get(&of_vmi("web", "objectgraph")).await;
    assert_eq!((code, &graph["children"][0]["objectReference"]["name"]), (200, &json!(launcher)));
    let (code, answer) = get(&of_vmi("web", "sev/fetchcertchain")).await;
    assert_eq!((code, why(&answer)), (409, "Attestation not requested for VMI"));
    let (code, answer) = put(&of_vmi("web", "sev/setupsession"), json!({"session": "s"})).await;
    assert_eq!((code, why(&answer)), (400, "DH cert is required"));
    assert_eq!(get(profile).await.0, 500, "simulated components have no profiles");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_taken_from_those_who_take_any_answer() {
    let cluster = Cluster::start(SimConfig::default()).await;
    cluster.call(Method::POST, VMS, vm("web", "Halted")).await.unwrap();
    let start = async |accept: &str| {
        cluster.raw_with(Method::PUT, &of_vm("web", "start"), &[("accept", accept)], json!({})).await
    };
    let (code, answer) = start("application/json").await;
    assert_eq!((code, answer), (406, json!("406: Not Acceptable\n\nAvailable representations: ")));
    assert_eq!(start("application/json, */*").await.0, 202);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn editors_give_orders_viewers_look_and_only_some_migrate() {
    let cluster = Cluster::start(SimConfig::default()).await;
    cluster.call(Method::POST, VMS, vm("web", "Halted")).await.unwrap();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    for (name, role) in [("eve", "edit"), ("vic", "view")] {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]});
        cluster.call(Method::POST, bindings, binding).await.unwrap();
    }
    let version = "/apis/subresources.kubevirt.io/v1/version".to_owned();
    let migrations = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations".to_owned();
    for (user, method, path, code) in [
        ("eve", Method::PUT, of_vm("web", "start"), 202),
        ("vic", Method::PUT, of_vm("web", "start"), 403),
        ("vic", Method::GET, of_vm("web", "expand-spec"), 200),
        ("eve", Method::PUT, of_vm("web", "migrate"), 403),
        ("vic", Method::GET, migrations.clone(), 200),
        ("eve", Method::POST, migrations, 403),
        ("nobody", Method::GET, version, 200),
        ("nobody", Method::GET, of_vm("web", "expand-spec"), 403),
    ] {
        let answer = cluster.raw_with(method, &path, &[("impersonate-user", user)], json!({})).await;
        assert_eq!(answer.0, code, "{user} {path}: {answer:?}");
    }
    cluster.stop().await;
}
