//! Lists of VMs, in pages, joined with their instances without a request per VM.
//!
//! Both lists come in the order of etcd's keys. For each page of VMs, instances are read as far as they
//! can belong to it. Keys are ordered by `namespace/name` as text in etcd, and by namespace and then name
//! elsewhere, which differ where a namespace is the beginning of another; a page counts as covered only
//! when it is in both.

use std::collections::HashMap;
use std::collections::VecDeque;

use futures::stream::{self, Stream};
use serde_json::Value;

use super::Provider;
use super::objects::{Resource, VMIS, VMS};
use super::request::encode;
use super::slim;
use crate::select::Selection;
use crate::view::{VmSummary, text};
use crate::{Error, identity};

/// Objects per page, as kubectl asks for them.
pub const LIST_PAGE: usize = 500;

/// Namespace and name.
type Key = (String, String);

fn key(object: &Value) -> Key {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// Whether `a` is at or beyond `b`, in whichever of the two orders.
fn reaches(a: &Key, b: &Key) -> bool {
    a >= b && format!("{}/{}", a.0, a.1) >= format!("{}/{}", b.0, b.1)
}

/// One list on its way, page by page.
struct Pages {
    resource: &'static Resource,
    namespace: Option<String>,
    query: String,
    token: Option<String>,
}

impl Pages {
    fn new(resource: &'static Resource, namespace: Option<String>, query: String) -> Self {
        Self { resource, namespace, query, token: Some(String::new()) }
    }

    /// The next page and the version of the list, or `None` behind the last.
    async fn next(&mut self, provider: &Provider) -> Result<Option<(Vec<Value>, String)>, Error> {
        let Some(token) = self.token.take() else { return Ok(None) };
        let place =
            self.namespace.as_deref().map_or("all namespaces".into(), |one| format!("namespace `{one}`"));
        let doing = format!("listing {} in {place}", self.resource.words());
        let collection = self.resource.collection(self.namespace.as_deref());
        let path = format!("{collection}?limit={LIST_PAGE}{}&continue={}", self.query, encode(&token));
        let mut page = provider.get(&path, &doing).await?;
        let version = text(&page, "/metadata/resourceVersion").to_owned();
        self.token = Some(text(&page, "/metadata/continue").to_owned()).filter(|token| !token.is_empty());
        match page.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(Some((items, version))),
            _ => Ok(Some((Vec::new(), version))),
        }
    }
}

/// Instances that were read, and not yet asked for.
struct Instances {
    pages: Pages,
    waiting: HashMap<Key, Value>,
    /// How far instances were read; `None`: to the end.
    read_to: Option<Key>,
}

impl Instances {
    /// Reads one page.
    async fn more(&mut self, provider: &Provider) -> Result<(), Error> {
        let Some((vmis, _)) = self.pages.next(provider).await? else {
            self.read_to = None;
            return Ok(());
        };
        if let Some(furthest) = vmis.last().map(key) {
            self.read_to = Some(furthest);
        }
        self.waiting.extend(vmis.into_iter().map(|vmi| (key(&vmi), slim::vmi(&vmi))));
        Ok(())
    }

    /// Reads a page that will be asked for, unless as many are waiting.
    async fn ahead(&mut self, provider: &Provider) -> Result<(), Error> {
        if self.waiting.len() < LIST_PAGE && self.read_to.is_some() {
            self.more(provider).await
        } else {
            Ok(())
        }
    }

    /// Reads until all that can belong to VMs up to `last` are there.
    async fn cover(&mut self, provider: &Provider, last: &Key) -> Result<(), Error> {
        while self.read_to.as_ref().is_some_and(|read| !reaches(read, last)) {
            self.more(provider).await?;
        }
        Ok(())
    }
}

/// A join of both lists.
struct Join {
    provider: Provider,
    selection: Selection,
    vms: Pages,
    instances: Instances,
}

impl Join {
    async fn page(&mut self) -> Result<Option<Vec<VmSummary>>, Error> {
        let Self { provider, selection, vms, instances } = self;
        if vms.token.is_none() {
            return Ok(None);
        }
        // side by side: the first answer is there after one round trip
        let (vms, read) = futures::join!(vms.next(provider), instances.ahead(provider));
        let vms = vms?.map(|(vms, _)| vms).unwrap_or_default();
        read?;
        if let Some(last) = vms.last().map(key) {
            instances.cover(provider, &last).await?;
        }
        let mut page = Vec::new();
        for vm in vms {
            let vmi = instances.waiting.remove(&key(&vm));
            let summary = VmSummary::of(&vm, vmi.as_ref());
            if selection.takes(&summary) {
                page.push(summary);
            }
        }
        Ok(Some(page))
    }
}

impl Provider {
    /// VMs in pages of at most [`LIST_PAGE`], in the order of the API server; the first page is there
    /// when this returns, so that what is wrong is known before anything is shown.
    pub async fn list(
        &self,
        selection: Selection,
    ) -> Result<impl Stream<Item = Result<Vec<VmSummary>, Error>> + Send + use<>, Error> {
        if let Some(namespace) = &selection.namespace {
            identity::label("namespace", namespace)?;
        }
        let labels = selection.label_selector.as_deref().map(encode).unwrap_or_default();
        let query = if labels.is_empty() { String::new() } else { format!("&labelSelector={labels}") };
        let namespace = selection.namespace.clone();
        let mut join = Join {
            provider: self.clone(),
            vms: Pages::new(&VMS, namespace.clone(), query),
            instances: Instances {
                // the VM's labels are not its instance's
                pages: Pages::new(&VMIS, namespace, String::new()),
                waiting: HashMap::new(),
                read_to: Some((String::new(), String::new())),
            },
            selection,
        };
        let first: VecDeque<Vec<VmSummary>> = join.page().await?.into_iter().collect();
        Ok(stream::try_unfold((join, first), |(mut join, mut ready)| async move {
            let page = match ready.pop_front() {
                Some(page) => Some(page),
                None => join.page().await?,
            };
            Ok(page.map(|page| (page, (join, ready))))
        }))
    }

    /// All VMs of a selection at once, for sorting and bulk operations.
    pub async fn list_all(&self, selection: Selection) -> Result<Vec<VmSummary>, Error> {
        use futures::TryStreamExt as _;
        let pages = self.list(selection).await?;
        pages.try_concat().await
    }

    /// Raw objects of a namespace, all pages.
    pub(super) async fn all(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        query: &str,
    ) -> Result<Vec<Value>, Error> {
        Ok(self.all_at(resource, namespace, query, |object| object).await?.0)
    }

    /// The same, each reduced to what `keep` leaves of it, and the version of the list, which is one for all pages.
    pub(super) async fn all_at(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        query: &str,
        keep: impl Fn(Value) -> Value,
    ) -> Result<(Vec<Value>, String), Error> {
        let mut pages = Pages::new(resource, namespace.map(str::to_owned), query.to_owned());
        let (mut all, mut version) = (Vec::new(), String::new());
        while let Some((items, at)) = pages.next(self).await? {
            all.extend(items.into_iter().map(&keep));
            version = at;
        }
        Ok((all, version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_covered_only_in_both_orders() {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        assert!(reaches(&key("a", "x"), &key("a", "x")));
        assert!(reaches(&key("b", "a"), &key("a", "x")));
        assert!(!reaches(&key("a", "w"), &key("a", "x")));
        // etcd has a-b/x before a/x, a sorted map the other way round
        assert!(!reaches(&key("a", "x"), &key("a-b", "x")));
        assert!(!reaches(&key("a-b", "x"), &key("a", "x")));
    }
}
