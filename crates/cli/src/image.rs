//! `virt-steward image`: disk images on this machine.

mod convert;
mod info;
mod verify;

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use image::ovf::{self, Package};
use image::{Disk, Format, Info};

use crate::problem::Problem;

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write an image in another format
    Convert(convert::Args),
    /// Show what an image says about itself
    Info(info::Args),
    /// Read an image to its end, or compare it with another one
    Verify(verify::Args),
}

/// Runs the verb.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Convert(args) => convert::run(&args),
        Verb::Info(args) => info::run(&args),
        Verb::Verify(args) => verify::run(&args),
    }
}

/// What an image is, when its first bytes are not to decide.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum InputFormat {
    /// Whatever it begins with: a guest can write the magic of any format to its disk
    Raw,
    Qcow2,
    Vmdk,
    Ova,
    Ovf,
}

/// What a path names.
enum Opened {
    /// One disk.
    Disk(Box<dyn Disk>, Info),
    /// A machine with its disks.
    Package(Box<Package>),
}

/// The path behind `-`: an image is read in any order, and more than once.
fn standard_input(path: &Path) -> Result<&Path> {
    if path != Path::new("-") {
        return Ok(path);
    }
    let input = Path::new("/dev/stdin");
    let kind = std::fs::metadata(input).map(|metadata| metadata.file_type());
    if kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
        return Ok(input);
    }
    let wrong = "it is no file and no block device, and a pipe cannot be read in any order";
    let remedy = "store it first and name the file, or redirect one with `<`";
    Err(Problem::new("reading an image from standard input", wrong, remedy).into())
}

/// Opens an image, or a package; without `format`, whatever it is by its first bytes.
fn open(path: &Path, format: Option<InputFormat>) -> Result<Opened> {
    let path = standard_input(path)?;
    let doing = || format!("opening the image `{}`", path.display());
    let problem = |error: image::Error| {
        let remedy = "give a raw, qcow2 or sparse VMDK image, an OVA or an OVF that is complete";
        Problem::new(doing(), chain(&error), remedy)
    };
    let file = File::open(path)
        .map_err(|error| Problem::new(doing(), error, "give an existing file or block device"))?;
    let named = |extension: &str| path.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension));
    let disk = match format {
        Some(InputFormat::Raw) => Some(Format::Raw),
        Some(InputFormat::Qcow2) => Some(Format::Qcow2),
        Some(InputFormat::Vmdk) => Some(Format::VmdkStream),
        Some(InputFormat::Ova | InputFormat::Ovf) | None => None,
    };
    if let Some(disk) = disk {
        let (disk, info) = image::open_path_as(path, disk).map_err(problem)?;
        return Ok(Opened::Disk(disk, info));
    }
    if format == Some(InputFormat::Ovf) || (format.is_none() && named("ovf")) {
        return Ok(Opened::Package(Box::new(Package::open_descriptor(path).map_err(problem)?)));
    }
    // What is called an OVA is one, or is told what it lacks.
    if format.is_some() || named("ova") || ovf::is_archive(&file).map_err(problem)? {
        let package = Package::open_archive(Arc::new(file)).map_err(problem)?;
        return Ok(Opened::Package(Box::new(package)));
    }
    let (disk, info) = image::open_path(path).map_err(problem)?;
    Ok(Opened::Disk(disk, info))
}

/// Opens a disk. Of a package, the one that `wanted` names: its number from 1, its name or its file.
fn open_disk(
    path: &Path,
    format: Option<InputFormat>,
    wanted: Option<&str>,
) -> Result<(Box<dyn Disk>, Info)> {
    let doing = || format!("choosing a disk of `{}`", path.display());
    let package = match (open(path, format)?, wanted) {
        (Opened::Disk(disk, info), None) => return Ok((disk, info)),
        (Opened::Disk(..), Some(_)) => {
            return Err(Problem::new(doing(), "it is one disk and no package", "leave --disk out").into());
        }
        (Opened::Package(package), _) => package,
    };
    let disks = &package.machine.disks;
    let number = match wanted {
        None if disks.len() == 1 => Some(0),
        None => None,
        Some(wanted) => disks
            .iter()
            .position(|disk| disk.name == wanted || disk.file == wanted)
            .or_else(|| wanted.parse::<usize>().ok()?.checked_sub(1)),
    };
    let found = number.map(|number| package.disk(number)).transpose();
    let found = found
        .map_err(|error| Problem::new(doing(), chain(&error), "fetch or make the package again"))?
        .flatten();
    if let Some(found) = found {
        return Ok((found.disk, found.info));
    }
    let names: Vec<String> =
        disks.iter().enumerate().map(|(at, disk)| format!("{} ({})", at + 1, disk.file)).collect();
    let wrong = format!("its disks are {}", names.join(", "));
    Err(Problem::new(doing(), wrong, "name one with --disk").into())
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
