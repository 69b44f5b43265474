//! A plain HTTP server that takes `PUT`, and tells what it was sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use export::run::{Event, Settings, Target, to_pipe, to_web};
use export::store::Web;
use export::sums::{hex, sha256};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use image::MemoryDisk;
use image::qcow2::Compression;
use tokio_util::sync::CancellationToken;

use crate::server::{Body, Server, full, serve};
use crate::{Dice, content, image_of, job};

#[derive(Default)]
struct Files {
    kept: Mutex<BTreeMap<String, Bytes>>,
    /// Uploads of this name are refused after their first bytes.
    refused: Mutex<Option<&'static str>>,
    /// Ranges are answered with everything.
    no_ranges: AtomicBool,
}

impl Files {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        if parts.headers.get("authorization").is_none_or(|value| value != "Basic dXNlcjpwYXNz") {
            return full(StatusCode::UNAUTHORIZED, "who are you?");
        }
        let name = parts.uri.path().trim_start_matches("/up/").to_owned();
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match parts.method {
            Method::PUT if refused.is_some_and(|refused| name.ends_with(refused)) => {
                let _ = body.frame().await;
                full(StatusCode::INSUFFICIENT_STORAGE, "the disk of the server is full")
            }
            Method::PUT => {
                // What breaks off is not kept.
                let Ok(body) = body.collect().await else { return full(StatusCode::BAD_REQUEST, "") };
                self.files().insert(name, body.to_bytes());
                full(StatusCode::CREATED, "")
            }
            Method::HEAD => match self.files().get(&name) {
                None => full(StatusCode::NOT_FOUND, ""),
                Some(file) => {
                    let mut head = full(StatusCode::OK, "");
                    head.headers_mut().insert("content-length", file.len().into());
                    head
                }
            },
            Method::GET => {
                let Some(file) = self.files().get(&name).cloned() else {
                    return full(StatusCode::NOT_FOUND, "");
                };
                let range = parts.headers["range"].to_str().unwrap().strip_prefix("bytes=").unwrap();
                let (start, last) = range.split_once('-').unwrap();
                let (start, end) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1);
                if self.no_ranges.load(Ordering::SeqCst) {
                    return full(StatusCode::OK, file);
                }
                full(StatusCode::PARTIAL_CONTENT, file.slice(start..end))
            }
            _ => full(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
    }
}

async fn start() -> (Arc<Files>, Arc<Web>) {
    let files = Arc::new(Files::default());
    let shared = files.clone();
    let address = serve(move |request| {
        let files = shared.clone();
        async move { files.answer(request).await }
    })
    .await;
    (files, Arc::new(Web::open(&format!("http://user:pass@{address}/up"), &|_| None).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_is_put_to_a_plain_http_server_bit_for_bit() {
    let original = content(&Dice::new(3));
    let server = Server::start(original.clone(), 3, 10).await;
    for (target, compression) in [
        (Target::Raw, Compression::None),
        (Target::Qcow2, Compression::None),
        (Target::Qcow2, Compression::Zstd),
        (Target::Vmdk, Compression::None),
        (Target::Ova, Compression::None),
    ] {
        let (files, web) = start().await;
        let settings = Settings { compression, verify: true, ..Settings::new(target) };
        let job = job(&server).await.unwrap();
        let report = to_web(&job, &web, &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap();
        let name = report.files[0].name.clone();
        let dir = tempfile::tempdir().unwrap();
        let file = files.files()[&name].clone();
        std::fs::write(dir.path().join("file"), &file).unwrap();
        let sum = hex(&sha256(&file));
        assert_eq!(
            (report.files[0].size, &report.files[0].sha256),
            (file.len() as u64, &Some(sum)),
            "{target:?}"
        );
        let image = image_of(target, &dir.path().join("file")).unwrap();
        assert_eq!(image::compare(&MemoryDisk(original.clone()), &*image).unwrap(), None, "{target:?}");
        assert!(files.files().contains_key("vm.export.json"));
        let again = to_web(&job, &web, &settings, Arc::new(|_| {}), CancellationToken::new()).await;
        assert!(again.unwrap_err().to_string().contains("exists already"), "{target:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plain_server_kept_is_read_back_or_said_to_be_unreadable() {
    let server = Server::start(content(&Dice::new(6)), 6, 0).await;
    for target in [Target::Raw, Target::Ova] {
        let (files, web) = start().await;
        files.no_ranges.store(true, Ordering::SeqCst);
        let settings = Settings { verify: true, ..Settings::new(target) };
        let job = job(&server).await.unwrap();
        let none = || -> export::run::Listener { Arc::new(|_| {}) };
        let refused = to_web(&job, &web, &settings, none(), CancellationToken::new()).await.unwrap_err();
        assert!(refused.to_string().contains("the server ignores ranges"), "{target:?}: {refused}");
        assert!(!files.files().contains_key("vm.export.json"), "it is not said to be whole");
        // A byte changes on the server's disk while the export is verified.
        files.no_ranges.store(false, Ordering::SeqCst);
        let spoiled = files.clone();
        let listener: export::run::Listener = Arc::new(move |event| {
            if matches!(event, Event::Verifying { .. }) {
                for file in spoiled.files().values_mut() {
                    let mut bytes = file.to_vec();
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                    *file = bytes.into();
                }
            }
        });
        let settings = Settings { force: true, ..settings };
        let wrong = to_web(&job, &web, &settings, listener, CancellationToken::new()).await;
        assert!(wrong.is_err(), "{target:?}: a changed byte passed for the one that was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ovf_is_a_package_on_a_plain_server_too() {
    let original = content(&Dice::new(7));
    let server = Server::start(original.clone(), 7, 0).await;
    let (files, web) = start().await;
    let settings = Settings { verify: true, ..Settings::new(Target::Ovf) };
    let job = job(&server).await.unwrap();
    to_web(&job, &web, &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap();
    crate::is_package(&files.files(), &original);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_is_quoted_and_keeps_nothing_short() {
    let server = Server::start(content(&Dice::new(4)), 4, 0).await;
    let (files, web) = start().await;
    *files.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some("vm-root.vmdk");
    let settings = Settings::new(Target::Vmdk);
    let job = job(&server).await.unwrap();
    let failed = to_web(&job, &web, &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap_err();
    assert!(!files.files().contains_key("vm-root.vmdk"));
    assert!(failed.to_string().contains("vm-root.vmdk") || failed.to_string().contains("root"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piped_qcow2_is_byte_for_byte_the_one_that_is_written_to_a_file() {
    let original = content(&Dice::new(5));
    let server = Server::start(original, 5, 0).await;
    for compression in [Compression::None, Compression::Zstd, Compression::Deflate] {
        let settings = Settings { compression, ..Settings::new(Target::Qcow2) };
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("piped")).unwrap();
        let sink = std::io::BufWriter::new(file);
        let listener = || -> export::run::Listener { Arc::new(|_| {}) };
        let stop = CancellationToken::new;
        to_pipe(&job(&server).await.unwrap(), sink, &settings, listener(), stop()).await.unwrap();
        let job = job(&server).await.unwrap();
        export::run::to_directory(&job, dir.path(), &settings, listener(), stop()).await.unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(read("piped") == read("vm-root.qcow2"), "{compression:?}");
    }
}
