//! The virt-launcher pod of a VMI (`RenderLaunchManifest`, `services/template.go` and
//! `renderresources.go`, v1.9), for what the simulation knows: container disks, claims, cloud-init
//! and configuration volumes, passthrough devices, pinning, hugepages and hook sidecars.

use apimachinery::tree::{Map, Value, json};

use super::overhead;
use super::vm_status::SyncError;
use crate::sim::cluster::ClusterConfig;
use crate::sim::hotplug::pod::TEMPORARY;
use crate::sim::json::{self, list, map, put, text};
use apimachinery::quantity::{self, milli, units};
use kubevirt::feature_gates::PLUGINS;

/// The volume for the sockets of Plugins (VEP 190).
const PLUGIN_SOCKETS: &str = "kubevirt-plugin-sockets";
/// Added to the guest's grace period for the launcher, and once more for the pod.
const GRACE_PADDING: i64 = 15;

/// A pod like it that runs no guest: it gets the claims bound (`RenderLaunchManifestNoVm`).
pub fn render_temporary(vmi: &Value, config: &ClusterConfig) -> Result<Value, SyncError> {
    let mut pod = render(vmi, config)?;
    put(&mut pod, &["metadata", "annotations", TEMPORARY], "true");
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        if container["name"] == "compute" {
            container["command"] = json!(["/bin/bash"]);
            container["args"] = json!(["-c", "echo", "bound PVCs"]);
        }
    }
    Ok(pod)
}

/// The pod, or why there can be none.
pub fn render(vmi: &Value, config: &ClusterConfig) -> Result<Value, SyncError> {
    let refused = |message: String| SyncError {
        reason: "FailedCreate",
        message: format!("failed to render launch manifest: {message}"),
    };
    not_permitted(vmi, config).map_err(refused)?;
    let sidecars = hook_sidecars(vmi).map_err(refused)?;
    let overhead = overhead::memory(vmi);
    let image = config.release.image("virt-launcher");
    let (name, namespace, uid) = (json::name(vmi), json::namespace(vmi), json::uid(vmi));
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("virt-launcher-{name}-"),
            "namespace": namespace,
            "labels": labels(vmi),
            "annotations": annotations(vmi, overhead),
            "ownerReferences": [{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": name,
                "uid": uid, "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "volumes": volumes(vmi, &sidecars, config, &image),
            "initContainers": init_containers(vmi, &image),
            "containers": [compute(vmi, config, overhead, sidecars.len(), &image)],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_period(vmi).saturating_add(2 * GRACE_PADDING),
            "dnsPolicy": "ClusterFirst",
            "nodeSelector": node_selector(vmi),
            "automountServiceAccountToken": false,
            "securityContext": {"runAsUser": 107, "runAsGroup": 107, "runAsNonRoot": true, "fsGroup": 107},
            "hostname": host_name(name),
            "affinity": affinity(vmi),
            "schedulerName": match text(vmi, "/spec/schedulerName") { "" => "default-scheduler", other => other },
            "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
            "enableServiceLinks": false,
        },
    });
    for (index, sidecar) in sidecars.iter().enumerate() {
        if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
            containers.push(sidecar_container(index, sidecar, &config.release.image("sidecar-shim")));
        }
    }
    for key in ["tolerations", "topologySpreadConstraints", "priorityClassName", "dnsConfig", "subdomain"] {
        if let Some(value) = vmi["spec"].get(key) {
            pod["spec"][key] = value.clone();
        }
    }
    let claimed = claimed_devices(vmi);
    if !claimed.is_empty() {
        pod["spec"]["resourceClaims"] = vmi["spec"]["resourceClaims"].clone();
        pod["spec"]["containers"][0]["resources"]["claims"] = claimed.into();
    }
    Ok(pod)
}

/// The guest's own grace period: 30 s when nothing is said.
pub fn grace_period(vmi: &Value) -> i64 {
    vmi.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30)
}

fn host_name(name: &str) -> &str {
    // A host name is a DNS label; a VMI name may be longer and have dots (`SanitizeHostname`).
    let label = name.split('.').next().unwrap_or(name);
    &label[..label.len().min(63)]
}

