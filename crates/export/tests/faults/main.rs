//! Exports through hundreds of random faults: the result is bit for bit what the source holds, or
//! there is an error that says what went wrong, and the next run goes on from there. Never is there
//! a file under its final name that is not whole.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod azure;
mod backup;
mod beside;
mod gs;
mod s3;
mod server;
mod sigv4;
mod web;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use export::lineage::Lineage;
use export::machine::VmVolume;
use export::run::{Event, ExportDisk, Job, Settings, Target, to_directory, to_store};
use export::source::Source;
use export::source::http::{HttpSource, Secret};
use export::store::{Credentials, Location};
use export::{Error, Window};
use futures::StreamExt as _;
use image::MemoryDisk;
use image::qcow2::Compression;
use server::Server;
use tokio_util::sync::CancellationToken;

const MIB: usize = 1 << 20;

/// Random numbers that a seed decides, for many tasks.
struct Dice(AtomicU64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// splitmix64
    fn below(&self, limit: u64) -> u64 {
        let state =
            self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// 64 KiB that cannot be compressed much.
fn noise(dice: &Dice) -> Vec<u8> {
    (0..8192).flat_map(|_| dice.below(u64::MAX).to_le_bytes()).collect()
}

/// A disk of some MiB and an odd rest: data, holes, data.
fn content(dice: &Dice) -> Vec<u8> {
    let size = 4 * MIB + 512 * usize::try_from(1 + dice.below(2000)).unwrap();
    let mut data = vec![0; size];
    let noise = noise(dice);
    for piece in data.chunks_exact_mut(noise.len()) {
        match dice.below(4) {
            0 | 1 => {}
            2 => piece.fill(u8::try_from(dice.below(255)).unwrap() + 1),
            _ => piece.copy_from_slice(&noise),
        }
    }
    data
}

async fn job(server: &Arc<Server>) -> export::Result<Job> {
    let source = HttpSource::open("volume root", "root", server.clone()).await?;
    Ok(job_of(Arc::new(source), None))
}

fn job_of(source: Arc<dyn Source>, base: Option<image::Backing>) -> Job {
    let disks = vec![ExportDisk { volume: VmVolume::plain("root"), source, base }];
    Job {
        name: "vm".into(),
        source: "VirtualMachine ns/vm".into(),
        vm: serde_json::Value::Null,
        expanded: serde_json::Value::Null,
        vmi: None,
        disks,
        lineage: Lineage::default(),
    }
}

fn settings(target: Target, dice: &Dice, attempt: u32) -> Settings {
    // Few tries make errors reach the surface; they are more in later runs, so that the test ends.
    let window = Window { chunks: 3, tries: 1 + attempt * 2, ..Window::default() };
    let compression = [Compression::None, Compression::Zstd][usize::try_from(dice.below(2)).unwrap()];
    let compression = if target == Target::Qcow2 { compression } else { Compression::None };
    Settings {
        compression,
        window,
        level: Some(1),
        resume: attempt > 0,
        checkpoint_bytes: MIB as u64,
        verify: dice.below(2) == 0,
        ..Settings::new(target)
    }
}

fn image_of(target: Target, path: &Path) -> image::Result<Box<dyn image::Disk>> {
    let file = std::fs::File::open(path).unwrap();
    if target == Target::Ova {
        let package = image::ovf::Package::open_archive(Arc::new(file))?;
        assert_eq!(package.check_manifest()?, Vec::<String>::new());
        return Ok(package.disk(0)?.unwrap().disk);
    }
    Ok(image::open(file)?.0)
}

/// The files of an OVF package that holds a disk.
fn is_package(files: &BTreeMap<String, Bytes>, original: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let package = image::ovf::Package::open_descriptor(&dir.path().join("vm.ovf")).unwrap();
    assert_eq!(package.check_manifest().unwrap(), Vec::<String>::new());
    assert_eq!(package.manifest.as_ref().unwrap().lines.len(), 2, "descriptor and disk");
    let disk = package.disk(0).unwrap().unwrap();
    assert_eq!(disk.described.file_size, files["vm-root.vmdk"].len() as u64);
    assert_eq!(image::compare(&MemoryDisk(original.to_vec()), &*disk.disk).unwrap(), None);
    assert!(files.contains_key("vm.export.json"));
}

/// What a kill leaves: a torn line in the journal, and bytes behind the last checkpoint.
fn tear(directory: &Path, dice: &Dice) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if name.ends_with(".journal") {
            let length = std::fs::metadata(&path).unwrap().len();
            let torn = length.saturating_sub(dice.below(40));
            OpenOptions::new().write(true).open(&path).unwrap().set_len(torn).unwrap();
        } else if name.ends_with(".partial") {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&vec![0xaa; usize::try_from(dice.below(100_000)).unwrap()]).unwrap();
        }
    }
}

