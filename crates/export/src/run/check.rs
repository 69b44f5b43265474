//! Reads results back from where they were sent, and compares them with what was read from the source.

use std::sync::Arc;

use image::Format;

use super::directory::verify_overlay;
use super::{ExportDisk, Job};
use crate::store::{ObjectStorage, Place};
use crate::sums::Sums;
use crate::{Error, Result};

/// One disk in an object of its own.
pub(super) async fn disk(
    place: impl Into<Place>,
    (key, length): (&str, u64),
    format: Format,
    disk: &ExportDisk,
    sums: Sums,
) -> Result<()> {
    let storage = Arc::new(ObjectStorage::new(place.into(), key, length));
    let (what, disk) = (key.to_owned(), disk.clone());
    let checked = tokio::task::spawn_blocking(move || {
        if disk.base.is_some() {
            return verify_overlay(storage, &disk, &what, &sums);
        }
        // Not by its first bytes: a guest writes what it likes to those of a raw disk.
        let opened = match format {
            Format::Raw => image::open_raw_storage(storage),
            _ => image::open_storage(storage),
        };
        let (image, _) = opened.map_err(|source| Error::Image { what: what.clone(), source })?;
        sums.verify(&what, &*image, disk.source.size())
    });
    checked.await.map_err(|_| Error::Stopped)?
}

/// All disks in an archive, in files of these names.
pub(super) async fn archive(
    place: impl Into<Place>,
    (key, length): (&str, u64),
    job: &Job,
    files: &[String],
    sums: Vec<Sums>,
) -> Result<()> {
    let storage = Arc::new(ObjectStorage::new(place.into(), key, length));
    let (what, files) = (key.to_owned(), files.to_vec());
    let sizes: Vec<u64> = job.disks.iter().map(|disk| disk.source.size()).collect();
    let checked = tokio::task::spawn_blocking(move || {
        let image = |source| Error::Image { what: what.clone(), source };
        let package = image::ovf::Package::open_archive(storage).map_err(image)?;
        for ((file, sums), size) in files.iter().zip(&sums).zip(sizes) {
            let number = package.machine.disks.iter().position(|disk| disk.file == *file);
            let found = number.map(|number| package.disk(number)).transpose().map_err(image)?.flatten();
            let wrong = format!("`{file}` is not in it");
            let found = found.ok_or(Error::Verify { what: what.clone(), wrong })?;
            sums.verify(file, &*found.disk, size)?;
        }
        Ok(())
    });
    checked.await.map_err(|_| Error::Stopped)?
}
