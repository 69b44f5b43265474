//! `virt-steward image verify`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use image::Difference;
use image::ovf::Package;

use super::{InputFormat, Opened};
use crate::cli::DENIED;
use crate::problem::Problem;

/// Arguments of `image verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward image verify disk.qcow2
  virt-steward image verify disk.vmdk --against disk.raw
  virt-steward image verify vm.ova

Exit status: 0 the image is whole (and the same), 1 it cannot be read, 2 the images differ or a digest
of the manifest is not met.")]
pub struct Args {
    /// The image: every cluster is read and decompressed. Of an OVA or OVF, every disk, and the
    /// digests of the manifest
    file: PathBuf,
    /// What the image is; by default its first bytes tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// Of a package: the disk to compare, by number, name or file
    #[arg(long, requires = "against")]
    disk: Option<String>,
    /// Compare what a guest would see with this image, of any format
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// What that one is; by default its first bytes tell
    #[arg(long, value_enum, value_name = "FORMAT", requires = "against")]
    against_format: Option<InputFormat>,
}

/// Reads one image, or compares two.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = args.file.display();
    let Some(other) = &args.against else {
        return match super::open(&args.file, args.input_format)? {
            Opened::Disk(disk, info) => {
                let read = image::read_all(&*disk).map_err(|error| damaged(&args.file, &error))?;
                println!("{name}: whole, {} with {read} bytes of data read", info.format.name());
                Ok(ExitCode::SUCCESS)
            }
            Opened::Package(package) => of_package(&args.file, &package),
        };
    };
    let (disk, _) = super::open_disk(&args.file, args.input_format, args.disk.as_deref())?;
    let (right, _) = super::open_disk(other, args.against_format, None)?;
    match image::compare(&*disk, &*right).map_err(|error| damaged(&args.file, &error))? {
        None => {
            println!("{name} and {} are the same", other.display());
            Ok(ExitCode::SUCCESS)
        }
        Some(Difference::Content(at)) => {
            println!("{name} and {} differ at guest offset {at}", other.display());
            Ok(ExitCode::from(DENIED))
        }
        Some(Difference::Size(at)) => {
            println!(
                "only one of {name} and {} reaches guest offset {at}, and holds data there",
                other.display()
            );
            Ok(ExitCode::from(DENIED))
        }
    }
}

fn of_package(file: &std::path::Path, package: &Package) -> Result<ExitCode> {
    let name = file.display();
    let wrong = package.check_manifest().map_err(|error| damaged(file, &error))?;
    if let Some(first) = wrong.first() {
        println!("{name}: `{first}` does not match its digest in the manifest");
        return Ok(ExitCode::from(DENIED));
    }
    let mut read = 0;
    for number in 0..package.machine.disks.len() {
        if let Some(disk) = package.disk(number).map_err(|error| damaged(file, &error))? {
            read += image::read_all(&*disk.disk).map_err(|error| damaged(file, &error))?;
        }
    }
    let digests = package.manifest.as_ref().map_or(0, |manifest| manifest.lines.len());
    let disks = package.machine.disks.len();
    println!(
        "{name}: whole, {disks} disks with {read} bytes of data read, {digests} digests in the manifest"
    );
    Ok(ExitCode::SUCCESS)
}

fn damaged(file: &std::path::Path, error: &image::Error) -> Problem {
    let doing = format!("reading the image `{}`", file.display());
    Problem::new(doing, super::chain(error), "fetch or make the image again")
}
