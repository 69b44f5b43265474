//! What one admission request over HTTPS costs the server: CPU time of the thread that serves, with
//! connections kept open. The log goes to standard error, and writing it is part of the work:
//!
//! ```text
//! cargo bench -p operator 2>/dev/null
//! cargo bench -p operator 2>/dev/null -- --beside 127.0.0.1:8443 --pid 4242 --ca ca.crt
//! ```
//!
//! The second form sends the same to another webhook as well, in turns, so that both meet the same
//! disturbances, and gives the ratio. Of the other process all threads count.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a bench fails as tests do

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Start, review_of};
use features::ClusterFacts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests of a round; the fastest of the rounds is the least disturbed one.
const REQUESTS: u32 = 5_000;
const ROUNDS: usize = 7;
/// Connections that are kept open, each with one request in flight.
const CONNECTIONS: usize = 2;

/// The older program knows no names with upper case letters.
const GPU: &str = "nvidia.com/gpu";

const VM: &str = include_str!("../../../examples/vms/gpu-cluster-node.yaml");
const KUBEVIRT: &str = include_str!("../../../examples/cluster/kubevirt.yaml");
const NODES: &str = include_str!("../../../examples/cluster/nodes.yaml");

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut start = Start { facts: facts(), ..Start::default() };
    start.config.features.pci_passthrough.address_map =
        [("0000:41:00.0".to_owned(), "intel.com/ETHERNET_CONTROLLER_X710".to_owned())].into();
    operator::telemetry::logs::start(&start.config.telemetry);
    let server = runtime.block_on(async { start.run().await });
    let ours = Subject::new(server.address, &server.root, own_thread());
    let beside = beside();
    for (name, body) in cases() {
        let subjects: Vec<&Subject> = std::iter::once(&ours).chain(&beside).collect();
        let mut connections: Vec<Vec<Connection>> =
            subjects.iter().map(|subject| subject.connect()).collect();
        let answer = connections.iter_mut().map(|own| exchange(own, &body)).min().unwrap();
        let mut least = vec![f64::MAX; subjects.len()];
        for _ in 0..ROUNDS {
            for (index, subject) in subjects.iter().enumerate() {
                let before = subject.cpu_nanos();
                for _ in 0..REQUESTS / u32::try_from(CONNECTIONS).unwrap() {
                    exchange(&mut connections[index], &body);
                }
                let micros = (subject.cpu_nanos() - before) / 1000.0 / f64::from(REQUESTS);
                least[index] = least[index].min(micros);
            }
        }
        print!("{name:<24} request {:>6} B, answer {answer:>5} B, {:>7.1} us of CPU", body.len(), least[0]);
        match least.get(1) {
            Some(other) => println!("; beside it {other:>7.1} us, {:.2} times", other / least[0]),
            None => println!(),
        }
    }
}

/// A server that is measured.
struct Subject {
    address: SocketAddr,
    root: CertificateDer<'static>,
    /// Its threads: one, or a folder with all of a process.
    threads: PathBuf,
}

/// What `--beside` names.
fn beside() -> Option<Subject> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let address = value("--beside")?.parse().unwrap();
    let root = CertificateDer::from_pem_file(value("--ca").expect("--ca FILE")).unwrap();
    let pid = value("--pid").expect("--pid PID");
    Some(Subject { address, root, threads: format!("/proc/{pid}/task").into() })
}

/// The thread that serves; it starts with the server.
fn own_thread() -> PathBuf {
    let named =
        |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "webhook");
    loop {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        if let Some(found) = tasks.find(|path| named(path)) {
            return found;
        }
        std::thread::yield_now();
    }
}

impl Subject {
    fn new(address: SocketAddr, root: &CertificateDer<'static>, threads: PathBuf) -> Self {
        Self { address, root: root.clone(), threads }
    }

