//! A trait for each capability, so that code that needs one of them says which, and takes no more.
//!
//! [`Provider`] has all of them. Each method is that of the provider of the same name, where its rules are
//! written down.
//!
//! ```
//! use provider::api::{Inventory, Snapshots};
//! use provider::{Error, VmId};
//!
//! /// Needs to look at VMs and to take snapshots; cannot stop one.
//! async fn nightly(cluster: &(impl Inventory + Snapshots), vm: &VmId) -> Result<String, Error> {
//!     let seen = Inventory::describe(cluster, vm).await?;
//!     let name = format!("{}-nightly", seen.summary.name);
//!     Ok(Snapshots::snapshot(cluster, vm, Some(&name), false).await?.name)
//! }
//! ```

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::capability::Capabilities as Found;
use crate::clone::Origin;
use crate::cluster::{
    Changed, Channel, Done, Expansion, ExportWish, MigrateTo, NodeDetail, Parameters, Prometheus, Provider,
    Tunnel, Underway, VolumeChange,
};
use crate::disposal::{Disks, Plan};
use crate::instancetype::{Instancetype, Preference};
use crate::jobs::{Job, Request};
use crate::order::Order;
use crate::select::Selection;
use crate::snapshot::Snapshot;
use crate::template::{Processed, Template};
use crate::usage::{Report, Source};
use crate::view::detail::Interface;
use crate::view::export::Export;
use crate::view::guest::{GuestFileSystem, GuestOs, GuestUser};
use crate::view::migration::Migration;
use crate::view::node::NodeSummary;
use crate::view::volume::Volume;
use crate::view::{VmDetail, VmSummary};
use crate::wait::Goal;
use crate::{Error, VmId, clone, device, network};

/// Who is told where something stands.
pub type Note<'a> = &'a mut (dyn FnMut(&str) + Send);

