//! Nothing new in namespaces that are not there or on their way out; some namespaces stay
//! (`k8s.io/apiserver pkg/admission/plugin/namespace/lifecycle`, 1.36).

use apimachinery::tree::Value;
use apimachinery::{Cause, Status};

use crate::admission::{Operation, Request};
use crate::objects::Objects;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses what a namespace's state does not allow.
///
/// # Errors
/// 404 for a namespace that is not there; 403 for one that terminates, and for deleting one that must stay.
pub fn admit(objects: &dyn Objects, request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let resource = request.resource(object);
    if resource.group.is_empty() && resource.resource == "namespaces" {
        let immortal = request.operation == Operation::Delete && IMMORTAL.contains(&resource.name);
        return if immortal {
            Err(request.forbidden(object, "this namespace may not be deleted"))
        } else {
            Ok(())
        };
    }
    let asks = resource.group == "authorization.k8s.io" && resource.resource == "localsubjectaccessreviews";
    if request.operation != Operation::Create || resource.namespace.is_empty() || asks {
        return Ok(());
    }
    let name = resource.namespace;
    let namespace = objects.get("", "namespaces", "", name);
    let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", name))?;
    let terminating = namespace["metadata"]["deletionTimestamp"].is_string()
        || namespace["status"]["phase"] == "Terminating";
    // what exists already is answered as such by the subresource itself
    if !terminating || !resource.subresource.is_empty() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    Err(request.forbidden(object, &why).because(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {name} is being terminated"),
        field: "metadata.namespace".into(),
    }))
}
