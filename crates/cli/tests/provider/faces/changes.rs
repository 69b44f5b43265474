//! What changes something: one VM for each face goes the same way.

use super::*;

/// A VM for each face.
pub const NAMES: [&str; 3] = ["by-line", "by-rest", "by-code"];

/// What is of the time, or drawn.
const DRAWN: [&str; 10] = [
    "created",
    "started",
    "ended",
    "expires",
    "uid",
    "resourceVersion",
    "mac",
    "addresses",
    "url",
    "tokenSecret",
];

/// An answer without what differs between VMs that went the same way.
pub fn plain(answer: Value, name: &str) -> Value {
    match answer {
        Value::Object(all) => {
            // guards of patches hold what was read
            let guard = all.get("op").is_some_and(|op| op == "test");
            let kept = all
                .into_iter()
                .filter(|(key, _)| !(DRAWN.contains(&key.as_str()) || guard && key == "value"));
            kept.map(|(key, value)| (key, plain(value, name))).collect()
        }
        Value::Array(all) => all.into_iter().map(|one| plain(one, name)).collect(),
        Value::String(text) => {
            // what `generateName` adds (`k8s.io/apimachinery/pkg/util/rand`)
            let drawn = |part: &str| {
                part.len() == 5 && part.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
            };
            let text = text.replace(name, "NAME");
            let parts = text.split('-').map(|part| if drawn(part) { "*" } else { part });
            parts.collect::<Vec<_>>().join("-").into()
        }
        other => other,
    }
}

fn machine(name: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": name}, "spec": {
        "runStrategy": "Manual",
        "dataVolumeTemplates": [{"metadata": {"name": format!("{name}-root")}, "spec": {"source": {"blank": {}},
            "storage": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "64Mi"}}}}}],
        "template": {"spec": {
            "domain": {"memory": {"guest": "128Mi"}, "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                "interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "dataVolume": {"name": format!("{name}-root")}}]}}}})
}

impl Faces {
    pub async fn machines(&self) {
        for name in NAMES {
            self.library.create_vm("default", &machine(name), false).await.unwrap();
        }
    }

    pub async fn go(&self, rows: Vec<Row>) {
        for row in rows {
            self.each(&row, NAMES, plain).await;
        }
    }
}
