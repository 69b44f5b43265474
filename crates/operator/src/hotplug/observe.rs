//! Live reads, and the verdicts on them.

use std::time::{Duration, Instant};

use futures::future::{join, join_all, try_join, try_join3};
use hotplug::gate::{self, Change};
use hotplug::guard::{self, Denial, Forced, Observation, Verdict, decide_forced, decide_namespace};
use hotplug::policy::{Class, Classes};
use hotplug::view::{AttachmentPod, Instance, Launcher, Node, Usage};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::ask::Ask;
use super::lease::Stored;
use super::{ATTEMPTS, Answer, Steward};
use crate::kubernetes::{Raw, RawError};

/// How long the opt-ins of storage classes are remembered: nobody changes them in a hurry.
const CLASSES_FOR: Duration = Duration::from_secs(30);

/// The selector of attachment pods, for a query.
const ATTACHMENT_PODS: &str = "labelSelector=kubevirt.io%3Dhotplug-disk";

/// Something that a verdict needs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The API server refused, or was away.
    #[error("{0}")]
    Api(#[from] RawError),
    /// It took too long.
    #[error("the API server did not answer within {0} s")]
    Slow(u64),
    /// Other replicas were always faster.
    #[error("too many decisions about this VM at the same time")]
    Contended,
}

impl Unreadable {
    pub(super) fn slow(limit: Duration) -> Self {
        Self::Slow(limit.as_secs())
    }

    /// Whether trying again would not help: a right is missing.
    pub(super) fn is_for_good(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(error.code(), Some(401 | 403)))
    }
}

/// Opt-ins of storage classes, as they were a moment ago.
#[derive(Default)]
pub(super) struct ClassCache(Mutex<Option<Opted>>);

/// When they were read, and the classes with an opt-in.
type Opted = (Instant, Vec<(String, Class)>);

/// The API answers "not there" like any other answer here.
pub(super) async fn find(api: &Raw, path: &str) -> Result<Value, Unreadable> {
    match api.get(path).await {
        Ok(object) => Ok(object),
        Err(error) if error.code() == Some(404) => Ok(Value::Null),
        Err(error) => Err(error.into()),
    }
}

fn some(object: &Value) -> Option<&Value> {
    (!object.is_null()).then_some(object)
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// What was read about one launcher.
struct Read {
    namespace: Value,
    launcher: Value,
    pods: Vec<Value>,
    vmi: Value,
    node: Value,
    /// Claims of the pod in question.
    claims: Vec<ClaimRead>,
    events: Value,
}

impl Read {
    fn observation<'a>(&'a self, pod: &AttachmentPod<'a>) -> Observation<'a> {
        let launcher =
            some(&self.launcher).map(Launcher::read).filter(|launcher| pod.launcher == Some(launcher.uid));
        let instance = launcher.as_ref().and_then(|launcher| {
            some(&self.vmi).map(Instance::read).filter(|instance| instance.uid == launcher.instance)
        });
        Observation {
            pod: pod.clone(),
            namespace_terminating: is_terminating(&self.namespace),
            namespace_break_glass: has_break_glass(&self.namespace),
            siblings: self
                .pods
                .iter()
                .filter_map(AttachmentPod::read)
                .filter(|other| other.launcher == pod.launcher)
                .collect(),
            node: some(&self.node).map(Node::read),
            classes: classes(&self.claims),
            unmountable: unmountable(&self.events, pod, &self.claims),
            launcher,
            instance,
        }
    }
}

fn is_terminating(namespace: &Value) -> bool {
    namespace.is_null() || namespace.pointer("/metadata/deletionTimestamp").is_some()
}

fn has_break_glass(object: &Value) -> bool {
    object["metadata"]["annotations"][hotplug::annotations::BREAK_GLASS] == "true"
}

/// A claim, as far as a verdict asks for it.
pub(super) struct ClaimRead {
    name: String,
    pub(super) class: Class,
    /// The volume behind it, as kubelets call it in events.
    volume: String,
}

pub(super) fn classes(claims: &[ClaimRead]) -> Classes<'_> {
    claims.iter().map(|claim| (claim.name.as_str(), claim.class)).collect()
}

