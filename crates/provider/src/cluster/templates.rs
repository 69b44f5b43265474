//! VM templates. The cluster's API fills them in; where it does not serve that, we do, by the same rules.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use serde_json::{Value, json};

use super::Provider;
use super::objects::{Resource, TEMPLATE_REQUESTS, TEMPLATES, dry};
use super::waiting::until;
use crate::template::{Processed, Template, process};
use crate::view::{condition, list, text};
use crate::wait::Progress;
use crate::{Error, Kind, VmId, identity};

/// Values of parameters by name.
pub type Parameters = BTreeMap<String, String>;

fn missing(mut error: Error, what: &str) -> Error {
    if error.kind == Kind::NotFound {
        error.remedy = format!("see which there are: `virt-steward {what} list`");
    }
    error
}

impl Provider {
    /// Templates of a namespace, or of all.
    pub async fn templates(&self, namespace: Option<&str>) -> Result<Vec<Template>, Error> {
        if let Some(namespace) = namespace {
            identity::label("namespace", namespace)?;
        }
        let all = self.all(&TEMPLATES, namespace, "").await.map_err(no_templates)?;
        Ok(all.iter().map(Template::of).collect())
    }

    /// One template, as it is in the API.
    pub async fn template_object(&self, template: &VmId) -> Result<Value, Error> {
        let doing = format!("reading template `{template}`");
        self.get(&TEMPLATES.of(template), &doing).await.map_err(|error| missing(error, "template"))
    }

    /// Fills a template in.
    pub async fn process_template(
        &self,
        template: &VmId,
        parameters: &Parameters,
    ) -> Result<Processed, Error> {
        let doing = format!("filling in template `{template}`");
        match self.on_template(template, "process", parameters, &doing).await? {
            Some(answer) => Ok(processed(&answer)),
            None => process(&self.template_object(template).await?, parameters, &mut random()),
        }
    }

    /// Creates a VM from a template. Where the cluster serves it, its own `create` is used, which needs no
    /// right to create other VMs.
    pub async fn create_from_template(
        &self,
        template: &VmId,
        parameters: &Parameters,
        dry_run: bool,
    ) -> Result<Processed, Error> {
        let doing = format!("creating a VM from template `{template}`");
        // `create` knows no dry run: it would create
        if !dry_run && let Some(answer) = self.on_template(template, "create", parameters, &doing).await? {
            return Ok(processed(&answer));
        }
        let mut done = self.process_template(template, parameters).await?;
        let vm = &done.virtual_machine;
        let namespace = match text(vm, "/metadata/namespace") {
            "" => template.namespace().to_owned(),
            namespace => namespace.to_owned(),
        };
        done.virtual_machine = self.create_vm(&namespace, vm, dry_run).await?;
        Ok(done)
    }

