//! How long a GET takes, and how long after a write its event reaches watchers, while many clients
//! write at a fixed pace (open loop: a late answer does not slow the next request down):
//! `cargo bench -p sandbox --bench api_load -- 2000 50 10` for 2,000 writes a second, 50 watchers, 10 s.
//!
//! The clients are a process of their own, as they are in life, on the machine of the server, and within it
//! watchers, writers and the reader have a thread each: what is measured is how long the server takes, not how
//! long one client waits for another. What both processes cost is said along with the times.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a bench prints, and ends when something fails

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apimachinery::tree::json;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::client::Body;
use sandbox::sim::connect;
use sandbox::{Options, Sandbox};
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Objects that are written, one after the other.
const OBJECTS: u64 = 500;
/// GETs a second.
const READS: u64 = 200;
/// From the first watch to the first write.
const SETTLE: Duration = Duration::from_secs(1);
/// From the last write until nobody watches any more.
const LINGER: Duration = Duration::from_millis(500);
const PATH: &str = "/api/v1/namespaces/default/configmaps";
/// The argument that makes the process the clients.
const CLIENTS: &str = "clients";

/// Microseconds.
type Times = Vec<u32>;

#[derive(Clone, Copy)]
struct Load {
    writes: u64,
    watchers: u64,
    seconds: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse::<u64>().ok());
    let mut next = |default| numbers.next().unwrap_or(default);
    let load = Load { writes: next(2000), watchers: next(50), seconds: next(10) };
    if arguments.iter().any(|argument| argument == CLIENTS) {
        return clients(load);
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let sandbox = runtime.block_on(Sandbox::start(Options::default())).unwrap();
    let mut clients = Command::new(std::env::current_exe().unwrap())
        .arg(CLIENTS)
        .args([load.writes, load.watchers, load.seconds].map(|number| number.to_string()))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    clients.stdin.take().unwrap().write_all(sandbox.kubeconfig().as_bytes()).unwrap();
    assert!(clients.wait().unwrap().success());
    runtime.block_on(sandbox.shutdown());
}

/// The other half: the kubeconfig comes over standard input.
fn clients(load: Load) {
    let mut kubeconfig = String::new();
    std::io::stdin().read_to_string(&mut kubeconfig).unwrap();
    let start = Instant::now();
    own_runtime().block_on(fill(&kubeconfig));
    let begin = Instant::now() + SETTLE;
    let until = begin + Duration::from_secs(load.seconds) + LINGER;
    let watchers = aside(&kubeconfig, move |kubeconfig| watch(kubeconfig, load, start, until));
    let writers = aside(&kubeconfig, move |kubeconfig| write(kubeconfig, load, start, begin));
    let reader = aside(&kubeconfig, move |kubeconfig| read(kubeconfig, load, begin));
    std::thread::sleep(begin.saturating_duration_since(Instant::now()));
    let processes = [("server", std::os::unix::process::parent_id()), ("clients", std::process::id())];
    let before = processes.map(|(_, process)| cpu_seconds(process));
    let (reads, writes) = (reader.join().unwrap(), writers.join().unwrap());
    let after = processes.map(|(_, process)| cpu_seconds(process));
    let took = begin.elapsed().as_secs_f64();
    let events = watchers.join().unwrap();

    let Load { writes: rate, watchers, seconds } = load;
    println!("{rate} writes/s, {watchers} watchers, {READS} GETs/s for {seconds} s:");
    for (what, times) in [("GET", reads), ("write", writes), ("write to event", events)] {
        report(what, times);
    }
    for (index, (name, _)) in processes.iter().enumerate() {
        println!("  {name:<15} {:.2} s of CPU a second", (after[index] - before[index]) / took);
    }
}

fn own_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs some of the clients on a thread of their own.
fn aside(kubeconfig: &str, work: impl FnOnce(&str) -> Times + Send + 'static) -> JoinHandle<Times> {
    let kubeconfig = kubeconfig.to_owned();
    std::thread::spawn(move || work(&kubeconfig))
}

