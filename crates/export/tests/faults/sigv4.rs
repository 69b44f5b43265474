//! Signature version 4 as a store checks it: made again from the request as it came in.

use aws_lc_rs::hmac;
use export::sums::{hex, sha256};
use http::request::Parts;

/// Whom the stores know.
pub const ID: &str = "test";
pub const SECRET: &str = "secret";

/// Whether the request is signed by [`ID`] for a region, with these bytes as its body.
pub fn is_signed(parts: &Parts, body: &[u8], region: &str) -> bool {
    let header = |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().unwrap());
    let given = header("authorization");
    let field = |name: &str| {
        let rest = given.split_once(&format!("{name}=")).map_or("", |(_, rest)| rest);
        rest.split(',').next().unwrap_or_default().trim()
    };
    let time = header("x-amz-date");
    let Some(day) = time.get(..8) else { return false };
    let scope = format!("{day}/{region}/s3/aws4_request");
    let payload = header("x-amz-content-sha256");
    let names = field("SignedHeaders");
    // Whatever says something to the store has to be signed.
    let own = parts.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-"));
    let all = own.chain(["host"]).all(|name| names.split(';').any(|signed| signed == name));
    let mut query: Vec<&str> =
        parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let lines: String =
        names.split(';').map(|name| format!("{name}:{}\n", header(name).trim())).collect::<Vec<_>>().concat();
    let canonical =
        format!("{}\n{}\n{}\n{lines}\n{names}\n{payload}", parts.method, parts.uri.path(), query.join("&"));
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let key = scope.split('/').fold(format!("AWS4{SECRET}").into_bytes(), |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &text));
    all && given.starts_with("AWS4-HMAC-SHA256 ")
        && field("Credential") == format!("{ID}/{scope}")
        && field("Signature") == signature
        && payload == hex(&sha256(body))
}
