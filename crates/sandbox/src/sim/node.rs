//! Simulated nodes: what kubelet, virt-handler's heartbeat and `KubeVirt`'s node-labeller write
//! about a machine that does not exist.

use apimachinery::tree::{Map, Value, json};
use jiff::Timestamp;

use super::json::time;
use super::{CpuVendor, SimConfig};

/// How many VMs a node's device plugins serve at least (`KubeVirt` `virt-handler --max-devices`).
const VIRT_DEVICES: u32 = 1000;

/// What the SR-IOV network device plugin offers on every node, under the name of its own examples
/// (`k8snetworkplumbingwg/sriov-network-device-plugin`), and how many.
pub const VIRTUAL_FUNCTIONS: (&str, u32) = ("intel.com/vf", 16);

/// CPU models that libvirt calls usable on a machine of a vendor, the host model first.
const INTEL_MODELS: [&str; 6] = [
    "Cascadelake-Server",
    "Skylake-Server-IBRS",
    "Broadwell-noTSX-IBRS",
    "Haswell-noTSX",
    "SandyBridge",
    "Penryn",
];
const AMD_MODELS: [&str; 4] = ["EPYC-Milan", "EPYC-Rome", "EPYC-IBPB", "Opteron_G3"];

const COMMON_FEATURES: [&str; 14] = [
    "aes",
    "apic",
    "avx",
    "avx2",
    "fpu",
    "hypervisor",
    "invtsc",
    "nx",
    "pdpe1gb",
    "rdrand",
    "rdtscp",
    "sse4.2",
    "x2apic",
    "xsave",
];
const HYPERV: [&str; 9] =
    ["base", "frequencies", "ipi", "reset", "runtime", "synic", "time", "tlbflush", "vpindex"];

/// The CPU vendor of a node: the same everywhere, or alternating by seed.
pub fn vendor(config: &SimConfig, index: u32) -> CpuVendor {
    match config.cpu_vendor {
        CpuVendor::Mixed if draw(config.seed, index.into()).is_multiple_of(2) => CpuVendor::Intel,
        CpuVendor::Mixed => CpuVendor::Amd,
        one => one,
    }
}

/// `node01`, `node02`, …
pub fn name(index: u32) -> String {
    format!("node{:02}", index + 1)
}

/// The Node object, without what changes from heartbeat to heartbeat.
pub fn object(config: &SimConfig, index: u32, now: Timestamp) -> Value {
    let name = name(index);
    let address = address(index);
    let resources = resources(config);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels(config, index, &name),
            "annotations": {
                "kubevirt.io/heartbeat": time(now),
                "kubevirt.io/ksm-enabled": "false",
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 128 + index / 256 % 128, index % 256),
            "providerID": format!("sandbox://{name}")},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": conditions(now),
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": uuid(config.seed, &format!("boot/{name}")),
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.0",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.2",
                "machineID": uuid(config.seed, &format!("machine/{name}")).replace('-', ""),
                "operatingSystem": "linux",
                "osImage": "virt-steward sandbox",
                "systemUUID": uuid(config.seed, &format!("system/{name}")),
            },
        },
    })
}

/// A node's own address, in the range for benchmarking (RFC 2544): it answers to nobody.
pub fn address(index: u32) -> String {
    format!("198.18.{}.{}", index / 250 % 256, index % 250 + 1)
}