/// Volumes of `pod` that kubelets report they cannot mount into another pod, by the uid of that. `MountVolume.SetUp` and
/// `MapVolume.SetUpDevice` quote the `PersistentVolume`; the summary that follows lists volumes of the pod
/// (`unmounted volumes=[a b]`).
pub(super) fn unmountable<'a>(
    events: &'a Value,
    pod: &AttachmentPod<'a>,
    claims: &[ClaimRead],
) -> Vec<(&'a str, &'a str)> {
    let failed = |event: &&Value| {
        matches!(event["reason"].as_str(), Some("FailedMount" | "FailedMapVolume" | "FailedAttachVolume"))
    };
    let mut found = Vec::new();
    for event in items(events).iter().filter(failed) {
        let uid = event["involvedObject"]["uid"].as_str().unwrap_or_default();
        let message = event["message"].as_str().unwrap_or_default();
        let listed = message.split_once("unmounted volumes=[").and_then(|(_, rest)| rest.split_once(']'));
        let listed = listed.map_or("", |(names, _)| names);
        for volume in &pod.volumes {
            let behind = claims.iter().find(|claim| claim.name == volume.claim);
            let behind = behind.map_or("", |claim| claim.volume.as_str());
            let quoted = |name: &str| !name.is_empty() && message.contains(&format!("\"{name}\""));
            let named = listed.split([' ', ',']).any(|name| name == volume.name);
            if named || quoted(behind) || quoted(volume.name) {
                found.push((uid, volume.name));
            }
        }
    }
    found
}

impl Steward {
    /// An attachment pod is to go.
    pub(super) async fn pod(&self, ask: &Ask<'_>, object: &Value) -> Result<Answer, Unreadable> {
        let Some(pod) = AttachmentPod::read(object) else { return Ok(Answer::allow("not-concerned")) };
        // What the pod itself decides needs no reads, and must not depend on any.
        if pod.deleting || pod.phase.is_final() || pod.trigger || pod.node.is_empty() {
            return Ok(Answer::allow("pod"));
        }
        for _ in 0..ATTEMPTS {
            let stored =
                Stored::read(&self.api, ask.namespace, (pod.launcher_name, pod.launcher.unwrap_or_default()));
            let read = self.read(ask.namespace, &pod);
            let (stored, read) = try_join(stored, read).await?;
            if let Some(answer) = self.judge(ask, &pod, &stored, &read).await? {
                return Ok(answer);
            }
        }
        Err(Unreadable::Contended)
    }

    /// `None`: somebody else has decided meanwhile, and it has to be looked at again.
    async fn judge(
        &self,
        ask: &Ask<'_>,
        pod: &AttachmentPod<'_>,
        stored: &Stored,
        read: &Read,
    ) -> Result<Option<Answer>, Unreadable> {
        let (now, limits) = (self.now(), &self.limits);
        let seen = read.observation(pod);
        let mut record = stored.record.clone();
        record.prune(now, limits.grant, |uid| seen.siblings.iter().any(|other| other.uid == uid));
        if let Some(instance) = &seen.instance {
            record.learn(instance, &seen.siblings, &seen.classes);
        }
        let learnt = record.taken != stored.record.taken;
        match guard::decide(&seen, &record, limits, now) {
            Verdict::Allow(reason) => {
                self.denied.lock().forget(pod.uid);
                let counts = matches!(reason, guard::Reason::Covered | guard::Reason::ExclusivePublish);
                if counts && !ask.dry_run {
                    record.grant(pod.uid, now);
                    if !stored.write(&self.api, &record).await? {
                        return Ok(None);
                    }
                }
                Ok(Some(Answer::allow(reason_word(reason))))
            }
            Verdict::Deny(mut denial) => {
                if !ask.dry_run {
                    let fresh = !record.denied.contains_key(pod.uid);
                    denial.since = record.deny(pod.uid, now);
                    // The denial stands without the record: what is not noted is pinned as well.
                    let note = async {
                        if fresh || learnt {
                            let _ = stored.write(&self.api, &record).await;
                        }
                    };
                    let tell = async {
                        if fresh {
                            self.event(ask, pod, &denial).await;
                        }
                    };
                    join(note, tell).await;
                    self.denied.lock().note(ask.namespace, pod, denial.since);
                }
                Ok(Some(Answer::deny("uncovered", ask.code(), denial.message(&ask.name()))))
            }
        }
    }

