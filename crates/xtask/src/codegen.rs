//! `proto/*.proto` of a crate becomes `src/generated/*.rs` of the same crate. Pure Rust from end to
//! end: no `protoc` is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One crate with generated code.
struct Unit {
    /// Directory below `crates/`.
    name: &'static str,
    /// Clients are generated.
    client: bool,
    /// Servers are generated.
    server: bool,
}

/// A crate is listed when it has a folder `proto/`.
const UNITS: &[Unit] = &[
    Unit { name: "hook-api", client: false, server: false },
    Unit { name: "launcher-api", client: true, server: true },
    Unit { name: "sandbox", client: false, server: true },
];

/// Generates, or compares when `check` is set.
pub fn run(crates: &Path, check: bool) -> Result<()> {
    for unit in UNITS {
        let home = crates.join(unit.name);
        let made = generate(unit, &home.join("proto"))
            .with_context(|| format!("generating code of {}", home.display()))?;
        let committed = home.join("src/generated");
        if check {
            compare(&made, &committed)?;
        } else {
            write(&made, &committed)?;
        }
        println!("{}: {} files", unit.name, made.len());
    }
    Ok(())
}

/// File name to text.
type Files = BTreeMap<PathBuf, String>;

fn generate(unit: &Unit, protos: &Path) -> Result<Files> {
    let mut sources: Vec<PathBuf> =
        fs::read_dir(protos)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    sources.sort();
    let set = protox::compile(&sources, [protos])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .build_client(unit.client)
        .build_server(unit.server)
        // Sockets are made by the callers, who know more than an address.
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(set)?;
    read(out.path())
}

fn read(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        files.insert(name.into(), fs::read_to_string(&path)?);
    }
    Ok(files)
}

fn write(made: &Files, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for old in read(folder)?.keys().filter(|name| !made.contains_key(*name)) {
        fs::remove_file(folder.join(old))?;
    }
    for (name, text) in made {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

fn compare(made: &Files, folder: &Path) -> Result<()> {
    let committed = read(folder)?;
    let differing: Vec<_> = made
        .keys()
        .chain(committed.keys().filter(|name| !made.contains_key(*name)))
        .filter(|name| made.get(*name) != committed.get(*name))
        .map(|name| folder.join(name).display().to_string())
        .collect();
    if !differing.is_empty() {
        bail!(
            "{} differ from what the proto files give: run `cargo run -p xtask -- codegen` and commit",
            differing.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_missing_or_left_over_file_is_drift() {
        let folder = tempfile::tempdir().unwrap();
        let made = Files::from([("a.rs".into(), "1".to_owned()), ("b.rs".into(), "2".to_owned())]);
        write(&made, folder.path()).unwrap();
        compare(&made, folder.path()).unwrap();
        fs::write(folder.path().join("c.rs"), "left over").unwrap();
        assert!(compare(&made, folder.path()).is_err());
        write(&made, folder.path()).unwrap();
        compare(&made, folder.path()).unwrap();
        fs::write(folder.path().join("a.rs"), "by hand").unwrap();
        assert!(compare(&made, folder.path()).is_err());
        fs::remove_file(folder.path().join("a.rs")).unwrap();
        assert!(compare(&made, folder.path()).is_err());
    }
}
