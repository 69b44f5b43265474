//! OpenTelemetry spans of admission requests, as OTLP/HTTP JSON (opentelemetry-proto 1.x, the JSON
//! mapping of `ExportTraceServiceRequest`). Written by hand: the messages are small and stable, and
//! the crates for it would bring a second HTTP client.
//!
//! ```text
//!  POST /mutate (SERVER; parent: the API server's span, from `traceparent`)
//!    ├─ observe   live reads of ConfigMaps and Secrets, when a VM names any
//!    └─ decide    features::admit, one event for each feature
//! ```

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use rustls::crypto::CryptoProvider;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::clock::Clock;

/// Requests whose spans wait to be sent; more are dropped, since telemetry must not grow without
/// bound while a collector is away.
pub(super) const QUEUE: usize = 1024;

/// The API server's span (W3C Trace Context, `traceparent`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Parent {
    /// Reads `traceparent`; a header that is malformed counts as absent, as the standard asks.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut parts = text.split('-');
        let version: [u8; 1] = unhex(parts.next()?)?;
        let (trace, span) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
        let flags: [u8; 1] = unhex(parts.next()?)?;
        let valid = version != [0xff] && trace != [0; 16] && span != [0; 8];
        valid.then_some(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    {
        return None;
    }
    let mut out = [0; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A piece of work with a beginning and an end.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its name.
    pub name: &'static str,
    /// When it began.
    pub from: Instant,
    /// When it ended.
    pub to: Instant,
    /// What is said about it.
    pub attributes: Vec<(&'static str, String)>,
    /// What happened in it: a name, and what is said about it.
    pub events: Vec<(String, Vec<(&'static str, String)>)>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Makes spans and hands them to the exporter.
#[derive(Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Vec<Value>>,
    provider: Arc<CryptoProvider>,
    clock: Clock,
}

impl Tracer {
    /// A tracer, and the end of the queue that an exporter empties.
    pub(super) fn new(provider: Arc<CryptoProvider>, clock: Clock) -> (Self, mpsc::Receiver<Vec<Value>>) {
        let (spans, received) = mpsc::channel(QUEUE);
        (Self { spans, provider, clock }, received)
    }

    /// One finished request and the pieces that it was made of.
    pub fn record(&self, parent: Option<Parent>, request: &Piece, children: &[Piece]) {
        if parent.is_some_and(|parent| !parent.sampled) {
            return;
        }
        let (mut trace, mut own) = ([0; 16], [0; 8]);
        if self.provider.secure_random.fill(&mut own).is_err() {
            return;
        }
        match parent {
            Some(parent) => trace = parent.trace,
            None if self.provider.secure_random.fill(&mut trace).is_err() => return,
            None => {}
        }
        let epoch = Epoch { now: Instant::now(), wall: (self.clock)().as_nanosecond() };
        // OTLP's SpanKind: 2 is SERVER, 1 is INTERNAL.
        let mut spans = vec![span(&epoch, &trace, &own, parent.map(|p| p.span), 2, request)];
        for child in children {
            let mut id = [0; 8];
            if self.provider.secure_random.fill(&mut id).is_ok() {
                spans.push(span(&epoch, &trace, &id, Some(own), 1, child));
            }
        }
        // Full: the collector is away or slow.
        let _ = self.spans.try_send(spans);
    }
}

/// What the wall clock said at one instant.
struct Epoch {
    now: Instant,
    wall: i128,
}

impl Epoch {
    /// OTLP JSON writes 64-bit numbers as strings.
    fn nanos(&self, at: Instant) -> String {
        let ago = self.now.saturating_duration_since(at);
        (self.wall - i128::try_from(ago.as_nanos()).unwrap_or_default()).to_string()
    }
}

fn span(epoch: &Epoch, trace: &[u8], id: &[u8], parent: Option<[u8; 8]>, kind: u8, piece: &Piece) -> Value {
    let events: Vec<Value> = piece
        .events
        .iter()
        .map(|(name, said)| {
            json!({"timeUnixNano": epoch.nanos(piece.to), "name": name, "attributes": attributes(said)})
        })
        .collect();
    let mut span = json!({
        "traceId": hex(trace), "spanId": hex(id), "name": piece.name, "kind": kind,
        "startTimeUnixNano": epoch.nanos(piece.from), "endTimeUnixNano": epoch.nanos(piece.to),
        "attributes": attributes(&piece.attributes), "events": events,
        // StatusCode: 2 is ERROR, 0 is UNSET.
        "status": match &piece.error { Some(error) => json!({"code": 2, "message": error}), None => json!({}) },
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = hex(&parent).into();
    }
    span
}

fn attributes(said: &[(&'static str, String)]) -> Vec<Value> {
    said.iter().map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect()
}

/// The message that carries `spans`.
pub(super) fn message(version: &str, spans: &[Value]) -> Value {
    let resource =
        attributes(&[("service.name", "virt-steward".into()), ("service.version", version.into())]);
    json!({"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [
        {"scope": {"name": "virt-steward.operator", "version": version}, "spans": spans}]}]})
}

impl Piece {
    /// A piece of work from `from` to `to`.
    pub fn new(name: &'static str, from: Instant, to: Instant) -> Self {
        Self { name, from, to, attributes: Vec::new(), events: Vec::new(), error: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(text: &str) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", text.parse().unwrap());
        Parent::from_headers(&headers)
    }

    /// The examples of W3C Trace Context, 3.2.
    #[test]
    fn traceparent_as_the_standard_has_it() {
        let good = parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert!(good.sampled);
        assert_eq!(hex(&good.trace), "0af7651916cd43dd8448eb211c80319c");
        assert!(!parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().sampled);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }
}
