//! The instancetype of a VM. KubeVirt refuses a VM that sets what its instancetype sets
//! (`pkg/instancetype/apply`, v1.9), long after the user wrote the annotation, and in the words of
//! fields that the user did not write.

use serde_json::Value;

use crate::context::Context;
use crate::facts::{Lookup, Need};
use crate::json::at;

/// What is known about the instancetype.
pub(crate) enum Instancetype<'a> {
    /// The VM has none.
    None,
    /// Its name and its spec.
    Known(&'a str, &'a Value),
    /// It could not be read, and why.
    Unknown(String),
}

/// The object to read.
pub(crate) fn need(object: &Value) -> Option<Need> {
    let reference = at(object, &["spec", "instancetype"])?;
    let name = reference.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    match reference.get("kind").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase().as_str() {
        "virtualmachineinstancetype" | "virtualmachineinstancetypes" => Some(Need::Instancetype(name)),
        _ => Some(Need::ClusterInstancetype(name)),
    }
}

impl<'a> Context<'a> {
    pub(crate) fn instancetype(&self) -> Instancetype<'a> {
        let object = self.document.base();
        if at(object, &["spec", "instancetype"]).is_none() {
            return Instancetype::None;
        }
        let Some(need) = need(object) else {
            return Instancetype::Unknown("it is inferred from a volume".to_owned());
        };
        match self.lookups.get_key_value(&need) {
            Some((
                Need::Instancetype(name) | Need::ClusterInstancetype(name),
                Lookup::Found(instancetype),
            )) => Instancetype::Known(name, instancetype.get("spec").unwrap_or(&Value::Null)),
            Some((_, Lookup::NotFound)) => Instancetype::Unknown("it does not exist".to_owned()),
            Some((_, Lookup::Failed(reason))) => Instancetype::Unknown(reason.clone()),
            _ => Instancetype::Unknown("it was not read".to_owned()),
        }
    }

    /// What the instancetype sets at a path; the name comes with it.
    pub(crate) fn set_by_instancetype(&self, path: &[&str]) -> Option<(&'a str, &'a Value)> {
        match self.instancetype() {
            Instancetype::Known(name, spec) => Some((name, at(spec, path)?)),
            _ => None,
        }
    }

    /// A warning when the instancetype is not known.
    pub(crate) fn instancetype_warning(&self) -> Option<String> {
        match self.instancetype() {
            Instancetype::Unknown(reason) => {
                Some(format!("the instancetype was not checked for conflicts: {reason}"))
            }
            _ => None,
        }
    }
}