/// Stops one run of three somewhere on its way, as a kill does.
fn killer(dice: &Dice, attempt: u32) -> (export::run::Listener, CancellationToken) {
    let stop = CancellationToken::new();
    let killed = dice.below(3) == 0 && attempt < 6;
    let after = dice.below(5 * MIB as u64);
    let token = stop.clone();
    let listener: export::run::Listener = Arc::new(move |event| {
        if let Event::Progress { done, .. } = event
            && killed
            && done >= after
        {
            token.cancel();
        }
    });
    (listener, stop)
}

/// One export to a directory, again and again until it succeeds: how often it failed, and how many
/// faults it met.
async fn directory_case(seed: u64) -> (u32, u64) {
    let dice = Dice::new(seed);
    let original = content(&dice);
    let targets = [Target::Raw, Target::Qcow2, Target::Vmdk, Target::Ova];
    let target = targets[usize::try_from(dice.below(4)).unwrap()];
    let server = Server::start(original.clone(), seed, 40).await;
    let dir = tempfile::tempdir().unwrap();
    let name =
        if target == Target::Ova { "vm.ova".into() } else { format!("vm-root.{}", target.extension()) };
    let result = dir.path().join(&name);
    let compression = Dice::new(seed);
    let full = dice.below(8) == 0 && target != Target::Raw;
    if full {
        // The first run finds a full disk.
        std::os::unix::fs::symlink("/dev/full", dir.path().join(format!("{name}.partial"))).unwrap();
    }
    for attempt in 0..40 {
        let (listener, stop) = killer(&dice, attempt);
        let mut settings = settings(target, &dice, attempt);
        settings.compression =
            if target == Target::Qcow2 && compression.0.load(Ordering::SeqCst).is_multiple_of(2) {
                Compression::Zstd
            } else {
                Compression::None
            };
        let outcome = match job(&server).await {
            Ok(job) => to_directory(&job, dir.path(), &settings, listener, stop).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(report) => {
                assert!(!full || attempt > 0, "seed {seed}: it fitted into a full disk");
                let image = image_of(target, &result).unwrap();
                let difference = image::compare(&MemoryDisk(original), &*image).unwrap();
                assert_eq!(difference, None, "seed {seed}: {target:?} is not what the source holds");
                assert_eq!(report.files[0].size, std::fs::metadata(&result).unwrap().len());
                return (attempt, server.faults.load(Ordering::SeqCst));
            }
            Err(error) => {
                assert!(!result.exists(), "seed {seed}: a failed export has its final name");
                let text = error.to_string();
                assert!(
                    matches!(error, Error::Stopped) || text.len() > 20,
                    "seed {seed}: `{text}` says nothing"
                );
                if full && attempt == 0 && text.contains("space") {
                    assert!(text.contains("No space left"), "seed {seed}: {text}");
                }
            }
        }
        if full && attempt == 0 {
            std::fs::remove_file(dir.path().join(format!("{name}.partial"))).unwrap();
        }
        if dice.below(2) == 0 {
            tear(dir.path(), &dice);
        }
        if attempt > 4 {
            server.percent.store(10, Ordering::SeqCst);
        }
    }
    panic!("seed {seed}: it never succeeded");
}

