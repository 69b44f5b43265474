//! A VirtualMachine under edit: reads see the edits made so far, and every edit is an RFC 6902
//! operation. Nothing is copied but the containers that are written to.

use json_patch::PatchOperation;
use serde_json::{Map, Value};

use crate::hook_list::{self, InvalidHooks};
use crate::json::{self, Path, at, kind, pointer};
use crate::site::{Shape, Site};
use crate::terms;

/// Something that a feature adds to a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Addition {
    pub(crate) site: Site,
    pub(crate) value: Value,
}

/// An object that does not have the shape of a VirtualMachine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShapeError {
    #[error("{path} is {found}, it must be {expected}; correct it")]
    Kind { path: String, found: &'static str, expected: &'static str },
    #[error(transparent)]
    Hooks(#[from] InvalidHooks),
}

/// Where a container of the base is.
#[derive(Clone, Copy)]
enum Found<'a> {
    Absent,
    There(&'a Value),
    /// A parent, at this depth, is not a mapping.
    Misplaced(usize, &'a Value),
}

pub(crate) struct Document<'a> {
    base: &'a Value,
    /// Containers as they are in the base: every read goes through one.
    found: [Found<'a>; Site::ALL.len()],
    /// Containers as they are after the edits; `None`: as in the base.
    edited: [Option<Value>; Site::ALL.len()],
    /// Paths that do not exist in the base and do now.
    created: Vec<Path>,
    operations: Vec<PatchOperation>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(base: &'a Value) -> Self {
        let mut walked = Walked::new(base);
        let found = Site::ALL.map(|site| walked.find(site.path()));
        Self { base, found, edited: Default::default(), created: Vec::new(), operations: Vec::new() }
    }

    /// The object without edits.
    pub(crate) fn base(&self) -> &'a Value {
        self.base
    }

    /// A field of the VM's spec as the user wrote it.
    pub(crate) fn vm_spec(&self, path: &[&str]) -> Option<&'a Value> {
        at(self.base, &["spec", "template", "spec"]).and_then(|spec| at(spec, path))
    }

    /// The members of a list, empty when there is none.
    pub(crate) fn list(&self, site: Site) -> Result<&[Value], ShapeError> {
        match self.container(site)? {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(wrong_kind(site.path(), other, "a list")),
        }
    }

    /// The members of a mapping.
    pub(crate) fn mapping(&self, site: Site) -> Result<Option<&Map<String, Value>>, ShapeError> {
        match self.container(site)? {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(other) => Err(wrong_kind(site.path(), other, "a mapping")),
        }
    }

    /// Whether something can be added to a container.
    pub(crate) fn check(&self, site: Site) -> Result<(), ShapeError> {
        match site.shape() {
            Shape::List | Shape::Terms => self.list(site).map(drop),
            Shape::Mapping => self.mapping(site).map(drop),
            Shape::Text => self.hooks(site).map(drop),
        }
    }

    /// Appends an operation on a part that is not a [`Site`].
    pub(crate) fn push(&mut self, operation: PatchOperation) {
        self.operations.push(operation);
    }

    /// The entries of an annotation that is a list of hooks.
    pub(crate) fn hooks(&self, site: Site) -> Result<Vec<Value>, ShapeError> {
        self.text(site)?.map_or(Ok(Vec::new()), |text| {
            let key = site.path().last().copied().unwrap_or_default();
            Ok(hook_list::entries(text).map_err(|error| error.of(key))?)
        })
    }

    fn text(&self, site: Site) -> Result<Option<&str>, ShapeError> {
        match self.container(site)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_kind(site.path(), other, "a string")),
        }
    }

    fn container(&self, site: Site) -> Result<Option<&Value>, ShapeError> {
        if let Some(edited) = &self.edited[site as usize] {
            return Ok(Some(edited));
        }
        match self.found[site as usize] {
            Found::Absent => Ok(None),
            Found::There(value) => Ok(Some(value)),
            Found::Misplaced(depth, parent) => Err(wrong_kind(&site.path()[..depth], parent, "a mapping")),
        }
    }

    /// Whether an addition is there, unchanged.
    pub(crate) fn contains(&self, addition: &Addition) -> bool {
        self.find(addition).is_some()
    }

    /// The site where an addition is. Harvester (v1.8) moves GPUs to the host devices.
    fn find(&self, addition: &Addition) -> Option<Site> {
        let value = &addition.value;
        let listed = |site| self.list(site).is_ok_and(|items| items.contains(value));
        match addition.site {
            Site::Gpus if listed(Site::Gpus) => Some(Site::Gpus),
            Site::Gpus | Site::HostDevices => listed(Site::HostDevices).then_some(Site::HostDevices),
            site if site.shape() == Shape::List => listed(site).then_some(site),
            site @ Site::NodeAffinity => {
                let alternatives = value.as_array().map_or(&[][..], Vec::as_slice);
                self.list(site).is_ok_and(|terms| terms::holds(terms, alternatives)).then_some(site)
            }
            site if site.shape() == Shape::Mapping => {
                let members = self.mapping(site).ok().flatten()?;
                let (key, member) = value.as_object()?.iter().next()?;
                (members.get(key) == Some(member)).then_some(site)
            }
            site => self.hooks(site).is_ok_and(|hooks| hooks.contains(value)).then_some(site),
        }
    }

    /// Adds to a container, creating it and its parents where they are missing.
    pub(crate) fn add(&mut self, addition: Addition) -> Result<(), ShapeError> {
        let Addition { site, value } = addition;
        match site.shape() {
            Shape::List => {
                self.list(site)?;
                if self.container(site)?.is_none() {
                    self.create(site, Value::Array(vec![value]));
                } else {
                    let mut path = pointer(site.path());
                    path.push_back("-");
                    self.operations.push(json::add(path, value.clone()));
                    if let Value::Array(items) = self.writable(site) {
                        items.push(value);
                    }
                }
            }
            Shape::Mapping => {
                self.mapping(site)?;
                // another site below it may have made it
                if !self.exists(site.path()) {
                    self.create(site, value);
                } else if let Value::Object(limits) = value {
                    for (key, limit) in limits {
                        let mut path = pointer(site.path());
                        path.push_back(key.as_str());
                        self.operations.push(json::add(path, limit.clone()));
                        if let Value::Object(members) = self.writable(site) {
                            members.insert(key, limit);
                        }
                    }
                }
            }
            Shape::Terms => {
                let alternatives = value.as_array().map_or(&[][..], Vec::as_slice);
                let terms = terms::product(self.list(site)?, alternatives);
                self.edited[site as usize] = Some(Value::Array(terms));
            }
            Shape::Text => {
                let key = site.path().last().copied().unwrap_or_default();
                let text = hook_list::append(self.text(site)?.unwrap_or("[]"), &value)
                    .map_err(|error| error.of(key))?;
                self.edited[site as usize] = Some(Value::String(text));
            }
        }
        Ok(())
    }

    /// Takes an addition away. What a user has changed since is not ours any more and stays.
    pub(crate) fn remove(&mut self, addition: &Addition) -> bool {
        let value = &addition.value;
        match addition.site {
            // terms that a user edited since still carry our alternatives
            site @ Site::NodeAffinity => {
                let alternatives = value.as_array().map_or(&[][..], Vec::as_slice);
                let Ok(terms) = self.list(site) else { return false };
                let stripped = terms::strip(terms, alternatives);
                let changed = stripped != terms;
                if changed {
                    self.edited[site as usize] = Some(Value::Array(stripped));
                }
                return changed;
            }
            site @ (Site::HookSidecars | Site::LauncherHooks) => {
                let shorter = self.text(site).ok().flatten().and_then(|text| hook_list::remove(text, value));
                let found = shorter.is_some();
                if let Some(text) = shorter {
                    self.edited[site as usize] = Some(Value::String(text));
                }
                return found;
            }
            _ => {}
        }
        let Some(site) = self.find(addition) else { return false };
        let mut path = pointer(site.path());
        match self.writable(site) {
            Value::Array(items) => {
                let Some(index) = items.iter().position(|item| item == value) else { return false };
                items.remove(index);
                path.push_back(index);
                self.operations.push(json::test(path.clone(), value.clone()));
            }
            Value::Object(members) => {
                let Some(key) = value.as_object().and_then(|limits| limits.keys().next()) else {
                    return false;
                };
                members.remove(key);
                path.push_back(key.as_str());
            }
            _ => return false,
        }
        self.operations.push(json::remove(path));
        true
    }

    fn writable(&mut self, site: Site) -> &mut Value {
        let base = self.base;
        self.edited[site as usize].get_or_insert_with(|| match (at(base, site.path()), site.shape()) {
            (Some(container), _) => container.clone(),
            (None, Shape::Mapping) => Value::Object(Map::new()),
            (None, _) => Value::Null,
        })
    }

    /// Writes a container that does not exist, with the parents that it lacks.
    fn create(&mut self, site: Site, container: Value) {
        let path = site.path();
        let missing = (1..=path.len()).find(|depth| !self.exists(&path[..*depth])).unwrap_or(path.len());
        let nested = path[missing..].iter().rev().fold(container.clone(), |inner, token| {
            Value::Object(Map::from_iter([((*token).to_owned(), inner)]))
        });
        self.operations.push(json::add(pointer(&path[..missing]), nested));
        self.created.extend((missing..=path.len()).map(|depth| &path[..depth]));
        self.edited[site as usize] = Some(container);
    }

    fn exists(&self, path: &[&str]) -> bool {
        self.created.contains(&path) || at(self.base, path).is_some()
    }

    /// Takes away what an earlier request created and what is empty now. Returns which of the
    /// paths created by us, then or now, are still there.
    pub(crate) fn prune(&mut self, created_before: &[String]) -> Vec<String> {
        let mut candidates: Vec<Path> = Vec::new();
        for path in
            Site::ALL.iter().flat_map(|site| (1..=site.path().len()).map(|depth| &site.path()[..depth]))
        {
            if !candidates.contains(&path) && created_before.iter().any(|known| json::is_pointer(known, path))
            {
                candidates.push(path);
            }
        }
        candidates.sort_by_key(|path| std::cmp::Reverse(path.len()));
        let mut pruned: Vec<Path> = Vec::new();
        for path in &candidates {
            if self.is_empty(path, &pruned) {
                pruned.push(path);
            }
        }
        for path in pruned.iter().filter(|path| !pruned.iter().any(|other| is_below(path, other))) {
            let gone = pointer(path);
            self.operations.retain(|operation| !operation.path().starts_with(&gone));
            self.operations.push(json::test(gone.clone(), at(self.base, path).cloned().unwrap_or_default()));
            self.operations.push(json::remove(gone));
        }
        for site in Site::ALL {
            if pruned.contains(&site.path()) {
                self.edited[site as usize] = None;
            }
        }
        candidates.retain(|path| !pruned.contains(path));
        candidates.into_iter().map(|path| pointer(path).to_string()).collect()
    }

    /// Whether a path from the base has nothing in it any more.
    fn is_empty(&self, path: Path, pruned: &[Path]) -> bool {
        if self.created.iter().any(|created| is_below(created, path)) {
            return false;
        }
        // one that is written whole is created at the end
        let comes = |site: &Site| {
            let edited = self.edited[*site as usize].as_ref();
            site.is_written_whole()
                && is_below(site.path(), path)
                && at(self.base, site.path()).is_none()
                && edited.is_some_and(|value| !value.as_str().is_some_and(hook_list::is_empty))
        };
        if Site::ALL.iter().any(comes) {
            return false;
        }
        let gone = |key: &String| {
            pruned.iter().any(|gone| {
                gone.len() == path.len() + 1 && is_below(gone, path) && gone.last() == Some(&key.as_str())
            })
        };
        let site = Site::ALL.into_iter().find(|site| site.path() == path);
        let edited = site.and_then(|site| self.edited[site as usize].as_ref());
        match edited.or_else(|| at(self.base, path)) {
            Some(Value::Array(items)) => items.is_empty(),
            // a mapping may be a site and have sites below it
            Some(Value::Object(members)) => members.keys().all(gone),
            Some(Value::String(text)) => site.is_some() && hook_list::is_empty(text),
            _ => false,
        }
    }

    /// The operations, and the paths that they create.
    pub(crate) fn finish(mut self) -> (Vec<PatchOperation>, Vec<String>) {
        for site in Site::ALL.into_iter().filter(|site| site.is_written_whole()) {
            let Some(after) = self.edited[site as usize].take() else { continue };
            match at(self.base, site.path()) {
                Some(before) if *before == after => {}
                Some(before) => {
                    let path = pointer(site.path());
                    self.operations.push(json::test(path.clone(), before.clone()));
                    self.operations.push(json::replace(path, after));
                }
                None => self.create(site, after),
            }
        }
        let created = self.created.iter().map(|path| pointer(path).to_string()).collect();
        (self.operations, created)
    }
}

