//! watch: a cursor in a kind's history, turned into lines.
//!
//! ```text
//! start ──► [initial objects ──► initial-events-end bookmark] ──► changes ⇄ waiting ──► end
//! ```
//! The end comes with `timeoutSeconds`, with the server's shutdown, or when the peer reads so
//! slowly that the history has moved past its cursor.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use bytes::Bytes;
use tokio::time::Instant;

use super::admit::attributes;
use super::negotiate::Form;
use super::present::Presenter;
use super::query::{Selection, invalid_options};
use super::read::{FUTURE, too_large};
use super::reply::{self, Reply};
use super::{Api, Call};
use crate::attributes::Attributes;
use crate::faults::RunningWatch;
use crate::store::{Cursor, Error, Event, EventType, Stored, line};

/// Changes taken from the history at once.
const BATCH: usize = 256;
/// A busy watch sends what has happened in so much time together: a thousand events a second to each of
/// fifty watches would be as many packets otherwise. A quiet one sends at once.
const PACE: Duration = Duration::from_millis(4);
/// Bytes that are sent together.
const FRAME: usize = 64 << 10;
/// What was sent before a break goes out in this time: a broken connection takes along what it has not sent.
const FLUSH: Duration = Duration::from_millis(5);
/// Time between bookmarks of a quiet watch.
const BOOKMARK: Duration = Duration::from_mins(1);
/// A watch without `timeoutSeconds` ends after this and up to as much again.
const LIFETIME: u64 = 1800;

