//! `virt-steward volume list`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document, or_none, size};
use crate::table;

/// Arguments of `volume list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward volume list web
  virt-steward volume list web -o json")]
pub(super) struct Args {
    /// The virtual machine, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    #[command(flatten)]
    scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.vm).await?;
    let volumes = provider.volumes(&vm).await.map_err(problem)?;
    if let Some(format) = args.output {
        document(format, &json!({"items": volumes}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["NAME", "DEVICE", "BUS", "TARGET", "SOURCE", "CLAIM", "SIZE", "MODES", "CLASS", "HOTPLUG"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(volumes.into_iter().map(|one| {
        let (disk, claim) = (one.disk, one.claim);
        let text = |text: String| or_none(Some(text).filter(|text| !text.is_empty()));
        let modes = claim
            .as_ref()
            .map(|claim| claim.access_modes.iter().map(|mode| short(mode)).collect::<Vec<_>>().join(","));
        vec![
            disk.name,
            text(disk.device),
            text(disk.bus),
            or_none(disk.target),
            disk.source,
            or_none(claim.as_ref().map(|claim| match claim.phase.as_str() {
                "Bound" => claim.name.clone(),
                phase => format!("{} ({phase})", claim.name),
            })),
            or_none(
                claim.as_ref().and_then(|claim| claim.capacity_bytes.or(claim.requested_bytes)).map(size),
            ),
            or_none(modes.filter(|text| !text.is_empty())),
            or_none(claim.and_then(|claim| claim.storage_class)),
            or_none(disk.hotplug),
        ]
    }));
    print(&table::fit(&rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Access modes as kubectl writes them.
fn short(mode: &str) -> String {
    match mode {
        "ReadWriteOnce" => "RWO".into(),
        "ReadWriteMany" => "RWX".into(),
        "ReadOnlyMany" => "ROX".into(),
        "ReadWriteOncePod" => "RWOP".into(),
        other => other.into(),
    }
}