    /// Reads all that a verdict is made of, at once. Which VMI and which node it is about stands in the launcher; but the name
    /// of a launcher has that of its VMI in it, and an attachment pod runs on the node of its launcher, so both are read along
    /// and only what turns out to be another one is read again.
    async fn read(&self, namespace: &str, pod: &AttachmentPod<'_>) -> Result<Read, Unreadable> {
        let core = format!("/api/v1/namespaces/{namespace}");
        // Only a pod of the same node can serve the guest: the others need not be read.
        let pods_path = format!("{core}/pods?{ATTACHMENT_PODS}&fieldSelector=spec.nodeName%3D{}", pod.node);
        let launcher_path = format!("{core}/pods/{}", pod.launcher_name);
        let guessed = instance_of(pod.launcher_name);
        let uid = pod.launcher.unwrap_or_default();
        let claims = self.claims(namespace, pod.volumes.iter().map(|volume| volume.claim));
        let ((namespace_object, launcher, pods), (mut vmi, mut node), claims) = try_join3(
            try_join3(
                find(&self.api, &core),
                find(&self.api, &launcher_path),
                self.siblings(&pods_path, uid),
            ),
            try_join(
                find_if(&self.api, !guessed.is_empty(), &vmi_path(namespace, guessed)),
                find(&self.api, &node_path(pod.node)),
            ),
            claims,
        )
        .await?;
        let view = Launcher::read(&launcher);
        if view.instance_name != guessed {
            let path = vmi_path(namespace, view.instance_name);
            vmi = find_if(&self.api, !view.instance_name.is_empty(), &path).await?;
        }
        if view.node != pod.node {
            node = find_if(&self.api, !view.node.is_empty(), &node_path(view.node)).await?;
        }
        let exclusive = claims.iter().any(|claim| claim.class.exclusive_publish);
        let events = format!("{core}/events?fieldSelector=type%3DWarning&limit=500");
        let events = find_if(&self.api, exclusive, &events).await?;
        Ok(Read { namespace: namespace_object, launcher, pods, vmi, node, claims, events })
    }

    /// The attachment pods of one launcher: what a list of all of its node has of it.
    async fn siblings(&self, path: &str, launcher: &str) -> Result<Vec<Value>, Unreadable> {
        Ok(self.api.items(path, |pod| pod.contains(launcher)).await?)
    }

    /// The opt-ins of the claims of a pod; no reads where no storage class has any.
    pub(super) async fn claims(
        &self,
        namespace: &str,
        names: impl Iterator<Item = &str>,
    ) -> Result<Vec<ClaimRead>, Unreadable> {
        let classes = self.opted_classes().await?;
        if classes.is_empty() {
            return Ok(Vec::new());
        }
        let classes = &classes;
        let reads = names.map(|name| async move {
            let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
            let claim = find(&self.api, &path).await?;
            let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
            let found = classes.iter().find(|(name, _)| name == class).map(|(_, class)| *class);
            let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
            Ok(ClaimRead { name: name.to_owned(), class: found.unwrap_or_default(), volume })
        });
        join_all(reads).await.into_iter().collect()
    }

    pub(super) async fn opted_classes(&self) -> Result<Vec<(String, Class)>, Unreadable> {
        if let Some((at, classes)) = &*self.classes.0.lock()
            && at.elapsed() < CLASSES_FOR
        {
            return Ok(classes.clone());
        }
        let list = find(&self.api, "/apis/storage.k8s.io/v1/storageclasses").await?;
        let opted = items(&list)
            .iter()
            .map(|class| (name_of(class).to_owned(), Class::read(class)))
            .filter(|(_, class)| !class.is_plain());
        let opted: Vec<_> = opted.collect();
        *self.classes.0.lock() = Some((Instant::now(), opted.clone()));
        Ok(opted)
    }

