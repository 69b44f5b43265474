//! The webhook, called as virt-controller would have it called, in a dry run.

use ::resize::checkup::Facts;
use ::resize::ledger::{self, POLICY, WISH, Wish};
use ::resize::{Policy, Size, eligibility, view};
use anyhow::Result;
use kube::client::Body;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::problem::Problem;

/// A VM that the webhook is asked about.
#[derive(Clone, Debug)]
pub struct Target {
    namespace: String,
    name: String,
}

impl Target {
    /// `NAMESPACE/VM`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fits = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        };
        match text.split_once('/') {
            Some((namespace, name)) if fits(namespace) && fits(name) => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("`{text}` is not NAMESPACE/VM")),
        }
    }
}

/// Sends virt-controller's patch of one more socket in a dry run: it is held when the webhook
/// works.
pub async fn run(cluster: &Cluster, target: &Target, facts: &Facts) -> Result<Result<String, String>> {
    let Target { namespace, name } = target;
    let path = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/{name}");
    let doing = format!("probing the webhook with the VM `{namespace}/{name}`");
    let problem = |wrong: String, remedy: &str| Problem::new(doing.clone(), wrong, remedy);
    let vmi = cluster
        .get(&path)
        .await
        .map_err(|error| problem(error.to_string(), "give a VM that runs, and that you may read"))?;
    if !ledger::read::<Policy>(&vmi, POLICY).ok().flatten().is_some_and(|policy| policy.in_place) {
        return Ok(Err(format!(
            "no policy is in force for {namespace}/{name}: in-place resize is switched off for it, or no operator reconciles"
        )));
    }
    let is = view::spec_size(&vmi);
    let more = Size { sockets: is.sockets.saturating_add(1), ..is };
    if let Some(obstacle) = eligibility::of_vmi(&vmi, more).first() {
        return Err(
            problem(format!("it cannot get another socket: {obstacle}"), "probe with another VM").into()
        );
    }
    let kubevirt = facts.kubevirts.as_ref().and_then(|all| all.first());
    let kubevirt = kubevirt.and_then(|one| one["metadata"]["namespace"].as_str()).unwrap_or("kubevirt");
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": vmi["metadata"]["uid"]},
        {"op": "replace", "path": "/spec/domain/cpu/sockets", "value": more.sockets},
    ]);
    let request = http::Request::patch(format!("{path}?dryRun=All"))
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .header("Impersonate-User", format!("system:serviceaccount:{kubevirt}:kubevirt-controller"))
        .body(Body::from(patch.to_string().into_bytes()))
        .map_err(|error| problem(error.to_string(), "report this as a defect"))?;
    let (status, answer) = cluster.request(request).await?;
    let message = || answer["message"].as_str().unwrap_or("no reason given").to_owned();
    if !status.is_success() {
        return Err(problem(message(), "it needs the right to impersonate virt-controller").into());
    }
    let held = view::spec_size(&answer) == is
        && ledger::read::<Wish>(&answer, WISH)
            .ok()
            .flatten()
            .is_some_and(|wish| wish.sockets == Some(more.sockets));
    Ok(if held {
        Ok(format!("it held a patch of virt-controller for {namespace}/{name} in a dry run"))
    } else if ledger::read::<Value>(&vmi, ledger::LEDGER).ok().flatten().is_some() {
        Err("a resize of this VM is under way or left to KubeVirt: probe with another VM".into())
    } else {
        Err(format!(
            "a patch of virt-controller for {namespace}/{name} passed in a dry run: the API server does not reach it"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_namespace_and_a_name() {
        let target = Target::parse("team/db-1").unwrap();
        assert_eq!((target.namespace.as_str(), target.name.as_str()), ("team", "db-1"));
        for bad in ["db", "/db", "team/", "a/b/c", "a/b?x=1"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
