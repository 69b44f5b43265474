//! The messages of KubeVirt's hook protocols. Field numbers are KubeVirt's (`pkg/hooks/info`,
//! `pkg/hooks/v1alpha2`, `pkg/hooks/v1alpha3` of v1.2 to v1.9; `domain_hook.proto` of VEP 190, v1.9).

use prost::Message;

/// `kubevirt.hooks.info.Info/Info`
pub const INFO: &str = "/kubevirt.hooks.info.Info/Info";
/// `OnDefineDomain` of both versions.
pub const ON_DEFINE_DOMAIN: [&str; 2] = [
    "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain",
    "/kubevirt.hooks.v1alpha2.Callbacks/OnDefineDomain",
];
/// `PreCloudInitIso` of both versions.
pub const PRE_CLOUD_INIT_ISO: [&str; 2] = [
    "/kubevirt.hooks.v1alpha3.Callbacks/PreCloudInitIso",
    "/kubevirt.hooks.v1alpha2.Callbacks/PreCloudInitIso",
];
/// `Shutdown`, since v1alpha3.
pub const SHUTDOWN: &str = "/kubevirt.hooks.v1alpha3.Callbacks/Shutdown";
/// `MutateDomain` of a Plugin.
pub const MUTATE_DOMAIN: &str = "/kubevirt.hooks.plugins.v1alpha1.DomainHookService/MutateDomain";

/// Who a sidecar is and what it wants to be called for. There is no field 2.
#[derive(Clone, PartialEq, Message)]
pub struct InfoResult {
    /// Its name in launcher logs.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it wants to be called for.
    #[prost(message, repeated, tag = "3")]
    pub hook_points: Vec<HookPoint>,
    /// The versions that it speaks; the newest that both know is used.
    #[prost(string, repeated, tag = "4")]
    pub versions: Vec<String>,
}

/// One hook point.
#[derive(Clone, PartialEq, Message)]
pub struct HookPoint {
    /// `OnDefineDomain`, `PreCloudInitIso` or `Shutdown`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Without effect between sidecars (`pkg/hooks/manager.go`, v1.9).
    #[prost(int32, tag = "2")]
    pub priority: i32,
}

/// The domain that is about to be defined.
#[derive(Clone, PartialEq, Message)]
pub struct OnDefineDomainParams {
    /// XML.
    #[prost(bytes = "vec", tag = "1")]
    pub domain_xml: Vec<u8>,
    /// The VMI as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub vmi: Vec<u8>,
}

/// The domain to define.
#[derive(Clone, PartialEq, Message)]
pub struct OnDefineDomainResult {
    /// XML.
    #[prost(bytes = "vec", tag = "1")]
    pub domain_xml: Vec<u8>,
}

/// Cloud-init data that is about to be made into an ISO.
#[derive(Clone, PartialEq, Message)]
pub struct PreCloudInitIsoParams {
    /// The `NoCloud` source of the VMI as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub cloud_init_no_cloud_source: Vec<u8>,
    /// The VMI as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub vmi: Vec<u8>,
    /// The data of any source as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub cloud_init_data: Vec<u8>,
}

/// The cloud-init data to use. There is no field 2.
#[derive(Clone, PartialEq, Message)]
pub struct PreCloudInitIsoResult {
    /// The `NoCloud` source as JSON.
    #[prost(bytes = "vec", tag = "1")]
    pub cloud_init_no_cloud_source: Vec<u8>,
    /// The data as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub cloud_init_data: Vec<u8>,
}

/// A message without fields: `InfoParams`, `ShutdownParams`, `ShutdownResult`.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// The domain that is about to be defined, for a Plugin.
#[derive(Clone, PartialEq, Message)]
pub struct MutateDomainRequest {
    /// `libvirt`: the domain is libvirt's XML.
    #[prost(string, tag = "1")]
    pub domain_type: String,
    /// The domain.
    #[prost(bytes = "vec", tag = "2")]
    pub domain: Vec<u8>,
    /// The VMI as JSON.
    #[prost(bytes = "vec", tag = "3")]
    pub vmi: Vec<u8>,
}

/// The domain to define, from a Plugin.
#[derive(Clone, PartialEq, Message)]
pub struct MutateDomainResponse {
    /// The domain.
    #[prost(bytes = "vec", tag = "1")]
    pub domain: Vec<u8>,
}
