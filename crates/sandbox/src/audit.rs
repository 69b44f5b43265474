//! The audit log: one `audit.k8s.io/v1` event a line, as a real API server writes them with `--audit-log-path`.
//!
//! Requests never wait for it: events go through a bounded queue, and those that do not fit are counted and dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use jiff::Timestamp;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWriteExt as _, BufWriter};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::attributes::{Attributes, User};
use crate::auth::user_info;
use crate::clock::micros;

/// Events that wait to be written.
const QUEUE: usize = 4096;
/// A file of this size becomes `<name>.1`, in place of an earlier one.
const FILE_MAX: u64 = 100 * 1024 * 1024;

/// How much is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// Who did what, when, and how it ended.
    Metadata,
    /// Also what was sent; never the bodies of secrets and tokens.
    Request,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// The answer's `Audit-Id`.
    pub id: &'a str,
    /// What was asked, by whom it counts (after impersonation).
    pub attributes: &'a Attributes,
    /// Who really asked, when that is another.
    pub impersonator: Option<&'a User>,
    /// Path and query.
    pub uri: &'a str,
    /// What the client calls itself.
    pub user_agent: &'a str,
    /// The client's address, without port.
    pub source: &'a str,
    /// The body, decoded.
    pub object: Option<&'a Value>,
    /// The answer's code.
    pub code: u16,
    /// The answer's failure.
    pub failure: Option<&'a Status>,
    /// From admission.
    pub annotations: &'a BTreeMap<String, String>,
    /// When the request came.
    pub received: Timestamp,
    /// When the answer was ready.
    pub answered: Timestamp,
}

impl Event<'_> {
    /// The event as it is written at a level.
    pub fn to_json(&self, level: Level) -> Value {
        let attributes = self.attributes;
        // `user` is who sent the request, `impersonatedUser` for whom
        let user = user_info(self.impersonator.unwrap_or(&attributes.user));
        let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1",
            "level": if level == Level::Request { "Request" } else { "Metadata" }, "auditID": self.id,
            "stage": "ResponseComplete", "requestURI": self.uri, "verb": attributes.verb, "user": user,
            "sourceIPs": [self.source], "userAgent": self.user_agent,
            "responseStatus": self.outcome(), "requestReceivedTimestamp": micros(self.received),
            "stageTimestamp": micros(self.answered)});
        if self.impersonator.is_some() {
            event["impersonatedUser"] = user_info(&attributes.user);
        }
        if !attributes.resource.is_empty() {
            event["objectRef"] = reference(attributes);
        }
        if let Some(object) = self.object.filter(|_| level == Level::Request && !is_confidential(attributes))
        {
            event["requestObject"] = object.clone();
        }
        if !self.annotations.is_empty() {
            event["annotations"] = json!(self.annotations);
        }
        event
    }

    fn outcome(&self) -> Value {
        let mut out = json!({"metadata": {}, "code": self.code});
        if let Some(failure) = self.failure {
            out["status"] = "Failure".into();
            out["message"] = failure.message.as_str().into();
            if !failure.reason.is_empty() {
                out["reason"] = failure.reason.as_ref().into();
            }
        }
        out
    }
}

fn reference(attributes: &Attributes) -> Value {
    let fields = [
        ("resource", &attributes.resource),
        ("namespace", &attributes.namespace),
        ("name", &attributes.name),
        ("apiGroup", &attributes.group),
        ("apiVersion", &attributes.version),
        ("subresource", &attributes.subresource),
    ];
    let present = fields.into_iter().filter(|(_, value)| !value.is_empty());
    Value::Object(present.map(|(name, value)| (name, value.as_str())).collect())
}

/// Whether a request's body carries credentials.
fn is_confidential(attributes: &Attributes) -> bool {
    matches!(attributes.resource.as_str(), "secrets" | "tokenreviews") || attributes.subresource == "token"
}

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open audit log {}", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// A log in memory grows to this size; what comes after that is dropped.
const LOG_MAX: usize = 1 << 30;

/// A log in memory. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What was written so far, a line of JSON for each event.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, line: &[u8]) -> bool {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = written.len() + line.len() <= LOG_MAX;
        if fits {
            written.extend_from_slice(line);
        }
        fits
    }
}

#[derive(Debug)]
enum Sink {
    File(mpsc::Sender<Vec<u8>>),
    Memory(Log),
}

/// The log. Dropping it ends the file once everything is written.
#[derive(Debug)]
pub struct Audit {
    level: Level,
    sink: Sink,
    dropped: Arc<AtomicU64>,
}

