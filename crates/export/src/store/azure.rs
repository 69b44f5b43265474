//! Azure Blob Storage: block blobs, blocks in any order (Blob service REST API, version 2021-12-02).
//!
//! The id of a block is its number and its SHA-256, so the list of blocks that the service keeps for an
//! unfinished blob says which of them need not be sent again, without a journal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;

use super::crc64::crc64;
use super::request::{self, Call, Listing, Protocol};
use super::sigv4::encode;
use super::{Part, PartDigest};
use crate::error::chain;
use crate::source::http::{Http, Secret, client};
use crate::sums::sha256;
use crate::{Error, Result};

/// The version of the service's protocol.
const VERSION: &str = "2021-12-02";

/// A container.
pub struct Azure {
    http: Http,
    /// `https://host[:port][/account]`, without the container.
    endpoint: String,
    account: String,
    container: String,
    /// What stands in front of every name; empty, or with a slash at its end.
    prefix: String,
    access: Access,
    /// The clock, in the form of HTTP dates.
    now: fn() -> String,
}

/// How requests are allowed.
enum Access {
    /// The account's key, decoded.
    Key(Box<hmac::Key>),
    /// A shared access signature: what stands behind the question mark.
    Signature(Secret),
}

impl std::fmt::Debug for Azure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Azure").field("container", &self.container).finish_non_exhaustive()
    }
}

impl Azure {
    /// Reads `az://container/prefix`, with `?endpoint=https://…` for other servers of the protocol. Account and
    /// key come from the variables that Microsoft's own tools read: `AZURE_STORAGE_ACCOUNT`, and
    /// `AZURE_STORAGE_SAS_TOKEN` or `AZURE_STORAGE_KEY`.
    ///
    /// # Errors
    /// When it is no such URL, or there is no key.
    pub fn open(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let wrong = |why: &str| Error::Request(format!("`{url}`: {why}"));
        let rest = url.strip_prefix("az://").ok_or_else(|| wrong("it is no az:// URL"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (container, prefix) = path.split_once('/').unwrap_or((path, ""));
        // The service's own rule, and `$root` and the like are not for exports.
        let named = !container.is_empty()
            && container.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        if !named {
            return Err(wrong("it names no container"));
        }
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let account = get("AZURE_STORAGE_ACCOUNT").ok_or_else(|| wrong("set AZURE_STORAGE_ACCOUNT"))?;
        let mut endpoint = format!("https://{account}.blob.core.windows.net");
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("endpoint", value)) => value.trim_end_matches('/').clone_into(&mut endpoint),
                _ => return Err(wrong("only `endpoint` may stand behind the question mark")),
            }
        }
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://127.0.0.1") {
            return Err(wrong("the endpoint must be https"));
        }
        let access = match (get("AZURE_STORAGE_SAS_TOKEN"), get("AZURE_STORAGE_KEY")) {
            (Some(signature), _) => Access::Signature(Secret(signature.trim_start_matches('?').to_owned())),
            (None, Some(key)) => {
                let key = BASE64_STANDARD
                    .decode(key.trim())
                    .map_err(|_| wrong("AZURE_STORAGE_KEY is no base64"))?;
                Access::Key(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &key)))
            }
            (None, None) => return Err(wrong("set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_KEY")),
        };
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let container = container.to_owned();
        Ok(Self { http: client("")?, endpoint, account, container, prefix, access, now })
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The blocks of a blob that was not completed.
    ///
    /// # Errors
    /// What the service refuses.
    pub async fn parts(&self, key: &str) -> Result<BTreeMap<u32, Part>> {
        let what = format!("listing the blocks of {}", self.describe(key));
        let query = [("comp", "blocklist"), ("blocklisttype", "uncommitted")];
        let call = Call { method: Method::GET, key, query: &query, headers: &[], body: Bytes::new(), what };
        let elements = match self.xml(&call).await {
            Ok(elements) => elements,
            // There is no such blob, not even an unfinished one.
            Err(Error::Answer { wrong, .. }) if wrong.starts_with("404") => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let names = elements.into_iter().filter(|(name, _)| name == "Name");
        Ok(names.filter_map(|(_, id)| part(&id)).collect())
    }

    /// Uploads a block; the service checks its CRC-64.
    ///
    /// # Errors
    /// What the service refuses.
    pub async fn put_part(&self, key: &str, number: u32, data: Bytes) -> Result<Part> {
        let sum = sha256(&data);
        let id = block_id(number, &sum);
        let headers = [("x-ms-content-crc64", BASE64_STANDARD.encode(crc64(&data).to_le_bytes()))];
        let query = [("comp", "block"), ("blockid", id.as_str())];
        let what = format!("uploading block {number} of {}", self.describe(key));
        let call = Call { method: Method::PUT, key, query: &query, headers: &headers, body: data, what };
        self.call(&call).await?;
        Ok(Part { tag: id, digest: Some(PartDigest::Sha256(BASE64_STANDARD.encode(sum))) })
    }

    /// Makes a blob of the blocks.
    ///
    /// # Errors
    /// What the service refuses.
    pub async fn complete(&self, key: &str, parts: &BTreeMap<u32, Part>) -> Result<()> {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for part in parts.values() {
            let _ = write!(text, "<Latest>{}</Latest>", part.tag);
        }
        text.push_str("</BlockList>");
        let what = format!("completing {}", self.describe(key));
        let headers = [("content-type", "application/xml".to_owned())];
        let query = [("comp", "blocklist")];
        let body = Bytes::from(text);
        let call = Call { method: Method::PUT, key, query: &query, headers: &headers, body, what };
        self.call(&call).await.map(|_| ())
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// What the service refuses.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<()> {
        let what = format!("writing {}", self.describe(key));
        let headers = [("x-ms-blob-type", "BlockBlob".to_owned())];
        let call = Call { method: Method::PUT, key, query: &[], headers: &headers, body: data, what };
        self.call(&call).await.map(|_| ())
    }
}

