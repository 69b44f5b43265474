//! Paths → what they are about (`k8s.io/apiserver RequestInfo`).

/// What a path names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Target {
    /// Empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// Plural name.
    pub resource: String,
    /// Empty for cluster-scoped kinds and all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// For example `status` or `evacuate/cancel`; empty for the object itself.
    pub subresource: String,
}

/// Subresources of namespaces; everything else under a namespace is a resource in it.
const OF_NAMESPACES: [&str; 2] = ["status", "finalize"];

impl Target {
    /// Reads a path; `None` when it names no resource (discovery, health, …).
    pub fn parse(path: &str) -> Option<Self> {
        let segments: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["api", version, rest @ ..] => Self::resource("", version, rest),
            ["apis", group, version, rest @ ..] => Self::resource(group, version, rest),
            _ => None,
        }
    }

    fn resource(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let mut target = Self { group: group.into(), version: version.into(), ..Self::default() };
        let rest = match rest {
            [] => return None,
            ["namespaces", namespace, rest @ ..] if group.is_empty() => match rest {
                [] => return Some(target.of("namespaces", namespace, &[], namespace)),
                [sub] if OF_NAMESPACES.contains(sub) => {
                    return Some(target.of("namespaces", namespace, rest, namespace));
                }
                _ => {
                    target.namespace = (*namespace).into();
                    rest
                }
            },
            ["namespaces", namespace, rest @ ..] => {
                target.namespace = (*namespace).into();
                rest
            }
            rest => rest,
        };
        let namespace = target.namespace.clone();
        match rest {
            [] => None,
            [resource] => Some(target.of(resource, "", &[], &namespace)),
            [resource, name, subresource @ ..] => Some(target.of(resource, name, subresource, &namespace)),
        }
    }

    fn of(self, resource: &str, name: &str, subresource: &[&str], namespace: &str) -> Self {
        Self {
            resource: resource.into(),
            name: name.into(),
            // What comes behind `proxy` is the other server's.
            subresource: match subresource {
                ["proxy", ..] if self.group.is_empty() => "proxy".into(),
                other => other.join("/"),
            },
            namespace: namespace.into(),
            ..self
        }
    }
}

/// Percent-decoding (RFC 3986 section 2.1); what is no valid escape stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = (bytes[index] == b'%').then(|| text.get(index + 1..index + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            index += 3;
        } else {
            out.push(bytes[index]);
            index += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Option<[String; 6]> {
        let t = Target::parse(path)?;
        Some([t.group, t.version, t.resource, t.namespace, t.name, t.subresource])
    }

    #[test]
    fn paths_name_what_the_api_server_says_they_name() {
        let cases: &[(&str, Option<[&str; 6]>)] = &[
            ("/api/v1", None),
            ("/apis", None),
            ("/apis/apps/v1", None),
            ("/healthz", None),
            ("/api/v1/nodes", Some(["", "v1", "nodes", "", "", ""])),
            ("/api/v1/namespaces", Some(["", "v1", "namespaces", "", "", ""])),
            ("/api/v1/namespaces/a", Some(["", "v1", "namespaces", "a", "a", ""])),
            ("/api/v1/namespaces/a/status", Some(["", "v1", "namespaces", "a", "a", "status"])),
            ("/api/v1/namespaces/a/pods", Some(["", "v1", "pods", "a", "", ""])),
            (
                "/api/v1/namespaces/a/pods/https:b:1/proxy/x/y",
                Some(["", "v1", "pods", "a", "https:b:1", "proxy"]),
            ),
            ("/api/v1/namespaces/a/pods/b/eviction", Some(["", "v1", "pods", "a", "b", "eviction"])),
            (
                "/apis/kubevirt.io/v1/virtualmachines",
                Some(["kubevirt.io", "v1", "virtualmachines", "", "", ""]),
            ),
            (
                "/apis/subresources.kubevirt.io/v1/namespaces/n/virtualmachines/v/evacuate/cancel",
                Some(["subresources.kubevirt.io", "v1", "virtualmachines", "n", "v", "evacuate/cancel"]),
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                Some(["rbac.authorization.k8s.io", "v1", "clusterroles", "", "system:node", ""]),
            ),
        ];
        for (path, want) in cases {
            let want = want.map(|want| want.map(str::to_owned));
            assert_eq!(parts(path), want, "{path}");
        }
    }
}
