//! How the API server comes to know of virt-api: webhook configurations, a Service with its
//! endpoint, an `APIService`; and how virt-api knows the API server's proxy.

use std::net::SocketAddr;

use apimachinery::tree::{Value, json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::subresources::{GROUP, VERSIONS, templates};
use crate::sim::SimError;
use crate::sim::client::Client;
use crate::sim::identity::KUBEVIRT_NAMESPACE;
use crate::sim::json::{self, text};
use crate::sim::resource::{
    API_SERVICES, CONFIG_MAPS, ENDPOINT_SLICES, MUTATING_WEBHOOKS, Resource, SERVICES, VALIDATING_WEBHOOKS,
};
use crate::sim::version::Release;

/// The Service's name in the cluster's DNS, which the certificate carries.
pub const HOST: &str = "virt-api.kubevirt.svc";
const SERVICE: &str = "virt-api";

/// The webhooks of the mutating configuration: name, path, operations, resource.
const MUTATORS: [Hook; 4] = [
    (
        "virtualmachines-mutator.kubevirt.io",
        "/virtualmachines-mutate",
        &["CREATE", "UPDATE"],
        "virtualmachines",
    ),
    (
        "virtualmachineinstances-mutator.kubevirt.io",
        "/virtualmachineinstances-mutate",
        &["CREATE", "UPDATE"],
        "virtualmachineinstances",
    ),
    (
        "migrations-mutator.kubevirt.io",
        "/migration-mutate-create",
        &["CREATE"],
        "virtualmachineinstancemigrations",
    ),
    (
        "virtualmachineclones-mutator.kubevirt.io",
        "/vm-clone-mutate-create",
        &["CREATE"],
        "virtualmachineclones",
    ),
];
/// The same of the validating configuration.
const VALIDATORS: [Hook; 11] = [
    (
        "virtualmachineinstances-create-validator.kubevirt.io",
        "/virtualmachineinstances-validate-create",
        &["CREATE"],
        "virtualmachineinstances",
    ),
    (
        "virtualmachineinstances-update-validator.kubevirt.io",
        "/virtualmachineinstances-validate-update",
        &["UPDATE"],
        "virtualmachineinstances",
    ),
    (
        "virtualmachine-validator.kubevirt.io",
        "/virtualmachines-validate",
        &["CREATE", "UPDATE"],
        "virtualmachines",
    ),
    (
        "migration-create-validator.kubevirt.io",
        "/migration-validate-create",
        &["CREATE"],
        "virtualmachineinstancemigrations",
    ),
    (
        "migration-update-validator.kubevirt.io",
        "/migration-validate-update",
        &["UPDATE"],
        "virtualmachineinstancemigrations",
    ),
    (
        "virtualmachinesnapshot-validator.snapshot.kubevirt.io",
        "/virtualmachinesnapshots-validate",
        &["CREATE", "UPDATE"],
        "virtualmachinesnapshots",
    ),
    (
        "virtualmachinerestore-validator.snapshot.kubevirt.io",
        "/virtualmachinerestores-validate",
        &["CREATE", "UPDATE"],
        "virtualmachinerestores",
    ),
    (
        "virtualmachineexport-validator.export.kubevirt.io",
        "/virtualmachineexports-validate",
        &["CREATE", "UPDATE"],
        "virtualmachineexports",
    ),
    (
        "virtualmachinebackup-validator.backup.kubevirt.io",
        "/virtualmachinebackups-validate",
        &["CREATE", "UPDATE"],
        "virtualmachinebackups",
    ),
    (
        "virtualmachinebackuptracker-validator.backup.kubevirt.io",
        "/virtualmachinebackuptrackers-validate",
        &["CREATE", "UPDATE"],
        "virtualmachinebackuptrackers",
    ),
    (
        "vm-clone-validator.kubevirt.io",
        "/vm-clone-validate-create",
        &["CREATE", "UPDATE"],
        "virtualmachineclones",
    ),
];
/// Webhooks on evictions: name, and the prefix of the pods that it is for. Releases before v1.6.1 have the first alone.
const INTERCEPTORS: [(&str, &str); 2] = [
    ("virt-launcher-eviction-interceptor.kubevirt.io", "virt-launcher"),
    ("hotplug-pod-eviction-interceptor.kubevirt.io", "hp-volume-"),
];

type Hook = (&'static str, &'static str, &'static [&'static str], &'static str);

/// Whom virt-api believes what a request says about its user.
pub struct FrontProxy {
    pub authority: Vec<CertificateDer<'static>>,
    pub names: Vec<String>,
}

/// Reads `extension-apiserver-authentication`.
///
/// # Errors
/// When it is absent or holds no certificate.
pub async fn front_proxy(client: &Client) -> Result<FrontProxy, SimError> {
    let path = CONFIG_MAPS.path("kube-system", "extension-apiserver-authentication", "");
    let map = client.get(None, &path).await?;
    let pem = text(&map, "/data/requestheader-client-ca-file");
    let authority: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let authority = authority.map_err(|error| SimError::VirtApi(error.to_string().into()))?;
    if authority.is_empty() {
        let why =
            "kube-system/extension-apiserver-authentication names no authority of the API server's proxy";
        return Err(SimError::VirtApi(why.into()));
    }
    let names = serde_json::from_str(text(&map, "/data/requestheader-allowed-names")).unwrap_or_default();
    Ok(FrontProxy { authority, names })
}

/// The common name of a certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Registers the webhooks.
pub async fn webhooks(
    client: &Client,
    address: SocketAddr,
    authority: &str,
    release: Release,
) -> Result<(), SimError> {
    let url = format!("https://{address}");
    for (resource, name, hooks) in [
        (&MUTATING_WEBHOOKS, "virt-api-mutator", &MUTATORS[..]),
        (&VALIDATING_WEBHOOKS, "virt-api-validator", &VALIDATORS[..]),
    ] {
        let served = |hook: &&Hook| release.serves_backups() || !hook.3.starts_with("virtualmachinebackup");
        let hooks: Vec<Hook> = hooks.iter().filter(served).copied().collect();
        let mut object = configuration(resource, name, &hooks, &url, authority);
        if resource == &VALIDATING_WEBHOOKS
            && let Some(webhooks) = object["webhooks"].as_array_mut()
        {
            let own = std::mem::take(webhooks);
            webhooks.extend(interceptors(&url, authority, release));
            webhooks.extend(own);
        }
        register(client, resource, object).await?;
    }
    Ok(())
}

/// The webhooks on evictions; with virt-api away, evictions go on.
fn interceptors(url: &str, authority: &str, release: Release) -> Vec<Value> {
    let served = if release.intercepts_attachment_pods() { INTERCEPTORS.len() } else { 1 };
    INTERCEPTORS[..served]
        .iter()
        .map(|(name, prefix)| {
            json!({
                "name": name,
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{url}/pod-eviction-validate"),
                    "caBundle": BASE64_STANDARD.encode(authority)},
                "failurePolicy": "Ignore",
                "matchConditions": [{"name": "only-vms",
                    "expression": format!("object.metadata.name.startsWith(\"{prefix}\")")}],
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"],
                    "resources": ["pods/eviction"]}],
                "sideEffects": "NoneOnDryRun",
                "timeoutSeconds": 10,
            })
        })
        .collect()
}

