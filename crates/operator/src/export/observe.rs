//! What a decision about a `VMExportJob` is made of, read live.

use export::job::plan::Seen;
use export::job::pod::{Image, label};
use export::job::spec::label_query;
use export::job::{LABEL_ACCOUNT, LABEL_JOB, Spec};
use serde_json::Value;

use super::{Context, Key};
use crate::kubernetes::RawError;

/// Objects of a page.
const PAGE: usize = 500;
/// The most VMs of a job.
const MOST: usize = 10_000;

/// See the module.
pub(super) struct Observed {
    pub object: Value,
    vms: Result<Vec<String>, String>,
    jobs: Vec<Value>,
    account: Result<(), String>,
}

impl Observed {
    pub fn seen<'a>(&'a self, image: &'a Image) -> Seen<'a> {
        Seen {
            object: &self.object,
            vms: self.vms.clone(),
            jobs: &self.jobs,
            account: self.account.clone(),
            image,
        }
    }
}

/// Reads; `None`: the job is gone.
pub(super) async fn observe(context: &Context, key: &Key) -> Result<Option<Observed>, RawError> {
    let object = match context.api.get(&key.path()).await {
        Err(error) if error.code() == Some(404) => return Ok(None),
        other => other?,
    };
    let spec = match Spec::read(&object) {
        Ok(spec) if object["metadata"]["deletionTimestamp"].is_null() => spec,
        // Nothing more is needed to say what is wrong.
        _ => {
            let vms = Ok(Vec::new());
            return Ok(Some(Observed { object, vms, jobs: Vec::new(), account: Ok(()) }));
        }
    };
    let selector = encode(&format!("{LABEL_JOB}={}", label(&key.name)));
    let path = format!("/apis/batch/v1/namespaces/{}/jobs?labelSelector={selector}", key.namespace);
    let mut jobs = list(context, &path).await?;
    // Of an older object of the same name.
    jobs.retain(|job| job["metadata"]["ownerReferences"][0]["uid"] == object["metadata"]["uid"]);
    let account = account(context, &key.namespace, &spec.service_account_name).await?;
    let vms = match (&spec.source.virtual_machine, &spec.source.selector) {
        (Some(vm), _) => Ok(vec![vm.clone()]),
        (None, Some(selector)) => selected(context, &key.namespace, selector).await?,
        (None, None) => Ok(Vec::new()),
    };
    Ok(Some(Observed { object, vms, jobs, account }))
}

/// Whether pods of export jobs may run as an account.
async fn account(context: &Context, namespace: &str, name: &str) -> Result<Result<(), String>, RawError> {
    let found = match context.api.get(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}")).await
    {
        Err(error) if error.code() == Some(404) => {
            let text = format!(
                "there is no service account {namespace}/{name}; see docs/export.md for the one to make"
            );
            return Ok(Err(text));
        }
        other => other?,
    };
    if found["metadata"]["labels"].get(LABEL_ACCOUNT).is_some() {
        return Ok(Ok(()));
    }
    let text = format!(
        "the service account {namespace}/{name} does not carry the label {LABEL_ACCOUNT}: whoever may write export \
         jobs could act as it"
    );
    Ok(Err(text))
}

async fn selected(
    context: &Context,
    namespace: &str,
    selector: &Value,
) -> Result<Result<Vec<String>, String>, RawError> {
    let query = match label_query(selector) {
        Ok(query) => encode(&query),
        Err(mistake) => return Ok(Err(mistake.0)),
    };
    let path = format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachines?labelSelector={query}");
    let found = list(context, &path).await?;
    let mut names: Vec<String> = found
        .iter()
        .filter(|vm| vm["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|vm| vm["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(if names.len() > MOST {
        Err(format!("the selector matches {} VMs; at most {MOST} are taken", names.len()))
    } else {
        Ok(names)
    })
}

/// All objects of a list, page by page.
async fn list(context: &Context, path: &str) -> Result<Vec<Value>, RawError> {
    let (mut out, mut token) = (Vec::new(), String::new());
    loop {
        let mut page = context.api.get(&format!("{path}&limit={PAGE}&continue={token}")).await?;
        if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
            out.extend(items);
        }
        page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut token);
        if token.is_empty() || out.len() > MOST {
            return Ok(out);
        }
    }
}

/// Percent-encodes what is not unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
