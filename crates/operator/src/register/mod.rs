//! Telling API servers about us: webhook configurations by server-side apply, kept as they should
//! be, and taken away again when they point at a process that ends.
//!
//! observe (GET: is the CA injected by somebody else?) → decide (`objects::configuration`) → act
//! (apply: no change on the server when nothing differs).

mod hotplug;
mod launcher;
mod objects;
mod resize;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use features::ClusterFacts;
use features::launcher::{HookList, plugin};
use kubevirt::{KubeVirtView, feature_gates};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use objects::{KINDS, Reach};
use objects::{Kind, configuration, is_injected};

use crate::config;
use crate::kubernetes::{Raw, RawError};
use crate::readiness::{Readiness, State};

/// How often the configurations are put right.
const INTERVAL: Duration = Duration::from_secs(10);
/// After a failure.
const RETRY: Duration = Duration::from_secs(3);

/// Keeps the configurations; ends with `stop`.
pub struct Registrar {
    api: Raw,
    register: config::Register,
    reach: Reach,
    resizes: bool,
    hotplug: config::Hotplug,
    /// What the cluster has, when launcher pods are to be registered for.
    launchers: Option<Arc<ArcSwap<ClusterFacts>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {kind} {name}: {source}")]
struct RegisterError {
    verb: &'static str,
    kind: &'static str,
    name: String,
    source: RawError,
}

impl Registrar {
    /// A registrar for one way to reach us.
    pub fn new(api: Raw, register: config::Register, reach: Reach) -> Self {
        Self { api, register, reach, resizes: false, hotplug: config::Hotplug::default(), launchers: None }
    }

    /// Registers the webhook of in-place resize as well.
    #[must_use]
    pub fn with_resize(mut self, on: bool) -> Self {
        self.resizes = on;
        self
    }

    /// Registers the guard and the gate of hotplugged volumes as well.
    #[must_use]
    pub fn with_hotplug(mut self, hotplug: config::Hotplug) -> Self {
        self.hotplug = hotplug;
        self
    }

    /// Registers the webhook for launcher pods as well, and our Plugin while KubeVirt takes Plugins.
    #[must_use]
    pub fn with_launchers(mut self, facts: Option<Arc<ArcSwap<ClusterFacts>>>) -> Self {
        self.launchers = facts;
        self
    }

    /// Applies again on every change of the CA, and every few seconds against drift. With a URL,
    /// nothing is registered before there is a CA, since API servers would trust nobody; a Service
    /// may have its CA written by an injector.
    pub async fn keep(
        &self,
        mut ca_bundle: watch::Receiver<Option<String>>,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) {
        loop {
            let bundle = ca_bundle.borrow_and_update().clone();
            let applied = async {
                if bundle.is_none() && matches!(self.reach, Reach::Url(_)) {
                    return State::Unready("waiting for a CA to register with".into());
                }
                match self.apply(bundle.as_deref()).await {
                    Ok(()) => State::Ok,
                    Err(error) => State::Degraded(error.to_string()),
                }
            };
            let state = tokio::select! {
                () = stop.cancelled() => return,
                state = applied => state,
            };
            let pause = if state == State::Ok { INTERVAL } else { RETRY };
            readiness.set("registration", state);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = ca_bundle.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn path(&self, kind: &Kind) -> String {
        format!("{}/{}", kind.collection, self.register.name)
    }

    fn failed(&self, verb: &'static str, kind: &Kind) -> impl FnOnce(RawError) -> RegisterError {
        let (kind, name) = (kind.name, self.register.name.clone());
        move |source| RegisterError { verb, kind, name, source }
    }

    async fn apply(&self, ca_bundle: Option<&str>) -> Result<(), RegisterError> {
        for kind in &KINDS {
            let path = self.path(kind);
            let injected = match self.api.get(&path).await {
                Ok(object) => is_injected(&object),
                Err(error) if error.code() == Some(404) => false,
                Err(error) => return Err(self.failed("read", kind)(error)),
            };
            let wanted = configuration(kind, &self.register, &self.reach, ca_bundle.filter(|_| !injected));
            self.api.apply(&path, &wanted).await.map_err(self.failed("apply", kind))?;
        }
        if self.resizes {
            self.apply_resize(ca_bundle).await?;
        }
        if self.hotplug.guard || self.hotplug.gate {
            self.apply_hotplug(ca_bundle).await?;
        }
        if let Some(facts) = &self.launchers {
            self.apply_launchers(facts, ca_bundle).await?;
        }
        Ok(())
    }

    /// The webhook first: a Plugin without it would keep VMs from starting. In a Service's cluster the
    /// Plugin is the chart's, so that it goes with the release.
    async fn apply_launchers(
        &self,
        facts: &ArcSwap<ClusterFacts>,
        ca_bundle: Option<&str>,
    ) -> Result<(), RegisterError> {
        let name = launcher::name(&self.register);
        let path = format!("{}/{name}", launcher::COLLECTION);
        let kind = "MutatingWebhookConfiguration";
        let failed = |verb: &'static str| {
            let name = name.clone();
            move |source| RegisterError { verb, kind, name, source }
        };
        let injected = match self.api.get(&path).await {
            Ok(object) => is_injected(&object),
            Err(error) if error.code() == Some(404) => false,
            Err(error) => return Err(failed("read")(error)),
        };
        let wanted = launcher::configuration(&self.register, &self.reach, ca_bundle.filter(|_| !injected));
        self.api.apply(&path, &wanted).await.map_err(failed("apply"))?;
        let takes_plugins = facts.load().kubevirt.as_ref().is_some_and(|kubevirt| {
            feature_gates::is_enabled(KubeVirtView(kubevirt), feature_gates::PLUGINS)
        });
        if takes_plugins && matches!(self.reach, Reach::Url(_)) {
            let name = features::launcher::PLUGIN.to_owned();
            let path = format!("{}/{name}", launcher::PLUGINS);
            let mut applied = self.api.apply(&path, &plugin(HookList::Domain)).await;
            if applied.as_ref().is_err_and(|error| launcher::lacks(error, HookList::Domain)) {
                applied = self.api.apply(&path, &plugin(HookList::Launcher)).await;
            }
            applied.map_err(|source| RegisterError { verb: "apply", kind: "Plugin", name, source })?;
        }
        Ok(())
    }

    /// The Plugin first: while it is there KubeVirt waits for the hook, which the webhook adds.
    async fn remove_launchers(&self) {
        let ours = self.reach.client_config(crate::webhook::LAUNCHER);
        let path = format!("{}/{}", launcher::COLLECTION, launcher::name(&self.register));
        let Ok(object) = self.api.get(&path).await else { return };
        if object["webhooks"][0]["clientConfig"]["url"] != ours["url"] {
            return;
        }
        let plugin = format!("{}/{}", launcher::PLUGINS, features::launcher::PLUGIN);
        for (path, guard) in [(plugin, json!({})), (path, json!({"uid": object["metadata"]["uid"]}))] {
            match self.api.delete(&path, guard).await {
                Ok(_) => tracing::info!(path, "removed"),
                Err(error) if error.code() == Some(404) => {}
                Err(error) => tracing::warn!(path, %error, "it stays behind"),
            }
        }
    }

    async fn apply_resize(&self, ca_bundle: Option<&str>) -> Result<(), RegisterError> {
        let name = resize::name(&self.register);
        let kind = "MutatingWebhookConfiguration";
        let path = format!("{}/{name}", resize::COLLECTION);
        let failed = |verb: &'static str| {
            let name = name.clone();
            move |source| RegisterError { verb, kind, name, source }
        };
        let injected = match self.api.get(&path).await {
            Ok(object) => is_injected(&object),
            Err(error) if error.code() == Some(404) => false,
            Err(error) => return Err(failed("read")(error)),
        };
        let wanted = resize::configuration(&self.register, &self.reach, ca_bundle.filter(|_| !injected));
        self.api.apply(&path, &wanted).await.map_err(failed("apply"))?;
        Ok(())
    }

