//! The way of Plugins (VEP 190, KubeVirt v1.9, gate `Plugins`): KubeVirt adds no container to the pod of a
//! VM, so our webhook does, for VMs whose template carries [`HOOKS`].
//!
//! ```text
//!  VM ─ /mutate ─► template annotation launcher-hooks ─► VMI ─► virt-launcher pod ─ /launcher ─►
//!     init container virt-steward-hook (restartPolicy Always), socket in the volume kubevirt-plugin-sockets
//!     ◄─ MutateDomain ─ virt-launcher, for the Plugin `virt-steward`, whose condition is the annotation
//! ```
//!
//! The annotation is no secret of ours: whoever may write VMs may write it. So what it asks for is
//! checked again here, and nothing but our hook is ever added.

use hook::arguments::Arguments;
use json_patch::{Patch, PatchOperation};
use serde_json::{Value, json};

use crate::Verdict;
use crate::config::Config;
use crate::image::{is_allowed, is_reference};
use crate::json::{self, at, pointer};
use crate::names::field;
use crate::text::{MAX_WARNING, candidates, clip};

/// The annotation, on the template, of what a launcher pod needs.
pub const HOOKS: &str = "vm-feature-manager.io/launcher-hooks";
/// The name of our Plugin, and of its directory of sockets.
pub const PLUGIN: &str = "virt-steward";
/// The name of the container.
pub const CONTAINER: &str = "virt-steward-hook";
/// KubeVirt's volume for the sockets of plugins (`services/template.go`, v1.9).
const SOCKETS: &str = "kubevirt-plugin-sockets";
const SOCKETS_PATH: &str = "/var/run/kubevirt-plugin";
/// ROMs are below it in the container.
const ROMS: &str = "/rom/";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the annotation {HOOKS} is not a JSON list ({0})")]
    Json(#[from] serde_json::Error),
    #[error(
        "the pod has no volume {SOCKETS}; switch KubeVirt's feature gate Plugins on, or admit the VM again"
    )]
    NoSockets,
    #[error("no hook image is set; the administrator has to set features.vbiosInjection.hookImage")]
    NoImage,
    #[error("image `{image}` is not allowed (features.vbiosInjection.allowedImages: {allowed})")]
    Image { image: String, allowed: String },
    #[error("the hooks ask for different images, `{0}` and `{1}`; a pod has one")]
    Images(String, String),
    #[error("the arguments of a hook cannot be used: {0}")]
    Arguments(#[from] hook::arguments::ArgumentError),
    #[error(transparent)]
    QemuArguments(#[from] crate::qemu_arguments::Error),
    #[error("the ConfigMap of a hook has no name, no key, or a path that is not below {ROMS}")]
    ConfigMap,
}

/// What a release calls the hooks of a Plugin. Server-side apply refuses an object with a field that the cluster does
/// not know, so a Plugin has one of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HookList {
    /// v1.9
    Domain,
    /// Releases after v1.9.
    Launcher,
}

impl HookList {
    /// The field of a Plugin's spec.
    pub fn field(self) -> &'static str {
        match self {
            Self::Domain => "domainHooks",
            Self::Launcher => "launcherHooks",
        }
    }
}

/// Our Plugin.
pub fn plugin(list: HookList) -> Value {
    let socket = format!("{SOCKETS_PATH}/{PLUGIN}/virt-steward.sock");
    let sidecar = match list {
        HookList::Domain => json!({"socketPath": socket}),
        HookList::Launcher => json!({"socketPath": socket, "permittedHooks": ["GuestDefinition"]}),
    };
    json!({
        "apiVersion": "plugin.kubevirt.io/v1alpha1",
        "kind": "Plugin",
        "metadata": {"name": PLUGIN, "labels": {"app.kubernetes.io/name": "virt-steward"}},
        "spec": {
            // KubeVirt's own types, by the names of Go
            "condition": format!("'{HOOKS}' in vmi.Annotations"),
            // a VM without what was asked for must not start
            "failureStrategy": "Fail",
            list.field(): [{"sidecar": sidecar}],
        },
    })
}

/// Decides what a new launcher pod gets. A second call changes nothing.
pub fn admit(pod: &Value, config: &Config) -> Verdict {
    let asked = at(pod, &["metadata", "annotations", HOOKS]).and_then(Value::as_str);
    let Some(asked) = asked.filter(|text| !text.is_empty()) else { return Verdict::default() };
    let containers = at(pod, &["spec", "initContainers"]).and_then(Value::as_array);
    if containers.into_iter().flatten().any(|container| field(container, "name") == CONTAINER) {
        return Verdict::default();
    }
    match operations(pod, asked, config) {
        Ok(operations) => Verdict { patch: Patch(operations), ..Verdict::default() },
        Err(error) => {
            let denial = format!("virt-steward: add the hook to the launcher pod: {error}");
            Verdict { denial: Some(clip(&denial, 4 * MAX_WARNING)), ..Verdict::default() }
        }
    }
}

