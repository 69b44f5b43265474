//! The processes of pods with virt-steward's own image. There is no container engine: the program
//! runs on this machine, with the environment and the arguments of the container, a kubeconfig with
//! the token of the pod's service account, and directories of ours for its mounts. Arguments and
//! variables that name a mount path get the directory.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use apimachinery::tree::{Value, json};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use tokio::process::Command;
use tokio::sync::Notify;

use super::super::client::Client;
use super::super::json::{list, name, namespace, text, uid};
use super::super::launcher::Domain;
use super::super::resource::{SECRETS, SERVICE_ACCOUNTS};
use super::super::storage::disks::files_below;

/// The image that can be run, from whatever registry.
const IMAGE: &str = "virt-steward";
/// Seconds that a pod's token is good for.
const TOKEN_SECONDS: u32 = 86_400;
/// The end of the log that becomes the message of a failed container
/// (`FallbackToLogsOnError`: 2048 bytes).
const MESSAGE: usize = 2048;

/// What runs for the image.
#[derive(Clone, Eq, PartialEq)]
pub struct Program {
    /// The program.
    pub binary: PathBuf,
    /// A kubeconfig of the cluster; its user is replaced by the pod's account.
    pub kubeconfig: String,
}

impl std::fmt::Debug for Program {
    /// Without the kubeconfig, which holds a key.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Program").field("binary", &self.binary).finish_non_exhaustive()
    }
}

/// All processes of pods. Cloning gives another handle to the same ones.
#[derive(Clone, Default)]
pub struct Programs(Option<Arc<Shared>>);

type Listener = Box<dyn Fn(&str) + Send + Sync>;

struct Shared {
    program: Program,
    client: Client,
    home: PathBuf,
    next: AtomicU32,
    pods: Mutex<HashMap<String, Arc<Process>>>,
    ended: OnceLock<Listener>,
}

struct Process {
    key: String,
    home: PathBuf,
    /// Exit code and message, when it is over.
    end: Mutex<Option<(i32, String)>>,
    stop: Notify,
}

impl Programs {
    /// Programs with their files below `home`; `None`: nothing is run.
    pub fn new(program: Option<Program>, client: &Client, home: PathBuf) -> io::Result<Self> {
        let Some(program) = program else { return Ok(Self(None)) };
        std::fs::metadata(&program.binary)?;
        Ok(Self(Some(Arc::new(Shared {
            program,
            client: client.clone(),
            home,
            next: AtomicU32::new(0),
            pods: Mutex::default(),
            ended: OnceLock::new(),
        }))))
    }

    /// Calls a function with the key of a pod whose process ended.
    pub fn on_end(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        if let Some(shared) = &self.0 {
            let _ = shared.ended.set(Box::new(listener));
        }
    }

    /// How the process of a pod is; the first question about a pod that is Running starts it.
    /// `None`: there is none behind it.
    pub fn state(&self, pod: &Value) -> Option<Domain> {
        let shared = self.0.as_ref()?;
        let ours =
            pod["metadata"]["ownerReferences"][0]["kind"] == "Job" && is_ours(&pod["spec"]["containers"][0]);
        if !ours {
            return None;
        }
        let mut pods = shared.pods();
        if let Some(process) = pods.get(uid(pod)) {
            let end = process.end.lock().unwrap_or_else(PoisonError::into_inner);
            return Some(match &*end {
                None => Domain::Running,
                Some((code, _)) => Domain::Gone { crashed: *code != 0 },
            });
        }
        if text(pod, "/status/phase") != "Running" {
            return None;
        }
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let process = Arc::new(Process {
            key: super::super::json::key(pod),
            home: shared.home.join(format!("pods/{number}")),
            end: Mutex::default(),
            stop: Notify::new(),
        });
        pods.insert(uid(pod).to_owned(), process.clone());
        tokio::spawn(live(shared.clone(), process, pod.clone()));
        Some(Domain::Running)
    }

    /// How a pod's process ended: exit code, and what it said last when it failed.
    pub fn end(&self, pod_uid: &str) -> Option<(i32, String)> {
        let process = self.0.as_ref()?.pods().get(pod_uid).cloned()?;
        let end = process.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.clone()
    }

    /// Asks a pod's process to end.
    pub fn stop(&self, pod_uid: &str) {
        if let Some(process) = self.0.as_ref().and_then(|shared| shared.pods().get(pod_uid).cloned()) {
            process.stop.notify_one();
        }
    }

    /// The log of a pod.
    pub fn log(&self, pod_uid: &str) -> Option<PathBuf> {
        let process = self.0.as_ref()?.pods().get(pod_uid).cloned()?;
        Some(process.home.join("log"))
    }

    /// A pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        let Some(process) = self.0.as_ref().and_then(|shared| shared.pods().remove(pod_uid)) else { return };
        process.stop.notify_one();
        let _ = std::fs::remove_dir_all(&process.home);
    }

    /// What a claim holds that pods mount as a directory.
    pub fn claim(&self, namespace: &str, claim: &str) -> Option<PathBuf> {
        Some(files_below(&self.0.as_ref()?.home, namespace, claim))
    }
}

