//! One request from the wishes to the patch.
//!
//! ```text
//!  wishes ─► for each feature: plan ─┬─ ok ──► reconcile with the undo record ─► edits
//!                                    └─ err ─► by error mode: deny | keep | strip
//!         ─► prune, record, annotations ─► patch
//! ```
//!
//! A feature plans on the result of the features before it and writes nothing until its plan is
//! complete, so one that fails leaves no half-change.

use json_patch::Patch;
use serde_json::Value;

use crate::annotations::Annotations;
use crate::config::{Config, ErrorMode};
use crate::context::{Context, Plan};
use crate::document::{Addition, Document, ShapeError};
use crate::facts::{ClusterFacts, Lookups};
use crate::feature::Feature;
use crate::json::{self, at, pointer};
use crate::record::{MANAGED, Record};
use crate::site::Shape;
use crate::text::{MAX_ERROR, MAX_WARNING, MAX_WARNINGS, clip};
use crate::wishes::{Origin, Wish, Wishes, metadata_map};
use crate::{
    Outcome, OutcomeResult, Request, Verdict, cpu_pinning, dra_claims, gpu_device_plugin, hugepages,
    igd_opregion, kvm_hidden, nested_virt, numa, pci_passthrough, qemu_arguments, realtime, sriov,
    usb_passthrough, vbios_injection, vfio_passthrough, vgpu,
};

