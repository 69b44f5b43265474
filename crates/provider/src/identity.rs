//! Names of VMs: `namespace/name`.

use std::fmt;

use serde::Serialize;

use crate::{Error, Kind};

/// A VM by namespace and name; both are safe to stand in a path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct VmId {
    namespace: String,
    name: String,
}

/// Whom a request is made for, by impersonation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// The user's name.
    pub name: String,
    /// The user's id, if the cluster has one.
    pub uid: Option<String>,
    /// The user's groups.
    pub groups: Vec<String>,
}

impl VmId {
    /// Checks both parts.
    pub fn new(namespace: &str, name: &str) -> Result<Self, Error> {
        label("namespace", namespace)?;
        subdomain("name", name)?;
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// Reads `namespace/name`, or `name` in the default namespace.
    pub fn parse(text: &str, default_namespace: &str) -> Result<Self, Error> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(default_namespace, text),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A DNS label (RFC 1123): at most 63 of a-z, 0-9 and `-`.
pub fn label(what: &str, text: &str) -> Result<(), Error> {
    if text.len() <= 63 && !text.contains('.') { subdomain(what, text) } else { Err(bad(what, text)) }
}

/// A DNS subdomain (RFC 1123) as Kubernetes checks names: at most 253 characters.
pub fn subdomain(what: &str, text: &str) -> Result<(), Error> {
    let word = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.chars().all(inner)
    };
    if text.len() <= 253 && text.split('.').all(word) { Ok(()) } else { Err(bad(what, text)) }
}

fn bad(what: &str, text: &str) -> Error {
    let shown: String = text.chars().take(64).collect();
    Error::new(
        Kind::InvalidArgument,
        format!("reading the {what} `{shown}`"),
        "it is not a name that Kubernetes allows",
        "use lower-case letters, digits, `-` and, in names, `.`; a VM is `namespace/name` or `name`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, expected) in [
            ("web", Some("default/web")),
            ("prod/web-1.a", Some("prod/web-1.a")),
            ("", None),
            ("/web", None),
            ("prod/", None),
            ("a/b/c", None),
            ("Web", None),
            ("../secrets", None),
            ("web?dryRun", None),
            ("-web", None),
            ("a.b/web", None),
        ] {
            let id = VmId::parse(text, "default").ok().map(|id| id.to_string());
            assert_eq!(id.as_deref(), expected, "{text}");
        }
    }
}
