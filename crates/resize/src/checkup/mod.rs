//! Whether in-place resize works in a cluster, and what of it does not and why: what
//! `virt-steward doctor resize` shows. From raw objects; what could not be read is nothing, and is
//! told as unknown instead of guessed.

mod cluster;
mod machines;
mod steward;

#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::Value;

pub use machines::Machine;
pub use steward::{RIGHTS, Right, Who, webhook_service};

/// How something stands.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it has to be.
    Ok,
    /// It works, and there is something to know about it.
    Note,
    /// It could not be found out.
    Unknown,
    /// In-place resize does not work, or not here.
    Failed,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How it stands.
    pub state: State,
    /// What is there.
    pub what: String,
    /// What to do about it; empty when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    fn new(check: &'static str, state: State, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state, what: what.into(), remedy: remedy.into() }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(check, State::Ok, what, "")
    }

    fn unknown(check: &'static str, what: &str) -> Self {
        Self::new(check, State::Unknown, what, "run it as somebody who may read that")
    }
}

/// What was read. Nothing: it could not be, or nobody asked for it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `/version`
    pub version: Option<Value>,
    /// `/api/v1`: the resources of the core group.
    pub core: Option<Value>,
    /// All `KubeVirt` objects.
    pub kubevirts: Option<Vec<Value>>,
    /// All nodes.
    pub nodes: Option<Vec<Value>>,
    /// All `MutatingWebhookConfiguration` objects.
    pub webhooks: Option<Vec<Value>>,
    /// Pods behind the webhook's Service; nothing when it is registered by URL.
    pub operators: Option<Vec<Value>>,
    /// Whether the webhook answered: nothing when it was not tried.
    pub answered: Option<Result<String, String>>,
    /// Pods of the agent.
    pub agents: Option<Vec<Value>>,
    /// `ResizePolicy` and `ClusterResizePolicy` objects.
    pub policies: Option<Vec<Value>>,
    /// Namespaces that are looked at.
    pub namespaces: Option<Vec<Value>>,
    /// VMs that are looked at.
    pub vms: Option<Vec<Value>>,
    /// VMIs that are looked at.
    pub vmis: Option<Vec<Value>>,
    /// Their launcher pods.
    pub pods: Option<Vec<Value>>,
    /// What was asked of the API server's authorizer.
    pub rights: Vec<Right>,
}

impl Facts {
    /// The minor version of Kubernetes.
    pub fn minor(&self) -> Option<u32> {
        self.version.as_ref()?["minor"].as_str()?.trim_end_matches('+').parse().ok()
    }

    /// The one `KubeVirt` object; null when there is none.
    fn kubevirt(&self) -> &Value {
        self.kubevirts.as_ref().and_then(|all| all.first()).unwrap_or(&Value::Null)
    }
}

/// Every check of the cluster, in the order in which a resize meets them.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = cluster::findings(facts);
    found.extend(steward::findings(facts));
    found
}

/// What stands in the way of each VM that runs.
pub fn machines(facts: &Facts) -> Vec<Machine> {
    machines::machines(facts)
}

/// The worst of all findings: what the whole cluster is.
pub fn verdict(findings: &[Finding]) -> State {
    findings.iter().map(|finding| finding.state).max().unwrap_or(State::Unknown)
}
