//! Instance types and preferences of VMs (`pkg/instancetype`, v1.9).
//!
//! ```text
//!  VM created ──virt-api──► matchers checked, inferred from a volume ([`infer`]), laid over and validated
//!                           ([`requirements`])
//!  VM seen ──virt-controller──► both copied into ControllerRevisions that the VM names ([`revisions`])
//!  VM started, updated, shown ──► what the revisions hold laid over its template ([`apply`])
//! ```

pub mod apply;
pub mod infer;
pub mod matchers;
pub mod requirements;
pub mod revisions;

use apimachinery::tree::{Text, Value};

use super::client::{Client, ClientError};
use super::cluster::ClusterConfig;
use super::identity::Identity;
use super::json::{self, label, put, text};
use super::resource::CONTROLLER_REVISIONS;
use super::virt_api::mutate::set_spec_defaults;
use super::virt_controller::defaults::{disks_for_volumes, pod_network};

const GROUP: &str = "/apis/instancetype.kubevirt.io/v1beta1";
/// Label of a revision: the name of what it holds.
const OBJECT_NAME: &str = "instancetype.kubevirt.io/object-name";

/// Why a VM cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object that a matcher names could not be read.
    #[error("{}", .1.message())]
    Find(Matcher, ClientError),
    /// `kind` of a matcher is none.
    #[error("got unexpected kind in {}: {}", .0.type_name(), .1)]
    Kind(Matcher, String),
    /// The template says what the instance type decides, in these fields.
    #[error("VM field(s) {} conflicts with selected instance type", .0.join(", "))]
    Conflict(Vec<String>),
    /// What was taken cannot be kept.
    #[error("{0}")]
    Store(String),
}

impl Error {
    /// Nobody answered: to be tried again, and nothing to tell the user.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Find(_, error) if error.code() == 0)
    }
}

/// Where a VM's template stands in a VM.
pub const IN_VM: &str = "spec.template.spec";
/// The same for those who look at the VMI that becomes of it.
pub const IN_VMI: &str = "spec";

/// Which of the two matchers of a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Matcher {
    Instancetype,
    Preference,
}

impl Matcher {
    /// Both, in the order in which they are looked at.
    pub const BOTH: [Self; 2] = [Self::Instancetype, Self::Preference];

    /// The field of `spec`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Instancetype => "instancetype",
            Self::Preference => "preference",
        }
    }

    /// The field of `status`, from v1.5.
    pub fn status_key(self) -> &'static str {
        match self {
            Self::Instancetype => "instancetypeRef",
            Self::Preference => "preferenceRef",
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::Instancetype => "InstancetypeMatcher",
            Self::Preference => "PreferenceMatcher",
        }
    }

    /// The VM has this matcher, even if it says nothing yet.
    pub fn is_in(self, vm: &Value) -> bool {
        vm["spec"].get(self.key()).is_some_and(Value::is_object)
    }

    /// Of a VM that has it: whether it means an object of the cluster.
    fn is_cluster(self, vm: &Value) -> Result<bool, Error> {
        let given = text(&vm["spec"][self.key()], "/kind");
        let kind = given.to_lowercase();
        let kind = kind.strip_suffix('s').unwrap_or(&kind);
        if kind.is_empty() || kind == format!("virtualmachinecluster{}", self.key()) {
            Ok(true)
        } else if kind == format!("virtualmachine{}", self.key()) {
            Ok(false)
        } else {
            Err(Error::Kind(self, given.into()))
        }
    }

    /// The path of the object that a VM names.
    fn path(self, vm: &Value) -> Result<String, Error> {
        let (name, key) = (text(&vm["spec"][self.key()], "/name"), self.key());
        Ok(if self.is_cluster(vm)? {
            format!("{GROUP}/virtualmachinecluster{key}s/{name}")
        } else {
            format!("{GROUP}/namespaces/{}/virtualmachine{key}s/{name}", json::namespace(vm))
        })
    }
}

/// A VM names an instance type or a preference.
pub fn is_matched(vm: &Value) -> bool {
    Matcher::BOTH.iter().any(|matcher| matcher.is_in(vm))
}

/// Reads what VMs name, as one of `KubeVirt`'s components.
#[derive(Clone, Copy)]
pub struct Finder<'a> {
    pub client: &'a Client,
    pub who: &'a Identity,
}

