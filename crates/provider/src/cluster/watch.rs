//! Following VMs.
//!
//! Two watches, of VMs and of instances; each event changes one of two tables, and what a summary of the
//! changed pair says is passed on when it differs from what was passed on before.

use std::collections::HashMap;

use futures::stream::{self, Stream, StreamExt as _};
use http::Method;
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde_json::Value;

use super::Provider;
use super::objects::{Resource, VMIS, VMS};
use super::request::{encode, refusal};
use super::slim;
use crate::select::Selection;
use crate::view::{VmSummary, text};
use crate::{Error, Kind, identity};

/// The longest event that is read, bytes: a VM and what is around it.
const MAX_EVENT: usize = 4 << 20;

/// A change of what a list would show.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "vm", rename_all = "camelCase")]
pub enum Change {
    /// There, or different.
    Updated(VmSummary),
    /// Gone, or no longer among those asked for.
    Removed(VmSummary),
}

/// Namespace and name.
type Key = (String, String);

/// What is known, and what was said about it.
struct Tables {
    selection: Selection,
    vms: HashMap<Key, Value>,
    vmis: HashMap<Key, Value>,
    said: HashMap<Key, VmSummary>,
}

impl Tables {
    /// Takes an object in; what is to be said about it now.
    fn apply(&mut self, of_vm: bool, kind: &str, object: &Value) -> Option<Change> {
        let key = (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned());
        let table = if of_vm { &mut self.vms } else { &mut self.vmis };
        if kind == "DELETED" {
            table.remove(&key);
        } else {
            table.insert(key.clone(), if of_vm { slim::vm(object) } else { slim::vmi(object) });
        }
        let now = self.vms.get(&key).map(|vm| VmSummary::of(vm, self.vmis.get(&key)));
        match now.filter(|summary| self.selection.takes(summary)) {
            Some(summary) if self.said.get(&key) != Some(&summary) => {
                self.said.insert(key, summary.clone());
                Some(Change::Updated(summary))
            }
            Some(_) => None,
            None => self.said.remove(&key).map(Change::Removed),
        }
    }
}

impl Provider {
    /// First every VM of the selection, then every change, until the API server ends a watch; who wants
    /// to go on asks again.
    pub async fn watch(
        &self,
        selection: Selection,
    ) -> Result<impl Stream<Item = Result<Change, Error>> + Send + use<>, Error> {
        if let Some(namespace) = &selection.namespace {
            identity::label("namespace", namespace)?;
        }
        let labels = selection.label_selector.as_deref().map(encode).unwrap_or_default();
        let labels = if labels.is_empty() { String::new() } else { format!("&labelSelector={labels}") };
        let namespace = selection.namespace.clone();
        let namespace = namespace.as_deref();
        // all pages are of the first one's version, and the watches go on from there
        let (vms, vmis) = futures::join!(
            self.all_at(&VMS, namespace, &labels, |vm| slim::vm(&vm)),
            self.all_at(&VMIS, namespace, "", |vmi| slim::vmi(&vmi))
        );
        let ((vms, at_vms), (vmis, at_vmis)) = (vms?, vmis?);
        let of_vms = self.events(&VMS, namespace, &labels, &at_vms).await?.map(|event| (true, event));
        let of_vmis = self.events(&VMIS, namespace, "", &at_vmis).await?.map(|event| (false, event));
        let mut tables =
            Tables { selection, vms: HashMap::new(), vmis: HashMap::new(), said: HashMap::new() };
        for vmi in vmis {
            tables.apply(false, "ADDED", &vmi);
        }
        let first: Vec<_> =
            vms.into_iter().filter_map(|vm| tables.apply(true, "ADDED", &vm)).map(Ok).collect();
        // ends with whichever watch ends first: the other alone would tell half of it
        let events = stream::select(
            of_vms.map(Some).chain(stream::once(async { None })),
            of_vmis.map(Some).chain(stream::once(async { None })),
        )
        .take_while(|event| futures::future::ready(event.is_some()))
        .filter_map(futures::future::ready);
        let changes = events.scan((tables, false), |(tables, failed), (of_vm, event)| {
            let next = match event {
                _ if *failed => None,
                Ok((kind, object)) => Some(tables.apply(of_vm, &kind, &object).map(Ok)),
                Err(error) => {
                    *failed = true;
                    Some(Some(Err(error)))
                }
            };
            futures::future::ready(next)
        });
        Ok(stream::iter(first).chain(changes.filter_map(futures::future::ready)).boxed())
    }

