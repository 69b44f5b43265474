//! What the stores' protocols have in common: trying again, answers in XML, sizes, ranges.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use quick_xml::events::Event;

use crate::retry::pause;
use crate::source::http::{body, refusal};
use crate::{Error, Result};

/// How often a request is tried.
pub(super) const TRIES: u32 = 6;
/// Keys of one list.
const MOST_KEYS: usize = 100_000;
/// The largest answer in XML that is read.
const MAX_ANSWER: usize = 4 << 20;
/// A large part may take this long to be taken.
const UPLOAD: Duration = Duration::from_mins(10);

/// A request of a store's protocol, before it is signed.
pub(super) struct Call<'a> {
    pub method: Method,
    pub key: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: &'a [(&'a str, String)],
    pub body: Bytes,
    pub what: String,
}

impl<'a> Call<'a> {
    /// One without query, headers and body.
    pub fn plain(method: Method, key: &'a str, what: String) -> Self {
        Self { method, key, query: &[], headers: &[], body: Bytes::new(), what }
    }
}

/// How keys are listed.
pub(super) struct Listing {
    /// What is asked for besides the prefix.
    pub query: &'static [(&'static str, &'static str)],
    /// The parameter that says where a page begins, and the element that says where the next one does.
    pub token: (&'static str, &'static str),
    /// The element that holds a key.
    pub key: &'static str,
}

/// What stores do alike, over one way to send a request.
pub(super) trait Protocol {
    /// The header that names a range.
    const RANGE: &'static str;
    /// How keys are listed.
    const LISTING: Listing;

    /// A key for messages.
    fn describe(&self, key: &str) -> String;