/// Where a server is that the API server hands requests on to.
pub struct Place {
    pub namespace: &'static str,
    pub name: &'static str,
    pub address: SocketAddr,
}

/// Registers the API.
pub async fn api(client: &Client, address: SocketAddr, authority: &str) -> Result<(), SimError> {
    let place = Place { namespace: KUBEVIRT_NAMESPACE, name: SERVICE, address };
    serve(client, &place, (GROUP, &VERSIONS), authority).await?;
    serve(client, &place, (templates::GROUP, &templates::VERSIONS), authority).await
}

/// Registers an API group: a Service, its endpoint, an `APIService` for each version.
pub async fn serve(
    client: &Client,
    place: &Place,
    (group, versions): (&str, &[&str]),
    authority: &str,
) -> Result<(), SimError> {
    let (namespace, name, address) = (place.namespace, place.name, place.address);
    let labels = json!({"kubevirt.io": name, "app.kubernetes.io/managed-by": "virt-operator"});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"type": "ClusterIP", "ports": [{"port": 443, "targetPort": address.port(), "protocol": "TCP"}]}});
    register(client, &SERVICES, service).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "", "port": address.port(), "protocol": "TCP"}]});
    register(client, &ENDPOINT_SLICES, slice).await?;
    for version in versions {
        let service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("{version}.{group}"), "labels": labels},
            "spec": {"group": group, "version": version, "caBundle": BASE64_STANDARD.encode(authority),
                "groupPriorityMinimum": 1000, "versionPriority": 15,
                "service": {"namespace": namespace, "name": name, "port": 443}}});
        register(client, &API_SERVICES, service).await?;
    }
    Ok(())
}

/// The group of what a webhook looks at, and its versions.
fn group_of(plural: &str) -> (&'static str, &'static [&'static str]) {
    match plural {
        "virtualmachinesnapshots" | "virtualmachinerestores" => {
            ("snapshot.kubevirt.io", &["v1alpha1", "v1beta1"])
        }
        "virtualmachinebackups" | "virtualmachinebackuptrackers" => ("backup.kubevirt.io", &["v1alpha1"]),
        "virtualmachineexports" => ("export.kubevirt.io", &["v1alpha1", "v1beta1", "v1"]),
        "virtualmachineclones" => ("clone.kubevirt.io", &["v1alpha1", "v1beta1"]),
        _ => ("kubevirt.io", &["v1alpha3", "v1"]),
    }
}

fn configuration(resource: &Resource, name: &str, hooks: &[Hook], url: &str, authority: &str) -> Value {
    let webhooks: Vec<Value> = hooks
        .iter()
        .map(|(hook, path, operations, target)| {
            json!({
                "name": hook,
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{url}{path}"), "caBundle": BASE64_STANDARD.encode(authority)},
                "failurePolicy": "Fail",
                "rules": [{"apiGroups": [group_of(target).0], "apiVersions": group_of(target).1,
                    "operations": operations, "resources": [target]}],
                "sideEffects": "None",
                "timeoutSeconds": 10,
            })
        })
        .collect();
    json!({
        "apiVersion": resource.api_version(),
        "kind": resource.kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "virt-operator", "kubevirt.io": name}},
        "webhooks": webhooks,
    })
}

/// Creates an object, or brings the one of an earlier run up to date.
async fn register(client: &Client, resource: &Resource, object: Value) -> Result<(), SimError> {
    let namespace = json::namespace(&object).to_owned();
    let path = resource.path(&namespace, "", "");
    match client.send(None, Method::POST, &path, "application/json", &object).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == 409 => {
            let path = resource.path(&namespace, json::name(&object), "");
            let old = client.get(None, &path).await?;
            let mut new = object;
            new["metadata"]["resourceVersion"] = text(&old, "/metadata/resourceVersion").into();
            if let Some(address) = old.pointer("/spec/clusterIP") {
                new["spec"]["clusterIP"] = address.clone();
            }
            client.send(None, Method::PUT, &path, "application/json", &new).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
