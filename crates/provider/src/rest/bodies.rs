//! What bodies and answers of writes have in common.

use std::time::Duration;

use axum::Json as Answered;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::handlers::unread;
use super::problem::Problem;
use crate::{Error, Kind};

/// The longest that a request may wait, seconds.
const LONGEST: u64 = 300;

/// A namespace and a name in the path.
pub(super) type At = Path<(String, String)>;
/// The answer of a write.
pub(super) type Written = Result<(StatusCode, Answered<Value>), Problem>;

/// What every write takes that may last.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct OrderRequest {
    pub dry_run: bool,
    pub wait: bool,
    pub timeout_seconds: Option<u64>,
}

/// A body that has that as well; `how` takes it out. (A flattened struct would let unknown fields pass.)
macro_rules! lasting {
    ($(#[$about:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$attribute])* $field: $kind,)*
            #[serde(default)]
            dry_run: bool,
            #[serde(default)]
            wait: bool,
            #[serde(default)]
            timeout_seconds: Option<u64>,
        }

        impl $name {
            const fn how(&self) -> $crate::rest::bodies::OrderRequest {
                $crate::rest::bodies::OrderRequest {
                    dry_run: self.dry_run,
                    wait: self.wait,
                    timeout_seconds: self.timeout_seconds,
                }
            }
        }
    };
}
pub(super) use lasting;

/// What takes nothing but that it may be tried.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DryRun {
    pub dry_run: bool,
}

/// The same beside a body that is an object or a file of its own.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DryRunQuery {
    dry_run: bool,
}

impl DryRunQuery {
    /// Reads it.
    pub(super) fn of(query: Result<Query<Self>, QueryRejection>) -> Result<bool, Error> {
        query.map(|Query(query)| query.dry_run).map_err(unread)
    }
}

impl OrderRequest {
    /// How long to wait, if at all.
    pub(super) fn patience(self) -> Result<Option<Duration>, Error> {
        let seconds = self.timeout_seconds.unwrap_or(60);
        if seconds > LONGEST {
            let wrong = format!("`timeoutSeconds` is more than {LONGEST}");
            return Err(Error::new(
                Kind::InvalidArgument,
                "reading the body",
                wrong,
                "ask again later instead",
            ));
        }
        Ok((self.wait && !self.dry_run).then(|| Duration::from_secs(seconds)))
    }

    /// 200 for what is done or was only asked about, 202 for what was taken.
    pub(super) const fn status(self) -> StatusCode {
        if self.wait || self.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }
    }
}

/// 202 for what was taken, 200 for what was only asked about.
pub(super) const fn taken(dry_run: bool) -> StatusCode {
    if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }
}

/// The answer of a deletion.
#[allow(clippy::unnecessary_wraps, reason = "it is what handlers answer")]
pub(super) fn deleted(at: &(String, String), dry_run: bool) -> Written {
    let answer = json!({"namespace": at.0, "name": at.1, "dryRun": dry_run});
    Ok((taken(dry_run), Answered(answer)))
}