    /// The events of a watch: kind and object, without bookmarks.
    async fn events(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        query: &str,
        version: &str,
    ) -> Result<impl Stream<Item = Result<(String, Value), Error>> + Send + use<>, Error> {
        let doing = "following VMs";
        let path = format!("{}?watch=true&resourceVersion={version}{query}", resource.collection(namespace));
        let response = self.send(Method::GET, &path, None, doing).await?;
        let status = response.status();
        if !status.is_success() {
            let bytes = http_body_util::Limited::new(response.into_body(), MAX_EVENT).collect().await;
            let bytes = bytes.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return Err(refusal(doing, status.as_u16(), &bytes));
        }
        let body = response.into_body();
        let lines =
            stream::try_unfold((body, Vec::new()), move |(mut body, mut rest): (_, Vec<u8>)| async move {
                loop {
                    if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).collect();
                        return Ok(Some((line, (body, rest))));
                    }
                    let broken = |why: String| Error::new(Kind::Cluster, doing, why, "follow again");
                    if rest.len() > MAX_EVENT {
                        return Err(broken(format!("an event is larger than {} MiB", MAX_EVENT >> 20)));
                    }
                    match body.frame().await {
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                rest.extend_from_slice(&data);
                            }
                        }
                        Some(Err(error)) => return Err(broken(error.to_string())),
                        None => return Ok(None),
                    }
                }
            });
        Ok(lines.filter_map(|line| futures::future::ready(event(line))).boxed())
    }
}

/// A line of a watch.
fn event(line: Result<Vec<u8>, Error>) -> Option<Result<(String, Value), Error>> {
    let line = match line {
        Ok(line) if line.iter().all(u8::is_ascii_whitespace) => return None,
        Ok(line) => line,
        Err(error) => return Some(Err(error)),
    };
    let doing = "following VMs";
    let mut event: Value = match serde_json::from_slice(&line) {
        Ok(event) => event,
        Err(error) => return Some(Err(Error::new(Kind::Cluster, doing, error.to_string(), "follow again"))),
    };
    let object = event["object"].take();
    match text(&event, "/type") {
        "BOOKMARK" => None,
        "ERROR" => {
            let code =
                object.pointer("/code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
            let (reason, message) = (text(&object, "/reason"), text(&object, "/message"));
            Some(Err(Error::refused(doing, code.unwrap_or(500), reason, message)))
        }
        kind => Some(Ok((kind.to_owned(), object))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_list_would_show_differently_is_said() {
        let selection = Selection { status: vec!["Running".into()], ..Selection::default() };
        let mut tables =
            Tables { selection, vms: HashMap::new(), vmis: HashMap::new(), said: HashMap::new() };
        let vm = |status: &str, noise: u32| {
            json!({"metadata": {"namespace": "a", "name": "web", "resourceVersion": noise.to_string()},
                "status": {"printableStatus": status}})
        };
        let vmi =
            |node: &str| json!({"metadata": {"namespace": "a", "name": "web"}, "status": {"nodeName": node}});
        assert_eq!(tables.apply(false, "ADDED", &vmi("n1")), None, "no VM yet");
        assert_eq!(tables.apply(true, "ADDED", &vm("Starting", 1)), None, "not asked for");
        let said = tables.apply(true, "MODIFIED", &vm("Running", 2));
        assert!(matches!(said, Some(Change::Updated(vm)) if vm.node.as_deref() == Some("n1")));
        assert_eq!(tables.apply(true, "MODIFIED", &vm("Running", 3)), None, "looks the same");
        assert!(matches!(tables.apply(false, "MODIFIED", &vmi("n2")), Some(Change::Updated(_))));
        assert!(matches!(tables.apply(true, "MODIFIED", &vm("Stopping", 4)), Some(Change::Removed(_))));
        assert_eq!(tables.apply(true, "DELETED", &vm("Stopping", 5)), None, "said already");
    }
}