    /// CPU time so far; Linux tells it to the nanosecond.
    fn cpu_nanos(&self) -> f64 {
        let of = |path: &Path| -> f64 {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default()
        };
        if self.threads.join("schedstat").exists() {
            return of(&self.threads);
        }
        std::fs::read_dir(&self.threads).unwrap().map(|task| of(&task.unwrap().path())).sum()
    }

    fn connect(&self) -> Vec<Connection> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(common::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        let open = |_| {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_nodelay(true).unwrap();
            let name = ServerName::try_from("127.0.0.1").unwrap();
            StreamOwned::new(ClientConnection::new(Arc::clone(&config), name).unwrap(), stream)
        };
        (0..CONNECTIONS).map(open).collect()
    }
}

fn facts() -> ClusterFacts {
    let mut kubevirt = documents(KUBEVIRT).remove(0);
    let permitted = &mut kubevirt["spec"]["configuration"]["permittedHostDevices"]["pciHostDevices"];
    permitted.as_array_mut().unwrap().push(json!({"pciVendorSelector": "10DE:1EB9", "resourceName": GPU}));
    ClusterFacts::from_objects(Some(&documents(NODES)), Some(kubevirt), None)
}

fn cases() -> Vec<(&'static str, String)> {
    let mut asking = documents(VM).remove(0);
    asking["metadata"]["annotations"]["vm-feature-manager.io/gpu-device-plugin"] = GPU.into();
    let mut quiet = asking.clone();
    quiet["metadata"]["annotations"] = json!({"example.com/owner": "team-a"});
    // an UPDATE as API servers send it: with the fields' managers and a status, twice
    let mut stored = asking.clone();
    stored["metadata"]["managedFields"] = managers(&asking);
    stored["status"] = json!({"created": true, "ready": true, "printableStatus": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-06-01T00:00:00Z", "lastProbeTime": null},
        {"type": "LiveMigratable", "status": "False", "reason": "HostDeviceNotLiveMigratable",
         "message": "VMI uses a host device", "lastTransitionTime": "2026-06-01T00:00:00Z", "lastProbeTime": null}]});
    let mut update = review_of(&stored);
    update["request"]["operation"] = "UPDATE".into();
    update["request"]["oldObject"] = stored;
    vec![
        ("three features, create", review_of(&asking).to_string()),
        ("three features, update", update.to_string()),
        ("nothing asked, create", review_of(&quiet).to_string()),
    ]
}

/// What server-side apply remembers about an object: every field again, as a key.
fn managers(object: &Value) -> Value {
    fn fields(value: &Value) -> Value {
        let members = value.as_object().into_iter().flatten();
        members
            .map(|(key, value)| (format!("f:{key}"), fields(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
    json!([{"manager": "kubectl", "operation": "Apply", "apiVersion": "kubevirt.io/v1", "fieldsType": "FieldsV1",
        "time": "2026-06-01T00:00:00Z", "fieldsV1": fields(object)}])
}

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// One request on each connection, then their answers; returns the length of the last body.
fn exchange(connections: &mut [Connection], body: &str) -> usize {
    let head = format!(
        "POST /mutate?timeout=10s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body.as_bytes()].concat();
    for connection in connections.iter_mut() {
        connection.write_all(&request).unwrap();
        connection.flush().unwrap();
    }
    connections.iter_mut().map(answer).last().unwrap_or_default()
}

fn answer(connection: &mut Connection) -> usize {
    let mut read = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = connection.read(&mut buffer).unwrap();
        assert!(count > 0, "the server hung up");
        read.extend_from_slice(&buffer[..count]);
        let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&read[..end]).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let arrived = read.len() - end - 4;
        // Go's servers send long answers in chunks
        let is_whole = match head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next())
        {
            Some(length) => arrived >= length.parse().unwrap(),
            None => read.ends_with(b"\r\n0\r\n\r\n"),
        };
        if is_whole {
            assert!(read[end..].windows(14).any(|bytes| bytes == b"\"allowed\":true"));
            return arrived;
        }
    }
}