    /// A launcher pod is to be forced away.
    pub(super) async fn launcher(&self, ask: &Ask<'_>, object: &Value) -> Result<Answer, Unreadable> {
        let launcher = Launcher::read(object);
        let core = format!("/api/v1/namespaces/{}", ask.namespace);
        let (namespace, pods, (vmi, node)) = try_join3(
            find(&self.api, &core),
            find(&self.api, &format!("{core}/pods?{ATTACHMENT_PODS}")),
            try_join(
                find(&self.api, &vmi_path(ask.namespace, launcher.instance_name)),
                find(&self.api, &format!("/api/v1/nodes/{}", launcher.node)),
            ),
        )
        .await?;
        let pods: Vec<_> = items(&pods).iter().filter_map(AttachmentPod::read).collect();
        let instance = some(&vmi).map(Instance::read).filter(|vmi| vmi.uid == launcher.instance);
        let node = some(&node).map(Node::read);
        let glass = has_break_glass(&namespace)
            || has_break_glass(object)
            || instance.as_ref().is_some_and(|vmi| vmi.break_glass);
        let terminating = is_terminating(&namespace);
        let now = self.now();
        match decide_forced(&launcher, instance.as_ref(), &pods, node.as_ref(), terminating, glass, now) {
            Forced::Allow => Ok(Answer::allow(if glass { "break-glass" } else { "no-filesystem-volume" })),
            Forced::Deny(volumes) => Ok(Answer::deny(
                "filesystem-volume",
                403,
                format!(
                    "forcing launcher pod {} away would take filesystem volumes {} from under a running guest, \
                     and may damage them; delete it without --force, stop the VM, or taint a dead node with \
                     node.kubernetes.io/out-of-service",
                    ask.name(),
                    volumes.join(", ")
                ),
            )),
        }
    }

    /// A namespace that asked for protection is to be deleted.
    pub(super) async fn namespace(&self, ask: &Ask<'_>, object: &Value) -> Result<Answer, Unreadable> {
        let path = format!("{}?limit=500", vmi_path(name_of(object), ""));
        let list = find(&self.api, path.replace("/?", "?").as_str()).await?;
        let instances: Vec<Instance<'_>> = items(&list).iter().map(Instance::read).collect();
        let terminating = object.pointer("/metadata/deletionTimestamp").is_some();
        let running = decide_namespace(terminating, &instances, &self.limits, self.now());
        if running.is_empty() {
            return Ok(Answer::allow("nothing-runs"));
        }
        if has_break_glass(object) {
            return Ok(Answer::allow("break-glass"));
        }
        let shown: Vec<&str> = running.iter().take(10).copied().collect();
        let message = format!(
            "namespace {} is protected (label {}) and {} VMs run in it: {}; stop them first, or take the label away",
            ask.name(),
            hotplug::annotations::PROTECT,
            running.len(),
            shown.join(", ")
        );
        Ok(Answer::deny("vms-run", 403, message))
    }

    /// A VMI is to get other volumes.
    pub(super) async fn volumes(
        &self,
        ask: &Ask<'_>,
        old: &Value,
        new: &Value,
    ) -> Result<Answer, Unreadable> {
        let (old, new) = (Instance::read(old), Instance::read(new));
        let core = format!("/api/v1/namespaces/{}", ask.namespace);
        let launchers = format!(
            "{core}/pods?labelSelector=kubevirt.io%3Dvirt-launcher%2Ckubevirt.io%2Fcreated-by%3D{}",
            old.uid
        );
        let migrations =
            format!("/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstancemigrations", ask.namespace);
        for _ in 0..ATTEMPTS {
            let (launchers, pods, migrations) = try_join3(
                find(&self.api, &launchers),
                find(&self.api, &format!("{core}/pods?{ATTACHMENT_PODS}")),
                find(&self.api, &migrations),
            )
            .await?;
            let active =
                items(&launchers).iter().map(Launcher::read).find(|pod| pod.node == old.node && !pod.down);
            let Some(launcher) = active else { return Ok(Answer::allow("no-launcher")) };
            let names = old.hotplugged().map(|volume| volume.claim);
            let (stored, claims) = try_join(
                Stored::read(&self.api, ask.namespace, (launcher.name, launcher.uid)),
                self.claims(ask.namespace, names),
            )
            .await?;
            let change =
                Change::among(old.clone(), new.clone(), launcher.uid, items(&pods), items(&migrations));
            let now = self.now();
            let mut record = stored.record.clone();
            record.learn(&change.old, &change.pods, &classes(&claims));
            let verdict = gate::decide(&change, &record, &self.limits, now);
            let answer = match verdict {
                gate::Verdict::Allow(gate::Reason::Unchanged) => return Ok(Answer::allow("unchanged")),
                gate::Verdict::Allow(reason) => {
                    record.pass(gate::removed(&change), gate::added(&change), now);
                    Answer::allow(gate_word(reason))
                }
                gate::Verdict::Hold(hold) => {
                    record.hold(now);
                    let reason = if hold.migrating { "migrating" } else { "not-settled" };
                    Answer::deny(reason, 403, hold.message(&ask.name()))
                }
            };
            record.prune(now, self.limits.grant, |_| true);
            if ask.dry_run || record == stored.record || stored.write(&self.api, &record).await? {
                return Ok(answer);
            }
        }
        Err(Unreadable::Contended)
    }

