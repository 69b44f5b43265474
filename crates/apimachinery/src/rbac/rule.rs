//! One rule of a role.

use std::fmt;

use crate::tree::{Map, Value};

use super::Attributes;
use crate::field_error::quote;

/// A `PolicyRule`: verbs on resources, or on paths.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// `*`: all
    pub verbs: Vec<String>,
    /// `*`: all; `""`: core
    pub api_groups: Vec<String>,
    /// `pods`, `pods/status`, `*`, `*/scale`
    pub resources: Vec<String>,
    /// Empty: all names.
    pub resource_names: Vec<String>,
    /// `/healthz`, `/apis/*`, `*`; only cluster roles have them.
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Reads one rule; what is no list of strings counts as empty.
    pub fn new(value: &Value) -> Self {
        let list = |key: &str| {
            let items = value[key].as_array().into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// Reads the `rules` of a role.
    pub fn list(value: &Value) -> Vec<Self> {
        value.as_array().into_iter().flatten().map(Self::new).collect()
    }

    /// What `system:masters` may do.
    pub(super) fn everything() -> [Self; 2] {
        let star = || vec!["*".to_owned()];
        [
            Self { verbs: star(), api_groups: star(), resources: star(), ..Self::default() },
            Self { verbs: star(), non_resource_urls: star(), ..Self::default() },
        ]
    }

    /// Whether this is a rule about paths, not resources.
    pub fn is_for_paths(&self) -> bool {
        !self.non_resource_urls.is_empty()
    }

    /// Whether this rule alone allows a request.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if !attributes.path.is_empty() {
            return self.non_resource_urls.iter().any(|url| path_matches(url, attributes.path));
        }
        has(&self.api_groups, attributes.group)
            && self.has_resource(attributes.resource, attributes.subresource)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == attributes.name))
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|listed| match listed.split_once('/') {
            _ if listed == "*" => true,
            None => subresource.is_empty() && listed == resource,
            Some((_, sub)) if subresource.is_empty() || sub != subresource => false,
            Some((main, _)) => main == "*" || main == resource,
        })
    }

    /// How many rules [`Rule::breakdown`] makes.
    pub(super) fn parts(&self) -> usize {
        let resources = self.api_groups.len().saturating_mul(self.resources.len());
        let named = resources.saturating_mul(self.resource_names.len().max(1));
        self.verbs.len().saturating_mul(named.saturating_add(self.non_resource_urls.len()))
    }

    /// Cuts a rule into rules of one verb, group, resource (or path) and name each.
    pub(super) fn breakdown(&self) -> Vec<Self> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(Self {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Self::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let one = Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(one);
                        continue;
                    }
                    for name in &self.resource_names {
                        out.push(Self { resource_names: vec![name.clone()], ..one.clone() });
                    }
                }
            }
        }
        out
    }

    /// Whether this rule covers a rule that [`Rule::breakdown`] made.
    pub(super) fn covers(&self, small: &Self) -> bool {
        if !small.verbs.iter().all(|verb| has(&self.verbs, verb)) {
            return false;
        }
        if small.is_for_paths() {
            return small.non_resource_urls.iter().all(|path| {
                self.non_resource_urls.iter().any(|url| {
                    url == path
                        || url == "*"
                        || url.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
                })
            });
        }
        let names = self.resource_names.is_empty()
            || (!small.resource_names.is_empty()
                && small.resource_names.iter().all(|name| self.resource_names.contains(name)));
        names
            && small.api_groups.iter().all(|group| has(&self.api_groups, group))
            && small.resources.iter().all(|resource| self.covers_resource(resource))
    }

    fn covers_resource(&self, resource: &str) -> bool {
        has(&self.resources, resource)
            || resource.split_once('/').is_some_and(|(_, sub)| {
                self.resources.iter().any(|listed| listed.strip_prefix("*/") == Some(sub))
            })
    }

    /// The rule as in the API; empty lists are left out.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (key, list) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                out.insert(key.into(), list.clone().into());
            }
        }
        Value::Object(out)
    }
}

impl fmt::Display for Rule {
    /// As privilege escalation messages print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        let parts = lists.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| {
            let quoted: Vec<String> = list.iter().map(|item| quote(item)).collect();
            format!("{name}:[{}]", quoted.join(" "))
        });
        write!(f, "{{{}}}", parts.collect::<Vec<_>>().join(", "))
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|listed| listed == "*" || listed == item)
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}
