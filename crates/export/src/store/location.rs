//! Where a URL points, and with which keys.

use crate::source::http::Secret;
use crate::{Error, Result};

/// A place in a store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// `https://host[:port]`, without the bucket.
    pub endpoint: String,
    /// For the signature.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What stands in front of every name; empty, or with a slash at its end.
    pub prefix: String,
    /// How parts are checked.
    pub checks: Checks,
}

/// How a store checks the parts of an upload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checks {
    /// By SHA-256, which it keeps (`x-amz-checksum-sha256`).
    Sha256,
    /// By MD5 (`Content-MD5`), which is the `ETag` of a part, too: Google's XML API knows no other checksum
    /// that may stand beside headers of Amazon's.
    Md5,
}

/// Keys of a store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: Secret,
    /// Of temporary keys.
    pub session: Option<Secret>,
}

impl Location {
    /// Reads `s3://bucket/prefix` or `gs://bucket/prefix`. `?endpoint=https://…` and `?region=…`
    /// choose another server of the same protocol; otherwise the variables count that Amazon's own
    /// tools read: `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`.
    ///
    /// # Errors
    /// When it is no such URL.
    pub fn parse(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let wrong = |why: &str| Error::Request(format!("`{url}`: {why}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it is no URL"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let named =
            !bucket.is_empty() && bucket.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c));
        if !named {
            return Err(wrong("it names no bucket"));
        }
        let (mut endpoint, mut region) = match scheme {
            "s3" => {
                let region = env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION"));
                let endpoint = env("AWS_ENDPOINT_URL_S3").or_else(|| env("AWS_ENDPOINT_URL"));
                (endpoint, region.unwrap_or("us-east-1".into()))
            }
            "gs" => (Some("https://storage.googleapis.com".into()), "auto".into()),
            _ => return Err(wrong("only s3://, gs:// and az:// stores are known")),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("endpoint", value)) => endpoint = Some(value.to_owned()),
                Some(("region", value)) => value.clone_into(&mut region),
                _ => return Err(wrong("only `endpoint` and `region` may stand behind the question mark")),
            }
        }
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://127.0.0.1") {
            return Err(wrong("the endpoint must be https"));
        }
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let checks = if scheme == "gs" { Checks::Md5 } else { Checks::Sha256 };
        Ok(Self { endpoint, region, bucket: bucket.into(), prefix, checks })
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Credentials {
    /// Keys from the variables that the stores' own tools read: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; for Google, `GS_ACCESS_KEY_ID` and
    /// `GS_SECRET_ACCESS_KEY` (HMAC keys) come first.
    ///
    /// # Errors
    /// When there are none.
    pub fn read(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let prefixes: &[&str] = if url.starts_with("gs://") { &["GS", "AWS"] } else { &["AWS"] };
        for prefix in prefixes {
            let get = |name: &str| env(&format!("{prefix}_{name}")).filter(|value| !value.is_empty());
            if let (Some(id), Some(secret)) = (get("ACCESS_KEY_ID"), get("SECRET_ACCESS_KEY")) {
                let session = get("SESSION_TOKEN").map(Secret);
                return Ok(Self { id, secret: Secret(secret), session });
            }
        }
        let first = prefixes.first().unwrap_or(&"AWS");
        Err(Error::Request(format!(
            "`{url}` needs keys: set {first}_ACCESS_KEY_ID and {first}_SECRET_ACCESS_KEY"
        )))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_place() {
        let none = |_: &str| None;
        let place = Location::parse("s3://backups/vms/nightly/?region=eu-west-1", &none).unwrap();
        assert_eq!(place.endpoint, "https://s3.eu-west-1.amazonaws.com");
        assert_eq!(place.key("a b.qcow2"), "vms/nightly/a b.qcow2");
        let env = |name: &str| (name == "AWS_ENDPOINT_URL").then(|| "https://minio.example:9000/".to_owned());
        assert_eq!(Location::parse("s3://b", &env).unwrap().endpoint, "https://minio.example:9000");
        let google = Location::parse("gs://b", &env).unwrap();
        assert_eq!(google.endpoint, "https://storage.googleapis.com");
        assert_eq!(
            (google.region.as_str(), google.checks, place.checks),
            ("auto", Checks::Md5, Checks::Sha256)
        );
        for wrong in
            ["s3://", "az://x", "b/c", "s3://b?x=1", "s3://b?endpoint=http://example.com", "s3://b c"]
        {
            assert!(Location::parse(wrong, &none).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_come_from_the_environment_and_are_not_shown() {
        let env = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("id".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("very-secret".to_owned()),
            _ => None,
        };
        let keys = Credentials::read("gs://b", &env).unwrap();
        assert!(!format!("{keys:?}").contains("very-secret"));
        assert!(
            Credentials::read("s3://b", &|_| None).unwrap_err().to_string().contains("AWS_ACCESS_KEY_ID")
        );
    }
}
