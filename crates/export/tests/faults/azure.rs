//! Azure's Blob service as far as exports use it: block blobs, both ways to be allowed, checksums.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use export::run::{Event, Settings, Target, to_store};
use export::store::Store;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use image::MemoryDisk;
use tokio_util::sync::CancellationToken;

use crate::server::{Body, Server, full, serve};
use crate::{Dice, MIB, content, image_of, job, noise};

pub const KEY: &[u8] = b"a key of the account";

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Bytes>,
    blocks: BTreeMap<String, BTreeMap<String, Bytes>>,
}

pub struct Blobs {
    state: Mutex<State>,
    dice: Dice,
    percent: u64,
    /// Blocks that were uploaded.
    blocks: AtomicU64,
}

pub async fn start(seed: u64, percent: u64) -> (Arc<Blobs>, String) {
    let blobs = Arc::new(Blobs {
        state: Mutex::default(),
        dice: Dice::new(seed),
        percent,
        blocks: AtomicU64::new(0),
    });
    let shared = blobs.clone();
    let address = serve(move |request| {
        let blobs = shared.clone();
        async move { blobs.answer(request).await }
    })
    .await;
    (blobs, format!("http://{address}"))
}

/// Percent-decodes.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).unwrap()
}

/// The check value of CRC-64/NVME, bit by bit, after its definition.
fn crc64(data: &[u8]) -> u64 {
    !data.iter().fold(u64::MAX, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x9a6c_9329_ac4b_c9b5 } else { 0 }
        })
    })
}

impl Blobs {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the service signs, made from the request as it came in.
    fn allowed(parts: &http::request::Parts, length: usize, query: &BTreeMap<String, String>) -> bool {
        if query.get("sig").is_some_and(|sig| sig == "signed") {
            return query.get("sv").is_some();
        }
        let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap());
        let length = if length == 0 { String::new() } else { length.to_string() };
        let mut lines = vec![
            parts.method.to_string(),
            String::new(),
            String::new(),
            length,
            String::new(),
            header("content-type").to_owned(),
        ];
        lines.extend(std::iter::repeat_n(String::new(), 6));
        let own: BTreeMap<&str, &str> = parts
            .headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .filter(|(name, _)| name.starts_with("x-ms-"))
            .collect();
        lines.extend(own.iter().map(|(name, value)| format!("{name}:{value}")));
        lines.push(format!("/account{}", parts.uri.path()));
        lines.extend(query.iter().map(|(name, value)| format!("{name}:{value}")));
        let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
        let signature = BASE64_STANDARD.encode(hmac::sign(&key, lines.join("\n").as_bytes()));
        header("authorization") == format!("SharedKey account:{signature}") && !header("x-ms-date").is_empty()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return full(StatusCode::BAD_REQUEST, "") };
        let body = body.to_bytes();
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query: BTreeMap<String, String> =
            pairs.map(|(name, value)| (decode(name), decode(value))).collect();
        if !Self::allowed(&parts, body.len(), &query) {
            return full(StatusCode::FORBIDDEN, "<Error><Code>AuthenticationFailed</Code></Error>");
        }
        let fails = self.dice.below(100) < self.percent;
        if fails && self.dice.below(2) == 0 {
            return full(StatusCode::SERVICE_UNAVAILABLE, "<Error><Code>ServerBusy</Code></Error>");
        }
        let answer = self.act(&parts, &query, body);
        if fails { full(StatusCode::INTERNAL_SERVER_ERROR, "") } else { answer }
    }

    fn act(
        &self,
        parts: &http::request::Parts,
        query: &BTreeMap<String, String>,
        body: Bytes,
    ) -> Response<Body> {
        let key = decode(parts.uri.path().trim_start_matches("/backups").trim_start_matches('/'));
        let mut state = self.state();
        match (&parts.method, query.get("comp").map(String::as_str)) {
            (&Method::PUT, Some("block")) => {
                let sum = parts.headers.get("x-ms-content-crc64").unwrap().to_str().unwrap();
                if sum != BASE64_STANDARD.encode(crc64(&body).to_le_bytes()) {
                    return full(StatusCode::BAD_REQUEST, "<Error><Code>Crc64Mismatch</Code></Error>");
                }
                self.blocks.fetch_add(1, Ordering::SeqCst);
                state.blocks.entry(key).or_default().insert(query["blockid"].clone(), body);
                full(StatusCode::CREATED, "")
            }
            (&Method::PUT, Some("blocklist")) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let known = state.blocks.get(&key).cloned().unwrap_or_default();
                let mut whole = Vec::new();
                for id in text.split("<Latest>").skip(1).filter_map(|rest| rest.split_once("</Latest>")) {
                    let Some(block) = known.get(id.0) else {
                        return full(StatusCode::BAD_REQUEST, "<Error><Code>InvalidBlockList</Code></Error>");
                    };
                    whole.extend_from_slice(block);
                }
                // Committed again after a lost answer: the blocks are still known.
                state.blobs.insert(key, whole.into());
                full(StatusCode::CREATED, "")
            }
            (&Method::PUT, None) => {
                assert_eq!(parts.headers.get("x-ms-blob-type").unwrap(), "BlockBlob");
                state.blobs.insert(key, body);
                full(StatusCode::CREATED, "")
            }
            (&Method::GET, Some("blocklist")) => {
                let Some(blocks) = state.blocks.get(&key).filter(|_| !state.blobs.contains_key(&key)) else {
                    return full(StatusCode::NOT_FOUND, "<Error><Code>BlobNotFound</Code></Error>");
                };
                let list = blocks
                    .iter()
                    .map(|(id, data)| format!("<Block><Name>{id}</Name><Size>{}</Size></Block>", data.len()));
                let list = list.collect::<Vec<_>>().concat();
                full(
                    StatusCode::OK,
                    format!("\u{feff}<BlockList><UncommittedBlocks>{list}</UncommittedBlocks></BlockList>"),
                )
            }
            (&Method::GET, Some("list")) => {
                let prefix = &query["prefix"];
                let names = state.blobs.keys().filter(|name| name.starts_with(prefix.as_str()));
                let list = names
                    .map(|name| format!("<Blob><Name>{name}</Name></Blob>"))
                    .collect::<Vec<_>>()
                    .concat();
                full(StatusCode::OK, format!("<R><Blobs>{list}</Blobs><NextMarker/></R>"))
            }
            (&Method::DELETE, None) => match state.blobs.remove(&key) {
                None => full(StatusCode::NOT_FOUND, "<Error><Code>BlobNotFound</Code></Error>"),
                Some(_) => full(StatusCode::ACCEPTED, ""),
            },
            (&Method::HEAD | &Method::GET, None) => {
                let Some(data) = state.blobs.get(&key) else { return full(StatusCode::NOT_FOUND, "") };
                let range = parts.headers.get("x-ms-range").map(|value| value.to_str().unwrap().to_owned());
                let Some((start, last)) =
                    range.as_deref().and_then(|text| text.strip_prefix("bytes=")?.split_once('-'))
                else {
                    let mut head = full(StatusCode::OK, "");
                    head.headers_mut().insert("content-length", data.len().into());
                    return head;
                };
                let (start, end) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1);
                full(StatusCode::PARTIAL_CONTENT, data.slice(start..end))
            }
            _ => full(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
    }
}

