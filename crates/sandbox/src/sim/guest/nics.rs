//! The interfaces that a guest has, and those of its pod.

use std::collections::BTreeSet;

use apimachinery::tree::Value;

use crate::sim::json::{list, put, text};

/// Names of interfaces.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Nics {
    domain: BTreeSet<String>,
    pod: BTreeSet<String>,
}

fn wanted(vmi: &Value) -> BTreeSet<String> {
    let all = list(vmi, "/spec/domain/devices/interfaces").iter();
    all.filter(|one| text(one, "/state") != "absent").map(|one| text(one, "/name").to_owned()).collect()
}

impl Nics {
    /// Those of a domain that starts, or arrives, in a pod that was made for the VMI as it is.
    pub fn of(vmi: &Value) -> Self {
        Self { domain: wanted(vmi), pod: wanted(vmi) }
    }

    /// Takes those away that the VMI wants absent.
    pub fn unplug(&mut self, vmi: &Value) {
        let wanted = wanted(vmi);
        self.domain.retain(|name| wanted.contains(name));
    }

    /// Writes into the VMI's status what there is (`infoSource`, `linkState`).
    pub fn describe(&self, vmi: &mut Value) {
        let spec = list(vmi, "/spec/domain/devices/interfaces").to_vec();
        let networks = list(vmi, "/spec/networks").to_vec();
        let of_spec = |name: &str| spec.iter().find(|one| text(one, "/name") == name);
        let mut status = list(vmi, "/status/interfaces").to_vec();
        let before = status.clone();
        status.retain(|one| {
            let name = text(one, "/name");
            of_spec(name).is_none() || self.domain.contains(name) || self.pod.contains(name)
        });
        for one in &mut status {
            let name = text(one, "/name").to_owned();
            let Some(interface) = of_spec(&name) else { continue };
            let secondary = networks
                .iter()
                .any(|network| network["name"] == name.as_str() && network.get("multus").is_some());
            let source = match (self.domain.contains(&name), secondary) {
                (true, false) => "domain, guest-agent",
                (true, true) => "domain, guest-agent, multus-status",
                (false, _) => "multus-status",
            };
            one["infoSource"] = source.into();
            one["linkState"] = if text(interface, "/state") == "down" { "down" } else { "up" }.into();
        }
        if status != before {
            put(vmi, &["status", "interfaces"], status);
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn what_the_guest_lets_go_stays_in_its_pod_until_it_moves() {
        let vmi = |state: &str| {
            json!({"spec": {"domain": {"devices": {"interfaces": [{"name": "a"}, {"name": "b", "state": state}]}},
                "networks": [{"name": "a", "pod": {}}, {"name": "b", "multus": {}}]},
                "status": {"interfaces": [{"name": "a"}, {"name": "b"}, {"name": "of the guest"}]}})
        };
        let sources = |nics: &Nics, mut vmi: Value| {
            nics.describe(&mut vmi);
            let all = list(&vmi, "/status/interfaces").iter();
            all.map(|one| {
                format!("{} {} {}", text(one, "/name"), text(one, "/infoSource"), text(one, "/linkState"))
            })
            .collect::<Vec<_>>()
        };
        let mut nics = Nics::of(&vmi(""));
        assert_eq!(sources(&nics, vmi("down"))[1], "b domain, guest-agent, multus-status down");
        nics.unplug(&vmi("absent"));
        assert_eq!(sources(&nics, vmi("absent"))[1], "b multus-status up");
        let moved = Nics::of(&vmi("absent"));
        assert_eq!(sources(&moved, vmi("absent")), ["a domain, guest-agent up", "of the guest  "]);
    }
}