    /// A migration is asked for.
    pub(super) async fn migration(&self, ask: &Ask<'_>, object: &Value) -> Result<Answer, Unreadable> {
        let name = object["spec"]["vmiName"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Ok(Answer::allow("not-concerned"));
        }
        let core = format!("/api/v1/namespaces/{}", ask.namespace);
        for _ in 0..ATTEMPTS {
            let (vmi, launchers, pods) = try_join3(
                find(&self.api, &vmi_path(ask.namespace, name)),
                find(&self.api, &format!("{core}/pods?labelSelector=kubevirt.io%3Dvirt-launcher")),
                find(&self.api, &format!("{core}/pods?{ATTACHMENT_PODS}")),
            )
            .await?;
            let Some(instance) = some(&vmi).map(Instance::read) else {
                return Ok(Answer::allow("no-instance"));
            };
            let launcher = items(&launchers)
                .iter()
                .map(Launcher::read)
                .find(|pod| pod.instance == instance.uid && pod.node == instance.node && !pod.down);
            let Some(launcher) = launcher else { return Ok(Answer::allow("no-launcher")) };
            let stored = Stored::read(&self.api, ask.namespace, (launcher.name, launcher.uid)).await?;
            let pods: Vec<_> = items(&pods)
                .iter()
                .filter_map(AttachmentPod::read)
                .filter(|pod| pod.launcher == Some(launcher.uid))
                .collect();
            let now = self.now();
            let mut record = stored.record.clone();
            let held = gate::decide_migration(&instance, &pods, &record, &self.limits, now);
            record.depart(held.is_some(), now);
            let vm = format!("{}/{name}", ask.namespace);
            let answer = match held {
                None => Answer::allow("settled"),
                Some(departure) => Answer::deny("guest-holds", 403, departure.message(&vm)),
            };
            if ask.dry_run || record == stored.record || stored.write(&self.api, &record).await? {
                return Ok(answer);
            }
        }
        Err(Unreadable::Contended)
    }

    /// A new attachment pod: with a strict class it mounts what KubeVirt leaves out (`skipMount`),
    /// so that the kubelet keeps the volume published. The number of volumes, by which
    /// virt-controller knows its pods, stays as it is.
    pub(super) async fn mounts(&self, ask: &Ask<'_>, object: &Value) -> Result<Answer, Unreadable> {
        let Some(pod) = AttachmentPod::read(object).filter(|pod| !pod.trigger) else {
            return Ok(Answer::allow("not-concerned"));
        };
        if !pod.volumes.iter().any(|volume| volume.usage == Usage::Listed) {
            return Ok(Answer::allow("complete"));
        }
        let claims = self.claims(ask.namespace, pod.volumes.iter().map(|volume| volume.claim)).await?;
        let strict = |claim: &str| claims.iter().any(|one| one.name == claim && one.class.strict);
        let missing: Vec<Value> = pod
            .volumes
            .iter()
            .filter(|volume| volume.usage == Usage::Listed && strict(volume.claim))
            .map(|volume| json!({"name": volume.name, "mountPath": format!("/{}", volume.name)}))
            .collect();
        if missing.is_empty() {
            return Ok(Answer::allow("not-strict"));
        }
        let path = "/spec/containers/0/volumeMounts";
        let mut patch =
            vec![json!({"op": "test", "path": "/spec/containers/0/name", "value": "hotplug-disk"})];
        if object.pointer(path).is_none() {
            patch.push(json!({"op": "add", "path": path, "value": []}));
        }
        patch.extend(
            missing
                .into_iter()
                .map(|mount| json!({"op": "add", "path": format!("{path}/-"), "value": mount})),
        );
        Ok(Answer::patch("completed", Value::Array(patch)))
    }

    /// Tells about a denial that is new, on the pod. Nothing depends on it.
    async fn event(&self, ask: &Ask<'_>, pod: &AttachmentPod<'_>, denial: &Denial) {
        let at = hotplug::view::rfc3339(denial.since);
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "HotplugGuardDenied",
            "metadata": {"generateName": format!("{}-", pod.name), "namespace": ask.namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": ask.namespace, "uid": pod.uid},
            "message": denial.message(&ask.name()),
            "source": {"component": "virt-steward"},
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
        });
        let path = format!("/api/v1/namespaces/{}/events", ask.namespace);
        if let Err(error) = self.api.create(&path, &event).await {
            tracing::debug!(%error, pod = pod.name, "no event was written");
        }
    }
}

