//! Sockets: accept, TLS, HTTP/1.1 or h2 by ALPN, and an orderly end.
//!
//! All of it on one thread of its own: a decision takes microseconds, so waking another core for it
//! costs more than the decision, and no reconciler can stand before a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::handler::Handler;
use crate::config::Config;

/// Streams that one h2 connection may have open; API servers share one connection for all.
const MAX_STREAMS: u32 = 250;
/// A request and its TLS records come in one read; rustls by itself reads 4 KiB at a time.
const READ_BUFFER: usize = 16 * 1024;
/// A silent h2 peer is asked for a sign of life this often, and given so long to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Why the webhook server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}: {source}; choose another --port or --bind-address")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A listening webhook server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    handler: Arc<Handler>,
    connections: Arc<Semaphore>,
    handshake_timeout: Duration,
    idle_timeout: Duration,
    grace: Duration,
}

impl Server {
    /// Starts to listen on the address of `config`; nothing is accepted before [`Server::serve`].
    pub async fn bind(
        config: &Config,
        tls: Arc<ServerConfig>,
        handler: Arc<Handler>,
    ) -> Result<Self, ServerError> {
        let wanted = config.listen_address();
        let bind = |source| ServerError::Bind { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self {
            listener,
            address,
            tls: TlsAcceptor::from(tls),
            handler,
            connections: Arc::new(Semaphore::new(config.server.max_connections)),
            handshake_timeout: config.server.read_timeout(),
            idle_timeout: config.server.idle_timeout(),
            grace: Duration::from_secs(config.server.shutdown_grace_seconds),
        })
    }

    /// Where it listens; with port 0 this is where the port is learnt.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on a thread of its own until `stop`; returns when the last request was finished.
    ///
    /// # Errors
    ///
    /// When the thread or its runtime cannot be started.
    pub async fn serve(self, stop: CancellationToken) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("webhook".into()).spawn(move || {
            // nobody waits any more: the process is ending
            let _ = ended.send(runtime.block_on(self.accept_until(stop)));
        })?;
        end.await.map_err(std::io::Error::other)?
    }

    async fn accept_until(mut self, stop: CancellationToken) -> std::io::Result<()> {
        // registers the socket with this thread's runtime
        self.listener = TcpListener::from_std(self.listener.into_std()?)?;
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let serving = self.connection(stream, permit, graceful.watcher());
                    tokio::spawn(serving);
                }
                // Out of file descriptors, or a connection gone before it was taken: wait a
                // moment instead of turning in circles.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        let open = graceful.count();
        drop(self.listener);
        tokio::select! {
            () = graceful.shutdown() => tracing::info!(open, "every request in flight was finished"),
            () = tokio::time::sleep(self.grace) => {
                tracing::warn!(open, seconds = self.grace.as_secs(), "requests in flight did not finish in time");
            }
        }
        Ok(())
    }

    async fn accept(&self) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.connections).acquire_owned().await.map_err(std::io::Error::other)?;
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, permit))
    }

    fn connection(
        &self,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
        watcher: Watcher,
    ) -> impl Future<Output = ()> + use<> {
        let (tls, handler) = (self.tls.clone(), Arc::clone(&self.handler));
        let (handshake_timeout, idle_timeout) = (self.handshake_timeout, self.idle_timeout);
        async move {
            let _permit = permit;
            let stream = BufReader::with_capacity(READ_BUFFER, stream);
            match tokio::time::timeout(handshake_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(stream, handler, idle_timeout, watcher).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        }
    }
}

async fn serve_connection(
    stream: TlsStream<BufReader<TcpStream>>,
    handler: Arc<Handler>,
    idle_timeout: Duration,
    watcher: Watcher,
) {
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, std::convert::Infallible>(handler.handle(request).await) }
    });
    let io = TokioIo::new(stream);
    let served = if h2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .serve_connection(io, service);
        watcher.watch(connection).await
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(idle_timeout)
            .serve_connection(io, service);
        watcher.watch(connection).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
