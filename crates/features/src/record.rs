//! The undo record: what was added for which feature, kept in an annotation of the VM.
//!
//! ```json
//! {"features": {"nested-virt": {"cpuFeatures": [{"name": "svm", "policy": "require"}]}},
//!  "created": ["/spec/template/spec/domain/cpu", "/spec/template/spec/domain/cpu/features"]}
//! ```
//!
//! An addition is undone only while it is still exactly what the record says; names that this
//! release does not know are kept for the release that wrote them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::Addition;
use crate::feature::Feature;
use crate::site::Site;

/// The annotation that carries the record.
pub(crate) const MANAGED: &str = "vm-feature-manager.io/managed";

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub(crate) struct Record {
    /// Additions by feature and site.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    features: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
    /// Containers that did not exist before, as JSON pointers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) created: Vec<String>,
}

impl Record {
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The annotation's value, or nothing when there is nothing to undo.
    pub(crate) fn to_text(&self) -> Option<String> {
        if self.features.is_empty() { None } else { serde_json::to_string(self).ok() }
    }

    /// What was added for a feature.
    pub(crate) fn additions(&self, feature: Feature) -> Vec<Addition> {
        self.features
            .get(feature.name())
            .into_iter()
            .flatten()
            .filter_map(|(site, values)| Some((Site::from_name(site)?, values)))
            .flat_map(|(site, values)| {
                values.iter().map(move |value| Addition { site, value: value.clone() })
            })
            .collect()
    }

    /// Whether a value was added for any feature.
    pub(crate) fn contains(&self, value: &Value) -> bool {
        self.features.values().flat_map(BTreeMap::values).any(|values| values.contains(value))
    }

    /// Whether an addition was made for any feature.
    pub(crate) fn has(&self, addition: &Addition) -> bool {
        let values = self.features.values().filter_map(|sites| sites.get(addition.site.name()));
        values.flatten().any(|value| *value == addition.value)
    }

    /// Whether an addition was made for another feature as well.
    pub(crate) fn is_shared(&self, feature: Feature, addition: &Addition) -> bool {
        let others = self.features.iter().filter(|(name, _)| *name != feature.name());
        let values = others.filter_map(|(_, sites)| sites.get(addition.site.name()));
        values.flatten().any(|value| *value == addition.value)
    }

    /// Takes over what an older record has and this release does not know: no edit may lose it.
    pub(crate) fn keep_unknown(&mut self, older: &Self) {
        for (name, sites) in &older.features {
            let is_known = Feature::ALL.into_iter().any(|feature| feature.name() == name);
            for (site, values) in
                sites.iter().filter(|(site, _)| !is_known || Site::from_name(site).is_none())
            {
                let own = self.features.entry(name.clone()).or_default();
                own.entry(site.clone()).or_insert_with(|| values.clone());
            }
        }
    }

    /// Remembers what is added for a feature now, in place of what was.
    pub(crate) fn set(&mut self, feature: Feature, additions: Vec<Addition>) {
        let mut sites = self.features.remove(feature.name()).unwrap_or_default();
        sites.retain(|site, _| Site::from_name(site).is_none());
        for Addition { site, value } in additions {
            sites.entry(site.name().to_owned()).or_default().push(value);
        }
        if !sites.is_empty() {
            self.features.insert(feature.name().to_owned(), sites);
        }
    }
}
