//! Connections between the parts of a sandbox: the machine's loopback, or memory, or both, where the
//! parts of one process meet in memory and everybody else comes over loopback.
//!
//! In memory there are no sockets, so nothing outside of the program decides when bytes arrive: a run
//! over a clock that only moves when everybody waits is the same each time. How long messages take on
//! the way is drawn from a seed, so that another seed gives another order of events. HTTP, and TLS where the
//! peer asks for it, are spoken over both.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certs::{self, Authority};

/// What a connection in memory holds before its writer waits: what a socket's buffer takes.
const BUFFER: usize = 256 << 10;
/// What goes on the way at once.
const MESSAGE: usize = 64 << 10;
/// Ports in memory are given out from here.
const FIRST_PORT: u16 = 20_000;

/// How parts reach each other. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct Network(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Loopback,
    Memory(Arc<Memory>),
    Both(Arc<Memory>),
}

#[derive(Debug, Default)]
struct Memory {
    ports: Mutex<Ports>,
    seed: u64,
    /// How long a message takes at most.
    transit: Duration,
}

/// Who listens in memory.
#[derive(Debug, Default)]
struct Ports {
    /// How many connections there have been.
    connections: u64,
    listening: BTreeMap<u16, mpsc::UnboundedSender<DuplexStream>>,
    given: u16,
}

/// Where connections arrive.
#[derive(Debug)]
pub enum Listener {
    /// On 127.0.0.1.
    Loopback(TcpListener),
    /// In memory, on a port of its own.
    Memory(u16, mpsc::UnboundedReceiver<DuplexStream>),
    /// On 127.0.0.1, and in memory on the same port.
    Both(TcpListener, mpsc::UnboundedReceiver<DuplexStream>),
}

/// One connection.
#[derive(Debug)]
pub enum Link {
    /// Over a socket.
    Loopback(TcpStream),
    /// In memory.
    Memory(DuplexStream),
}

impl Network {
    /// The machine's own: listeners are on 127.0.0.1, connections go wherever they are asked to.
    pub fn loopback() -> Self {
        Self::default()
    }

    /// A new one that is nowhere but in memory. A message takes up to `transit`; how long each does, the
    /// seed draws.
    pub fn memory(seed: u64, transit: Duration) -> Self {
        Self(Kind::Memory(Arc::new(Memory { ports: Mutex::default(), seed, transit })))
    }

    /// The machine's, with shortcuts in memory to what listens through this network itself: no system
    /// calls, and no queueing of small packets.
    pub fn shortcut() -> Self {
        Self(Kind::Both(Arc::default()))
    }

    /// Whether it is nowhere but in memory.
    pub fn is_memory(&self) -> bool {
        matches!(self.0, Kind::Memory(_))
    }

    /// Whether connections to what listens through it are in memory.
    pub fn is_internal(&self) -> bool {
        !matches!(self.0, Kind::Loopback)
    }

    /// A certificate authority for servers on this network: in memory one whose keys follow from the
    /// network's seed and `salt`.
    ///
    /// # Errors
    /// When no key or certificate can be made.
    pub fn authority(&self, salt: u64) -> Result<Authority, certs::Error> {
        match &self.0 {
            Kind::Loopback | Kind::Both(_) => Authority::new(),
            Kind::Memory(memory) => Authority::drawn(memory.seed ^ salt.wrapping_mul(0xD1B5_4A32_D192_ED03)),
        }
    }

    /// Listens on a port; 0: any that is free.
    ///
    /// # Errors
    /// The port is taken, or not allowed.
    pub async fn listen(&self, port: u16) -> io::Result<Listener> {
        let memory = match &self.0 {
            Kind::Memory(memory) => memory,
            Kind::Loopback => return Ok(Listener::Loopback(loopback(port).await?)),
            Kind::Both(memory) => {
                let listener = loopback(port).await?;
                let (sender, receiver) = mpsc::unbounded_channel();
                memory.lock().listening.insert(listener.local_addr()?.port(), sender);
                return Ok(Listener::Both(listener, receiver));
            }
        };
        let mut ports = memory.lock();
        let port = if port == 0 {
            let next = FIRST_PORT.checked_add(ports.given).ok_or(io::ErrorKind::AddrNotAvailable)?;
            ports.given += 1;
            next
        } else {
            port
        };
        if ports.listening.get(&port).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        ports.listening.insert(port, sender);
        Ok(Listener::Memory(port, receiver))
    }

