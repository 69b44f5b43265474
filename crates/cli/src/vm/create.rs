//! `virt-steward vm create`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use provider::order::Order;
use provider::view::{VmSummary, text};
use provider::wait::Goal;
use provider::{Provider, VmId};
use serde_json::{Value, json};

use super::act::{Patience, Progress};
use crate::connection::{Scope, problem};
use crate::output::print;
use crate::presented::{Document, document};
use crate::problem::Problem;

/// Arguments of `vm create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  virt-steward vm create -f vm.yaml
  virt-steward vm create -f vm.yaml --start --wait
  virt-steward vm create -f - --dry-run -o yaml < vm.yaml")]
pub struct Args {
    /// Files with `VirtualMachine` objects, YAML or JSON; `-` is standard input
    #[arg(short, long, value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    #[command(flatten)]
    scope: Scope,

    /// Only let the API server check it
    #[arg(long)]
    dry_run: bool,

    /// Run it, whatever its `runStrategy` says: sets `Always`
    #[arg(long)]
    start: bool,

    #[command(flatten)]
    patience: Patience,

    /// Form of the answer
    #[arg(short, long, value_enum)]
    output: Option<Document>,
}

/// Starts a VM that has just been made, and waits until it runs.
pub async fn start_and_wait(provider: &Provider, vm: &VmId, start: bool, patience: Patience) -> Result<()> {
    if start {
        provider.order(vm, Order::Start { paused: false }, false).await.map_err(problem)?;
    }
    if start && patience.wait {
        let mut progress = Progress::of(vm);
        let note = &mut |standing: &str| progress.note(standing);
        provider.wait(vm, &Goal::Running, patience.timeout, note).await.map_err(problem)?;
    }
    Ok(())
}

/// Gives volumes that name no storage class the one of the provider's configuration.
fn give_class(vm: &mut Value, class: &str) {
    let Some(templates) = vm.pointer_mut("/spec/dataVolumeTemplates").and_then(Value::as_array_mut) else {
        return;
    };
    for template in templates {
        for kind in ["storage", "pvc"] {
            if let Some(wanted) =
                template.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_object_mut)
            {
                wanted.entry("storageClassName").or_insert_with(|| class.into());
            }
        }
    }
}

/// Creates each VM of the files, in their order; stops at the first that cannot be.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (provider, default_namespace) = args.scope.connect().await?;
    let class = args.scope.metadata()?.storage_class;
    let mut created = Vec::new();
    for file in &args.filename {
        let objects = crate::documents::read(file)?;
        if objects.is_empty() {
            let doing = format!("creating VMs from `{}`", file.display());
            return Err(
                Problem::new(doing, "there is no object in it", "give a file with a VirtualMachine").into()
            );
        }
        for mut object in objects {
            let own = text(&object, "/metadata/namespace").to_owned();
            let namespace = match (&args.scope.namespace, own.as_str()) {
                (None, own) if !own.is_empty() => own.to_owned(),
                _ => default_namespace.clone(),
            };
            if let Some(class) = &class {
                give_class(&mut object, class);
            }
            if args.start && object["spec"].is_object() {
                object["spec"]["runStrategy"] = "Always".into();
                // the deprecated field and the strategy exclude each other
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.remove("running");
                }
            }
            let made = provider.create_vm(&namespace, &object, args.dry_run).await.map_err(problem)?;
            let summary = VmSummary::of(&made, None);
            if args.output.is_none() {
                let dry = if args.dry_run { " (server dry run)" } else { "" };
                print(&format!("virtualmachine.kubevirt.io/{} created{dry}\n", summary.name))?;
            }
            if args.patience.wait && !args.dry_run && summary.run_strategy == "Always" {
                let vm = VmId::new(&summary.namespace, &summary.name).map_err(problem)?;
                let mut progress = Progress::of(&vm);
                let note = &mut |standing: &str| progress.note(standing);
                provider.wait(&vm, &Goal::Running, args.patience.timeout, note).await.map_err(problem)?;
            }
            created.push(made);
        }
    }
    if let Some(format) = args.output {
        document(format, &json!({"items": created}))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_that_name_no_class_get_the_one_of_the_configuration() {
        let mut vm = json!({"spec": {"dataVolumeTemplates": [
            {"spec": {"storage": {}}}, {"spec": {"pvc": {"storageClassName": "slow"}}}, {"spec": {}}]}});
        give_class(&mut vm, "fast");
        assert_eq!(
            vm["spec"]["dataVolumeTemplates"],
            json!([{"spec": {"storage": {"storageClassName": "fast"}}},
                {"spec": {"pvc": {"storageClassName": "slow"}}}, {"spec": {}}])
        );
        give_class(&mut json!([1]), "fast");
    }
}