    /// It fails open, so one that stays behind costs a timeout and nothing else.
    async fn remove_resize(&self) {
        let path = format!("{}/{}", resize::COLLECTION, resize::name(&self.register));
        let Ok(object) = self.api.get(&path).await else { return };
        let ours = self.reach.client_config(crate::resize::PATH);
        if object["webhooks"][0]["clientConfig"]["url"] != ours["url"] {
            return;
        }
        match self.api.delete(&path, json!({"uid": object["metadata"]["uid"]})).await {
            Ok(_) => tracing::info!(path, "removed"),
            Err(error) => tracing::warn!(path, %error, "the webhook configuration stays behind"),
        }
    }

    async fn apply_hotplug(&self, ca_bundle: Option<&str>) -> Result<(), RegisterError> {
        let name = hotplug::name(&self.register);
        for (collection, wanted) in
            hotplug::configurations(&self.register, self.hotplug, &self.reach, ca_bundle)
        {
            let failed = |source| RegisterError {
                verb: "apply",
                kind: "the hotplug webhook configuration",
                name: name.clone(),
                source,
            };
            self.api.apply(&format!("{collection}/{name}"), &wanted).await.map_err(failed)?;
        }
        Ok(())
    }

    /// A guard that is left behind would hold deletes up, so it goes first.
    async fn remove_hotplug(&self) {
        let name = hotplug::name(&self.register);
        for collection in [hotplug::VALIDATING, hotplug::MUTATING] {
            let path = format!("{collection}/{name}");
            let Ok(object) = self.api.get(&path).await else { continue };
            let url = &object["webhooks"][0]["clientConfig"]["url"];
            let Reach::Url(base) = &self.reach else { continue };
            if !url.as_str().is_some_and(|url| url.starts_with(base.trim_end_matches('/'))) {
                continue;
            }
            let guard = json!({"uid": object["metadata"]["uid"]});
            match self.api.delete(&path, guard).await {
                Ok(_) => tracing::info!(path, "removed"),
                Err(error) => tracing::warn!(path, %error, "the webhook configuration stays behind"),
            }
        }
    }

    /// Takes the configurations away, if they still point at us.
    pub async fn remove(&self) {
        if self.resizes {
            self.remove_resize().await;
        }
        if self.hotplug.guard || self.hotplug.gate {
            self.remove_hotplug().await;
        }
        if self.launchers.is_some() {
            self.remove_launchers().await;
        }
        for kind in &KINDS {
            match self.remove_one(kind).await {
                Ok(true) => tracing::info!(kind = kind.name, name = self.register.name, "removed"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the webhook configuration stays behind"),
            }
        }
    }

    async fn remove_one(&self, kind: &Kind) -> Result<bool, RegisterError> {
        let path = self.path(kind);
        let object = match self.api.get(&path).await {
            Ok(object) => object,
            Err(error) if error.code() == Some(404) => return Ok(false),
            Err(error) => return Err(self.failed("read", kind)(error)),
        };
        let ours = self.reach.client_config(kind.path);
        if object["webhooks"][0]["clientConfig"]["url"] != ours["url"] {
            return Ok(false);
        }
        let metadata = &object["metadata"];
        let guard = json!({"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]});
        match self.api.delete(&path, guard).await {
            Ok(_) => Ok(true),
            // Gone, or changed by somebody else since it was read.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(self.failed("delete", kind)(error)),
        }
    }
}
