//! AWS Signature Version 4, in the `Authorization` header, as S3 wants it (paths encoded once).

use std::fmt::Write as _;

use aws_lc_rs::hmac;

use super::Credentials;
use crate::sums::{hex, sha256};

/// What is signed.
pub struct Signable<'a> {
    pub method: &'a str,
    /// The path, encoded.
    pub path: &'a str,
    /// The query's pairs, not encoded.
    pub query: &'a [(&'a str, &'a str)],
    /// Headers in lower case, with `host`; without those that are added here.
    pub headers: &'a [(String, String)],
    /// The SHA-256 of the body in hexadecimal.
    pub payload: &'a str,
    pub region: &'a str,
    /// `YYYYMMDDTHHMMSSZ`
    pub time: &'a str,
}

/// The headers to send: the given ones, and those that make the signature.
pub fn sign(request: &Signable<'_>, keys: &Credentials) -> Vec<(String, String)> {
    let mut headers = request.headers.to_vec();
    headers.push(("x-amz-content-sha256".into(), request.payload.into()));
    headers.push(("x-amz-date".into(), request.time.into()));
    if let Some(session) = &keys.session {
        headers.push(("x-amz-security-token".into(), session.0.clone()));
    }
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let lines = headers.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = writeln!(out, "{name}:{}", value.trim());
        out
    });
    let canonical = format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{}",
        request.method,
        request.path,
        query(request.query),
        request.payload
    );
    let day = request.time.get(..8).unwrap_or_default();
    let scope = format!("{day}/{}/s3/aws4_request", request.region);
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", request.time, hex(&sha256(canonical.as_bytes())));
    let mut key = format!("AWS4{}", keys.secret.0).into_bytes();
    for part in [day, request.region, "s3", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &text));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
        keys.id
    );
    headers.push(("authorization".into(), authorization));
    headers
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// The query as it is signed and sent: sorted, encoded.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", encode(key, false), encode(value, false))).collect();
    encoded.sort();
    encoded.join("&")
}

/// Percent-encodes everything but unreserved characters (RFC 3986); a path keeps its slashes.
pub fn encode(text: &str, path: bool) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (path && byte == b'/') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::http::Secret;

    /// The example of "Signature Calculations for the Authorization Header: GET Object" in the S3
    /// API reference.
    #[test]
    fn amazons_own_examples_come_out() {
        let keys = Credentials {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
            session: None,
        };
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let host = ("host".to_owned(), "examplebucket.s3.amazonaws.com".to_owned());
        let range = ("range".to_owned(), "bytes=0-9".to_owned());
        for (path, query, headers, signature) in [
            (
                "/test.txt",
                &[][..],
                vec![host.clone(), range],
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/",
                &[("lifecycle", "")][..],
                vec![host.clone()],
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "/",
                &[("prefix", "J"), ("max-keys", "2")][..],
                vec![host],
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = Signable {
                method: "GET",
                path,
                query,
                headers: &headers,
                payload: empty,
                region: "us-east-1",
                time: "20130524T000000Z",
            };
            let signed = sign(&request, &keys);
            let authorization = &signed.last().map(|(_, value)| value.clone()).unwrap_or_default();
            assert!(authorization.ends_with(&format!("Signature={signature}")), "{authorization}");
        }
        assert_eq!(encode("vms/a b+ü.qcow2", true), "vms/a%20b%2B%C3%BC.qcow2");
    }
}
