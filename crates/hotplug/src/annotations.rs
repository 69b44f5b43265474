//! The annotations and labels that people write, and those that we write.

/// On an attachment pod, its VMI or its namespace, with the value `true`: whatever the guard
/// would deny is allowed. Who may set it is a matter of RBAC; each use is audited.
pub const BREAK_GLASS: &str = "vm-feature-manager.io/hotplug-break-glass";

/// On a `StorageClass`, `true`: a filesystem volume counts as covered only by a pod that mounts
/// it, not by one that lists it. For drivers that tear down a volume in use.
pub const STRICT: &str = "vm-feature-manager.io/hotplug-strict";

/// On a `StorageClass`, `true`: its driver refuses to publish a volume to a second pod of the
/// same node, so a replacement can never start beside the pod that it replaces.
pub const EXCLUSIVE_PUBLISH: &str = "vm-feature-manager.io/hotplug-exclusive-publish";

/// On a `StorageClass`, `true`: its driver makes a device for each publication, so the pod that a
/// guest's volume was first taken from has to stay as long as the guest uses it.
pub const PIN: &str = "vm-feature-manager.io/hotplug-pin";

/// On a namespace, as a label, `true`: it cannot be deleted while VMs run in it.
pub const PROTECT: &str = "vm-feature-manager.io/protect-running-vms";

/// On a Lease that stands for one launcher pod: grants and denials ([`crate::record`]).
pub const RECORD: &str = "vm-feature-manager.io/hotplug-record";

/// On a VMI: when it was last nudged. virt-controller looks at a VMI again when it changes.
pub const NUDGE: &str = "vm-feature-manager.io/hotplug-nudge";

/// KubeVirt's label of attachment pods, and its value.
pub const ATTACHMENT: (&str, &str) = ("kubevirt.io", "hotplug-disk");

/// KubeVirt's annotation on a pod that only makes a `WaitForFirstConsumer` claim bind.
pub const TRIGGER: &str = "kubevirt.io/ephemeral-provisioning";

/// KubeVirt's label on the launcher and attachment pods of a migration target.
pub const MIGRATION: &str = "kubevirt.io/migrationJobUID";
