//! The guard's predicate, case by case.
#![allow(clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

mod common;

use common::{NOW, Use, World, ago, pod, spec_volume, status, vmi};
use hotplug::guard::{Denial, Forced, Loss, Reason, Verdict, decide, decide_forced, decide_namespace};
use hotplug::policy::{Class, Limits};
use hotplug::record::Record;
use hotplug::view::{AttachmentPod, Instance, Launcher, Node};
use serde_json::{Value, json};

fn verdict(world: &World) -> Verdict {
    decide(&world.observe(), &Record::default(), &Limits::default(), NOW)
}

fn loss(world: &World) -> Loss {
    match verdict(world) {
        Verdict::Deny(Denial { volumes, .. }) => volumes[0].loss,
        Verdict::Allow(reason) => panic!("allowed: {reason:?}"),
    }
}

fn changed(change: impl FnOnce(&mut World)) -> World {
    let mut world = World::uncovered();
    change(&mut world);
    world
}

type Change = fn(&mut World);

/// Everything that must pass although the guest has the volume and nothing else serves it.
#[test]
fn what_must_never_be_held_up_passes() {
    let cases: [(&str, Reason, Change); 24] = [
        ("being deleted", Reason::Terminating, |w| {
            w.pod["metadata"]["deletionTimestamp"] = ago(1).into();
        }),
        ("failed", Reason::Ended, |w| w.pod["status"]["phase"] = "Failed".into()),
        ("succeeded", Reason::Ended, |w| w.pod["status"]["phase"] = "Succeeded".into()),
        ("trigger pod", Reason::Trigger, |w| {
            w.pod["metadata"]["annotations"]["kubevirt.io/ephemeral-provisioning"] = "true".into();
        }),
        ("never scheduled", Reason::Unscheduled, |w| w.pod["spec"]["nodeName"] = Value::Null),
        ("namespace terminating", Reason::NamespaceTerminating, |w| w.namespace_terminating = true),
        ("launcher gone", Reason::LauncherGone, |w| w.launcher = Value::Null),
        ("launcher failed", Reason::LauncherGone, |w| w.launcher["status"]["phase"] = "Failed".into()),
        ("launcher ended", Reason::LauncherGone, |w| w.launcher["status"]["phase"] = "Succeeded".into()),
        ("compute container ended", Reason::LauncherGone, |w| {
            w.launcher["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 0}});
        }),
        ("VMI gone", Reason::InstanceGone, |w| w.vmi = Value::Null),
        ("VMI failed", Reason::InstanceGone, |w| w.vmi["status"]["phase"] = "Failed".into()),
        ("VMI succeeded", Reason::InstanceGone, |w| w.vmi["status"]["phase"] = "Succeeded".into()),
        ("launcher overdue", Reason::ShutdownOverdue, |w| {
            w.launcher["metadata"]["deletionTimestamp"] = ago(61).into();
        }),
        ("VMI overdue", Reason::ShutdownOverdue, |w| w.vmi["metadata"]["deletionTimestamp"] = ago(91).into()),
        ("left by a migration", Reason::NotActive, |w| {
            w.vmi["status"]["nodeName"] = "n2".into();
            w.vmi["status"]["migrationState"] = json!({"migrationUid": "m", "sourcePod": "launcher", "targetPod": "other", "completed": true});
        }),
        ("target of a failed migration", Reason::NotActive, |w| {
            w.vmi["status"]["migrationState"] = json!({"migrationUid": "m", "sourcePod": "other",
                "targetPod": "launcher", "completed": true, "failed": true});
        }),
        ("node gone", Reason::NodeLost, |w| w.node = Value::Null),
        ("node away too long", Reason::NodeLost, |w| {
            w.node["status"]["conditions"][0] =
                json!({"type": "Ready", "status": "Unknown", "lastTransitionTime": ago(301)});
        }),
        ("node fenced", Reason::NodeLost, |w| {
            w.node["spec"]["taints"] =
                json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
        }),
        ("break-glass on the pod", Reason::BreakGlass, |w| {
            w.pod["metadata"]["annotations"]["vm-feature-manager.io/hotplug-break-glass"] = "true".into();
        }),
        ("break-glass on the VMI", Reason::BreakGlass, |w| {
            w.vmi["metadata"]["annotations"]["vm-feature-manager.io/hotplug-break-glass"] = "true".into();
        }),
        ("break-glass on the namespace", Reason::BreakGlass, |w| w.namespace_break_glass = true),
        ("stuck in Pending", Reason::Stuck, |w| {
            w.pod["status"]["phase"] = "Pending".into();
            w.pod["metadata"]["creationTimestamp"] = ago(121).into();
        }),
    ];
    assert!(!verdict(&World::uncovered()).is_allowed());
    for (case, reason, change) in cases {
        assert_eq!(verdict(&changed(change)), Verdict::Allow(reason), "{case}");
    }
}

#[test]
fn a_pending_pod_that_will_never_start_passes_at_once() {
    for status in [
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "Unschedulable"}]}),
        json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
        json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "CreateContainerError"}}}]}),
    ] {
        let world = changed(|w| {
            w.pod["metadata"]["creationTimestamp"] = ago(5).into();
            w.pod["status"] = status.clone();
        });
        assert_eq!(verdict(&world), Verdict::Allow(Reason::Stuck), "{status}");
    }
}

