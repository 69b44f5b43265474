//! A backup in Pull mode that misbehaves: its extent map, and data whose length nobody states.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use export::run::{Target, to_directory};
use export::source::Source as _;
use export::source::backup::BackupSource;
use export::source::http::{Access, Directory, Secret};
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use image::qcow2::Compression;
use image::{Backing, Format, MemoryDisk, Options};
use serde_json::{Value, json};

use crate::server::{Body, full, serve};
use crate::{Dice, content, job_of, killer, noise, settings, tear};

const ZERO: u64 = 2;
const DIRTY: u64 = 1;
/// What the guest writes at once.
const PAGE: usize = 4096;

/// The tunnel's end, and who knows how to reach it.
struct Tunnel {
    address: std::net::SocketAddr,
    disk: Vec<u8>,
    extents: Vec<(Range<usize>, u64)>,
    dice: Dice,
    percent: AtomicU64,
    faults: AtomicU64,
    generation: AtomicU64,
    /// The map ends after so many extents, as if that were all; 0: where the disk does.
    map_ends_after: AtomicU64,
}

/// The map of a disk: what is zero, and since `before` what is dirty. Extents have any lengths.
fn extents(disk: &[u8], before: Option<&[u8]>, dice: &Dice) -> Vec<(Range<usize>, u64)> {
    let mut out: Vec<(Range<usize>, u64)> = Vec::new();
    for start in (0..disk.len()).step_by(PAGE) {
        let range = start..(start + PAGE).min(disk.len());
        let page = &disk[range.clone()];
        let zero = if image::is_zero(page) { ZERO } else { 0 };
        let flags = match before {
            Some(before) if before[range.clone()] != *page => zero | DIRTY,
            // A hole of a full map has the bit, too.
            None if zero > 0 => zero | dice.below(2),
            _ => zero,
        };
        match out.last_mut() {
            Some((last, same)) if *same == flags && dice.below(50) > 0 => last.end = range.end,
            _ => out.push((range, flags)),
        }
    }
    out
}

/// A body of which nobody says how long it is; `None` breaks it off.
fn unstated(pieces: Vec<Option<Bytes>>) -> Response<Body> {
    let pieces = pieces.into_iter().map(|piece| match piece {
        Some(data) => Ok(Frame::data(data)),
        None => Err(std::io::ErrorKind::ConnectionReset.into()),
    });
    let stream = futures::stream::iter(pieces).then(|piece| async {
        tokio::task::yield_now().await;
        piece
    });
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
}

impl Tunnel {
    async fn start(disk: Vec<u8>, before: Option<&[u8]>, seed: u64, percent: u64) -> Arc<Self> {
        let shared: Arc<OnceLock<Arc<Self>>> = Arc::default();
        let late = shared.clone();
        let address =
            serve(move |request| {
                let tunnel = late.get().cloned();
                async move {
                    tunnel.map_or_else(|| full(StatusCode::SERVICE_UNAVAILABLE, ""), |t| t.answer(&request))
                }
            })
            .await;
        let dice = Dice::new(seed);
        let extents = extents(&disk, before, &dice);
        let (percent, faults, generation, map_ends_after) = (percent.into(), 0.into(), 1.into(), 0.into());
        let tunnel =
            Arc::new(Self { address, disk, extents, dice, percent, faults, generation, map_ends_after });
        let _ = shared.set(tunnel.clone());
        tunnel
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let token = request.headers().get("x-kubevirt-export-token").and_then(|value| value.to_str().ok());
        if token != Some(&self.generation.load(Ordering::SeqCst).to_string()) {
            return full(StatusCode::UNAUTHORIZED, "");
        }
        let query = request.uri().query().unwrap_or_default();
        let number = |name: &str| -> usize {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.map_or(0, |text| text.parse().unwrap())
        };
        let fault = (self.dice.below(100) < self.percent.load(Ordering::SeqCst)).then(|| self.dice.below(6));
        self.faults.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
        match fault {
            Some(0) => full(StatusCode::SERVICE_UNAVAILABLE, "Backup source (virt-launcher) not connected"),
            Some(1) => {
                self.generation.fetch_add(1, Ordering::SeqCst);
                full(StatusCode::UNAUTHORIZED, "")
            }
            fault if request.uri().path().ends_with("/map") => self.map(number("offset"), fault),
            fault => self.data(number("offset"), number("length"), fault),
        }
    }

