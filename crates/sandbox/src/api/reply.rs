//! Answers on their way to the wire.

use std::io;

use apimachinery::Status;
use apimachinery::tree::Value;
use bytes::Bytes;
use futures::Stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

/// A body of any origin.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer of any origin.
pub type Reply = Response<Body>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A body that is there as a whole.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes piece by piece.
pub fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

/// An answer of a media type.
pub fn reply(code: u16, content_type: HeaderValue, body: Body) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON that is encoded already.
pub fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Reply {
    reply(code, JSON, whole(bytes))
}

/// JSON.
pub fn json(code: u16, value: &Value) -> Reply {
    json_bytes(code, value.to_string())
}

/// Plain text.
pub fn text(code: u16, text: impl Into<Bytes>) -> Reply {
    reply(code, HeaderValue::from_static("text/plain; charset=utf-8"), whole(text))
}

/// `204`: there is nothing to say.
pub fn no_content() -> Reply {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// JSON that comes piece by piece.
pub fn json_stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Reply {
    reply(200, JSON, stream(pieces))
}

/// JSON that comes piece by piece, until it breaks off.
pub fn json_results(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Reply {
    use futures::StreamExt;
    reply(200, JSON, StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync())
}

/// A failure.
pub fn failure(status: &Status) -> Reply {
    let mut response = json(status.code, &status.to_json());
    let wait = status.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64());
    if let Some(seconds) = wait.filter(|seconds| *seconds > 0) {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds admission and field warnings (`Warning: 299 - "…"`, RFC 7234 section 5.5).
pub fn warn(response: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let clean: String = escaped.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        let mut response = text(200, "");
        warn(&mut response, &["unknown field \"bogus\"".into(), "second,\nline".into()]);
        let got: Vec<_> = response.headers().get_all("warning").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(got, [r#"299 - "unknown field \"bogus\"""#, r#"299 - "second, line""#]);
    }
}
