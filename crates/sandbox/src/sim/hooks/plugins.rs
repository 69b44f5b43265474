//! Domain hooks of Plugins as virt-launcher runs them (`virtwrap/plugins/{pipeline,sidecar}.go`, v1.9):
//! Plugins by name, hooks in their order, each waited for and asked with the domain of the one before.
//!
//! ```text
//!  no Plugin ─► the domain as it is
//!  a Plugin  ─► the domain through KubeVirt's own types (what they do not know is gone) ─► hooks ─► domain
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use apimachinery::cel::{Program, Variables};
use apimachinery::tree::{Value, json};
use hook_api::MUTATE_DOMAIN_PATH;
use hook_api::plugins::{MutateDomainRequest, MutateDomainResponse, SidecarContext};
use tokio::time::Instant;

use super::call::{RpcError, dial, unary};
use super::domain;
use crate::sim::json::{list, text};

/// Where compute sees the sockets of plugins.
pub const DIRECTORY: &str = "/var/run/kubevirt-plugin";

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct PluginTiming {
    /// Between two looks for a socket.
    pub poll: Duration,
    /// Until a socket is there.
    pub ready: Duration,
    /// For a connection.
    pub dial: Duration,
    /// For an answer, where the hook says nothing.
    pub call: Duration,
}

impl Default for PluginTiming {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(500),
            ready: Duration::from_secs(30),
            dial: Duration::from_secs(5),
            call: Duration::from_secs(30),
        }
    }
}

/// The domain after all hooks of all Plugins that are for a VMI. `directory` is what compute sees at
/// `DIRECTORY`.
///
/// # Errors
/// In virt-launcher's words.
pub async fn apply(
    plugins: &[Value],
    vmi: &Value,
    xml: Vec<u8>,
    directory: &Path,
    timing: PluginTiming,
) -> Result<Vec<u8>, String> {
    if plugins.is_empty() {
        return Ok(xml);
    }
    let mut xml = domain::through_kubevirts_types(xml);
    let mut sorted: Vec<&Value> = plugins.iter().collect();
    sorted.sort_by_key(|plugin| text(plugin, "/metadata/name"));
    for plugin in sorted {
        let name = text(plugin, "/metadata/name");
        if !is_met(text(plugin, "/spec/condition"), vmi)
            .map_err(|error| format!("plugin {name} condition evaluation failed: {error}"))?
        {
            continue;
        }
        for (index, hook) in list(plugin, "/spec/domainHooks").iter().enumerate() {
            let failed = |error: String| format!("plugin {name} hook {index} failed: {error}");
            let is_for = is_met(text(hook, "/condition"), vmi).map_err(|error| {
                format!("plugin {name} hook {index} condition evaluation failed: {error}")
            })?;
            // hooks in CEL are not simulated
            let socket = text(hook, "/sidecar/socketPath");
            if !is_for || socket.is_empty() {
                continue;
            }
            let limit = duration(text(hook, "/timeout")).unwrap_or(timing.call);
            let answer =
                ask((name, socket), (vmi, &xml), directory, PluginTiming { call: limit, ..timing }).await;
            match answer.and_then(|changed| domain::check(&changed).map(|()| changed)) {
                Ok(changed) => xml = changed,
                Err(error) => {
                    let own = text(hook, "/failureStrategy");
                    let strategy = if own.is_empty() { text(plugin, "/spec/failureStrategy") } else { own };
                    if strategy != "Ignore" {
                        return Err(failed(error));
                    }
                    tracing::debug!(plugin = name, error, "a plugin's failure is ignored");
                }
            }
        }
    }
    Ok(xml)
}

