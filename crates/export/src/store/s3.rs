//! The requests of the S3 protocol that an export makes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use super::md5::md5;
use super::request::{self, Call, Listing, Protocol};
use super::sigv4::{Signable, encode, query, sign};
use super::{Checks, Credentials, Location, Part, PartDigest};
use crate::error::chain;
use crate::source::http::{Http, client};
use crate::sums::{hex, sha256};
use crate::{Error, Result};

/// A store that speaks the S3 protocol.
pub struct S3 {
    http: Http,
    /// Where.
    pub location: Location,
    keys: Credentials,
    host: String,
    /// The clock, as `YYYYMMDDTHHMMSSZ`.
    now: fn() -> String,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("S3").field("location", &self.location).finish_non_exhaustive()
    }
}

impl S3 {
    /// A store at a location.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(location: Location, keys: Credentials) -> Result<Self> {
        let host = location.endpoint.split_once("://").map_or("", |(_, host)| host).to_owned();
        Ok(Self { http: client("")?, location, keys, host, now })
    }

    /// Begins an upload; answers its id.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn begin(&self, key: &str) -> Result<String> {
        let what = format!("beginning an upload to {}", self.describe(key));
        let headers: &[(&str, String)] = match self.location.checks {
            Checks::Sha256 => &[("x-amz-checksum-algorithm", "SHA256".to_owned())],
            Checks::Md5 => &[],
        };
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
                    "ETag" => {
                        let part: &mut Part = out.entry(number).or_default();
                        if self.location.checks == Checks::Md5 {
                            part.digest = md5_of(&text);
                        }
                        part.tag = text;
                    }
                    "ChecksumSHA256" => {
                        out.entry(number).or_default().digest = Some(PartDigest::Sha256(text));
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

    /// Uploads a part; the store checks its digest.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn put_part(&self, key: &str, upload: &str, number: u32, data: Bytes) -> Result<Part> {
        let (headers, digest) = match self.location.checks {
            Checks::Sha256 => {
                let sum = BASE64_STANDARD.encode(sha256(&data));
                ([("x-amz-checksum-sha256", sum.clone())], PartDigest::Sha256(sum))
            }
            Checks::Md5 => {
                let sum = md5(&data);
                ([("content-md5", BASE64_STANDARD.encode(sum))], PartDigest::Md5(hex(&sum)))
            }
        };
        let text = number.to_string();
        let query = [("partNumber", text.as_str()), ("uploadId", upload)];
        let what = format!("uploading part {number} of {}", self.describe(key));
        let call = Call { method: Method::PUT, key, query: &query, headers: &headers, body: data, what };
        let response = self.call(&call).await?;
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let wrong = "the answer has no ETag".to_owned();
        let tag = tag.ok_or(Error::Answer { what: call.what, wrong, again: false })?;
        Ok(Part { tag, digest: Some(digest) })
    }

    /// Makes an object of the parts.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn complete(&self, key: &str, upload: &str, parts: &BTreeMap<u32, Part>) -> Result<()> {
        let mut text = String::from("<CompleteMultipartUpload>");
        for (number, part) in parts {
            let tag = part.tag.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
            let sum = match &part.digest {
                Some(PartDigest::Sha256(sum)) => format!("<ChecksumSHA256>{sum}</ChecksumSHA256>"),
                _ => String::new(),
            };
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
        let headers: &[(&str, String)] = match self.location.checks {
            // The signature says what it is.
            Checks::Sha256 => &[],
            Checks::Md5 => &[("content-md5", BASE64_STANDARD.encode(md5(&data)))],
        };
        let call = Call { method: Method::PUT, key, query: &[], headers, body: data, what };
        self.call(&call).await.map(|_| ())
    }
}

impl Protocol for S3 {
    const RANGE: &'static str = "range";
    const LISTING: Listing = Listing {
        query: &[("list-type", "2")],
        token: ("continuation-token", "NextContinuationToken"),
        key: "Key",
    };

    fn describe(&self, key: &str) -> String {
        format!("{}/{key}", self.location.bucket)
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
        let elements = request::xml(&call.what, response).await?;
        // CompleteMultipartUpload may answer 200 and fail in the body.
        let code = elements.iter().find(|(name, _)| name == "Error" || name == "Code");
        if let Some((_, code)) = code {
            let again = matches!(code.as_str(), "InternalError" | "SlowDown" | "ServiceUnavailable");
            return Err(Error::Answer { what: call.what.clone(), wrong: code.clone(), again });
        }
        Ok(elements)
    }
}

/// The digest that an `ETag` is, if it is one: 32 hexadecimal digits in quotes.
fn md5_of(tag: &str) -> Option<PartDigest> {
    let digest = tag.trim_matches('"');
    let known = digest.len() == 32 && digest.bytes().all(|c| c.is_ascii_hexdigit());
    known.then(|| PartDigest::Md5(digest.to_ascii_lowercase()))
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}
