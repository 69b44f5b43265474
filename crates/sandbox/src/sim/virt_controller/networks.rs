//! Secondary networks of a launcher pod (`pkg/network/multus`, v1.9): what Multus is asked for, and the device that
//! an SR-IOV network needs, which its `NetworkAttachmentDefinition` names.

use apimachinery::tree::{Value, json};

use super::vm_status::SyncError;
use crate::sim::client::{Client, ClientError};
use crate::sim::identity::Identity;
use crate::sim::json::{self, annotation, list, put, text};
use crate::sim::resource::NETWORKS;

const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";
const ASKED_FOR: &str = "k8s.v1.cni.cncf.io/networks";

/// A network that Multus attaches: its name in the VMI, and where its definition is.
struct Attachment<'a> {
    name: &'a str,
    namespace: &'a str,
    definition: &'a str,
}

/// The pod with its networks, or why it cannot have them.
pub async fn attach(
    client: &Client,
    who: &Identity,
    vmi: &Value,
    mut pod: Value,
) -> Result<Result<Value, SyncError>, ClientError> {
    let attachments = attachments(vmi);
    let mut resources = Vec::new();
    for one in &attachments {
        match client.get(Some(who), &NETWORKS.path(one.namespace, one.definition, "")).await {
            Ok(definition) => resources.extend(annotation(&definition, RESOURCE_NAME).map(str::to_owned)),
            Err(error) if error.code() == 404 => {
                let message = format!(
                    "failed to render launch manifest: failed to locate network attachment definition {}/{}",
                    one.namespace, one.definition
                );
                return Ok(Err(SyncError { reason: "FailedCreate", message }));
            }
            Err(error) => return Err(error),
        }
    }
    if !attachments.is_empty() {
        let asked: Vec<Value> = attachments.iter().map(|one| selection(vmi, one)).collect();
        put(&mut pod, &["metadata", "annotations", ASKED_FOR], Value::from(asked).to_string());
    }
    resources.iter().filter(|name| !name.is_empty()).for_each(|name| request(&mut pod, name));
    Ok(Ok(pod))
}

fn attachments(vmi: &Value) -> Vec<Attachment<'_>> {
    list(vmi, "/spec/networks").iter().filter_map(|network| attachment(vmi, network)).collect()
}

fn attachment<'a>(vmi: &'a Value, network: &'a Value) -> Option<Attachment<'a>> {
    let full = network.pointer("/multus/networkName")?.as_str()?;
    let (namespace, definition) = full.split_once('/').unwrap_or((json::namespace(vmi), full));
    Some(Attachment { name: text(network, "/name"), namespace, definition })
}

/// An element of Multus' annotation (`NetworkSelectionElement`).
fn selection(vmi: &Value, one: &Attachment<'_>) -> Value {
    let interface = list(vmi, "/spec/domain/devices/interfaces").iter().find(|face| face["name"] == one.name);
    let mut selection =
        json!({"name": one.definition, "namespace": one.namespace, "interface": interface_name(one.name)});
    if let Some(mac) = interface.and_then(|face| face.get("macAddress")) {
        selection["mac"] = mac.clone();
    }
    selection
}

/// `pod` and the start of the name's SHA-256 (`namescheme.GenerateHashedInterfaceName`).
fn interface_name(network: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, network.as_bytes());
    digest.as_ref().iter().take(6).fold("pod".to_owned(), |text, byte| format!("{text}{byte:02x}"))[..14]
        .to_owned()
}

/// One device more for the compute container (`requestResource`).
fn request(pod: &mut Value, resource: &str) {
    for side in ["requests", "limits"] {
        let amount = &mut pod["spec"]["containers"][0]["resources"][side][resource];
        let have: u64 = amount.as_str().and_then(|amount| amount.parse().ok()).unwrap_or(0);
        *amount = (have + 1).to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_asks_for_one_device_and_names_its_interface() {
        let vmi = json!({"metadata": {"name": "a", "namespace": "ns"}, "spec": {
            "networks": [{"name": "default", "pod": {}}, {"name": "fast", "multus": {"networkName": "fast"}},
                {"name": "far", "multus": {"networkName": "other/wide"}}],
            "domain": {"devices": {"interfaces": [{"name": "fast", "sriov": {}, "macAddress": "02:00:00:00:00:01"}]}}}});
        let found = attachments(&vmi);
        let places: Vec<_> = found.iter().map(|one| (one.namespace, one.definition)).collect();
        assert_eq!(places, [("ns", "fast"), ("other", "wide")]);
        let asked = selection(&vmi, &found[0]);
        assert_eq!(
            (&asked["mac"], asked["interface"].as_str().map(str::len)),
            (&json!("02:00:00:00:00:01"), Some(14))
        );
        let mut pod = json!({"spec": {"containers": [{"resources": {"requests": {}, "limits": {}}}]}});
        request(&mut pod, "intel.com/vf");
        request(&mut pod, "intel.com/vf");
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], json!({"intel.com/vf": "2"}));
    }

    /// The example of KubeVirt's own documents and tests.
    #[test]
    fn an_interface_is_named_by_the_hash_of_its_network() {
        assert_eq!(interface_name("blue"), "pod16477688c0e");
    }
}
