//! Export jobs.

use http::Method;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use super::Provider;
use super::objects::{JOBS, dry};
use super::request::{encode, refusal};
use crate::jobs::{Job, Request, unsuspendable};
use crate::view::text;
use crate::{Error, Kind, VmId};

/// The label of pods of a job.
const LABEL: &str = "vm-feature-manager.io/export-job";
/// The end of each pod's log that is read, bytes.
const MAX_LOG: usize = 256 << 10;

impl Provider {
    /// Makes a job, once.
    pub async fn submit_job(&self, request: &Request, dry_run: bool) -> Result<Job, Error> {
        let object = request.object(self.default_namespace())?;
        let namespace = text(&object, "/metadata/namespace").to_owned();
        let doing = format!("submitting a job to export `{}`", request.vm_path);
        let path = format!("{}{}", JOBS.collection(Some(&namespace)), dry(dry_run));
        let created = self.create(&path, &object, &doing).await.map_err(lacking)?;
        Ok(Job::of(&created))
    }

    /// Jobs of a namespace, or of all.
    pub async fn jobs(&self, namespace: Option<&str>) -> Result<Vec<Job>, Error> {
        let all = self.all(&JOBS, namespace, "").await.map_err(lacking)?;
        Ok(all.iter().map(Job::of).collect())
    }

    /// One job.
    pub async fn job(&self, namespace: &str, name: &str) -> Result<Job, Error> {
        let id = VmId::new(namespace, name)?;
        let found = self.get(&JOBS.object(namespace, name), &format!("reading export job `{id}`")).await;
        Ok(Job::of(&found.map_err(lacking)?))
    }

    /// Suspends a job, which ends what is under way; or lets one that was suspended go on.
    pub async fn suspend_job(
        &self,
        namespace: &str,
        name: &str,
        suspend: bool,
        dry_run: bool,
    ) -> Result<Job, Error> {
        let id = VmId::new(namespace, name)?;
        let doing = format!("{} export job `{id}`", if suspend { "cancelling" } else { "resuming" });
        let path = JOBS.object(namespace, name);
        let object = self.get(&path, &doing).await.map_err(lacking)?;
        if let Some((wrong, remedy)) = unsuspendable(&object, suspend) {
            return Err(Error::new(Kind::WrongState, doing, wrong, remedy));
        }
        let patch = json!({"spec": {"suspend": suspend}});
        let path = format!("{path}{}", dry(dry_run));
        let answer = self.write(Method::PATCH, &path, "application/merge-patch+json", &patch, &doing).await;
        Ok(Job::of(&answer.map_err(lacking)?))
    }

    /// Deletes a job; what it exported stays.
    pub async fn delete_job(&self, namespace: &str, name: &str, dry_run: bool) -> Result<(), Error> {
        let id = VmId::new(namespace, name)?;
        let doing = format!("deleting export job `{id}`");
        let object = self.get(&JOBS.of(&id), &doing).await.map_err(lacking)?;
        self.delete_object(&JOBS, &id, &object, dry_run, &doing).await
    }

    /// What the pods of a job said, the newest last: the VM, and the end of the log.
    pub async fn job_logs(&self, namespace: &str, name: &str) -> Result<Vec<(String, String)>, Error> {
        self.job(namespace, name).await?;
        let doing = format!("reading the logs of export job `{namespace}/{name}`");
        let query = encode(&format!("{LABEL}={name}"));
        let pods =
            self.get(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={query}"), &doing).await?;
        let mut pods: Vec<&Value> = pods["items"].as_array().into_iter().flatten().collect();
        pods.sort_by_key(|pod| text(pod, "/metadata/creationTimestamp").to_owned());
        let mut out = Vec::new();
        for pod in pods {
            let pod = text(pod, "/metadata/name");
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?limitBytes={MAX_LOG}");
            let response = self.send(Method::GET, &path, None, &doing).await?;
            let status = response.status();
            let lost = |why: String| Error::refused(&doing, 502, "", &format!("the answer broke off: {why}"));
            let body = Limited::new(response.into_body(), 2 * MAX_LOG).collect().await;
            let body = body.map_err(|error| lost(error.to_string()))?.to_bytes();
            let said = if status.is_success() {
                String::from_utf8_lossy(&body).into_owned()
            } else {
                // One pod that has no log yet is no reason to keep the others back.
                format!("({})\n", refusal(&doing, status.as_u16(), &body).wrong)
            };
            out.push((pod.to_owned(), said));
        }
        Ok(out)
    }
}

/// A cluster without the definition answers 404 for the kind; with it, the message names the job.
fn lacking(mut error: Error) -> Error {
    if error.kind != Kind::NotFound {
        return error;
    }
    if !error.wrong.contains("could not find the requested resource") {
        error.remedy = "see which there are: `virt-steward export job list`".into();
        return error;
    }
    let remedy = "install the chart: its directory crds has the definition of VMExportJob";
    Error::new(Kind::MissingCapability, error.doing, "the cluster does not know VMExportJobs", remedy)
}
