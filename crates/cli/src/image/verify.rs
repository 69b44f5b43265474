//! `virt-steward image verify`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use image::Difference;

use crate::cli::DENIED;
use crate::problem::Problem;

/// Arguments of `image verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward image verify disk.qcow2
  virt-steward image verify disk.vmdk --against disk.raw

Exit status: 0 the image is whole (and the same), 1 it cannot be read, 2 the images differ.")]
pub struct Args {
    /// The image: every cluster is read and decompressed
    file: PathBuf,
    /// Compare what a guest would see with this image, of any format
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// Reads one image, or compares two.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (disk, info) = super::open(&args.file)?;
    let name = args.file.display();
    let Some(other) = &args.against else {
        let read = image::read_all(&*disk).map_err(|error| damaged(&args.file, &error))?;
        println!("{name}: whole, {} with {read} bytes of data read", info.format.name());
        return Ok(ExitCode::SUCCESS);
    };
    let (right, _) = super::open(other)?;
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

fn damaged(file: &std::path::Path, error: &image::Error) -> Problem {
    let doing = format!("reading the image `{}`", file.display());
    Problem::new(doing, super::chain(error), "fetch or make the image again")
}
