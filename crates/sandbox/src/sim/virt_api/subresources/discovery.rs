//! What virt-api says that it serves (`pkg/virt-api/api.go`, v1.9): the list is short of what it
//! serves, and its `verbs` are null, as recorded of the real one.

use apimachinery::tree::{Value, json};

use super::templates;

/// The group of virt-api's own API.
pub const GROUP: &str = "subresources.kubevirt.io";
/// Its versions, the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];

const LISTED: [&str; 29] = [
    "expand-vm-spec",
    "virtualmachineinstances/vnc",
    "virtualmachineinstances/vnc/screenshot",
    "virtualmachineinstances/console",
    "virtualmachineinstances/portforward",
    "virtualmachineinstances/backup",
    "virtualmachineinstances/redefine-checkpoint",
    "virtualmachineinstances/pause",
    "virtualmachineinstances/unpause",
    "virtualmachineinstances/freeze",
    "virtualmachineinstances/unfreeze",
    "virtualmachineinstances/reset",
    "virtualmachineinstances/softreboot",
    "virtualmachines/start",
    "virtualmachines/stop",
    "virtualmachines/restart",
    "virtualmachines/migrate",
    "virtualmachines/expand-spec",
    "virtualmachines/objectgraph",
    "virtualmachines/evacuate/cancel",
    "virtualmachineinstances/guestosinfo",
    "virtualmachineinstances/userlist",
    "virtualmachineinstances/filesystemlist",
    "virtualmachineinstances/addvolume",
    "virtualmachineinstances/removevolume",
    "virtualmachineinstances/objectgraph",
    "virtualmachineinstances/sev/fetchcertchain",
    "virtualmachineinstances/sev/querylaunchmeasurement",
    "virtualmachineinstances/evacuate/cancel",
];
/// Listed between the two above it and below it.
const WRITTEN_TO_SEV: [&str; 2] =
    ["virtualmachineinstances/sev/setupsession", "virtualmachineinstances/sev/injectlaunchsecret"];

/// `/apis/subresources.kubevirt.io/VERSION`
pub fn resources(version: &str) -> Value {
    let (last, before) = LISTED.split_last().map_or((&"", &[][..]), |parts| parts);
    let entries: Vec<Value> = before
        .iter()
        .chain(&WRITTEN_TO_SEV)
        .chain(std::iter::once(last))
        .map(|name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": null}))
        .collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{version}"),
        "resources": entries})
}

/// `/apis/subresources.kubevirt.io`
pub fn group() -> Value {
    api_group(GROUP, VERSIONS)
}

/// `/apis/subresources.template.kubevirt.io`
pub fn template_group() -> Value {
    api_group(templates::GROUP, templates::VERSIONS)
}

/// `/apis/subresources.template.kubevirt.io/VERSION`
pub fn template_resources(version: &str) -> Value {
    let entries = ["virtualmachinetemplates/create", "virtualmachinetemplates/process"].map(|name| {
        json!({"name": name, "singularName": "", "namespaced": true, "kind": "ProcessedVirtualMachineTemplate",
            "verbs": ["create"]})
    });
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{}/{version}", templates::GROUP),
        "resources": entries})
}

fn api_group(group: &str, versions: [&str; 2]) -> Value {
    let version = |version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "preferredVersion": version(versions[0]),
        "versions": versions.map(version), "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0",
            "serverAddress": ""}]})
}

/// `/apis`
pub fn groups() -> Value {
    let groups = [group(), template_group()].map(|mut group| {
        crate::sim::json::remove(&mut group, &["kind"]);
        crate::sim::json::remove(&mut group, &["apiVersion"]);
        group
    });
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/`
pub fn roots() -> Value {
    let mut paths = vec!["/apis".to_owned(), "/openapi/v2".to_owned()];
    for version in VERSIONS {
        paths.push(format!("/apis/{GROUP}"));
        paths.push(format!("/apis/{GROUP}/{version}"));
    }
    json!({"paths": paths})
}

/// `version`
pub fn version(version: &str) -> Value {
    json!({"gitVersion": version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "", "platform": "linux/amd64"})
}

/// `guestfs`: where the image of libguestfs-tools is.
pub fn guestfs(version: &str) -> Value {
    json!({"registry": "quay.io/kubevirt", "tag": version, "imagePrefix": "", "digest": "", "gsImage": ""})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_recorded_order() {
        let list = resources("v1");
        let names: Vec<&str> =
            list["resources"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 31);
        assert_eq!(names[30], "virtualmachineinstances/evacuate/cancel");
        assert_eq!(names[29], "virtualmachineinstances/sev/injectlaunchsecret");
        assert!(list["resources"][0]["verbs"].is_null());
        assert_eq!(resources("v1alpha3")["groupVersion"], "subresources.kubevirt.io/v1alpha3");
    }
}
