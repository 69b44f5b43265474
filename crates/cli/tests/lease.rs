//! Replicas and a Lease in a real API over HTTPS: never two at work, never none for long.
#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::kubernetes::Raw;
use operator::lease::{Lease, Terms};
use sandbox::{Options, Sandbox};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Short, so that the test need not wait; Lease durations are whole seconds.
const TERMS: Terms = Terms {
    duration: Duration::from_secs(1),
    deadline: Duration::from_millis(700),
    retry: Duration::from_millis(100),
};

/// No condition here takes longer, even on a busy machine.
const BOUND: Duration = Duration::from_mins(1);

struct Replicas {
    raw: Raw,
    working: Arc<AtomicUsize>,
    began: UnboundedSender<&'static str>,
}

impl Replicas {
    fn start(&self, name: &'static str, stop: &CancellationToken) -> JoinHandle<()> {
        let clock = operator::system_clock();
        let lease = Lease::new(self.raw.clone(), "default".into(), "work".into(), name.into(), TERMS, clock);
        let (working, began, stop) = (Arc::clone(&self.working), self.began.clone(), stop.clone());
        tokio::spawn(async move {
            let work = |leading: CancellationToken| {
                let (working, began) = (Arc::clone(&working), began.clone());
                async move {
                    let others = working.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(others, 0, "{name} works while another does");
                    began.send(name).unwrap();
                    leading.cancelled().await;
                    working.fetch_sub(1, Ordering::SeqCst);
                }
            };
            lease.lead(&stop, work).await;
        })
    }
}

async fn next(began: &mut UnboundedReceiver<&'static str>) -> &'static str {
    tokio::time::timeout(BOUND, began.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_leads_and_another_follows_it() {
    let sandbox = Sandbox::start(Options { nodes: 0, ..Options::default() }).await.unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let file = Kubeconfig::from_yaml(&sandbox.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let (began, mut begun) = unbounded_channel();
    let replicas = Replicas { raw: Raw::new(client), working: Arc::default(), began };

    // the first one there leads
    let (stop_a, stop_b, stop_c) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let a = replicas.start("a", &stop_a);
    assert_eq!(next(&mut begun).await, "a");
    let b = replicas.start("b", &stop_b);

    // one that is told to stop lets go
    stop_a.cancel();
    a.await.unwrap();
    assert_eq!(next(&mut begun).await, "b");

    // one that dies is followed when the Lease has run out
    let c = replicas.start("c", &stop_c);
    b.abort();
    assert!(b.await.unwrap_err().is_cancelled());
    replicas.working.store(0, Ordering::SeqCst); // it could not say so any more
    assert_eq!(next(&mut begun).await, "c");

    stop_c.cancel();
    c.await.unwrap();
    assert_eq!(replicas.working.load(Ordering::SeqCst), 0);
    sandbox.shutdown().await;
}
