//! What a VM asks for: annotations, labels or both, then the cloud-init map `x_kubevirt_features`.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::config::{Config, Source};
use crate::facts::Lookups;
use crate::feature::Feature;
use crate::json::at;
use crate::user_data;

/// What all annotations and labels of ours begin with.
const PREFIX: &str = "vm-feature-manager.io/";

/// Where a wish was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    Annotation,
    Label,
    UserData,
}

/// One feature, asked for with a value that is neither empty nor falsy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wish<'a> {
    pub(crate) value: Cow<'a, str>,
    pub(crate) origin: Origin,
    /// A label or cloud-init asks for the feature as well, and would count without this wish.
    pub(crate) hides_another: bool,
}

/// All that one VM asks for.
#[derive(Debug, Default)]
pub(crate) struct Wishes<'a> {
    by_feature: [Option<Wish<'a>>; Feature::ALL.len()],
    pub(crate) warnings: Vec<String>,
}

impl<'a> Wishes<'a> {
    pub(crate) fn collect(object: &'a Value, config: &Config, lookups: &Lookups) -> Self {
        let mut wishes = Self::default();
        let mut explicit = [false; Feature::ALL.len()];
        let (annotations, labels) = (("annotations", Origin::Annotation), ("labels", Origin::Label));
        let sections: &[_] = match config.source {
            Source::Annotations => &[annotations],
            Source::Labels => &[labels],
            Source::Both => &[annotations, labels],
        };
        for (section, origin) in sections {
            let Some(members) = metadata_map(object, section) else { continue };
            let ours: Vec<_> = members.iter().filter(|(key, _)| key.starts_with(PREFIX)).collect();
            let get = |wanted: &str| ours.iter().find(|(key, _)| *key == wanted)?.1.as_str();
            for feature in Feature::ALL.into_iter().filter(|_| !ours.is_empty()) {
                let Some(value) = feature.requests().iter().find_map(|key| get(key)) else { continue };
                if explicit[feature as usize] {
                    if let Some(wish) = &mut wishes.by_feature[feature as usize] {
                        wish.hides_another = true;
                    }
                } else {
                    explicit[feature as usize] = true;
                    wishes.set(feature, Cow::Borrowed(value), *origin);
                }
            }
        }
        for (key, value) in user_data::features(object, config, lookups, &mut wishes.warnings) {
            match Feature::ALL.into_iter().find(|feature| names(*feature, &key)) {
                Some(feature) if explicit[feature as usize] => {
                    if let Some(wish) = &mut wishes.by_feature[feature as usize] {
                        wish.hides_another |= wish.origin != Origin::UserData;
                    }
                }
                Some(feature) => {
                    explicit[feature as usize] = true;
                    wishes.set(feature, Cow::Owned(value), Origin::UserData);
                }
                None => wishes
                    .warnings
                    .push(format!("x_kubevirt_features: `{key}` is not a feature, it is ignored")),
            }
        }
        wishes
    }

    pub(crate) fn get(&self, feature: Feature) -> Option<&Wish<'a>> {
        self.by_feature[feature as usize].as_ref()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_feature.iter().all(Option::is_none)
    }

    fn set(&mut self, feature: Feature, value: Cow<'a, str>, origin: Origin) {
        if truth(&value) != Some(false) {
            self.by_feature[feature as usize] = Some(Wish { value, origin, hides_another: false });
        }
    }
}

/// `metadata.annotations` or `metadata.labels`.
pub(crate) fn metadata_map<'a>(object: &'a Value, section: &str) -> Option<&'a Map<String, Value>> {
    at(object, &["metadata", section])?.as_object()
}

/// Whether a text means yes or no; nothing when it means neither. Empty means no.
pub(crate) fn truth(text: &str) -> Option<bool> {
    const YES: [&str; 8] = ["true", "enabled", "enable", "yes", "on", "1", "y", "t"];
    const NO: [&str; 9] = ["false", "disabled", "disable", "no", "off", "0", "n", "f", ""];
    let text = text.trim();
    let is = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(&YES) {
        Some(true)
    } else if is(&NO) {
        Some(false)
    } else {
        None
    }
}

/// Whether a key of the cloud-init map means the feature; `_` and `-` are the same there.
fn names(feature: Feature, key: &str) -> bool {
    feature.requests().iter().any(|request| {
        let name = request.rsplit('/').next().unwrap_or_default();
        name.len() == key.len()
            && name.bytes().zip(key.bytes()).all(|(name, key)| name == if key == b'_' { b'-' } else { key })
    })
}