/// The same cases a moment earlier: the guest is still there, and so is the denial.
#[test]
fn until_then_the_guest_keeps_its_volume() {
    let cases: [(&str, Change); 8] = [
        ("VMI shutting down", |w| w.vmi["metadata"]["deletionTimestamp"] = ago(89).into()),
        ("launcher shutting down", |w| w.launcher["metadata"]["deletionTimestamp"] = ago(59).into()),
        ("node away for a moment", |w| {
            w.node["status"]["conditions"][0] =
                json!({"type": "Ready", "status": "Unknown", "lastTransitionTime": ago(299)});
        }),
        ("node away, tolerated for ever", |w| {
            w.node["status"]["conditions"][0] =
                json!({"type": "Ready", "status": "False", "lastTransitionTime": ago(9999)});
            w.launcher["spec"]["tolerations"] = json!([
                {"key": "node.kubernetes.io/not-ready"}, {"key": "node.kubernetes.io/unreachable"}]);
        }),
        ("source of a running migration", |w| {
            w.vmi["status"]["migrationState"] =
                json!({"migrationUid": "m", "sourcePod": "launcher", "targetPod": "other"});
        }),
        ("source of a failed migration", |w| {
            w.vmi["status"]["migrationState"] = json!({"migrationUid": "m", "sourcePod": "launcher",
                "targetPod": "other", "completed": true, "failed": true});
        }),
        ("target of a completed migration", |w| {
            w.vmi["status"]["migrationState"] = json!({"migrationUid": "m", "sourcePod": "other",
                "targetPod": "launcher", "completed": true});
        }),
        ("break-glass says false", |w| {
            w.pod["metadata"]["annotations"]["vm-feature-manager.io/hotplug-break-glass"] = "false".into();
        }),
    ];
    for (case, change) in cases {
        assert_eq!(loss(&changed(change)), Loss::NoReplacement, "{case}");
    }
}