macro_rules! capability {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* fn $method:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)* }) => {
        $(#[$about])*
        pub trait $name: Send + Sync {
            $(
                $(#[$doc])*
                fn $method(&self, $($argument: $kind),*) -> impl Future<Output = Result<$answer, Error>> + Send;
            )*
        }

        impl $name for Provider {
            $(
                async fn $method(&self, $($argument: $kind),*) -> Result<$answer, Error> {
                    Provider::$method(self, $($argument),*).await
                }
            )*
        }
    };
}

capability! {
    /// VMs, looked at.
    Inventory {
        /// All VMs of a selection.
        fn list_all(selection: Selection) -> Vec<VmSummary>;
        /// Everything about one.
        fn describe(vm: &VmId) -> VmDetail;
    }
}

capability! {
    /// VMs made and taken away.
    Lifecycle {
        /// Creates a VM from an object.
        fn create_vm(namespace: &str, object: &Value, dry_run: bool) -> Value;
        /// What deleting it would do to its disks.
        fn plan_delete(vm: &VmId, wish: Disks) -> Plan;
        /// Carries such a plan out.
        fn delete(vm: &VmId, plan: &Plan, dry_run: bool) -> ();
    }
}

capability! {
    /// Orders: start, stop and the like.
    Power {
        /// Gives an order, once.
        fn order(vm: &VmId, order: Order, dry_run: bool) -> Done;
        /// Waits until a VM is where it should be.
        fn wait(vm: &VmId, goal: &Goal, timeout: Duration, note: Note<'_>) -> ();
    }
}

capability! {
    /// Live migrations.
    Migrations {
        /// Asks for one.
        fn migrate(vm: &VmId, to: &MigrateTo, dry_run: bool) -> Migration;
        /// Those of a namespace, or all.
        fn migrations(namespace: Option<&str>) -> Vec<Migration>;
        /// One of them.
        fn migration(id: &VmId) -> Migration;
        /// Ends that of a VM.
        fn cancel_migration(vm: &VmId, dry_run: bool) -> Migration;
        /// Ends one by its own name.
        fn end_migration(id: &VmId, dry_run: bool) -> Migration;
        /// Waits until one has ended well.
        fn wait_migration(migration: &Migration, timeout: Duration, note: Note<'_>) -> Migration;
    }
}

capability! {
    /// Snapshots and restores.
    Snapshots {
        /// Asks for a snapshot.
        fn snapshot(vm: &VmId, name: Option<&str>, dry_run: bool) -> Snapshot;
        /// Those of a namespace, or all.
        fn snapshots(namespace: Option<&str>, vm: Option<&str>) -> Vec<Snapshot>;
        /// One of them.
        fn get_snapshot(namespace: &str, name: &str) -> Snapshot;
        /// Deletes one.
        fn delete_snapshot(namespace: &str, name: &str, dry_run: bool) -> ();
        /// Asks for a restore.
        fn restore(target: &VmId, snapshot: &str, stop: bool, dry_run: bool) -> Underway;
        /// Waits until a snapshot can be restored from.
        fn wait_snapshot(snapshot: &Snapshot, timeout: Duration, note: Note<'_>) -> Snapshot;
        /// Waits until a restore has brought everything back.
        fn wait_restore(restore: &Underway, timeout: Duration, note: Note<'_>) -> ();
    }
}

capability! {
    /// Copies of VMs.
    Clones {
        /// Asks for one.
        fn clone_vm(namespace: &str, origin: &Origin, wish: &clone::Wish, dry_run: bool) -> Underway;
        /// Waits until it is there.
        fn wait_clone(clone: &Underway, timeout: Duration, note: Note<'_>) -> ();
    }
}

capability! {
    /// Volumes.
    Volumes {
        /// Those of a VM, with the claims behind them.
        fn volumes(vm: &VmId) -> Vec<Volume>;
        /// The next step of a change.
        fn step_volumes(vm: &VmId, change: &VolumeChange, dry_run: bool) -> Changed;
        /// Carries a change out; what does not reach the guest in time is taken back.
        fn change_volumes(vm: &VmId, change: &VolumeChange, timeout: Duration, note: Note<'_>) -> Changed;
        /// Makes a claim larger.
        fn expand_volume(vm: &VmId, volume: &str, size: &str, dry_run: bool) -> Expansion;
        /// Waits until it is.
        fn wait_expansion(expansion: &Expansion, timeout: Duration, note: Note<'_>) -> ();
    }
}

capability! {
    /// Exports: KubeVirt's export server for a VM or a snapshot.
    Exports {
        /// Asks for one.
        fn export(vm: &VmId, wish: &ExportWish, dry_run: bool) -> Export;
        /// One of them, with its links.
        fn get_export(id: &VmId) -> Export;
        /// Waits until its volumes can be fetched.
        fn wait_export(export: &Export, timeout: Duration, note: Note<'_>) -> Export;
        /// Ends one.
        fn delete_export(id: &VmId, dry_run: bool) -> ();
    }
}

capability! {
    /// Exports that the cluster carries out by itself.
    Jobs {
        /// Makes a job.
        fn submit_job(request: &Request, dry_run: bool) -> Job;
        /// Those of a namespace, or all.
        fn jobs(namespace: Option<&str>) -> Vec<Job>;
        /// One of them.
        fn job(namespace: &str, name: &str) -> Job;
        /// Cancels one, or lets one that was cancelled go on.
        fn suspend_job(namespace: &str, name: &str, suspend: bool, dry_run: bool) -> Job;
        /// What its pods said: their names, and the ends of their logs.
        fn job_logs(namespace: &str, name: &str) -> Vec<(String, String)>;
        /// Deletes one; what it exported stays.
        fn delete_job(namespace: &str, name: &str, dry_run: bool) -> ();
    }
}

capability! {
    /// Network interfaces.
    Networks {
        /// Those of a VM.
        fn nics(vm: &VmId) -> Vec<Interface>;
        /// Changes them, and says when that takes effect.
        fn change_nic(vm: &VmId, wish: &network::Wish, dry_run: bool) -> network::Change;
        /// Waits until the guest has what was wished.
        fn wait_nic(vm: &VmId, wish: &network::Wish, change: &network::Change, timeout: Duration, note: Note<'_>) -> ();
    }
}

capability! {
    /// GPUs and other host devices.
    Devices {
        /// Attaches or detaches one, on the next start.
        fn change_device(vm: &VmId, wish: &device::Wish, dry_run: bool) -> device::Change;
    }
}

capability! {
    /// Templates.
    Templates {
        /// Those of a namespace, or all.
        fn templates(namespace: Option<&str>) -> Vec<Template>;
        /// Fills one in.
        fn process_template(template: &VmId, parameters: &Parameters) -> Processed;
        /// Creates a VM from one.
        fn create_from_template(template: &VmId, parameters: &Parameters, dry_run: bool) -> Processed;
        /// Asks for one to be made from a VM.
        fn make_template(vm: &VmId, name: &str, dry_run: bool) -> VmId;
        /// Waits until it is made.
        fn wait_template(template: &VmId, timeout: Duration, note: Note<'_>) -> ();
        /// Deletes one.
        fn delete_template(template: &VmId, dry_run: bool) -> ();
    }
}

capability! {
    /// Instance types and preferences.
    Instancetypes {
        /// Instance types.
        fn instancetypes(namespace: Option<&str>) -> Vec<Instancetype>;
        /// Preferences.
        fn preferences(namespace: Option<&str>) -> Vec<Preference>;
        /// The instance type that a VM of a namespace means by a name.
        fn instancetype(id: &VmId) -> Instancetype;
        /// The preference that a VM of a namespace means by a name.
        fn preference(id: &VmId) -> Preference;
    }
}

capability! {
    /// What VMs use.
    Metering {
        /// From the best source there is.
        fn usage(namespace: Option<&str>, prometheus: Option<&Prometheus>, only: Option<Source>) -> Report;
    }
}

capability! {
    /// Ways into a guest.
    Consoles {
        /// Opens one.
        fn open(vm: &VmId, channel: Channel) -> Tunnel;
        /// What is on the screen, as PNG.
        fn screenshot(vm: &VmId) -> Bytes;
    }
}

capability! {
    /// Questions to the guest agent.
    Guests {
        /// What the guest is.
        fn guest_os(vm: &VmId) -> GuestOs;
        /// Who is logged in.
        fn guest_users(vm: &VmId) -> Vec<GuestUser>;
        /// What is mounted.
        fn guest_file_systems(vm: &VmId) -> Vec<GuestFileSystem>;
    }
}

capability! {
    /// Nodes.
    Nodes {
        /// All, with what runs on them.
        fn nodes() -> Vec<NodeSummary>;
        /// One of them.
        fn node(name: &str) -> NodeDetail;
    }
}

capability! {
    /// What a cluster can do, and what the caller may do.
    Capabilities {
        /// In a namespace.
        fn capabilities(namespace: &str) -> Found;
    }
}
