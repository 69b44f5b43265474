//! What a review asks: read from the review as it stands, since a delete in a collection has no
//! name, and an eviction no pod.

use serde_json::Value;

/// A question about hotplugged volumes.
pub(super) enum Question<'a> {
    /// May this attachment pod be deleted?
    Pod(&'a Value),
    /// May the attachment pod of this name be evicted?
    EvictedPod(&'a str),
    /// May this launcher pod be forced away?
    Launcher(&'a Value),
    /// May this namespace be deleted?
    Namespace(&'a Value),
    /// May this VMI get other volumes?
    Volumes {
        /// As it is stored.
        old: &'a Value,
        /// As it would be.
        new: &'a Value,
    },
    /// May this migration be asked for?
    Migration(&'a Value),
    /// What should this new attachment pod mount?
    NewPod(&'a Value),
}

/// A question, and who asks.
pub(super) struct Ask<'a> {
    pub(super) question: Question<'a>,
    pub(super) namespace: &'a str,
    pub(super) user: &'a str,
    pub(super) dry_run: bool,
    object: &'a str,
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl<'a> Ask<'a> {
    /// Reads a review; `None`: it is about something else.
    pub(super) fn read(path: &str, review: &'a Value) -> Option<Self> {
        let request = review.get("request")?;
        let (old, new) = (&request["oldObject"], &request["object"]);
        let about = (path, text(request, "/operation"), text(request, "/resource/resource"));
        let (question, object) = match about {
            (super::GUARD, "DELETE", "pods")
                if text(old, "/metadata/labels/kubevirt.io") == "hotplug-disk" =>
            {
                (Question::Pod(old), old)
            }
            (super::GUARD, "DELETE", "pods")
                if text(old, "/metadata/labels/kubevirt.io") == "virt-launcher" =>
            {
                let forced =
                    request.pointer("/options/gracePeriodSeconds").and_then(Value::as_i64) == Some(0);
                (Question::Launcher(old), old.as_object().filter(|_| forced).map(|_| old)?)
            }
            (super::GUARD, "DELETE", "namespaces") => (Question::Namespace(old), old),
            (super::GUARD, "CREATE", "pods") if text(request, "/subResource") == "eviction" => {
                (Question::EvictedPod(text(request, "/name")), new)
            }
            (super::GATE, "UPDATE", "virtualmachineinstances") => (Question::Volumes { old, new }, old),
            (super::GATE, "CREATE", "virtualmachineinstancemigrations") => (Question::Migration(new), new),
            (super::MOUNTS, "CREATE", "pods") => (Question::NewPod(new), new),
            _ => return None,
        };
        let named = text(object, "/metadata/name");
        Some(Self {
            question,
            namespace: text(request, "/namespace"),
            user: text(request, "/userInfo/username"),
            dry_run: request["dryRun"] == true,
            object: if named.is_empty() { text(request, "/name") } else { named },
        })
    }

    /// `namespace/name`
    pub(super) fn name(&self) -> String {
        match self.question {
            Question::Namespace(_) => self.object.to_owned(),
            _ => format!("{}/{}", self.namespace, self.object),
        }
    }

    /// The path of a namespaced object of the core group.
    pub(super) fn path(&self, plural: &str, name: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}/{name}", self.namespace)
    }

    pub(super) const fn webhook(&self) -> &'static str {
        match self.question {
            Question::Pod(_) => "guard",
            Question::EvictedPod(_) => "guard-eviction",
            Question::Launcher(_) => "guard-launcher",
            Question::Namespace(_) => "guard-namespace",
            Question::Volumes { .. } => "gate",
            Question::Migration(_) => "gate-migration",
            Question::NewPod(_) => "mounts",
        }
    }

    /// The HTTP status of a denial. `kubectl drain` tries again on 429 alone. A DELETE must not get
    /// it: with `retryAfter` client-go sleeps inside virt-controller's worker.
    pub(super) const fn code(&self) -> u16 {
        if matches!(self.question, Question::EvictedPod(_)) { 429 } else { 403 }
    }
}
