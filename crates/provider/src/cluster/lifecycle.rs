//! Orders: start, stop and the like.

use http::Method;
use serde::Serialize;

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
        let phase = vmi.as_ref().map_or("", |vmi| text(vmi, "/status/phase"));
        if needs_instance && phase != "Running" {
            let wrong =
                if phase.is_empty() { "the VM is off".into() } else { format!("its instance is {phase}") };
            let remedy = "start it, or wait until it runs: `virt-steward vm start --wait`";
            return Err(Error::new(Kind::WrongState, doing, wrong, remedy));
        }
        if !dry_run || order.has_dry_run() {
            let body = order.body(dry_run);
            self.write(Method::PUT, &order.path(vm), "application/json", &body, &doing).await?;
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