fn labels(config: &SimConfig, index: u32, name: &str) -> Map {
    let mut labels = Map::new();
    let mut set = |key: String, value: &str| {
        labels.set(key, value);
    };
    for (key, value) in [
        ("beta.kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/hostname", name),
        ("kubevirt.io/schedulable", "true"),
        ("kubevirt.io/ksm-enabled", "false"),
        // the name before v1.9, and the one since
        ("cpumanager", "true"),
        ("kubevirt.io/cpumanager", "true"),
        ("kubevirt.io/realtime", "true"),
        ("topology.kubernetes.io/region", "sandbox"),
        ("node-role.kubernetes.io/worker", ""),
        ("cpu-timer.node.kubevirt.io/tsc-frequency", "2495310000"),
        ("cpu-timer.node.kubevirt.io/tsc-scalable", "true"),
        ("scheduling.node.kubevirt.io/tsc-frequency-2495310000", "true"),
    ] {
        set(key.into(), value);
    }
    set("topology.kubernetes.io/zone".into(), ["zone-a", "zone-b", "zone-c"][index as usize % 3]);
    let (vendor, virtualisation, models): (_, _, &[&str]) = match vendor(config, index) {
        CpuVendor::Amd => ("AMD", "svm", &AMD_MODELS),
        CpuVendor::Intel | CpuVendor::Mixed => ("Intel", "vmx", &INTEL_MODELS),
    };
    set(format!("cpu-vendor.node.kubevirt.io/{vendor}"), "true");
    set(format!("host-model-cpu.node.kubevirt.io/{}", models[0]), "true");
    for model in models {
        set(format!("cpu-model.node.kubevirt.io/{model}"), "true");
        set(format!("cpu-model-migration.node.kubevirt.io/{model}"), "true");
    }
    let nested = config.nested_virt.then_some(virtualisation);
    for feature in COMMON_FEATURES.into_iter().chain(nested) {
        set(format!("cpu-feature.node.kubevirt.io/{feature}"), "true");
    }
    for feature in HYPERV {
        set(format!("hyperv.node.kubevirt.io/{feature}"), "true");
    }
    for feature in ["hypervisor", "invtsc"] {
        set(format!("host-model-required-features.node.kubevirt.io/{feature}"), "true");
    }
    for machine in ["q35", "pc-q35-rhel9.6.0", "pc-q35-rhel9.4.0"] {
        set(format!("machine-type.node.kubevirt.io/{machine}"), "true");
    }
    labels
}

fn resources(config: &SimConfig) -> Value {
    let mut resources = json!({
        "cpu": config.node_cpus.to_string(),
        "memory": format!("{}Gi", config.node_memory_gib),
        "ephemeral-storage": "2Ti",
        "hugepages-1Gi": format!("{}Gi", config.node_memory_gib / 4),
        "hugepages-2Mi": "0",
        "pods": config.node_pods.to_string(),
    });
    resources[VIRTUAL_FUNCTIONS.0] = VIRTUAL_FUNCTIONS.1.to_string().into();
    for device in ["kvm", "tun", "vhost-net", "vhost-vsock"] {
        resources[format!("devices.kubevirt.io/{device}")] =
            VIRT_DEVICES.max(config.node_pods).to_string().into();
    }
    resources
}

/// The conditions that kubelet reports on a node that is well.
pub fn conditions(now: Timestamp) -> Value {
    let at = time(now);
    [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    .into_iter()
    .map(|(kind, status, reason, message)| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": at, "lastTransitionTime": at})
    })
    .collect()
}

/// A number that depends on the seed and an index alone (splitmix64).
pub fn draw(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that depends on the seed and a text alone (FNV-1a under splitmix64).
pub fn draw_text(seed: u64, text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    draw(seed, hash)
}

/// A version 4 UUID that depends on the seed and a text alone.
pub fn uuid(seed: u64, text: &str) -> String {
    let (high, low) = (draw_text(seed, text), draw_text(!seed, text));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::json::label;

    #[test]
    fn nodes_depend_on_the_seed_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let config = SimConfig { cpu_vendor: CpuVendor::Mixed, ..SimConfig::default() };
        let vendors: Vec<bool> = (0..32).map(|index| vendor(&config, index) == CpuVendor::Intel).collect();
        assert!(vendors.contains(&true) && vendors.contains(&false), "a mixed cluster has both");
        for index in 0..32 {
            assert_eq!(object(&config, index, now), object(&config, index, now));
        }
        let other = SimConfig { seed: 7, ..config };
        assert_ne!(
            vendors,
            (0..32).map(|index| vendor(&other, index) == CpuVendor::Intel).collect::<Vec<_>>()
        );
    }

    #[test]
    fn labels_say_what_the_vendor_can_do() {
        for (cpu_vendor, nested_virt, feature, present) in [
            (CpuVendor::Intel, true, "vmx", true),
            (CpuVendor::Intel, true, "svm", false),
            (CpuVendor::Amd, true, "svm", true),
            (CpuVendor::Amd, false, "svm", false),
        ] {
            let config = SimConfig { cpu_vendor, nested_virt, ..SimConfig::default() };
            let node = object(&config, 0, Timestamp::UNIX_EPOCH);
            let have = label(&node, &format!("cpu-feature.node.kubevirt.io/{feature}")) == "true";
            assert_eq!(have, present, "{cpu_vendor:?} nested={nested_virt} {feature}");
        }
    }

    #[test]
    fn a_uuid_looks_like_version_4() {
        let id = uuid(1, "x");
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!("89ab".contains(&id[19..20]), "{id}");
    }
}
