//! Which form of an answer a client can read (`Accept`), and which form its body has.

use apimachinery::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// The form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// The object as it is.
    Json,
    /// The same in YAML.
    Yaml,
    /// What `kubectl get` prints.
    Table,
    /// Metadata alone.
    Metadata,
    /// `/api` and `/apis`: everything in one document.
    Discovery(&'static str),
}

/// One entry of an Accept header.
struct Range<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        Self { media, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn form(&self, discovery: bool) -> Option<Form> {
        let form = match self.media {
            "*/*" | "application/*" | "application/json" => Form::Json,
            "application/yaml" => Form::Yaml,
            _ => return None,
        };
        match (self.parameter("as"), self.parameter("g"), self.parameter("v")) {
            (None, _, _) => Some(form),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) if !discovery => Some(Form::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) if !discovery => Some(Form::Metadata),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some(version)) if discovery => {
                match version {
                    "v2" => Some(Form::Discovery("v2")),
                    "v2beta1" => Some(Form::Discovery("v2beta1")),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The first form that the client names and the server has.
///
/// # Errors
/// 406 when there is none.
pub fn accept(headers: &HeaderMap, discovery: bool) -> Result<Form, Status> {
    let values: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let all = values.join(",");
    if all.trim().is_empty() {
        return Ok(Form::Json);
    }
    all.split(',').find_map(|entry| Range::parse(entry).form(discovery)).ok_or_else(not_acceptable)
}

fn not_acceptable() -> Status {
    let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    Status { details: Some(apimachinery::tree::json!({})), ..Status::new(406, "NotAcceptable", message) }
}

/// `415 Unsupported Media Type`
pub fn unsupported_media_type() -> Status {
    Status {
        details: Some(apimachinery::tree::json!({})),
        ..Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
    }
}

/// The media type of a body, without parameters; empty when there is none.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: &'static str, discovery: bool) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, http::HeaderValue::from_static(value));
        accept(&headers, discovery).ok()
    }

    #[test]
    fn the_first_known_form_wins() {
        let cases = [
            ("application/json", false, Some(Form::Json)),
            ("application/vnd.kubernetes.protobuf, */*", false, Some(Form::Json)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", false, Some(Form::Table)),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", false, Some(Form::Json)),
            ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", false, Some(Form::Metadata)),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                true,
                Some(Form::Discovery("v2")),
            ),
            ("text/html", false, None),
        ];
        for (accept, discovery, want) in cases {
            assert_eq!(ask(accept, discovery), want, "{accept}");
        }
    }
}
