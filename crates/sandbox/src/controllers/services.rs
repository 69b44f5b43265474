//! Is the server behind an `APIService` there? (`kube-aggregator` availability controller)

use std::sync::Arc;
use std::time::Duration;

use apimachinery::tree::json;

use crate::api::Api;
use crate::clock::seconds;

/// Pause between questions.
const AGAIN: Duration = Duration::from_millis(500);

/// Asks until it is there or gone.
pub async fn watch(api: Arc<Api>, name: Box<str>) {
    while !reconcile(&api, &name).await {
        tokio::select! {
            biased;
            () = api.shutdown.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Writes the condition `Available`. True: it is, or nobody needs to ask again.
async fn reconcile(api: &Arc<Api>, name: &str) -> bool {
    let Ok(call) = api.internal("apiregistration.k8s.io", "apiservices", "", name) else { return true };
    let Ok(stored) = api.stored(&call) else { return true };
    let service = stored.value();
    let local = !service["spec"]["service"].is_object();
    let text = |key: &str| service["spec"][key].as_str().unwrap_or_default().to_owned();
    let available = local || api.aggregated_resources(&text("group"), &text("version")).await.is_some();
    let (status, reason, message) = match (local, available) {
        (true, _) => ("True", "Local", "Local APIServices are always available"),
        (false, true) => ("True", "Passed", "all checks passed"),
        (false, false) => ("False", "FailedDiscoveryCheck", "failing or missing response from the service"),
    };
    let now = seconds(api.clock.now());
    let written = api.change_system(&call, &|current| {
        let mut service = current.clone();
        if service["status"]["conditions"][0]["status"] != status {
            service["status"] = json!({"conditions": [{"type": "Available", "status": status, "reason": reason,
                "message": message, "lastTransitionTime": now}]});
        }
        Ok(service)
    });
    if let Err(status) = written {
        tracing::debug!(%status, name, "availability was not written");
    }
    available
}
