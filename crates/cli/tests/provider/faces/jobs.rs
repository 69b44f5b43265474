//! Exports that the cluster carries out. Nobody does here, so they stay as they were told to be.

use provider::jobs;

use super::changes::{NAMES, plain};
use super::*;

/// What the chart installs for them.
const DEFINITION: &str = include_str!("../../../../../charts/virt-steward/crds/vmexportjobs.yaml");

fn file(output: &str) -> Value {
    json!({"vm_path": "default/{}", "output_dir": output, "provider": "kubevirt", "name": "{}-nightly",
        "metadata": {"namespace": "default", "secret": "keys", "schedule": "@daily"}})
}

fn submit(output: &str) -> Row {
    let job = file(output);
    let told = job.clone();
    row("export job submit -", "POST /jobs/submit", job, move |p, name| {
        let told = filled(&told, &name);
        async move {
            let requests = jobs::read(&told)?;
            p.submit_job(&requests[0], false).await
        }
    })
}

/// The job of a VM, and whether it was told to stand still.
async fn stands(provider: Provider, name: String) -> Result<Value, Error> {
    let job = provider.job("default", &format!("{name}-nightly")).await?;
    let path = format!("/apis/vm-feature-manager.io/v1alpha1/namespaces/default/vmexportjobs/{}", job.name);
    let object: Value =
        provider.client().request(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    Ok(json!({"job": job, "suspend": object["spec"]["suspend"]}))
}

/// Cancels or resumes; with `dry` only for show.
fn suspend(line: &'static str, rest: &'static str, suspend: bool, dry: bool) -> Row {
    row(line, rest, json!({"job_ids": ["default.{}-nightly"]}), move |p, name| async move {
        p.suspend_job("default", &format!("{name}-nightly"), suspend, dry).await
    })
}

fn changes() -> Vec<Row> {
    let cancel = || suspend("export job cancel {}-nightly", "POST /jobs/cancel", true, false);
    let resume = || suspend("export job resume {}-nightly", "POST /jobs/resume", false, false);
    let delete = |line, rest, dry| {
        row(line, rest, json!({"job_ids": ["default.{}-nightly"]}), move |p, name| async move {
            p.delete_job("default", &format!("{name}-nightly"), dry).await
        })
    };
    let deleted = || delete("export job delete {}-nightly", "POST /jobs/delete", false);
    vec![
        submit("/backups").refused(),
        submit("s3://backups/nightly").seen(stands),
        submit("s3://backups/nightly").refused(),
        row("export job get {}-nightly", "GET /jobs/default.{}-nightly", Value::Null, |p, name| async move {
            p.job("default", &format!("{name}-nightly")).await
        }),
        row(
            "export job logs {}-nightly",
            "GET /jobs/logs/default.{}-nightly",
            Value::Null,
            |p, name| async move { p.job_logs("default", &format!("{name}-nightly")).await },
        )
        .in_words()
        .seen(stands),
        suspend("export job cancel {}-nightly --dry-run", "POST /jobs/cancel?dryRun=true", true, true)
            .seen(stands),
        resume().refused(),
        cancel().seen(stands),
        cancel().refused(),
        suspend("export job resume {}-nightly --dry-run", "POST /jobs/resume?dryRun=true", false, true)
            .seen(stands),
        resume().seen(stands),
        delete("export job delete {}-nightly --dry-run", "POST /jobs/delete?dryRun=true", true).seen(stands),
        deleted().seen(async |p: Provider, name: String| {
            Ok(p.job("default", &format!("{name}-nightly")).await.is_err())
        }),
        deleted().refused(),
    ]
}

fn reads() -> Vec<Row> {
    vec![
        row("export job list", "POST /jobs/query", json!({}), |p, _| async move {
            p.jobs(Some("default")).await.map(items)
        })
        .part("/jobs"),
        row("export job list -A", "POST /jobs/query", json!({"all": true}), |p, _| async move {
            p.jobs(None).await.map(items)
        })
        .part("/jobs"),
        row("", "GET /jobs/progress/default.weekly", Value::Null, |p, _| async move {
            let job = p.job("default", "weekly").await?;
            Ok(json!({"id": job.id, "status": job.status, "progress": job.progress, "exports": job.exports}))
        }),
        row("export job get none", "GET /jobs/default.none", Value::Null, |p, _| async move {
            p.job("default", "none").await
        })
        .refused(),
        row("export job logs none", "GET /jobs/logs/default.none", Value::Null, |p, _| async move {
            p.job_logs("default", "none").await
        })
        .in_words()
        .refused(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_jobs_are_the_same_through_every_face() {
    let faces = Faces::start("1").await;
    let definition = serde_saphyr::from_str(DEFINITION).unwrap();
    faces.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    for row in changes() {
        faces.each(&row, NAMES, plain).await;
    }
    let weekly = json!({"vm_path": "default/web", "output_dir": "s3://backups", "name": "weekly",
        "metadata": {"schedule": "@weekly"}});
    let requests = jobs::read(&weekly).unwrap();
    faces.library.submit_job(&requests[0], false).await.unwrap();
    for row in reads() {
        faces.same(&row, |answer| answer).await;
    }
}
