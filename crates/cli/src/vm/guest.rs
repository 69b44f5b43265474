//! `virt-steward vm guest`: what the guest agent tells.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document, or_none, size};
use crate::table;

/// Arguments of `vm guest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what is mounted, and how full it is
    Filesystems(FilesystemsArgs),
    /// Show the operating system
    Os(OsArgs),
    /// Show who is logged in
    Users(UsersArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm guest filesystems web
  virt-steward vm guest filesystems web -o json")]
struct FilesystemsArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm guest os web
  virt-steward vm guest os web -o json")]
struct OsArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm guest users web
  virt-steward vm guest users web -o json")]
struct UsersArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The VM, as `name` or `namespace/name`
    #[arg(value_name = "VM", add = crate::completing::vms())]
    vm: String,
    #[command(flatten)]
    scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Filesystems(FilesystemsArgs { of }) => {
            let (provider, vm) = of.scope.connect_for(&of.vm).await?;
            let found = provider.guest_file_systems(&vm).await.map_err(problem)?;
            if let Some(format) = of.output {
                document(format, &json!({"items": found}))?;
                return Ok(ExitCode::SUCCESS);
            }
            let header = ["MOUNTED ON", "DEVICE", "TYPE", "SIZE", "USED", "USE%"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(found.into_iter().map(|one| {
                let percent = one.used_bytes.saturating_mul(100).checked_div(one.total_bytes);
                let percent = or_none(percent.map(|percent| format!("{percent}%")));
                let (total, used) = (size(one.total_bytes), size(one.used_bytes));
                vec![one.mount_point, one.device, one.kind, total, used, percent]
            }));
            print(&table::fit(&rows))?;
        }
        Verb::Os(OsArgs { of }) => {
            let (provider, vm) = of.scope.connect_for(&of.vm).await?;
            let os = provider.guest_os(&vm).await.map_err(problem)?;
            if let Some(format) = of.output {
                document(format, &os)?;
                return Ok(ExitCode::SUCCESS);
            }
            let frozen = if os.frozen { "yes" } else { "no" }.to_owned();
            let facts = [
                ("Hostname:", os.hostname),
                ("System:", os.os),
                ("Kernel:", os.kernel),
                ("Machine:", os.machine),
                ("Time zone:", os.timezone),
                ("Agent:", os.agent),
                ("Frozen:", frozen),
            ];
            let rows: Vec<Vec<String>> =
                facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
            print(&table::render(&rows))?;
        }
        Verb::Users(UsersArgs { of }) => {
            let (provider, vm) = of.scope.connect_for(&of.vm).await?;
            let users = provider.guest_users(&vm).await.map_err(problem)?;
            if let Some(format) = of.output {
                document(format, &json!({"items": users}))?;
                return Ok(ExitCode::SUCCESS);
            }
            if users.is_empty() {
                eprintln!("Nobody is logged in.");
                return Ok(ExitCode::SUCCESS);
            }
            let mut rows = vec![["USER", "DOMAIN", "SINCE"].map(str::to_owned).to_vec()];
            rows.extend(users.into_iter().map(|one| {
                #[allow(clippy::cast_possible_truncation, reason = "a time in seconds, and saturating")]
                let since = jiff::Timestamp::from_second(one.login_time as i64).ok();
                vec![one.user, or_none(one.domain), or_none(since.map(|since| since.to_string()))]
            }));
            print(&table::fit(&rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
