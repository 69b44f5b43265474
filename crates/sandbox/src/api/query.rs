//! The options that come in the query string.

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{Cause, Status};

use super::target::decode;
use crate::registry::Kind;

/// Query parameters, decoded; the first of a name counts.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// What to do with fields that a kind does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldValidation {
    /// Refuse the request.
    Strict,
    /// Answer with a warning.
    Warn,
    /// Drop them silently.
    Ignore,
}

impl Query {
    /// Reads a query string.
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let plus = |text: &str| decode(&text.replace('+', " "));
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (plus(k), plus(v)))
                .collect(),
        )
    }

    /// A parameter; empty counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A flag: `true`, `1` or just its name.
    pub fn flag(&self, name: &str) -> bool {
        let value = self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        value.is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// `watch`
    pub fn watch(&self) -> bool {
        self.flag("watch")
    }

    /// `dryRun=All`
    ///
    /// # Errors
    /// 422 for any other value.
    pub fn dry_run(&self, options: &'static str) -> Result<bool, Status> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                let message = format!("Unsupported value: [{other:?}]: supported values: \"All\"");
                Err(invalid_options(options, "dryRun", "FieldValueNotSupported", &message))
            }
        }
    }

    /// `fieldManager`
    ///
    /// # Errors
    /// 422 when it is longer than 128 bytes.
    pub fn field_manager(&self, options: &'static str) -> Result<Option<&str>, Status> {
        let manager = self.get("fieldManager");
        if manager.is_some_and(|manager| manager.len() > 128) {
            let message = "Too long: may not be more than 128 bytes";
            return Err(invalid_options(options, "fieldManager", "FieldValueTooLong", message));
        }
        Ok(manager)
    }

    /// `fieldValidation`
    ///
    /// # Errors
    /// 422 for an unknown value.
    pub fn field_validation(&self, options: &'static str) -> Result<FieldValidation, Status> {
        match self.get("fieldValidation") {
            Some("Strict") => Ok(FieldValidation::Strict),
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => {
                let message = format!(
                    "Unsupported value: {other:?}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\""
                );
                Err(invalid_options(options, "fieldValidation", "FieldValueNotSupported", &message))
            }
        }
    }

    /// Label and field selectors, checked for a kind.
    ///
    /// # Errors
    /// 400 with the parser's message.
    pub fn selection(&self, kind: &Kind) -> Result<Selection, Status> {
        let labels = LabelSelector::parse(self.get("labelSelector").unwrap_or_default())?;
        let text = self.get("fieldSelector").unwrap_or_default();
        let fields = FieldSelector::for_kind(text, &kind.group, &kind.kind, &kind.selectable)?;
        Ok(Selection { labels, fields, names: kind.selectable.clone(), name: None })
    }
}

/// `<options>.meta.k8s.io "" is invalid`
pub fn invalid_options(options: &str, field: &str, reason: &str, message: &str) -> Status {
    let text = format!("{options}.meta.k8s.io \"\" is invalid: {field}: {message}");
    Status::new(422, "Invalid", text).about("meta.k8s.io", options, "").because(Cause {
        reason: reason.into(),
        message: message.into(),
        field: field.into(),
    })
}

/// Which objects of a kind are asked for.
#[derive(Clone, Debug)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// The names of the values in [`crate::store::Header::fields`].
    names: Vec<String>,
    name: Option<String>,
}

impl Selection {
    /// Nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none()
    }

    /// Is this object asked for?
    pub fn matches(&self, header: &crate::store::Header) -> bool {
        let field = |name: &str| match name {
            "metadata.name" => &*header.name,
            "metadata.namespace" => &*header.namespace,
            _ => {
                let index = self.names.iter().position(|known| known.trim_start_matches('.') == name);
                index.and_then(|index| header.fields.get(index)).map_or("", |value| &**value)
            }
        };
        self.name.as_deref().is_none_or(|name| *header.name == *name)
            && self.labels.matches_by(|key| header.label(key))
            && self.fields.matches_by(field)
    }

    /// Narrows the selection to one name.
    #[must_use]
    pub fn only(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }
}
