//! `virt-steward vm list` and `vm get`.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use futures::{Stream, StreamExt as _, TryStreamExt as _, pin_mut};
use jiff::Timestamp;
use provider::Provider;
use provider::cluster::{Change, UsageByVm};
use provider::select::{Selection, SortBy, sort};
use provider::view::VmSummary;
use serde_json::json;

use crate::connection::{Scope, VM, object, problem};
use crate::output::print;
use crate::presented::{Document, Format, age, document, or_none, size};
use crate::table;

/// Which VMs, and how they are shown.
#[derive(Debug, clap::Args)]
pub struct Choice {
    #[command(flatten)]
    pub scope: Scope,

    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    /// Only VMs with these labels, as in `app=web,tier!=test`
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,

    /// Only names that match a pattern of `*` and `?`
    #[arg(long, value_name = "PATTERN")]
    pub name: Option<String>,

    /// Only these states, as in `Running,Paused`
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub status: Vec<String>,

    /// Only what runs on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Sort by this
    #[arg(long, value_enum, value_name = "COLUMN")]
    pub sort_by: Option<Column>,

    /// With what each VM uses; see `virt-steward top`
    #[arg(long)]
    pub usage: bool,

    #[command(flatten)]
    pub from: crate::top::From,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// What can be sorted by.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Column {
    /// Name
    Name,
    /// State
    Status,
    /// Node
    Node,
    /// Youngest first
    Age,
    /// Most virtual CPUs first
    Cpu,
    /// Most memory first
    Memory,
}

/// Arguments of `vm list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm list
  virt-steward vm list -A --status Running --node node-2 -o wide
  virt-steward vm list -l app=web --name 'web-*' --sort-by memory
  virt-steward vm list -o json
  virt-steward vm list -A --usage
  virt-steward vm list --watch")]
pub struct Args {
    #[command(flatten)]
    choice: Choice,

    /// Go on with every change
    #[arg(short, long, conflicts_with_all = ["sort_by", "usage"])]
    watch: bool,
}

/// Arguments of `vm get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm get
  virt-steward vm get web
  virt-steward vm get web prod/db -o yaml")]
pub struct GetArgs {
    /// VMs, as `name` or `namespace/name`; without any, all of the namespace
    #[arg(value_name = "VM", add = crate::completing::vms())]
    names: Vec<String>,

    #[command(flatten)]
    scope: Scope,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

impl Choice {
    /// What is asked of the cluster.
    pub fn selection(&self, namespace: String) -> Selection {
        Selection {
            namespace: (!self.all_namespaces).then_some(namespace),
            label_selector: self.selector.clone(),
            name: self.name.clone(),
            status: self.status.clone(),
            node: self.node.clone(),
        }
    }
}

/// Lists VMs.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, namespace) = args.choice.scope.connect().await?;
    let selection = args.choice.selection(namespace);
    if args.watch {
        return watch(&provider, selection, args.choice.all_namespaces, args.choice.output).await;
    }
    show(&provider, selection, &args.choice).await
}

