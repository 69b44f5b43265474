//! Kinds that are asked and never stored, tokens, and bindings by their own path.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::apply::sealed;

use super::super::meta::text;
use super::super::reply::{self, Reply};
use super::super::{Api, Call, decode};

impl Api {
    /// `POST` of a review, or of a binding.
    ///
    /// # Errors
    /// 400 and 422 for questions that cannot be asked.
    pub async fn review(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        if call.kind.is("", "bindings") {
            return self.bind_by_body(call).await;
        }
        let mut review = decode::object(call)?;
        let validation = call.query.field_validation("CreateOptions")?;
        super::super::fields::normalize(call, &mut review, validation)?;
        self.track(call, None, &mut review);
        sealed::open(&mut review);
        let answer = self.auth.review(&call.user, &call.target.namespace, review, self.clock.now())?;
        Ok(reply::json(201, &answer))
    }

    async fn bind_by_body(self: &Arc<Self>, call: &mut Call) -> Result<Reply, Status> {
        let binding = decode::object(call)?;
        let pods = self.internal("", "pods", &call.target.namespace, "")?;
        call.kind = pods.kind;
        call.target.resource = "pods".into();
        call.target.name = text(&binding, "name").to_owned();
        call.target.subresource = "binding".into();
        self.bind(call).await
    }

    /// `POST …/serviceaccounts/x/token`
    ///
    /// # Errors
    /// 404, 409, 422.
    pub fn token(&self, call: &Call) -> Result<Reply, Status> {
        let request = decode::parse(&call.content_type, &call.body)?;
        let account = (call.target.namespace.as_str(), call.target.name.as_str());
        let answer = self.auth.request_token(account, request, self.clock.now(), &self.ids.uid())?;
        Ok(reply::json(201, &answer))
    }
}
