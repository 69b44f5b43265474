//! `CustomResourceDefinition` → the kinds that it serves.

use std::sync::Arc;

use apimachinery::ObjectType;
use apimachinery::schema::Schema;
use apimachinery::tree::Value;
use apimachinery::validation::NameRule;

use super::{Kind, Source, Subresource, Verbs};

/// A definition that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field that every definition needs is not there.
    #[error("read CustomResourceDefinition {name:?}: {field} is missing")]
    Missing {
        /// metadata.name
        name: String,
        /// The field.
        field: &'static str,
    },
    /// A schema cannot be used.
    #[error("read CustomResourceDefinition {name:?}: {reason}")]
    Schema {
        /// metadata.name
        name: String,
        /// The first thing that is wrong with it.
        reason: String,
    },
}

/// A column of `kubectl get` (`additionalPrinterColumns`).
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// For example `name`.
    pub format: String,
    /// May be empty.
    pub description: String,
    /// Above 0: only with `-o wide`.
    pub priority: i64,
    /// Where the value is.
    pub path: String,
}

/// What one version of a definition says beside its names.
#[derive(Clone, Debug)]
pub struct Definition {
    /// metadata.name: `plural.group`
    pub name: String,
    /// `schema.openAPIV3Schema`, ready for use.
    pub schema: Schema,
    /// The same as it was written.
    pub openapi: Arc<Value>,
    /// Columns; when empty, `kubectl get` shows the age.
    pub columns: Vec<Column>,
    /// `subresources.status` is there: spec and status are written apart.
    pub has_status: bool,
    /// `subresources.scale`
    pub scale: Option<Scale>,
    /// A warning for every request in this version.
    pub deprecation: Option<String>,
}

/// Where a kind keeps what the scale subresource shows.
#[derive(Clone, Debug)]
pub struct Scale {
    /// For example `.spec.replicas`.
    pub spec: String,
    /// For example `.status.replicas`.
    pub status: String,
    /// For example `.status.labelSelector`; may be empty.
    pub selector: String,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// The kinds that a definition serves, one per served version.
///
/// # Errors
/// [`Error::Missing`]
pub fn kinds_of(definition: &Value) -> Result<Vec<Kind>, Error> {
    let name = text(&definition["metadata"]["name"]);
    let spec = &definition["spec"];
    let missing = |field| Error::Missing { name: name.clone(), field };
    let required = |value: &Value, field| value.as_str().map(str::to_owned).ok_or_else(|| missing(field));
    let group = required(&spec["group"], "spec.group")?;
    let plural = required(&spec["names"]["plural"], "spec.names.plural")?;
    let kind = required(&spec["names"]["kind"], "spec.names.kind")?;
    let names = &spec["names"];
    let versions = spec["versions"].as_array().ok_or_else(|| missing("spec.versions"))?;
    let storage_version = versions
        .iter()
        .find(|version| version["storage"] == true)
        .map(|version| text(&version["name"]))
        .ok_or_else(|| missing("spec.versions[*].storage"))?;
    let singular = names["singular"].as_str().map_or_else(|| kind.to_lowercase(), str::to_owned);
    let list_kind = names["listKind"].as_str().map_or_else(|| format!("{kind}List"), str::to_owned);
    let storage: Arc<str> = crate::store::storage_key(&group, &plural).into();
    let served = versions.iter().filter(|version| version["served"] == true);
    let one = |version: &Value| {
        let number = text(&version["name"]);
        let subresources = subresources_of(version, &group, &number, &kind);
        let definition = definition_of(&name, spec, version)?;
        Ok(Kind {
            group: group.clone(),
            version: number,
            plural: plural.clone(),
            singular: singular.clone(),
            kind: kind.clone(),
            list_kind: list_kind.clone(),
            short_names: words(&names["shortNames"]),
            categories: words(&names["categories"]),
            namespaced: spec["scope"] != "Cluster",
            verbs: Verbs::All,
            subresources,
            storage: storage.clone(),
            storage_version: storage_version.clone(),
            selectable: selectable_of(version),
            object_type: ObjectType::from_crd_schema(&version["schema"]["openAPIV3Schema"]),
            name_rule: NameRule::Subdomain,
            source: Source::Crd(Arc::new(definition)),
        })
    };
    served.map(one).collect()
}

fn selectable_of(version: &Value) -> Vec<String> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields.map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_owned()).collect()
}

fn subresources_of(version: &Value, group: &str, number: &str, kind: &str) -> Vec<Subresource> {
    let verbs = vec!["get", "patch", "update"];
    let mut out = Vec::new();
    if version["subresources"]["scale"].is_object() {
        let (name, group, version, kind) =
            ("scale".into(), "autoscaling".into(), "v1".into(), "Scale".into());
        out.push(Subresource { name, group, version, kind, verbs: verbs.clone() });
    }
    if version["subresources"]["status"].is_object() {
        let (name, group, version, kind) = ("status".into(), group.into(), number.into(), kind.into());
        out.push(Subresource { name, group, version, kind, verbs });
    }
    out
}

fn definition_of(name: &str, spec: &Value, version: &Value) -> Result<Definition, Error> {
    let schema =
        Schema::parse(&version["schema"]["openAPIV3Schema"], "openAPIV3Schema").map_err(|errors| {
            Error::Schema {
                name: name.into(),
                reason: errors.first().map(ToString::to_string).unwrap_or_default(),
            }
        })?;
    let columns = version["additionalPrinterColumns"].as_array().into_iter().flatten();
    let column = |column: &Value| Column {
        name: text(&column["name"]),
        kind: text(&column["type"]),
        format: text(&column["format"]),
        description: text(&column["description"]),
        priority: column["priority"].as_i64().unwrap_or_default(),
        path: text(&column["jsonPath"]),
    };
    let scale = &version["subresources"]["scale"];
    let deprecation = (version["deprecated"] == true).then(|| {
        version["deprecationWarning"].as_str().map_or_else(
            || {
                format!(
                    "{}/{} {} is deprecated",
                    text(&spec["group"]),
                    text(&version["name"]),
                    text(&spec["names"]["kind"])
                )
            },
            str::to_owned,
        )
    });
    Ok(Definition {
        name: name.into(),
        schema,
        openapi: Arc::new(version["schema"]["openAPIV3Schema"].clone()),
        columns: columns.map(column).collect(),
        has_status: version["subresources"]["status"].is_object(),
        scale: scale.is_object().then(|| Scale {
            spec: text(&scale["specReplicasPath"]),
            status: text(&scale["statusReplicasPath"]),
            selector: text(&scale["labelSelectorPath"]),
        }),
        deprecation,
    })
}