impl Finder<'_> {
    /// The live object that a VM names.
    async fn live(&self, matcher: Matcher, vm: &Value) -> Result<Value, Error> {
        let path = matcher.path(vm)?;
        self.client.get(Some(self.who), &path).await.map_err(|error| Error::Find(matcher, error))
    }

    async fn revision(&self, matcher: Matcher, vm: &Value, name: &str) -> Result<Value, Error> {
        let path = CONTROLLER_REVISIONS.path(json::namespace(vm), name, "");
        self.client.get(Some(self.who), &path).await.map_err(|error| Error::Find(matcher, error))
    }

    /// The spec that counts for a VM: that of the revision which its matcher or, if it holds what the matcher names,
    /// its status names; else that of the live object. `None`: the VM has no such matcher.
    ///
    /// # Errors
    /// [`Error::Find`], [`Error::Kind`]
    pub async fn spec(&self, matcher: Matcher, vm: &Value) -> Result<Option<Value>, Error> {
        if !matcher.is_in(vm) {
            return Ok(None);
        }
        let wanted = &vm["spec"][matcher.key()];
        let named = text(wanted, "/revisionName");
        if !named.is_empty() {
            let revision = self.revision(matcher, vm, named).await?;
            return Ok(Some(revision["data"]["spec"].clone()));
        }
        let taken = text(&vm["status"][matcher.status_key()], "/controllerRevisionRef/name");
        if !taken.is_empty() {
            let revision = self.revision(matcher, vm, taken).await?;
            if label(&revision, OBJECT_NAME) == text(wanted, "/name") {
                return Ok(Some(revision["data"]["spec"].clone()));
            }
        }
        Ok(Some(self.live(matcher, vm).await?["spec"].clone()))
    }

    /// The VM with everything that it names laid over its template (`ApplyToVM`); `base` is what fields that are in
    /// the way are said to be below.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn apply(&self, vm: &Value, base: &str) -> Result<Value, Error> {
        let instancetype = self.spec(Matcher::Instancetype, vm).await?;
        let preference = self.spec(Matcher::Preference, vm).await?;
        let mut applied = vm.clone();
        lay_over(&mut applied, instancetype.as_ref(), preference.as_ref(), base)?;
        Ok(applied)
    }

    /// The same for the VMI that is made of it, with annotations that say what it was (`ApplyToVMI`).
    ///
    /// # Errors
    /// [`Error`]
    pub async fn apply_to_start(&self, vm: &Value) -> Result<Value, Error> {
        let mut applied = self.apply(vm, IN_VMI).await?;
        for matcher in Matcher::BOTH.into_iter().filter(|matcher| matcher.is_in(vm)) {
            let key = matcher.key();
            let cluster = if matcher.is_cluster(vm)? { "cluster-" } else { "" };
            let annotation = format!("kubevirt.io/{cluster}{key}-name");
            let name = text(&vm["spec"][key], "/name");
            put(&mut applied, &["spec", "template", "metadata", "annotations", &annotation], name);
        }
        Ok(applied)
    }

    /// The VM as `expand-spec` shows it: without matchers, with every default.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn expand(&self, vm: &Value, config: &ClusterConfig) -> Result<Value, Error> {
        if !is_matched(vm) {
            return Ok(vm.clone());
        }
        let mut prepared = vm.clone();
        if let Some(spec) = prepared.pointer_mut("/spec/template/spec") {
            disks_for_volumes(spec);
            pod_network(spec);
        }
        let mut expanded = self.apply(&prepared, IN_VM).await?;
        if let Some(spec) = expanded.pointer_mut("/spec/template/spec") {
            set_spec_defaults(spec, config);
        }
        for matcher in Matcher::BOTH {
            json::remove(&mut expanded, &["spec", matcher.key()]);
            json::remove(&mut expanded, &["status", matcher.status_key()]);
        }
        Ok(expanded)
    }
}

/// Lays both over a VM's template. An annotation that the template has stays, and is in the way of another value that
/// the instance type gives it.
///
/// # Errors
/// [`Error::Conflict`]
pub fn lay_over(
    vm: &mut Value,
    instancetype: Option<&Value>,
    preference: Option<&Value>,
    base: &str,
) -> Result<(), Error> {
    let given = |object: Option<&Value>| {
        object.and_then(|one| json::map(one, "/annotations")).cloned().unwrap_or_default()
    };
    let mut conflicts = Vec::new();
    if let Some(spec) = vm.pointer_mut("/spec/template/spec")
        && let Err(fields) = apply::lay_over(spec, instancetype, preference)
    {
        conflicts.extend(fields.iter().map(|field| format!("{base}.{field}")));
    }
    let own = json::map(vm, "/spec/template/metadata/annotations").cloned().unwrap_or_default();
    let other = |(key, value): &(Text, Value)| own.get(key).is_some_and(|own| own != value);
    conflicts
        .extend(given(instancetype).into_iter().filter(other).map(|(key, _)| format!("annotations.{key}")));
    if !conflicts.is_empty() {
        return Err(Error::Conflict(conflicts));
    }
    let mut annotations = given(preference);
    annotations.extend(given(instancetype));
    annotations.extend(own);
    if !annotations.is_empty() {
        put(vm, &["spec", "template", "metadata", "annotations"], annotations);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn matchers_name_cluster_objects_unless_they_say_otherwise() {
        let vm = |kind: &str| json!({"metadata": {"namespace": "n"}, "spec": {"instancetype": {"name": "t", "kind": kind}}});
        for (kind, path) in [
            ("", Some("/apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterinstancetypes/t")),
            (
                "VirtualMachineInstancetype",
                Some("/apis/instancetype.kubevirt.io/v1beta1/namespaces/n/virtualmachineinstancetypes/t"),
            ),
            (
                "virtualmachineclusterinstancetypes",
                Some("/apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterinstancetypes/t"),
            ),
            ("Pod", None),
        ] {
            assert_eq!(Matcher::Instancetype.path(&vm(kind)).ok().as_deref(), path, "{kind}");
        }
    }
}