fn operations(pod: &Value, asked: &str, config: &Config) -> Result<Vec<PatchOperation>, Error> {
    let entries: Vec<Value> = serde_json::from_str(asked)?;
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let list = |path: &[&str]| at(pod, path).and_then(Value::as_array);
    if !list(&["spec", "volumes"]).into_iter().flatten().any(|volume| field(volume, "name") == SOCKETS) {
        return Err(Error::NoSockets);
    }
    let image = image(&entries, config)?;
    let mut arguments: Option<Arguments> = None;
    let mut mounts =
        vec![json!({"name": SOCKETS, "mountPath": format!("{SOCKETS_PATH}/{PLUGIN}"), "subPath": PLUGIN})];
    let mut operations = Vec::new();
    for entry in &entries {
        let given = at(entry, &["args"]).and_then(Value::as_array).into_iter().flatten();
        let given = Arguments::parse(given.map(|one| one.as_str().unwrap_or_default()))?;
        crate::qemu_arguments::allowed(&given.qemu_args, &config.qemu_arguments.allowed)?;
        arguments = Some(match arguments {
            None => given,
            Some(before) => before.merged(given)?,
        });
        let Some(config_map) = entry.get("configMap") else { continue };
        let [name, key, path] = ["name", "key", "hookPath"].map(|name| field(config_map, name));
        if name.is_empty() || key.is_empty() || !path.starts_with(ROMS) || path.contains("..") {
            return Err(Error::ConfigMap);
        }
        // a name of its own: no volume of the VM is in the way
        let volume = format!("virt-steward-rom-{}", mounts.len() - 1);
        mounts.push(json!({"name": volume, "mountPath": path, "subPath": key, "readOnly": true}));
        let volume =
            json!({"name": volume, "configMap": {"name": name, "items": [{"key": key, "path": key}]}});
        operations.push(json::add(end(&["spec", "volumes"]), volume));
    }
    let arguments = Arguments { plugin: Some(PLUGIN.to_owned()), ..arguments.unwrap_or_default() };
    let container = container(pod, image, &config.vbios_injection.image_pull_policy, &arguments, &mounts);
    operations.push(match list(&["spec", "initContainers"]) {
        Some(_) => json::add(end(&["spec", "initContainers"]), container),
        None => json::add(pointer(&["spec", "initContainers"]), json!([container])),
    });
    Ok(operations)
}

fn end(path: &[&str]) -> json_patch::jsonptr::PointerBuf {
    let mut path = pointer(path);
    path.push_back("-");
    path
}

/// The image of the hook: the one that is set, or one that the VM chose among those that are allowed.
fn image<'a>(entries: &'a [Value], config: &'a Config) -> Result<&'a str, Error> {
    let settings = &config.vbios_injection;
    let mut chosen = entries.iter().map(|entry| field(entry, "image")).filter(|image| !image.is_empty());
    let Some(first) = chosen.next() else {
        return if settings.hook_image.is_empty() { Err(Error::NoImage) } else { Ok(&settings.hook_image) };
    };
    if let Some(other) = chosen.find(|other| *other != first) {
        return Err(Error::Images(first.chars().take(128).collect(), other.chars().take(128).collect()));
    }
    if !is_allowed(first, &settings.allowed_images) || !is_reference(first) {
        let allowed = candidates(&settings.allowed_images);
        return Err(Error::Image { image: first.chars().take(128).collect(), allowed });
    }
    Ok(first)
}

/// The container. Plugins are not told when the guest ends, and a container that stays would keep the
/// pod from ending (kubevirt#8395); an init container that restarts is ended by kubelet after the others
/// (Kubernetes v1.29), and is there before virt-launcher looks for it.
fn container(pod: &Value, image: &str, pull: &str, arguments: &Arguments, mounts: &[Value]) -> Value {
    let (requests, limits) = if is_guaranteed(pod) {
        let all = json!({"cpu": "20m", "memory": "64Mi"});
        (all.clone(), all)
    } else {
        (json!({"cpu": "5m", "memory": "16Mi"}), json!({"cpu": "200m", "memory": "64Mi"}))
    };
    json!({
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": pull,
        "restartPolicy": "Always",
        "args": arguments.to_list(),
        "resources": {"requests": requests, "limits": limits},
        // as KubeVirt runs its own sidecars, and QEMU
        "securityContext": {
            "runAsUser": 107, "runAsGroup": 107, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

/// Whether the pod has to stay in the class Guaranteed, without which its CPUs are not its own.
fn is_guaranteed(pod: &Value) -> bool {
    let containers = at(pod, &["spec", "containers"]).and_then(Value::as_array);
    containers.into_iter().flatten().filter(|container| field(container, "name") == "compute").any(
        |compute| {
            ["cpu", "memory"].iter().all(|name| {
                let of = |side: &str| at(compute, &["resources", side, name]);
                of("limits").is_some() && of("limits") == of("requests")
            })
        },
    )
}