async fn fill(kubeconfig: &str) {
    let client = connect(kubeconfig).await.unwrap();
    for index in 0..OBJECTS {
        let body =
            json!({"metadata": {"name": format!("c-{index}")}, "data": {"at": "0", "pad": "x".repeat(200)}});
        send(&client, Method::POST, PATH, body.to_string()).await;
    }
}

/// Starts a write each `1/rate` seconds, whatever became of the ones before; each holds the time that it was
/// made at.
fn write(kubeconfig: &str, load: Load, start: Instant, begin: Instant) -> Times {
    own_runtime().block_on(async {
        let client = connect(kubeconfig).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..load.writes * load.seconds {
            let due = begin + Duration::from_micros(number * 1_000_000 / load.writes);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            let client = client.clone();
            tasks.spawn(async move {
                let sent = Instant::now();
                let body = json!({"data": {"at": micros(sent - start).to_string()}}).to_string();
                send(&client, Method::PATCH, &format!("{PATH}/c-{}", number % OBJECTS), body).await;
                micros(sent.elapsed())
            });
        }
        tasks.join_all().await
    })
}

/// Reads at a fixed pace. Tokio's timers are good for milliseconds, this thread's sleep for microseconds; a read
/// that comes late because the one before took long counts from when it was due.
fn read(kubeconfig: &str, load: Load, begin: Instant) -> Times {
    let runtime = own_runtime();
    let client = runtime.block_on(connect(kubeconfig)).unwrap();
    let mut times = Times::new();
    for number in 0..READS * load.seconds {
        let due = begin + Duration::from_micros(number * 1_000_000 / READS);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let path = format!("{PATH}/c-{}", number % OBJECTS);
        runtime.block_on(send(&client, Method::GET, &path, String::new()));
        times.push(micros(due.elapsed()));
    }
    times
}

/// Follows the objects with many watches, each with a connection of its own.
fn watch(kubeconfig: &str, load: Load, start: Instant, until: Instant) -> Times {
    own_runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..load.watchers {
            let client = connect(kubeconfig).await.unwrap();
            tasks.spawn(follow(client, start, until));
        }
        tasks.join_all().await.concat()
    })
}

/// Reads events and notes how old what they say is.
async fn follow(client: kube::Client, start: Instant, until: Instant) -> Times {
    let mark = memchr::memmem::Finder::new(br#""data":{"at":""#);
    let request = Request::get(format!("{PATH}?watch=true")).body(Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let (mut times, mut buffer) = (Times::new(), Vec::new());
    while let Ok(Some(Ok(frame))) = tokio::time::timeout_at(until.into(), body.frame()).await {
        let now = micros(start.elapsed());
        buffer.extend_from_slice(frame.data_ref().unwrap());
        // What is behind the last line has not arrived as a whole.
        let end = memchr::memrchr(b'\n', &buffer).map_or(0, |end| end + 1);
        for at in mark.find_iter(&buffer[..end]) {
            let digits = buffer[at + mark.needle().len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let written = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
            if written > 0 {
                times.push(now.saturating_sub(written));
            }
        }
        buffer.drain(..end);
    }
    times
}

async fn send(client: &kube::Client, method: Method, path: &str, body: String) {
    let patch = method == Method::PATCH;
    let kind = if patch { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let answer = client.send(request.body(Body::from(body.into_bytes())).unwrap()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.into_body().collect().await.unwrap();
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap()
}

fn report(what: &str, mut times: Times) {
    times.sort_unstable();
    let at = |percent: usize| {
        let micros = times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        f64::from(micros) / 1000.0
    };
    println!("  {what:<15} p50 {:6.2} ms, p99 {:6.2} ms, {} of them", at(50), at(99), times.len());
}

/// User and system time of a process, in seconds of 100 ticks.
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    f64::from(ticks(11) + ticks(12)) / 100.0
}
