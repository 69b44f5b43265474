//! `virt-steward sandbox fault`: what goes wrong in a running sandbox, through its own API.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::output::print;
use crate::problem::Problem;
use crate::table;

/// Where the sandbox keeps its faults.
const PATH: &str = "/sandbox/v1/faults";

const HELP: &str = "A fault is KIND[:KEY=VALUE,…]. Kinds, with the keys of their own:
  latency:ms=N[,jitter=N]      answers come late
  error:code=N                 409, 429, 500, 503 or 504, before anything is done
  lost-answer                  writes are done, and the connection breaks before the answer
  partition:user=P | node=N    nobody hears of a client any more (node-loss:node=N is the same)
  crash:user=P[,down=MS]       a client dies right after a write; the simulated virt-controller starts anew
  watch-drop[:events=N]        watches break off after N events
  watch-lag:ms=N               every event of a watch waits so long
  gone                         watches and continued lists get 410
  webhook-slow:ms=N, webhook-down, webhook-garbage   [webhook=PATTERN]
  clock-skew:seconds=N         the API server's clock is off
  disk-full                    what would grow is refused, as by a full etcd
  no-progress                  etcd does not tell how far it is: streaming lists fail, watches of quiet kinds time out

Every fault but the last three also takes: rate=0.1, times=N, verb=get+list, resource=pods/status+vms.group,
namespace=N, name=PATTERN, user=PATTERN, node=NAME; all take for=SECONDS. In patterns `*` stands for anything.
The seed of the sandbox decides which of the matching requests are hit; `fault log` shows them.";

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Let something go wrong from now on
    #[command(after_help = format!("{HELP}

Examples:
  virt-steward sandbox fault add error:code=500,rate=0.1 --kubeconfig ./kubeconfig
  virt-steward sandbox fault add node-loss:node=node02,for=90
  virt-steward sandbox fault add crash:user=system:serviceaccount:kubevirt:kubevirt-controller,rate=0.05
  virt-steward sandbox fault add webhook-slow:ms=12000,webhook=*.kubevirt.io disk-full:for=30"))]
    Add {
        /// What
        #[arg(required = true, value_name = "FAULT")]
        faults: Vec<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show the faults and how often they happened
    #[command(after_help = "Examples:
  virt-steward sandbox fault list
  virt-steward sandbox fault list -o json")]
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        format: Format,
    },
    /// Show the last 1000 requests that were hit
    #[command(after_help = "Examples:
  virt-steward sandbox fault log
  virt-steward sandbox fault log -o yaml")]
    Log {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        format: Format,
    },
    /// End faults; without ids all of them
    #[command(after_help = "Examples:
  virt-steward sandbox fault clear
  virt-steward sandbox fault clear 2 3")]
    Clear {
        /// As `fault list` shows them
        #[arg(value_name = "ID")]
        ids: Vec<u64>,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, clap::Args)]
pub struct Connection {
    /// The sandbox's kubeconfig; otherwise what kubectl would use
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Format {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// A connection to a sandbox.
struct Sandbox(Cluster);

impl Sandbox {
    async fn connect(connection: &Connection) -> Result<Self> {
        Ok(Self(Cluster::connect(connection.kubeconfig.as_deref(), None).await?))
    }

    async fn send(&self, doing: &str, method: Method, rest: &str, body: &Value) -> Result<Value> {
        let reply = self.0.send(method, &format!("{PATH}{rest}"), "application/json", body).await?;
        let wrong = reply.body["message"].as_str().unwrap_or("the API server gave no reason").to_owned();
        let remedy = match reply.status {
            status if status.is_success() => return Ok(reply.body),
            StatusCode::BAD_REQUEST => "see `virt-steward sandbox fault add --help`",
            StatusCode::FORBIDDEN => {
                "allow nonResourceURLs `/sandbox/v1/faults*` to this user, or take the sandbox's kubeconfig"
            }
            StatusCode::NOT_FOUND if rest.is_empty() || rest == "/log" => {
                "this API server is no sandbox: name the sandbox's kubeconfig with `--kubeconfig`"
            }
            _ => "see `virt-steward sandbox fault list`",
        };
        Err(Problem::new(doing, wrong, remedy).into())
    }
}

/// Carries an action out.
pub async fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Add { faults, connection } => {
            let sandbox = Sandbox::connect(&connection).await?;
            for fault in faults {
                let doing = format!("adding the fault `{fault}`");
                let added = sandbox.send(&doing, Method::POST, "", &json!({"fault": fault})).await?;
                print(&format!("fault {} added: {}\n", added["id"], text(&added, "fault")))?;
            }
        }
        Action::List { connection, format } => {
            let sandbox = Sandbox::connect(&connection).await?;
            let answer = sandbox.send("listing the faults", Method::GET, "", &Value::Null).await?;
            let columns = [
                ("ID", "id"),
                ("FAULT", "fault"),
                ("MATCHED", "matched"),
                ("INJECTED", "injected"),
                ("SEED", "seed"),
            ];
            show(&answer["items"], format.output, &columns, "no faults are active")?;
        }
        Action::Log { connection, format } => {
            let sandbox = Sandbox::connect(&connection).await?;
            let answer = sandbox.send("reading the log of faults", Method::GET, "/log", &Value::Null).await?;
            let columns = [
                ("AT", "at"),
                ("ID", "id"),
                ("N", "number"),
                ("FAULT", "fault"),
                ("VERB", "verb"),
                ("RESOURCE", "resource"),
                ("NAMESPACE", "namespace"),
                ("NAME", "name"),
                ("USER", "user"),
            ];
            show(&answer["items"], format.output, &columns, "nothing was injected")?;
        }
        Action::Clear { ids, connection } => {
            let sandbox = Sandbox::connect(&connection).await?;
            let ids: Vec<String> = ids.iter().map(|id| format!("/{id}")).collect();
            let paths = if ids.is_empty() { vec![String::new()] } else { ids };
            for path in paths {
                let doing = format!("clearing the fault `{}`", path.trim_start_matches('/'));
                let doing = if path.is_empty() { "clearing all faults" } else { &doing };
                let answer = sandbox.send(doing, Method::DELETE, &path, &Value::Null).await?;
                print(&format!("{} cleared\n", answer["cleared"]))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(item: &Value, key: &str) -> String {
    match &item[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn show(items: &Value, output: Output, columns: &[(&str, &str)], nothing: &str) -> Result<()> {
    match output {
        Output::Json => print(&format!("{items:#}\n")),
        Output::Yaml => print(&serde_saphyr::to_string(items)?),
        Output::Table => {
            let items = items.as_array().map_or(&[][..], Vec::as_slice);
            if items.is_empty() {
                eprintln!("{nothing}");
                return Ok(());
            }
            let mut rows = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
            rows.extend(
                items.iter().map(|item| columns.iter().map(|(_, key)| text(item, key)).collect::<Vec<_>>()),
            );
            print(&table::render(&rows))
        }
    }
}
