//! vCPUs and memory of a domain, and what plug requests do to them: recorded of virt-launcher v1.9
//! with libvirt 11.3 and QEMU 10.0.

use apimachinery::tree::Value;

use apimachinery::quantity::units;

use crate::sim::json;

/// virtio-mem is plugged in blocks of this size, bytes.
const BLOCK: i64 = 2 << 20;

/// How many times a guest that was reset is looked at before its virtio-mem driver is back: a second. Recorded were
/// 10 to 15 s, without KVM.
const BOOT: u32 = 20;

/// What becomes of a plug request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// libvirt has taken it; the guest may follow later.
    Success,
    /// Not done, in libvirt's words.
    Failure(String),
    /// The launcher dies of it, and the guest with it.
    Panic,
}

/// A virtio-mem device: its size, what was asked of it, what the guest has taken, and in which blocks. All in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VirtioMem {
    pub size: i64,
    pub requested: i64,
    pub current: i64,
    pub block: i64,
}

/// The sizes of a domain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Machine {
    /// `<namespace>_<name>`
    pub domain: String,
    uid: String,
    /// vCPUs that are on, as libvirt counts them.
    pub vcpus: i64,
    /// Those of them that the guest has lost by unplugs that libvirt took for failed.
    lost: i64,
    /// vCPUs that there could be.
    most_vcpus: i64,
    /// vCPUs of a socket.
    per_socket: i64,
    boot: i64,
    /// The virtio-mem device, once something was plugged: its size, and what was asked of it.
    device: Option<(i64, i64)>,
    /// What the guest has taken of it.
    current: i64,
    /// What libvirt 11.3 still counts although a reset has taken it away.
    miscounted: i64,
    /// How many times its driver is still away after a reset, while the guest boots.
    boots_for: u32,
}

fn bytes(vmi: &Value, pointer: &str) -> Option<i64> {
    vmi.pointer(pointer).and_then(units)
}

fn count(vmi: &Value, key: &str) -> i64 {
    json::integer(vmi, &format!("/spec/domain/cpu/{key}")).max(1)
}

/// vCPUs of a socket.
fn per_socket(vmi: &Value) -> i64 {
    count(vmi, "cores") * count(vmi, "threads")
}

fn domain_name(vmi: &Value) -> String {
    format!("{}_{}", json::namespace(vmi), json::name(vmi))
}

impl Machine {
    /// The machine of a VMI at power-on.
    pub fn of(vmi: &Value) -> Self {
        let vcpus = count(vmi, "sockets") * per_socket(vmi);
        Self {
            domain: domain_name(vmi),
            uid: json::uid(vmi).to_owned(),
            vcpus,
            lost: 0,
            most_vcpus: (count(vmi, "maxSockets") * per_socket(vmi)).max(vcpus),
            per_socket: per_socket(vmi),
            boot: bytes(vmi, "/spec/domain/memory/guest").unwrap_or(0),
            device: None,
            current: 0,
            miscounted: 0,
            boots_for: 0,
        }
    }

    /// `SyncVirtualMachineCPUs`. A VMI without `spec.domain.cpu` counts as one vCPU.
    pub fn sync_cpus(&mut self, vmi: &Value) -> Answer {
        if domain_name(vmi) != self.domain {
            return Answer::Failure(format!("failed to update vCPUs: {}", not_found(vmi)));
        }
        let wanted = count(vmi, "sockets") * per_socket(vmi);
        if wanted > self.most_vcpus {
            return Answer::Failure(format!(
                "failed to update vCPUs: virError(Code=8, Domain=10, Message='invalid argument: requested vcpus is greater than max allowable vcpus for the live domain: {wanted} > {}')",
                self.most_vcpus
            ));
        }
        if wanted < self.vcpus {
            // One is tried per call. The guest loses it, and libvirt goes on counting it.
            self.lost = (self.lost + 1).min(self.vcpus - 1);
            return Answer::Failure(
                "failed to update vCPUs: virError(Code=68, Domain=10, Message='Timed out during operation: vcpu unplug request timed out. Unplug result must be manually inspected in the domain')".into(),
            );
        }
        self.vcpus = wanted;
        Answer::Success
    }

    /// `SyncVirtualMachineMemory`. What it reads of the VMI is dereferenced without a check.
    pub fn sync_memory(&mut self, vmi: &Value) -> Answer {
        let test = "kubevirt.io/func-test-memory-hotplug-fail";
        if json::annotation(vmi, test).is_some() {
            return Answer::Failure(test.into());
        }
        if domain_name(vmi) != self.domain {
            return Answer::Failure(format!("failed to update Guest Memory: {}", not_found(vmi)));
        }
        let (Some(guest), Some(most), Some(boot)) = (
            bytes(vmi, "/spec/domain/memory/guest"),
            bytes(vmi, "/spec/domain/memory/maxGuest"),
            bytes(vmi, "/status/memory/guestAtBoot"),
        ) else {
            return Answer::Panic;
        };
        let wanted = guest - boot;
        if wanted < 0 {
            return Answer::Failure(format!(
                "Memory size '{}Mi' must be greater than or equal to 0",
                wanted >> 20
            ));
        }
        // A later maxGuest does not change the device.
        let size = self.device.map_or(most - boot, |(size, _)| size);
        let refused =
            |why: &str| Answer::Failure(format!("LibvirtError(Code=35, Domain=20, Message='{why}')"));
        if wanted % BLOCK != 0 {
            return refused("requested size must be an integer multiple of block size");
        }
        if wanted > size {
            return refused(&format!(
                "requested size must be smaller than or equal to @size ({}KiB)",
                size >> 10
            ));
        }
        self.device = Some((size, wanted));
        Answer::Success
    }

