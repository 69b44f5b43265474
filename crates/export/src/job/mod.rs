//! Exports as objects of the cluster: the custom resource `VMExportJob`, as pure rules.
//!
//! ```text
//!            schedule, or once                  concurrency
//!  VMExportJob ─────────────► run: one export for each VM ────────► Job (batch/v1) ─► pod: virt-steward export
//!       ▲                                                                                     │
//!       └──── status: phase, progress, conditions ◄── the operator: phases ── the pod: status.exports.VM.progress
//! ```
//!
//! [`spec`] reads what is asked for, [`cron`] knows when, [`plan`] decides what the operator does next,
//! [`pod`] is what runs. Nothing here talks to a cluster.

pub mod cron;
pub mod plan;
pub mod pod;
pub mod retention;
pub mod spec;

pub use spec::{Mistake, Spec};

/// The API group of the resource.
pub const GROUP: &str = "vm-feature-manager.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";
/// Its plural name.
pub const PLURAL: &str = "vmexportjobs";
/// On Jobs and their pods: the name of the `VMExportJob`.
pub const LABEL_JOB: &str = "vm-feature-manager.io/export-job";
/// On Jobs and their pods: the run that they belong to.
pub const LABEL_RUN: &str = "vm-feature-manager.io/export-run";
/// On Jobs: the VM that is exported.
pub const ANNOTATION_VM: &str = "vm-feature-manager.io/export-vm";
/// On service accounts: pods of `VMExportJobs` may run as them.
pub const LABEL_ACCOUNT: &str = "vm-feature-manager.io/export-jobs";
