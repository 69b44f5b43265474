//! Events, as client-go's recorder writes them: beside the work, never in its way, repeated ones
//! counted instead of created again.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::identity::Identity;
use super::json::{self, micro_time, time};
use super::node::draw;
use super::resource::EVENTS;
use super::write::{Op, Write};

/// Notes that wait to be written; more are dropped, as the real recorder does.
const WAITING: usize = 100_000;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 4096;
/// How many event writers work at once.
const WRITERS: usize = 4;

/// Something worth telling people about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
    /// The object that it is about, as an `ObjectReference`.
    pub about: Value,
}

impl Note {
    pub fn normal(object: &Value, reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into(), about: reference(object) }
    }

    pub fn warning(object: &Value, reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, ..Self::normal(object, reason, message) }
    }
}

fn reference(object: &Value) -> Value {
    let mut about = json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "name": json::name(object),
        "uid": json::uid(object), "resourceVersion": json::text(object, "/metadata/resourceVersion")});
    if !json::namespace(object).is_empty() {
        about["namespace"] = json::namespace(object).into();
    }
    about
}

/// Writes notes of every component.
#[derive(Clone)]
pub struct Recorder(Arc<[mpsc::Sender<Waiting>]>);

/// A note, and in whose name it is written.
type Waiting = (Identity, &'static str, Note);

impl Recorder {
    /// Starts the writers.
    pub fn start(client: &Client, stop: &CancellationToken) -> Self {
        let writers = (0..WRITERS).map(|_| {
            let (sender, notes) = mpsc::channel(WAITING / WRITERS);
            tokio::spawn(write_notes(client.clone(), notes, stop.clone()));
            sender
        });
        Self(writers.collect())
    }

    /// Writes a note in the name of a component, some time soon.
    pub fn note(&self, who: &Identity, component: &'static str, note: Note) {
        // Notes about one object go through one writer, so that repetitions are seen.
        let lane =
            json::text(&note.about, "/uid").bytes().fold(0_usize, |sum, byte| sum.wrapping_add(byte.into()));
        if self.0[lane % self.0.len()].try_send((who.clone(), component, note)).is_err() {
            tracing::debug!(component, "too many events wait, one is dropped");
        }
    }
}

async fn write_notes(client: Client, mut notes: mpsc::Receiver<Waiting>, stop: CancellationToken) {
    let mut known: HashMap<(String, &'static str, String), (String, u32)> = HashMap::new();
    loop {
        let (who, component, note) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            note = notes.recv() => match note {
                Some(note) => note,
                None => return,
            },
        };
        let now = client.now();
        let fingerprint = (json::text(&note.about, "/uid").to_owned(), note.reason, note.message.clone());
        let namespace = match json::text(&note.about, "/namespace") {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        let write = if let Some((name, count)) = known.get_mut(&fingerprint) {
            *count += 1;
            let body = json!({"count": count, "lastTimestamp": time(now)});
            Write {
                resource: &EVENTS,
                namespace,
                name: name.clone(),
                subresource: "",
                op: Op::StrategicPatch(body),
            }
        } else {
            let event = event(&note, component, &namespace, now);
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(fingerprint.clone(), (json::name(&event).to_owned(), 1));
            Write::create(&EVENTS, event)
        };
        if let Err(error) = write.send(&client, &who).await {
            known.remove(&fingerprint);
            tracing::debug!(component, %error, "an event is lost");
        }
    }
}

/// The Event object; its name ends in the time in nanoseconds, as client-go names it.
fn event(note: &Note, component: &str, namespace: &str, now: Timestamp) -> Value {
    let nanos = u64::try_from(now.as_nanosecond()).unwrap_or_default();
    let salt = draw(nanos, note.message.len() as u64) & 0xfff;
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", json::text(&note.about, "/name"), nanos ^ salt), "namespace": namespace},
        "involvedObject": note.about,
        "reason": note.reason,
        "message": note.message,
        "type": if note.warning { "Warning" } else { "Normal" },
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
        "firstTimestamp": time(now),
        "lastTimestamp": time(now),
        "count": 1,
        "eventTime": if component == "default-scheduler" { micro_time(now).into() } else { Value::Null },
        "action": if component == "default-scheduler" { "Binding" } else { "" },
    })
}
