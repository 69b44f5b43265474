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
use crate::verbs::{AtOnce, How, Listing, Showing, dry};
use crate::vm::Progress;

/// As kubectl names them.
const RESOURCE: &str = "virtualmachinetemplate.template.kubevirt.io";

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
    /// Start the VM once it is there
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    how: How,
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
    how: AtOnce,
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
    showing: Showing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward template list
  virt-steward template list -A -o json")]
struct ListArgs {
    #[command(flatten)]
    listing: Listing,
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
    how: How,
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

async fn create(CreateArgs { name, values, start, how }: CreateArgs) -> Result<()> {
    let values = values.read()?;
    let (provider, template) = how.scope.connect_to(RESOURCE, &name).await?;
    let done = provider.create_from_template(&template, &values, how.dry_run).await.map_err(problem)?;
    let vm = &done.virtual_machine;
    let (namespace, name) = (text(vm, "/metadata/namespace"), text(vm, "/metadata/name"));
    if !how.dry_run {
        let namespace = if namespace.is_empty() { template.namespace() } else { namespace };
        let id = provider::VmId::new(namespace, name).map_err(problem)?;
        crate::vm::start_and_wait(&provider, &id, start, how.patience).await?;
    }
    if let Some(format) = how.output {
        return document(format, &done);
    }
    tell(&done);
    print(&format!("virtualmachine.kubevirt.io/{name} created{}\n", dry(how.dry_run)))
}

/// What the template has to say to its users, on standard error.
fn tell(done: &Processed) {
    if let Some(message) = &done.message {
        eprintln!("{message}");
    }
}

async fn delete(DeleteArgs { name, how }: DeleteArgs) -> Result<()> {
    let (provider, template) = how.scope.connect_to(RESOURCE, &name).await?;
    provider.delete_template(&template, how.dry_run).await.map_err(problem)?;
    how.deleted(RESOURCE, &template)
}

async fn get(GetArgs { name, showing }: GetArgs) -> Result<()> {
    let (provider, template) = showing.scope.connect_to(RESOURCE, &name).await?;
    let found = Template::of(&provider.template_object(&template).await.map_err(problem)?);
    showing.show(&found, page)
}

fn page(one: &Template) -> String {
    let mut page = table::render(&[
        vec!["Name:".into(), format!("{}/{}", one.namespace, one.name)],
        vec!["Ready:".into(), if one.ready { "yes" } else { "no" }.into()],
        vec!["Message:".into(), or_none(one.message.clone())],
    ]);
    if !one.parameters.is_empty() {
        let header = ["PARAMETER", "REQUIRED", "VALUE", "DESCRIPTION"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(one.parameters.iter().map(|one| {
            let drawn = one.from.as_ref().map(|pattern| format!("drawn from {pattern}"));
            let required = if one.required { "yes" } else { "no" };
            let value = or_none(one.value.clone().or(drawn));
            vec![one.name.clone(), required.into(), value, or_none(one.description.clone())]
        }));
        page.push('\n');
        page.push_str(&table::fit(&rows));
    }
    page
}

async fn list(ListArgs { listing }: ListArgs) -> Result<()> {
    let (provider, namespace) = listing.place().await?;
    let found = provider.templates(namespace.as_deref()).await.map_err(problem)?;
    listing.show("templates", &found, |one| format!("{RESOURCE}/{}", one.name), present)
}

fn present(found: &[Template]) -> String {
    let (now, header) = (Timestamp::now(), ["NAMESPACE", "NAME", "READY", "AGE", "PARAMETERS"]);
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(found.iter().map(|one| {
        let names: Vec<String> = one
            .parameters
            .iter()
            .map(|one| if one.required { format!("{}*", one.name) } else { one.name.clone() })
            .collect();
        let names = Some(names.join(",")).filter(|text| !text.is_empty());
        let (ready, age) = (if one.ready { "yes" } else { "no" }, age(&one.created, now));
        vec![one.namespace.clone(), one.name.clone(), ready.into(), age, or_none(names)]
    }));
    table::fit(&rows)
}

async fn make(MakeArgs { name, from, how }: MakeArgs) -> Result<()> {
    let (provider, vm) = how.scope.connect_for(&from).await?;
    let template = provider.make_template(&vm, &name, how.dry_run).await.map_err(problem)?;
    if let Some(timeout) = how.waits() {
        let mut progress = Progress::of(&template);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait_template(&template, timeout, note).await.map_err(problem)?;
    }
    let answer = json!({"namespace": template.namespace(), "name": template.name(), "vm": vm.name()});
    how.tell(&format!("{RESOURCE}/{} made", template.name()), &answer)
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
            let (provider, template) = args.scope.connect_to(RESOURCE, name).await?;
            provider.process_template(&template, &values).await.map_err(problem)?
        }
    };
    tell(&done);
    document(args.output, &done.virtual_machine)
}
