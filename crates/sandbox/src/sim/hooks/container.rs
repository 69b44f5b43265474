//! Sidecar containers as processes of this machine. There is no mount namespace: what a container
//! would see at a path is in a directory of ours, and arguments that name the path get ours.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use apimachinery::tree::Value;
use base64::Engine as _;
use tokio::process::{Child, Command};

use super::plugins;
use crate::sim::json::{list, text};

/// The volume of plugins' sockets.
const PLUGIN_SOCKETS: &str = "kubevirt-plugin-sockets";

/// Where compute sees the sockets of sidecars.
pub const HOOKS: &str = "/var/run/kubevirt-hooks";

/// The image that can be run: the sidecar of virt-steward, from whatever registry.
const IMAGE: &str = "virt-steward-hook";

/// Whether a container is one that can be run.
pub fn is_ours(container: &Value) -> bool {
    let image = text(container, "/image");
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split(':').next() == Some(IMAGE)
}

/// The sidecar containers of a pod that can be run.
pub fn sidecars(pod: &Value) -> Vec<&Value> {
    let containers = list(pod, "/spec/containers").iter();
    containers.filter(|one| text(one, "/name").starts_with("hook-sidecar-") && is_ours(one)).collect()
}

/// The sidecars of Plugins of a pod that can be run: containers and init containers that mount the volume
/// of their sockets.
pub fn plugins(pod: &Value) -> Vec<&Value> {
    let containers = list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"));
    containers.filter(|one| is_ours(one) && plugin(one).is_some()).collect()
}

/// The directory of sockets that a container sees, below that of all plugins.
fn plugin(container: &Value) -> Option<&Value> {
    list(container, "/volumeMounts").iter().find(|mount| mount["name"] == PLUGIN_SOCKETS)
}

/// The ConfigMaps that a container mounts.
pub fn config_maps<'a>(pod: &'a Value, container: &'a Value) -> impl Iterator<Item = &'a str> {
    mounts(pod, container).map(|(name, _)| name)
}

/// ConfigMap and mount of every ConfigMap volume.
fn mounts<'a>(pod: &'a Value, container: &'a Value) -> impl Iterator<Item = (&'a str, &'a Value)> {
    list(container, "/volumeMounts").iter().filter_map(move |mount| {
        let volume = list(pod, "/spec/volumes").iter().find(|volume| volume["name"] == mount["name"])?;
        Some((volume.pointer("/configMap/name")?.as_str()?, mount))
    })
}

/// Makes the mounts of a container and starts its process.
pub fn start(
    binary: &Path,
    home: &Path,
    pod: &Value,
    container: &Value,
    config_maps: &BTreeMap<String, Value>,
) -> io::Result<Child> {
    let name = text(container, "/name");
    let sockets = match plugin(container) {
        Some(mount) => home.join("plugins").join(text(mount, "/subPath")),
        None => home.join("hooks").join(name),
    };
    std::fs::create_dir_all(&sockets)?;
    let mut places: Vec<(String, PathBuf)> = Vec::new();
    for (index, (config_map, mount)) in mounts(pod, container).enumerate() {
        let place = home.join(format!("{name}-{index}"));
        let key = text(mount, "/subPath");
        let content = config_maps.get(config_map).and_then(|object| entry(object, key));
        let content = content.ok_or_else(|| {
            io::Error::other(format!("ConfigMap {config_map} has no key {key} that can be mounted"))
        })?;
        std::fs::write(&place, content)?;
        places.push((text(mount, "/mountPath").to_owned(), place));
    }
    let mut command = Command::new(binary);
    for argument in list(container, "/args").iter().filter_map(Value::as_str) {
        command.arg(places.iter().fold(argument.to_owned(), |text, (path, place)| {
            text.replace(path.as_str(), &place.display().to_string())
        }));
    }
    for variable in list(container, "/env") {
        command.env(text(variable, "/name"), text(variable, "/value"));
    }
    command
        .env("HOOK_DIRECTORY", &sockets)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(home.join(format!("{name}.log")))?)
        .kill_on_drop(true)
        .spawn()
}

/// The bytes of a key of a ConfigMap.
fn entry(config_map: &Value, key: &str) -> Option<Vec<u8>> {
    let of = |section: &str| config_map.get(section)?.get(key)?.as_str();
    match (of("binaryData"), of("data")) {
        (Some(encoded), _) => base64::engine::general_purpose::STANDARD.decode(encoded).ok(),
        (None, Some(text)) => Some(text.as_bytes().to_vec()),
        (None, None) => None,
    }
}

/// Where a path of the container `compute` is on this machine, when it lies in the sockets' volume.
pub fn seen_by_compute(home: &Path, path: &str) -> Option<PathBuf> {
    let places = [(HOOKS, "hooks"), (plugins::DIRECTORY, "plugins")];
    let (below, place) = places
        .into_iter()
        .find_map(|(seen, place)| Some((Path::new(path).strip_prefix(seen).ok()?, place)))?;
    let is_below = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    is_below.then(|| home.join(place).join(below))
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn the_image_is_known_by_its_name() {
        for (image, expected) in [
            ("registry.example:5000/team/virt-steward-hook:0.1.0", true),
            ("virt-steward-hook@sha256:00", true),
            ("virt-steward-hook", true),
            ("quay.io/kubevirt/sidecar-shim:v1.9.0", false),
            ("virt-steward-hooked", false),
        ] {
            assert_eq!(is_ours(&json!({"image": image})), expected, "{image}");
        }
    }

    #[test]
    fn compute_sees_the_sockets_and_nothing_else() {
        let home = Path::new("/home");
        let seen = seen_by_compute(home, "/var/run/kubevirt-hooks/hook-sidecar-0/vbios/a.rom");
        assert_eq!(seen.as_deref(), Some(Path::new("/home/hooks/hook-sidecar-0/vbios/a.rom")));
        let plugin = seen_by_compute(home, "/var/run/kubevirt-plugin/p/vbios/a.rom");
        assert_eq!(plugin.as_deref(), Some(Path::new("/home/plugins/p/vbios/a.rom")));
        assert_eq!(seen_by_compute(home, "/etc/passwd"), None);
        assert_eq!(seen_by_compute(home, "/var/run/kubevirt-hooks/../../etc/passwd"), None);
    }
}
