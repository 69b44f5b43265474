//! The same operations through the command line, REST and the library give the same results; and what
//! REST does beyond that: identities, limits, problems, streams.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod faces;
#[path = "../program/mod.rs"]
mod program;
mod service;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use program::SandboxProgram;
use provider::Provider;
use provider::select::Selection;
use serde_json::{Value, json};
use service::{Service, unchunk};

async fn library(kubeconfig: &Path) -> Provider {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let file = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .unwrap();
    provider::cluster::connect(config).unwrap()
}

fn vm(name: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name},
        "spec": {"runStrategy": "Halted", "template": {"spec": {
            "domain": {"memory": {"guest": "128Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]}},
            "volumes": [{"name": "root", "containerDisk": {"image": "quay.io/containerdisks/fedora:41"}}]}}}})
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_service_says_what_is_wrong_in_one_form() {
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let service = Service::start(&sandbox.kubeconfig, &[]);
    for (method, path, body, status, code) in [
        ("GET", "/kubevirt/vms/default/nobody", "", 404, "not-found"),
        ("POST", "/kubevirt/vms/default/nobody/start", "{}", 404, "not-found"),
        ("POST", "/kubevirt/vms/default/Not_A_Name/start", "{}", 400, "invalid-argument"),
        ("POST", "/kubevirt/vms/default/nobody/start", "{\"pause\": true}", 400, "invalid-argument"),
        ("POST", "/kubevirt/vms/default/nobody/start", "{", 400, "invalid-argument"),
        (
            "POST",
            "/kubevirt/vms/default/nobody/stop",
            "{\"wait\": true, \"timeoutSeconds\": 301}",
            400,
            "invalid-argument",
        ),
        ("POST", "/kubevirt/vms/default", "{\"kind\": \"Pod\"}", 400, "invalid-argument"),
        ("POST", "/kubevirt/vms/list", "{\"labelSelector\": \"a in (\"}", 400, "invalid-argument"),
        ("GET", "/nothing", "", 404, "not-found"),
        ("GET", "/kubevirt/vms/default/%FF", "", 400, "invalid-argument"),
        // what has no such method
        ("GET", "/kubevirt/vms/default/nobody/start", "", 405, "invalid-argument"),
        ("DELETE", "/kubevirt/vms/default/nobody", "", 405, "invalid-argument"),
        ("POST", "/health", "{}", 405, "invalid-argument"),
    ] {
        let answer = service.ask(method, path, &[], body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
        let problem = answer.json();
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{problem}");
        for part in ["title", "detail", "remedy", "type"] {
            assert!(!text(&problem[part]).is_empty(), "{part} of {problem}");
        }
        // what needs no identity is not written down
        assert!(path == "/health" || answer.head.contains("x-request-id: "), "{}", answer.head);
        assert!(status != 405 || answer.head.contains("allow: "), "{}", answer.head);
    }
    assert_eq!(service.get("/health").status, 200);
    assert_eq!(service.get("/status").json()["kubernetes"].as_str().unwrap().chars().next(), Some('v'));
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(committed).unwrap()).unwrap();
    assert_eq!(service.get("/openapi.json").json(), committed);
    let named = service.ask("GET", "/status", &["X-Request-Id: my-id.1"], "");
    assert!(named.head.contains("x-request-id: my-id.1"), "{}", named.head);
    let large = "x".repeat(3 << 20);
    // the service may answer and close before all of it is sent, which is no answer on some machines
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let head = format!(
        "POST /kubevirt/vms/list HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        service.address,
        large.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 400"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_have_their_own_rights_and_no_more() {
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let service = Service::start(&sandbox.kubeconfig, &["--require-token"]);
    let denied = service.post("/kubevirt/vms/list", &json!({}));
    assert_eq!((denied.status, &denied.json()["code"]), (401, &json!("unauthenticated")));
    let client =
        ::sandbox::sim::connect(&std::fs::read_to_string(&sandbox.kubeconfig).unwrap()).await.unwrap();
    let create = async |path: &str, object: Value| -> Value {
        let request = http::Request::post(path).header("content-type", "application/json");
        client.request(request.body(object.to_string().into_bytes()).unwrap()).await.unwrap()
    };
    create(
        "/api/v1/namespaces/default/serviceaccounts",
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}}),
    )
    .await;
    let token = create(
        "/api/v1/namespaces/default/serviceaccounts/reader/token",
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
    )
    .await;
    let bearer = format!("Authorization: Bearer {}", token["status"]["token"].as_str().unwrap());
    let list = || service.ask("POST", "/kubevirt/vms/list", &[&bearer], "{\"namespace\": \"default\"}");
    let denied = list();
    assert_eq!((denied.status, &denied.json()["code"]), (403, &json!("forbidden")), "{}", denied.body);
    assert!(
        text(&denied.json()["detail"]).contains("system:serviceaccount:default:reader"),
        "{}",
        denied.body
    );

    create("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", json!({"kind": "Role",
        "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader"}, "rules": [{"verbs": ["get", "list"],
            "apiGroups": ["kubevirt.io"], "resources": ["virtualmachines", "virtualmachineinstances"]}]})).await;
    create(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
        json!({"kind": "RoleBinding",
        "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}]}),
    )
    .await;
    create("/apis/kubevirt.io/v1/namespaces/default/virtualmachines", vm("web")).await;
    let seen = list();
    assert_eq!(seen.status, 200, "{}", seen.body);
    assert_eq!(seen.json()["items"][0]["name"], "web");
    let denied = service.ask("POST", "/kubevirt/vms/default/web/start", &[&bearer], "{}");
    assert_eq!((denied.status, &denied.json()["code"]), (403, &json!("forbidden")), "{}", denied.body);
    let found = service.ask("GET", "/capabilities?namespace=default", &[&bearer], "").json();
    let may = |operation: &str| {
        found["permissions"].as_array().unwrap().iter().find(|one| one["operation"] == operation).unwrap()["allowed"].clone()
    };
    assert_eq!((may("list"), may("start")), (json!(true), json!(false)));
    let wrong = service.ask("POST", "/kubevirt/vms/list", &["Authorization: Bearer no-such-token"], "{}");
    assert_eq!(wrong.status, 401, "{}", wrong.body);

    // without a token the service acts for its owner, but not for web pages
    let own = Service::start(&sandbox.kubeconfig, &[]);
    assert_eq!(own.ask("POST", "/kubevirt/vms/list", &["Origin: https://evil.example"], "{}").status, 403);
    assert_eq!(own.ask("POST", "/kubevirt/vms/list", &["Host: evil.example"], "{}").status, 403);
    // and not without end
    let statuses: Vec<u16> =
        (0..200).map(|_| own.ask("GET", "/kubevirt/vms/default/Not_A_Name", &[], "").status).collect();
    assert!(statuses.contains(&400) && statuses.contains(&429), "{statuses:?}");
}

#[test]
fn every_write_is_one_line_also_when_its_caller_has_gone() {
    let slow = "latency:ms=120000,verb=create,resource=virtualmachines.kubevirt.io,user=admin";
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator", "--fault", slow]);
    let mut service = Service::start(&sandbox.kubeconfig, &[]);
    let log = BufReader::new(service.child.stderr.take().unwrap());
    assert_eq!(service.post("/kubevirt/vms/list", &json!({})).status, 200);
    // a namespace may be called as questions are
    assert_eq!(service.post("/kubevirt/vms/query", &json!({"kind": "Pod"})).status, 400);
    let waiting =
        service.open("POST", "/kubevirt/vms/default", &["X-Request-Id: gone"], &vm("web").to_string());
    let hits = || {
        let kubeconfig = sandbox.kubeconfig.to_str().unwrap();
        program::virt_steward(&["sandbox", "fault", "log", "--kubeconfig", kubeconfig], "").stdout
    };
    while !hits().contains("latency") {}
    drop(waiting);
    let lines = log.lines().map_while(Result::ok).filter(|line| line.contains(" audit: "));
    let lines: Vec<String> = lines.take(2).collect();
    assert!(lines[0].contains("\"/kubevirt/vms/query\"") && lines[0].contains("status=400"), "{lines:?}");
    assert!(
        lines[1].contains("request=\"gone\"") && lines[1].contains("abandoned by its caller"),
        "{lines:?}"
    );
}

#[test]
fn changes_are_followed_as_events() {
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let service = Service::start(&sandbox.kubeconfig, &[]);
    service.post("/kubevirt/vms/default", &vm("web"));
    let stream =
        service.open("GET", "/kubevirt/vms/watch?namespace=default", &["Accept: text/event-stream"], "");
    stream.set_read_timeout(Some(std::time::Duration::from_mins(1))).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let mut until = |status: &str| {
        let found = lines
            .by_ref()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let mut found = found.filter(|change| change["vm"]["status"] == status || change["type"] == status);
        found.next().unwrap_or_else(|| panic!("the stream ended before {status}"))
    };
    until("Stopped");
    service.post("/kubevirt/vms/default/web/start", &json!({}));
    // VM and VMI are two watches: which of them is heard first is open.
    while !until("Running")["vm"]["node"].is_string() {}
    let plan = service.post("/kubevirt/vms/default/web/delete", &json!({}));
    assert_eq!((plan.status, &plan.json()["disks"][0]["fate"]), (202, &json!("no-data")), "{}", plan.body);
    until("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_is_passed_through_the_service() {
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    let sandbox = SandboxProgram::start(&["--nodes", "1", "--no-operator"]);
    let service = Service::start(&sandbox.kubeconfig, &[]);
    service.post("/kubevirt/vms/default", &vm("web"));
    let connect = async |origin: Option<&'static str>| {
        let mut request = format!("ws://{}/kubevirt/vms/default/web/console", service.address)
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", "plain.kubevirt.io".parse().unwrap());
        if let Some(origin) = origin {
            headers.insert("origin", origin.parse().unwrap());
        }
        let stream = tokio::net::TcpStream::connect(&service.address).await.unwrap();
        tokio_tungstenite::client_async(request, stream).await
    };
    let refused = |outcome: Result<_, tokio_tungstenite::tungstenite::Error>| match outcome {
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => answer.status().as_u16(),
        Err(error) => panic!("{error}"),
        Ok(()) => panic!("it was connected"),
    };
    assert_eq!(refused(connect(None).await.map(drop)), 409, "the VM is off");
    let started = service.post("/kubevirt/vms/default/web/start", &json!({"wait": true}));
    assert_eq!(started.status, 200, "{}", started.body);
    assert_eq!(refused(connect(Some("https://evil.example")).await.map(drop)), 403);
    assert_eq!(service.get("/kubevirt/vms/default/web/console").status, 400, "no handshake");
    let (mut socket, answer) = connect(None).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "plain.kubevirt.io");
    socket.send(Message::Binary("\nroot\necho through\n".into())).await.unwrap();
    let mut seen = String::new();
    let reading = async {
        while !seen.contains("\r\nthrough\r\n") {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(data) => seen.push_str(&String::from_utf8_lossy(&data)),
                Message::Close(_) => panic!("{seen}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(1), reading).await.unwrap();

    // and the page that shows all this is there, with nothing from elsewhere
    let page = service.get("/");
    assert!(
        page.head.contains("content-type: text/html") && page.head.contains("default-src 'none'"),
        "{}",
        page.head
    );
    assert!(page.body.contains("openapi.json") && !page.body.contains("https://"), "nothing is loaded");
}

/// A Prometheus with 10,000 VMs: answers a query with a value for each, and counts queries.
fn prometheus() -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let series: Vec<Value> = (0..10_000)
        .map(|number| {
            let namespace = ["a", "a-b", "b"][number % 3];
            let metric = json!({"namespace": namespace, "name": format!("vm-{number}")});
            json!({"metric": metric, "value": [1_700_000_000, format!("{number}.5")]})
        })
        .collect();
    let body = json!({"status": "success", "data": {"resultType": "vector", "result": series}}).to_string();
    let body = std::sync::Arc::new(body);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (body, asked) = (body.clone(), counter.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let mut stream = stream;
                while let Some(first) = lines.next() {
                    assert!(first.starts_with("GET /api/v1/query?query=sum"), "{first}");
                    lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
                    asked.fetch_add(1, Ordering::Relaxed);
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    );
                    if stream
                        .write_all(head.as_bytes())
                        .and_then(|()| stream.write_all(body.as_bytes()))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

/// The most memory that a process had, bytes.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_vms_are_listed_in_pages_without_a_request_per_vm() {
    use futures::TryStreamExt as _;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    let options = ::sandbox::Options { audit_log: Some(log.clone()), ..::sandbox::Options::default() };
    let sandbox = ::sandbox::Sandbox::start(options).await.unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, sandbox.kubeconfig()).unwrap();
    let store = sandbox.api().store.clone();
    let keep = |plural: &str, object: Value| {
        let kind = std::sync::Arc::from(format!("{plural}.kubevirt.io"));
        store.create(&kind, ::sandbox::store::Draft::new(object.into(), &[]).unwrap()).unwrap();
    };
    // namespaces whose order depends on whom one asks, and instances for two of three
    for number in 0..10_000 {
        let namespace = ["a", "a-b", "b"][number % 3];
        let metadata = json!({"namespace": namespace, "name": format!("vm-{number}"),
            "uid": number.to_string(), "creationTimestamp": "2026-11-01T00:00:00Z"});
        keep(
            "virtualmachines",
            json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": metadata, "status": {"printableStatus": "Running"}}),
        );
        if number % 3 < 2 {
            keep(
                "virtualmachineinstances",
                json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                "metadata": metadata, "status": {"nodeName": format!("node-{number}")}}),
            );
        }
    }
    let library = library(&kubeconfig).await;
    let start = std::time::Instant::now();
    let pages = library.list(Selection::default()).await.unwrap();
    let first = start.elapsed();
    let pages: Vec<_> = pages.try_collect().await.unwrap();
    eprintln!("first page after {first:?}, all after {:?}", start.elapsed());
    assert_eq!(pages.len(), 10_000 / provider::cluster::LIST_PAGE);
    let vms = pages.concat();
    assert_eq!(vms.len(), 10_000);
    for vm in &vms {
        let number: usize = vm.name.strip_prefix("vm-").unwrap().parse().unwrap();
        let node = (number % 3 < 2).then(|| format!("node-{number}"));
        assert_eq!(vm.node, node, "{vm:?}");
    }
    let lists_before = lists(&log);
    assert_eq!(lists_before, 20 + 14, "pages of VMs and of instances");

    // the same from the service, with what each VM uses
    let (address, asked) = prometheus();
    let service = Service::start(&kubeconfig, &["--prometheus", &address]);
    let answered = tokio::task::spawn_blocking(move || {
        let start = std::time::Instant::now();
        let body = json!({"allNamespaces": true, "usage": true}).to_string();
        let mut stream = service.open("POST", "/kubevirt/vms/list", &[], &body);
        let mut text = vec![0; 1];
        stream.read_exact(&mut text).unwrap();
        let first = start.elapsed();
        stream.read_to_end(&mut text).unwrap();
        let (total, memory) = (start.elapsed(), peak(service.child.id()));
        eprintln!("REST with usage: first byte after {first:?}, all after {total:?}, {} MiB", memory >> 20);
        let text = String::from_utf8(text).unwrap();
        let list: Value = serde_json::from_str(&unchunk(text.split_once("\r\n\r\n").unwrap().1)).unwrap();
        (list, memory)
    });
    let (list, memory) = answered.await.unwrap();
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 10_000);
    for vm in items {
        let number: u64 = vm["name"].as_str().unwrap().strip_prefix("vm-").unwrap().parse().unwrap();
        assert_eq!(vm["usage"]["cpuMilli"], number * 1000 + 500, "{vm}");
    }
    assert!(memory < 200 << 20, "{} MiB", memory >> 20);
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 6, "queries of Prometheus");
    sandbox.shutdown().await;
    assert_eq!(lists(&log) - lists_before, 20 + 14, "and no request per VM");
}

/// How many lists of VMs and instances an audit log has.
fn lists(log: &Path) -> usize {
    let written = std::fs::read_to_string(log).unwrap();
    let lists = written
        .lines()
        .filter(|line| line.contains("\"ResponseComplete\"") && line.contains("virtualmachine"));
    lists.count()
}
