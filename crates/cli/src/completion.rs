//! `virt-steward completion SHELL`

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::print;

/// Arguments of `completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward completion bash > /etc/bash_completion.d/virt-steward
  virt-steward completion zsh > \"${fpath[1]}/_virt-steward\"
  virt-steward completion fish > ~/.config/fish/completions/virt-steward.fish")]
pub struct Args {
    /// The shell to write the completion for
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the completion script to standard output.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::Cli::command(), "virt-steward", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
