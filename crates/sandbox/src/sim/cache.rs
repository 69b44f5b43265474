//! A watch cache of one kind of object, shared by every controller of the process, over any API
//! server: list, then watch, and list again when the history is gone.
//!
//! ```text
//!  list ──► watch ──(event)──► watch …
//!   ▲         │
//!   └── 410, end of stream, broken connection (with back-off)
//! ```
//!
//! Of more objects than thousands of starting VMs have, those that nobody has changed or asked for in a while are kept as
//! text, and packed: that takes a twentieth of the memory of a tree.
//!
//! Answers to own writes are put into the cache at once ([`Cache::observe`]), so that a controller
//! reads what it has written. Resource versions are compared as numbers, which the API conventions
//! allow since Kubernetes 1.35 (KEP-5504).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use apimachinery::tree::Value;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError};
use super::json;
use super::lean::Lean;
use super::queue::backoff;
use super::resource::Resource;
use crate::packing::{Packed, Packer};

/// The server is asked to end a watch after this time.
const WATCH_TIMEOUT: Duration = Duration::from_secs(290);
/// A watch is given up when the server does not end it by then.
const WATCH_PATIENCE: Duration = Duration::from_secs(330);
/// The longest line of a watch: an object may have 1.5 MiB in etcd, and JSON on top of it.
const LINE_LIMIT: usize = 8 << 20;
/// So many states of objects are kept as trees: thousands of VMs that start at once take turns, and each would be read from
/// its text again in each of its turns otherwise (a tenth of all CPU with 1,000). A tree takes some 8 KiB.
const FRESH: usize = 16_384;
/// How many objects a list page has.
const PAGE: usize = 500;

/// One object was added (`old` absent), changed, or removed (`new` absent).
pub struct Change<'a> {
    pub key: &'a str,
    pub old: Option<&'a Old>,
    pub new: Option<&'a Arc<Value>>,
}

impl Change<'_> {
    /// The newest state that is known.
    pub fn newest(&self) -> Option<&Arc<Value>> {
        self.new.or_else(|| self.old.map(|old| &**old))
    }

    /// The same; null if there is none.
    pub fn object(&self) -> &Value {
        static NOTHING: Value = Value::Null;
        self.newest().map_or(&NOTHING, |object| object)
    }
}

/// The state before a change. It becomes a tree when somebody looks at it, which few do.
pub struct Old {
    held: Held,
    tree: OnceLock<Arc<Value>>,
}

impl Old {
    fn new(held: Held) -> Self {
        Self { held, tree: OnceLock::new() }
    }
}

impl std::ops::Deref for Old {
    type Target = Arc<Value>;

    fn deref(&self) -> &Arc<Value> {
        self.tree.get_or_init(|| self.held.tree())
    }
}

