//! `/validate`: policies, and whether any node can take the VM. The object is as it would be stored,
//! after every mutating webhook.

use features::policy::{Availability, PolicyRequest, PolicyVerdict, evaluate};
use features::{ClusterFacts, Verdict};
use serde_json::Value;

use super::decide::{DecideError, Decision, concerning, guarded};
use super::review::AdmissionRequest;
use crate::facts::Policies;

/// Decides one CREATE or UPDATE of a VirtualMachine. `availability` counts where no policy is in force.
pub fn police(
    request: &AdmissionRequest<'_, Value>,
    policies: &Policies,
    cluster: &ClusterFacts,
    availability: Availability,
) -> Result<Decision, DecideError> {
    let Some(object) = concerning(request) else { return Ok(Decision::untouched()) };
    // finalizers of a VM that is going away must be able to go
    let is_going = object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let nothing_to_judge =
        availability == Availability::Ignore && policies.read(|facts| facts.policies.is_empty());
    if is_going || nothing_to_judge {
        return Ok(Decision::untouched());
    }
    let groups: Vec<&str> = request.user_info.groups.iter().flatten().map(AsRef::as_ref).collect();
    let asked = PolicyRequest {
        namespace: &request.namespace,
        name: &request.name,
        user: &request.user_info.username,
        groups: &groups,
        object,
        old_object: request.old_object.as_ref(),
    };
    let PolicyVerdict { denial, warnings } = guarded(&request.uid, || {
        policies.read(|facts| evaluate(&asked, facts, cluster.nodes.as_deref(), availability))
    })?;
    Ok(Decision { verdict: Some(Verdict { denial, warnings, ..Verdict::default() }), observed: None })
}