async fn ask(
    (plugin, socket): (&str, &str),
    (vmi, xml): (&Value, &[u8]),
    directory: &Path,
    timing: PluginTiming,
) -> Result<Vec<u8>, String> {
    let path = seen(socket, plugin, directory).ok_or_else(|| {
        format!("invalid socket path: socket path {socket:?} is outside {DIRECTORY}/{plugin}/")
    })?;
    let deadline = Instant::now() + timing.ready;
    while !path.exists() {
        if Instant::now() >= deadline {
            return Err(format!("sidecar socket {socket} not ready after {:?}", timing.ready));
        }
        tokio::time::sleep(timing.poll).await;
    }
    if path.is_symlink() {
        return Err(format!(
            "invalid socket path: socket path {socket:?} is a symlink, which is not allowed"
        ));
    }
    let stream = dial(&path, timing.dial)
        .await
        .map_err(|reason| format!("dialing sidecar socket {socket}: {reason}"))?;
    let asked = MutateDomainRequest {
        domain_type: "libvirt".to_owned(),
        domain: xml.to_vec(),
        vmi: vmi.to_string().into_bytes(),
        sidecar_context: Some(SidecarContext { invocation_context: "Boot".to_owned() }),
    };
    let answer: Result<MutateDomainResponse, RpcError> =
        unary(stream, MUTATE_DOMAIN_PATH, &asked, timing.call).await;
    answer.map(|answer| answer.domain).map_err(|error| {
        format!("MutateDomain RPC to {plugin} failed with {}: {}", error.code, error.description)
    })
}

/// Where a socket of a plugin is, when it is in the plugin's own directory.
fn seen(socket: &str, plugin: &str, directory: &Path) -> Option<PathBuf> {
    let below = Path::new(socket).strip_prefix(DIRECTORY).ok()?.strip_prefix(plugin).ok()?;
    let is_below = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    is_below.then(|| directory.join(plugin).join(below))
}

/// A condition over the VMI; an empty one is met. KubeVirt gives CEL its own types (`ext.NativeTypes`), whose
/// fields have the names of Go.
fn is_met(condition: &str, vmi: &Value) -> Result<bool, String> {
    if condition.is_empty() {
        return Ok(true);
    }
    let metadata = |field: &str| vmi["metadata"].get(field).cloned();
    let native = json!({
        "Name": metadata("name").unwrap_or_default(),
        "Namespace": metadata("namespace").unwrap_or_default(),
        "Labels": metadata("labels").unwrap_or_else(|| json!({})),
        "Annotations": metadata("annotations").unwrap_or_else(|| json!({})),
    });
    let program = Program::compile(condition).map_err(|error| error.to_string())?;
    let mut variables = Variables::default();
    variables.bind("vmi", &native);
    program.evaluate_bool(&variables).map_err(|error| error.to_string())
}

/// A duration of whole seconds or minutes (`metav1.Duration`).
fn duration(text: &str) -> Option<Duration> {
    let number = |text: &str| text.parse().ok();
    match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(seconds), _) => number(seconds).map(Duration::from_secs),
        (_, Some(minutes)) => number(minutes).map(|minutes: u64| Duration::from_secs(60 * minutes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_speak_of_kubevirts_types() {
        let vmi = json!({"metadata": {"name": "a", "annotations": {"x/y": "1"}}});
        for (condition, expected) in [
            ("", Ok(true)),
            ("'x/y' in vmi.Annotations", Ok(true)),
            ("'x/z' in vmi.Annotations", Ok(false)),
            ("vmi.Name == 'a' && !('b' in vmi.Labels)", Ok(true)),
        ] {
            assert_eq!(is_met(condition, &vmi), expected, "{condition}");
        }
        assert!(is_met("vmi.metadata.name == 'a'", &vmi).is_err(), "not the names of JSON");
        assert!(is_met("(", &vmi).is_err());
    }

    #[test]
    fn sockets_are_in_the_directory_of_their_plugin() {
        let home = Path::new("/home");
        assert_eq!(
            seen("/var/run/kubevirt-plugin/p/a.sock", "p", home).as_deref(),
            Some(Path::new("/home/p/a.sock"))
        );
        for wrong in
            ["/var/run/kubevirt-plugin/q/a.sock", "/var/run/kubevirt-plugin/p/../q/a.sock", "/a.sock"]
        {
            assert_eq!(seen(wrong, "p", home), None, "{wrong}");
        }
        assert_eq!(
            (duration("10s"), duration("2m"), duration("")),
            (Some(Duration::from_secs(10)), Some(Duration::from_mins(2)), None)
        );
    }
}