async fn find_if(api: &Raw, wanted: bool, path: &str) -> Result<Value, Unreadable> {
    if wanted { find(api, path).await } else { Ok(Value::Null) }
}

/// The VMI of a launcher, going by its name: `virt-launcher-NAME-` and five letters of the API server (template.go, v1.9).
/// Long names are cut; empty where it is none.
fn instance_of(launcher: &str) -> &str {
    let name = launcher.strip_prefix("virt-launcher-").and_then(|rest| rest.rsplit_once('-'));
    name.map_or("", |(name, _)| name)
}

fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

fn vmi_path(namespace: &str, name: &str) -> String {
    format!("/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances/{name}")
}

const fn reason_word(reason: guard::Reason) -> &'static str {
    match reason {
        guard::Reason::Terminating => "terminating",
        guard::Reason::Ended => "ended",
        guard::Reason::Trigger => "trigger",
        guard::Reason::Unscheduled => "unscheduled",
        guard::Reason::NamespaceTerminating => "namespace-terminating",
        guard::Reason::LauncherGone => "launcher-gone",
        guard::Reason::InstanceGone => "instance-gone",
        guard::Reason::ShutdownOverdue => "shutdown-overdue",
        guard::Reason::NotActive => "not-active",
        guard::Reason::NodeLost => "node-lost",
        guard::Reason::BreakGlass => "break-glass",
        guard::Reason::Stuck => "stuck",
        guard::Reason::Covered => "covered",
        guard::Reason::ExclusivePublish => "exclusive-publish",
    }
}

const fn gate_word(reason: gate::Reason) -> &'static str {
    match reason {
        gate::Reason::Unchanged => "unchanged",
        gate::Reason::NotRunning => "not-running",
        gate::Reason::VolumeMigration => "volume-migration",
        gate::Reason::NeverAttached => "never-attached",
        gate::Reason::BreakGlass => "break-glass",
        gate::Reason::Settled => "settled",
        gate::Reason::Overdue => "overdue",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_has_the_name_of_its_vmi_in_its_own() {
        for (launcher, vmi) in [
            ("virt-launcher-vm-x7k2p", "vm"),
            ("virt-launcher-my-db-0-x7k2p", "my-db-0"),
            ("virt-launcher-vm", ""),
            ("another-pod-x7k2p", ""),
        ] {
            assert_eq!(instance_of(launcher), vmi);
        }
    }

    /// What kubelets write, of Kubernetes 1.28 and 1.36: the volume of a pod is not named where one thinks.
    #[test]
    fn what_a_kubelet_cannot_mount_is_found_by_its_volume_or_in_the_summary() {
        let pod = json!({"metadata": {"name": "old", "uid": "u1", "labels": {"kubevirt.io": "hotplug-disk"},
            "ownerReferences": [{"kind": "Pod", "name": "l", "uid": "l", "controller": true}]},
            "spec": {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "persistentVolumeClaim": {"claimName": "logs"}}]}});
        let pod = AttachmentPod::read(&pod).unwrap();
        let claims = [ClaimRead { name: "data".into(), class: Class::default(), volume: "pvc-7".into() }];
        let event = |reason: &str, message: &str| json!({"items": [{"reason": reason, "message": message, "involvedObject": {"uid": "new"}}]});
        for (reason, message, found) in [
            ("FailedMapVolume", "MapVolume.SetUpDevice failed for volume \"pvc-7\" : rpc error", &["a"][..]),
            (
                "FailedMount",
                "Unable to attach or mount volumes: unmounted volumes=[b a], unattached volumes=[], failed to process volumes=[]: timed out",
                &["a", "b"],
            ),
            ("FailedMount", "MountVolume.SetUp failed for volume \"pvc-8\" : rpc error", &[]),
            ("Pulled", "\"pvc-7\"", &[]),
        ] {
            let events = event(reason, message);
            let expected: Vec<(&str, &str)> = found.iter().map(|name| ("new", *name)).collect();
            assert_eq!(unmountable(&events, &pod, &claims), expected, "{message}");
        }
    }
}
