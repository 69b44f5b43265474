//! The status of `ResourceQuotas` (`pkg/controller/resourcequota`).

use std::sync::Arc;

use crate::admission::quota_status;
use crate::api::Api;

/// Counts what the quotas of a namespace limit. True: nothing is left to do.
pub fn reconcile(api: &Arc<Api>, namespace: &str) -> bool {
    let (_, quotas) = api.store.select("resourcequotas.", Some(namespace));
    let mut done = true;
    for quota in quotas {
        let name = &quota.header().name;
        let Ok(call) = api.internal("", "resourcequotas", namespace, name) else { continue };
        let written = api.change_system(&call, &|current| {
            let mut quota = current.clone();
            quota["status"] = quota_status(api.store.as_ref(), current);
            Ok(quota)
        });
        done &= written.is_ok() || written.is_err_and(|status| status.code == 404);
    }
    done
}
