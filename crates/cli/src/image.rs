//! `virt-steward image`: disk images on this machine.

mod convert;
mod info;
mod verify;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use image::{Disk, Info};

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

/// Opens an image of any format that can be read here.
fn open(path: &Path) -> Result<(Box<dyn Disk>, Info)> {
    let doing = || format!("opening the image `{}`", path.display());
    let file = File::open(path)
        .map_err(|error| Problem::new(doing(), error, "give an existing file or block device"))?;
    let found = image::open(file).map_err(|error| {
        Problem::new(doing(), chain(&error), "give a raw, qcow2 or sparse VMDK image that is complete")
    })?;
    Ok(found)
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