/// What the compute container uses of the pod's claims (`WithGPUsDRA`, `WithHostDevicesDRA`).
fn claimed_devices(vmi: &Value) -> Vec<Value> {
    ["/spec/domain/devices/gpus", "/spec/domain/devices/hostDevices"]
        .iter()
        .flat_map(|pointer| list(vmi, pointer))
        .filter(|device| device.get("claimName").is_some())
        .map(|device| json!({"name": device["claimName"], "request": device["requestName"]}))
        .collect()
}

/// Devices that the cluster does not permit (`validatePermittedHostDevices`).
fn not_permitted(vmi: &Value, config: &ClusterConfig) -> Result<(), String> {
    let Some(permitted) = &config.permitted else { return Ok(()) };
    let denied: Vec<String> =
        [("GPU", "/spec/domain/devices/gpus"), ("HostDevice", "/spec/domain/devices/hostDevices")]
            .iter()
            .flat_map(|(kind, pointer)| list(vmi, pointer).iter().map(move |device| (kind, device)))
            .filter(|(_, device)| {
                device.get("claimName").is_none() && !permitted.contains(text(device, "/deviceName"))
            })
            .map(|(kind, device)| {
                format!(
                    "{kind} {} is not permitted in permittedHostDevices configuration",
                    text(device, "/deviceName")
                )
            })
            .collect();
    if denied.is_empty() { Ok(()) } else { Err(denied.join(" ")) }
}

