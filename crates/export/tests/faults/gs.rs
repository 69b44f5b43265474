//! Google Cloud Storage's XML API as far as exports use it (cloud.google.com/storage/docs/xml-api): HMAC keys with
//! Amazon's signature, buckets in the path, parts that are checked by MD5 and named by it. It differs from S3 in what
//! it refuses: Amazon's checksums, headers of both kinds in one request, objects that are gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use export::run::{Event, Settings, Target, to_store};
use export::store::Store;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use image::MemoryDisk;
use tokio_util::sync::CancellationToken;

use crate::server::{Body, Server, cut, full, serve};
use crate::sigv4::{ID, SECRET, is_signed};
use crate::{Dice, MIB, content, image_of, job, noise, settings};

/// The smallest part but the last.
const SMALLEST: usize = 5 << 20;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    /// Key and parts of each upload by its id.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
}

pub struct Google {
    state: Mutex<State>,
    dice: Dice,
    /// Of a hundred requests, so many fail.
    percent: AtomicU64,
    /// Parts that were uploaded.
    parts: AtomicU64,
    next: AtomicU64,
}

pub async fn start(seed: u64, percent: u64) -> (Arc<Google>, String) {
    let google = Arc::new(Google {
        state: Mutex::default(),
        dice: Dice::new(seed),
        percent: AtomicU64::new(percent),
        parts: AtomicU64::new(0),
        next: AtomicU64::new(1),
    });
    let shared = google.clone();
    let address = serve(move |request| {
        let google = shared.clone();
        async move { google.answer(request).await }
    })
    .await;
    (google, format!("http://{address}"))
}

