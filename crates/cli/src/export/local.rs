//! The jobs of a job file, done here one after the other.

use std::path::Path;
use std::process::ExitCode;

use ::provider::jobs::{self, Request};
use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

use super::{Args, CompressName, FormatName, export};
use crate::cli::FAILED;
use crate::connection::problem;
use crate::documents;
use crate::problem::Problem;
use crate::provider_config::check_type;

/// Reads a job file, `-` for standard input.
pub fn read(file: &Path) -> Result<Vec<Request>> {
    let text = documents::text(file)?;
    let options = serde_saphyr::options! { with_snippet: false };
    let file_value: Value = serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
        let remedy = "give a JSON or YAML file with `vm_path` and `output_dir`; see docs/export.md";
        Problem::new(format!("reading the job file `{}`", file.display()), error, remedy)
    })?;
    jobs::read(&file_value).map_err(problem)
}

/// Does all jobs of a file; one that fails does not keep the others from being done.
pub async fn run(args: &Args, file: &Path) -> Result<ExitCode> {
    let mut all = Vec::new();
    for request in read(file)? {
        // What is wrong with the file is said before anything is done.
        all.push(arguments(args, &request)?);
    }
    let (count, mut failed) = (all.len(), 0);
    for one in all {
        let (vm, output) = (one.vm.clone().unwrap_or_default(), one.output.clone());
        // Boxed: an export's future is large, and this one holds it.
        match Box::pin(export(one, None)).await {
            Ok(code) if code == ExitCode::SUCCESS => {}
            Ok(_) => failed += 1,
            Err(error) => {
                eprintln!("error: {vm} to {output}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        eprintln!("{failed} of {count} jobs failed; the same command with --resume is for one at a time");
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

/// The arguments that a job stands for; `args` are those of the command line, which apply to all.
fn arguments(args: &Args, request: &Request) -> Result<Args> {
    let doing = || format!("reading the job of `{}`", request.vm_path);
    let wrong = |why: String, remedy: &str| Err::<Args, _>(Problem::new(doing(), why, remedy).into());
    if let Some(Err(why)) = request.provider.as_deref().map(check_type) {
        return wrong(why, "use `kubevirt`");
    }
    let mut one = args.clone();
    one.mkdir = true;
    if request.vm_path.is_empty() || request.output_dir.is_empty() {
        return wrong(
            "it needs vm_path and output_dir".into(),
            "name a VM, and a directory or a store's URL",
        );
    }
    one.vm = Some(request.vm_path.clone());
    one.output.clone_from(&request.output_dir);
    one.snapshot = request.metadata.snapshot.clone().or(one.snapshot);
    one.namespace = request.metadata.namespace.clone().or(one.namespace);
    if let Some(name) = &request.format {
        match FormatName::from_str(name, true) {
            Ok(format) => one.format = format,
            Err(_) => return wrong(format!("`{name}` is no format"), "use raw, qcow2, vmdk, ova or ovf"),
        }
    }
    let compress = match &request.compress {
        None => None,
        // Everything else than qcow2 is compressed as far as it can be, whatever is wished for.
        Some(Value::Bool(false)) => (one.format == FormatName::Qcow2).then_some("none"),
        Some(Value::Bool(true)) => (one.format == FormatName::Qcow2).then_some("zstd"),
        Some(how) => Some(how.as_str().unwrap_or_default()),
    };
    if let Some(name) = compress {
        match CompressName::from_str(name, true) {
            Ok(how) => one.compress = Some(how),
            Err(_) => return wrong(format!("`{name}` is no compression"), "use none, deflate or zstd"),
        }
    }
    one.level = match request.options.get("compress_level") {
        None => one.level,
        Some(level) => match level.as_i64().and_then(|level| i32::try_from(level).ok()) {
            Some(level) => Some(level),
            None => return wrong(format!("`{level}` is no level"), "give a number"),
        },
    };
    let metadata = &request.metadata;
    for (key, value) in &metadata.spec {
        match (key.as_str(), value.as_str()) {
            ("kubeconfig", Some(path)) => one.kubeconfig = one.kubeconfig.or(Some(path.into())),
            ("storageClass", Some(class)) => one.storage_class = Some(class.to_owned()),
            _ => {
                let remedy = "submit the file with `virt-steward export job submit`, or leave it out";
                return wrong(format!("metadata.{key} is for jobs that the cluster carries out"), remedy);
            }
        }
    }
    if metadata.claim.is_some() || metadata.secret.is_some() || metadata.selector.is_some() {
        let remedy = "submit the file with `virt-steward export job submit`, or leave them out";
        return wrong("claim, secret and selector are for jobs that the cluster carries out".into(), remedy);
    }
    Ok(one)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn of(job: &Value) -> Result<Args> {
        let args = Line::try_parse_from(["x", "--jobs", "jobs.json", "--verify"]).unwrap().args;
        let requests = jobs::read(job).unwrap();
        arguments(&args, &requests[0])
    }

    #[test]
    fn a_job_becomes_the_arguments_that_mean_the_same() {
        let job = json!({"vm_path": "default/ubuntu-vm-1", "output_dir": "/backups", "provider": "kubevirt",
            "format": "qcow2", "compress": true, "options": {"compress_level": 3},
            "metadata": {"namespace": "default", "storageClass": "fast", "kubeconfig": "/k"}});
        let args = of(&job).unwrap();
        assert_eq!(args.vm_name(), Some("default/ubuntu-vm-1"));
        assert_eq!((args.output.as_str(), args.level, args.mkdir), ("/backups", Some(3), true));
        assert_eq!((args.format, args.compress), (FormatName::Qcow2, Some(CompressName::Zstd)));
        assert_eq!((args.storage_class.as_deref(), args.verify), (Some("fast"), true));
        assert_eq!(args.kubeconfig.as_deref(), Some(Path::new("/k")));
    }

    #[test]
    fn what_only_the_cluster_can_do_is_refused() {
        let base = json!({"vm_path": "web", "output_dir": "/backups"});
        for (key, value, part) in [
            ("provider", json!("vsphere"), "vsphere"),
            ("format", json!("vhd"), "vhd"),
            ("compress", json!("lz4"), "lz4"),
            ("output_dir", json!(""), "output_dir"),
            ("metadata", json!({"schedule": "@daily"}), "schedule"),
            ("metadata", json!({"claim": "c"}), "claim"),
            ("options", json!({"compress_level": "best"}), "best"),
        ] {
            let mut job = base.clone();
            job[key] = value;
            let wrong = of(&job).unwrap_err().to_string();
            assert!(wrong.contains(part), "{key}: {wrong}");
        }
    }
}
