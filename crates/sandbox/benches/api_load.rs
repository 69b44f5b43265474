//! How long a GET takes, and how long after a write its event reaches watchers, while many clients
//! write at a fixed pace (open loop: a late answer does not slow the next request down):
//! `cargo bench -p sandbox --bench api_load -- 2000 50 10` for 2,000 writes a second, 50 watchers, 10 s.
//!
//! Server and clients share the machine, so the figures are those of both.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a bench prints, and ends when something fails

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::client::Body;
use sandbox::sim::connect;
use sandbox::{Options, Sandbox};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Objects that are written, one after the other.
const OBJECTS: u64 = 500;
/// GETs a second.
const READS: u64 = 200;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

type Times = Arc<Mutex<Vec<u64>>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u64>().ok());
    let mut next = |default| numbers.next().unwrap_or(default);
    let (writes, watchers, seconds) = (next(2000), next(50), next(10));
    let sandbox = Sandbox::start(Options::default()).await.unwrap();
    let kubeconfig = sandbox.kubeconfig();
    let client = connect(&kubeconfig).await.unwrap();
    for index in 0..OBJECTS {
        let body =
            json!({"metadata": {"name": format!("c-{index}")}, "data": {"at": "0", "pad": "x".repeat(200)}});
        send(&client, Method::POST, PATH, body.to_string()).await;
    }
    let start = Instant::now();
    let (fan_out, events): (Times, Arc<AtomicU64>) = (Times::default(), Arc::default());
    for _ in 0..watchers {
        // A client, and so a connection, of its own.
        let own = connect(&kubeconfig).await.unwrap();
        let (fan_out, events) = (fan_out.clone(), events.clone());
        tokio::spawn(async move { follow(own, start, &fan_out, &events).await });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (write_times, read_times) = (Times::default(), Times::default());
    let begin = Instant::now();
    let load = paced(writes, seconds, begin, {
        let (client, times) = (client.clone(), write_times.clone());
        move |number, due| {
            let (client, times) = (client.clone(), times.clone());
            async move {
                let at = start.elapsed().as_micros();
                let path = format!("{PATH}/c-{}", number % OBJECTS);
                send(&client, Method::PATCH, &path, json!({"data": {"at": at.to_string()}}).to_string())
                    .await;
                note(&times, due.elapsed());
            }
        }
    });
    let reader = connect(&kubeconfig).await.unwrap();
    let reads = paced(READS, seconds, begin, {
        let times = read_times.clone();
        move |number, due| {
            let (client, times) = (reader.clone(), times.clone());
            async move {
                send(&client, Method::GET, &format!("{PATH}/c-{}", number % OBJECTS), String::new()).await;
                note(&times, due.elapsed());
            }
        }
    });
    tokio::join!(load, reads);
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!("{writes} writes/s, {watchers} watchers, {READS} GETs/s for {seconds} s:");
    report("GET", &read_times);
    report("write", &write_times);
    report("write to event", &fan_out);
    println!("{} events delivered", events.load(Ordering::Relaxed));
    sandbox.shutdown().await;
}

/// Starts one request each `1/rate` seconds, whatever became of the ones before.
async fn paced<F, W>(rate: u64, seconds: u64, begin: Instant, work: W)
where
    W: Fn(u64, Instant) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..rate * seconds {
        let due = begin + Duration::from_micros(number * 1_000_000 / rate);
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        tasks.spawn(work(number, due));
    }
    tasks.join_all().await;
}

async fn send(client: &kube::Client, method: Method, path: &str, body: String) {
    let patch = method == Method::PATCH;
    let kind = if patch { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let answer = client.send(request.body(Body::from(body.into_bytes())).unwrap()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    answer.into_body().collect().await.unwrap();
}

/// Reads events and notes how old what they say is.
async fn follow(client: kube::Client, start: Instant, times: &Times, events: &AtomicU64) {
    let request = Request::get(format!("{PATH}?watch=true")).body(Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let mut buffer = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let now = u64::try_from(start.elapsed().as_micros()).unwrap();
        buffer.extend_from_slice(&data);
        while let Some(end) = memchr::memchr(b'\n', &buffer) {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let mark = br#""data":{"at":""#;
            let Some(at) = memchr::memmem::find(&line, mark) else { continue };
            let digits = line[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let written = digits.fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            if written > 0 {
                events.fetch_add(1, Ordering::Relaxed);
                times.lock().unwrap().push(now.saturating_sub(written));
            }
        }
    }
}

fn note(times: &Times, took: Duration) {
    times.lock().unwrap().push(u64::try_from(took.as_micros()).unwrap());
}

fn report(what: &str, times: &Times) {
    let mut times = times.lock().unwrap();
    times.sort_unstable();
    let at = |percent: usize| {
        let micros = times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        Duration::from_micros(micros).as_secs_f64() * 1000.0
    };
    println!("  {what:<15} p50 {:6.2} ms, p99 {:6.2} ms, {} of them", at(50), at(99), times.len());
}
