//! `/jobs/…`: exports that the cluster carries out.

use std::sync::Arc;

use axum::Extension;
use axum::Json as Answered;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::routing::{MethodRouter, get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bodies::{DryRunQuery, Written, taken};
use super::handlers::json_of;
use super::problem::Problem;
use super::reading::Json;
use super::routes::{DRY_RUN, Route, ask, read, write};
use super::{Caller, Service};
use crate::jobs::{self, Job};
use crate::{Error, Kind};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    Route {
        query: DRY_RUN,
        ..write("/jobs/submit", "submitJobs", "Have the cluster export VMs", "JobFile", "Submitted", || {
            post(submit)
        })
    },
    ask("/jobs/query", "queryJobs", "Export jobs", "JobQuery", "JobList", || post(query)),
    read("/jobs/{id}", "getJob", "An export job", "Job", || get(job)),
    of_ids("/jobs/cancel", "cancelJobs", "End what export jobs are doing", "Cancelled", || post(cancel)),
    of_ids(
        "/jobs/resume",
        "resumeJobs",
        "Let cancelled export jobs go on where they were",
        "Resumed",
        || post(resume),
    ),
    of_ids(
        "/jobs/delete",
        "deleteJobs",
        "Delete export jobs; what they exported stays",
        "JobsDeleted",
        || post(delete),
    ),
    read("/jobs/progress/{id}", "jobProgress", "How far an export job is", "JobProgress", || get(progress)),
    read("/jobs/logs/{id}", "jobLogs", "What the pods of an export job said", "JobLogs", || get(logs)),
];

/// A change of jobs by their ids.
const fn of_ids(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    answer: &'static str,
    serve: fn() -> MethodRouter<Arc<Service>>,
) -> Route {
    Route { query: DRY_RUN, ..write(path, name, summary, "JobIds", answer, serve) }
}

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
pub(super) async fn job(Extension(caller): Extension<Caller>, Path(id): Path<String>) -> Read {
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

/// What takes jobs by their ids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobIds {
    job_ids: Vec<String>,
}

impl JobIds {
    /// Does one thing to each job. Those that it was done to stand under `done`, beside what went wrong with the
    /// others; where it was done to none, the first says why.
    async fn each<F: Future<Output = Result<(), Error>>>(
        self,
        caller: &Caller,
        (doing, done): (&str, &str),
        dry_run: bool,
        act: impl Fn(String, String) -> F,
    ) -> Written {
        let ids = self.job_ids;
        if ids.is_empty() || ids.len() > jobs::MOST {
            let wrong = format!("it names {} jobs; 1 to {} are taken", ids.len(), jobs::MOST);
            return Err(Error::new(Kind::InvalidArgument, doing, wrong, "name them in `job_ids`").into());
        }
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for id in ids {
            let outcome = async {
                let (namespace, name) = jobs::parse_id(&id, caller.provider.default_namespace())?;
                let whole = format!("{namespace}.{name}");
                act(namespace, name).await.map(|()| whole)
            };
            match outcome.await {
                Ok(id) => found.push(id),
                Err(error) => errors.push((id, error)),
            }
        }
        if let ([], [(_, first), ..]) = (found.as_slice(), errors.as_slice()) {
            return Err(first.clone().into());
        }
        let errors: Vec<Value> = errors
            .iter()
            .map(|(id, error)| {
                json!({"id": id, "code": error.kind.code(), "error": error.to_string(), "remedy": error.remedy})
            })
            .collect();
        Ok((taken(dry_run), Answered(json!({done: found, "errors": errors}))))
    }
}

/// `POST /jobs/cancel`: what is under way ends, and can be resumed.
pub(super) async fn cancel(
    Extension(caller): Extension<Caller>,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    Json(ids): Json<JobIds>,
) -> Written {
    suspend(&caller, dry_run, ids, true).await
}

/// `POST /jobs/resume`: what was cancelled goes on where it was.
pub(super) async fn resume(
    Extension(caller): Extension<Caller>,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    Json(ids): Json<JobIds>,
) -> Written {
    suspend(&caller, dry_run, ids, false).await
}

async fn suspend(
    caller: &Caller,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    ids: JobIds,
    suspend: bool,
) -> Written {
    let dry_run = DryRunQuery::of(dry_run)?;
    let words = if suspend { ("cancelling jobs", "cancelled") } else { ("resuming jobs", "resumed") };
    let provider = &caller.provider;
    let act = |namespace: String, name: String| async move {
        provider.suspend_job(&namespace, &name, suspend, dry_run).await.map(drop)
    };
    ids.each(caller, words, dry_run, act).await
}

/// `POST /jobs/delete`: what they exported stays.
pub(super) async fn delete(
    Extension(caller): Extension<Caller>,
    dry_run: Result<Query<DryRunQuery>, QueryRejection>,
    Json(ids): Json<JobIds>,
) -> Written {
    let dry_run = DryRunQuery::of(dry_run)?;
    let provider = &caller.provider;
    let act = |namespace: String, name: String| async move {
        provider.delete_job(&namespace, &name, dry_run).await
    };
    ids.each(&caller, ("deleting jobs", "deleted"), dry_run, act).await
}
