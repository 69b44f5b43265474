//! `/jobs/…`: exports that the cluster carries out.

use axum::Extension;
use axum::Json as Answered;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Caller;
use super::bodies::{DryRunQuery, Written, taken};
use super::handlers::json_of;
use super::problem::Problem;
use super::reading::Json;
use crate::jobs::{self, Job};
use crate::{Error, Kind};

type Read = Result<Answered<Value>, Problem>;

/// `POST /jobs/submit`: each job is taken or refused by itself.
pub(super) async fn submit(
    Extension(caller): Extension<Caller>,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    Json(file): Json<Value>,
) -> Written {
    let dry_run = DryRunQuery::of(dry_run)?;
    let requests = jobs::read(&file)?;
    let (mut ids, mut errors) = (Vec::new(), Vec::new());
    for (at, request) in requests.iter().enumerate() {
        match caller.provider.submit_job(request, dry_run).await {
            Ok(job) => ids.push(job.id),
            Err(error) => errors.push((at, error)),
        }
    }
    if let ([], [(_, first), ..]) = (ids.as_slice(), errors.as_slice()) {
        return Err(first.clone().into());
    }
    let refused: Vec<Value> = errors
        .iter()
        .map(|(at, error)| json!({"job": at, "code": error.kind.code(), "error": error.to_string(), "remedy": error.remedy}))
        .collect();
    let answer = json!({"job_ids": ids, "accepted": ids.len(), "rejected": refused.len(), "errors": refused,
        "timestamp": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok((taken(dry_run), Answered(answer)))
}

/// What `query` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct JobQuery {
    job_ids: Vec<String>,
    status: Vec<String>,
    namespace: Option<String>,
    all: bool,
    limit: Option<usize>,
}

/// `POST /jobs/query`
pub(super) async fn query(Extension(caller): Extension<Caller>, Json(query): Json<JobQuery>) -> Read {
    let provider = &caller.provider;
    let mut found = Vec::new();
    if query.job_ids.is_empty() {
        let namespace = query.namespace.as_deref().unwrap_or_else(|| provider.default_namespace());
        found = provider.jobs((!query.all).then_some(namespace)).await?;
    } else {
        for id in &query.job_ids {
            let (namespace, name) = jobs::parse_id(id, provider.default_namespace())?;
            found.push(provider.job(&namespace, &name).await?);
        }
    }
    found.retain(|job: &Job| {
        query.status.is_empty() || query.status.iter().any(|status| status == job.status)
    });
    let total = found.len();
    found.truncate(query.limit.unwrap_or(usize::MAX));
    json_of(&json!({"jobs": found, "total": total}))
}

async fn one(caller: &Caller, id: &str) -> Result<Job, Error> {
    let (namespace, name) = jobs::parse_id(id, caller.provider.default_namespace())?;
    caller.provider.job(&namespace, &name).await
}

/// `GET /jobs/{id}`
pub(super) async fn get(Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Read {
    json_of(&one(&caller, &id).await?)
}

/// `GET /jobs/progress/{id}`
pub(super) async fn progress(Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Read {
    let job = one(&caller, &id).await?;
    json_of(&json!({"id": job.id, "status": job.status, "progress": job.progress, "exports": job.exports}))
}

/// `GET /jobs/logs/{id}`
pub(super) async fn logs(Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Read {
    let (namespace, name) = jobs::parse_id(&id, caller.provider.default_namespace())?;
    let logs = caller.provider.job_logs(&namespace, &name).await?;
    let logs: Vec<Value> = logs.iter().map(|(pod, text)| json!({"pod": pod, "log": text})).collect();
    json_of(&json!({"id": format!("{namespace}.{name}"), "logs": logs}))
}

/// What `cancel` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {
    job_ids: Vec<String>,
}

/// `POST /jobs/cancel`: what is under way ends; `suspend` taken away lets it go on where it was.
pub(super) async fn cancel(
    Extension(caller): Extension<Caller>,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    Json(cancel): Json<Cancel>,
) -> Written {
    let dry_run = DryRunQuery::of(dry_run)?;
    if cancel.job_ids.is_empty() || cancel.job_ids.len() > jobs::MOST {
        let wrong = format!("it names {} jobs; 1 to {} are taken", cancel.job_ids.len(), jobs::MOST);
        return Err(
            Error::new(Kind::InvalidArgument, "cancelling jobs", wrong, "name them in `job_ids`").into()
        );
    }
    let (mut cancelled, mut errors) = (Vec::new(), Vec::new());
    for id in &cancel.job_ids {
        let done = async {
            let (namespace, name) = jobs::parse_id(id, caller.provider.default_namespace())?;
            caller.provider.suspend_job(&namespace, &name, true, dry_run).await
        };
        match done.await {
            Ok(job) => cancelled.push(job.id),
            Err(error) => errors.push((id, error)),
        }
    }
    if let ([], [(_, first), ..]) = (cancelled.as_slice(), errors.as_slice()) {
        return Err(first.clone().into());
    }
    let errors: Vec<Value> = errors
        .iter()
        .map(|(id, error)| json!({"id": id, "code": error.kind.code(), "error": error.to_string()}))
        .collect();
    Ok((taken(dry_run), Answered(json!({"cancelled": cancelled, "errors": errors}))))
}