impl Audit {
    /// Appends to a file, readable by its owner only. The task ends after the log is dropped and everything is written.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub async fn to_file(path: &Path, level: Level) -> Result<(Self, JoinHandle<()>), Error> {
        let failed = |source| Error { path: path.to_owned(), source };
        let file = open(path).await.map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        let (queue, events) = mpsc::channel(QUEUE);
        let writer = Writer { path: path.to_owned(), file: BufWriter::new(file), size };
        let task = tokio::spawn(writer.run(events));
        Ok((Self { level, sink: Sink::File(queue), dropped: Arc::default() }, task))
    }

    /// Writes to a log in memory.
    pub fn to_log(level: Level, log: Log) -> Self {
        Self { level, sink: Sink::Memory(log), dropped: Arc::default() }
    }

    /// Queues an event; drops it when the queue is full.
    pub fn record(&self, event: &Event<'_>) {
        let mut line = event.to_json(self.level).to_string().into_bytes();
        line.push(b'\n');
        let written = match &self.sink {
            Sink::File(queue) => queue.try_send(line).is_ok(),
            Sink::Memory(log) => log.write(&line),
        };
        if !written && self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("audit log cannot keep up: events are dropped");
        }
    }

    /// Events that were not written because the queue was full or the file could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<Vec<u8>>) {
        while let Some(line) = events.recv().await {
            if let Err(error) = self.write(&line, events.is_empty()).await {
                // closing the queue makes every further event count as dropped
                tracing::error!(path = %self.path.display(), %error, "audit log cannot be written, no more is");
                return;
            }
        }
    }

    async fn write(&mut self, line: &[u8], last: bool) -> std::io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > FILE_MAX {
            self.file.flush().await?;
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            tokio::fs::rename(&self.path, old).await?;
            self.file = BufWriter::new(open(&self.path).await?);
            self.size = 0;
        }
        self.file.write_all(line).await?;
        self.size += length;
        if last { self.file.flush().await } else { Ok(()) }
    }
}

async fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(
        attributes: &'a Attributes,
        object: &'a Value,
        annotations: &'a BTreeMap<String, String>,
    ) -> Event<'a> {
        Event {
            id: "a-1",
            attributes,
            impersonator: None,
            uri: "/api/v1/namespaces/n/configmaps?dryRun=All",
            user_agent: "kubectl",
            source: "127.0.0.1",
            object: Some(object),
            code: 201,
            failure: None,
            annotations,
            received: "2026-11-21T01:15:51Z".parse().unwrap(),
            answered: "2026-11-21T01:15:51.5Z".parse().unwrap(),
        }
    }

    fn create(resource: &str) -> Attributes {
        Attributes {
            user: User { name: "bob".into(), ..User::default() },
            verb: "create".into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: "n".into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn bodies_are_written_at_level_request_but_never_those_of_secrets() {
        let (body, none) = (json!({"data": {"k": "c2VjcmV0"}}), BTreeMap::new());
        let configmaps = create("configmaps");
        let got = event(&configmaps, &body, &none).to_json(Level::Request);
        let want = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Request", "auditID": "a-1",
            "stage": "ResponseComplete", "requestURI": "/api/v1/namespaces/n/configmaps?dryRun=All", "verb": "create",
            "user": {"username": "bob"}, "sourceIPs": ["127.0.0.1"], "userAgent": "kubectl",
            "objectRef": {"resource": "configmaps", "namespace": "n", "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 201}, "requestObject": body,
            "requestReceivedTimestamp": "2026-11-21T01:15:51.000000Z", "stageTimestamp": "2026-11-21T01:15:51.500000Z"});
        assert_eq!(got, want);
        assert!(event(&configmaps, &body, &none).to_json(Level::Metadata)["requestObject"].is_null());
        let token = Attributes { subresource: "token".into(), ..create("serviceaccounts") };
        for attributes in [create("secrets"), create("tokenreviews"), token] {
            let got = event(&attributes, &body, &none).to_json(Level::Request);
            assert!(!got.to_string().contains("c2VjcmV0"), "{got}");
        }
    }

    #[test]
    fn impersonation_and_failures_are_named() {
        let (body, none) = (Value::Null, BTreeMap::from([("w/why".to_owned(), "x".to_owned())]));
        let (attributes, admin) = (create("pods"), User { name: "admin".into(), ..User::default() });
        let failure = Status::new(403, "Forbidden", "no");
        let event = Event {
            impersonator: Some(&admin),
            failure: Some(&failure),
            code: 403,
            ..event(&attributes, &body, &none)
        };
        let got = event.to_json(Level::Metadata);
        assert_eq!(
            (&got["user"]["username"], &got["impersonatedUser"]["username"]),
            (&json!("admin"), &json!("bob"))
        );
        assert_eq!(
            got["responseStatus"],
            json!({"metadata": {}, "code": 403, "status": "Failure", "message": "no", "reason": "Forbidden"})
        );
        assert_eq!(got["annotations"], json!({"w/why": "x"}));
    }

    #[tokio::test]
    async fn every_event_is_a_line_and_none_is_lost_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (audit, task) = Audit::to_file(&path, Level::Request).await.unwrap();
        let (attributes, body, none) = (create("configmaps"), json!({}), BTreeMap::new());
        for _ in 0..100 {
            audit.record(&event(&attributes, &body, &none));
        }
        drop(audit);
        task.await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 100);
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
        assert!(Audit::to_file(&dir.path().join("absent/audit.log"), Level::Metadata).await.is_err());
    }
}
