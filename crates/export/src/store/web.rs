//! A plain HTTP server that takes `PUT`.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use super::request;
use super::sigv4::encode;
use crate::error::chain;
use crate::source::http::{Piped, Secret, piped_client, refusal};
use crate::{Error, Result};

/// Bytes that are handed to the connection at once.
const PIECE: usize = 256 << 10;
/// A server that ended an upload says why within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// Pieces on their way.
const PIECES: usize = 8;

/// A directory of a server.
pub struct Web {
    http: Piped,
    /// The URL without credentials and without a slash at its end.
    base: String,
    authorization: Option<Secret>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Web").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Web {
    /// Reads `https://[user:password@]host/path`. `HTTP_AUTHORIZATION` holds a whole `Authorization` header
    /// instead, for example `Bearer …`. Plain `http://` is for servers that need no secret, and for this machine.
    ///
    /// # Errors
    /// When it is no such URL, or a secret would go over plain HTTP.
    pub fn open(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match host.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, host),
        };
        let base = format!("{scheme}://{host}/{path}");
        let base = base.trim_end_matches('/').to_owned();
        let wrong = |why: &str| Error::Request(format!("`{base}`: {why}"));
        if !matches!(scheme, "http" | "https") || host.is_empty() {
            return Err(wrong("it is no http or https URL"));
        }
        if path.contains(['?', '#']) {
            return Err(wrong("names of files are appended to it, so it can have no query"));
        }
        let given = env("HTTP_AUTHORIZATION").filter(|value| !value.is_empty());
        let authorization = match (given, user) {
            (Some(given), _) => Some(Secret(given)),
            (None, Some(user)) => Some(Secret(format!("Basic {}", BASE64_STANDARD.encode(user)))),
            (None, None) => None,
        };
        let here =
            host.starts_with("127.0.0.1") || host.starts_with("localhost") || host.starts_with("[::1]");
        if scheme == "http" && authorization.is_some() && !here {
            return Err(wrong("credentials do not go over plain http; use https"));
        }
        Ok(Self { http: piped_client("")?, base, authorization })
    }

    /// The URL of a name.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{}", self.base, encode(name, true))
    }

    /// What is sent into the sink is the body of a `PUT`; `length` when it is known before. The answer comes
    /// when the sink is finished.
    pub fn put(&self, name: &str, length: Option<u64>) -> Put {
        let (send, receive) = mpsc::channel::<io::Result<Frame<Bytes>>>(PIECES);
        let stream = futures::stream::unfold(receive, |mut receive| async move {
            receive.recv().await.map(|frame| (frame, receive))
        });
        let (http, url, what) = (self.http.clone(), self.url(name), format!("writing {}", self.url(name)));
        let authorization = self.authorization.clone();
        let answer = tokio::spawn(async move {
            let mut request = Request::builder().method(Method::PUT).uri(url);
            if let Some(secret) = &authorization {
                request = request.header(AUTHORIZATION, sensitive(&what, secret)?);
            }
            if let Some(length) = length {
                request = request.header(http::header::CONTENT_LENGTH, length);
            }
            let body = http_body_util::combinators::UnsyncBoxBody::new(StreamBody::new(stream));
            let request =
                request.body(body).map_err(|_| Error::Request(format!("{what}: it makes no request")))?;
            let response = http.request(request).await;
            let response =
                response.map_err(|error| Error::Connection { what: what.clone(), wrong: chain(&error) })?;
            if response.status().is_success() { Ok(()) } else { Err(refusal(&what, response).await) }
        });
        Put { send: Some(send), answer, buffer: Vec::with_capacity(PIECE), length: 0 }
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// What the server refuses.
    pub async fn put_small(&self, name: &str, data: Vec<u8>) -> Result<()> {
        let mut put = self.put(name, Some(data.len() as u64));
        if let Some(send) = put.send.take() {
            let _ = send.send(Ok(Frame::data(data.into()))).await;
        }
        (&mut put.answer).await.map_err(|_| Error::Stopped)?
    }

    /// The size of a file; `None`: it is not there, or the server does not say.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn size(&self, name: &str) -> Result<Option<u64>> {
        let what = format!("looking at {}", self.url(name));
        let once = || self.empty(Method::HEAD, name, None, &what);
        match request::size(&what, once).await {
            // Servers that take files need not tell about them.
            Err(Error::Answer { wrong, .. }) if wrong.starts_with("405") || wrong.starts_with("501") => {
                Ok(None)
            }
            other => other,
        }
    }
}

