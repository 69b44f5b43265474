//! One entry of `webhooks`, compiled: what it is about, and how it is called.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::Value;

use super::client::Client;
use super::review::Version;
use crate::admission::Request;
use crate::admission::matcher::{self, Conditions, Matcher};
use crate::network::Network;
use crate::objects::Objects;

/// One webhook.
#[derive(Debug)]
pub struct Hook {
    /// The name of its configuration.
    pub configuration: String,
    /// For example `virtualmachines-mutator.kubevirt.io`.
    pub name: String,
    matcher: Matcher,
    conditions: Conditions,
    /// `failurePolicy: Fail`
    pub fails_closed: bool,
    /// seconds, 1 to 30
    pub timeout: u64,
    /// whether it may be called on a dry run
    pub dry_run: bool,
    /// `reinvocationPolicy: IfNeeded`
    pub reinvocable: bool,
    /// The review to send.
    pub version: Option<Version>,
    /// Its connections, or why there can be none.
    pub client: Result<Arc<Client>, String>,
}

impl Hook {
    /// Compiles a webhook; `earlier` is where clients come from that are still good.
    pub fn new(
        configuration: &str,
        webhook: &Value,
        earlier: &[Hook],
        (objects, network): (&Arc<dyn Objects>, &Network),
    ) -> Self {
        let text = |field: &str| webhook[field].as_str().unwrap_or_default();
        let config = &webhook["clientConfig"];
        let kept = earlier.iter().filter_map(|hook| hook.client.as_ref().ok()).find(|c| c.is_for(config));
        Self {
            configuration: configuration.to_owned(),
            name: text("name").to_owned(),
            matcher: Matcher::of_webhook(webhook),
            conditions: Conditions::new(&webhook["matchConditions"]),
            fails_closed: text("failurePolicy") != "Ignore",
            timeout: webhook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30),
            dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvocable: text("reinvocationPolicy") == "IfNeeded",
            version: Version::choose(&webhook["admissionReviewVersions"]),
            client: match kept {
                Some(client) => Ok(Arc::clone(client)),
                None => Client::new(config, objects, network).map(Arc::new),
            },
        }
    }

    /// What tells it from other webhooks, also across changes of the configurations.
    pub fn id(&self) -> (String, String) {
        (self.configuration.clone(), self.name.clone())
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Whether the webhook is to be called: the version in which it wants the object.
    ///
    /// # Errors
    /// 403 when a match condition fails to evaluate and the webhook fails closed; 404 when the namespace is not
    /// there; 500 for a selector that cannot be read.
    pub fn wants(
        &self,
        request: &Request<'_>,
        object: &Value,
        objects: &dyn Objects,
    ) -> Result<Option<String>, Status> {
        let Some(version) = self.matcher.matches(request, object, objects)? else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(version));
        }
        match self.conditions.hold(&matcher::variables(request, object)) {
            Ok(holds) => Ok(holds.then_some(version)),
            Err(why) if self.fails_closed => Err(request.forbidden(object, &why)),
            Err(_) => Ok(None),
        }
    }
}
