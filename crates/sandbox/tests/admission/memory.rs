//! A store for tests: objects in a map.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use apimachinery::tree::Value;
use sandbox::objects::Objects;

type Key = (String, String, String, String);

/// Objects by group, resource, namespace and name.
#[derive(Debug, Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<Key, Arc<Value>>>,
    revisions: Mutex<BTreeMap<(String, String), u64>>,
}

impl Memory {
    /// Adds or replaces an object.
    pub fn put(&self, group: &str, resource: &str, object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (group.to_owned(), resource.to_owned(), text("namespace"), text("name"));
        self.objects.lock().unwrap().insert(key, Arc::new(object));
        *self.revisions.lock().unwrap().entry((group.into(), resource.into())).or_default() += 1;
    }
}

impl Objects for Memory {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (group.to_owned(), resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.objects.lock().unwrap().get(&key).cloned()
    }

    fn list(&self, group: &str, resource: &str) -> Vec<Arc<Value>> {
        let objects = self.objects.lock().unwrap();
        let of_kind = objects.iter().filter(|(key, _)| key.0 == group && key.1 == resource);
        of_kind.map(|(_, object)| Arc::clone(object)).collect()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        self.revisions.lock().unwrap().get(&(group.into(), resource.into())).copied().unwrap_or_default()
    }
}