impl Web {
    /// A request without a body.
    async fn empty(
        &self,
        method: Method,
        name: &str,
        range: Option<String>,
        what: &str,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(self.url(name));
        if let Some(secret) = &self.authorization {
            request = request.header(AUTHORIZATION, sensitive(what, secret)?);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let empty =
            http_body_util::combinators::UnsyncBoxBody::new(StreamBody::new(futures::stream::empty()));
        let request = request.body(empty).map_err(|error| Error::Request(error.to_string()))?;
        let answer = self.http.request(request).await;
        answer.map_err(|error| Error::Connection { what: what.to_owned(), wrong: chain(&error) })
    }

    /// Reads a part of a file.
    ///
    /// # Errors
    /// What the server refuses, fewer bytes than there should be, and a server that knows no ranges.
    pub async fn read(&self, name: &str, start: u64, length: u64) -> Result<Bytes> {
        let what = format!("reading {}", self.url(name));
        let range = format!("bytes={start}-{}", start + length - 1);
        let call = || async {
            let once = || self.empty(Method::GET, name, Some(range.clone()), &what);
            let response = request::send(&what, length, once).await?;
            if response.status() == StatusCode::PARTIAL_CONTENT {
                return Ok(response);
            }
            let wrong =
                "the server ignores ranges, so that nothing can be verified there: leave --verify out";
            Err(Error::Answer { what: what.clone(), wrong: wrong.into(), again: false })
        };
        request::read(&what, length, call).await
    }
}

fn sensitive(what: &str, secret: &Secret) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&secret.0)
        .map_err(|_| Error::Request(format!("{what}: the authorization cannot be sent")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The body of a `PUT` that is under way. It must be written to on a thread that may block. Dropped before its
/// end, it breaks the request off, so that a server does not take what came for the whole.
#[derive(Debug)]
pub struct Put {
    send: Option<mpsc::Sender<io::Result<Frame<Bytes>>>>,
    answer: tokio::task::JoinHandle<Result<()>>,
    buffer: Vec<u8>,
    length: u64,
}

impl Put {
    /// Sends what is left, and waits for the answer; answers the length.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn finish(mut self) -> Result<u64> {
        // The answer says more than that the connection is closed.
        let _ = self.pass();
        self.send = None;
        let answer = &mut self.answer;
        tokio::runtime::Handle::current().block_on(answer).map_err(|_| Error::Stopped)??;
        Ok(self.length)
    }

    /// Why the request ended before its body did.
    pub fn failure(&mut self) -> Option<Error> {
        self.buffer.clear();
        let answer = tokio::time::timeout(ANSWER, &mut self.answer);
        tokio::runtime::Handle::current().block_on(answer).ok()?.ok()?.err()
    }

    fn pass(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the server ended the upload");
        let send = self.send.as_ref().ok_or_else(gone)?;
        send.blocking_send(Ok(Frame::data(full.into()))).map_err(|_| gone())
    }
}

impl io::Write for Put {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = data.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(data.get(..length).unwrap_or_default());
        self.length += length as u64;
        if self.buffer.len() == PIECE {
            self.pass()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if let Some(send) = self.send.take() {
            let _ = send.try_send(Err(io::ErrorKind::Interrupted.into()));
            self.answer.abort();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn urls_keep_their_secrets_to_themselves() {
        let none = |_: &str| None;
        let web = Web::open("https://user:pass@host.example/backups/", &none).unwrap();
        assert_eq!(web.url("a b.ova"), "https://host.example/backups/a%20b.ova");
        assert!(!format!("{web:?}").contains("pass"));
        for wrong in ["ftp://x", "https://", "https://x/y?z=1", "http://user:pw@example.com/x"] {
            assert!(Web::open(wrong, &none).is_err(), "{wrong}");
        }
        let bearer = |name: &str| (name == "HTTP_AUTHORIZATION").then(|| "Bearer t".to_owned());
        assert!(Web::open("http://example.com/x", &bearer).is_err());
        assert!(Web::open("http://127.0.0.1:1/x", &bearer).is_ok());
    }
}
