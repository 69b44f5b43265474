//! `/sandbox/v1/faults`: what is to go wrong, at run time. Who may is said by RBAC, as for every
//! path that is no resource (`nonResourceURLs`, verbs `get`, `post`, `delete`).
//!
//! | request | what it does |
//! |---|---|
//! | `GET /sandbox/v1/faults` | the active ones and what they did |
//! | `GET /sandbox/v1/faults/log` | what was injected |
//! | `POST /sandbox/v1/faults` | adds the one in `{"fault": "error:code=500,rate=0.1"}` |
//! | `DELETE /sandbox/v1/faults`, `…/ID` | clears all, or one |

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use bytes::Bytes;
use http::Method;

use super::reply::{self, Reply};
use super::{Api, Trail, not_allowed, unknown};
use crate::faults::{End, Fault};

/// Where they are.
pub const PATH: &str = "/sandbox/v1/faults";

/// Marks an answer that never reaches its client: the server breaks the connection instead.
#[derive(Clone, Copy, Debug)]
pub struct Cut;

impl Api {
    /// Lets happen what is to happen to a request before anything is done.
    ///
    /// # Errors
    /// The refusal that was injected.
    pub(super) async fn meet_faults(&self, trail: &mut Trail) -> Result<(), Status> {
        let fate = self.faults.of_request(&trail.attributes);
        for (index, note) in fate.notes.into_iter().enumerate() {
            trail.annotations.insert(format!("sandbox.virt-steward/fault-{index}"), note);
        }
        if !fate.delay.is_zero() {
            tokio::time::sleep(fate.delay).await;
        }
        match fate.end {
            End::Answered => {}
            End::Refused(status) => return Err(status),
            End::Broken => {
                trail.cut = true;
                return Err(Status::internal("the connection was broken by a fault"));
            }
            End::Lost => trail.cut = true,
            End::Crash { down } => {
                trail.cut = true;
                trail.crash = Some(down);
            }
        }
        Ok(())
    }

    /// Answers a request about the faults; `rest` is what follows [`PATH`].
    ///
    /// # Errors
    /// 400 for a fault that cannot be read, 404, 405.
    pub(super) fn control_faults(&self, method: &Method, rest: &str, body: &Bytes) -> Result<Reply, Status> {
        let list = |items: Vec<Value>| reply::json(200, &json!({"items": items}));
        match (method, rest.trim_matches('/')) {
            (&Method::GET, "") => Ok(list(self.faults.list())),
            (&Method::GET, "log") => Ok(list(self.faults.log())),
            (&Method::POST, "") => {
                let body: Value = serde_json::from_slice(body).unwrap_or_default();
                let Some(spec) = body["fault"].as_str() else {
                    return Err(Status::bad_request("the body is not {\"fault\": \"KIND:KEY=VALUE,…\"}"));
                };
                let fault: Fault = spec.parse().map_err(|error| Status::bad_request(format!("{error}")))?;
                let added = self.faults.add(fault);
                added
                    .map(|added| reply::json(201, &added))
                    .map_err(|error| Status::new(429, "TooManyRequests", error.to_string()))
            }
            (&Method::DELETE, "") => Ok(reply::json(200, &json!({"cleared": self.faults.clear(None)}))),
            (&Method::DELETE, id) => match id.parse().map(|id| self.faults.clear(Some(id))) {
                Ok(cleared) if cleared > 0 => Ok(reply::json(200, &json!({"cleared": cleared}))),
                _ => Err(Status::new(404, "NotFound", format!("there is no fault {id:?}"))),
            },
            (_, "" | "log") => Err(not_allowed()),
            _ => Err(unknown()),
        }
    }
}