    /// Sends a request once.
    async fn once(&self, call: &Call<'_>) -> Result<Response<Incoming>>;

    /// The elements of an answer.
    async fn xml(&self, call: &Call<'_>) -> Result<Vec<(String, String)>>;

    /// Sends a request, again if that may help.
    async fn call(&self, call: &Call<'_>) -> Result<Response<Incoming>> {
        send(&call.what, call.body.len() as u64, || self.once(call)).await
    }

    /// The size of an object; `None`: it is not there.
    async fn size(&self, key: &str) -> Result<Option<u64>> {
        let call = Call::plain(Method::HEAD, key, format!("looking at {}", self.describe(key)));
        size(&call.what, || self.once(&call)).await
    }

    /// Reads a part of an object.
    async fn read(&self, key: &str, start: u64, length: u64) -> Result<Bytes> {
        let headers = [(Self::RANGE, format!("bytes={start}-{}", start + length - 1))];
        let what = format!("reading {}", self.describe(key));
        let call = Call { headers: &headers, ..Call::plain(Method::GET, key, what) };
        read(&call.what, length, || self.call(&call)).await
    }

    /// The keys that begin with a prefix.
    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let Listing { query: always, token: (parameter, element), key: item } = Self::LISTING;
        let (mut out, mut token) = (Vec::new(), String::new());
        loop {
            let mut query = always.to_vec();
            query.push(("prefix", prefix));
            if !token.is_empty() {
                query.push((parameter, &token));
            }
            let what = format!("listing {}", self.describe(prefix));
            let call = Call { query: &query, ..Call::plain(Method::GET, "", what) };
            let mut next = String::new();
            for (name, text) in self.xml(&call).await? {
                if name == item {
                    out.push(text);
                } else if name == element {
                    next = text;
                }
            }
            if next.is_empty() || out.len() > MOST_KEYS {
                return Ok(out);
            }
            token = next;
        }
    }

    /// Removes an object; one that is gone already is no error. Amazon's answer to both is the same, Google's and
    /// Azure's are not.
    async fn delete(&self, key: &str) -> Result<()> {
        let call = Call::plain(Method::DELETE, key, format!("removing {}", self.describe(key)));
        match self.call(&call).await {
            Err(Error::Answer { wrong, .. }) if wrong.starts_with("404") => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// Sends a request, again if that may help; the answer is a success, or an error.
pub(super) async fn send<F>(what: &str, salt: u64, once: impl Fn() -> F) -> Result<Response<Incoming>>
where
    F: Future<Output = Result<Response<Incoming>>>,
{
    let mut failures = 0;
    loop {
        let outcome = match tokio::time::timeout(UPLOAD, once()).await {
            Ok(Ok(response)) if response.status().is_success() => return Ok(response),
            Ok(Ok(response)) => {
                let status = response.status();
                let error = refusal(what, response).await;
                // Wrong keys and missing buckets do not get better.
                let passing = status.is_server_error()
                    || matches!(status.as_u16(), 408 | 429)
                    || matches!(&error, Error::Answer { wrong, .. } if wrong.contains("RequestTimeout"));
                if !passing {
                    return Err(error);
                }
                error
            }
            Ok(Err(error)) => error,
            Err(_) => Error::Connection { what: what.into(), wrong: "it takes too long".into() },
        };
        failures += 1;
        if failures >= TRIES || !outcome.is_passing() {
            return Err(outcome);
        }
        tracing::debug!(error = %outcome, failures, "trying again");
        tokio::time::sleep(pause(failures, salt)).await;
    }
}

/// The size that an answer to `HEAD` states; `None`: the object is not there.
pub(super) async fn size<F>(what: &str, once: impl Fn() -> F) -> Result<Option<u64>>
where
    F: Future<Output = Result<Response<Incoming>>>,
{
    let mut failures = 0;
    let response = loop {
        match once().await {
            Ok(response) if response.status().is_server_error() && failures < TRIES => {}
            Err(error) if error.is_passing() && failures < TRIES => {}
            outcome => break outcome?,
        }
        failures += 1;
        tokio::time::sleep(pause(failures, 0)).await;
    };
    match response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => {
            let length = response.headers().get("content-length").and_then(|value| value.to_str().ok());
            Ok(length.and_then(|text| text.parse().ok()))
        }
        _ => Err(refusal(what, response).await),
    }
}

/// Reads a range, which has to come whole.
pub(super) async fn read<F>(what: &str, length: u64, call: impl Fn() -> F) -> Result<Bytes>
where
    F: Future<Output = Result<Response<Incoming>>>,
{
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    let mut failures = 0;
    loop {
        let response = call().await?;
        match body(what, response.into_body(), wanted).await {
            Ok(data) if data.len() == wanted => return Ok(data),
            Err(error) if failures >= TRIES => return Err(error),
            Ok(data) if failures >= TRIES => {
                let wrong = format!("{} bytes came instead of {wanted}", data.len());
                return Err(Error::Answer { what: what.into(), wrong, again: false });
            }
            _ => failures += 1,
        }
        tokio::time::sleep(pause(failures, length)).await;
    }
}

/// The elements of an answer.
pub(super) async fn xml(what: &str, response: Response<Incoming>) -> Result<Vec<(String, String)>> {
    let text = body(what, response.into_body(), MAX_ANSWER).await?;
    let answer = |wrong: String| Error::Answer { what: what.into(), wrong, again: false };
    let text = std::str::from_utf8(&text).map_err(|_| answer("the answer is no text".into()))?;
    elements(text.trim_start_matches('\u{feff}'))
        .map_err(|wrong| answer(format!("the answer is no XML: {wrong}")))
}

/// The elements of an answer, in order, each with the text in it; one that holds none is there with an empty one.
///
/// # Errors
/// When it is no XML, or has a document type.
pub fn elements(text: &str) -> std::result::Result<Vec<(String, String)>, String> {
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut out, mut open): (Vec<(String, String)>, Vec<usize>) = (Vec::new(), Vec::new());
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                open.push(out.len());
                let name = start.name().0;
                out.push((name.rsplit_once(':').map_or(name, |(_, name)| name).to_owned(), String::new()));
            }
            Event::End(_) => {
                open.pop();
            }
            Event::Text(text) => {
                if let Some((_, value)) = open.last().and_then(|at| out.get_mut(*at)) {
                    value.push_str(text.xml10_content().trim());
                }
            }
            Event::GeneralRef(reference) => {
                let c = match &*reference {
                    "quot" => '"',
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "apos" => '\'',
                    other => {
                        let found = reference.resolve_char_ref().ok().flatten();
                        found.ok_or_else(|| format!("the entity `{other}` is not known"))?
                    }
                };
                if let Some((_, value)) = open.last().and_then(|at| out.get_mut(*at)) {
                    value.push(c);
                }
            }
            Event::DocType(_) => return Err("it has a document type".into()),
            Event::Eof => return Ok(out),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::elements;

    #[test]
    fn answers_are_read_as_names_and_texts() {
        let text = "<?xml version=\"1.0\"?><R xmlns=\"x\"><Part><ETag>&quot;ab&quot;</ETag></Part><E/></R>";
        let found = elements(text).unwrap();
        assert_eq!(found[2], ("ETag".to_owned(), "\"ab\"".to_owned()));
        assert!(elements("<!DOCTYPE x><x/>").is_err());
    }
}