/// The entries of the hook sidecar annotation (`hooks.UnmarshalHookSidecarList`).
fn hook_sidecars(vmi: &Value) -> Result<Vec<Value>, String> {
    match json::annotation(vmi, "hooks.kubevirt.io/hookSidecars") {
        None | Some("") => Ok(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
    }
}

fn labels(vmi: &Value) -> Map {
    let mut labels = map(vmi, "/metadata/labels").cloned().unwrap_or_default();
    let name = json::name(vmi);
    for (key, value) in [
        ("kubevirt.io", "virt-launcher"),
        ("kubevirt.io/created-by", json::uid(vmi)),
        ("vm.kubevirt.io/name", &name[..name.len().min(63)]),
        ("vmi.kubevirt.io/id", &name[..name.len().min(63)]),
    ] {
        labels.insert(key.into(), value.into());
    }
    labels
}

fn annotations(vmi: &Value, overhead: i64) -> Map {
    let (name, namespace) = (json::name(vmi), json::namespace(vmi));
    // What is not for the pod stays behind (`generatePodAnnotations`).
    let kept = |key: &str| {
        !matches!(
            key,
            "kubectl.kubernetes.io/last-applied-configuration"
                | "kubevirt.io/latest-observed-api-version"
                | "kubevirt.io/storage-observed-api-version"
        )
    };
    let mut annotations: Map = map(vmi, "/metadata/annotations")
        .into_iter()
        .flatten()
        .filter(|(key, _)| kept(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let freezer = |verb: &str| {
        format!(
            "[\"/usr/bin/virt-freezer\", \"--{verb}\", \"--name\", \"{name}\", \"--namespace\", \"{namespace}\"]"
        )
    };
    for (key, value) in [
        ("descheduler.alpha.kubernetes.io/request-evict-only", String::new()),
        ("kubectl.kubernetes.io/default-container", "compute".into()),
        ("kubevirt.io/domain", name.into()),
        ("kubevirt.io/memory-overhead-bytes", overhead.to_string()),
        ("kubevirt.io/migrationTransportUnix", "true".into()),
        ("post.hook.backup.velero.io/command", freezer("unfreeze")),
        ("post.hook.backup.velero.io/container", "compute".into()),
        ("pre.hook.backup.velero.io/command", freezer("freeze")),
        ("pre.hook.backup.velero.io/container", "compute".into()),
        ("pre.hook.backup.velero.io/timeout", "60s".into()),
    ] {
        annotations.insert(key.into(), value.into());
    }
    let masquerade =
        list(vmi, "/spec/domain/devices/interfaces").iter().any(|one| one.get("masquerade").is_some());
    if masquerade {
        annotations.insert("istio.io/reroute-virtual-interfaces".into(), "k6t-eth0".into());
        annotations.insert("traffic.sidecar.istio.io/kubevirtInterfaces".into(), "k6t-eth0".into());
    }
    annotations
}

fn node_selector(vmi: &Value) -> Map {
    let mut selector = map(vmi, "/spec/nodeSelector").cloned().unwrap_or_default();
    let mut require = |key: String| {
        selector.set(key, "true");
    };
    require("kubevirt.io/schedulable".into());
    let machine = text(vmi, "/spec/domain/machine/type");
    if !machine.is_empty() {
        require(format!("machine-type.node.kubevirt.io/{machine}"));
    }
    let model = text(vmi, "/spec/domain/cpu/model");
    if !matches!(model, "" | "host-model" | "host-passthrough") {
        require(format!("cpu-model.node.kubevirt.io/{model}"));
    }
    for feature in list(vmi, "/spec/domain/cpu/features") {
        // Other policies ask nothing of the node (`nodeselectorrenderer.go`).
        if matches!(text(feature, "/policy"), "" | "require") {
            require(format!("cpu-feature.node.kubevirt.io/{}", text(feature, "/name")));
        }
    }
    if vmi.pointer("/spec/domain/cpu/dedicatedCpuPlacement") == Some(&Value::Bool(true)) {
        require("kubevirt.io/cpumanager".into());
    }
    if vmi.pointer("/spec/domain/cpu/realtime").is_some() {
        require("kubevirt.io/realtime".into());
    }
    let architecture = text(vmi, "/spec/architecture");
    if !architecture.is_empty() {
        selector.insert("kubernetes.io/arch".into(), architecture.into());
    }
    selector
}

fn affinity(vmi: &Value) -> Value {
    let mut affinity = vmi["spec"].get("affinity").cloned().unwrap_or_else(|| json!({}));
    let current = json!({"key": "node-labeller.kubevirt.io/obsolete-host-model", "operator": "DoesNotExist"});
    if !matches!(text(vmi, "/spec/domain/cpu/model"), "" | "host-model") {
        return affinity;
    }
    let terms = json::slot(
        &mut affinity,
        &["nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"],
    );
    match terms {
        // Terms are alternatives: each of them needs the expression.
        Value::Array(terms) => {
            for term in terms {
                match term.get_mut("matchExpressions").and_then(Value::as_array_mut) {
                    Some(expressions) => expressions.push(current.clone()),
                    None => term["matchExpressions"] = json!([current]),
                }
            }
        }
        other => *other = json!([{"matchExpressions": [current]}]),
    }
    affinity
}

fn volumes(vmi: &Value, sidecars: &[Value], config: &ClusterConfig, image: &str) -> Vec<Value> {
    let empty = |name: &str| json!({"name": name, "emptyDir": {}});
    let mut volumes: Vec<Value> =
        ["private", "public", "sockets", "virt-bin-share-dir", "libvirt-runtime", "ephemeral-disks"]
            .iter()
            .map(|name| empty(name))
            .collect();
    let mut with_image = false;
    for volume in list(vmi, "/spec/volumes") {
        let name = text(volume, "/name");
        let source = if let Some(disk) = volume.get("containerDisk") {
            with_image = true;
            json!({"image": {"reference": disk["image"], "pullPolicy": disk["imagePullPolicy"]}})
        } else if let Some(claim) = claim_of(volume).filter(|_| !is_hotpluggable(volume)) {
            json!({"persistentVolumeClaim": {"claimName": claim}})
        } else if let Some(one) = volume.get("configMap") {
            json!({"configMap": {"name": one["name"]}})
        } else if let Some(one) = volume.get("secret") {
            json!({"secret": {"secretName": one["secretName"]}})
        } else {
            continue;
        };
        let mut entry = source;
        entry["name"] = name.into();
        volumes.push(entry);
    }
    if with_image {
        volumes.push(json!({"name": "launcher-volume", "image":
            {"reference": image, "pullPolicy": "IfNotPresent"}}));
    }
    if !sidecars.is_empty() {
        volumes.push(empty("hook-sidecar-sockets"));
        for sidecar in sidecars {
            if let Some(name) = sidecar.pointer("/configMap/name") {
                volumes.push(json!({"name": name, "configMap": {"name": name, "defaultMode": 493}}));
            }
            if let Some(name) = sidecar.pointer("/pvc/name") {
                volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
            }
        }
    }
    if vmi.pointer("/spec/domain/memory/hugepages").is_some() {
        volumes.push(json!({"name": "hugepages", "emptyDir": {"medium": "HugePages"}}));
    }
    if config.gate(PLUGINS) {
        volumes.push(empty(PLUGIN_SOCKETS));
    }
    volumes.push(empty("hotplug-disks"));
    volumes
}

/// The claim behind a volume: its own, the one that has a `DataVolume`'s name, or the one that memory is dumped into.
pub fn claim_of(volume: &Value) -> Option<&str> {
    disk_claim_of(volume).or_else(|| volume.pointer("/memoryDump/claimName")?.as_str())
}

/// The same for volumes that are disks of the guest.
pub fn disk_claim_of(volume: &Value) -> Option<&str> {
    ["/persistentVolumeClaim/claimName", "/dataVolume/name"]
        .iter()
        .find_map(|pointer| volume.pointer(pointer).and_then(Value::as_str))
}

/// The volume is plugged into a running guest; the launcher starts without it.
pub fn is_hotpluggable(volume: &Value) -> bool {
    crate::sim::hotplug::is_marked(volume)
}

fn container(name: &str, image: &str, command: &str, args: &[String], resources: &Value) -> Value {
    json!({
        "name": name,
        "image": image,
        "command": [command],
        "args": args,
        "resources": resources,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsUser": 107, "runAsNonRoot": true,
            "allowPrivilegeEscalation": false},
    })
}

fn init_containers(vmi: &Value, image: &str) -> Vec<Value> {
    let mut containers = Vec::new();
    if vmi.pointer("/spec/domain/devices/logSerialConsole") != Some(&Value::Bool(false)) {
        let log = format!("/var/run/kubevirt-private/{}/virt-serial0-log", json::uid(vmi));
        let resources =
            json!({"limits": {"cpu": "15m", "memory": "60M"}, "requests": {"cpu": "5m", "memory": "35M"}});
        let mut tail = container(
            "guest-console-log",
            image,
            "/usr/bin/virt-tail",
            &["--logfile".into(), log],
            &resources,
        );
        tail["env"] = json!([{"name": "VIRT_LAUNCHER_LOG_VERBOSITY", "value": "2"}]);
        tail["restartPolicy"] = "Always".into();
        tail["volumeMounts"] =
            json!([{"name": "private", "readOnly": true, "mountPath": "/var/run/kubevirt-private"}]);
        containers.push(tail);
    }
    for volume in list(vmi, "/spec/volumes").iter().filter(|volume| volume.get("containerDisk").is_some()) {
        let resources = json!({"limits": {"cpu": "10m", "memory": "40M"},
            "requests": {"cpu": "1m", "ephemeral-storage": "50M", "memory": "1M"}});
        let mut disk = container(
            &format!("volume{}", text(volume, "/name")),
            text(volume, "/containerDisk/image"),
            "/container-disk-binary/usr/bin/container-disk",
            &["--no-op".into()],
            &resources,
        );
        disk["volumeMounts"] =
            json!([{"name": "launcher-volume", "readOnly": true, "mountPath": "/container-disk-binary"}]);
        containers.push(disk);
    }
    containers
}

fn compute(vmi: &Value, config: &ClusterConfig, overhead: i64, sidecars: usize, image: &str) -> Value {
    let args: Vec<String> = [
        "--qemu-timeout",
        "298s",
        "--name",
        json::name(vmi),
        "--uid",
        json::uid(vmi),
        "--namespace",
        json::namespace(vmi),
        "--kubevirt-share-dir",
        "/var/run/kubevirt",
        "--ephemeral-disk-dir",
        "/var/run/kubevirt-ephemeral-disks",
        "--container-disk-dir",
        "/var/run/kubevirt/container-disks",
        "--grace-period-seconds",
    ]
    .iter()
    .map(|arg| (*arg).to_owned())
    .chain([
        grace_period(vmi).saturating_add(GRACE_PADDING).to_string(),
        "--hook-sidecars".into(),
        sidecars.to_string(),
    ])
    .chain(
        [
            "--ovmf-path",
            "/usr/share/edk2/ovmf",
            "--disk-memory-limit",
            "2097152000",
            "--hypervisor",
            "kvm",
            "--run-as-nonroot",
            "--image-volume",
            "--upgrade-ordinal-ifaces",
        ]
        .map(str::to_owned),
    )
    .collect();
    let mut compute = container(
        "compute",
        image,
        "/usr/bin/virt-launcher-monitor",
        &args,
        &resources(vmi, config, overhead),
    );
    compute["env"] = json!([
        {"name": "XDG_CACHE_HOME", "value": "/var/run/kubevirt-private"},
        {"name": "XDG_CONFIG_HOME", "value": "/var/run/kubevirt-private"},
        {"name": "XDG_RUNTIME_DIR", "value": "/var/run"},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
    ]);
    compute["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    compute["securityContext"] = json!({"capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
        "runAsUser": 107, "runAsGroup": 107, "runAsNonRoot": true, "allowPrivilegeEscalation": false});
    let mut mounts = mounts(vmi, sidecars);
    if config.gate(PLUGINS) {
        mounts.push(json!({"name": PLUGIN_SOCKETS, "mountPath": "/var/run/kubevirt-plugin"}));
    }
    compute["volumeMounts"] = mounts.into();
    compute
}

fn mounts(vmi: &Value, sidecars: usize) -> Vec<Value> {
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let mut mounts = vec![
        mount("private", "/var/run/kubevirt-private"),
        mount("public", "/var/run/kubevirt"),
        mount("ephemeral-disks", "/var/run/kubevirt-ephemeral-disks"),
        mount("libvirt-runtime", "/var/run/libvirt"),
        mount("sockets", "/var/run/kubevirt/sockets"),
    ];
    for (index, volume) in list(vmi, "/spec/volumes").iter().enumerate() {
        let name = text(volume, "/name");
        if volume.get("containerDisk").is_some() {
            let mut image = mount(name, &format!("/var/run/kubevirt-image-volume/disk_{index}"));
            image["readOnly"] = true.into();
            mounts.push(image);
        } else if claim_of(volume).is_some() && !is_hotpluggable(volume) {
            mounts.push(mount(name, &format!("/var/run/kubevirt-private/vmi-disks/{name}")));
        } else if volume.get("configMap").is_some() {
            mounts.push(mount(name, &format!("/var/run/kubevirt-private/config-map/{name}")));
        } else if volume.get("secret").is_some() {
            mounts.push(mount(name, &format!("/var/run/kubevirt-private/secret/{name}")));
        }
    }
    if sidecars > 0 {
        mounts.push(mount("hook-sidecar-sockets", "/var/run/kubevirt-hooks"));
    }
    if vmi.pointer("/spec/domain/memory/hugepages").is_some() {
        mounts.push(mount("hugepages", "/dev/hugepages"));
    }
    let mut hotplug = mount("hotplug-disks", "/var/run/kubevirt/hotplug-disks");
    hotplug["mountPropagation"] = "HostToContainer".into();
    mounts.push(hotplug);
    mounts
}

/// What the compute container asks for; what the VMI asks for itself wins.
fn resources(vmi: &Value, config: &ClusterConfig, overhead: i64) -> Value {
    let own = |side: &str, name: &str| vmi.pointer(&format!("/spec/domain/resources/{side}/{name}"));
    let vcpus = overhead::vcpus(vmi);
    let dedicated = vmi.pointer("/spec/domain/cpu/dedicatedCpuPlacement") == Some(&Value::Bool(true));
    let mut resources = json!({"limits": {}, "requests": {"ephemeral-storage": "50M"}});
    let guest = vmi.pointer("/spec/domain/memory/guest").and_then(units);
    let asked = own("requests", "memory").or(own("limits", "memory")).and_then(units).or(guest).unwrap_or(0);
    if dedicated {
        let isolated = vmi.pointer("/spec/domain/cpu/isolateEmulatorThread") == Some(&Value::Bool(true));
        let cpus = vcpus + i64::from(isolated);
        put(&mut resources, &["requests", "cpu"], cpus.to_string());
        put(&mut resources, &["limits", "cpu"], cpus.to_string());
    } else {
        let milli = own("requests", "cpu")
            .and_then(milli)
            .and_then(|milli| i64::try_from(milli).ok())
            .unwrap_or(vcpus * 1000 / config.cpu_allocation_ratio);
        put(&mut resources, &["requests", "cpu"], quantity::cpu(milli));
        if let Some(limit) = own("limits", "cpu") {
            put(&mut resources, &["limits", "cpu"], limit.clone());
        }
    }
    let page = text(vmi, "/spec/domain/memory/hugepages/pageSize");
    let mut request = asked;
    if !page.is_empty() {
        let backed = guest.unwrap_or(asked).min(asked);
        let key = format!("hugepages-{page}");
        for side in ["requests", "limits"] {
            put(&mut resources, &[side, &key], quantity::bytes(backed));
        }
        request = asked - backed;
    }
    put(&mut resources, &["requests", "memory"], quantity::bytes(request + overhead));
    if dedicated {
        put(&mut resources, &["limits", "memory"], quantity::bytes(request + overhead));
    } else if let Some(limit) = own("limits", "memory").and_then(units) {
        put(&mut resources, &["limits", "memory"], quantity::bytes(limit + overhead));
    }
    for (device, count) in devices(vmi) {
        for side in ["limits", "requests"] {
            put(&mut resources, &[side, &device], count.to_string());
        }
    }
    resources
}

/// Device plugin resources of a VMI: KVM, network back-ends and passthrough devices.
fn devices(vmi: &Value) -> Vec<(String, i64)> {
    let mut devices = vec![("devices.kubevirt.io/kvm".to_owned(), 1)];
    if !list(vmi, "/spec/domain/devices/interfaces").is_empty() {
        devices.push(("devices.kubevirt.io/tun".into(), 1));
        devices.push(("devices.kubevirt.io/vhost-net".into(), 1));
    }
    for pointer in ["/spec/domain/devices/gpus", "/spec/domain/devices/hostDevices"] {
        for device in list(vmi, pointer).iter().filter(|device| device.get("claimName").is_none()) {
            let name = text(device, "/deviceName");
            match devices.iter_mut().find(|(known, _)| known == name) {
                Some((_, count)) => *count += 1,
                None => devices.push((name.to_owned(), 1)),
            }
        }
    }
    devices
}

fn sidecar_container(index: usize, sidecar: &Value, shim: &str) -> Value {
    let name = format!("hook-sidecar-{index}");
    let image = match text(sidecar, "/image") {
        "" => shim,
        image => image,
    };
    let mut container = json!({
        "name": name,
        "image": image,
        "resources": {},
        "env": [{"name": "CONTAINER_NAME", "value": name}],
        "volumeMounts": [{"name": "hook-sidecar-sockets", "mountPath": "/var/run/kubevirt-hooks", "subPath": name}],
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsUser": 107, "runAsGroup": 107,
            "runAsNonRoot": true, "allowPrivilegeEscalation": false},
    });
    for key in ["command", "args", "imagePullPolicy"] {
        if let Some(value) = sidecar.get(key).filter(|value| value.as_str() != Some("")) {
            container[key] = value.clone();
        }
    }
    let mut more = Vec::new();
    if let Some(one) = sidecar.get("configMap") {
        more.push(json!({"name": one["name"], "mountPath": one["hookPath"], "subPath": one["key"]}));
    }
    if let Some(one) = sidecar.get("pvc") {
        more.push(json!({"name": one["name"], "mountPath": one["volumePath"]}));
    }
    if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        mounts.extend(more);
    }
    container
}