/// MD5 as another program computes it, so that the test does not believe the code that it tests.
fn md5(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(data).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    (0..16).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn tag(data: &[u8]) -> String {
    format!("\"{}\"", export::sums::hex(&md5(data)))
}

fn decode(text: &str) -> String {
    text.replace("%2F", "/")
}

fn refuse(status: StatusCode, code: &str) -> Response<Body> {
    full(status, format!("<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>"))
}

impl Google {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return full(StatusCode::BAD_REQUEST, "") };
        let body = body.to_bytes();
        if let Some(refusal) = Self::check(&parts, &body) {
            return refusal;
        }
        let fails = self.dice.below(100) < self.percent.load(Ordering::SeqCst);
        if fails && self.dice.below(2) == 0 {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
        }
        let answer = self.act(&parts, &body);
        // The request was carried out, and nobody hears of it.
        if fails { refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError") } else { answer }
    }

    /// What is refused whatever is asked for.
    fn check(parts: &Parts, body: &[u8]) -> Option<Response<Body>> {
        let names: Vec<&str> = parts.headers.keys().map(http::HeaderName::as_str).collect();
        let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        if !is_signed(parts, body, "auto") {
            return Some(refuse(StatusCode::FORBIDDEN, "SignatureDoesNotMatch"));
        }
        if any("x-amz-") && any("x-goog-") {
            return Some(refuse(StatusCode::BAD_REQUEST, "ExcessHeaderValues"));
        }
        if any("x-amz-checksum") || any("x-amz-sdk") {
            return Some(refuse(StatusCode::BAD_REQUEST, "InvalidArgument"));
        }
        let stated = parts.headers.get("content-md5").map(|value| value.to_str().unwrap());
        if parts.method == Method::PUT && stated != Some(&BASE64_STANDARD.encode(md5(body))) {
            return Some(refuse(StatusCode::BAD_REQUEST, "BadDigest"));
        }
        None
    }

    fn act(&self, parts: &Parts, body: &Bytes) -> Response<Body> {
        let Some(path) = parts.uri.path().strip_prefix("/bucket") else {
            return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
        };
        let path = decode(path.trim_start_matches('/'));
        let query = parts.uri.query().unwrap_or_default();
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(decode)
        };
        let mut state = self.state();
        match (&parts.method, value("uploads").is_some(), value("uploadId")) {
            (&Method::POST, true, _) => {
                let id = format!("ABP{}", self.next.fetch_add(1, Ordering::SeqCst));
                state.uploads.insert(id.clone(), (path, BTreeMap::new()));
                full(
                    StatusCode::OK,
                    format!(
                        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                    ),
                )
            }
            (&Method::GET, true, _) => {
                let list = state.uploads.iter().map(|(id, (key, _))| {
                    format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>")
                });
                full(StatusCode::OK, format!("<L>{}</L>", list.collect::<Vec<_>>().concat()))
            }
            (&Method::PUT, _, Some(id)) => {
                let Some((_, found)) = state.uploads.get_mut(&id) else {
                    return refuse(StatusCode::NOT_FOUND, "NoSuchUpload");
                };
                found.insert(value("partNumber").unwrap().parse().unwrap(), body.clone());
                self.parts.fetch_add(1, Ordering::SeqCst);
                let mut done = full(StatusCode::OK, "");
                done.headers_mut().insert("etag", tag(body).parse().unwrap());
                done
            }
            (&Method::GET, _, Some(id)) => {
                let Some((_, found)) = state.uploads.get(&id) else {
                    return refuse(StatusCode::NOT_FOUND, "NoSuchUpload");
                };
                parts_of(found, value("part-number-marker").unwrap().parse().unwrap())
            }
            (&Method::POST, _, Some(id)) => complete(&mut state, &id, &String::from_utf8_lossy(body)),
            (&Method::DELETE, ..) => match state.objects.remove(&path) {
                // Amazon says 204 to both.
                None => refuse(StatusCode::NOT_FOUND, "NoSuchKey"),
                Some(_) => full(StatusCode::NO_CONTENT, ""),
            },
            (&Method::PUT, ..) => {
                state.objects.insert(path, body.clone());
                full(StatusCode::OK, "")
            }
            (&Method::GET, ..) if path.is_empty() => {
                let (prefix, after) = (value("prefix").unwrap_or_default(), value("continuation-token"));
                let after = after.unwrap_or_default();
                assert_eq!(value("list-type").as_deref(), Some("2"));
                let all = state.objects.keys().filter(|key| key.starts_with(&prefix) && **key > after);
                let page: Vec<&String> = all.take(3).collect();
                let list: Vec<String> =
                    page.iter().map(|key| format!("<Contents><Key>{key}</Key></Contents>")).collect();
                let next =
                    page.get(2).map(|key| format!("<NextContinuationToken>{key}</NextContinuationToken>"));
                full(StatusCode::OK, format!("<L>{}{}</L>", list.concat(), next.unwrap_or_default()))
            }
            _ => self.read(&state, parts, &path),
        }
    }

    fn read(&self, state: &State, parts: &Parts, path: &str) -> Response<Body> {
        let Some(data) = state.objects.get(path) else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
        let range = parts.headers.get("range").map(|value| value.to_str().unwrap().to_owned());
        let range = range.as_deref().and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
        let Some((start, last)) = range else {
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
}

/// The parts behind one, two in a page, so that pages are turned. There is no checksum but the `ETag`.
fn parts_of(found: &BTreeMap<u32, Bytes>, after: u32) -> Response<Body> {
    let page: Vec<_> = found.range(after + 1..).take(2).collect();
    let shown = |(number, data): &(&u32, &Bytes)| {
        let (tag, size) = (tag(data).replace('"', "&quot;"), data.len());
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag><Size>{size}</Size></Part>")
    };
    let list: Vec<String> = page.iter().map(shown).collect();
    let last = page.last().map_or(after, |(number, _)| **number);
    let more = found.range(last + 1..).next().is_some();
    let next = format!("<NextPartNumberMarker>{last}</NextPartNumberMarker>");
    full(StatusCode::OK, format!("<L><IsTruncated>{more}</IsTruncated>{next}{}</L>", list.concat()))
}

fn complete(state: &mut State, id: &str, text: &str) -> Response<Body> {
    let Some((key, found)) = state.uploads.get(id).cloned() else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchUpload");
    };
    if text.contains("Checksum") {
        return refuse(StatusCode::BAD_REQUEST, "MalformedCompleteMultipartUploadRequest");
    }
    let whole = found.iter().all(|(number, data)| {
        let (number, tag) = (format!("<PartNumber>{number}</PartNumber>"), tag(data).replace('"', "&quot;"));
        text.contains(&format!("{number}<ETag>{tag}</ETag>"))
    });
    if !whole || text.matches("<Part>").count() != found.len() {
        return refuse(StatusCode::BAD_REQUEST, "InvalidPart");
    }
    let last = found.keys().max().copied().unwrap_or(0);
    if found.iter().any(|(number, data)| *number != last && data.len() < SMALLEST) {
        return refuse(StatusCode::BAD_REQUEST, "EntityTooSmall");
    }
    state.objects.insert(key, found.values().flatten().copied().collect());
    state.uploads.remove(id);
    full(StatusCode::OK, "<CompleteMultipartUploadResult/>")
}