impl Shared {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ours(container: &Value) -> bool {
    let image = text(container, "/image");
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    image.rsplit('/').next().unwrap_or_default().split(':').next() == Some(IMAGE)
}

async fn live(shared: Arc<Shared>, process: Arc<Process>, pod: Value) {
    let end = match run(&shared, &process, &pod).await {
        Ok(end) => end,
        // As a runtime that cannot make the container.
        Err(error) => (128, format!("failed to start container: {error}")),
    };
    *process.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    if let Some(tell) = shared.ended.get() {
        tell(&process.key);
    }
}

async fn run(shared: &Shared, process: &Process, pod: &Value) -> io::Result<(i32, String)> {
    std::fs::create_dir_all(&process.home)?;
    let container = &pod["spec"]["containers"][0];
    let places = mounts(shared, process, pod, container).await?;
    let translate = |argument: &str| {
        places.iter().fold(argument.to_owned(), |text, (path, place)| text.replace(path.as_str(), place))
    };
    let log = std::fs::File::create(process.home.join("log"))?;
    let mut command = Command::new(&shared.program.binary);
    command.args(list(container, "/args").iter().filter_map(Value::as_str).map(translate));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &process.home);
    for (key, value) in environment(shared, pod, container).await? {
        command.env(key, translate(&value));
    }
    let kubeconfig = process.home.join("kubeconfig");
    std::fs::write(&kubeconfig, account(shared, pod).await?)?;
    let mut child = command
        .env("KUBECONFIG", &kubeconfig)
        .current_dir(&process.home)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let status = tokio::select! {
        status = child.wait() => status?,
        () = process.stop.notified() => {
            child.kill().await?;
            child.wait().await?
        }
    };
    let code = status.code().unwrap_or(137);
    let said = std::fs::read(process.home.join("log")).unwrap_or_default();
    let last = said.get(said.len().saturating_sub(MESSAGE)..).unwrap_or_default();
    let message = if code == 0 { String::new() } else { String::from_utf8_lossy(last).into_owned() };
    Ok((code, message))
}

/// Mount paths of a container, and what is there on this machine.
async fn mounts(
    shared: &Shared,
    process: &Process,
    pod: &Value,
    container: &Value,
) -> io::Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for (number, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let volume = list(pod, "/spec/volumes").iter().find(|volume| volume["name"] == mount["name"]);
        let Some(volume) = volume else { continue };
        let place = match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => files_below(&shared.home, namespace(pod), claim),
            None => process.home.join(format!("volume-{number}")),
        };
        std::fs::create_dir_all(&place)?;
        if let Some(secret) = volume["secret"]["secretName"].as_str() {
            for (key, value) in secret_data(shared, pod, secret).await? {
                std::fs::write(place.join(key), value)?;
            }
        }
        out.push((text(mount, "/mountPath").to_owned(), place.display().to_string()));
    }
    // The longest first: `/data/in` must not become what stands for `/data`.
    out.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    Ok(out)
}

async fn environment(shared: &Shared, pod: &Value, container: &Value) -> io::Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    for from in list(container, "/envFrom") {
        if let Some(secret) = from["secretRef"]["name"].as_str() {
            for (key, value) in secret_data(shared, pod, secret).await? {
                out.push((key, String::from_utf8_lossy(&value).into_owned()));
            }
        }
    }
    for variable in list(container, "/env") {
        let key = text(variable, "/name").to_owned();
        let source = &variable["valueFrom"];
        let value = if let Some(secret) = source["secretKeyRef"]["name"].as_str() {
            let wanted = text(source, "/secretKeyRef/key");
            let data = secret_data(shared, pod, secret).await?;
            let found = data.into_iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
            String::from_utf8_lossy(&found.unwrap_or_default()).into_owned()
        } else {
            match text(source, "/fieldRef/fieldPath") {
                "metadata.name" => name(pod).to_owned(),
                "metadata.namespace" => namespace(pod).to_owned(),
                "metadata.uid" => uid(pod).to_owned(),
                _ => text(variable, "/value").to_owned(),
            }
        };
        out.push((key, value));
    }
    Ok(out)
}

async fn secret_data(shared: &Shared, pod: &Value, secret: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = SECRETS.path(namespace(pod), secret, "");
    let found = shared.client.get(None, &path).await;
    let found = found.map_err(|error| io::Error::other(format!("secret {secret:?}: {}", error.message())))?;
    let data = found["data"].as_object().into_iter().flatten();
    Ok(data
        .filter_map(|(key, value)| Some((key.to_string(), BASE64_STANDARD.decode(value.as_str()?).ok()?)))
        .collect())
}

/// A kubeconfig with the token of the pod's service account.
async fn account(shared: &Shared, pod: &Value) -> io::Result<String> {
    let account = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        name => name,
    };
    let path = SERVICE_ACCOUNTS.path(namespace(pod), account, "token");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS}});
    let answer = shared.client.send(None, Method::POST, &path, "application/json", &request).await;
    let answer = answer.map_err(|error| {
        io::Error::other(format!("the token of the service account {account:?}: {}", error.message()))
    })?;
    let mut config: Value = serde_saphyr::from_str(&shared.program.kubeconfig)
        .map_err(|error| io::Error::other(error.to_string()))?;
    config["users"] = json!([{"name": account, "user": {"token": answer["status"]["token"]}}]);
    config["contexts"][0]["context"]["user"] = account.into();
    config["contexts"][0]["context"]["namespace"] = namespace(pod).into();
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_known_by_its_name() {
        for (image, expected) in [
            ("registry.example:5000/team/virt-steward:0.1.0", true),
            ("virt-steward@sha256:00", true),
            ("virt-steward-hook", false),
            ("busybox", false),
        ] {
            assert_eq!(is_ours(&json!({"image": image})), expected, "{image}");
        }
    }
}
