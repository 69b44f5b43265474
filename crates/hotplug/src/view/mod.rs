//! Views of pods, VMIs and nodes that borrow from JSON. A view never fails: what is missing or of
//! the wrong kind is empty, as in an object that its controller has not finished.

mod instance;
mod node;
mod pod;

pub use instance::{Instance, Migration, Phase, SpecVolume, VolumeStatus};
pub use node::Node;
pub use pod::{AttachmentPod, Launcher, PodPhase, PodVolume, Usage};

use jiff::Timestamp;
use serde_json::Value;

use crate::Seconds;

/// A string at a path, or nothing.
pub(crate) fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// What stands at a path.
pub(crate) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// The list at a path, or none.
pub(crate) fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A time at a path.
pub(crate) fn time(object: &Value, path: &[&str]) -> Option<Seconds> {
    at(object, path)?.as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// Whether an annotation (or label) says `true`.
pub(crate) fn says_true(object: &Value, field: &str, key: &str) -> bool {
    text(object, &["metadata", field, key]) == "true"
}

/// A time as people and `metav1.Time` write it.
pub fn rfc3339(seconds: Seconds) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}
