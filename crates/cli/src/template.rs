//! `virt-steward template`: VM templates.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use jiff::Timestamp;
use provider::cluster::{Parameters, random};
use provider::template::{Processed, Template, process};
use provider::view::text;
use serde_json::json;

use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, age, document, or_none};
use crate::problem::Problem;
use crate::table;
use crate::vm::{Patience, Progress};

/// Arguments of `template`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a VM from a template
    Create(CreateArgs),
    /// Delete a template
    Delete(DeleteArgs),
    /// Show a template and its parameters
    Get(GetArgs),
    /// List templates
    List(ListArgs),
    /// Make a template from a VM
    Make(MakeArgs),
    /// Fill a template in and print the VM
    Process(ProcessArgs),
}

/// Values of parameters.
#[derive(Debug, clap::Args)]
pub struct Values {
    /// The value of a parameter; several times
    #[arg(short, long = "param", value_name = "NAME=VALUE")]
    param: Vec<String>,
    /// A file with `NAME: VALUE` in YAML; `--param` wins
    #[arg(long, value_name = "FILE")]
    params_file: Option<PathBuf>,
}

impl Values {
    /// Reads file and flags.
    pub fn read(&self) -> Result<Parameters> {
        let mut values = Parameters::new();
        if let Some(path) = &self.params_file {
            let text = crate::documents::text(path)?;
            values = serde_saphyr::from_str(&text).map_err(|error| {
                let doing = format!("reading parameters from `{}`", path.display());
                Problem::new(doing, error, "write `NAME: \"value\"`, one a line")
            })?;
        }
        for pair in &self.param {
            let Some((name, value)) = pair.split_once('=') else {
                let doing = format!("reading the parameter `{pair}`");
                return Err(Problem::new(doing, "it has no value", "write NAME=VALUE").into());
            };
            values.insert(name.into(), value.into());
        }
        Ok(values)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template create fedora -p NAME=web --start --wait
  virt-steward template create golden/fedora -n golden -p NAME=web --dry-run

The VM is made in the template's namespace, unless the template says otherwise.")]
struct CreateArgs {
    /// The template, as `name` or `namespace/name`
    #[arg(value_name = "TEMPLATE")]
    name: String,
    #[command(flatten)]
    values: Values,
    #[command(flatten)]
    scope: Scope,
    /// Start the VM once it is there
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    patience: Patience,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template delete fedora --dry-run
  virt-steward template delete fedora")]
struct DeleteArgs {
    /// The template, as `name` or `namespace/name`
    #[arg(value_name = "TEMPLATE")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template get fedora
  virt-steward template get fedora -o yaml")]
struct GetArgs {
    /// The template, as `name` or `namespace/name`
    #[arg(value_name = "TEMPLATE")]
    name: String,
    #[command(flatten)]
    scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template list
  virt-steward template list -A -o json")]
struct ListArgs {
    #[command(flatten)]
    scope: Scope,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template make golden --from web --wait
  virt-steward template make golden --from web --dry-run

KubeVirt takes a snapshot of the VM and copies its disks, so it needs the gates `Template` and `Snapshot`.")]
struct MakeArgs {
    /// The template's name
    #[arg(value_name = "TEMPLATE")]
    name: String,
    /// The VM, as `name` or `namespace/name`
    #[arg(long, value_name = "VM", add = crate::completing::vms())]
    from: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    patience: Patience,
    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template process fedora -p NAME=web
  virt-steward template process fedora -p NAME=web -o json | kubectl apply -f -
  virt-steward template process -f template.yaml -p NAME=web

With a file no cluster is asked.")]
struct ProcessArgs {
    /// The template, as `name` or `namespace/name`
    #[arg(value_name = "TEMPLATE", required_unless_present = "filename", conflicts_with = "filename")]
    name: Option<String>,
    /// A file with a `VirtualMachineTemplate`; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
    #[command(flatten)]
    values: Values,
    #[command(flatten)]
    scope: Scope,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Document::Yaml)]
    output: Document,
}

/// Runs the verb.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Create(args) => create(args).await,
        Verb::Delete(args) => delete(args).await,
        Verb::Get(args) => get(args).await,
        Verb::List(args) => list(args).await,
        Verb::Make(args) => make(args).await,
        Verb::Process(args) => processed(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

const fn dry(dry_run: bool) -> &'static str {
    if dry_run { " (server dry run)" } else { "" }
}

async fn create(args: CreateArgs) -> Result<()> {
    let values = args.values.read()?;
    let (provider, template) = args.scope.connect_for(&args.name).await?;
    let done = provider.create_from_template(&template, &values, args.dry_run).await.map_err(problem)?;
    let vm = &done.virtual_machine;
    let (namespace, name) = (text(vm, "/metadata/namespace"), text(vm, "/metadata/name"));
    if !args.dry_run {
        let namespace = if namespace.is_empty() { template.namespace() } else { namespace };
        let id = provider::VmId::new(namespace, name).map_err(problem)?;
        crate::vm::start_and_wait(&provider, &id, args.start, args.patience).await?;
    }
    if let Some(format) = args.output {
        return document(format, &done);
    }
    tell(&done);
    print(&format!("virtualmachine.kubevirt.io/{name} created{}\n", dry(args.dry_run)))
}

/// What the template has to say to its users, on standard error.
fn tell(done: &Processed) {
    if let Some(message) = &done.message {
        eprintln!("{message}");
    }
}

async fn delete(args: DeleteArgs) -> Result<()> {
    let (provider, template) = args.scope.connect_for(&args.name).await?;
    provider.delete_template(&template, args.dry_run).await.map_err(problem)?;
    let name = template.name();
    print(&format!("virtualmachinetemplate.template.kubevirt.io/{name} deleted{}\n", dry(args.dry_run)))
}

async fn get(args: GetArgs) -> Result<()> {
    let (provider, template) = args.scope.connect_for(&args.name).await?;
    let found = Template::of(&provider.template_object(&template).await.map_err(problem)?);
    if let Some(format) = args.output {
        return document(format, &found);
    }
    let mut page = table::render(&[
        vec!["Name:".into(), template.to_string()],
        vec!["Ready:".into(), if found.ready { "yes" } else { "no" }.into()],
        vec!["Message:".into(), or_none(found.message)],
    ]);
    if !found.parameters.is_empty() {
        let header = ["PARAMETER", "REQUIRED", "VALUE", "DESCRIPTION"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(found.parameters.into_iter().map(|one| {
            let value = one.value.or(one.from.map(|pattern| format!("drawn from {pattern}")));
            let required = if one.required { "yes" } else { "no" };
            vec![one.name, required.into(), or_none(value), or_none(one.description)]
        }));
        page.push('\n');
        page.push_str(&table::fit(&rows));
    }
    print(&page)
}

async fn list(args: ListArgs) -> Result<()> {
    let (provider, namespace) = args.scope.connect().await?;
    let namespace = (!args.all_namespaces).then_some(namespace.as_str());
    let found = provider.templates(namespace).await.map_err(problem)?;
    if let Some(format) = args.output {
        return document(format, &json!({"items": found}));
    }
    if found.is_empty() {
        eprintln!("No templates found.");
        return Ok(());
    }
    let (now, header) = (Timestamp::now(), ["NAMESPACE", "NAME", "READY", "AGE", "PARAMETERS"]);
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(found.into_iter().map(|one| {
        let names: Vec<String> = one
            .parameters
            .into_iter()
            .map(|parameter| if parameter.required { format!("{}*", parameter.name) } else { parameter.name })
            .collect();
        let names = Some(names.join(",")).filter(|text| !text.is_empty());
        let (ready, age) = (if one.ready { "yes" } else { "no" }, age(&one.created, now));
        vec![one.namespace, one.name, ready.into(), age, or_none(names)]
    }));
    print(&table::fit(&rows))
}

async fn make(args: MakeArgs) -> Result<()> {
    let (provider, vm) = args.scope.connect_for(&args.from).await?;
    let template = provider.make_template(&vm, &args.name, args.dry_run).await.map_err(problem)?;
    if args.patience.wait && !args.dry_run {
        let mut progress = Progress::of(&template);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_template(&template, args.patience.timeout, note).await.map_err(problem)?;
    }
    let accepted = if args.patience.wait || args.dry_run { "" } else { " (accepted)" };
    let name = template.name();
    let dry = dry(args.dry_run);
    print(&format!("virtualmachinetemplate.template.kubevirt.io/{name} made{accepted}{dry}\n"))
}

async fn processed(args: ProcessArgs) -> Result<()> {
    let values = args.values.read()?;
    let done = match (&args.filename, &args.name) {
        (Some(path), _) => {
            let objects = crate::documents::read(path)?;
            let found = objects.iter().find(|one| text(one, "/kind") == "VirtualMachineTemplate");
            let template = found.ok_or_else(|| {
                let doing = format!("reading a template from `{}`", path.display());
                Problem::new(doing, "there is none in it", "give a file with a VirtualMachineTemplate")
            })?;
            process(template, &values, &mut random()).map_err(problem)?
        }
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let (provider, template) = args.scope.connect_for(name).await?;
            provider.process_template(&template, &values).await.map_err(problem)?
        }
    };
    tell(&done);
    document(args.output, &done.virtual_machine)
}
