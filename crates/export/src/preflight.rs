//! What can be said before an export begins.

use serde::Serialize;

use crate::run::Target;

/// The largest capacity of a sparse VMDK, bytes: sector numbers have 32 bits.
const VMDK_LIMIT: u64 = (1 << 41) - 512;
/// Bytes a second that an export server delivers at least: its pod is limited to one CPU, which
/// TLS fills at several times this rate.
const CAUTIOUS_RATE: u64 = 50 << 20;

/// What is known.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct Facts {
    /// What is exported, for messages.
    pub source: String,
    /// The phase of the running instance, when there is one.
    pub running: Option<String>,
    /// A snapshot is exported instead of the VM's own volumes.
    pub snapshot: bool,
    /// One is taken first when the VM runs.
    pub snapshot_first: bool,
    /// KubeVirt backs the VM up while it runs.
    pub backup: bool,
    /// The version of `export.kubevirt.io` that the cluster serves, or what is in the way; `None`: it is not needed.
    pub api: Option<Result<String, String>>,
    /// Pods that use a claim which is exported by itself.
    pub used_by: Vec<String>,
    /// The disks: name and size in bytes, when it is known.
    pub disks: Vec<(String, Option<u64>)>,
    /// Volumes that cannot be exported, since they are on no claim.
    pub left_out: Vec<String>,
    /// Bytes that are free at the destination, when it has a limit that is known.
    pub free: Option<u64>,
    /// The destination is a pipe.
    pub pipe: bool,
    /// The disks are read twice: what stands in front of the result is known last, and cannot be gone back to.
    pub twice: bool,
    /// Why nothing can be learnt about the destination: it is not reached, or refuses.
    pub unreachable: Option<String>,
    /// The destination may be written to, and not be looked at.
    pub unseen: bool,
    /// Requests that the user may not make, for example `create secrets`.
    pub forbidden: Vec<String>,
    /// Seconds that the export lives.
    pub ttl_seconds: u64,
    /// Files at the destination that would be replaced.
    pub existing: Vec<String>,
    /// Journals of an earlier run at the destination.
    pub journals: Vec<String>,
    /// They are gone on with, or replaced.
    pub resume: bool,
    /// Results that are there are replaced.
    pub force: bool,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It may fail, or surprise.
    Warning,
    /// It will fail.
    Blocked,
}

/// One answer of the pre-flight.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub grade: Grade,
    /// In words; with what to do when it is not well.
    pub detail: String,
}

/// Looks at everything; one finding for each thing that was looked at.
pub fn check(facts: &Facts, target: Target) -> Vec<Finding> {
    let mut findings = vec![source(facts)];
    findings.extend(api(facts));
    findings.extend([
        volumes(facts),
        permissions(facts),
        format(facts, target),
        space(facts),
        destination(facts),
        time(facts),
    ]);
    findings
}

fn destination(facts: &Facts) -> Finding {
    let (grade, detail) = match (&facts.unreachable, facts.existing.first(), facts.journals.first()) {
        (Some(why), ..) => (Grade::Blocked, why.clone()),
        (None, Some(file), _) if facts.force => (Grade::Warning, format!("`{file}` will be replaced")),
        (None, Some(file), _) => (Grade::Blocked, format!("`{file}` exists already; --force replaces it")),
        (None, None, Some(journal)) if !facts.resume && !facts.force => {
            let text =
                format!("`{journal}` is left by an earlier run: --resume goes on, --force starts again");
            (Grade::Blocked, text)
        }
        (None, None, Some(journal)) => (Grade::Ok, format!("goes on with `{journal}`")),
        (None, None, None) if facts.unseen => {
            (Grade::Warning, "it may not be looked at: what is there may be replaced".into())
        }
        (None, None, None) => (Grade::Ok, "nothing is in the way".into()),
    };
    Finding { check: "destination", grade, detail }
}