/// The same into a store.
async fn store_case(seed: u64) -> (u32, u64) {
    let dice = Dice::new(seed);
    let original = content(&dice);
    let target =
        [Target::Qcow2, Target::Vmdk, Target::Ova, Target::Raw][usize::try_from(dice.below(4)).unwrap()];
    let server = Server::start(original.clone(), seed, 20).await;
    let (backend, endpoint) = s3::Store::start(seed, 20).await;
    let url = format!("s3://bucket/backups?endpoint={endpoint}");
    let location = Location::parse(&url, &|_| None).unwrap();
    let keys = || Credentials { id: "test".into(), secret: Secret("secret".into()), session: None };
    let name =
        if target == Target::Ova { "vm.ova".into() } else { format!("vm-root.{}", target.extension()) };
    let key = format!("backups/{name}");
    for attempt in 0..40 {
        let store =
            Arc::new(export::store::Store::from(export::store::S3::new(location.clone(), keys()).unwrap()));
        let settings = Settings { verify: true, ..settings(target, &dice, attempt) };
        let outcome = match job(&server).await {
            Ok(job) => to_store(&job, store, &settings, Arc::new(|_| {}), CancellationToken::new()).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => {
                let object = backend.object(&key).unwrap().to_vec();
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("object");
                std::fs::write(&path, &object).unwrap();
                let image = image_of(target, &path).unwrap();
                let difference = image::compare(&MemoryDisk(original), &*image).unwrap();
                assert_eq!(difference, None, "seed {seed}: {target:?} is not what the source holds");
                return (attempt, server.faults.load(Ordering::SeqCst));
            }
            Err(error) => assert!(error.to_string().len() > 20, "seed {seed}: `{error}` says nothing"),
        }
        if attempt > 3 {
            backend.percent.store(5, Ordering::SeqCst);
            server.percent.store(5, Ordering::SeqCst);
        }
    }
    panic!("seed {seed}: it never succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_random_faults_end_bit_exact_or_with_an_error_to_go_on_from() {
    let cases = (0..200_u64).map(|seed| async move {
        let case = async { if seed % 4 == 3 { store_case(seed).await } else { directory_case(seed).await } };
        let ended = tokio::time::timeout(Duration::from_mins(20), case).await;
        ended.unwrap_or_else(|_| panic!("seed {seed} hangs"))
    });
    let ended: Vec<(u32, u64)> = futures::stream::iter(cases).buffer_unordered(24).collect().await;
    let failed: u32 = ended.iter().map(|(failed, _)| failed).sum();
    let faults: u64 = ended.iter().map(|(_, faults)| faults).sum();
    eprintln!("200 exports met {faults} faults of the server; {failed} runs failed before all were whole");
    assert!(failed >= 100 && faults >= 200, "{failed} failed runs, {faults} faults: they are too tame");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ovf_in_a_store_is_a_package_and_files_written_in_order_have_their_digest() {
    let original = content(&Dice::new(8));
    let server = Server::start(original.clone(), 8, 0).await;
    for target in [Target::Ovf, Target::Raw, Target::Qcow2, Target::Ova] {
        let (backend, endpoint) = s3::Store::start(8, 0).await;
        let location = Location::parse(&format!("s3://bucket?endpoint={endpoint}"), &|_| None).unwrap();
        let keys = Credentials { id: "test".into(), secret: Secret("secret".into()), session: None };
        let store = Arc::new(export::store::Store::from(export::store::S3::new(location, keys).unwrap()));
        let settings = Settings { verify: true, ..Settings::new(target) };
        let job = job(&server).await.unwrap();
        let report =
            to_store(&job, store, &settings, Arc::new(|_| {}), CancellationToken::new()).await.unwrap();
        let file = &report.files[0];
        let object = backend.object(&file.name).unwrap();
        let sum = export::sums::hex(&export::sums::sha256(&object));
        // What is patched at its beginning was not written in order.
        let known = matches!(target, Target::Ovf | Target::Raw);
        assert_eq!(file.sha256, known.then_some(sum), "{target:?}");
        if target == Target::Ovf {
            is_package(&backend.objects(), &original);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_disk_that_begins_like_an_image_is_verified_as_what_it_is() {
    for magic in [b"QFI\xfb", b"KDMV"] {
        let mut original = content(&Dice::new(10));
        original[..4].copy_from_slice(magic);
        let server = Server::start(original.clone(), 10, 0).await;
        let settings = Settings { verify: true, ..Settings::new(Target::Raw) };
        let (none, stop) = (|| -> export::run::Listener { Arc::new(|_| {}) }, CancellationToken::new);
        let dir = tempfile::tempdir().unwrap();
        let here = job(&server).await.unwrap();
        to_directory(&here, dir.path(), &settings, none(), stop()).await.unwrap();
        assert!(std::fs::read(dir.path().join("vm-root.raw")).unwrap() == original);
        let (backend, endpoint) = s3::Store::start(10, 0).await;
        let location = Location::parse(&format!("s3://bucket?endpoint={endpoint}"), &|_| None).unwrap();
        let keys = Credentials { id: "test".into(), secret: Secret("secret".into()), session: None };
        let store = Arc::new(export::store::Store::from(export::store::S3::new(location, keys).unwrap()));
        let there = job(&server).await.unwrap();
        to_store(&there, store, &settings, none(), stop()).await.unwrap();
        assert!(backend.object("vm-root.raw").unwrap() == original);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_server_dies_goes_on_with_another_one() {
    let noise = noise(&Dice::new(9));
    let mut original = vec![0; 40 * MIB];
    original.chunks_exact_mut(noise.len()).for_each(|piece| piece.copy_from_slice(&noise));
    for target in [Target::Raw, Target::Qcow2, Target::Vmdk, Target::Ova] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(original.clone(), 9, 0).await;
        let dying = server.clone();
        let listener: export::run::Listener = Arc::new(move |event| {
            // Two chunks of ten are here or on their way by then.
            if matches!(event, Event::Progress { done, .. } if done > 0) {
                dying.die();
            }
        });
        let window = Window { chunks: 2, tries: 2, ..Window::default() };
        let settings = Settings { window, checkpoint_bytes: 1, ..Settings::new(target) };
        let job_here = job(&server).await.unwrap();
        let died = to_directory(&job_here, dir.path(), &settings, listener, CancellationToken::new()).await;
        let what = died.unwrap_err().to_string();
        assert!(what.contains("root"), "{target:?}: {what}");
        let name =
            if target == Target::Ova { "vm.ova".into() } else { format!("vm-root.{}", target.extension()) };
        assert!(!dir.path().join(&name).exists(), "{target:?}: it is not whole");
        let another = Server::start(original.clone(), 9, 0).await;
        let from = Arc::new(AtomicU64::new(0));
        let began = from.clone();
        let listener: export::run::Listener = Arc::new(move |event| {
            if let Event::Started { done, .. } = event {
                began.store(done, Ordering::SeqCst);
            }
        });
        let settings = Settings { resume: true, verify: true, ..settings };
        let job = job(&another).await.unwrap();
        to_directory(&job, dir.path(), &settings, listener, CancellationToken::new()).await.unwrap();
        assert!(from.load(Ordering::SeqCst) > 0, "{target:?}: it began at the beginning");
        let image = image_of(target, &dir.path().join(&name)).unwrap();
        assert_eq!(image::compare(&MemoryDisk(original.clone()), &*image).unwrap(), None, "{target:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_a_store_has_are_not_sent_again() {
    let dice = Dice::new(1);
    let noise = noise(&dice);
    let mut original = vec![0; 40 * MIB];
    original.chunks_exact_mut(noise.len()).for_each(|piece| piece.copy_from_slice(&noise));
    let server = Server::start(original.clone(), 1, 0).await;
    let (backend, endpoint) = s3::Store::start(1, 0).await;
    let location = Location::parse(&format!("s3://bucket?endpoint={endpoint}"), &|_| None).unwrap();
    let keys = Credentials { id: "test".into(), secret: Secret("secret".into()), session: None };
    let store = Arc::new(export::store::Store::from(export::store::S3::new(location, keys).unwrap()));
    let stop = CancellationToken::new();
    let token = stop.clone();
    let listener: export::run::Listener = Arc::new(move |event| {
        // By then part 1 waits for its header, and parts 2 to 4 are there or on their way.
        if matches!(event, Event::Progress { done, .. } if done >= 36 * MIB as u64) {
            token.cancel();
        }
    });
    let settings = Settings::new(Target::Qcow2);
    let stopped = to_store(&job(&server).await.unwrap(), store.clone(), &settings, listener, stop).await;
    assert!(stopped.is_err());
    assert_eq!(backend.unfinished(), 1, "what was uploaded is left to be used again");
    let before = backend.parts.load(Ordering::SeqCst);
    let settings = Settings { resume: true, verify: true, ..settings };
    let again = CancellationToken::new();
    to_store(&job(&server).await.unwrap(), store, &settings, Arc::new(|_| {}), again).await.unwrap();
    let sent = backend.parts.load(Ordering::SeqCst) - before;
    // 40 MiB and tables are 6 parts of 8 MiB, three of which were there.
    assert_eq!((before, sent), (3, 3), "parts sent before and after");
    assert_eq!(backend.unfinished(), 0);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("object"), backend.object("vm-root.qcow2").unwrap()).unwrap();
    let image = image_of(Target::Qcow2, &dir.path().join("object")).unwrap();
    assert_eq!(image::compare(&MemoryDisk(original), &*image).unwrap(), None);
}
