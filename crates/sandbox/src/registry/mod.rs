//! Which kinds are served: built in, or defined by `CustomResourceDefinitions` while running.

mod builtin;
pub mod crd;
pub(crate) mod fields;
pub mod kubevirt;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::ObjectType;
use apimachinery::tree::Value;
use apimachinery::validation::NameRule;
use arc_swap::ArcSwap;

/// What can be done with the objects of a kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verbs {
    /// Everything.
    All,
    /// Everything but `deletecollection`.
    NoDeleteCollection,
    /// Only `create`: a question and its answer.
    CreateOnly,
}

impl Verbs {
    /// As discovery lists them.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::All => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Self::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
            Self::CreateOnly => &["create"],
        }
    }
}

/// A part of an object, or an action on it, with a path of its own.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// For example `status`.
    pub name: String,
    /// Group of the kind that goes over the wire.
    pub group: String,
    /// Its version.
    pub version: String,
    /// Its kind.
    pub kind: String,
    /// What can be done with it.
    pub verbs: Vec<&'static str>,
}

/// Where a kind comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Part of Kubernetes.
    BuiltIn,
    /// One version of a `CustomResourceDefinition`.
    Crd(Arc<crd::Definition>),
}

/// One kind in one version.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// The name in paths.
    pub plural: String,
    /// What kubectl also accepts.
    pub singular: String,
    /// For example `Pod`.
    pub kind: String,
    /// For example `PodList`.
    pub list_kind: String,
    /// For example `po`.
    pub short_names: Vec<String>,
    /// For example `all`.
    pub categories: Vec<String>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// What can be done.
    pub verbs: Verbs,
    /// Parts with their own paths.
    pub subresources: Vec<Subresource>,
    /// The collection in the store; all versions of a kind share one.
    pub storage: Arc<str>,
    /// The version that new objects are stored in.
    pub storage_version: String,
    /// Fields that field selectors may name, beside name and namespace.
    pub selectable: Vec<String>,
    /// Its fields, and how they merge.
    pub object_type: ObjectType,
    /// How names are checked.
    pub name_rule: NameRule,
    /// Where it comes from.
    pub source: Source,
}

impl Kind {
    /// `v1` or `apps/v1`
    pub fn api_version(&self) -> String {
        join(&self.group, &self.version)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// The definition, for kinds that come from one.
    pub fn definition(&self) -> Option<&crd::Definition> {
        match &self.source {
            Source::BuiltIn => None,
            Source::Crd(definition) => Some(definition),
        }
    }

    /// Is this built-in kind that one?
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// `plural` or `plural.group`, as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// `version` or `group/version`
pub fn join(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

/// All kinds at one moment.
#[derive(Debug, Default)]
pub struct Kinds {
    /// In order of discovery: groups as they came, core first.
    list: Vec<Arc<Kind>>,
    by_path: HashMap<(String, String, String), Arc<Kind>>,
    /// Changes whenever a kind comes or goes.
    pub generation: u64,
}

impl Kinds {
    fn new(list: Vec<Arc<Kind>>, generation: u64) -> Self {
        let key = |kind: &Arc<Kind>| (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        let by_path = list.iter().map(|kind| (key(kind), kind.clone())).collect();
        Self { list, by_path, generation }
    }

    /// The kind behind a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The kind that an object or an owner reference names.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.list.iter().find(|known| known.kind == kind && known.group == group && known.version == version)
    }

    /// A served version of what is kept in a collection of the store: the stored one if it is served.
    pub fn by_storage(&self, storage: &str) -> Option<&Arc<Kind>> {
        let of_storage = || self.list.iter().filter(|kind| *kind.storage == *storage);
        of_storage().find(|kind| kind.version == kind.storage_version).or_else(|| of_storage().next())
    }

    /// Every kind, each version on its own.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.list.iter()
    }

    /// Group names in order of discovery, without core, each with its versions, preferred first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for kind in self.list.iter().filter(|kind| !kind.group.is_empty()) {
            let at = groups.iter().position(|(name, _)| *name == kind.group).unwrap_or_else(|| {
                groups.push((kind.group.clone(), Vec::new()));
                groups.len() - 1
            });
            let group = &mut groups[at];
            if !group.1.contains(&kind.version) {
                group.1.push(kind.version.clone());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups
    }
}

/// Sorts versions as Kubernetes does: `v2` before `v1` before `v1beta1` before `v1alpha1`, rest last.
fn priority(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).count();
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let (major, rest) = rest.split_at(digits(rest));
    let number = |text: &str| text.parse().unwrap_or(0);
    match rest {
        "" if !major.is_empty() => (3, number(major), 0),
        _ if rest.starts_with("beta") => (2, number(major), number(&rest[4..])),
        _ if rest.starts_with("alpha") => (1, number(major), number(&rest[5..])),
        _ => (0, 0, 0),
    }
}

/// The kinds of a running sandbox.
#[derive(Debug)]
pub struct Registry {
    kinds: ArcSwap<Kinds>,
    definitions: std::sync::Mutex<BTreeMap<String, Vec<Kind>>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// The built-in kinds.
    pub fn new() -> Self {
        let list = builtin::kinds().map(Arc::new).collect();
        Self { kinds: ArcSwap::from_pointee(Kinds::new(list, 1)), definitions: std::sync::Mutex::default() }
    }

    /// The kinds as they are now.
    pub fn kinds(&self) -> Arc<Kinds> {
        self.kinds.load_full()
    }

    /// Serves what a `CustomResourceDefinition` defines, in place of what it defined before.
    ///
    /// # Errors
    /// [`crd::Error`] names what is wrong with the definition; nothing changes then.
    pub fn define(&self, definition: &Value) -> Result<(), crd::Error> {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let kinds = crd::kinds_of(definition)?;
        self.change(|definitions| {
            definitions.insert(name, kinds);
        });
        Ok(())
    }

    /// Stops serving what a `CustomResourceDefinition` defined.
    pub fn undefine(&self, name: &str) {
        self.change(|definitions| {
            definitions.remove(name);
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<Kind>>)) {
        let mut definitions = self.definitions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut definitions);
        let custom = definitions.values().flatten().cloned();
        let list = builtin::kinds().chain(custom).map(Arc::new).collect();
        let generation = self.kinds.load().generation + 1;
        self.kinds.store(Arc::new(Kinds::new(list, generation)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_kubernetes_sorts_them() {
        let mut versions = ["v1alpha1", "v1", "foo", "v2", "v1beta2", "v1beta1"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn both_event_groups_share_a_storage() {
        let kinds = Registry::new().kinds();
        let core = kinds.find("", "v1", "events").unwrap();
        let own = kinds.find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(core.storage, own.storage);
        assert_eq!(kinds.find("", "v1", "pods").unwrap().subresource("eviction").unwrap().group, "policy");
    }
}
