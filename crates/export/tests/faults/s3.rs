//! A store that speaks the S3 protocol, as far as exports use it, and misbehaves as a seed says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use export::sums::{hex, sha256};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::Dice;
use crate::server::{Body, cut, full, serve};
use crate::sigv4::is_signed;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    /// Key and parts of each upload by its id.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
}

pub struct Store {
    state: Mutex<State>,
    dice: Dice,
    /// Of a hundred requests, so many fail.
    pub percent: AtomicU64,
    /// Parts that were uploaded.
    pub parts: AtomicU64,
    next: AtomicU64,
}

impl Store {
    pub async fn start(seed: u64, percent: u64) -> (Arc<Self>, String) {
        let store = Arc::new(Self {
            state: Mutex::default(),
            dice: Dice::new(seed),
            percent: AtomicU64::new(percent),
            parts: AtomicU64::new(0),
            next: AtomicU64::new(1),
        });
        let shared = store.clone();
        let address = serve(move |request| {
            let store = shared.clone();
            async move { store.answer(request).await }
        })
        .await;
        (store, format!("http://{address}"))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.state().objects.get(key).cloned()
    }

    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.state().objects.clone()
    }

    pub fn unfinished(&self) -> usize {
        self.state().uploads.len()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return full(StatusCode::BAD_REQUEST, "") };
        let body = body.to_bytes();
        if !is_signed(&parts, &body, "us-east-1") {
            return full(StatusCode::FORBIDDEN, "<Error><Code>SignatureDoesNotMatch</Code></Error>");
        }
        let fails = self.dice.below(100) < self.percent.load(Ordering::SeqCst);
        if fails && self.dice.below(2) == 0 {
            return full(StatusCode::SERVICE_UNAVAILABLE, "<Error><Code>SlowDown</Code></Error>");
        }
        let answer = self.act(&parts, &body);
        // The request was carried out, and nobody hears of it.
        if fails {
            full(StatusCode::INTERNAL_SERVER_ERROR, "<Error><Code>InternalError</Code></Error>")
        } else {
            answer
        }
    }

    fn act(&self, parts: &http::request::Parts, body: &Bytes) -> Response<Body> {
        let path = parts.uri.path().trim_start_matches("/bucket").trim_start_matches('/').to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        let mut state = self.state();
        let uploads = value("uploads").is_some();
        match (&parts.method, uploads, value("uploadId")) {
            (&Method::POST, true, _) => {
                assert_eq!(parts.headers.get("x-amz-checksum-algorithm").unwrap(), "SHA256");
                let id = format!("upload-{}", self.next.fetch_add(1, Ordering::SeqCst));
                state.uploads.insert(id.clone(), (path, BTreeMap::new()));
                full(StatusCode::OK, format!("<R xmlns=\"x\"><UploadId>{id}</UploadId></R>"))
            }
            (&Method::GET, true, _) => {
                let list = state.uploads.iter().map(|(id, (key, _))| {
                    format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>")
                });
                full(StatusCode::OK, format!("<L>{}</L>", list.collect::<Vec<_>>().concat()))
            }
            (&Method::PUT, _, Some(id)) => {
                let Some((_, found)) = state.uploads.get_mut(&id) else {
                    return full(StatusCode::NOT_FOUND, "");
                };
                let sum = parts.headers.get("x-amz-checksum-sha256").and_then(|sum| sum.to_str().ok());
                if sum != Some(&BASE64_STANDARD.encode(sha256(body))) {
                    return full(StatusCode::BAD_REQUEST, "<Error><Code>BadDigest</Code></Error>");
                }
                found.insert(value("partNumber").unwrap().parse().unwrap(), body.clone());
                self.parts.fetch_add(1, Ordering::SeqCst);
                let mut done = full(StatusCode::OK, "");
                done.headers_mut().insert("etag", tag(body).parse().unwrap());
                done
            }
            (&Method::GET, _, Some(id)) => {
                let Some((_, found)) = state.uploads.get(&id) else { return full(StatusCode::NOT_FOUND, "") };
                // Two in a page, so that pages are turned.
                let after: u32 = value("part-number-marker").unwrap().parse().unwrap();
                let page: Vec<_> = found.range(after + 1..).take(2).collect();
                let list: Vec<String> = page
                    .iter()
                    .map(|(number, data)| {
                        let sum = BASE64_STANDARD.encode(sha256(data));
                        let tag = tag(data).replace('"', "&quot;");
                        format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag><ChecksumSHA256>{sum}</ChecksumSHA256></Part>")
                    })
                    .collect();
                let last = page.last().map_or(after, |(number, _)| **number);
                let more = found.range(last + 1..).next().is_some();
                full(
                    StatusCode::OK,
                    format!(
                        "<L><IsTruncated>{more}</IsTruncated><NextPartNumberMarker>{last}</NextPartNumberMarker>{}</L>",
                        list.concat()
                    ),
                )
            }
            (&Method::POST, _, Some(id)) => {
                let Some((key, found)) = state.uploads.get(&id).cloned() else {
                    return full(StatusCode::NOT_FOUND, "<Error><Code>NoSuchUpload</Code></Error>");
                };
                let text = String::from_utf8_lossy(body).into_owned();
                let whole = found.values().all(|data| {
                    let (tag, sum) = (tag(data).replace('"', "&quot;"), BASE64_STANDARD.encode(sha256(data)));
                    let part = format!("<ETag>{tag}</ETag><ChecksumSHA256>{sum}</ChecksumSHA256>");
                    text.contains(&part)
                });
                if !whole || text.matches("<Part>").count() != found.len() {
                    return full(StatusCode::OK, "<Error><Code>InvalidPart</Code></Error>");
                }
                state.objects.insert(key, found.values().flatten().copied().collect());
                state.uploads.remove(&id);
                full(StatusCode::OK, "<CompleteMultipartUploadResult/>")
            }
            (&Method::PUT, ..) => {
                state.objects.insert(path, body.clone());
                full(StatusCode::OK, "")
            }
            (&Method::GET, ..) if path.is_empty() => {
                let prefix = value("prefix").unwrap_or_default().replace("%2F", "/");
                let after = value("continuation-token").unwrap_or_default().replace("%2F", "/");
                // Three in a page, so that pages are turned.
                let all = state.objects.keys().filter(|key| key.starts_with(&prefix) && **key > after);
                let page: Vec<&String> = all.take(3).collect();
                let list: Vec<String> =
                    page.iter().map(|key| format!("<Contents><Key>{key}</Key></Contents>")).collect();
                let list = list.concat();
                let next =
                    page.get(2).map(|key| format!("<NextContinuationToken>{key}</NextContinuationToken>"));
                full(StatusCode::OK, format!("<L>{list}{}</L>", next.unwrap_or_default()))
            }
            (&Method::DELETE, _, None) => {
                state.objects.remove(&path);
                full(StatusCode::NO_CONTENT, "")
            }
            (&Method::HEAD | &Method::GET, ..) => {
                let Some(data) = state.objects.get(&path) else { return full(StatusCode::NOT_FOUND, "") };
                let range = parts.headers.get("range").map(|value| value.to_str().unwrap().to_owned());
                let Some((start, last)) =
                    range.as_deref().and_then(|text| text.strip_prefix("bytes=")?.split_once('-'))
                else {
                    let mut head = full(StatusCode::OK, "");
                    head.headers_mut().insert("content-length", data.len().into());
                    return head;
                };
                let (start, end) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1);
                if self.dice.below(100) < self.percent.load(Ordering::SeqCst) {
                    return cut(StatusCode::PARTIAL_CONTENT, data.slice(start..end - 1), end - start);
                }
                full(StatusCode::PARTIAL_CONTENT, data.slice(start..end))
            }
            _ => full(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
    }
}

fn tag(data: &[u8]) -> String {
    format!("\"{}\"", &hex(&sha256(data))[..32])
}
