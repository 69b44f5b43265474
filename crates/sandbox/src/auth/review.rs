//! Reviews: kinds that are asked and never stored (`authentication.k8s.io/v1`, `authorization.k8s.io/v1`).

use apimachinery::tree::{Value, json};
use apimachinery::{FieldError, Status};
use jiff::Timestamp;

use super::Auth;
use super::authorize::rbac_user;
use super::token::ISSUER;
use crate::attributes::{Attributes, User};

const GROUP: &str = "authorization.k8s.io";

impl Auth {
    /// Answers a POST of a review: the object with its `status`. `namespace` is that of the path
    /// (`LocalSubjectAccessReview`).
    ///
    /// # Errors
    /// 400 and 422 for questions that cannot be asked; 404 for kinds that are no review.
    pub fn review(
        &self,
        user: &User,
        namespace: &str,
        mut review: Value,
        now: Timestamp,
    ) -> Result<Value, Status> {
        let spec = review["spec"].clone();
        let status = match review["kind"].as_str().unwrap_or_default() {
            "SubjectAccessReview" => {
                self.access(&subject(&spec, "SubjectAccessReview")?, &spec, "SubjectAccessReview")?
            }
            "LocalSubjectAccessReview" => {
                let asked = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
                if asked != namespace {
                    let why = format!("spec.resourceAttributes.namespace must match namespace: {namespace}");
                    return Err(Status::bad_request(why));
                }
                self.access(&subject(&spec, "LocalSubjectAccessReview")?, &spec, "LocalSubjectAccessReview")?
            }
            "SelfSubjectAccessReview" => self.access(user, &spec, "SelfSubjectAccessReview")?,
            "SelfSubjectRulesReview" => {
                let asked = spec["namespace"].as_str().unwrap_or_default();
                if asked.is_empty() {
                    return Err(Status::bad_request("no namespace on request"));
                }
                self.authorizer.policy().1.rules_review(&rbac_user(user), asked)
            }
            "SelfSubjectReview" => json!({"userInfo": user_info(user)}),
            "TokenReview" => self.token_review(&spec, now)?,
            other => return Err(Status::not_found(GROUP, "reviews", other)),
        };
        review["status"] = status;
        Ok(review)
    }

    fn access(&self, user: &User, spec: &Value, kind: &str) -> Result<Value, Status> {
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        if resource.is_object() == path.is_object() {
            let why = if resource.is_object() {
                "cannot be specified in combination with resourceAttributes"
            } else {
                "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            };
            let (field, value) = if resource.is_object() {
                ("spec.nonResourceAttributes", path)
            } else {
                ("spec.resourceAttributes", resource)
            };
            return Err(Status::invalid(GROUP, kind, "", &[FieldError::invalid(field, value.clone(), why)]));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let attributes = Attributes {
            user: user.clone(),
            verb: text(if resource.is_object() { &resource["verb"] } else { &path["verb"] }),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            path: text(&path["path"]),
            dry_run: false,
        };
        let decision = self.authorizer.decide(&attributes);
        let mut status = json!({"allowed": decision.allowed});
        if !decision.reason.is_empty() {
            status["reason"] = decision.reason.into();
        }
        Ok(status)
    }

    fn token_review(&self, spec: &Value, now: Timestamp) -> Result<Value, Status> {
        let token = spec["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let listed = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut audiences: Vec<String> = listed.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(ISSUER.into());
        }
        Ok(match self.who(token, &audiences, now) {
            Ok((user, audiences)) => {
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
        })
    }
}

fn subject(spec: &Value, kind: &str) -> Result<User, Status> {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let groups = strings(&spec["groups"]);
    if text("user").is_empty() && groups.is_empty() {
        let error = FieldError::invalid("spec.user", "", "at least one of user or group must be specified");
        return Err(Status::invalid(GROUP, kind, "", &[error]));
    }
    let extra = spec["extra"].as_object().into_iter().flatten();
    let extra = extra.map(|(key, values)| (key.as_str().to_lowercase(), strings(values))).collect();
    Ok(User { name: text("user"), uid: text("uid"), groups, extra })
}

/// `authentication.k8s.io/v1 UserInfo`
pub fn user_info(user: &User) -> Value {
    let mut out = json!({"username": user.name});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        out["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}
