//! `virt-steward image info`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use image::Info;
use image::ovf::{Firmware, Machine, Package};
use serde::Serialize;

use super::{InputFormat, Opened};
use crate::output::print;
use crate::problem::Problem;
use crate::table;

/// Arguments of `image info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward image info disk.qcow2
  virt-steward image info disk.vmdk -o json
  virt-steward image info vm.ova")]
pub struct Args {
    /// The image, OVA or OVF
    file: PathBuf,
    /// What the image is; by default its first bytes tell
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
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

/// What is printed of a package.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PackageInfo<'a> {
    format: &'static str,
    machine: &'a Machine,
    files: Vec<FileInfo>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileInfo {
    name: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// Prints the facts of one image or package.
pub fn run(args: &Args) -> Result<ExitCode> {
    let text = match super::open(&args.file, args.input_format)? {
        Opened::Disk(_, info) => match args.output {
            Output::Text => of_disk(&info),
            other => structured(&info, other)?,
        },
        Opened::Package(package) => {
            let info = of_package(&args.file, &package)?;
            match args.output {
                Output::Text => table_of(&info),
                other => structured(&info, other)?,
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn structured(info: &impl Serialize, output: Output) -> Result<String> {
    Ok(match output {
        Output::Yaml => serde_saphyr::to_string(info)?,
        _ => serde_json::to_string_pretty(info)? + "\n",
    })
}

fn of_disk(info: &Info) -> String {
    let mut rows: Vec<[String; 2]> = vec![
        ["format".into(), info.format.name().into()],
        ["virtual size".into(), format!("{} bytes", info.virtual_size)],
        ["file size".into(), format!("{} bytes ({} on disk)", info.file_size, info.disk_size)],
        ["data".into(), format!("{} bytes", info.data)],
    ];
    if let Some(size) = info.cluster_size {
        rows.push(["cluster size".into(), format!("{size} bytes")]);
    }
    if let Some(compression) = info.compression {
        rows.push(["compression".into(), format!("{compression:?}").to_lowercase()]);
    }
    table::render(&rows.into_iter().map(Vec::from).collect::<Vec<_>>())
}

fn of_package<'a>(path: &Path, package: &'a Package) -> Result<PackageInfo<'a>> {
    let doing = || format!("reading the package `{}`", path.display());
    let files = package
        .files()
        .map_err(|error| Problem::new(doing(), super::chain(&error), "fetch or make the package again"))?;
    let sha256 = |name: &str| package.manifest.as_ref()?.sha256(name).map(str::to_owned);
    let files = files.into_iter().map(|(name, size)| FileInfo { sha256: sha256(&name), name, size });
    let archive = path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("ovf"));
    let format = if archive { "ova" } else { "ovf" };
    Ok(PackageInfo { format, machine: &package.machine, files: files.collect() })
}

fn table_of(info: &PackageInfo<'_>) -> String {
    let machine = info.machine;
    let firmware = match (machine.firmware, machine.secure_boot) {
        (Firmware::Bios, _) => "BIOS",
        (Firmware::Efi, false) => "UEFI",
        (Firmware::Efi, true) => "UEFI with secure boot",
    };
    let mut rows: Vec<Vec<String>> = vec![
        vec!["format".into(), info.format.into()],
        vec!["name".into(), machine.name.clone()],
        vec!["system".into(), format!("{} ({})", machine.os.description, machine.os.vmware)],
        vec!["CPUs".into(), format!("{} ({} cores a socket)", machine.cpus, machine.cores_per_socket)],
        vec!["memory".into(), format!("{} MiB", machine.memory_mib)],
        vec!["firmware".into(), firmware.into()],
    ];
    for (number, disk) in machine.disks.iter().enumerate() {
        let what = format!("{} bytes in {} ({:?})", disk.capacity, disk.file, disk.bus);
        rows.push(vec![format!("disk {}", number + 1), what]);
    }
    for (number, nic) in machine.nics.iter().enumerate() {
        let mac = nic.mac.as_deref().unwrap_or("any address");
        rows.push(vec![
            format!("nic {}", number + 1),
            format!("{} on {}, {mac}", nic.model.name(), nic.network),
        ]);
    }
    for file in &info.files {
        let sum = file.sha256.as_deref().map_or(String::new(), |sum| format!(", SHA-256 {sum}"));
        rows.push(vec!["file".into(), format!("{}, {} bytes{sum}", file.name, file.size)]);
    }
    table::render(&rows)
}
