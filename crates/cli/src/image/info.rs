//! `virt-steward image info`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

/// Arguments of `image info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward image info disk.qcow2
  virt-steward image info disk.vmdk -o json")]
pub struct Args {
    /// The image
    file: PathBuf,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
}

/// Prints the facts of one image.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (_, info) = super::open(&args.file)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&info)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&info)?),
        Output::Text => {
            println!("format        {}", info.format.name());
            println!("virtual size  {} bytes", info.virtual_size);
            println!("file size     {} bytes ({} on disk)", info.file_size, info.disk_size);
            println!("data          {} bytes", info.data);
            if let Some(size) = info.cluster_size {
                println!("cluster size  {size} bytes");
            }
            if let Some(compression) = info.compression {
                println!("compression   {}", format!("{compression:?}").to_lowercase());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