    /// Connects to a listener.
    ///
    /// # Errors
    /// Nobody listens there, or the host cannot be reached.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Link> {
        let (memory, elsewhere) = match &self.0 {
            Kind::Loopback => return dial(host, port).await,
            Kind::Memory(memory) => (memory, false),
            Kind::Both(memory) => (memory, true),
        };
        let (near, mut far) = tokio::io::duplex(BUFFER);
        let (listener, number) = {
            let mut ports = memory.lock();
            ports.connections += 1;
            (ports.listening.get(&port).cloned(), ports.connections)
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = match listener {
            Some(listener) if !listener.is_closed() => listener,
            _ if elsewhere => return dial(host, port).await,
            _ => return Err(refused()),
        };
        if !memory.transit.is_zero() {
            let (there, back) = tokio::io::split(far);
            let (arrived, end) = tokio::io::duplex(BUFFER);
            let (from, to) = tokio::io::split(arrived);
            let dice =
                |way: u64| Dice(memory.seed ^ number.wrapping_mul(4).wrapping_add(way), memory.transit);
            tokio::spawn(carry(there, to, dice(1)));
            tokio::spawn(carry(from, back, dice(2)));
            far = end;
        }
        listener.send(far).map_err(|_| refused())?;
        Ok(Link::Memory(near))
    }
}

async fn loopback(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

async fn dial(host: &str, port: u16) -> io::Result<Link> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(Link::Loopback(stream))
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the messages of one direction of one connection take (splitmix64).
struct Dice(u64, Duration);

impl Dice {
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // The clock of a runtime counts milliseconds.
        let millis = u64::try_from(self.1.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        Duration::from_millis((mixed ^ (mixed >> 31)) % millis)
    }
}

/// Takes messages from one end to the other, each after its time, in their order.
async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, mut dice: Dice) {
    let mut message = vec![0; MESSAGE];
    while let Ok(length @ 1..) = from.read(&mut message).await {
        tokio::time::sleep(dice.next()).await;
        if to.write_all(&message[..length]).await.is_err() {
            return;
        }
    }
    // Nobody is left to tell when this fails.
    let _ = to.shutdown().await;
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Loopback(listener) | Self::Both(listener, _) => listener.local_addr(),
            Self::Memory(port, _) => Ok((Ipv4Addr::LOCALHOST, *port).into()),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// None could be taken, most likely for want of file descriptors; the listener goes on.
    pub async fn accept(&mut self) -> io::Result<Link> {
        let (stream, _) = match self {
            Self::Loopback(listener) => listener.accept().await?,
            Self::Memory(_, connections) => return Ok(Link::Memory(arrival(connections).await)),
            Self::Both(listener, connections) => tokio::select! {
                biased;
                stream = arrival(connections) => return Ok(Link::Memory(stream)),
                accepted = listener.accept() => accepted?,
            },
        };
        stream.set_nodelay(true)?;
        Ok(Link::Loopback(stream))
    }

    /// Takes connections until `stop`, each in a task of its own among `tasks`, at most `limit` at once: what comes beyond is
    /// closed.
    pub async fn serve<F>(
        mut self,
        limit: usize,
        tasks: TaskTracker,
        stop: CancellationToken,
        connection: impl Fn(Link) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(limit));
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            let Ok(stream) = accepted else {
                // Out of file descriptors, most likely: wait for some to be closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let served = connection(stream);
            tasks.spawn(async move {
                served.await;
                drop(slot);
            });
        }
    }
}

async fn arrival(connections: &mut mpsc::UnboundedReceiver<DuplexStream>) -> DuplexStream {
    match connections.recv().await {
        Some(stream) => stream,
        // Replaced by a listener of the same port: nothing comes here any more.
        None => std::future::pending().await,
    }
}

impl Link {
    /// Whether it stays within the program: what goes over it is seen by nobody else.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_flush(cx),
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Loopback(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Opens plain HTTP connections for hyper's client.
#[derive(Clone, Debug)]
pub struct Connector(pub Network);

/// A plain connection in a client's pool.
#[derive(Debug)]
pub struct Pooled(TokioIo<Link>);

impl tower_service::Service<Uri> for Connector {
    type Response = Pooled;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Pooled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let network = self.0.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            Ok(Pooled(TokioIo::new(network.connect(&host, uri.port_u16().unwrap_or(80)).await?)))
        })
    }
}

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_networks_carry_bytes_and_refuse_ports_where_nobody_listens() {
        let late = Network::memory(7, Duration::from_millis(5));
        for network in [Network::loopback(), Network::shortcut(), Network::memory(7, Duration::ZERO), late] {
            let mut listener = network.listen(0).await.unwrap();
            let port = listener.address().unwrap().port();
            assert!(network.listen(port).await.is_err(), "the port is taken");
            let (near, far) = tokio::join!(network.connect("127.0.0.1", port), listener.accept());
            near.unwrap().write_all(b"hello").await.unwrap();
            let mut text = String::new();
            far.unwrap().take(5).read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
            drop(listener);
            let error = network.connect("127.0.0.1", port).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert!(network.listen(port).await.is_ok(), "the port is free again");
        }
    }
}