impl Protocol for Azure {
    const RANGE: &'static str = "x-ms-range";
    const LISTING: Listing = Listing {
        query: &[("restype", "container"), ("comp", "list")],
        token: ("marker", "NextMarker"),
        key: "Name",
    };

    fn describe(&self, key: &str) -> String {
        format!("{}/{key}", self.container)
    }

    async fn once(&self, call: &Call<'_>) -> Result<Response<Incoming>> {
        let slash = if call.key.is_empty() { "" } else { "/" };
        let url = format!("{}/{}{slash}{}", self.endpoint, self.container, encode(call.key, true));
        let mut headers: Vec<(String, String)> =
            vec![("x-ms-date".into(), (self.now)()), ("x-ms-version".into(), VERSION.into())];
        headers.extend(call.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mut query = super::sigv4::query(call.query);
        match &self.access {
            Access::Key(key) => {
                let path = url.splitn(4, '/').nth(3).unwrap_or_default();
                let text = string_to_sign(call, &headers, &format!("/{}/{path}", self.account));
                let signature = BASE64_STANDARD.encode(hmac::sign(key, text.as_bytes()));
                headers.push(("authorization".into(), format!("SharedKey {}:{signature}", self.account)));
            }
            Access::Signature(signature) => {
                let and = if query.is_empty() { "" } else { "&" };
                query = format!("{query}{and}{}", signature.0);
            }
        }
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder().method(call.method.clone()).uri(format!("{url}{mark}{query}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body.clone()));
        // Not the error itself: it may name the URL, and with it a signature.
        let request = request.map_err(|_| Error::Request(format!("{}: it makes no request", call.what)))?;
        let answer = self.http.request(request).await;
        answer.map_err(|error| Error::Connection { what: call.what.clone(), wrong: chain(&error) })
    }

    async fn xml(&self, call: &Call<'_>) -> Result<Vec<(String, String)>> {
        request::xml(&call.what, self.call(call).await?).await
    }
}

/// What is signed with the account's key ("Authorize with Shared Key", Blob service).
fn string_to_sign(call: &Call<'_>, headers: &[(String, String)], resource: &str) -> String {
    let header =
        |name: &str| headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str());
    let length = if call.body.is_empty() { String::new() } else { call.body.len().to_string() };
    let mut out = format!("{}\n\n\n{length}\n\n{}\n\n\n\n\n\n\n", call.method, header("content-type"));
    let mut own: Vec<_> = headers.iter().filter(|(name, _)| name.starts_with("x-ms-")).collect();
    own.sort();
    for (name, value) in own {
        let _ = writeln!(out, "{name}:{}", value.trim());
    }
    out.push_str(resource);
    let mut query = call.query.to_vec();
    query.sort_unstable();
    for (name, value) in query {
        let _ = write!(out, "\n{name}:{value}");
    }
    out
}

/// The id of a block: all ids of a blob have the same length.
fn block_id(number: u32, sum: &[u8; 32]) -> String {
    let raw: Vec<u8> = number.to_be_bytes().iter().chain(sum).copied().collect();
    BASE64_STANDARD.encode(raw)
}

/// Number and digest of a block with an id of ours.
fn part(id: &str) -> Option<(u32, Part)> {
    let raw = BASE64_STANDARD.decode(id).ok().filter(|raw| raw.len() == 36)?;
    let (number, sum) = raw.split_first_chunk::<4>()?;
    let digest = Some(PartDigest::Sha256(BASE64_STANDARD.encode(sum)));
    let part = Part { tag: id.to_owned(), digest };
    Some((u32::from_be_bytes(*number), part))
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_url_and_the_environment_make_a_container() {
        let env = |name: &str| match name {
            "AZURE_STORAGE_ACCOUNT" => Some("acc".to_owned()),
            "AZURE_STORAGE_KEY" => Some("c2VjcmV0".to_owned()),
            _ => None,
        };
        let store = Azure::open("az://backups/a/b/", &env).unwrap();
        assert_eq!(store.endpoint, "https://acc.blob.core.windows.net");
        assert_eq!(store.key("x.qcow2"), "a/b/x.qcow2");
        assert!(!format!("{store:?}").contains("secret"));
        for wrong in ["az://", "az://UPPER", "az://b?x=1", "az://b?endpoint=http://example.com"] {
            assert!(Azure::open(wrong, &env).is_err(), "{wrong}");
        }
        let nobody = |name: &str| (name == "AZURE_STORAGE_ACCOUNT").then(|| "acc".to_owned());
        let wrong = Azure::open("az://b", &nobody).unwrap_err().to_string();
        assert!(wrong.contains("AZURE_STORAGE_SAS_TOKEN"), "{wrong}");
    }

    #[test]
    fn blocks_tell_their_number_and_content() {
        let sum = sha256(b"data");
        let id = block_id(7, &sum);
        assert!(id.len() <= 64, "the service takes no longer ids");
        let (number, found) = part(&id).unwrap();
        assert!(number == 7 && found.holds(b"data") && !found.holds(b"other"));
        assert_eq!(part("AAAA"), None);
    }

    #[test]
    fn what_is_signed_has_the_form_that_the_service_asks_for() {
        let call = Call {
            method: Method::PUT,
            key: "k",
            query: &[("comp", "block"), ("blockid", "AAAA=")],
            headers: &[],
            body: Bytes::from_static(b"abc"),
            what: String::new(),
        };
        let headers = [("x-ms-version".to_owned(), "v".to_owned()), ("x-ms-date".to_owned(), "d".to_owned())];
        assert_eq!(
            string_to_sign(&call, &headers, "/acc/c/k"),
            "PUT\n\n\n3\n\n\n\n\n\n\n\n\nx-ms-date:d\nx-ms-version:v\n/acc/c/k\nblockid:AAAA=\ncomp:block"
        );
    }
}
