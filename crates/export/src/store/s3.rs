//! The requests of the S3 protocol that an export makes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use quick_xml::events::Event;

use super::sigv4::{Signable, encode, query, sign};
use super::{Credentials, Location};
use crate::error::chain;
use crate::retry::pause;
use crate::source::http::{Http, body, client, refusal};
use crate::sums::{hex, sha256};
use crate::{Error, Result};

/// How often a request is tried.
const TRIES: u32 = 6;
/// The largest answer in XML that is read.
const MAX_ANSWER: usize = 4 << 20;
/// A large part may take this long to be taken.
const UPLOAD: Duration = Duration::from_mins(10);

/// A part of an upload that the store has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    /// What the store calls its content; it is given back at the end.
    pub tag: String,
    /// Its SHA-256, in base64, when the store keeps one.
    pub sha256: Option<String>,
}

/// A store.
pub struct Store {
    http: Http,
    /// Where.
    pub location: Location,
    keys: Credentials,
    host: String,
    /// The clock, as `YYYYMMDDTHHMMSSZ`.
    now: fn() -> String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Store").field("location", &self.location).finish_non_exhaustive()
    }
}

struct Call<'a> {
    method: Method,
    key: &'a str,
    query: &'a [(&'a str, &'a str)],
    headers: &'a [(&'a str, String)],
    body: Bytes,
    what: String,
}