/// Why a feature cannot be given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    NestedVirt(#[from] nested_virt::Error),
    #[error(transparent)]
    PciPassthrough(#[from] pci_passthrough::Error),
    #[error(transparent)]
    GpuDevicePlugin(#[from] gpu_device_plugin::Error),
    #[error(transparent)]
    VbiosInjection(#[from] vbios_injection::Error),
    #[error(transparent)]
    IgdOpregion(#[from] igd_opregion::Error),
    #[error(transparent)]
    QemuArguments(#[from] qemu_arguments::Error),
    #[error(transparent)]
    Compute(#[from] crate::compute::Error),
    #[error(transparent)]
    Devices(#[from] crate::host_device::Error),
    #[error(transparent)]
    DraClaims(#[from] dra_claims::Error),
    #[error(transparent)]
    Sriov(#[from] sriov::Error),
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Decides a request, with the features in a given order. A feature that needs the result of
/// another is moved behind it.
pub(crate) fn admit(
    request: &Request<'_>,
    cluster: &ClusterFacts,
    lookups: &Lookups,
    config: &Config,
    order: [Feature; Feature::ALL.len()],
) -> Verdict {
    if is_out_of_scope(request.object) {
        return Verdict::default();
    }
    let wishes = Wishes::collect(request.object, config, lookups);
    if wishes.is_empty() && !is_managed(request) {
        return Verdict { warnings: warnings(&wishes.warnings), ..Verdict::default() };
    }
    let admission = Admission {
        request,
        cluster,
        lookups,
        config,
        document: Document::new(request.object),
        annotations: Annotations::new(request.object),
        verdict: Verdict::default(),
        denials: Vec::new(),
        undone: false,
        older: older_record(request),
    };
    admission.run(wishes, order)
}

/// An object that is going away is not changed, so that its finalizers can go; one without
/// metadata did not come from an API server.
pub(crate) fn is_out_of_scope(object: &Value) -> bool {
    let Some(Value::Object(metadata)) = object.get("metadata") else { return true };
    metadata.get("deletionTimestamp").is_some_and(|time| !time.is_null())
        || metadata
            .get("annotations")
            .is_some_and(|annotations| !annotations.is_object() && !annotations.is_null())
}

/// Whether there is something of ours on the object, or was.
fn is_managed(request: &Request<'_>) -> bool {
    [Some(request.object), request.old_object].into_iter().flatten().any(|object| {
        metadata_map(object, "annotations").is_some_and(|annotations| {
            annotations.contains_key(MANAGED)
                || Feature::ALL.iter().any(|feature| {
                    annotations.contains_key(feature.applied()) || annotations.contains_key(feature.error())
                })
        })
    })
}

/// The record of the old object, where that of the new one is another: somebody edited it, or this is not the first call.
fn older_record(request: &Request<'_>) -> Record {
    let texts = managed_text(request.object).zip(request.old_object.and_then(managed_text));
    let older = texts.filter(|(new, old)| new != old).and_then(|(_, old)| Record::parse(old).ok());
    older.unwrap_or_default()
}

struct Admission<'a> {
    request: &'a Request<'a>,
    cluster: &'a ClusterFacts,
    lookups: &'a Lookups,
    config: &'a Config,
    document: Document<'a>,
    annotations: Annotations<'a>,
    verdict: Verdict,
    denials: Vec<String>,
    /// Something was taken away, so containers may be empty now.
    undone: bool,
    /// The old object's record, where the new one's is another; otherwise empty.
    older: Record,
}

impl Admission<'_> {
    fn run(mut self, wishes: Wishes<'_>, order: [Feature; Feature::ALL.len()]) -> Verdict {
        let before = self.read_record();
        let mut after = before.clone();
        for feature in by_dependency(order) {
            self.feature(feature, wishes.get(feature), &before, &mut after);
        }
        self.verdict.warnings.extend(wishes.warnings);
        self.verdict.warnings = warnings(&self.verdict.warnings);
        if !self.denials.is_empty() {
            self.verdict.denial = Some(self.denials.join("; "));
            return self.verdict;
        }
        if self.undone {
            after.created = self.document.prune(&before.created);
        }
        let (mut operations, created) = self.document.finish();
        for path in created {
            if !after.created.contains(&path) {
                after.created.push(path);
            }
        }
        after.created.sort_unstable();
        self.annotations.set(MANAGED, after.to_text());
        self.annotations.finish(&mut operations);
        self.verdict.patch = Patch(operations);
        self.verdict
    }

    /// The record of the new object; a full replace by a user drops it, then the old one counts.
    fn read_record(&mut self) -> Record {
        let mut invalid = false;
        let record = [Some(self.request.object), self.request.old_object]
            .into_iter()
            .flatten()
            .filter_map(managed_text)
            .find_map(|text| Record::parse(text).inspect_err(|_| invalid = true).ok());
        if invalid {
            self.verdict.warnings.push(format!(
                "the annotation {MANAGED} was not readable; it is written anew, and what it recorded is not undone"
            ));
        }
        let mut record = record.unwrap_or_default();
        record.keep_unknown(&self.older);
        record
    }

    /// What is there, and the old object's record has and the new one's has not any more. An edit of the record takes nothing
    /// from what was added: without this, a second call would undo what the first had left.
    fn dropped(&self, feature: Feature, before: &Record) -> Vec<Addition> {
        let mut dropped = self.older.additions(feature);
        dropped.retain(|addition| !before.has(addition) && self.document.contains(addition));
        dropped
    }

    fn feature(&mut self, feature: Feature, wish: Option<&Wish<'_>>, before: &Record, after: &mut Record) {
        let owned = before.additions(feature);
        let (enabled, mode) = feature.policy(self.config);
        let Some(wish) = wish else {
            let owned = [owned, self.dropped(feature, before)].concat();
            if !owned.is_empty() {
                after.set(feature, Vec::new());
                self.undo(feature, &owned, after);
                self.report(feature, OutcomeResult::Removed, None, mode);
            }
            self.annotations.set(feature.applied(), None);
            // where wishes are stripped, the error is what is left of one: it stays until the
            // feature is given or a user removes it
            if mode != ErrorMode::StripLabel {
                self.annotations.set(feature.error(), None);
            }
            return;
        };
        if !enabled {
            self.verdict
                .warnings
                .push(format!("{} is switched off by the administrator, it is ignored", feature.name()));
            return;
        }
        let context = Context {
            document: &self.document,
            record: before,
            owned: &owned,
            namespace: self.request.namespace,
            wish,
            cluster: self.cluster,
            lookups: self.lookups,
            config: self.config,
        };
        let planned = plan(feature, &context).and_then(|plan| self.reconcile(feature, &owned, plan, after));
        match planned {
            Ok((plan, changed)) => {
                self.verdict
                    .warnings
                    .extend(plan.warnings.iter().map(|warning| format!("{}: {warning}", feature.name())));
                let tracked = self.config.add_tracking_annotations.then_some(plan.applied);
                self.annotations.set(feature.applied(), tracked);
                self.annotations.set(feature.error(), None);
                after.set(feature, plan.additions);
                let result = if changed { OutcomeResult::Applied } else { OutcomeResult::Unchanged };
                self.report(feature, result, None, mode);
            }
            Err(error) => self.fail(feature, wish, (before, after), &error.to_string(), mode),
        }
    }

    /// Makes the VM have what is planned instead of what was added before. All that can fail is
    /// tried before the first edit.
    fn reconcile(
        &mut self,
        feature: Feature,
        owned: &[Addition],
        plan: Plan,
        after: &Record,
    ) -> Result<(Plan, bool), Error> {
        let is_kept = |addition: &Addition| {
            owned.contains(addition) && plan.additions.contains(addition) && self.document.contains(addition)
        };
        let missing: Vec<_> = plan.additions.iter().filter(|addition| !is_kept(addition)).cloned().collect();
        let stale: Vec<_> = owned.iter().filter(|addition| !is_kept(addition)).cloned().collect();
        for addition in &missing {
            self.document.check(addition.site)?;
        }
        let removed = self.undo(feature, &stale, after);
        let changed = removed || !missing.is_empty();
        for addition in missing {
            // a setting that another feature made is there already
            if addition.site.shape() != Shape::Mapping || !self.document.contains(&addition) {
                self.document.add(addition)?;
            }
        }
        Ok((plan, changed))
    }

    /// Takes additions away, but settings that another feature needs as well.
    fn undo(&mut self, feature: Feature, additions: &[Addition], after: &Record) -> bool {
        let mut removed = false;
        for addition in additions {
            let is_shared = addition.site.shape() == Shape::Mapping && after.is_shared(feature, addition);
            removed |= !is_shared && self.document.remove(addition);
        }
        self.undone |= removed;
        removed
    }

    fn fail(
        &mut self,
        feature: Feature,
        wish: &Wish<'_>,
        (before, after): (&Record, &mut Record),
        error: &str,
        mode: ErrorMode,
    ) {
        let name = feature.name();
        let owned = before.additions(feature);
        // what was admitted before must stay editable: nothing new is asked for here
        let unchanged = self.is_unchanged(feature, wish, before);
        if mode == ErrorMode::Reject {
            if unchanged {
                self.verdict.warnings.push(format!("{name} (not changed by this request): {error}"));
                self.report(feature, OutcomeResult::Skipped, Some(error), mode);
            } else {
                self.denials.push(format!("{name}: {error}"));
                self.report(feature, OutcomeResult::Rejected, Some(error), mode);
            }
            return;
        }
        self.verdict.warnings.push(format!("{name} is not applied: {error}"));
        self.annotations.set(feature.error(), Some(clip(error, MAX_ERROR)));
        // a wish in user data cannot be stripped, and must not come up in place of a stripped one
        let is_strippable = wish.origin != Origin::UserData && !wish.hides_another;
        if mode == ErrorMode::StripLabel && !unchanged && is_strippable {
            self.strip(feature, wish.origin);
            after.set(feature, Vec::new());
            self.undo(feature, &owned, after);
            self.annotations.set(feature.applied(), None);
        } else if owned.is_empty() {
            self.annotations.set(feature.applied(), None);
        }
        self.report(feature, OutcomeResult::Skipped, Some(error), mode);
    }

    /// Whether an UPDATE leaves alone all that the user says about a feature. What we added does
    /// not count: an API server may call again for the same request, with our patch applied.
    fn is_unchanged(&self, feature: Feature, wish: &Wish<'_>, before: &Record) -> bool {
        let Some(old) = self.request.old_object else { return false };
        let is_same_wish = Wishes::collect(old, self.config, self.lookups)
            .get(feature)
            .is_some_and(|old| old.value == wish.value);
        if !is_same_wish {
            return false;
        }
        let old_record = managed_text(old).and_then(|text| Record::parse(text).ok()).unwrap_or_default();
        let (old, new) = (written_by_user(old, &old_record), written_by_user(self.request.object, before));
        feature.inputs().iter().all(|path| at(&old, path) == at(&new, path))
    }

    /// Removes the annotation or label that asks for a feature.
    fn strip(&mut self, feature: Feature, origin: Origin) {
        for key in feature.requests() {
            match origin {
                Origin::Annotation => self.annotations.set(key, None),
                Origin::Label if at(self.request.object, &["metadata", "labels", key]).is_some() => {
                    self.document.push(json::remove(pointer(&["metadata", "labels", key])));
                }
                Origin::Label | Origin::UserData => {}
            }
        }
    }

    fn report(
        &mut self,
        feature: Feature,
        result: OutcomeResult,
        error: Option<&str>,
        error_mode: ErrorMode,
    ) {
        let error = error.map(str::to_owned);
        self.verdict.outcomes.push(Outcome { feature: feature.name(), result, error, error_mode });
    }
}

fn plan(feature: Feature, context: &Context<'_>) -> Result<Plan, Error> {
    match feature {
        Feature::NestedVirt => Ok(nested_virt::plan(context)?),
        Feature::PciPassthrough => Ok(pci_passthrough::plan(context)?),
        Feature::GpuDevicePlugin => Ok(gpu_device_plugin::plan(context)?),
        Feature::VbiosInjection => Ok(vbios_injection::plan(context)?),
        Feature::CpuPinning => Ok(cpu_pinning::plan(context)?),
        Feature::Hugepages => Ok(hugepages::plan(context)?),
        Feature::Numa => Ok(numa::plan(context)?),
        Feature::Realtime => Ok(realtime::plan(context)?),
        Feature::VfioPassthrough => Ok(vfio_passthrough::plan(context)?),
        Feature::UsbPassthrough => Ok(usb_passthrough::plan(context)?),
        Feature::Vgpu => Ok(vgpu::plan(context)?),
        Feature::DraClaims => Ok(dra_claims::plan(context)?),
        Feature::Sriov => Ok(sriov::plan(context)?),
        Feature::KvmHidden => Ok(kvm_hidden::plan(context)?),
        Feature::IgdOpregion => Ok(igd_opregion::plan(context)?),
        Feature::QemuArguments => Ok(qemu_arguments::plan(context)?),
    }
}

fn managed_text(object: &Value) -> Option<&str> {
    metadata_map(object, "annotations")?.get(MANAGED)?.as_str()
}

/// The object without what a record says was added.
fn written_by_user(object: &Value, record: &Record) -> Value {
    let mut document = Document::new(object);
    for addition in Feature::ALL.into_iter().flat_map(|feature| record.additions(feature)) {
        document.remove(&addition);
    }
    document.prune(&record.created);
    let mut written = object.clone();
    match json_patch::patch(&mut written, &Patch(document.finish().0)) {
        Ok(()) => written,
        Err(_) => object.clone(),
    }
}

/// ROMs are for devices that the features before may have added, NUMA needs pinning and huge pages.
fn by_dependency(mut order: [Feature; Feature::ALL.len()]) -> [Feature; Feature::ALL.len()] {
    order.sort_by_key(|feature| feature.rank());
    order
}

fn warnings(warnings: &[String]) -> Vec<String> {
    warnings.iter().take(MAX_WARNINGS).map(|warning| clip(warning, MAX_WARNING)).collect()
}
