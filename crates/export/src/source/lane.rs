//! Connections that bodies of megabytes are read from.
//!
//! ```text
//!  request ─► lane ─► TCP ─ 128 KiB ─► TLS ─ many records ─► HTTP ─► pieces, in the task that asked
//! ```
//!
//! A client with a task for each connection hands every piece of a body from one thread to another, and rustls gives
//! out one record of 16 KiB at a time: for 2 GiB that is 131,072 pieces that leave one processor's cache for another's.
//! Here whoever asks drives the connection, and a piece is what has arrived.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::http::{PATIENCE, STALL};
use crate::error::chain;
use crate::{Error, Result};

/// What is read from a socket at once, in bytes. rustls 0.23 takes at most 4 KiB (`DeframerVecBuffer::prepare_read`);
/// with a buffer below it, it takes them from memory.
const WIDTH: usize = 128 << 10;
/// The largest piece of a body, in bytes: it stays in the processor's cache while it is looked at and copied.
const PIECE: usize = 256 << 10;

/// Connections to one server that nobody uses, and how to make more.
pub(super) struct Lanes {
    tls: TlsConnector,
    idle: Mutex<Vec<Lane>>,
}

/// One connection.
struct Lane {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: Pin<Box<http1::Connection<TokioIo<Stream>, Full<Bytes>>>>,
    since: Instant,
}

impl Lanes {
    /// No connection yet.
    pub fn new(trusting: ClientConfig) -> Self {
        Self { tls: TlsConnector::from(Arc::new(trusting)), idle: Mutex::default() }
    }

    /// Sends a request, and hands the answer to `take` as soon as its head is there. The connection lives as long as
    /// `take` does, and is used again when that was content.
    ///
    /// # Errors
    /// When there is no answer in time, and what `take` says.
    pub async fn ask<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        mut request: Request<Full<Bytes>>,
        take: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T> {
        let lost = |wrong: String| Error::Connection { what: what.into(), wrong };
        let mut lane = match self.rested().await {
            Some(lane) => lane,
            None => self.open(request.uri()).await.map_err(lost)?,
        };
        // On the wire a request names the server in a header, and its path alone (RFC 9112, section 3.2.1).
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let host = HeaderValue::from_str(&authority.unwrap_or_default());
        request.headers_mut().insert(HOST, host.map_err(|error| Error::Request(error.to_string()))?);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| Error::Request(format!("`{path}` is no path")))?;
        let Lane { sender, connection, .. } = &mut lane;
        let exchange = async {
            match timeout(PATIENCE, sender.send_request(request)).await {
                Ok(Ok(response)) => take(response).await,
                Ok(Err(error)) => Err(lost(chain(&error))),
                Err(_) => Err(lost(format!("no answer within {} s", PATIENCE.as_secs()))),
            }
        };
        let (outcome, open) = drive(connection, exchange).await;
        if outcome.is_ok() && open {
            lane.since = Instant::now();
            self.idle.lock().push(lane);
        }
        outcome
    }

    /// A connection that was used before and is still there.
    async fn rested(&self) -> Option<Lane> {
        loop {
            let mut lane = self.idle.lock().pop()?;
            let Lane { sender, connection, since } = &mut lane;
            if since.elapsed() >= STALL {
                continue;
            }
            let usable = tokio::select! {
                biased;
                // First: so it notices that the server has closed it.
                _ = connection => false,
                ready = sender.ready() => ready.is_ok(),
            };
            if usable {
                return Some(lane);
            }
        }
    }

    async fn open(&self, to: &Uri) -> std::result::Result<Lane, String> {
        let made = timeout(PATIENCE, self.connect(to)).await;
        let stream = made.map_err(|_| format!("no connection within {} s", PATIENCE.as_secs()))??;
        let mut builder = http1::Builder::new();
        let shaken = builder.max_buf_size(PIECE).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| chain(&error))?;
        Ok(Lane { sender, connection: Box::pin(connection), since: Instant::now() })
    }

    async fn connect(&self, to: &Uri) -> std::result::Result<Stream, String> {
        let host = to.host().ok_or("the URL names no server")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let secure = to.scheme() != Some(&Scheme::HTTP);
        let port = to.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tcp = TcpStream::connect((host, port)).await;
        let tcp = tcp.map_err(|error| format!("connecting to {host}:{port}: {error}"))?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let tcp = BufReader::with_capacity(WIDTH, tcp);
        if !secure {
            return Ok(Stream::new(tcp));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let tls = self.tls.connect(name, tcp).await;
        tls.map(Stream::new).map_err(|error| format!("speaking TLS with {host}:{port}: {}", chain(&error)))
    }
}

