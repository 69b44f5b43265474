//! Refusals in virt-api's words.

use apimachinery::Status;

pub const NOT_RUNNING: &str = "VM is not running";
pub const VMI_NOT_RUNNING: &str = "VMI is not running";
pub const NO_AGENT: &str = "VMI does not have guest agent connected";
pub const RECOVERY: &str = "VM recovery required: Volume migration failed, leaving some volumes pointing to \
                            non-consistent targets; manual intervention is needed to reassign them to their \
                            original volumes.";

const GROUP: &str = "kubevirt.io";

/// 404 about a VM.
pub fn no_vm(name: &str) -> Status {
    Status::not_found(GROUP, "virtualmachine", name)
}

/// 404 about a VMI.
pub fn no_vmi(name: &str) -> Status {
    Status::not_found(GROUP, "virtualmachineinstance", name)
}

/// 409 about a VM.
pub fn vm_conflict(name: &str, why: &str) -> Status {
    Status::conflict(GROUP, "virtualmachine", name, why)
}

/// 409 about a VMI.
pub fn vmi_conflict(name: &str, why: &str) -> Status {
    Status::conflict(GROUP, "virtualmachineinstance", name, why)
}

/// 403 about a VMI.
pub fn vmi_forbidden(name: &str, why: &str) -> Status {
    let message = format!("virtualmachineinstance.{GROUP} \"{name}\" is forbidden: {why}");
    Status::new(403, "Forbidden", message).about(GROUP, "virtualmachineinstance", name)
}