/// `inUse(v)`: what the guest has, or is about to get.
#[test]
fn a_volume_is_in_use_when_the_guest_has_it_or_is_about_to() {
    for (phase, pod, target, in_use) in [
        ("Ready", "u-old", "sda", true),
        ("Ready", "gone", "sda", true),
        ("MountedToPod", "u-old", "", true),
        ("MemoryDumpInProgress", "u-old", "", true),
        ("MemoryDumpCompleted", "u-old", "", false),
        ("AttachedToNode", "u-old", "", true),
        ("AttachedToNode", "u-other", "", false),
        ("AttachedToNode", "", "", false),
        ("Bound", "", "", false),
        ("Bound", "", "sda", true),
        ("Detaching", "u-old", "sda", true),
        ("Detaching", "u-old", "", false),
        ("UnMountedFromPod", "u-old", "", false),
        ("Pending", "", "", false),
        ("Invented", "u-old", "", false),
    ] {
        let world = changed(|w| w.vmi["status"]["volumeStatus"] = json!([status("a", phase, pod, target)]));
        assert_eq!(!verdict(&world).is_allowed(), in_use, "{phase} {pod} {target:?}");
    }
    // not hotplugged at all
    let world = changed(|w| {
        w.vmi["status"]["volumeStatus"] = json!([{"name": "a", "phase": "Ready", "target": "vda"}]);
    });
    assert_eq!(verdict(&world), Verdict::Allow(Reason::Covered));
}

/// `covered(v)`: what another pod must be to serve a volume.
#[test]
fn another_pod_covers_when_it_serves_the_same_claim_now() {
    let cases: [(&str, Result<(), Loss>, Change); 10] = [
        ("ready", Ok(()), |_| {}),
        ("pending", Err(Loss::NotRunning), |w| w.others[0]["status"]["phase"] = "Pending".into()),
        ("not ready", Err(Loss::NotReady), |w| {
            w.others[0]["status"]["containerStatuses"][0]["ready"] = false.into();
        }),
        ("no container yet", Err(Loss::NotReady), |w| {
            w.others[0]["status"]["containerStatuses"] = json!([]);
        }),
        ("being deleted", Err(Loss::Doomed), |w| {
            w.others[0]["metadata"]["deletionTimestamp"] = ago(0).into();
        }),
        ("failed", Err(Loss::Doomed), |w| w.others[0]["status"]["phase"] = "Failed".into()),
        ("another node", Err(Loss::NotRunning), |w| w.others[0]["spec"]["nodeName"] = "n2".into()),
        ("same name, another claim", Err(Loss::NoReplacement), |w| {
            w.others[0]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "other".into();
        }),
        ("lists a block volume without using it", Err(Loss::NotMounted), |w| {
            w.others[0]["spec"]["containers"][0]["volumeDevices"] = json!([]);
        }),
        ("not an attachment pod", Err(Loss::NoReplacement), |w| {
            w.others[0]["metadata"]["labels"] = json!({});
        }),
    ];
    for (case, expected, change) in cases {
        let world = changed(|w| {
            w.others = vec![pod("new", &[("a", Use::Device), ("b", Use::Device)])];
            change(w);
        });
        let found = match verdict(&world) {
            Verdict::Allow(reason) => {
                assert_eq!(reason, Reason::Covered, "{case}");
                Ok(())
            }
            Verdict::Deny(denial) => Err(denial.volumes[0].loss),
        };
        assert_eq!(found, expected, "{case}");
    }
}

/// A stale `attachPodUID` (a batch that is half ready) does not matter, nor does a volume that the
/// replacement has and the old pod has not.
#[test]
fn cover_is_asked_of_pods_not_of_uids_in_the_status() {
    let world = changed(|w| {
        w.vmi["status"]["volumeStatus"] = json!([status("a", "Ready", "long-gone", "sda")]);
        w.others = vec![pod("new", &[("a", Use::Device)])];
    });
    assert_eq!(verdict(&world), Verdict::Allow(Reason::Covered));
}

#[test]
fn a_volume_that_left_the_spec_waits_for_the_guest() {
    let world = changed(|w| w.vmi["spec"]["volumes"] = json!([]));
    assert_eq!(loss(&world), Loss::GuestHolds);
    let world = changed(|w| {
        w.vmi["spec"]["volumes"] = json!([]);
        w.vmi["status"]["volumeStatus"] = json!([status("a", "UnMountedFromPod", "u-old", "")]);
    });
    assert_eq!(verdict(&world), Verdict::Allow(Reason::Covered));
}

