//! What the `KubeVirt` object configures, as the components read it (`pkg/virt-config`, v1.9).

use std::collections::HashSet;

use apimachinery::tree::Value;
use kubevirt::{KubeVirtView, feature_gates};

use super::json::text;
use super::version::Release;
use super::virt_controller::migration::policy;

/// The cluster's configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterConfig {
    kubevirt: Value,
    /// The same, as others than the sandbox read it.
    plain: serde_json::Value,
    /// The release that the object reports.
    pub release: Release,
    /// Resource names of `permittedHostDevices`; `None`: nothing is said, nothing is checked.
    pub permitted: Option<HashSet<String>>,
    /// `status.defaultArchitecture`; empty: every VM without one is refused.
    pub default_architecture: String,
    /// `configuration.evictionStrategy`
    pub eviction_strategy: String,
    /// `configuration.developerConfiguration.cpuAllocationRatio`, default 10.
    pub cpu_allocation_ratio: i64,
    /// `configuration.liveUpdateConfiguration.maxHotplugRatio`, default 4.
    pub max_hotplug_ratio: i64,
    /// `vmRolloutStrategy` is `LiveUpdate`, the default.
    pub live_update: bool,
    /// `configuration.migrations` over its defaults.
    pub migrations: Value,
}

impl ClusterConfig {
    /// Reads a `KubeVirt` object; null: the defaults.
    pub fn of(kubevirt: &Value) -> Self {
        let plain = kubevirt.clone().into();
        let view = KubeVirtView(&plain);
        let configuration = kubevirt.pointer("/spec/configuration").unwrap_or(&Value::Null);
        let positive = |pointer: &str, default: i64| {
            configuration
                .pointer(pointer)
                .and_then(Value::as_i64)
                .filter(|value| *value > 0)
                .unwrap_or(default)
        };
        let checked = configuration.get("permittedHostDevices").is_some_and(Value::is_object);
        Self {
            kubevirt: kubevirt.clone(),
            release: Release::of(text(kubevirt, "/status/observedKubeVirtVersion")),
            permitted: checked
                .then(|| view.permitted_devices().map(|device| device.resource_name.to_owned()).collect()),
            default_architecture: view.default_architecture().unwrap_or_default().to_owned(),
            eviction_strategy: match text(configuration, "/evictionStrategy") {
                // The default of a cluster without its own (`setDefaultEvictionStrategy`).
                "" => "None".into(),
                strategy => strategy.into(),
            },
            cpu_allocation_ratio: positive("/developerConfiguration/cpuAllocationRatio", 10),
            max_hotplug_ratio: positive("/liveUpdateConfiguration/maxHotplugRatio", 4),
            migrations: policy::of_cluster(configuration.get("migrations")),
            live_update: matches!(text(configuration, "/vmRolloutStrategy"), "" | "LiveUpdate"),
            plain,
        }
    }

    /// `configuration.changedBlockTrackingLabelSelectors`
    pub fn change_tracking(&self) -> &Value {
        static NOTHING: Value = Value::Null;
        self.kubevirt.pointer("/spec/configuration/changedBlockTrackingLabelSelectors").unwrap_or(&NOTHING)
    }

    /// `configuration.instancetype.referencePolicy`, default `reference`.
    pub fn reference_policy(&self) -> &str {
        match text(&self.kubevirt, "/spec/configuration/instancetype/referencePolicy") {
            "" => "reference",
            policy => policy,
        }
    }

    /// Whether a feature gate is on.
    pub fn gate(&self, name: &str) -> bool {
        feature_gates::is_enabled(KubeVirtView(&self.plain), name)
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn permitted_devices_of_every_kind_count_and_silence_permits_all() {
        assert_eq!(ClusterConfig::of(&Value::Null).permitted, None);
        let config = ClusterConfig::of(&json!({"spec": {"configuration": {"permittedHostDevices": {
            "pciHostDevices": [{"resourceName": "a/b"}], "mediatedDevices": [{"resourceName": "c/d"}]}}}}));
        assert_eq!(config.permitted, Some(HashSet::from(["a/b".to_owned(), "c/d".to_owned()])));
    }
}