fn api(facts: &Facts) -> Option<Finding> {
    let (grade, detail) = match facts.api.as_ref()? {
        Ok(version) => (Grade::Ok, format!("VirtualMachineExport {version}")),
        Err(wrong) => (Grade::Blocked, wrong.clone()),
    };
    Some(Finding { check: "api", grade, detail })
}

fn source(facts: &Facts) -> Finding {
    let (grade, detail) = match (&facts.running, facts.snapshot) {
        _ if !facts.used_by.is_empty() => {
            let users = facts.used_by.join(", ");
            (Grade::Blocked, format!("{} is used by {users}: stop it first", facts.source))
        }
        (Some(phase), _) if facts.backup => {
            (Grade::Ok, format!("{} is {phase}: KubeVirt backs it up while it runs", facts.source))
        }
        (_, true) => (Grade::Ok, format!("{} from a snapshot", facts.source)),
        (None, false) => (Grade::Ok, format!("{} does not run", facts.source)),
        (Some(phase), false) if facts.snapshot_first => {
            let text = format!("{} is {phase}: a snapshot is taken, exported and removed", facts.source);
            (Grade::Ok, text)
        }
        (Some(phase), false) => {
            let text =
                format!("{} is {phase}: stop it, or take a snapshot and give --snapshot", facts.source);
            (Grade::Blocked, text)
        }
    };
    Finding { check: "source", grade, detail }
}

fn volumes(facts: &Facts) -> Finding {
    let names = |list: &[String]| list.join(", ");
    let (grade, detail) = if facts.disks.is_empty() {
        (Grade::Blocked, "no volume is on a claim, so there is nothing to export".to_owned())
    } else if facts.left_out.is_empty() {
        let disks: Vec<String> = facts.disks.iter().map(|(name, _)| name.clone()).collect();
        (Grade::Ok, names(&disks))
    } else {
        (Grade::Warning, format!("{} not on a claim: left out", names(&facts.left_out)))
    };
    Finding { check: "volumes", grade, detail }
}

fn permissions(facts: &Facts) -> Finding {
    let (grade, detail) = match facts.forbidden.as_slice() {
        [] => (Grade::Ok, "exports and their tokens may be made and read".to_owned()),
        denied => {
            (Grade::Blocked, format!("you may not {}; ask for a role that allows it", denied.join(", ")))
        }
    };
    Finding { check: "permissions", grade, detail }
}

fn format(facts: &Facts, target: Target) -> Finding {
    let name = target.format().name();
    let limited = matches!(target, Target::Vmdk | Target::Ova | Target::Ovf);
    let large = facts.disks.iter().find(|(_, size)| limited && size.is_some_and(|size| size > VMDK_LIMIT));
    let (grade, detail) = if let Some((disk, _)) = large {
        (Grade::Blocked, format!("{disk} is larger than the 2 TiB of a {name}; use qcow2 or raw"))
    } else if facts.pipe && target == Target::Ovf {
        (Grade::Blocked, "an OVF is several files; use ova for a pipe".to_owned())
    } else if facts.pipe && target != Target::Ova && facts.disks.len() > 1 {
        (Grade::Blocked, "a pipe takes one disk; choose one with --disk, or use ova".to_owned())
    } else if facts.twice {
        (Grade::Warning, "the disks are read twice: what stands in front is known last".to_owned())
    } else {
        (Grade::Ok, name.to_owned())
    };
    Finding { check: "format", grade, detail }
}

fn space(facts: &Facts) -> Finding {
    let total: u64 = facts.disks.iter().filter_map(|(_, size)| *size).sum();
    let (grade, detail) = match facts.free {
        None => (Grade::Ok, format!("at most {} MiB are written", total >> 20)),
        Some(free) if free >= total => {
            (Grade::Ok, format!("{} MiB free, at most {} MiB needed", free >> 20, total >> 20))
        }
        Some(free) => {
            let text = format!(
                "{} MiB free, up to {} MiB needed: zeros and compression may save the difference",
                free >> 20,
                total >> 20
            );
            (Grade::Warning, text)
        }
    };
    Finding { check: "space", grade, detail }
}