impl Api {
    /// `GET …?watch=true`
    ///
    /// # Errors
    /// 400, 422, 500 for bad options; what is wrong later comes as an ERROR event.
    pub async fn watch(self: &Arc<Self>, call: &Call) -> Result<Reply, Status> {
        let mut selection = call.query.selection(&call.kind)?;
        if !call.target.name.is_empty() {
            selection = selection.only(&call.target.name);
        }
        let start = Start::of(call)?;
        let asked = attributes(call, "watch");
        let faults = self.faults.watch(asked.clone());
        let presenter = call.presenter(self);
        let mut watcher = Watcher {
            api: self.clone(),
            namespace: call.namespace().map(str::to_owned),
            selection,
            initial: Vec::new().into_iter(),
            announce: false,
            lines: VecDeque::new(),
            cursor: None,
            bookmarks: call.query.flag("allowWatchBookmarks"),
            columns: true,
            deadline: Instant::now() + self.lifetime(call)?,
            sent: None,
            presenter,
        };
        match start {
            Start::Everything { announce, at_least } => {
                let ready = match self.reached(at_least).await {
                    Ok(()) => self.is_fresh(call, &asked).await,
                    late => late,
                };
                if let Err(status) = ready {
                    return Ok(error_event(&status));
                }
                let (objects, cursor) = self.store.follow(&call.kind.storage, call.namespace());
                watcher.initial = objects.into_iter();
                watcher.cursor = Some(cursor);
                watcher.announce = announce;
            }
            Start::After(version) if self.faults.is_gone(&asked) => {
                let floor = self.store.version();
                return Ok(error_event(&expired(&Error::Expired { asked: version, floor })));
            }
            Start::After(version) if version > self.store.version() => {
                return Ok(error_event(&too_large(version, self.store.version())));
            }
            Start::After(version) => match self.store.follow_from(&call.kind.storage, version) {
                Ok(cursor) => watcher.cursor = Some(cursor),
                Err(error) => return Ok(error_event(&expired(&error))),
            },
        }
        let stream = futures::stream::unfold(Some((watcher, faults)), |watch| async move {
            let (mut watcher, faults) = watch?;
            match through(&mut watcher, &faults).await? {
                Ok(frame) => Some((Ok(frame), Some((watcher, faults)))),
                // Nothing comes after a break.
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(reply::json_results(stream))
    }

    /// Whether the cache of a kind is known to be as far as etcd when a watch starts from now. An etcd that does not
    /// tell its progress (`RequestWatchProgress`) refuses streaming lists, and leaves the cache of a kind waiting
    /// that nothing has happened to (`cacher.go`, 1.36).
    ///
    /// # Errors
    /// 500 or 504.
    async fn is_fresh(&self, call: &Call, asked: &Attributes) -> Result<(), Status> {
        if !self.faults.lacks_progress(|| asked.clone()) || call.query.get("resourceVersion") == Some("0") {
            return Ok(());
        }
        if call.query.flag("sendInitialEvents") {
            let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
            return Err(Status::new(500, "InternalError", message));
        }
        let now = self.store.version();
        let mut changes = self.store.changes();
        let caught_up =
            async { while self.store.latest(&call.kind.storage) < now && changes.changed().await.is_ok() {} };
        if tokio::time::timeout(FUTURE, caught_up).await.is_ok() {
            return Ok(());
        }
        Err(too_large(now, self.store.latest(&call.kind.storage)))
    }

    fn lifetime(&self, call: &Call) -> Result<Duration, Status> {
        let seconds = match call.query.get("timeoutSeconds") {
            None | Some("0") => LIFETIME + self.ids.next() % LIFETIME,
            Some(text) => {
                text.parse().map_err(|_| Status::bad_request("timeoutSeconds must be an integer"))?
            }
        };
        Ok(Duration::from_secs(seconds.min(24 * 3600)))
    }
}

/// Where a watch begins.
enum Start {
    /// With everything there is; `announce`: a bookmark tells where that ends.
    Everything { announce: bool, at_least: u64 },
    /// After a version.
    After(u64),
}

impl Start {
    fn of(call: &Call) -> Result<Self, Status> {
        let query = &call.query;
        let forbid = |message: &str| {
            Err(invalid_options("ListOptions", "resourceVersionMatch", "FieldValueForbidden", message))
        };
        let matching = query.get("resourceVersionMatch");
        let initial = query.get("sendInitialEvents").is_some();
        if initial && matching != Some("NotOlderThan") {
            return forbid(
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if !initial && matching.is_some() {
            return forbid(
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        let text = query.get("resourceVersion").unwrap_or("0");
        let version: u64 = text.parse().map_err(|_| {
            let message =
                format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax");
            Status::new(500, "", message)
        })?;
        if query.flag("sendInitialEvents") {
            return Ok(Self::Everything { announce: query.flag("allowWatchBookmarks"), at_least: version });
        }
        Ok(if version == 0 {
            Self::Everything { announce: false, at_least: 0 }
        } else {
            Self::After(version)
        })
    }
}

/// What a watch sends next, as faults let it through; `None`: it is over.
async fn through(watcher: &mut Watcher, faults: &RunningWatch) -> Option<io::Result<Bytes>> {
    loop {
        if faults.is_cut() {
            tokio::time::sleep(FLUSH).await;
            return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "broken by a fault")));
        }
        // Faults count events, and delay each of them.
        let alone = faults.is_hit();
        let sent = async { if alone { watcher.next().await } else { watcher.frame().await } };
        let frame = tokio::select! {
            biased;
            () = faults.changed() => continue,
            frame = sent => frame?,
        };
        if faults.is_hit() {
            let lag = faults.lag();
            if !lag.is_zero() {
                tokio::time::sleep(lag).await;
            }
            faults.passes();
        }
        return Some(Ok(frame));
    }
}

fn expired(error: &Error) -> Status {
    Status::new(410, "Expired", error.to_string())
}

fn error_line(status: &Status) -> Bytes {
    format!("{}\n", json!({"type": "ERROR", "object": status.to_json()})).into()
}

fn error_event(status: &Status) -> Reply {
    reply::json_bytes(200, error_line(status))
}

struct Watcher {
    api: Arc<Api>,
    presenter: Presenter,
    namespace: Option<String>,
    selection: Selection,
    initial: std::vec::IntoIter<Arc<Stored>>,
    announce: bool,
    lines: VecDeque<Bytes>,
    /// `None` once the stream has ended.
    cursor: Option<Cursor>,
    bookmarks: bool,
    /// Tables describe their columns in the first event only.
    columns: bool,
    deadline: Instant,
    /// When changes were sent last.
    sent: Option<Instant>,
}

impl Watcher {
    /// The next line, and those that can be sent along with it.
    async fn frame(&mut self) -> Option<Bytes> {
        let first = self.next().await?;
        if self.lines.is_empty() {
            return Some(first);
        }
        let mut frame = first.to_vec();
        while let Some(line) = self.lines.pop_front_if(|line| frame.len() + line.len() <= FRAME) {
            frame.extend_from_slice(&line);
        }
        Some(frame.into())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if let Some(stored) = self.initial.next() {
                if self.selection.matches(stored.header()) {
                    return Some(self.line(EventType::Added, &stored));
                }
                continue;
            }
            let cursor = self.cursor.as_mut()?;
            if std::mem::take(&mut self.announce) {
                let version = cursor.version();
                return Some(self.bookmark(version, true));
            }
            if let Some(sent) = self.sent.take() {
                tokio::time::sleep_until(sent + PACE).await;
            }
            match self.api.store.next(cursor, BATCH) {
                Ok((events, _)) if !events.is_empty() => {
                    self.take(&events);
                    self.sent = Some(Instant::now());
                }
                Ok((_, version)) => {
                    if let Some(line) = self.wait(version).await {
                        return Some(line);
                    }
                }
                Err(error) => {
                    self.cursor = None;
                    return Some(error_line(&expired(&error)));
                }
            }
        }
    }

    /// Sleeps until something may have happened; a line only when that is a bookmark.
    async fn wait(&mut self, version: u64) -> Option<Bytes> {
        let cursor = self.cursor.as_mut()?;
        let quiet = Instant::now() + BOOKMARK;
        let until = quiet.min(self.deadline);
        tokio::select! {
            biased;
            () = self.api.shutdown.cancelled() => {
                self.cursor = None;
                return None;
            }
            () = cursor.changed() => return None,
            () = tokio::time::sleep_until(until) => {}
        }
        if Instant::now() >= self.deadline {
            self.cursor = None;
        }
        self.bookmarks.then(|| self.bookmark(version, false))
    }

    fn take(&mut self, events: &[Arc<Event>]) {
        for event in events {
            let header = event.object.header();
            if self.namespace.as_deref().is_some_and(|namespace| *header.namespace != *namespace) {
                continue;
            }
            let before = event.previous.as_ref().filter(|stored| self.selection.matches(stored.header()));
            let after = event.event != EventType::Deleted && self.selection.matches(header);
            let line = match (before, after) {
                (None, false) => continue,
                (None, true) => self.line(EventType::Added, &event.object),
                (Some(_), true) => self.line(EventType::Modified, &event.object),
                (Some(_), false) if event.event == EventType::Deleted => {
                    self.line(EventType::Deleted, &event.object)
                }
                (Some(before), false) => self.left(before, header.resource_version),
            };
            self.lines.push_back(line);
        }
    }

    fn line(&mut self, event: EventType, stored: &Stored) -> Bytes {
        if self.presenter.form != Form::Json {
            let object = self.presenter.value(stored);
            return self.encode(event, &object);
        }
        let wire = stored.wire();
        if self.presenter.verbatim(&wire) && stored.event() == event {
            return wire.line();
        }
        line(event, &self.presenter.bytes(&wire))
    }

    /// The object left the selection: its last selected state, at the version of the change.
    fn left(&mut self, before: &Stored, version: u64) -> Bytes {
        let mut object = self.presenter.value(before);
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.encode(EventType::Deleted, &object)
    }

    fn encode(&mut self, event: EventType, object: &Value) -> Bytes {
        let object = self.presenter.single(object, std::mem::take(&mut self.columns));
        line(event, object.to_string().as_bytes())
    }

    fn bookmark(&mut self, version: u64, initial_end: bool) -> Bytes {
        let kind = &self.presenter.kind;
        let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        let object =
            if self.presenter.form == Form::Metadata { super::present::partial(&object) } else { object };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }
}
