//! A watch cache of one kind of object, shared by every controller of the process, over any API
//! server: list, then watch, and list again when the history is gone.
//!
//! ```text
//!  list ──► watch ──(event)──► watch …
//!   ▲         │
//!   └── 410, end of stream, broken connection (with back-off)
//! ```
//!
//! Answers to own writes are put into the cache at once ([`Cache::observe`]), so that a controller
//! reads what it has written. Resource versions are compared as numbers, which the API conventions
//! allow since Kubernetes 1.35 (KEP-5504).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError};
use super::json;
use super::lean::Lean;
use super::queue::backoff;
use super::resource::Resource;

/// The server is asked to end a watch after this time.
const WATCH_TIMEOUT: Duration = Duration::from_secs(290);
/// A watch is given up when the server does not end it by then.
const WATCH_PATIENCE: Duration = Duration::from_secs(330);
/// The longest line of a watch: an object may have 1.5 MiB in etcd, and JSON on top of it.
const LINE_LIMIT: usize = 8 << 20;
/// How many objects a list page has.
const PAGE: usize = 500;

/// One object was added (`old` absent), changed, or removed (`new` absent).
pub struct Change<'a> {
    pub key: &'a str,
    pub old: Option<&'a Arc<Value>>,
    pub new: Option<&'a Arc<Value>>,
}

impl Change<'_> {
    /// The newest state that is known.
    pub fn object(&self) -> &Value {
        static NOTHING: Value = Value::Null;
        self.new.or(self.old).map_or(&NOTHING, |object| object)
    }
}

type Handler = Box<dyn Fn(&Change<'_>) + Send + Sync>;
type IndexFn = fn(&Value) -> &str;

/// All objects of one kind.
pub struct Cache {
    resource: &'static Resource,
    index_by: IndexFn,
    state: RwLock<State>,
    /// Held from a change until everybody has been told, so that changes are told in the order in
    /// which they happened: who adds up differences would count a pod that is gone otherwise.
    telling: Mutex<()>,
    handlers: RwLock<Vec<Handler>>,
    synced: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// In the order of their keys, so that a run can be replayed.
    objects: BTreeMap<String, Arc<Value>>,
    index: HashMap<String, BTreeSet<String>>,
    /// The highest version that the watch has delivered.
    seen: u64,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Lean,
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
            state: RwLock::default(),
            telling: Mutex::default(),
            handlers: RwLock::default(),
            synced: watch::Sender::new(false),
        })
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
        let present = self.state.read().unwrap_or_else(PoisonError::into_inner).objects.clone();
        for (key, object) in &present {
            handler(&Change { key, old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    pub fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).objects.get(key).cloned()
    }

    /// Every object, in the order of their keys.
    pub fn all(&self) -> Vec<Arc<Value>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).objects.values().cloned().collect()
    }

    /// The objects whose second key is this, ordered by key.
    pub fn indexed(&self, index: &str) -> Vec<Arc<Value>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = state.index.get(index) else { return Vec::new() };
        keys.iter().filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Takes in the answer to an own write, unless the watch is already past it.
    pub fn observe(&self, object: Value) {
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
                    if !line.is_empty() {
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
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.seen = state.seen.max(version);
            }
        }
        Ok(())
    }

    /// Takes an object in, from the watch or a list (`listed`) or from the answer to an own write.
    fn store(&self, object: Value, version: u64, listed: bool) {
        let (key, new) = (json::key(&object), Arc::new(object));
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            // The watch is past it: what it says of this object is newer, even if it is that there is none.
            if !listed && version <= state.seen {
                return;
            }
            if listed {
                state.seen = state.seen.max(version);
            }
            if state.objects.get(&key).is_some_and(|have| self::version(have) >= version) {
                return;
            }
            let old = state.objects.insert(key.clone(), new.clone());
            self.reindex(&mut state, &key, old.as_deref(), Some(&new));
            old
        };
        self.tell(&Change { key: &key, old: old.as_ref(), new: Some(&new) });
    }

    fn discard(&self, object: &Value, version: u64) {
        let key = json::key(object);
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            // In one step with the removal: an answer that came in between would bring the object back for good.
            state.seen = state.seen.max(version);
            // An object of the same name that was made since then stays.
            let newer = state.objects.get(&key).is_some_and(|have| self::version(have) > version);
            if newer {
                return;
            }
            let Some(old) = state.objects.remove(&key) else { return };
            self.reindex(&mut state, &key, Some(&old), None);
            old
        };
        self.tell(&Change { key: &key, old: Some(&old), new: None });
    }

    fn replace(&self, found: Vec<Value>, at: u64) {
        let mut gone: BTreeMap<String, Arc<Value>> = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.seen = state.seen.max(at);
            state.objects.clone()
        };
        for object in found {
            gone.remove(&json::key(&object));
            let version = version(&object);
            self.store(object, version, true);
        }
        for object in gone.into_values() {
            // What an own write put here after the list was made is newer than the list.
            if version(&object) <= at {
                self.discard(&object, at);
            }
        }
    }

    fn reindex(&self, state: &mut State, key: &str, old: Option<&Value>, new: Option<&Value>) {
        let (old, new) = (old.map_or("", self.index_by), new.map_or("", self.index_by));
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

    fn tell(&self, change: &Change<'_>) {
        for handler in self.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            notes.lock().unwrap().push(cache.state.read().unwrap().seen);
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
