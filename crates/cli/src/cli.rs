//! The arguments of the program, and the way from a verb to its file.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::{
    admit, agent, bench, capabilities, clone, completion, devices, doctor, export, image, instancetype,
    migration, nic, node, operator, policy, provider, sandbox, serve, snapshot, template, top, version, vm,
    volume,
};

/// A usage or IO error: nothing was decided.
pub const FAILED: u8 = 1;

/// A decision was made, and it was no.
pub const DENIED: u8 = 2;

/// Makes an unmodified KubeVirt cluster do what it cannot do today.
#[derive(Debug, Parser)]
#[command(
    name = "virt-steward",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  virt-steward sandbox --demo
  virt-steward admit -f vm.yaml --facts cluster.yaml
  virt-steward operator --config operator.yaml
  virt-steward completion bash

Exit status: 0 done or allowed, 1 usage or IO error, 2 denied."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what admission would do to each VirtualMachine in files
    Admit(admit::Args),
    /// Plug vCPUs and memory into the guests of one node
    Agent(agent::Args),
    /// Measure a running service
    Bench(bench::Args),
    /// Show what a cluster can do, and what you may do there
    Capabilities(capabilities::Args),
    /// Copy a VM
    Clone(clone::Args),
    /// Write a completion script for a shell
    Completion(completion::Args),
    /// Export the disks of a VM to qcow2, VMDK, OVA, OVF or raw
    Export(Box<export::Args>),
    /// Show the devices that a cluster has for VMs, and permit them
    Devices(devices::Args),
    /// See whether a capability works in a cluster, and what keeps it from working
    Doctor(doctor::Args),
    /// Convert, describe and verify disk images
    Image(image::Args),
    /// Show the instance types that VMs can name
    Instancetype(instancetype::Args),
    /// Show, follow and end live migrations
    Migration(migration::Args),
    /// Add, remove and list network interfaces of VMs
    Nic(nic::Args),
    /// Show nodes and the VMs on them
    Node(node::Args),
    /// Run the service that API servers call
    Operator(Box<operator::Args>),
    /// Try policies out
    Policy(policy::Args),
    /// Show the preferences that VMs can name
    Preference(instancetype::PreferenceArgs),
    /// VMs as other tools' users ask for them
    Provider(Box<provider::Args>),
    /// Run a cluster on this machine, with the operator working for it
    Sandbox(sandbox::Args),
    /// Attach, detach and explain volumes of a running VM
    Volume(volume::Args),
    /// Serve the operations over REST on this machine
    Serve(serve::Args),
    /// Take, list, restore and delete snapshots of VMs
    Snapshot(snapshot::Args),
    /// List, fill in, use and make VM templates
    Template(template::Args),
    /// Show what VMs use
    Top(top::Args),
    /// Print the version
    Version,
    /// List, start, stop, move, resize and delete virtual machines
    Vm(Box<vm::Args>),
}

/// Parses the arguments, runs the verb, prints what went wrong.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if called(&words, "kubectl_complete-steward") {
        return completion::answer_kubectl(words);
    }
    completion::answer();
    let cli = match parse(words) {
        Ok(cli) => cli,
        Err(error) => {
            // clap would exit with 2, which means "denied" here
            let status = if error.use_stderr() { FAILED } else { 0 };
            // a closed pipe while printing help is nobody's error
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    run(cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(FAILED)
    })
}

/// Parses the arguments. Called as `kubectl-steward`, the program is a plugin of kubectl and says so in its
/// help; everything else is the same.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = flowing(Cli::command());
    if called(&args, "kubectl-steward") {
        command = command.bin_name("kubectl steward");
    }
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// Lets the prose behind the options break where the terminal ends, and not where the source does.
fn flowing(command: clap::Command) -> clap::Command {
    let after = command.get_after_help().map(|text| flow(&text.to_string()));
    let command = command.mut_subcommands(flowing);
    match after {
        Some(text) => command.after_help(text),
        None => command,
    }
}

/// Joins the lines of a paragraph; what is indented stays as it is.
fn flow(text: &str) -> String {
    let mut flowed = String::with_capacity(text.len());
    let mut before = "";
    for line in text.lines() {
        let prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
        let goes_on = prose(before) && prose(line);
        if !flowed.is_empty() {
            flowed.push(if goes_on { ' ' } else { '\n' });
        }
        flowed.push_str(line);
        before = line;
    }
    flowed
}

/// Whether the program was called by this name.
fn called(args: &[OsString], name: &str) -> bool {
    args.first().is_some_and(|path| Path::new(path).file_stem() == Some(name.as_ref()))
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Admit(args) => runtime()?.block_on(admit::run(args)),
        Verb::Agent(args) => runtime()?.block_on(agent::run(args)),
        Verb::Bench(args) => runtime()?.block_on(bench::run(args)),
        Verb::Capabilities(args) => runtime()?.block_on(capabilities::run(args)),
        Verb::Clone(args) => runtime()?.block_on(clone::run(args)),
        Verb::Completion(args) => completion::run(&args),
        Verb::Export(args) => runtime()?.block_on(export::run(*args)),
        Verb::Devices(args) => runtime()?.block_on(devices::run(args)),
        Verb::Doctor(args) => runtime()?.block_on(doctor::run(args)),
        Verb::Image(args) => image::run(args),
        Verb::Instancetype(args) => runtime()?.block_on(instancetype::run(args)),
        Verb::Migration(args) => runtime()?.block_on(migration::run(args)),
        Verb::Nic(args) => runtime()?.block_on(nic::run(args)),
        Verb::Node(args) => runtime()?.block_on(node::run(args)),
        Verb::Preference(args) => runtime()?.block_on(instancetype::preferences(args)),
        Verb::Template(args) => runtime()?.block_on(template::run(args)),
        Verb::Operator(args) => runtime()?.block_on(operator::run(*args)),
        Verb::Policy(args) => policy::run(args),
        Verb::Provider(args) => runtime()?.block_on(provider::run(*args)),
        Verb::Sandbox(args) => runtime()?.block_on(sandbox::run(args)),
        Verb::Volume(args) => runtime()?.block_on(volume::run(args)),
        Verb::Serve(args) => runtime()?.block_on(serve::run(args)),
        Verb::Snapshot(args) => runtime()?.block_on(snapshot::run(args)),
        Verb::Top(args) => runtime()?.block_on(top::run(args)),
        Verb::Version => version::run(),
        Verb::Vm(args) => runtime()?.block_on(vm::run(*args)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the async runtime")
}

#[cfg(test)]
mod tests;