/// Does some work while its connection goes on; answers also whether that is still open.
async fn drive<T>(
    connection: &mut Pin<Box<http1::Connection<TokioIo<Stream>, Full<Bytes>>>>,
    work: impl Future<Output = T>,
) -> (T, bool) {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return (done, true),
        // Why it ended, the work hears as well.
        _ = connection => {}
    }
    (work.await, false)
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A socket that gives all that has arrived, as far as there is room.
struct Stream {
    socket: Box<dyn Socket>,
    /// What went wrong behind the bytes that were given out last.
    failed: Option<io::Error>,
}

impl Stream {
    fn new(socket: impl Socket + 'static) -> Self {
        Self { socket: Box::new(socket), failed: None }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let mut had = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        while buffer.filled().len() > had && buffer.remaining() > 0 {
            had = buffer.filled().len();
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.socket).poll_read(cx, buffer) {
                self.failed = Some(error);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use std::collections::VecDeque;

    use http::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::http::{body, trusting};
    use super::*;

    /// Gives what it was given, step by step.
    struct Steps(VecDeque<io::Result<&'static [u8]>>);

    impl AsyncRead for Steps {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.pop_front() {
                Some(step) => Poll::Ready(step.map(|data| to.put_slice(data))),
                None => Poll::Pending,
            }
        }
    }

    impl AsyncWrite for Steps {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn all_that_has_arrived_is_given_at_once_and_an_error_behind_it() {
        let reset = || Err(io::ErrorKind::ConnectionReset.into());
        let mut stream = Stream::new(Steps([Ok(b"ab".as_slice()), Ok(b"cd"), reset(), Ok(b"e")].into()));
        let mut buffer = [0; 10];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer[..4], b"abcd");
        assert_eq!(stream.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut ended = Stream::new(Steps([Ok(b"ab".as_slice()), Ok(b"")].into()));
        assert_eq!(ended.read(&mut buffer).await.unwrap(), 2);
    }

    /// Answers so many requests on each connection, and closes it; every answer says how many connections there were.
    async fn server(answers: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for number in 1_u32.. {
                let (mut socket, _) = listener.accept().await.unwrap();
                for _ in 0..answers {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).await.is_ok() {
                        head.push(byte[0]);
                    }
                    if head.is_empty() {
                        break;
                    }
                    let head = String::from_utf8(head).unwrap();
                    assert!(head.starts_with("GET /disk?x=1 HTTP/1.1\r\n"), "{head}");
                    assert!(head.contains(&format!("\r\nhost: {address}\r\n")), "{head}");
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        format!("http://{address}/disk?x=1")
    }

    #[tokio::test]
    async fn a_connection_is_used_again_unless_its_server_has_closed_it() {
        let url = server(2).await;
        let lanes = Lanes::new(trusting("").unwrap());
        let mut connections = String::new();
        for _ in 0..5 {
            let request = Request::get(&url).body(Full::default()).unwrap();
            let answer = lanes.ask("asking", request, async |response: Response<Incoming>| {
                assert_eq!(response.status(), StatusCode::OK);
                body("asking", response.into_body(), 10).await
            });
            connections.push_str(std::str::from_utf8(&answer.await.unwrap()).unwrap());
        }
        assert_eq!(connections, "11223");
    }

    #[tokio::test]
    async fn who_is_not_content_takes_the_connection_along() {
        let url = server(9).await;
        let lanes = Lanes::new(trusting("").unwrap());
        for _ in 0..2 {
            let request = Request::get(&url).body(Full::default()).unwrap();
            let refused = lanes.ask("asking", request, async |_| Err::<(), _>(Error::Stopped));
            assert!(matches!(refused.await, Err(Error::Stopped)));
            assert!(lanes.idle.lock().is_empty());
        }
    }
}
