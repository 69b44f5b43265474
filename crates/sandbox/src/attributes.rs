//! What a request is about: the same words for authorisation, admission, audit and faults.

use std::collections::BTreeMap;

/// Who is asking (`authentication.k8s.io/v1 UserInfo`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// For example `system:serviceaccount:kubevirt:kubevirt-controller`.
    pub name: String,
    /// Unique over time; may be empty.
    pub uid: String,
    /// For example `system:masters`.
    pub groups: Vec<String>,
    /// Extra attributes, as impersonation headers carry them.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// One request, resolved (`k8s.io/apiserver authorizer.Attributes`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    /// Who.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the
    /// lower-case HTTP method for paths that are no resources.
    pub verb: String,
    /// The API group; empty for core and for paths that are no resources.
    pub group: String,
    /// The version in the path.
    pub version: String,
    /// The plural name; empty for paths that are no resources.
    pub resource: String,
    /// For example `status`; empty for the object itself.
    pub subresource: String,
    /// Empty for cluster-scoped kinds and lists over all namespaces.
    pub namespace: String,
    /// Empty for collections and for creates with `generateName`.
    pub name: String,
    /// The path, for those that are no resources.
    pub path: String,
    /// `dryRun=All` was asked for.
    pub dry_run: bool,
}
