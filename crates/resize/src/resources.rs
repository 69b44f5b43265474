//! What the launcher's container has to have after a resize.
//!
//! KubeVirt renders a pod from the whole VMI (`services/renderresources.go`,
//! `hypervisor/kvm/hypervisorbackend.go`, v1.9). Here only the difference between two sizes of the
//! same VMI is computed, and added to what the running pod has: whatever else went into the pod
//! (devices, probes, plugins) stays in it.

use crate::size::{Amount, Asked, Compute, Size};

/// Overhead of QEMU and libvirt for each vCPU, bytes.
const PER_VCPU: u64 = 8 << 20;
/// Overhead for page tables: this part of the VMI's memory request.
const PER_REQUESTED: u64 = 512;

/// What the cluster is configured to, as far as sizes depend on it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rules {
    /// `developerConfiguration.cpuAllocationRatio`: vCPUs on one CPU, 10 by default.
    pub cpu_allocation_ratio: u32,
    /// `developerConfiguration.memoryOvercommit`: guest memory in percent of what is requested,
    /// 100 by default.
    pub memory_overcommit: u32,
    /// `configuration.additionalGuestMemoryOverheadRatio` in thousandths, 1000 by default.
    pub overhead_ratio: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { cpu_allocation_ratio: 10, memory_overcommit: 100, overhead_ratio: 1000 }
    }
}

/// One size of a VMI with what it asks for at that size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Demand {
    /// Sockets and memory.
    pub size: Size,
    /// vCPUs of one socket: cores times threads.
    pub vcpus_per_socket: u32,
    /// `spec.domain.resources`
    pub asked: Asked,
    /// `overcommitGuestOverhead`: the overhead is not requested.
    pub overcommit_overhead: bool,
}

impl Demand {
    /// The number of vCPUs.
    pub fn vcpus(&self) -> u64 {
        u64::from(self.size.sockets.max(1)) * u64::from(self.vcpus_per_socket.max(1))
    }

    /// The part of the overhead that depends on the size, bytes.
    fn overhead(&self, rules: &Rules) -> u64 {
        let parts = PER_VCPU * self.vcpus() + self.asked.memory_request.unwrap_or(0) / PER_REQUESTED;
        let scaled = u128::from(parts) * u128::from(rules.overhead_ratio) / 1000;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// The memory request without overhead: the VMI's own, else its limit, else the guest's memory
    /// with the cluster's overcommit.
    fn memory(&self, rules: &Rules) -> u64 {
        self.asked.memory_request.or(self.asked.memory_limit).unwrap_or_else(|| {
            let guest = u128::from(self.size.guest) * 100 / u128::from(rules.memory_overcommit.max(1));
            u64::try_from(guest).unwrap_or(u64::MAX)
        })
    }
}

/// The container's resources when the VMI goes from one demand to another.
///
/// A limit that the pod has and the VMI does not ask for was set by KubeVirt because of a quota or
/// a namespace label (`auto` limits): it follows the vCPUs, and the memory request in the ratio
/// that the pod shows.
pub fn resized(pod: Compute, old: &Demand, new: &Demand, rules: &Rules) -> Compute {
    let per_vcpu = 1000 / u64::from(rules.cpu_allocation_ratio.max(1));
    let cpu_request = match (old.asked.cpu_request, new.asked.cpu_request) {
        (Some(old), Some(new)) => moved(pod.cpu.request, old, new),
        _ => moved(pod.cpu.request, old.vcpus() * per_vcpu, new.vcpus() * per_vcpu),
    };
    let cpu_limit = pod.cpu.limit.map(|limit| match (old.asked.cpu_limit, new.asked.cpu_limit) {
        (Some(old), Some(new)) => moved(limit, old, new),
        _ => moved(limit, old.vcpus() * 1000, new.vcpus() * 1000),
    });
    let (old_overhead, new_overhead) = (old.overhead(rules), new.overhead(rules));
    let requested = |demand: &Demand, overhead: u64| {
        demand.memory(rules).saturating_add(if demand.overcommit_overhead { 0 } else { overhead })
    };
    let memory_request =
        moved(pod.memory.request, requested(old, old_overhead), requested(new, new_overhead));
    let memory_limit = pod.memory.limit.map(|limit| match (old.asked.memory_limit, new.asked.memory_limit) {
        (Some(old), Some(new)) => {
            moved(limit, old.saturating_add(old_overhead), new.saturating_add(new_overhead))
        }
        _ => in_proportion(limit, pod.memory.request, memory_request),
    });
    Compute {
        cpu: Amount { request: cpu_request, limit: cpu_limit },
        memory: Amount { request: memory_request, limit: memory_limit },
    }
}

/// What a VMI asks for at another size, as the VM controller moves it (`VMICPUsPatch` and
/// `handleMemoryHotplugRequest`, `watch/vm/vm.go`, v1.9). The memory delta is taken from the guest
/// memory in the spec: the real controller takes `status.memory.guestCurrent`, which a plug raises
/// (race R2) and which libvirt 11.3 counts wrongly after a guest reset.
pub fn asked_at(from: &Demand, to: Size, follows: Follows, rules: &Rules) -> Asked {
    let grown = Demand { size: to, ..*from };
    let per_vcpu = 1000 / u64::from(rules.cpu_allocation_ratio.max(1));
    let cpu =
        |have: Option<u64>, follows: bool| {
            have.map(|have| {
                if follows { moved(have, from.vcpus() * per_vcpu, grown.vcpus() * per_vcpu) } else { have }
            })
        };
    let memory = |have: u64| moved(have, from.size.guest, to.guest);
    let changes_memory = from.size.guest != to.guest;
    Asked {
        cpu_request: cpu(from.asked.cpu_request, follows.cpu_request),
        cpu_limit: cpu(from.asked.cpu_limit, follows.cpu_limit),
        memory_request: from.asked.memory_request.map(|have| {
            // Never less than the guest has.
            if changes_memory { memory(have).max(to.guest) } else { have }
        }),
        memory_limit: from.asked.memory_limit.map(
            |have| {
                if follows.memory_limit { memory(have) } else { have }
            },
        ),
    }
}

/// Which resources the VM's template names, and so follow its size.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Follows {
    /// `requests.cpu`
    pub cpu_request: bool,
    /// `limits.cpu`
    pub cpu_limit: bool,
    /// `limits.memory`
    pub memory_limit: bool,
}

