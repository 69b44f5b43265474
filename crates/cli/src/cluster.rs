//! A cluster, spoken to in raw JSON: facts and lookups for `admit`, requests for the demo. Operations on VMs
//! are the `provider` crate's.

use anyhow::Result;
use features::{Lookup, Need};
use http::header::{CONTENT_TYPE, WARNING};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use kubevirt::inventory::COLLECTION;
use serde_json::Value;

use crate::connection::{ClusterArgs, config};
use crate::inventory::Inventory;
use crate::problem::Problem;

/// Objects per page of a list, as kubectl asks for them.
const PAGE: usize = 500;

/// An answer of the API server.
#[derive(Debug)]
pub struct Reply {
    /// Success or not.
    pub status: StatusCode,
    /// The object, or a `Status`.
    pub body: Value,
    /// What the Warning headers say.
    pub warnings: Vec<String>,
}

impl Reply {
    /// The object; a refusal is an error of what was being done.
    pub fn object(self, doing: &str) -> Result<Value> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let message = self.body["message"].as_str().unwrap_or("the API server gave no reason").to_owned();
        Err(Problem::new(doing, message, "see the API server's message").into())
    }
}

/// The text of a Warning header as API servers write it, `299 - "text"` (RFC 9111, section 5.5).
fn warning(header: &str) -> Option<String> {
    let text = header.strip_prefix("299 - \"")?.strip_suffix('"')?;
    Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
}

/// The most pages of one list: a million objects.
const MAX_PAGES: usize = 2000;

/// The largest answer that is read, bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A connection to a cluster.
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Connects with a kubeconfig file, or with what kubectl would use, or as the pod that this is.
    pub async fn connect(kubeconfig: Option<&std::path::Path>, context: Option<String>) -> Result<Self> {
        let args = ClusterArgs { kubeconfig: kubeconfig.map(Into::into), context };
        let mut config = config(&args).await?;
        // a write must not be sent twice
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| {
            let remedy = "check `kubectl cluster-info`, or name a file with `--kubeconfig`";
            Problem::new("connecting to the cluster", error, remedy)
        })?;
        Ok(Self { client })
    }

    /// The client itself, for what makes its own requests.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace that the kubeconfig names, `default` otherwise.
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Reads nodes, the KubeVirt object and Harvester's devices.
    pub async fn read_facts(&self, inventory: &mut Inventory) -> Result<()> {
        let origin = "the cluster";
        for path in ["/api/v1/nodes", "/apis/kubevirt.io/v1/kubevirts"] {
            for object in self.list(path).await?.unwrap_or_default() {
                inventory.add(object, "", origin)?;
            }
        }
        // where agents publish, and where KubeVirt takes Plugins
        for (kind, path) in
            [("NodeInventory", COLLECTION), ("Plugin", "/apis/plugin.kubevirt.io/v1alpha1/plugins")]
        {
            if let Some(objects) = self.list(path).await? {
                inventory.expect(kind);
                for object in objects {
                    inventory.add(object, "", origin)?;
                }
            }
        }
        // Harvester only: absent elsewhere
        for kind in ["pcidevices", "pcideviceclaims"] {
            let path = format!("/apis/devices.harvesterhci.io/v1beta1/{kind}");
            if let Some(objects) = self.list(&path).await? {
                inventory.expect_pci_devices();
                for object in objects {
                    inventory.add(object, "", origin)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what a VM names.
    pub async fn lookup(&self, namespace: &str, need: &Need) -> Lookup {
        match self.get(&need.path(namespace)).await {
            Ok(object) => Lookup::Found(object),
            Err(kube::Error::Api(status)) if status.code == 404 => Lookup::NotFound,
            Err(error) => Lookup::Failed(error.to_string()),
        }
    }

    /// All objects of a list, or `None` when the cluster does not know the kind.
    pub async fn list(&self, path: &str) -> Result<Option<Vec<Value>>> {
        let problem = |wrong: String| {
            Problem::new(
                format!("listing `{path}`"),
                wrong,
                "check that you may list it: `kubectl auth can-i list`",
            )
        };
        let mut objects = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let mut page = match self.get(&format!("{path}?limit={PAGE}&continue={token}")).await {
                Ok(page) => page,
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
                Err(error) => return Err(problem(error.to_string()).into()),
            };
            // the items of a list carry neither apiVersion nor kind
            let version = page["apiVersion"].take();
            let kind = page["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_owned();
            let Value::Array(items) = page["items"].take() else {
                return Err(problem("the answer has no items".into()).into());
            };
            objects.extend(items.into_iter().map(|mut item| {
                item["apiVersion"] = version.clone();
                item["kind"] = kind.clone().into();
                item
            }));
            page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut token);
            if token.is_empty() {
                return Ok(Some(objects));
            }
        }
        Err(problem(format!("more than {} objects", PAGE * MAX_PAGES)).into())
    }

    /// Sends a JSON body; the answer may be a refusal.
    pub async fn send(&self, method: Method, path: &str, content_type: &str, body: &Value) -> Result<Reply> {
        let problem = |wrong: String| {
            Problem::new(format!("sending {method} `{path}`"), wrong, "check that the API server runs")
        };
        let request = http::Request::builder()
            .method(&method)
            .uri(path)
            .header(CONTENT_TYPE, content_type)
            .body(Body::from(body.to_string().into_bytes()))
            .map_err(|error| problem(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| problem(error.to_string()))?;
        let status = response.status();
        let warnings =
            response.headers().get_all(WARNING).iter().filter_map(|value| warning(value.to_str().ok()?));
        let warnings = warnings.collect();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| problem(error.to_string()))?
            .to_bytes();
        let body = serde_json::from_slice(&bytes).map_err(|error| problem(error.to_string()))?;
        Ok(Reply { status, body, warnings })
    }

    /// Sends a request with headers of its own; the answer may be a refusal.
    pub async fn request(&self, request: http::Request<Body>) -> Result<(StatusCode, Value)> {
        let what = format!("sending {} `{}`", request.method(), request.uri());
        let problem = |wrong: String| Problem::new(what.clone(), wrong, "check that the API server runs");
        let response = self.client.send(request).await.map_err(|error| problem(error.to_string()))?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| problem(error.to_string()))?
            .to_bytes();
        Ok((status, serde_json::from_slice(&bytes).map_err(|error| problem(error.to_string()))?))
    }

    /// Reads an object.
    pub async fn get(&self, path: &str) -> kube::Result<Value> {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_unquoted() {
        assert_eq!(warning(r#"299 - "a \"b\" \\ c""#).as_deref(), Some(r#"a "b" \ c"#));
        assert_eq!(warning("199 - \"other\""), None);
    }
}