/// Two replicas, or two clients: the pod whose delete was granted is no cover any more.
#[test]
fn a_granted_delete_is_no_cover() {
    let world = changed(|w| w.others = vec![pod("new", &[("a", Use::Device)])]);
    let limits = Limits::default();
    let mut record = Record::default();
    record.grant("u-new", NOW - limits.grant);
    let Verdict::Deny(denial) = decide(&world.observe(), &record, &limits, NOW) else {
        panic!("both pods may go");
    };
    assert_eq!(denial.volumes[0].loss, Loss::Doomed);
    record.grant("u-new", NOW - limits.grant - 1);
    assert!(decide(&world.observe(), &record, &limits, NOW).is_allowed());
}

/// Filesystem volumes: listed is enough, unless the class is strict.
#[test]
fn filesystem_cover_is_by_listing_or_strict() {
    for (old, new, strict, covered) in [
        (Use::Mount, Use::List, false, true),
        (Use::Mount, Use::List, true, false),
        (Use::Mount, Use::Mount, true, true),
        (Use::List, Use::List, false, true),
        (Use::List, Use::List, true, false),
    ] {
        let world = changed(|w| {
            w.pod = pod("old", &[("a", old)]);
            w.others = vec![pod("new", &[("a", new)])];
            w.class.strict = strict;
        });
        assert_eq!(verdict(&world).is_allowed(), covered, "strict: {strict}");
    }
}

/// A driver that refuses a second publication: the gap is accepted once the replacement has tried.
#[test]
fn exclusive_publish_accepts_a_gap_only_when_there_is_no_other_way() {
    let waiting = |age: i64, opted: bool, named: bool| {
        changed(|w| {
            let mut other = pod("new", &[("a", Use::Device)]);
            other["status"]["phase"] = "Pending".into();
            other["metadata"]["creationTimestamp"] = ago(age).into();
            w.others = vec![other];
            w.class.exclusive_publish = opted;
            w.unmountable = if named { vec![("u-new", "a")] } else { Vec::new() };
        })
    };
    assert_eq!(verdict(&waiting(16, true, true)), Verdict::Allow(Reason::ExclusivePublish));
    for world in [waiting(15, true, true), waiting(16, false, true), waiting(16, true, false)] {
        assert_eq!(loss(&world), Loss::NotRunning);
    }
    // Somebody may delete the replacement in this moment: then neither would be left.
    let mut record = Record::default();
    record.grant("u-new", NOW);
    let both = decide(&waiting(16, true, true).observe(), &record, &Limits::default(), NOW);
    assert!(!both.is_allowed());
}

/// A driver with a device for each publication: the pod that a volume was taken from stays, others may go. Pods may be of
/// the same second, so their age is not asked.
#[test]
fn pin_keeps_the_pod_that_a_volume_was_taken_from() {
    let both = |ready: bool| {
        changed(|w| {
            let mut other = pod("new", &[("a", Use::Device), ("b", Use::Device)]);
            other["status"]["containerStatuses"][0]["ready"] = ready.into();
            w.others = vec![other];
            w.class.pin = true;
        })
    };
    let taken =
        |from: &str| Record { taken: [("a".to_owned(), from.to_owned())].into(), ..Record::default() };
    let ask = |world: &World, record: &Record| match decide(&world.observe(), record, &Limits::default(), NOW)
    {
        Verdict::Deny(Denial { volumes, .. }) => Err(volumes[0].loss),
        Verdict::Allow(reason) => Ok(reason),
    };
    assert_eq!(ask(&both(true), &taken("u-old")), Err(Loss::Pinned));
    assert_eq!(ask(&both(true), &taken("u-new")), Ok(Reason::Covered));
    assert_eq!(ask(&both(false), &taken("u-new")), Err(Loss::NotReady));
    // Nothing is known, or a pod that is gone is: it may be this one.
    assert_eq!(ask(&both(true), &Record::default()), Err(Loss::Pinned));
    assert_eq!(ask(&both(true), &taken("u-gone")), Err(Loss::Pinned));
    let mut record = taken("u-new");
    record.grant("u-new", NOW);
    assert_eq!(ask(&both(true), &record), Err(Loss::Doomed));
}

