//! The messages of KubeVirt's hook protocols, generated from `proto/` (`cargo run -p xtask --
//! codegen`), and the paths of their calls.
//!
//! The sidecar and the sandbox's virt-launcher are the two ends of the same socket and may not
//! import each other, so the messages are a crate below both. Each end brings its own transport.

/// Calls by which a launcher gets to know a sidecar.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/kubevirt.hooks.info.rs"]
pub mod info;

/// Calls of hook sidecars; those of `v1alpha2` have the same messages.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/kubevirt.hooks.v1alpha3.rs"]
pub mod callbacks;

/// Calls of Plugins.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/kubevirt.hooks.plugins.v1alpha1.rs"]
pub mod plugins;

/// The version in which sidecars end with their VM (KubeVirt v1.2).
pub const V1ALPHA3: &str = "v1alpha3";
/// The version before.
pub const V1ALPHA2: &str = "v1alpha2";
/// The first version: `OnDefineDomain` alone.
pub const V1ALPHA1: &str = "v1alpha1";

/// Hook points (`pkg/hooks/info/info.go`).
pub const ON_DEFINE_DOMAIN: &str = "OnDefineDomain";
/// Before the cloud-init ISO is made.
pub const PRE_CLOUD_INIT_ISO: &str = "PreCloudInitIso";
/// After the guest has ended.
pub const SHUTDOWN: &str = "Shutdown";

/// The path of `Info`.
pub const INFO_PATH: &str = "/kubevirt.hooks.info.Info/Info";
/// The path of a Plugin's `MutateDomain`.
pub const MUTATE_DOMAIN_PATH: &str = "/kubevirt.hooks.plugins.v1alpha1.DomainHookService/MutateDomain";

/// The path of the same call in releases after v1.9, where it is a launcher hook of its Plugin.
pub const GUEST_DEFINITION_PATH: &str =
    "/kubevirt.hooks.plugins.v1alpha1.LauncherHookService/GuestDefinition";

/// The path of a callback: `/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain`.
pub fn callback_path(version: &str, hook_point: &str) -> String {
    format!("/kubevirt.hooks.{version}.Callbacks/{hook_point}")
}

/// The version and the hook point of a callback's path.
pub fn callback_of(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix("/kubevirt.hooks.")?.split_once('/')?;
    Some((service.strip_suffix(".Callbacks")?, method))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_have_paths_by_version() {
        let path = callback_path(V1ALPHA3, ON_DEFINE_DOMAIN);
        assert_eq!(path, "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain");
        assert_eq!(callback_of(&path), Some((V1ALPHA3, ON_DEFINE_DOMAIN)));
        for other in [INFO_PATH, MUTATE_DOMAIN_PATH, GUEST_DEFINITION_PATH, "/", ""] {
            assert_eq!(callback_of(other), None, "{other}");
        }
    }
}
