//! What the API serves: `/api`, `/apis`, lists per group, and everything in one document.

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use http::request::Parts;

use super::negotiate::{self, Form};
use super::reply::{self, Reply};
use super::{Api, unknown};
use crate::registry::{Kind, Kinds, Subresource, join};

/// `/version`
pub fn version() -> Value {
    json!({"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35", "gitVersion": "v1.36.2",
        "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "", "platform": "linux/amd64"})
}

impl Api {
    /// Discovery documents.
    ///
    /// # Errors
    /// 404 for other paths, 406.
    pub async fn discovery(&self, head: &Parts, path: &str) -> Result<Reply, Status> {
        let kinds = self.registry.kinds();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let aggregated = matches!(parts.as_slice(), ["api" | "apis"]);
        let form = negotiate::accept(&head.headers, aggregated)?;
        if let Form::Discovery(version) = form {
            let core = parts.as_slice() == ["api"];
            let mut document = aggregated_document(&kinds, core, version);
            if !core && let Some(items) = document["items"].as_array_mut() {
                items.extend(self.others().await);
            }
            let mut reply = reply::json(200, &document);
            let media =
                format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
            if let Ok(media) = http::HeaderValue::from_str(&media) {
                reply.headers_mut().insert(http::header::CONTENT_TYPE, media);
            }
            return Ok(reply);
        }
        let document = match parts.as_slice() {
            [] => paths(&kinds),
            ["api"] => json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1"}]}),
            ["apis"] => {
                let all = self.groups(&kinds);
                let groups: Vec<Value> = all.iter().map(|(name, versions)| group(name, versions)).collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
            ["apis", name] => {
                let groups = self.groups(&kinds);
                let (name, versions) = groups.iter().find(|(known, _)| known == name).ok_or_else(unknown)?;
                let mut group = group(name, versions);
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                group
            }
            ["api", version] => resources(&kinds, "", version)?,
            ["apis", group, version] => resources(&kinds, group, version)?,
            _ => return Err(unknown()),
        };
        Ok(reply::json(200, &document))
    }
}

impl Api {
    /// Groups of this server and of others behind it.
    fn groups(&self, kinds: &Kinds) -> Vec<(String, Vec<String>)> {
        let mut groups = kinds.groups();
        for (name, version) in self.aggregated_groups() {
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, versions)) if !versions.contains(&version) => versions.push(version),
                Some(_) => {}
                None => groups.push((name, vec![version])),
            }
        }
        groups
    }

    /// Entries of the document that others fill.
    async fn others(&self) -> Vec<Value> {
        let mut groups: Vec<(String, Vec<Value>)> = Vec::new();
        for (name, version) in self.aggregated_groups() {
            let listed = self.aggregated_resources(&name, &version).await;
            let freshness = if listed.is_some() { "Current" } else { "Stale" };
            let resources = nest(&listed.unwrap_or_default(), &name, &version);
            let entry = json!({"version": version, "freshness": freshness, "resources": resources});
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, versions)) => versions.push(entry),
                None => groups.push((name, vec![entry])),
            }
        }
        let item = |(name, versions)| json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions});
        groups.into_iter().map(item).collect()
    }
}

/// An `APIResourceList` in the form of aggregated discovery: subresources under their resource.
fn nest(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let text = |value: &Value, default: &str| {
        value.as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
    };
    let mut out: Vec<Value> = Vec::new();
    for resource in list["resources"].as_array().into_iter().flatten() {
        let name = text(&resource["name"], "");
        let kind = json!({"group": text(&resource["group"], group), "version": text(&resource["version"], version),
            "kind": text(&resource["kind"], "")});
        let verbs = resource["verbs"].as_array().cloned().unwrap_or_default();
        let (parent, sub) =
            name.split_once('/').map_or((name.as_str(), None), |(parent, sub)| (parent, Some(sub)));
        let at = out.iter().position(|known| known["resource"] == parent).unwrap_or_else(|| {
            let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
            out.push(json!({"resource": parent, "scope": scope, "verbs": [], "singularResource": "",
                "responseKind": {"group": group, "version": version, "kind": ""}}));
            out.len() - 1
        });
        match sub {
            None => {
                out[at]["verbs"] = verbs.into();
                out[at]["responseKind"] = kind;
                out[at]["singularResource"] = resource["singularName"].clone();
            }
            Some(sub) => {
                if !out[at]["subresources"].is_array() {
                    out[at]["subresources"] = json!([]);
                }
                if let Some(nested) = out[at]["subresources"].as_array_mut() {
                    nested.push(json!({"subresource": sub, "verbs": verbs, "responseKind": kind}));
                }
            }
        }
    }
    out
}

fn paths(kinds: &Kinds) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for (name, versions) in kinds.groups() {
        paths.push(format!("/apis/{name}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{name}/{version}")));
    }
    paths.extend(
        ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned),
    );
    json!({"paths": paths})
}

fn group(name: &str, versions: &[String]) -> Value {
    let version = |version: &String| json!({"groupVersion": join(name, version), "version": version});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": name, "versions": all, "preferredVersion": all.first()})
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Result<Value, Status> {
    let mut of_group: Vec<_> =
        kinds.iter().filter(|kind| kind.group == group && kind.version == version).collect();
    if of_group.is_empty() {
        return Err(unknown());
    }
    of_group.sort_by(|a, b| a.plural.cmp(&b.plural));
    let mut resources = Vec::new();
    for kind in of_group {
        resources.push(resource(kind));
        resources.extend(kind.subresources.iter().map(|subresource| nested(kind, subresource)));
    }
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": join(group, version), "resources": resources}),
    )
}

fn resource(kind: &Kind) -> Value {
    let mut out = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": kind.verbs.names()});
    if !kind.short_names.is_empty() {
        out["shortNames"] = kind.short_names.clone().into();
    }
    if !kind.categories.is_empty() {
        out["categories"] = kind.categories.clone().into();
    }
    out
}

fn nested(kind: &Kind, subresource: &Subresource) -> Value {
    let mut out = json!({"name": format!("{}/{}", kind.plural, subresource.name), "singularName": "",
        "namespaced": kind.namespaced, "kind": subresource.kind, "verbs": subresource.verbs});
    if (&subresource.group, &subresource.version) != (&kind.group, &kind.version) {
        if !subresource.group.is_empty() {
            out["group"] = subresource.group.clone().into();
        }
        out["version"] = subresource.version.clone().into();
    }
    out
}

/// `APIGroupDiscoveryList` (KEP-3352)
fn aggregated_document(kinds: &Kinds, core: bool, version: &str) -> Value {
    let groups = if core { vec![(String::new(), vec!["v1".to_owned()])] } else { kinds.groups() };
    let items: Vec<Value> = groups
        .iter()
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let mut of_version: Vec<_> =
                        kinds.iter().filter(|kind| kind.group == *name && kind.version == *version).collect();
                    of_version.sort_by(|a, b| a.plural.cmp(&b.plural));
                    let resources: Vec<Value> =
                        of_version.iter().map(|kind| aggregated_resource(kind)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if name.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let gvk =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": gvk(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs.names(),
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = kind.short_names.clone().into();
    }
    if !kind.categories.is_empty() {
        out["categories"] = kind.categories.clone().into();
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|subresource| {
            json!({"subresource": subresource.name, "verbs": subresource.verbs,
            "responseKind": gvk(&subresource.group, &subresource.version, &subresource.kind)})
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = subresources.into();
    }
    out
}