fn store(endpoint: &str, secret: (&str, &str)) -> export::Result<Arc<Store>> {
    let env = |name: &str| match name {
        "AZURE_STORAGE_ACCOUNT" => Some("account".to_owned()),
        name if name == secret.0 => Some(secret.1.to_owned()),
        _ => None,
    };
    Store::open(&format!("az://backups/a b/nightly?endpoint={endpoint}"), &env).map(Arc::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_go_to_azure_with_a_key_or_a_signature_and_survive_its_faults() {
    let key = BASE64_STANDARD.encode(KEY);
    for (seed, secret) in
        [("AZURE_STORAGE_KEY", key.as_str()), ("AZURE_STORAGE_SAS_TOKEN", "?sv=2021&sig=signed")]
            .into_iter()
            .enumerate()
    {
        for target in [Target::Qcow2, Target::Ova] {
            let dice = Dice::new(seed as u64 + 7);
            let original = content(&dice);
            let server = Server::start(original.clone(), seed as u64, 0).await;
            let (blobs, endpoint) = start(seed as u64, 20).await;
            let name = if target == Target::Ova { "vm.ova" } else { "vm-root.qcow2" };
            for attempt in 0.. {
                assert!(attempt < 20, "it never succeeded");
                let settings = Settings { verify: true, resume: attempt > 0, ..Settings::new(target) };
                let (job, to) = (job(&server).await.unwrap(), store(&endpoint, secret).unwrap());
                let done = to_store(&job, to, &settings, Arc::new(|_| {}), CancellationToken::new()).await;
                if done.is_ok() {
                    break;
                }
            }
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("object");
            std::fs::write(&path, &blobs.state().blobs[&format!("a b/nightly/{name}")]).unwrap();
            let image = image_of(target, &path).unwrap();
            assert_eq!(image::compare(&MemoryDisk(original), &*image).unwrap(), None);
            let keys = store(&endpoint, secret).unwrap().list("a b/").await.unwrap();
            assert!(keys.iter().any(|key| key.ends_with("vm.export.json")), "{keys:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_azure_has_are_not_sent_again_and_a_wrong_key_is_told_at_once() {
    let noise = noise(&Dice::new(1));
    let mut original = vec![0; 40 * MIB];
    original.chunks_exact_mut(noise.len()).for_each(|piece| piece.copy_from_slice(&noise));
    let server = Server::start(original, 1, 0).await;
    let (blobs, endpoint) = start(1, 0).await;
    let wrong = BASE64_STANDARD.encode("another key");
    let job = job(&server).await.unwrap();
    let settings = Settings::new(Target::Qcow2);
    let to = store(&endpoint, ("AZURE_STORAGE_KEY", &wrong)).unwrap();
    let refused =
        to_store(&job, to, &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
    let key = BASE64_STANDARD.encode(KEY);
    let stop = CancellationToken::new();
    let token = stop.clone();
    let listener: export::run::Listener = Arc::new(move |event| {
        if matches!(event, Event::Progress { done, .. } if done >= 36 * MIB as u64) {
            token.cancel();
        }
    });
    let to = || store(&endpoint, ("AZURE_STORAGE_KEY", &key)).unwrap();
    assert!(to_store(&job, to(), &settings, listener, stop).await.is_err());
    let before = blobs.blocks.load(Ordering::SeqCst);
    let settings = Settings { resume: true, verify: true, ..settings };
    to_store(&job, to(), &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap();
    assert_eq!(
        (before, blobs.blocks.load(Ordering::SeqCst) - before),
        (3, 3),
        "blocks sent before and after"
    );
}
