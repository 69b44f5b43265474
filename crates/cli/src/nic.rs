//! `virt-steward nic`: network interfaces of VMs.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use provider::cluster::MigrateTo;
use provider::network::{Binding, Change, Effect, Nic, Wish};
use serde_json::json;

use crate::connection::problem;
use crate::output::print;
use crate::presented::{document, or_none};
use crate::table;
use crate::verbs::{How, Showing, dry};
use crate::vm::Progress;

/// Arguments of `nic`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a network interface, and say when it takes effect
    Add(AddArgs),
    /// Set the link of an interface up or down
    Link(LinkArgs),
    /// List the interfaces of a VM
    List(ListArgs),
    /// Remove a network interface
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward nic add web lan --network vlan7
  virt-steward nic add web lan --network infra/vlan7 --mac 02:00:00:12:34:56 --migrate --wait
  virt-steward nic add web fast --network sriov-net --binding sriov --dry-run

A running VM gets it with a migration, where it can migrate, and after a restart where it cannot: the answer
says which. `--migrate` asks for the migration right away.")]
struct AddArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The interface's name in the VM
    #[arg(value_name = "NIC")]
    name: String,
    /// The network attachment definition, as `name` or `namespace/name`, or `pod`
    #[arg(long, value_name = "NETWORK")]
    network: String,
    /// How it is bound
    #[arg(long, value_enum, default_value_t = BindingName::Bridge)]
    binding: BindingName,
    /// Its hardware address; one is drawn otherwise
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// The device that the guest sees, as in `virtio` or `e1000e`
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Migrate the VM when that is what it takes
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BindingName {
    /// A bridge in the pod
    Bridge,
    /// A virtual function of a network card
    Sriov,
    /// NAT, for the pod network
    Masquerade,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward nic link web lan down --wait
  virt-steward nic link web lan up")]
struct LinkArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The interface's name in the VM
    #[arg(value_name = "NIC")]
    name: String,
    /// `up` or `down`
    #[arg(value_enum)]
    state: State,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum State {
    Up,
    Down,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward nic list web
  virt-steward nic list web -o json")]
struct ListArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    #[command(flatten)]
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward nic remove web lan --wait
  virt-steward nic remove web lan --dry-run")]
struct RemoveArgs {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    /// The interface's name in the VM
    #[arg(value_name = "NIC")]
    name: String,
    #[command(flatten)]
    how: How,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Add(args) => {
            let binding = match args.binding {
                BindingName::Bridge => Binding::Bridge,
                BindingName::Sriov => Binding::Sriov,
                BindingName::Masquerade => Binding::Masquerade,
            };
            let AddArgs { vm, name, network, mac, model, migrate, how, .. } = args;
            change(&vm, &Wish::Add(Nic { name, network, binding, mac, model }), migrate, &how).await
        }
        Verb::Link(args) => {
            let wish = Wish::Link { name: args.name, up: args.state == State::Up };
            change(&args.vm, &wish, false, &args.how).await
        }
        Verb::List(args) => list(args).await,
        Verb::Remove(args) => change(&args.vm, &Wish::Remove { name: args.name }, false, &args.how).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn change(vm: &str, wish: &Wish, migrate: bool, how: &How) -> Result<()> {
    let (provider, vm) = how.scope.connect_for(vm).await?;
    let change = provider.change_nic(&vm, wish, how.dry_run).await.map_err(problem)?;
    if migrate && change.effect == Effect::AfterMigration && !how.dry_run {
        provider.migrate(&vm, &MigrateTo::default(), false).await.map_err(problem)?;
    }
    if let Some(timeout) = how.waits() {
        let mut progress = Progress::of(&vm);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_nic(&vm, wish, &change, timeout, note).await.map_err(problem)?;
    }
    match how.output {
        Some(format) => document(format, &change),
        None => print(&sentence(vm.name(), wish, &change, migrate, how)),
    }
}

fn sentence(vm: &str, wish: &Wish, change: &Change, migrate: bool, how: &How) -> String {
    let done = match wish {
        Wish::Add(nic) => format!("interface {} added", nic.name),
        Wish::Remove { name } => format!("interface {name} removed"),
        Wish::Link { name, up } => format!("link of {name} set {}", if *up { "up" } else { "down" }),
    };
    let dry = dry(how.dry_run);
    let advice = match change.effect {
        Effect::AfterMigration if !migrate => "; `virt-steward vm migrate` brings it about",
        Effect::AfterRestart => "; `virt-steward vm restart` brings it about",
        _ => "",
    };
    let effect = change.effect.words();
    format!("virtualmachine.kubevirt.io/{vm} {done}{dry}: {effect} ({}){advice}\n", change.why)
}

async fn list(args: ListArgs) -> Result<()> {
    let (provider, vm) = args.showing.scope.connect_for(&args.vm).await?;
    let nics = provider.nics(&vm).await.map_err(problem)?;
    if let Some(format) = args.showing.output {
        return document(format, &json!({"items": nics}));
    }
    if nics.is_empty() {
        eprintln!("VM `{vm}` names no interfaces.");
        return Ok(());
    }
    let header = ["NAME", "BINDING", "NETWORK", "MAC", "LINK", "ADDRESSES", "IN GUEST"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(nics.into_iter().map(|one| {
        let addresses = Some(one.addresses.join(",")).filter(|text| !text.is_empty());
        vec![
            one.name,
            one.binding,
            one.network,
            or_none(one.mac),
            or_none(one.link),
            or_none(addresses),
            or_none(one.guest_name),
        ]
    }));
    print(&table::fit(&rows))
}