/// What is noted while only one pod can be the source holds when there are more; what is uncertain is not noted.
#[test]
fn the_pod_that_a_pinned_volume_comes_from_is_noted_while_it_is_certain() {
    let classes = |pin: bool| {
        let class = Class { pin, ..Class::default() };
        [("pvc-a", class), ("pvc-b", class)].into_iter().collect()
    };
    let learn = |record: &mut Record, vmi: &Value, pods: &[Value], pin: bool| {
        let pods: Vec<_> = pods.iter().filter_map(AttachmentPod::read).collect();
        record.learn(&Instance::read(vmi), &pods, &classes(pin));
        record.taken.iter().map(|(volume, pod)| format!("{volume} {pod}")).collect::<Vec<_>>()
    };
    let (old, new) =
        (pod("old", &[("a", Use::Device)]), pod("new", &[("a", Use::Device), ("b", Use::Device)]));
    let mut starting = new.clone();
    starting["status"]["containerStatuses"][0]["ready"] = false.into();
    let pods = [old.clone(), new.clone()];
    let both = vmi(&["a", "b"]);
    // Two ready pods: `a` may come from either.
    assert_eq!(learn(&mut Record::default(), &both, &pods, true), ["b u-new"]);
    // The replacement was never ready, so nothing was taken from it.
    let mut record = Record::default();
    assert_eq!(learn(&mut record, &vmi(&["a"]), &[old.clone(), starting], true), ["a u-old"]);
    assert_eq!(learn(&mut record, &both, &pods, true), ["a u-old", "b u-new"]);
    // A volume that comes back may come from another pod; one that has left, or whose pod is gone, is forgotten.
    record.pass(std::iter::empty(), ["a"].into_iter(), NOW);
    assert_eq!(learn(&mut record, &both, &pods, true), ["b u-new"]);
    assert_eq!(learn(&mut record, &vmi(&["a"]), &pods, true), Vec::<String>::new());
    assert_eq!(learn(&mut record, &both, &[old], true), ["a u-old"]);
    assert_eq!(learn(&mut record, &both, &[new], true), ["a u-new", "b u-new"]);
    assert_eq!(learn(&mut Record::default(), &both, &pods, false), Vec::<String>::new());
}

/// The target of a migration serves nobody yet, and losing it fails the migration.
#[test]
fn the_target_of_a_migration_keeps_its_pod() {
    let target = |state: Value| {
        changed(|w| {
            w.launcher["spec"]["nodeName"] = "n2".into();
            w.launcher["metadata"]["labels"]["kubevirt.io/migrationJobUID"] = "m".into();
            w.vmi["status"]["migrationState"] = state;
        })
    };
    for state in [
        Value::Null,
        json!({"migrationUid": "m", "sourcePod": "source", "targetPod": "launcher"}),
        json!({"migrationUid": "m", "sourcePod": "source"}),
    ] {
        assert_eq!(loss(&target(state.clone())), Loss::MigrationTarget, "{state}");
    }
    let failed = json!({"migrationUid": "m", "targetPod": "launcher", "completed": true, "failed": true});
    assert_eq!(verdict(&target(failed)), Verdict::Allow(Reason::NotActive));
}

#[test]
fn a_denial_says_which_volume_why_until_when_and_since() {
    let world = changed(|w| {
        let mut other = pod("hp-volume-new", &[("a", Use::Device)]);
        other["status"]["containerStatuses"][0]["ready"] = false.into();
        w.others = vec![other];
    });
    let mut record = Record::default();
    record.deny("u-old", NOW - 60);
    let Verdict::Deny(denial) = decide(&world.observe(), &record, &Limits::default(), NOW) else {
        panic!("allowed");
    };
    assert_eq!(
        denial.message("ns/old"),
        "deleting attachment pod ns/old would break volumes of a running guest: volume \"a\" (claim \
         \"pvc-a\"): pod hp-volume-new runs and is not ready; it is allowed as soon as pod hp-volume-new is \
         ready. Denied since 2025-12-31T23:59:00Z"
    );
}