    fn map(&self, offset: usize, fault: Option<u64>) -> Response<Body> {
        let most = 1 + usize::try_from(self.dice.below(40)).unwrap();
        let rest: Vec<_> = self.extents.iter().filter(|(range, _)| range.start >= offset).collect();
        let shown = |(range, flags): &&(Range<usize>, u64)| json!({"offset": range.start, "length": range.len(), "type": flags, "description": ""});
        let mut page: Vec<Value> = rest.iter().take(most).map(shown).collect();
        let mut next = rest.get(most).map(|(range, _)| range.start);
        match fault {
            // an extent is lost
            Some(3) if page.len() > 1 => drop(page.remove(page.len() / 2)),
            // it would never end
            Some(4) => next = Some(offset),
            // it ends early
            Some(5) => {
                page.truncate(page.len() / 2);
                next = None;
            }
            _ => {}
        }
        match usize::try_from(self.map_ends_after.load(Ordering::SeqCst)).unwrap() {
            0 => {}
            most => {
                page.truncate(most);
                next = None;
            }
        }
        let text = Bytes::from(json!({"extents": page, "next_offset": next}).to_string());
        match fault {
            Some(2) => unstated(vec![Some(text.slice(..text.len() / 2)), None]),
            _ => full(StatusCode::OK, text),
        }
    }

    fn data(&self, offset: usize, length: usize, fault: Option<u64>) -> Response<Body> {
        // As the launcher does: behind the end there is nothing.
        let end = (offset + length).min(self.disk.len());
        let data = Bytes::copy_from_slice(&self.disk[offset..end]);
        let length = data.len();
        let half = data.slice(..length / 2);
        match fault {
            // the connection is cut in the middle
            Some(2) => unstated(vec![Some(half), None]),
            // fewer bytes, and the stream ends as if they were all
            Some(3) => unstated(vec![Some(half)]),
            // more than was asked for
            Some(_) => unstated(vec![Some(data), Some(Bytes::from_static(b"more"))]),
            None => unstated(vec![Some(half), Some(data.slice(length / 2..))]),
        }
    }
}

#[async_trait]
impl Directory for Tunnel {
    async fn access(&self, volume: &str) -> export::Result<Access> {
        let token = Secret(self.generation.load(Ordering::SeqCst).to_string());
        let url = format!("http://{}/{volume}", self.address);
        Ok(Access { url, ca: String::new(), headers: vec![("x-kubevirt-export-token".into(), token)] })
    }
}

/// A disk some time later: pages written, and pages discarded.
fn later(before: &[u8], dice: &Dice) -> Vec<u8> {
    let mut disk = before.to_vec();
    let noise = noise(dice);
    for _ in 0..dice.below(30) {
        let pages = u64::try_from(disk.len() / PAGE).unwrap();
        let start = PAGE * usize::try_from(dice.below(pages)).unwrap();
        let end = (start + PAGE * usize::try_from(1 + dice.below(40)).unwrap()).min(disk.len());
        for page in disk[start..end].chunks_mut(PAGE) {
            match dice.below(3) {
                0 => page.fill(0),
                _ => page.copy_from_slice(&noise[..page.len()]),
            }
        }
    }
    disk
}

/// What an export of the day before left in `directory`.
fn earlier(directory: &Path, disk: &[u8]) {
    std::fs::create_dir(directory).unwrap();
    let file = std::fs::File::create(directory.join("vm-root.qcow2")).unwrap();
    let options = Options::new(Format::Qcow2);
    image::convert(&MemoryDisk(disk.to_vec()), file, &options, &mut |_| true).unwrap();
}