type Handler = Box<dyn Fn(&Change<'_>) + Send + Sync>;
type IndexFn = fn(&Value) -> &str;

/// All objects of one kind.
pub struct Cache {
    resource: &'static Resource,
    index_by: IndexFn,
    state: Mutex<State>,
    /// Held from a change until everybody has been told, so that changes are told in the order in
    /// which they happened: who adds up differences would count a pod that is gone otherwise.
    telling: Mutex<()>,
    handlers: RwLock<Vec<Handler>>,
    synced: watch::Sender<bool>,
}

/// An object, and the version that it is in.
struct Held {
    version: u64,
    /// Its second key.
    index: Box<str>,
    form: Form,
}

enum Form {
    Tree(Arc<Value>),
    Text(Box<[u8]>),
    Packed(Packed),
}

impl Held {
    fn tree(&self) -> Arc<Value> {
        match &self.form {
            Form::Tree(tree) => tree.clone(),
            // What was written here parses.
            Form::Text(text) => Arc::new(serde_json::from_slice(text).unwrap_or_default()),
            Form::Packed(packed) => Arc::new(serde_json::from_slice(&packed.unpack()).unwrap_or_default()),
        }
    }
}

#[derive(Default)]
struct State {
    /// In the order of their keys, so that a run can be replayed.
    objects: BTreeMap<String, Held>,
    /// What became a tree, oldest first: keys and versions.
    fresh: VecDeque<(String, u64)>,
    packer: Packer,
    index: HashMap<String, BTreeSet<String>>,
    /// The highest version that the watch has delivered.
    seen: u64,
}

impl State {
    /// Keeps a tree, and makes text of the one that has been one for longest.
    fn keep(&mut self, key: &str, held: Held) -> Option<Held> {
        self.fresh.push_back((key.to_owned(), held.version));
        if self.fresh.len() > FRESH {
            self.wither();
        }
        self.objects.insert(key.to_owned(), held)
    }

    fn wither(&mut self) {
        let Some((key, version)) = self.fresh.pop_front() else { return };
        // It may have changed since, or be gone.
        let Some(held) = self.objects.get_mut(&key).filter(|held| held.version == version) else { return };
        if let Form::Tree(tree) = &held.form {
            // A tree is always JSON.
            let text = serde_json::to_vec(&**tree).unwrap_or_default();
            held.form = match self.packer.pack(&text) {
                Some(packed) => Form::Packed(packed),
                // Copied, as an allocator leaves a text that becomes shorter in the room that it grew into.
                None => Form::Text(text.as_slice().into()),
            };
        }
    }

    fn get(&mut self, key: &str) -> Option<Arc<Value>> {
        let held = self.objects.get_mut(key)?;
        if let Form::Tree(tree) = &held.form {
            return Some(tree.clone());
        }
        let tree = held.tree();
        held.form = Form::Tree(tree.clone());
        self.fresh.push_back((key.to_owned(), held.version));
        if self.fresh.len() > FRESH {
            self.wither();
        }
        Some(tree)
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Lean,
}

/// What tells whether a line is news: the cache has most changes already, as answers to own writes.
#[derive(Deserialize)]
struct Glance<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: GlanceObject<'a>,
}

#[derive(Deserialize)]
struct GlanceObject<'a> {
    #[serde(borrow, default)]
    metadata: GlanceMetadata<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GlanceMetadata<'a> {
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the watch broke off")]
    BrokenOff(#[from] kube::Error),
    #[error("a line of the watch is no event")]
    Garbled(#[from] serde_json::Error),
    #[error("a line of the watch is longer than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("the watch ended with an error: {0}")]
    Ended(String),
}

/// The version of an object as a number; 0 when it has none.
pub fn version(object: &Value) -> u64 {
    json::text(object, "/metadata/resourceVersion").parse().unwrap_or(0)
}

impl Cache {
    /// An empty cache. `index_by` gives each object a second key (for example the uid of its
    /// owner) for [`Cache::indexed`]; an empty one is not indexed.
    pub fn new(resource: &'static Resource, index_by: IndexFn) -> Arc<Self> {
        Arc::new(Self {
            resource,
            index_by,
            state: Mutex::default(),
            telling: Mutex::default(),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn resource(&self) -> &'static Resource {
        self.resource
    }

    /// Calls a function for every object that is there, and for every change from now on. It must be
    /// quick, as it runs between two events, and must not [`Cache::observe`] anything.
    pub fn on_change(&self, handler: impl Fn(&Change<'_>) + Send + Sync + 'static) {
        // Nobody is told anything meanwhile, so that nothing is missed; what changed just before is
        // told twice at worst.
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        let present: Vec<_> =
            self.state().objects.iter().map(|(key, held)| (key.clone(), held.tree())).collect();
        for (key, object) in &present {
            handler(&Change { key, old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    pub fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.state().get(key)
    }

    /// Every object, in the order of their keys.
    pub fn all(&self) -> Vec<Arc<Value>> {
        self.state().objects.values().map(Held::tree).collect()
    }

    /// The objects whose second key is this, ordered by key.
    pub fn indexed(&self, index: &str) -> Vec<Arc<Value>> {
        let state = self.state();
        let Some(keys) = state.index.get(index) else { return Vec::new() };
        keys.iter().filter_map(|key| state.objects.get(key).map(Held::tree)).collect()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Takes in the answer to an own write, unless the watch is already past it.
    pub fn observe(&self, object: impl Into<Arc<Value>>) {
        let object = object.into();
        let version = version(&object);
        self.store(object, version, false);
    }

    /// Lists and watches until `stop`.
    pub async fn run(self: Arc<Self>, client: Client, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let round = async {
                let from = self.list(&client).await?;
                self.synced.send_replace(true);
                self.watch(&client, from).await
            };
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = round => result,
            };
            failures = match result {
                Ok(()) => 0,
                Err(error) => {
                    tracing::debug!(resource = self.resource.plural, %error, "listing again");
                    failures + 1
                }
            };
            // At least a moment, so that a server that ends every watch at once is not flooded.
            let pause = backoff(failures.max(5)).min(Duration::from_secs(30));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn list(&self, client: &Client) -> Result<String, WatchError> {
        let mut found = Vec::new();
        let mut token = String::new();
        let at = loop {
            let mut path = format!("{}?limit={PAGE}", self.resource.path("", "", ""));
            if !token.is_empty() {
                path.push_str("&continue=");
                path.push_str(&token);
            }
            let mut page = client.get(None, &path).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                found.extend(items);
            }
            json::text(&page, "/metadata/continue").clone_into(&mut token);
            if token.is_empty() {
                break json::text(&page, "/metadata/resourceVersion").to_owned();
            }
        };
        self.replace(found, at.parse().unwrap_or(0));
        Ok(at)
    }

    /// Watches until the server ends the watch, and goes on from there, until the history is gone.
    async fn watch(&self, client: &Client, mut from: String) -> Result<(), WatchError> {
        loop {
            let path = format!(
                "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={from}",
                self.resource.path("", "", ""),
                WATCH_TIMEOUT.as_secs(),
            );
            let mut body = client.open(&path).await?;
            let started = from.clone();
            let mut buffer = Vec::new();
            let deadline = tokio::time::Instant::now() + WATCH_PATIENCE;
            while let Ok(Some(frame)) = tokio::time::timeout_at(deadline, body.frame()).await {
                let Ok(data) = frame?.into_data() else { continue };
                buffer.extend_from_slice(&data);
                let mut start = 0;
                while let Some(length) = buffer[start..].iter().position(|byte| *byte == b'\n') {
                    let line = &buffer[start..start + length];
                    if !line.is_empty() && !self.knows(serde_json::from_slice(line)?, &mut from) {
                        self.apply(serde_json::from_slice(line)?, &mut from)?;
                    }
                    start += length + 1;
                }
                buffer.drain(..start);
                if buffer.len() > LINE_LIMIT {
                    return Err(WatchError::TooLong);
                }
            }
            if from == started {
                // Nothing in a whole watch, not even a bookmark: the version may be out of history.
                return Ok(());
            }
        }
    }

    /// Whether the object of a line is here already, in this version or a later one.
    fn knows(&self, line: Glance<'_>, from: &mut String) -> bool {
        if !matches!(&*line.kind, "ADDED" | "MODIFIED") {
            return false;
        }
        let metadata = line.object.metadata;
        let (key, text) = (json::join_key(&metadata.namespace, &metadata.name), metadata.resource_version);
        let version = text.parse().unwrap_or(0);
        let mut state = self.state();
        if state.objects.get(&key).is_none_or(|held| held.version < version) {
            return false;
        }
        state.seen = state.seen.max(version);
        text.as_ref().clone_into(from);
        true
    }

    fn apply(&self, line: Line, from: &mut String) -> Result<(), WatchError> {
        if line.kind == "ERROR" {
            return Err(WatchError::Ended(json::text(&line.object.0, "/message").to_owned()));
        }
        let object = line.object.0;
        let version = version(&object);
        json::text(&object, "/metadata/resourceVersion").clone_into(from);
        match line.kind.as_str() {
            "ADDED" | "MODIFIED" => self.store(object, version, true),
            "DELETED" => self.discard(&object, version),
            _ => {
                let mut state = self.state();
                state.seen = state.seen.max(version);
            }
        }
        Ok(())
    }

    /// Takes an object in, from the watch or a list (`listed`) or from the answer to an own write.
    fn store(&self, new: impl Into<Arc<Value>>, version: u64, listed: bool) {
        let new = new.into();
        let key = json::key(&new);
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.state();
            // The watch is past it: what it says of this object is newer, even if it is that there is none.
            if !listed && version <= state.seen {
                return;
            }
            if listed {
                state.seen = state.seen.max(version);
            }
            if state.objects.get(&key).is_some_and(|have| have.version >= version) {
                return;
            }
            let index: Box<str> = (self.index_by)(&new).into();
            let held = Held { version, index: index.clone(), form: Form::Tree(new.clone()) };
            let old = state.keep(&key, held).map(Old::new);
            reindex(&mut state, &key, old.as_ref(), &index);
            old
        };
        self.tell(&Change { key: &key, old: old.as_ref(), new: Some(&new) });
    }

    fn discard(&self, object: &Value, version: u64) {
        let key = json::key(object);
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.state();
            // In one step with the removal: an answer that came in between would bring the object back for good.
            state.seen = state.seen.max(version);
            // An object of the same name that was made since then stays.
            let newer = state.objects.get(&key).is_some_and(|have| have.version > version);
            if newer {
                return;
            }
            let Some(old) = state.objects.remove(&key).map(Old::new) else { return };
            reindex(&mut state, &key, Some(&old), "");
            old
        };
        self.tell(&Change { key: &key, old: Some(&old), new: None });
    }

    fn replace(&self, found: Vec<Value>, at: u64) {
        let mut gone: BTreeSet<String> = {
            let mut state = self.state();
            state.seen = state.seen.max(at);
            state.objects.keys().cloned().collect()
        };
        for object in found {
            gone.remove(&json::key(&object));
            let version = version(&object);
            self.store(object, version, true);
        }
        for key in gone {
            // What an own write put here after the list was made is newer than the list.
            let old = self.state().objects.get(&key).filter(|held| held.version <= at).map(Held::tree);
            if let Some(object) = old {
                self.discard(&object, at);
            }
        }
    }

    fn tell(&self, change: &Change<'_>) {
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(change);
        }
    }
}

/// Gives an object its new second key; none when it is empty.
fn reindex(state: &mut State, key: &str, old: Option<&Old>, new: &str) {
    let old = old.map_or("", |old| &*old.held.index);
    if old == new {
        return;
    }
    if let Some(keys) = state.index.get_mut(old) {
        keys.remove(key);
        if keys.is_empty() {
            state.index.remove(old);
        }
    }
    if !new.is_empty() {
        state.index.entry(new.to_owned()).or_default().insert(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;
    use crate::sim::resource::PODS;

    fn pod(name: &str, owner: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string(),
            "ownerReferences": [{"controller": true, "uid": owner}]}})
    }

    fn event(cache: &Cache, kind: &str, object: Value) {
        let mut from = String::new();
        cache.apply(Line { kind: kind.into(), object: Lean(object) }, &mut from).unwrap();
    }

    #[test]
    fn answers_to_own_writes_never_turn_time_back() {
        let cache = Cache::new(&PODS, json::controller_uid);
        event(&cache, "ADDED", pod("a", "x", 5));
        cache.observe(pod("a", "x", 7));
        assert_eq!(version(&cache.get("ns/a").unwrap()), 7, "an own write is read at once");
        event(&cache, "MODIFIED", pod("a", "x", 6));
        assert_eq!(version(&cache.get("ns/a").unwrap()), 7, "the watch runs behind");
        event(&cache, "DELETED", pod("a", "x", 9));
        cache.observe(pod("a", "x", 8));
        assert!(cache.get("ns/a").is_none(), "an answer that comes late does not bring it back");
        assert!(cache.indexed("x").is_empty());
    }

    #[test]
    fn a_late_listener_hears_of_everything_that_is_there() {
        let cache = Cache::new(&PODS, json::controller_uid);
        event(&cache, "ADDED", pod("a", "x", 5));
        let heard: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let notes = heard.clone();
        cache.on_change(move |change| notes.lock().unwrap().push(change.key.to_owned()));
        event(&cache, "ADDED", pod("b", "x", 6));
        assert_eq!(*heard.lock().unwrap(), ["ns/a", "ns/b"]);
    }

    /// A pod that came back like this kept the finalizer of its VMI on for ever.
    #[test]
    fn whoever_hears_of_a_removal_finds_the_cache_past_it() {
        let cache = Cache::new(&PODS, json::controller_uid);
        event(&cache, "ADDED", pod("a", "x", 5));
        let heard: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
        let (notes, weak) = (heard.clone(), Arc::downgrade(&cache));
        cache.on_change(move |change| {
            let Some(cache) = weak.upgrade().filter(|_| change.new.is_none()) else { return };
            notes.lock().unwrap().push(cache.state().seen);
        });
        event(&cache, "DELETED", pod("a", "x", 9));
        assert_eq!(*heard.lock().unwrap(), [9], "an answer of version 8 or 9 that comes now is late");
    }

    #[test]
    fn late_answers_race_removals_and_lose() {
        let cache = Cache::new(&PODS, json::controller_uid);
        let told: Arc<std::sync::Mutex<BTreeSet<String>>> = Arc::default();
        let there = told.clone();
        cache.on_change(move |change| {
            let mut there = there.lock().unwrap();
            if change.new.is_some() {
                there.insert(change.key.into())
            } else {
                there.remove(change.key)
            };
        });
        let (watch, answers) = (cache.clone(), cache.clone());
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let (left, right) = (barrier.clone(), barrier);
        let watching = std::thread::spawn(move || {
            for round in 0..2000 {
                event(&watch, "ADDED", pod("a", "x", 10 * round + 1));
                left.wait();
                event(&watch, "DELETED", pod("a", "x", 10 * round + 9));
                left.wait(); // what is left is looked at now
                left.wait();
            }
        });
        for round in 0..2000 {
            right.wait();
            answers.observe(pod("a", "x", 10 * round + 8));
            answers.observe(pod("a", "x", 10 * round + 9));
            right.wait();
            assert!(cache.get("ns/a").is_none(), "round {round}");
            assert!(told.lock().unwrap().is_empty(), "told in another order than it happened, round {round}");
            right.wait();
        }
        watching.join().unwrap();
    }

    #[test]
    fn what_nobody_looks_at_is_kept_as_text_and_is_the_same() {
        let cache = Cache::new(&PODS, json::controller_uid);
        let count = FRESH + 44;
        for number in 0..count {
            event(&cache, "ADDED", pod(&format!("p{number}"), "x", number as u64 + 1));
        }
        let texts = || {
            let is_text = |held: &&Held| !matches!(held.form, Form::Tree(_));
            cache.state().objects.values().filter(is_text).count()
        };
        assert_eq!(texts(), 44);
        assert_eq!(*cache.get("ns/p0").unwrap(), pod("p0", "x", 1));
        assert_eq!(texts(), 44, "who is asked for takes the place of another");
        assert_eq!(cache.all().len(), count);
        assert_eq!(cache.indexed("x").len(), count);
        cache.replace(Vec::new(), count as u64 + 1);
        assert!(cache.all().is_empty());
    }

    #[test]
    fn a_new_list_removes_what_is_gone_and_keeps_what_is_newer() {
        let cache = Cache::new(&PODS, json::controller_uid);
        event(&cache, "ADDED", pod("gone", "x", 3));
        event(&cache, "ADDED", pod("stays", "x", 4));
        cache.observe(pod("fresh", "x", 12));
        cache.replace(vec![pod("stays", "y", 9)], 10);
        assert!(cache.get("ns/gone").is_none());
        assert!(cache.get("ns/fresh").is_some());
        let keys =
            |index| cache.indexed(index).iter().map(|pod| json::name(pod).to_owned()).collect::<Vec<_>>();
        assert_eq!((keys("x"), keys("y")), (vec!["fresh".to_owned()], vec!["stays".to_owned()]));
    }
}