fn time(facts: &Facts) -> Finding {
    let total: u64 = facts.disks.iter().filter_map(|(_, size)| *size).sum();
    let seconds = total * (1 + u64::from(facts.twice)) / CAUTIOUS_RATE;
    let (grade, detail) = if seconds > facts.ttl_seconds {
        let text = format!(
            "at 50 MiB/s it takes {seconds} s, and the export lives {} s: give a longer --ttl",
            facts.ttl_seconds
        );
        (Grade::Warning, text)
    } else {
        (Grade::Ok, format!("about {seconds} s at 50 MiB/s; the export lives {} s", facts.ttl_seconds))
    };
    Finding { check: "time", grade, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_is_named() {
        let good = Facts {
            source: "VirtualMachine default/web".into(),
            disks: vec![("root".into(), Some(10 << 30))],
            free: Some(1 << 40),
            ttl_seconds: 7200,
            ..Facts::default()
        };
        let worst = |facts: &Facts, target| {
            let worst = check(facts, target).into_iter().max_by_key(|finding| finding.grade);
            worst.map_or((Grade::Ok, ""), |finding| (finding.grade, finding.check))
        };
        assert_eq!(worst(&good, Target::Qcow2).0, Grade::Ok);
        let bad = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good.clone();
            change(&mut facts);
            facts
        };
        for (facts, target, expected) in [
            (bad(&|f| f.running = Some("Running".into())), Target::Qcow2, (Grade::Blocked, "source")),
            (bad(&|f| f.api = Some(Err("the gate is off".into()))), Target::Qcow2, (Grade::Blocked, "api")),
            (bad(&|f| f.disks.clear()), Target::Qcow2, (Grade::Blocked, "volumes")),
            (bad(&|f| f.left_out.push("init".into())), Target::Qcow2, (Grade::Warning, "volumes")),
            (
                bad(&|f| f.forbidden.push("create secrets".into())),
                Target::Raw,
                (Grade::Blocked, "permissions"),
            ),
            (bad(&|f| f.disks.push(("big".into(), Some(3 << 40)))), Target::Ova, (Grade::Blocked, "format")),
            (bad(&|f| f.pipe = true), Target::Ovf, (Grade::Blocked, "format")),
            (bad(&|f| f.twice = true), Target::Qcow2, (Grade::Warning, "format")),
            (bad(&|f| (f.pipe, f.twice) = (true, true)), Target::Ova, (Grade::Warning, "format")),
            (bad(&|f| f.unreachable = Some("403".into())), Target::Raw, (Grade::Blocked, "destination")),
            (bad(&|f| f.unseen = true), Target::Raw, (Grade::Warning, "destination")),
            (bad(&|f| f.free = Some(1 << 30)), Target::Raw, (Grade::Warning, "space")),
            (
                bad(&|f| f.existing.push("web-root.qcow2".into())),
                Target::Qcow2,
                (Grade::Blocked, "destination"),
            ),
            (bad(&|f| f.journals.push("j".into())), Target::Qcow2, (Grade::Blocked, "destination")),
            (bad(&|f| f.ttl_seconds = 10), Target::Qcow2, (Grade::Warning, "time")),
            (bad(&|f| (f.ttl_seconds, f.twice) = (300, true)), Target::Raw, (Grade::Warning, "time")),
            (bad(&|f| f.ttl_seconds = 300), Target::Raw, (Grade::Ok, "time")),
        ] {
            assert_eq!(worst(&facts, target), expected);
        }
        let resumed = bad(&|f| (f.journals, f.resume) = (vec!["j".into()], true));
        assert_eq!(worst(&resumed, Target::Qcow2).0, Grade::Ok);
        let snapshot = bad(&|f| (f.running, f.snapshot) = (Some("Running".into()), true));
        assert_eq!(worst(&snapshot, Target::Qcow2).0, Grade::Ok);
    }
}
