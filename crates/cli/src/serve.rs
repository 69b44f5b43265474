//! `virt-steward serve`: the REST service on this machine.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use provider::rest;
use tracing_subscriber::EnvFilter;

use crate::connection::{ClusterArgs, config, problem};
use crate::output::print;
use crate::problem::Problem;
use crate::shutdown;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward serve
  virt-steward serve --listen 127.0.0.1:9000 --context prod
  virt-steward serve --require-token

It listens on loopback only. A request with `Authorization: Bearer` is made under that identity, and one
without under the kubeconfig's. One line per write goes to standard error.")]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,

    /// Address on loopback; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8765")]
    listen: SocketAddr,

    /// A Prometheus that scrapes KubeVirt: a URL, or a Service as `[https:]NAMESPACE/NAME[:PORT]`
    #[arg(long, value_name = "ADDRESS", env = "VIRT_STEWARD_PROMETHEUS")]
    prometheus: Option<String>,

    /// Refuse requests without a token instead of acting as the kubeconfig says
    #[arg(long)]
    require_token: bool,
}

/// Serves until ctrl-c.
pub async fn run(args: Args) -> Result<ExitCode> {
    let doing = format!("serving on {}", args.listen);
    if !args.listen.ip().is_loopback() {
        let wrong = "the service has no TLS, so it listens on loopback only";
        return Err(Problem::new(doing, wrong, "choose an address such as 127.0.0.1:8765").into());
    }
    let prometheus =
        args.prometheus.as_deref().map(provider::cluster::Prometheus::parse).transpose().map_err(problem)?;
    let cluster = config(&args.cluster).await?;
    let anonymous = provider::cluster::connect_without_identity(cluster.clone()).map_err(problem)?;
    let own_identity =
        if args.require_token { None } else { Some(provider::cluster::connect(cluster).map_err(problem)?) };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,audit=info"));
    // another subscriber that is there already serves as well
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let listener = tokio::net::TcpListener::bind(args.listen).await.map_err(|error| {
        Problem::new(&doing, error, "choose another `--listen` (port 0 takes a free one)")
    })?;
    let address = listener.local_addr()?;
    let stop = shutdown::token()?;
    print(&format!(
        "Serving http://{address} until ctrl-c; the page shows the operations, /openapi.json describes them\n"
    ))?;
    let config = rest::Config { anonymous, own_identity, impersonation: None, prometheus };
    rest::serve(listener, config, stop.cancelled_owned())
        .await
        .map_err(|error| Problem::new(doing, error, "look at the message"))?;
    Ok(ExitCode::SUCCESS)
}
