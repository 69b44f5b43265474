//! Who somebody is.

use serde_json::{Value, json};

use super::Provider;
use crate::identity::User;
use crate::view::{list, some, text};
use crate::{Error, Kind};

impl Provider {
    /// Asks the cluster whose token this is. Nothing is stored.
    pub async fn review_token(&self, token: &str, audiences: &[String]) -> Result<User, Error> {
        let doing = "finding out whose token this is";
        let mut review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token}});
        if !audiences.is_empty() {
            review["spec"]["audiences"] = json!(audiences);
        }
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = self.create(path, &review, doing).await.map_err(|mut error| {
            if error.kind == Kind::Forbidden {
                // it is the service that lacks the right, not the caller
                error.kind = Kind::Cluster;
                error.remedy = "have the ClusterRole `system:auth-delegator` bound to the service".into();
            }
            error
        })?;
        if answer.pointer("/status/authenticated") != Some(&Value::Bool(true)) {
            let wrong =
                some(&answer, "/status/error").unwrap_or("the cluster does not know the token".into());
            return Err(Error::new(Kind::Unauthenticated, doing, wrong, "send a valid token"));
        }
        let groups = list(&answer, "/status/user/groups").iter().filter_map(Value::as_str);
        Ok(User {
            name: text(&answer, "/status/user/username").into(),
            uid: some(&answer, "/status/user/uid"),
            groups: groups.map(str::to_owned).collect(),
        })
    }
}