/// Shows one list.
pub async fn show(provider: &Provider, selection: Selection, choice: &Choice) -> Result<ExitCode> {
    let prometheus = choice.from.prometheus()?;
    let namespace = selection.namespace.clone();
    let used = async {
        if choice.usage {
            provider.usage_by_vm(namespace.as_deref(), prometheus.as_ref()).await
        } else {
            Ok(UsageByVm::default())
        }
    };
    let (pages, usage) = futures::join!(provider.list(selection), used);
    let (pages, mut usage) = (pages.map_err(problem)?, usage.map_err(problem)?);
    let (source, notes) = (usage.source, std::mem::take(&mut usage.notes));
    let pages = pages.map_ok(move |mut page| {
        for vm in &mut page {
            usage.give(vm);
        }
        page
    });
    pin_mut!(pages);
    match (choice.output, choice.sort_by) {
        // nothing has to be held back, so nothing is
        (Some(Format::Json), None) => stream_json(pages).await?,
        (Some(Format::Name), None) => {
            while let Some(page) = pages.try_next().await.map_err(problem)? {
                print(&page.iter().map(name_line).collect::<String>())?;
            }
        }
        (output, by) => {
            let mut vms: Vec<VmSummary> = pages.try_concat().await.map_err(problem)?;
            if let Some(by) = by {
                sort(&mut vms, sort_by(by));
            }
            let shape = Shape { wide: false, with_namespace: choice.all_namespaces, usage: choice.usage };
            present(&vms, output, shape)?;
            if let (None | Some(Format::Wide), Some(source)) = (output, source) {
                crate::top::tell(source, &notes);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The document of a list, written page by page.
async fn stream_json(
    mut pages: impl Stream<Item = Result<Vec<VmSummary>, provider::Error>> + Unpin,
) -> Result<()> {
    print("{\"items\": [")?;
    let mut first = true;
    while let Some(page) = pages.try_next().await.map_err(problem)? {
        let mut text = String::new();
        for vm in &page {
            text.push_str(if first { "\n  " } else { ",\n  " });
            text.push_str(&serde_json::to_string(vm)?);
            first = false;
        }
        print(&text)?;
    }
    print("\n]}\n")
}

const fn sort_by(column: Column) -> SortBy {
    match column {
        Column::Name => SortBy::Name,
        Column::Status => SortBy::Status,
        Column::Node => SortBy::Node,
        Column::Age => SortBy::Age,
        Column::Cpu => SortBy::Cpu,
        Column::Memory => SortBy::Memory,
    }
}

/// Shows some VMs by name, in the order of the command line; or all.
pub async fn get(args: GetArgs) -> Result<ExitCode> {
    let (provider, namespace) = args.scope.connect().await?;
    let mut vms = Vec::new();
    if args.names.is_empty() {
        let all = Selection { namespace: Some(namespace.clone()), ..Selection::default() };
        vms = provider.list_all(all).await.map_err(problem)?;
    }
    for name in &args.names {
        let vm = object(VM, name, &namespace)?;
        vms.push(provider.describe(&vm).await.map_err(problem)?.summary);
    }
    let with_namespace = args.names.iter().any(|name| name.contains('/'));
    present(&vms, args.output, Shape { with_namespace, ..Shape::default() })?;
    Ok(ExitCode::SUCCESS)
}

/// Which columns a table has.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    wide: bool,
    with_namespace: bool,
    usage: bool,
}

fn present(vms: &[VmSummary], output: Option<Format>, shape: Shape) -> Result<()> {
    match output {
        Some(Format::Json) => document(Document::Json, &json!({"items": vms})),
        Some(Format::Yaml) => document(Document::Yaml, &json!({"items": vms})),
        Some(Format::Name) => print(&vms.iter().map(name_line).collect::<String>()),
        output if vms.is_empty() => {
            let _ = output;
            eprintln!("No VMs found.");
            Ok(())
        }
        output => {
            let (shape, now) = (Shape { wide: output == Some(Format::Wide), ..shape }, Timestamp::now());
            let mut rows = vec![header(shape)];
            rows.extend(vms.iter().map(|vm| row(vm, shape, now)));
            print(&table::fit(&rows))
        }
    }
}

fn name_line(vm: &VmSummary) -> String {
    format!("{VM}/{}\n", vm.name)
}

fn header(shape: Shape) -> Vec<String> {
    let mut cells = vec!["NAMESPACE", "NAME", "STATUS", "AGE", "CPU", "MEMORY", "NODE", "ADDRESS"];
    if shape.usage {
        cells.extend(["USED CPU", "USED MEMORY"]);
    }
    if shape.wide {
        cells.extend(["STRATEGY", "MIGRATABLE", "AGENT", "GUEST", "NOTES"]);
    }
    cells.into_iter().skip(usize::from(!shape.with_namespace)).map(str::to_owned).collect()
}

fn row(vm: &VmSummary, shape: Shape, now: Timestamp) -> Vec<String> {
    let mut cells = vec![
        vm.namespace.clone(),
        vm.name.clone(),
        vm.status.clone(),
        age(&vm.created, now),
        or_none(vm.vcpus.map(|count| count.to_string())),
        or_none(vm.memory_bytes.map(size)),
        or_none(vm.node.clone()),
        or_none(vm.addresses.first().cloned()),
    ];
    if shape.usage {
        let usage = vm.usage.as_ref();
        cells.push(or_none(usage.and_then(|usage| usage.cpu_milli).map(|milli| format!("{milli}m"))));
        cells.push(or_none(usage.and_then(|usage| usage.memory_bytes).map(size)));
    }
    if shape.wide {
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        cells.push(vm.run_strategy.clone());
        cells.push(or_none(vm.migratable.map(yes)));
        cells.push(yes(vm.agent_connected));
        cells.push(or_none(vm.guest_os.clone()));
        cells.push(or_none(Some(vm.notes.join(",")).filter(|notes| !notes.is_empty())));
    }
    cells.drain(..usize::from(!shape.with_namespace));
    cells
}

/// Prints each change until ctrl-c, or until the API server ends the watch; then it begins again.
async fn watch(
    provider: &Provider,
    selection: Selection,
    with_namespace: bool,
    output: Option<Format>,
) -> Result<ExitCode> {
    let stop = crate::shutdown::token()?;
    let shape = Shape { wide: output == Some(Format::Wide), with_namespace, usage: false };
    if matches!(output, None | Some(Format::Wide)) {
        print(&watch_line(&header(shape)))?;
    }
    // what a new watch says again was printed already
    let mut printed: std::collections::HashMap<(String, String), VmSummary> =
        std::collections::HashMap::new();
    loop {
        let changes = provider.watch(selection.clone()).await.map_err(problem)?;
        pin_mut!(changes);
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
            };
            let Some(change) = change else { break };
            let change = match change {
                Ok(change) => change,
                // the history is gone: begin with a list again
                Err(error) if error.kind == provider::Kind::Expired => break,
                Err(error) => return Err(problem(error)),
            };
            let (Change::Updated(vm) | Change::Removed(vm)) = &change;
            let key = (vm.namespace.clone(), vm.name.clone());
            if matches!(change, Change::Updated(_)) && printed.get(&key) == Some(vm) {
                continue;
            }
            print(&line(&change, output, shape)?)?;
            match change {
                Change::Updated(vm) => printed.insert(key, vm),
                Change::Removed(_) => printed.remove(&key),
            };
        }
    }
}

fn line(change: &Change, output: Option<Format>, shape: Shape) -> Result<String> {
    let (Change::Updated(vm) | Change::Removed(vm)) = change;
    Ok(match output {
        Some(Format::Json) => format!("{}\n", serde_json::to_string(change)?),
        Some(Format::Yaml) => format!("---\n{}", crate::diff::yaml(&serde_json::to_value(change)?)?),
        Some(Format::Name) => name_line(vm),
        _ => {
            let mut vm = vm.clone();
            if matches!(change, Change::Removed(_)) {
                vm.status = "<gone>".into();
            }
            watch_line(&row(&vm, shape, Timestamp::now()))
        }
    })
}

/// Columns of a table whose rows are not known yet.
fn watch_line(cells: &[String]) -> String {
    let line: Vec<String> = cells.iter().map(|cell| format!("{cell:<16}")).collect();
    format!("{}\n", line.join("  ").trim_end())
}
