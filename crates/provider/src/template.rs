//! VM templates (VEP 76, `template.kubevirt.io`): what they say, and their parameters filled in.
//!
//! The cluster's own API fills templates in. [`process`] does the same for a template in a file and for
//! clusters without that API, by the same rules.

use std::collections::BTreeMap;

use kubevirt::template::{TemplateError, fill_in};
use serde::Serialize;
use serde_json::Value;

use crate::view::{holds, list, some, text};
use crate::{Error, Kind};

/// A template in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it can be used.
    pub ready: bool,
    /// What can, or has to, be filled in.
    pub parameters: Vec<Parameter>,
    /// What its users are told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// A parameter of a template.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Its name, as in `${NAME}`.
    pub name: String,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its value when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The pattern that a value is drawn from when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it must have a value.
    pub required: bool,
}

impl Template {
    /// Reads a `VirtualMachineTemplate`.
    pub fn of(template: &Value) -> Self {
        let parameters = list(template, "/spec/parameters").iter().map(|one| Parameter {
            name: text(one, "/name").into(),
            description: some(one, "/description").or_else(|| some(one, "/displayName")),
            value: some(one, "/value"),
            from: some(one, "/generate").and_then(|_| some(one, "/from")),
            required: one.pointer("/required") == Some(&Value::Bool(true)),
        });
        Self {
            namespace: text(template, "/metadata/namespace").into(),
            name: text(template, "/metadata/name").into(),
            ready: holds(template, "Ready"),
            parameters: parameters.collect(),
            message: some(template, "/spec/message"),
            created: text(template, "/metadata/creationTimestamp").into(),
        }
    }
}

/// A template with its parameters filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Processed {
    /// The VM.
    pub virtual_machine: Value,
    /// What its maker is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Fills a template in. `random` gives a number below its argument; it is asked for parameters that are
/// generated.
pub fn process(
    template: &Value,
    given: &BTreeMap<String, String>,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Processed, Error> {
    match fill_in(template, given, random) {
        Ok((virtual_machine, message)) => Ok(Processed { virtual_machine, message }),
        Err(error) => {
            let remedy = match &error {
                TemplateError::Unknown(_) => {
                    let all = Template::of(template).parameters.into_iter().map(|one| one.name);
                    format!("name one of these: {}", all.collect::<Vec<_>>().join(", "))
                }
                TemplateError::Required(name) => format!("give it a value: `-p {name}=…`"),
                TemplateError::Undefined(_) => "add it to `spec.parameters` of the template".into(),
                TemplateError::Empty => "give a VirtualMachineTemplate with `spec.virtualMachine`".into(),
                TemplateError::Pattern(_) => "write classes with a length, as in `[a-z0-9]{8}`".into(),
                TemplateError::Deep => "give a template that is flatter".into(),
            };
            let doing = format!("filling in template `{}`", text(template, "/metadata/name"));
            Err(Error::new(Kind::InvalidArgument, doing, error.to_string(), remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let template = json!({"metadata": {"name": "fedora"}, "spec": {
            "parameters": [{"name": "NAME", "required": true}, {"name": "SIZE"}], "virtualMachine": {}}});
        let error = |name: &str| {
            let given = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
            process(&template, &given, &mut |_| 0).unwrap_err()
        };
        assert_eq!(error("SIZE").remedy, "give it a value: `-p NAME=…`");
        assert_eq!(error("COLOUR").remedy, "name one of these: NAME, SIZE");
        assert_eq!(error("COLOUR").doing, "filling in template `fedora`");
    }
}