impl Store {
    /// A store at a location.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(location: Location, keys: Credentials) -> Result<Self> {
        let host = location.endpoint.split_once("://").map_or("", |(_, host)| host).to_owned();
        Ok(Self { http: client("")?, location, keys, host, now })
    }

    fn describe(&self, key: &str) -> String {
        format!("{}/{key}", self.location.bucket)
    }

    /// Sends a request, again if that may help; the answer is a success, or an error.
    async fn call(&self, call: &Call<'_>) -> Result<Response<Incoming>> {
        let mut failures = 0;
        loop {
            let outcome = match tokio::time::timeout(UPLOAD, self.once(call)).await {
                Ok(Ok(response)) if response.status().is_success() => return Ok(response),
                Ok(Ok(response)) => {
                    let status = response.status();
                    let error = refusal(&call.what, response).await;
                    // Wrong keys and missing buckets do not get better.
                    let passing = status.is_server_error()
                        || matches!(status.as_u16(), 408 | 429)
                        || matches!(&error, Error::Answer { wrong, .. } if wrong.contains("RequestTimeout"));
                    if !passing {
                        return Err(error);
                    }
                    error
                }
                Ok(Err(error)) => error,
                Err(_) => Error::Connection { what: call.what.clone(), wrong: "it takes too long".into() },
            };
            failures += 1;
            if failures >= TRIES || !outcome.is_passing() {
                return Err(outcome);
            }
            tracing::debug!(error = %outcome, failures, "trying again");
            tokio::time::sleep(pause(failures, call.body.len() as u64)).await;
        }
    }

    async fn once(&self, call: &Call<'_>) -> Result<Response<Incoming>> {
        let slash = if call.key.is_empty() { "" } else { "/" };
        let path = format!("/{}{slash}{}", self.location.bucket, encode(call.key, true));
        let mut headers = vec![("host".to_owned(), self.host.clone())];
        headers.extend(call.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let payload = hex(&sha256(&call.body));
        let signable = Signable {
            method: call.method.as_str(),
            path: &path,
            query: call.query,
            headers: &headers,
            payload: &payload,
            region: &self.location.region,
            time: &(self.now)(),
        };
        let query = query(call.query);
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{path}{mark}{query}", self.location.endpoint));
        for (name, value) in sign(&signable, &self.keys) {
            if name != "host" {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(call.body.clone()));
        let request = request.map_err(|error| Error::Request(error.to_string()))?;
        // Not `send`: its patience is for heads of answers, and a large part takes longer to be taken.
        let answer = self.http.request(request).await;
        answer.map_err(|error| Error::Connection { what: call.what.clone(), wrong: chain(&error) })
    }

    async fn xml(&self, call: &Call<'_>) -> Result<Vec<(String, String)>> {
        let response = self.call(call).await?;
        let text = body(&call.what, response.into_body(), MAX_ANSWER).await?;
        let answer = |wrong: String| Error::Answer { what: call.what.clone(), wrong, again: false };
        let text = std::str::from_utf8(&text).map_err(|_| answer("the answer is no text".into()))?;
        let elements = elements(text).map_err(|wrong| answer(format!("the answer is no XML: {wrong}")))?;
        // CompleteMultipartUpload may answer 200 and fail in the body.
        let code = elements.iter().find(|(name, _)| name == "Error" || name == "Code");
        if let Some((_, code)) = code {
            let again = matches!(code.as_str(), "InternalError" | "SlowDown" | "ServiceUnavailable");
            return Err(Error::Answer { what: call.what.clone(), wrong: code.clone(), again });
        }
        Ok(elements)
    }

    /// Begins an upload; answers its id.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn begin(&self, key: &str) -> Result<String> {
        let what = format!("beginning an upload to {}", self.describe(key));
        let checksums = [("x-amz-checksum-algorithm", "SHA256".to_owned())];
        let headers = if self.location.checksums { &checksums[..] } else { &[] };
        let query = [("uploads", "")];
        let call = Call { method: Method::POST, key, query: &query, headers, body: Bytes::new(), what };
        let elements = self.xml(&call).await?;
        let id = elements.into_iter().find(|(name, _)| name == "UploadId").map(|(_, id)| id);
        let wrong = "the answer names no upload".to_owned();
        id.ok_or(Error::Answer { what: call.what, wrong, again: false })
    }

    /// The last upload to a key that was begun and not ended.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn unfinished(&self, key: &str) -> Result<Option<String>> {
        let what = format!("looking for an upload to {}", self.describe(key));
        let query = [("uploads", ""), ("prefix", key)];
        let call =
            Call { method: Method::GET, key: "", query: &query, headers: &[], body: Bytes::new(), what };
        let (mut current, mut found) = (String::new(), None);
        for (name, text) in self.xml(&call).await? {
            match name.as_str() {
                "Key" => current = text,
                "UploadId" if current == key => found = Some(text),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The parts of an upload that the store has.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn parts(&self, key: &str, upload: &str) -> Result<BTreeMap<u32, Part>> {
        let what = format!("listing the parts of {}", self.describe(key));
        let (mut out, mut marker) = (BTreeMap::new(), "0".to_owned());
        loop {
            let query = [("uploadId", upload), ("part-number-marker", marker.as_str())];
            let what = what.clone();
            let call =
                Call { method: Method::GET, key, query: &query, headers: &[], body: Bytes::new(), what };
            let (mut number, mut truncated, mut next) = (0, false, String::new());
            for (name, text) in self.xml(&call).await? {
                match name.as_str() {
                    "PartNumber" => number = text.parse().unwrap_or(0),
                    "ETag" => out.entry(number).or_insert_with(Part::default).tag = text,
                    "ChecksumSHA256" => {
                        out.entry(number).or_insert_with(Part::default).sha256 = Some(text);
                    }
                    "IsTruncated" => truncated = text == "true",
                    "NextPartNumberMarker" => next = text,
                    _ => {}
                }
            }
            if !truncated || next == marker || next.is_empty() {
                return Ok(out);
            }
            marker = next;
        }
    }

    /// Uploads a part; the store checks its SHA-256.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn put_part(&self, key: &str, upload: &str, number: u32, data: Bytes) -> Result<Part> {
        let sum = BASE64_STANDARD.encode(sha256(&data));
        let checksum = [("x-amz-checksum-sha256", sum.clone())];
        let headers = if self.location.checksums { &checksum[..] } else { &[] };
        let text = number.to_string();
        let query = [("partNumber", text.as_str()), ("uploadId", upload)];
        let what = format!("uploading part {number} of {}", self.describe(key));
        let call = Call { method: Method::PUT, key, query: &query, headers, body: data, what };
        let response = self.call(&call).await?;
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let wrong = "the answer has no ETag".to_owned();
        let tag = tag.ok_or(Error::Answer { what: call.what, wrong, again: false })?;
        Ok(Part { tag, sha256: self.location.checksums.then_some(sum) })
    }

    /// Makes an object of the parts.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn complete(&self, key: &str, upload: &str, parts: &BTreeMap<u32, Part>) -> Result<()> {
        let mut text = String::from("<CompleteMultipartUpload>");
        for (number, part) in parts {
            let tag = part.tag.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
            let sum = part.sha256.as_ref();
            let sum = sum.map(|sum| format!("<ChecksumSHA256>{sum}</ChecksumSHA256>")).unwrap_or_default();
            let _ = write!(text, "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag>{sum}</Part>");
        }
        text.push_str("</CompleteMultipartUpload>");
        let what = format!("completing the upload to {}", self.describe(key));
        let query = [("uploadId", upload)];
        let body = Bytes::from(text);
        let call = Call { method: Method::POST, key, query: &query, headers: &[], body, what };
        self.xml(&call).await.map(|_| ())
    }

    /// Gives an upload up, with its parts.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        let what = format!("giving up the upload to {}", self.describe(key));
        let query = [("uploadId", upload)];
        let call =
            Call { method: Method::DELETE, key, query: &query, headers: &[], body: Bytes::new(), what };
        self.call(&call).await.map(|_| ())
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<()> {
        let what = format!("writing {}", self.describe(key));
        let call = Call { method: Method::PUT, key, query: &[], headers: &[], body: data, what };
        self.call(&call).await.map(|_| ())
    }

    /// The size of an object; `None`: it is not there.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        let what = format!("looking at {}", self.describe(key));
        let call = Call { method: Method::HEAD, key, query: &[], headers: &[], body: Bytes::new(), what };
        let mut failures = 0;
        let response = loop {
            match self.once(&call).await {
                Ok(response) if response.status().is_server_error() && failures < TRIES => {}
                Err(error) if error.is_passing() && failures < TRIES => {}
                outcome => break outcome?,
            }
            failures += 1;
            tokio::time::sleep(pause(failures, 0)).await;
        };
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let length = response.headers().get("content-length").and_then(|value| value.to_str().ok());
                Ok(length.and_then(|text| text.parse().ok()))
            }
            _ => Err(refusal(&call.what, response).await),
        }
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    /// What the store refuses, and fewer bytes than there should be.
    pub async fn read(&self, key: &str, start: u64, length: u64) -> Result<Bytes> {
        let what = format!("reading {}", self.describe(key));
        let headers = [("range", format!("bytes={start}-{}", start + length - 1))];
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        let mut failures = 0;
        loop {
            let what = what.clone();
            let call =
                Call { method: Method::GET, key, query: &[], headers: &headers, body: Bytes::new(), what };
            let response = self.call(&call).await?;
            match body(&call.what, response.into_body(), wanted).await {
                Ok(data) if data.len() == wanted => return Ok(data),
                Err(error) if failures >= TRIES => return Err(error),
                Ok(data) if failures >= TRIES => {
                    let wrong = format!("{} bytes came instead of {wanted}", data.len());
                    return Err(Error::Answer { what: call.what, wrong, again: false });
                }
                _ => failures += 1,
            }
            tokio::time::sleep(pause(failures, start)).await;
        }
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The elements that hold text, in order; an element that holds none is there with an empty one.
fn elements(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut out, mut open): (Vec<(String, String)>, Vec<usize>) = (Vec::new(), Vec::new());
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                open.push(out.len());
                let name = start.name().0;
                out.push((name.rsplit_once(':').map_or(name, |(_, name)| name).to_owned(), String::new()));
            }
            Event::End(_) => {
                open.pop();
            }
            Event::Text(text) => {
                if let Some((_, value)) = open.last().and_then(|at| out.get_mut(*at)) {
                    value.push_str(text.xml10_content().trim());
                }
            }
            Event::GeneralRef(reference) => {
                let c = match &*reference {
                    "quot" => '"',
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "apos" => '\'',
                    other => {
                        let found = reference.resolve_char_ref().ok().flatten();
                        found.ok_or_else(|| format!("the entity `{other}` is not known"))?
                    }
                };
                if let Some((_, value)) = open.last().and_then(|at| out.get_mut(*at)) {
                    value.push(c);
                }
            }
            Event::DocType(_) => return Err("it has a document type".into()),
            Event::Eof => return Ok(out),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::elements;

    #[test]
    fn answers_are_read_as_names_and_texts() {
        let text = "<?xml version=\"1.0\"?><R xmlns=\"x\"><Part><ETag>&quot;ab&quot;</ETag></Part><E/></R>";
        let found = elements(text).unwrap();
        assert_eq!(found[2], ("ETag".to_owned(), "\"ab\"".to_owned()));
        assert!(elements("<!DOCTYPE x><x/>").is_err());
    }
}
