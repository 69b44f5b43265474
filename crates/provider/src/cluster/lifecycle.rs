//! Orders: start, stop and the like.

use http::Method;
use serde::Serialize;
use serde_json::Value;

use super::Provider;
use crate::order::Order;
use crate::view::text;
use crate::wait::Goal;
use crate::{Error, Kind, VmId};

/// What became of an order.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    /// The VM's namespace.
    pub namespace: String,
    /// The VM's name.
    pub name: String,
    /// The operation.
    pub operation: String,
    /// It was only asked whether it would be done.
    pub dry_run: bool,
    /// What to wait for, when it leaves a trace in the API.
    #[serde(skip)]
    pub goal: Option<Goal>,
}

impl Provider {
    /// Gives an order. The answer means that KubeVirt has taken it, not that it is done; wait for the
    /// goal for that. The order is sent once.
    pub async fn order(&self, vm: &VmId, order: Order, dry_run: bool) -> Result<Done, Error> {
        let doing = format!("{} VM `{vm}`", order.doing());
        // a restart is told from the instance that was there before; and "VMI not found" says less
        // than "the VM is off"
        let (_, vmi) = self.observe(vm, &doing).await?;
        let needs_instance = order.resource() == "virtualmachineinstances";
        if needs_instance {
            runs(vm, vmi.as_ref(), &doing)?;
        }
        if !dry_run || order.has_dry_run() {
            let body = order.body(dry_run);
            let taken = self.write(Method::PUT, &order.path(vm), "application/json", &body, &doing).await;
            taken.map_err(|error| look_at(vm, error))?;
        }
        Ok(Done {
            namespace: vm.namespace().into(),
            name: vm.name().into(),
            operation: order.verb().into(),
            dry_run,
            goal: order.goal(vmi.as_ref()),
        })
    }
}

/// The instance of a VM, when it runs; otherwise an error in words.
pub(super) fn runs<'a>(vm: &VmId, vmi: Option<&'a Value>, doing: &str) -> Result<&'a Value, Error> {
    let (wrong, remedy) = match vmi.map(|vmi| (vmi, text(vmi, "/status/phase"))) {
        Some((vmi, "Running")) => return Ok(vmi),
        None | Some((_, "Succeeded" | "Failed")) => {
            ("the VM is off".to_owned(), format!("start it: `virt-steward vm start {vm} --wait`"))
        }
        Some((_, phase)) => {
            let phase = if phase.is_empty() { "not seen by KubeVirt yet" } else { phase };
            let remedy = format!("see what it waits for: `virt-steward vm describe {vm}`");
            (format!("its instance is {phase}"), remedy)
        }
    };
    Err(Error::new(Kind::WrongState, doing, wrong, remedy))
}

/// Where the state of a VM is in the way, its name stands in the remedy.
fn look_at(vm: &VmId, mut error: Error) -> Error {
    if error.kind == Kind::WrongState {
        error.remedy = format!("look at its state: `virt-steward vm describe {vm}`");
    }
    error
}