/// A walk to one path after the other; what a path shares with the one before is not walked again.
struct Walked<'a> {
    base: &'a Value,
    /// The last path, and the value behind each of its tokens that was found.
    path: Path,
    values: Vec<&'a Value>,
}

impl<'a> Walked<'a> {
    fn new(base: &'a Value) -> Self {
        Self { base, path: &[], values: Vec::with_capacity(8) }
    }

    fn find(&mut self, path: Path) -> Found<'a> {
        let shared = self.path.iter().zip(path).take_while(|(last, token)| last == token).count();
        self.values.truncate(shared);
        self.path = path;
        let mut value = self.values.last().copied().unwrap_or(self.base);
        for (depth, token) in path.iter().enumerate().skip(self.values.len()) {
            match value.get(token) {
                None if !value.is_object() => return Found::Misplaced(depth, value),
                None | Some(Value::Null) => return Found::Absent,
                Some(next) => value = next,
            }
            self.values.push(value);
        }
        Found::There(value)
    }
}

fn is_below(path: Path, ancestor: Path) -> bool {
    path.len() > ancestor.len() && path.starts_with(ancestor)
}

fn wrong_kind(path: &[&str], found: &Value, expected: &'static str) -> ShapeError {
    let path = if path.is_empty() { "the object".to_owned() } else { path.join(".") };
    ShapeError::Kind { path, found: kind(found), expected }
}