    /// Asks the API of templates; `None` where it is not served.
    async fn on_template(
        &self,
        template: &VmId,
        verb: &str,
        parameters: &Parameters,
        doing: &str,
    ) -> Result<Option<Value>, Error> {
        // an absent template is an internal error there (`process.go`, v0.2)
        self.template_object(template).await?;
        let path = format!(
            "/apis/subresources.template.kubevirt.io/v1beta1/namespaces/{}/virtualmachinetemplates/{}/{verb}",
            template.namespace(),
            template.name()
        );
        match self.create(&path, &json!({"parameters": parameters}), doing).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            // a parameter that is not there is a 409
            Err(error) if error.kind == Kind::WrongState => Err(Error {
                kind: Kind::InvalidArgument,
                remedy: "see `virt-steward template get`".into(),
                ..error
            }),
            Err(error) => Err(error),
        }
    }

    /// Asks for a template to be made from a VM; the answer is the request's name.
    pub async fn make_template(&self, vm: &VmId, name: &str, dry_run: bool) -> Result<VmId, Error> {
        let doing = format!("making template `{name}` from VM `{vm}`");
        let id = VmId::new(vm.namespace(), name)?;
        self.vm_object(vm, &doing).await?;
        if self.find(&TEMPLATES.of(&id), &doing).await?.is_some() {
            let remedy = "choose another name, or delete that template first";
            return Err(Error::new(Kind::AlreadyExists, doing, "a template of this name is there", remedy));
        }
        self.require_gate("Template", &doing).await?;
        let request = json!({"apiVersion": "template.kubevirt.io/v1beta1", "kind": "VirtualMachineTemplateRequest",
            "metadata": {"name": name, "namespace": vm.namespace()},
            "spec": {"virtualMachineRef": {"namespace": vm.namespace(), "name": vm.name()}, "templateName": name,
                "ttlSecondsAfterFinished": 600}});
        let path = format!("{}{}", TEMPLATE_REQUESTS.collection(Some(vm.namespace())), dry(dry_run));
        self.create(&path, &request, &doing).await.map_err(no_templates)?;
        Ok(id)
    }

    /// Waits until a template has been made.
    pub async fn wait_template(
        &self,
        template: &VmId,
        timeout: Duration,
        note: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), Error> {
        let doing = format!("making template `{template}`");
        let (doing, path) = (doing.as_str(), TEMPLATE_REQUESTS.of(template));
        let path = path.as_str();
        until(doing, timeout, note, || async move {
            let Some(request) = self.find(path, doing).await? else {
                // it is gone once it is finished and its time is over
                let made = self.find(&TEMPLATES.of(template), doing).await?.is_some();
                let gone = Progress::Failed("the request was deleted".into());
                return Ok((if made { Progress::Done } else { gone }, ()));
            };
            Ok((request_progress(&request), ()))
        })
        .await
    }

    /// Deletes a template, and by its owner references the volumes that it was made with.
    pub async fn delete_template(&self, template: &VmId, dry_run: bool) -> Result<(), Error> {
        let doing = format!("deleting template `{template}`");
        let object = self.template_object(template).await?;
        self.delete_object(&TEMPLATES, template, &object, dry_run, &doing).await
    }

    /// Deletes exactly the object that was read.
    pub(super) async fn delete_object(
        &self,
        resource: &Resource,
        id: &VmId,
        object: &Value,
        dry_run: bool,
        doing: &str,
    ) -> Result<(), Error> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
            "preconditions": {"uid": object["metadata"]["uid"]}});
        let path = format!("{}{}", resource.of(id), dry(dry_run));
        self.write(http::Method::DELETE, &path, "application/json", &options, doing).await.map(drop)
    }
}

/// How far a request is: `Progressing` and `Ready` False together mean that it has failed for good.
fn request_progress(request: &Value) -> Progress {
    if condition::holds(request, "Ready") {
        return Progress::Done;
    }
    let of = |kind: &str| {
        list(request, "/status/conditions").iter().find(|condition| text(condition, "/type") == kind)
    };
    match (of("Progressing"), of("Ready")) {
        (Some(progressing), Some(ready)) if text(progressing, "/status") == "False" => {
            Progress::Failed(text(ready, "/message").into())
        }
        (Some(progressing), _) => Progress::Waiting(text(progressing, "/message").into()),
        _ => Progress::Waiting("not seen by KubeVirt yet".into()),
    }
}

fn processed(answer: &Value) -> Processed {
    Processed {
        virtual_machine: answer["virtualMachine"].clone(),
        message: Some(text(answer, "/message")).filter(|text| !text.is_empty()).map(str::to_owned),
    }
}

fn no_templates(mut error: Error) -> Error {
    if error.kind == Kind::NotFound {
        error.kind = Kind::MissingCapability;
        error.wrong = "the cluster does not serve `template.kubevirt.io`".into();
        error.remedy =
            "KubeVirt 1.9 has it, with the gate `Template`; fill in a file instead: `virt-steward \
                        template process -f`"
                .into();
    }
    error
}

/// Numbers that nobody can foresee: a keyed hash with a key from the system.
pub fn random() -> impl FnMut(usize) -> usize {
    let (key, mut counter) = (RandomState::new(), 0_u64);
    move |below| {
        counter += 1;
        let number = key.hash_one(counter) % (below.max(1) as u64);
        usize::try_from(number).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_failed_when_it_goes_on_no_more_and_is_not_ready() {
        let of = |progressing: &str, ready: &str| {
            request_progress(&json!({"status": {"conditions": [
                {"type": "Progressing", "status": progressing, "message": "working"},
                {"type": "Ready", "status": ready, "message": "no"}]}}))
        };
        assert_eq!(of("True", "False"), Progress::Waiting("working".into()));
        assert_eq!(of("False", "False"), Progress::Failed("no".into()));
        assert_eq!(of("False", "True"), Progress::Done);
        assert!(matches!(request_progress(&json!({})), Progress::Waiting(_)));
    }
}