    /// The guest's driver follows what was asked, by at most so many bytes. False: it has all.
    pub fn follow(&mut self, step: i64) -> bool {
        let Some((_, requested)) = self.device else { return false };
        if self.boots_for > 0 {
            self.boots_for -= 1;
            return true;
        }
        let left = requested - self.current;
        self.current += left.clamp(-step, step);
        left != 0
    }

    /// A reset takes virtio-mem away until the driver is back; vCPUs stay.
    /// libvirt does not notice, and counts what comes back a second time.
    pub fn reset(&mut self) {
        self.miscounted += self.current;
        self.current = 0;
        self.boots_for = BOOT;
    }

    /// libvirt's `currentMemory`, which becomes `status.memory.guestCurrent`: right until the first
    /// reset of a guest with plugged memory.
    pub fn counted(&self) -> i64 {
        self.memory() + self.miscounted
    }

    /// Boot memory and what virtio-mem gives, bytes.
    pub fn memory(&self) -> i64 {
        self.boot + self.current
    }

    /// vCPUs that the guest works with.
    pub fn online(&self) -> i64 {
        self.vcpus - self.lost
    }

    /// vCPUs that there could be.
    pub fn most_vcpus(&self) -> i64 {
        self.most_vcpus
    }

    /// vCPUs of the first socket, which cannot be unplugged.
    pub fn per_socket(&self) -> i64 {
        self.per_socket
    }

    /// Memory at power-on, bytes.
    pub fn boot(&self) -> i64 {
        self.boot
    }

    /// The virtio-mem device, once there is one, bytes.
    pub fn virtio_mem(&self) -> Option<VirtioMem> {
        let (size, requested) = self.device?;
        Some(VirtioMem { size, requested, current: self.current, block: BLOCK })
    }

    /// The uid of the VMI that the domain was defined for.
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// libvirt knows no domain of this VMI.
pub fn not_found(vmi: &Value) -> String {
    format!(
        "virError(Code=42, Domain=10, Message='Domain not found: no domain with matching name '{}'')",
        domain_name(vmi)
    )
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    fn vmi(sockets: i64, guest: &str) -> Value {
        json!({"metadata": {"name": "labvm", "namespace": "lab", "uid": "u"},
            "spec": {"domain": {"cpu": {"sockets": sockets, "cores": 1, "threads": 1, "maxSockets": 4},
                "memory": {"guest": guest, "maxGuest": "4Gi"}}},
            "status": {"memory": {"guestAtBoot": "1Gi"}}})
    }

    fn failed(answer: Answer) -> String {
        match answer {
            Answer::Failure(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plugs_and_refusals_are_the_recorded_ones() {
        let mut machine = Machine::of(&vmi(1, "1Gi"));
        assert_eq!(machine.sync_cpus(&vmi(3, "1Gi")), Answer::Success);
        assert_eq!(machine.sync_memory(&vmi(3, "2Gi")), Answer::Success);
        assert_eq!(machine.memory(), 1 << 30, "success is not plugged");
        while machine.follow(256 << 20) {}
        assert_eq!(machine.memory(), 2 << 30);
        for (answer, expected) in [
            (machine.sync_cpus(&vmi(5, "2Gi")), "max allowable vcpus for the live domain: 5 > 4')"),
            (machine.sync_memory(&vmi(3, "5Gi")), "smaller than or equal to @size (3145728KiB)')"),
            (machine.sync_memory(&vmi(3, "2049Mi")), "integer multiple of block size')"),
            (
                machine.sync_memory(&vmi(3, "512Mi")),
                "Memory size '-512Mi' must be greater than or equal to 0",
            ),
        ] {
            assert!(failed(answer).ends_with(expected));
        }
        let mut other = vmi(3, "2Gi");
        other["metadata"]["name"] = "other".into();
        assert_eq!(
            failed(machine.sync_memory(&other)),
            "failed to update Guest Memory: virError(Code=42, Domain=10, Message='Domain not found: no domain with matching name 'lab_other'')"
        );
        assert_eq!((machine.vcpus, machine.memory()), (3, 2 << 30));
    }

    #[test]
    fn what_kills_a_launcher_and_what_costs_a_vcpu() {
        let mut machine = Machine::of(&vmi(3, "1Gi"));
        let mut stub = vmi(3, "2Gi");
        stub["spec"]["domain"]["memory"].as_object_mut().unwrap().remove("maxGuest");
        assert_eq!(machine.sync_memory(&stub), Answer::Panic);
        stub["spec"]["domain"].as_object_mut().unwrap().remove("cpu");
        assert!(failed(machine.sync_cpus(&stub)).contains("unplug request timed out"));
        assert_eq!((machine.online(), machine.vcpus), (2, 3), "recorded: libvirt does not notice");
    }

    #[test]
    fn a_reset_takes_plugged_memory_away_for_a_while() {
        let mut machine = Machine::of(&vmi(1, "1Gi"));
        machine.sync_memory(&vmi(1, "2Gi"));
        while machine.follow(1 << 30) {}
        machine.reset();
        let device = machine.virtio_mem().unwrap();
        assert_eq!((device.requested, device.current), (1 << 30, 0));
        assert!(machine.follow(1 << 30));
        assert_eq!(machine.memory(), 1 << 30, "the guest boots");
        while machine.follow(1 << 30) {}
        assert_eq!(machine.memory(), 2 << 30);
        assert_eq!(machine.counted(), 3 << 30, "recorded: libvirt counts it twice");
    }
}
