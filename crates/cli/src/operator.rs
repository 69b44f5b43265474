//! `virt-steward operator`: the service that API servers call.

use std::process::ExitCode;

use ::operator::{Config, OperatorArgs};
use anyhow::Result;

use crate::output::print;
use crate::problem::Problem;
use crate::{shutdown, version};

/// Arguments of `operator`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward operator --config operator.yaml --print-config
  virt-steward operator --kubeconfig ~/.kube/config --register url --metrics-bind-address 127.0.0.1:8080
  virt-steward operator --cert-dir /etc/webhook/certs --register service

Flags win over environment variables, those over the file. SIGTERM and ctrl-c end it in order.")]
pub struct Args {
    #[command(flatten)]
    operator: OperatorArgs,
}

/// Runs the operator until it is told to stop.
pub async fn run(args: Args) -> Result<ExitCode> {
    let args = args.operator;
    if args.version {
        return version::run();
    }
    let env = |name: &str| std::env::var(name).ok();
    let config = Config::load(&args, &env, args.config.as_deref()).map_err(|error| {
        let remedy = "see `virt-steward operator --help`, and `--print-config` for the keys of the file";
        Problem::new("configuring the operator", error, remedy)
    })?;
    if args.print_config {
        print(&config.to_yaml()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    ::operator::telemetry::logs::start(&config.telemetry);
    ::operator::run(config, shutdown::token()?).await.map_err(|error| {
        Problem::new("starting the operator", error, "correct the setting that the message names")
    })?;
    Ok(ExitCode::SUCCESS)
}
