//! Container image references (the grammar of `distribution/reference`).

/// The longest reference.
const MAX_REFERENCE: usize = 512;

/// Whether a text is an image reference: with or without registry, port, tag and digest.
pub(crate) fn is_reference(text: &str) -> bool {
    if text.is_empty() || text.len() > MAX_REFERENCE {
        return false;
    }
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), path),
        _ => (None, name),
    };
    registry.is_none_or(is_registry)
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

/// Whether the administrator allows an image: by its reference, or by a prefix that ends in `*`.
pub(crate) fn is_allowed(image: &str, allowed: &[String]) -> bool {
    allowed.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => image.starts_with(prefix),
        None => image == entry,
    })
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port =
        |port: &str| !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    is_host && port.is_none_or(is_port)
}

fn is_component(text: &str) -> bool {
    let is_edge =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    is_edge(text.as_bytes().first())
        && is_edge(text.as_bytes().last())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        })
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hash)| {
        !algorithm.is_empty()
            && algorithm
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'.' | b'_' | b'-'))
            && (32..=128).contains(&hash.len())
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_digests_and_untagged_references_are_references() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        for good in [
            "hook",
            "hook:v1",
            "team/hook",
            "localhost/hook",
            "registry.example:5000/team/hook",
            "registry.example:5000/team/hook:v1.4.0",
            "[::1]:5000/hook",
            &format!("registry.example:5000/team/hook@{digest}"),
            &format!("quay.io/team/hook:v1@{digest}"),
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "",
            "Hook",
            "hook:",
            "hook:v 1",
            "/hook",
            "hook/",
            "a//b",
            "hook@sha256:12",
            "hook@",
            "registry.example:port/x",
            "hook:-x",
            "https://registry.example/hook",
            "a\nb",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn only_listed_images_are_allowed() {
        let allowed = ["quay.io/team/*".to_owned(), "hook:v1".to_owned()];
        assert!(is_allowed("quay.io/team/hook:v2", &allowed));
        assert!(is_allowed("hook:v1", &allowed));
        assert!(!is_allowed("hook:v2", &allowed));
        assert!(!is_allowed("quay.io/teammate/hook", &allowed));
        assert!(!is_allowed("hook:v1", &[]));
    }
}
