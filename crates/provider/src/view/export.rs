//! Exports: where the disks of a VM can be fetched (`export/v1/types.go`, v1.9).

use serde::Serialize;
use serde_json::Value;

use super::json::{list, some, text};

/// A `VirtualMachineExport` in short.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it exports, as `kind/name`.
    pub source: String,
    /// `Pending`, `Ready`, `Terminated` or `Skipped`.
    pub phase: String,
    /// When it is deleted by itself, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// The Secret whose `token` has to be sent as `x-kubevirt-export-token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<String>,
    /// Where the volumes are.
    pub links: Vec<Link>,
}

/// Where one volume can be fetched in one format.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The claim.
    pub volume: String,
    /// `raw`, `gzip`, `dir` or `tar.gz`.
    pub format: String,
    /// Its address.
    pub url: String,
    /// Whether it can be reached from outside the cluster.
    pub external: bool,
}

impl Export {
    /// Reads one.
    pub fn of(export: &Value) -> Self {
        let source = format!("{}/{}", text(export, "/spec/source/kind"), text(export, "/spec/source/name"));
        let mut links = Vec::new();
        for (place, external) in [("internal", false), ("external", true)] {
            for volume in list(export, &format!("/status/links/{place}/volumes")) {
                links.extend(list(volume, "/formats").iter().map(|format| Link {
                    volume: text(volume, "/name").into(),
                    format: text(format, "/format").into(),
                    url: text(format, "/url").into(),
                    external,
                }));
            }
        }
        Self {
            namespace: text(export, "/metadata/namespace").into(),
            name: text(export, "/metadata/name").into(),
            source,
            phase: some(export, "/status/phase").unwrap_or("Pending".into()),
            expires: some(export, "/status/ttlExpirationTime"),
            token_secret: some(export, "/status/tokenSecretRef"),
            links,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn links_are_read_from_both_places() {
        let volumes = |host: &str| {
            json!({"volumes": [{"name": "root", "formats": [
            {"format": "raw", "url": format!("https://{host}/disk.img")}, {"format": "gzip", "url": "x"}]}]})
        };
        let export = Export::of(&json!({"spec": {"source": {"kind": "VirtualMachine", "name": "web"}},
            "status": {"phase": "Ready", "tokenSecretRef": "t", "links": {"internal": volumes("in"), "external": volumes("out")}}}));
        assert_eq!((export.source.as_str(), export.links.len()), ("VirtualMachine/web", 4));
        assert!(!export.links[0].external && export.links[2].external);
        assert_eq!(export.links[2].url, "https://out/disk.img");
        assert_eq!(Export::of(&json!({})).phase, "Pending");
    }
}