/// A value that moves as another one does.
fn moved(value: u64, old: u64, new: u64) -> u64 {
    if new >= old { value.saturating_add(new - old) } else { value.saturating_sub(old - new) }
}

fn in_proportion(value: u64, old: u64, new: u64) -> u64 {
    if old == 0 {
        return value;
    }
    u64::try_from(u128::from(value) * u128::from(new) / u128::from(old)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MI: u64 = 1 << 20;
    const GI: u64 = 1 << 30;

    fn demand(sockets: u32, guest: u64, asked: Asked) -> Demand {
        Demand { size: Size { sockets, guest }, vcpus_per_socket: 1, asked, overcommit_overhead: false }
    }

    fn pod(cpu: (u64, Option<u64>), memory: (u64, Option<u64>)) -> Compute {
        Compute {
            cpu: Amount { request: cpu.0, limit: cpu.1 },
            memory: Amount { request: memory.0, limit: memory.1 },
        }
    }

    /// Two sockets and 1 GiB become four and 2 GiB: 400m and 2360Mi, recorded of virt-controller.
    #[test]
    fn a_pod_without_limits_gets_what_kubevirt_renders() {
        let none = Asked::default();
        let grown = resized(
            pod((200, None), (1320 * MI, None)),
            &demand(2, GI, none),
            &demand(4, 2 * GI, none),
            &Rules::default(),
        );
        assert_eq!(grown, pod((400, None), (2360 * MI, None)));
    }

    #[test]
    fn explicit_requests_and_limits_move_by_their_own_difference() {
        let asked = |cpu, memory| Asked {
            cpu_request: Some(cpu),
            cpu_limit: Some(cpu),
            memory_request: Some(memory),
            memory_limit: Some(memory),
        };
        let grown = resized(
            pod((2000, Some(2000)), (2 * GI, Some(2 * GI))),
            &demand(2, GI, asked(2000, GI)),
            &demand(4, 2 * GI, asked(2200, 2 * GI)),
            &Rules::default(),
        );
        let memory = 3 * GI + 16 * MI + GI / 512;
        assert_eq!(grown, pod((2200, Some(2200)), (memory, Some(memory))), "Guaranteed stays Guaranteed");
    }

    #[test]
    fn automatic_limits_follow_vcpus_and_the_memory_request() {
        let none = Asked::default();
        let grown = resized(
            pod((200, Some(2000)), (1320 * MI, Some(2640 * MI))),
            &demand(2, GI, none),
            &demand(3, GI, none),
            &Rules::default(),
        );
        assert_eq!(grown, pod((300, Some(3000)), (1328 * MI, Some(2656 * MI))));
    }

    #[test]
    fn the_clusters_ratios_count() {
        let none = Asked::default();
        let rules = Rules { cpu_allocation_ratio: 4, memory_overcommit: 200, overhead_ratio: 1500 };
        let (old, new) = (demand(1, 2 * GI, none), demand(3, 4 * GI, none));
        let grown = resized(pod((250, None), (GI, None)), &old, &new, &rules);
        assert_eq!(grown, pod((750, None), (2 * GI + 24 * MI, None)));
        let free = Demand { overcommit_overhead: true, ..old };
        let grown = resized(
            pod((250, None), (GI, None)),
            &free,
            &Demand { overcommit_overhead: true, ..new },
            &rules,
        );
        assert_eq!(grown.memory.request, 2 * GI, "the overhead is not requested");
    }

    #[test]
    fn a_vmi_asks_for_more_as_the_vm_controller_would_have_it() {
        let asked = Asked {
            cpu_request: Some(500),
            cpu_limit: Some(4000),
            memory_request: Some(GI / 2),
            memory_limit: Some(2 * GI),
        };
        let from = demand(2, GI, asked);
        let to = Size { sockets: 4, guest: 3 * GI };
        let all = Follows { cpu_request: true, cpu_limit: true, memory_limit: true };
        let rules = Rules::default();
        assert_eq!(
            asked_at(&from, to, all, &rules),
            Asked {
                cpu_request: Some(700),
                cpu_limit: Some(4200),
                memory_request: Some(3 * GI),
                memory_limit: Some(4 * GI),
            },
            "requests.memory is floored at the guest's memory"
        );
        let requests_only = asked_at(&from, to, Follows::default(), &rules);
        assert_eq!(requests_only.cpu_request, Some(500), "the template does not name it");
        assert_eq!(requests_only.memory_limit, Some(2 * GI));
        let same_memory = asked_at(&from, Size { sockets: 4, guest: GI }, all, &rules);
        assert_eq!(same_memory.memory_request, Some(GI / 2), "memory that stays is left alone");
    }
}
