//! `virt-steward completion SHELL`

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::output::print;
use crate::problem::Problem;

/// The variable by which a shell asks the program what could come next.
pub const VARIABLE: &str = "VIRT_STEWARD_COMPLETE";

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward completion bash > /etc/bash_completion.d/virt-steward
  virt-steward completion zsh > \"${fpath[1]}/_virt-steward\"
  virt-steward completion fish > ~/.config/fish/completions/virt-steward.fish

Names of VMs and nodes are completed as well: the script asks the program, and that the cluster. As a plugin,
a link named `kubectl_complete-steward` to the program on the path does the same for `kubectl steward`.")]
pub struct Args {
    /// The shell to write the completion for
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the completion script to standard output.
pub fn run(args: &Args) -> Result<ExitCode> {
    let doing = "writing a completion script";
    let shells = Shells::builtins();
    let shell = shells
        .completer(&args.shell.to_string())
        .ok_or_else(|| Problem::new(doing, "the shell is not known", "choose another shell"))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "virt-steward", "virt-steward", "virt-steward", &mut script)
        .context(doing)?;
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell, if it is one that asks.
pub fn answer() {
    clap_complete::CompleteEnv::with_factory(|| {
        <crate::cli::Cli as clap::CommandFactory>::command().name("virt-steward")
    })
    .var(VARIABLE)
    .bin("virt-steward")
    .complete();
}

/// Answers kubectl, which calls `kubectl_complete-steward` with the words behind `kubectl steward` and reads
/// a candidate a line and a directive (cobra's protocol; 4: no files).
pub fn answer_kubectl(words: Vec<std::ffi::OsString>) -> ExitCode {
    let mut command = <crate::cli::Cli as clap::CommandFactory>::command();
    let last = words.len().saturating_sub(1);
    let here = std::env::current_dir().ok();
    let found = clap_complete::engine::complete(&mut command, words, last, here.as_deref());
    let mut text: String = found
        .unwrap_or_default()
        .iter()
        .map(|candidate| {
            let value = candidate.get_value().to_string_lossy();
            match candidate.get_help() {
                Some(help) => format!("{value}\t{}\n", help.to_string().lines().next().unwrap_or_default()),
                None => format!("{value}\n"),
            }
        })
        .collect();
    text.push_str(":4\n");
    match print(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
