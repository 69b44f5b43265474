//! `virt-steward vm describe`.

use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;
use provider::view::VmDetail;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none, size};
use crate::style::{Style, Tone};
use crate::table;

/// Arguments of `vm describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm describe web
  virt-steward vm describe prod/web -o json")]
pub struct Args {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    name: String,

    #[command(flatten)]
    scope: Scope,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Shows everything about a VM.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, vm) = args.scope.connect_for(&args.name).await?;
    let detail = provider.describe(&vm).await.map_err(problem)?;
    match args.output {
        Some(format) => document(format, &detail)?,
        None => print(&page(&detail, Timestamp::now(), Style::of_stdout()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The page about a VM.
fn page(detail: &VmDetail, now: Timestamp, style: Style) -> String {
    let vm = &detail.summary;
    let mut facts = vec![
        ("Name:", format!("{}/{}", vm.namespace, vm.name)),
        ("Status:", vm.status.clone()),
        ("Run strategy:", vm.run_strategy.clone()),
        ("Age:", age(&vm.created, now)),
        ("CPUs:", or_none(vm.vcpus.map(|count| count.to_string()))),
        ("Memory:", or_none(vm.memory_bytes.map(size))),
        ("Node:", or_none(vm.node.clone())),
        ("Launcher pod:", or_none(detail.launcher.clone())),
        ("Guest:", or_none(vm.guest_os.clone())),
    ];
    facts.extend(detail.instancetype.clone().map(|name| ("Instance type:", name)));
    facts.extend(detail.preference.clone().map(|name| ("Preference:", name)));
    let rows: Vec<Vec<String>> = facts.into_iter().map(|(name, value)| vec![name.into(), value]).collect();
    let mut page = table::render(&rows);
    let mut section = |title: &str, header: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            page.extend(["\n", &style.paint(Tone::Strong, title), "\n"]);
            let header = header.iter().map(|cell| (*cell).to_owned()).collect();
            let table: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
            for line in table::render(&table).lines() {
                page.extend(["  ", line, "\n"]);
            }
        }
    };
    let disks = detail.disks.iter().map(|disk| {
        vec![
            disk.name.clone(),
            disk.device.clone(),
            disk.bus.clone(),
            format!("{}/{}", disk.source, disk.reference),
            or_none(disk.target.clone()),
            or_none(disk.hotplug.clone()),
        ]
    });
    section("Disks", &["NAME", "DEVICE", "BUS", "SOURCE", "TARGET", "HOTPLUG"], disks.collect());
    let interfaces = detail.interfaces.iter().map(|one| {
        vec![
            one.name.clone(),
            one.binding.clone(),
            one.network.clone(),
            or_none(one.mac.clone()),
            or_none(Some(one.addresses.join(",")).filter(|text| !text.is_empty())),
        ]
    });
    section("Interfaces", &["NAME", "BINDING", "NETWORK", "MAC", "ADDRESSES"], interfaces.collect());
    let conditions = detail.conditions.iter().map(|one| {
        let said = if one.message.is_empty() { &one.reason } else { &one.message };
        vec![one.kind.clone(), one.status.clone(), one.meaning.clone(), said.clone()]
    });
    section("Conditions", &["TYPE", "STATUS", "MEANING", "KUBEVIRT SAYS"], conditions.collect());
    let blockers = detail
        .migration_blockers
        .iter()
        .map(|one| vec![one.reason.clone(), one.message.clone(), one.remedy.clone()]);
    section("What keeps it from being migrated", &["REASON", "WHAT", "TO DO"], blockers.collect());
    let events = detail
        .events
        .iter()
        .map(|one| vec![age(&one.last_seen, now), one.kind.clone(), one.reason.clone(), one.message.clone()]);
    section("Events", &["LAST SEEN", "TYPE", "REASON", "MESSAGE"], events.collect());
    page
}