#[test]
fn forcing_a_launcher_away_is_denied_under_filesystem_volumes_only() {
    let world = World::uncovered();
    let (launcher, node) = (Launcher::read(&world.launcher), Node::read(&world.node));
    let ask = |vmi: &Value, pods: &[Value], launcher: &Launcher<'_>, terminating, glass| {
        let pods: Vec<_> = pods.iter().filter_map(AttachmentPod::read).collect();
        let vmi = (!vmi.is_null()).then(|| Instance::read(vmi));
        decide_forced(launcher, vmi.as_ref(), &pods, Some(&node), terminating, glass, NOW)
    };
    let filesystem = [pod("old", &[("a", Use::Mount)])];
    let running = vmi(&["a"]);
    let denied = Forced::Deny(vec!["a".into()]);
    assert_eq!(ask(&running, &filesystem, &launcher, false, false), denied);
    assert_eq!(ask(&running, &[pod("old", &[("a", Use::Device)])], &launcher, false, false), Forced::Allow);
    assert_eq!(ask(&running, &filesystem, &launcher, true, false), Forced::Allow);
    assert_eq!(ask(&running, &filesystem, &launcher, false, true), Forced::Allow);
    assert_eq!(ask(&Value::Null, &filesystem, &launcher, false, false), Forced::Allow);
    let down = Launcher { down: true, ..launcher.clone() };
    assert_eq!(ask(&running, &filesystem, &down, false, false), Forced::Allow);
    let mut ended = running.clone();
    ended["status"]["phase"] = "Succeeded".into();
    assert_eq!(ask(&ended, &filesystem, &launcher, false, false), Forced::Allow);
    let pods: Vec<_> = filesystem.iter().filter_map(AttachmentPod::read).collect();
    let instance = Instance::read(&running);
    assert_eq!(decide_forced(&launcher, Some(&instance), &pods, None, false, false, NOW), Forced::Allow);
}

#[test]
fn a_protected_namespace_names_the_vms_that_run_in_it() {
    let (running, mut ended) = (vmi(&[]), vmi(&[]));
    ended["status"]["phase"] = "Succeeded".into();
    let instances = [Instance::read(&running), Instance::read(&ended)];
    let decide = |terminating, instances: &[Instance<'_>]| {
        let found = decide_namespace(terminating, instances, &Limits::default(), NOW);
        found.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(decide(false, &instances), ["vm"]);
    assert!(decide(true, &instances).is_empty());
    assert!(decide(false, &instances[1..]).is_empty());
    // A guest that shuts down flushes with its volumes, for as long as it was given and a minute more.
    for (since, held) in [(90, true), (91, false)] {
        let mut leaving = running.clone();
        leaving["metadata"]["deletionTimestamp"] = ago(since).into();
        assert_eq!(!decide(false, &[Instance::read(&leaving)]).is_empty(), held, "{since}");
    }
}

/// Nothing that a stranger may have written makes the views or the verdict fail.
#[test]
fn broken_objects_have_a_verdict() {
    for broken in [json!({}), json!([]), json!("text"), json!({"metadata": 3, "status": [], "spec": "x"})] {
        let world = changed(|w| {
            w.launcher = broken.clone();
            w.vmi = broken.clone();
            w.node = broken.clone();
            w.others = vec![broken.clone()];
        });
        verdict(&world);
    }
    assert_eq!(AttachmentPod::read(&json!({})), None);
    assert_eq!(Class::read(&json!({"metadata": {"annotations": 7}})), Class::default());
    let _ = spec_volume("a");
}
