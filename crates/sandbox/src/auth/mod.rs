//! Who asks and what they may: authentication, impersonation, RBAC, and the reviews that answer questions about them.
//!
//! ```text
//! client certificate, bearer token ─► authenticate ─► impersonate ─► authorize ─► the request
//! ```

mod authorize;
mod bootstrap;
mod impersonate;
mod review;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::tree::Value;
use http::HeaderMap;
use jiff::Timestamp;

use crate::attributes::{Attributes, User};
use crate::objects::Objects;

pub use authorize::Authorizer;
pub use bootstrap::objects as bootstrap_objects;
pub use review::user_info;
pub use token::{ISSUER, NoKey, Tokens};

/// Authentication and authorisation of one API server.
#[derive(Debug)]
pub struct Auth {
    admin: (String, User),
    tokens: Tokens,
    authorizer: Authorizer,
    objects: Shared,
}

struct Shared(Arc<dyn Objects>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Objects")
    }
}

impl Auth {
    /// Over the service accounts, roles and bindings of a store; `admin_token` is good for `admin`.
    ///
    /// # Errors
    /// When no signing key can be made.
    pub fn new(objects: Arc<dyn Objects>, admin_token: String, admin: User) -> Result<Self, NoKey> {
        Ok(Self {
            admin: (admin_token, admin),
            tokens: Tokens::new()?,
            authorizer: Authorizer::new(Arc::clone(&objects)),
            objects: Shared(objects),
        })
    }

    /// Who sent a request, after impersonation; and who really did, when they differ.
    ///
    /// # Errors
    /// 401 for a token that is good for nobody; 403 for an impersonation that is not allowed.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<User>,
        now: Timestamp,
    ) -> Result<(User, Option<User>), Status> {
        let user = match (certificate, bearer(headers)) {
            (Some(user), _) => user,
            (None, Some(token)) => {
                let audiences = [ISSUER.to_owned()];
                let found = self.who(token, &audiences, now);
                found.map_err(|_| Status::new(401, "Unauthorized", "Unauthorized"))?.0
            }
            (None, None) => anonymous(),
        };
        match impersonate::impersonated(&self.authorizer, &user, headers)? {
            Some(other) => Ok((other, Some(user))),
            None => Ok((user, None)),
        }
    }

    /// Refuses a request that its user may not make.
    ///
    /// # Errors
    /// 403, worded as a real API server words it.
    pub fn authorize(&self, attributes: &Attributes) -> Result<(), Status> {
        self.authorizer.require(attributes)
    }

    /// What decides.
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// Answers a POST on `serviceaccounts/<name>/token`.
    ///
    /// # Errors
    /// 404 without the account or the object that the token is to be bound to; 409 when that is another; 422 for a bad
    /// duration.
    pub fn request_token(
        &self,
        (namespace, name): (&str, &str),
        request: Value,
        now: Timestamp,
        id: &str,
    ) -> Result<Value, Status> {
        self.tokens.request(self.objects.0.as_ref(), (namespace, name), request, now, id)
    }

    fn who(&self, token: &str, audiences: &[String], now: Timestamp) -> Result<(User, Vec<String>), String> {
        if same(token.as_bytes(), self.admin.0.as_bytes()) {
            return Ok((self.admin.1.clone(), audiences.to_vec()));
        }
        self.tokens.verify(self.objects.0.as_ref(), token, audiences, now)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Takes the same time wherever two secrets differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

fn anonymous() -> User {
    User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..User::default() }
}