fn store(endpoint: &str, secret: &str) -> Store {
    let env = |name: &str| match name {
        "GS_ACCESS_KEY_ID" => Some(ID.to_owned()),
        "GS_SECRET_ACCESS_KEY" => Some(secret.to_owned()),
        // For another store, and not asked for here.
        "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY" => Some("amazon".to_owned()),
        _ => None,
    };
    Store::open(&format!("gs://bucket/nightly/5?endpoint={endpoint}"), &env).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_go_to_google_with_hmac_keys_and_survive_its_faults() {
    for (seed, target) in [(31, Target::Qcow2), (32, Target::Vmdk), (33, Target::Ova), (34, Target::Raw)] {
        let dice = Dice::new(seed);
        let original = content(&dice);
        let server = Server::start(original.clone(), seed, 10).await;
        let (google, endpoint) = start(seed, 15).await;
        let mut attempt = 0;
        let report = loop {
            let settings = Settings { verify: true, ..settings(target, &dice, attempt) };
            let store = Arc::new(store(&endpoint, SECRET));
            let done = match job(&server).await {
                Ok(job) => to_store(&job, store, &settings, Arc::new(|_| {}), CancellationToken::new()).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(report) => break report,
                Err(error) => assert!(error.to_string().len() > 20 && attempt < 30, "{target:?}: {error}"),
            }
            attempt += 1;
        };
        let name = &report.files[0].name;
        let object = google.state().objects[&format!("nightly/5/{name}")].clone();
        if let Some(sum) = &report.files[0].sha256 {
            assert_eq!(*sum, export::sums::hex(&export::sums::sha256(&object)), "{target:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), &object).unwrap();
        let image = image_of(target, &dir.path().join("object")).unwrap();
        assert_eq!(image::compare(&MemoryDisk(original), &*image).unwrap(), None, "{target:?}");
        assert!(google.state().objects.contains_key("nightly/5/vm.export.json"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_google_has_are_known_by_their_md5_and_not_sent_again() {
    let noise = noise(&Dice::new(35));
    let mut original = vec![0; 40 * MIB];
    original.chunks_exact_mut(noise.len()).for_each(|piece| piece.copy_from_slice(&noise));
    let server = Server::start(original.clone(), 35, 0).await;
    let (google, endpoint) = start(35, 0).await;
    let stop = CancellationToken::new();
    let token = stop.clone();
    let listener: export::run::Listener = Arc::new(move |event| {
        if matches!(event, Event::Progress { done, .. } if done >= 36 * MIB as u64) {
            token.cancel();
        }
    });
    let settings = Settings::new(Target::Qcow2);
    let of = || Arc::new(store(&endpoint, SECRET));
    let stopped = to_store(&job(&server).await.unwrap(), of(), &settings, listener, stop).await;
    assert!(stopped.is_err());
    let before = google.parts.load(Ordering::SeqCst);
    // One of the parts is not what it was: it is sent again, and the others are not.
    for (_, parts) in google.state().uploads.values_mut() {
        parts.insert(2, Bytes::from(vec![7; 8 * MIB]));
    }
    let settings = Settings { resume: true, verify: true, ..settings };
    let job = job(&server).await.unwrap();
    to_store(&job, of(), &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap();
    let sent = google.parts.load(Ordering::SeqCst) - before;
    assert_eq!((before, sent), (3, 4), "parts sent before and after");
    assert!(google.state().uploads.is_empty());
    let plain = Settings::new(Target::Qcow2);
    let again = to_store(&job, of(), &plain, Arc::new(|_| {}), CancellationToken::new());
    assert!(again.await.unwrap_err().to_string().contains("exists already"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_told_at_once_and_what_is_gone_is_no_error() {
    let (google, endpoint) = start(36, 0).await;
    let wrong = store(&endpoint, "another").put("nightly/5/x", "x".into()).await.unwrap_err().to_string();
    assert!(wrong.contains("403") && wrong.contains("SignatureDoesNotMatch"), "{wrong}");
    let store = store(&endpoint, SECRET);
    store.put("nightly/5/x", "x".into()).await.unwrap();
    assert!(google.state().objects.contains_key("nightly/5/x"));
    store.delete("nightly/5/x").await.unwrap();
    store.delete("nightly/5/x").await.unwrap();
    assert_eq!(store.size("nightly/5/x").await.unwrap(), None);
}