/// One export through a backup, again and again until it succeeds: how often it failed, and how many faults it met.
async fn case(seed: u64) -> (u32, u64) {
    let dice = Dice::new(seed);
    let before = content(&dice);
    let incremental = dice.below(2) == 0;
    let disk = if incremental { later(&before, &dice) } else { before.clone() };
    let targets = [Target::Raw, Target::Qcow2, Target::Vmdk, Target::Ova];
    let target = if incremental { Target::Qcow2 } else { targets[usize::try_from(dice.below(4)).unwrap()] };
    let compression = [Compression::None, Compression::Zstd][usize::try_from(dice.below(2)).unwrap()];
    let since = incremental.then_some(before.as_slice());
    let tunnel = Tunnel::start(disk.clone(), since, seed, 30).await;
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("tuesday");
    std::fs::create_dir(&directory).unwrap();
    earlier(&root.path().join("monday"), &before);
    let name =
        if target == Target::Ova { "vm.ova".into() } else { format!("vm-root.{}", target.extension()) };
    let result = directory.join(&name);
    for attempt in 0..40 {
        let (listener, stop) = killer(&dice, attempt);
        let mut settings = settings(target, &dice, attempt);
        settings.compression = if target == Target::Qcow2 { compression } else { Compression::None };
        let opened = BackupSource::open("volume root", "root", tunnel.clone(), incremental).await;
        let outcome = match opened {
            Ok(source) => {
                assert_eq!(source.size(), disk.len() as u64, "seed {seed}: the map is short");
                let base = incremental.then(|| Backing {
                    file: "../monday/vm-root.qcow2".into(),
                    format: Format::Qcow2,
                    changed: source.changed().to_vec(),
                });
                to_directory(&job_of(Arc::new(source), base), &directory, &settings, listener, stop).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => {
                let image = match target {
                    Target::Ova => crate::image_of(target, &result).unwrap(),
                    _ => Box::new(image::open_path(&result).unwrap().0),
                };
                let difference = image::compare(&MemoryDisk(disk), &*image).unwrap();
                assert_eq!(difference, None, "seed {seed}: {target:?} is not what the source holds");
                return (attempt, tunnel.faults.load(Ordering::SeqCst));
            }
            Err(error) => {
                assert!(!result.exists(), "seed {seed}: a failed export has its final name");
                let text = error.to_string();
                let stopped = matches!(error, export::Error::Stopped);
                assert!(stopped || text.len() > 20, "seed {seed}: `{text}` says nothing");
            }
        }
        if dice.below(2) == 0 {
            tear(&directory, &dice);
        }
        if attempt > 4 {
            tunnel.percent.store(8, Ordering::SeqCst);
        }
    }
    panic!("seed {seed}: it never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_backups_through_random_faults_end_bit_exact_or_with_an_error_to_go_on_from() {
    let cases = (1000..1100_u64).map(|seed| async move {
        let ended = tokio::time::timeout(Duration::from_mins(20), case(seed)).await;
        ended.unwrap_or_else(|_| panic!("seed {seed} hangs"))
    });
    let ended: Vec<(u32, u64)> = futures::stream::iter(cases).buffer_unordered(24).collect().await;
    let failed: u32 = ended.iter().map(|(failed, _)| failed).sum();
    let faults: u64 = ended.iter().map(|(_, faults)| faults).sum();
    eprintln!("100 backups met {faults} faults of the tunnel; {failed} runs failed before all were whole");
    assert!(failed >= 50 && faults >= 100, "{failed} failed runs, {faults} faults: they are too tame");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_ends_early_is_an_error_and_not_a_smaller_disk() {
    let disk = content(&Dice::new(40));
    for incremental in [false, true] {
        let before = later(&disk, &Dice::new(41));
        let since = incremental.then_some(before.as_slice());
        let tunnel = Tunnel::start(disk.clone(), since, 40, 0).await;
        let open = || BackupSource::open("volume root", "root", tunnel.clone(), incremental);
        assert_eq!(open().await.unwrap().size(), disk.len() as u64);
        assert!(tunnel.extents.len() > 3);
        tunnel.map_ends_after.store(2, Ordering::SeqCst);
        let wrong = open().await.unwrap_err().to_string();
        let end = tunnel.extents[1].0.end;
        let says = format!("its extent map ends at {end} bytes, and the disk goes on behind that");
        assert!(wrong.contains(&says), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_map_is_no_disk() {
    let tunnel = Tunnel::start(Vec::new(), None, 42, 0).await;
    let wrong = BackupSource::open("volume root", "root", tunnel, false).await.unwrap_err().to_string();
    assert!(wrong.contains("its extent map is empty"), "{wrong}");
}
