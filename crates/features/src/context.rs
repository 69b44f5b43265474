use std::borrow::Cow;

use kubevirt::{KubeVirtView, PermittedDevice, feature_gates};
use serde_json::Value;

use crate::config::Config;
use crate::document::{Addition, Document, ShapeError};
use crate::facts::{ClusterFacts, Lookups, Node};
use crate::feature::Feature;
use crate::json::at;
use crate::record::Record;
use crate::scheduling::Requirements;
use crate::site::Site;
use crate::terms;
use crate::wishes::{Origin, Wish};

/// What a feature decides on.
pub(crate) struct Context<'a> {
    /// The VM after the features before this one.
    pub(crate) document: &'a Document<'a>,
    /// What earlier requests added, for all features.
    pub(crate) record: &'a Record,
    /// What earlier requests added for this feature.
    pub(crate) owned: &'a [Addition],
    pub(crate) namespace: &'a str,
    pub(crate) wish: &'a Wish<'a>,
    pub(crate) cluster: &'a ClusterFacts,
    pub(crate) lookups: &'a Lookups,
    pub(crate) config: &'a Config,
}

/// What a feature wants the VM to have, beside what the user wrote.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) additions: Vec<Addition>,
    /// The value of the `-applied` annotation.
    pub(crate) applied: String,
    pub(crate) warnings: Vec<String>,
}

impl<'a> Context<'a> {
    /// The members of a list that the user wrote. Only the feature that owns a list adds to it,
    /// so this does not depend on which features ran before.
    pub(crate) fn written(
        &self,
        site: Site,
    ) -> Result<impl Iterator<Item = &'a Value> + use<'a>, ShapeError> {
        self.document.check(site)?;
        let record = self.record;
        let items = at(self.document.base(), site.path()).and_then(Value::as_array);
        Ok(items.into_iter().flatten().filter(move |item| !record.contains(item)))
    }

    /// A setting that the user wrote in a mapping: not what a feature of ours put there.
    pub(crate) fn setting(&self, site: Site, key: &str) -> Result<Option<&'a Value>, ShapeError> {
        self.document.check(site)?;
        let written = at(self.document.base(), site.path()).and_then(|members| members.get(key));
        Ok(written.filter(|value| {
            let addition = Addition { site, value: serde_json::json!({key: value}) };
            !value.is_null() && !self.record.has(&addition)
        }))
    }

    /// A setting after the features before this one.
    pub(crate) fn current(&self, site: Site, key: &str) -> Result<Option<&Value>, ShapeError> {
        Ok(self.document.mapping(site)?.and_then(|members| members.get(key)).filter(|value| !value.is_null()))
    }

    pub(crate) fn kubevirt(&self) -> Option<KubeVirtView<'a>> {
        self.cluster.kubevirt.as_ref().map(KubeVirtView)
    }

    /// Whether a feature gate is on; nothing when the KubeVirt CR is not known.
    pub(crate) fn gate(&self, gate: &str) -> Option<bool> {
        Some(feature_gates::is_enabled(self.kubevirt()?, gate))
    }

    /// The devices that VMs may ask for; nothing when the KubeVirt CR is not known.
    pub(crate) fn permitted(&self) -> Option<impl Iterator<Item = PermittedDevice<'a>> + use<'a>> {
        Some(self.kubevirt()?.permitted_devices())
    }

    /// A resource name as the user wrote it. Label values carry no `/`; the domain in front of
    /// it carries no `_`, so the first `_` in a label stands for it.
    pub(crate) fn resource_name<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.wish.origin == Origin::Label && !text.contains('/') {
            Cow::Owned(text.replacen('_', "/", 1))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// The architecture of the guest.
    pub(crate) fn architecture(&self) -> &'a str {
        let named = self.document.vm_spec(&["architecture"]).and_then(Value::as_str);
        named
            .filter(|name| !name.is_empty())
            .or_else(|| self.kubevirt()?.default_architecture())
            .unwrap_or("amd64")
    }

    /// The nodes that the VM can land on, by what the user requires; nothing when the nodes
    /// are not known.
    pub(crate) fn landable(&self) -> Result<Option<Vec<&'a Node>>, ShapeError> {
        let Some(nodes) = &self.cluster.nodes else { return Ok(None) };
        let terms = self.required_terms()?;
        let requirements = Requirements {
            node_selector: self.document.vm_spec(&["nodeSelector"]),
            terms: terms.as_deref(),
            architecture: Some(self.architecture()),
        };
        Ok(Some(nodes.iter().filter(|node| requirements.admits(node)).collect()))
    }

    /// The required node affinity terms without our alternatives.
    fn required_terms(&self) -> Result<Option<Cow<'a, [Value]>>, ShapeError> {
        let terms = match at(self.document.base(), Site::NodeAffinity.path()) {
            None => return Ok(None),
            Some(Value::Array(terms)) => terms,
            Some(_) => {
                self.document.list(Site::NodeAffinity)?;
                return Ok(None);
            }
        };
        let ours = self.record.additions(Feature::NestedVirt);
        let Some(ours) = ours.iter().find(|addition| addition.site == Site::NodeAffinity) else {
            return Ok(Some(Cow::Borrowed(terms)));
        };
        let stripped = terms::strip(terms, ours.value.as_array().map_or(&[][..], Vec::as_slice));
        Ok((!stripped.is_empty()).then_some(Cow::Owned(stripped)))
    }
}
