use serde_json::json;

use super::*;

/// A cluster in which everything is as it has to be.
fn healthy() -> Facts {
    let resources = json!({"requests": {"cpu": "200m", "memory": "1320Mi"}});
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let policy =
        serde_json::to_string(&crate::Policy { in_place: true, ..crate::Policy::default() }).unwrap();
    Facts {
        version: Some(json!({"major": "1", "minor": "36"})),
        core: Some(json!({"resources": [{"name": "pods"}, {"name": "pods/resize"}]})),
        kubevirts: Some(vec![
            json!({"spec": {"workloadUpdateStrategy": {"workloadUpdateMethods": ["LiveMigrate"]}},
            "status": {"phase": "Deployed", "observedKubeVirtVersion": "v1.9.0"}}),
        ]),
        nodes: Some(vec![json!({"metadata": {"name": "n1", "labels": {"kubevirt.io/schedulable": "true"}},
            "status": {"nodeInfo": {"kubeletVersion": "v1.36.2"}}})]),
        webhooks: Some(vec![
            json!({"webhooks": [{"name": "resize.vm-feature-manager.io", "failurePolicy": "Ignore",
            "clientConfig": {"caBundle": "eA==", "service": {"namespace": "vs", "name": "vs"}}}]}),
        ]),
        operators: Some(vec![json!({"metadata": {}, "status": ready})]),
        answered: None,
        agents: Some(vec![json!({"metadata": {}, "spec": {"nodeName": "n1"}, "status": ready})]),
        policies: Some(Vec::new()),
        namespaces: Some(vec![json!({"metadata": {"name": "d"}})]),
        vms: Some(vec![json!({"metadata": {"namespace": "d", "name": "v"}})]),
        vmis: Some(vec![json!({"metadata": {"namespace": "d", "name": "v", "uid": "u",
                "annotations": {POLICY: policy}},
            "spec": {"architecture": "amd64", "domain": {"cpu": {"sockets": 2, "maxSockets": 8},
                "memory": {"guest": "1Gi", "maxGuest": "4Gi"}}},
            "status": {"phase": "Running", "nodeName": "n1", "memory": {"guestAtBoot": "1Gi"},
                "conditions": [{"type": "LiveMigratable", "status": "True"}]}})]),
        pods: Some(vec![json!({"metadata": {"labels": {"kubevirt.io": "virt-launcher"},
                "ownerReferences": [{"uid": "u", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "compute", "resources": resources}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "compute", "resources": resources,
                "allocatedResources": {"cpu": "200m"}}]}})]),
        rights: RIGHTS.iter().map(|right| Right { allowed: Some(true), ..*right }).collect(),
    }
}

use crate::ledger::POLICY;

#[test]
fn a_cluster_that_has_everything_is_well_and_an_unreadable_one_is_unknown() {
    let facts = healthy();
    let found = findings(&facts);
    assert!(found.iter().all(|finding| finding.state == State::Ok), "{found:#?}");
    let machine = &machines(&facts)[0];
    assert!(machine.in_force && machine.cpu.is_empty() && machine.memory.is_empty(), "{machine:?}");
    let nothing = findings(&Facts::default());
    assert!(nothing.iter().all(|finding| finding.state == State::Unknown), "{nothing:#?}");
    assert_eq!(verdict(&nothing), State::Unknown);
}

/// Each thing that can be wrong, what it makes of the verdict, and a word of what is said.
#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    type Break = fn(&mut Facts);
    let cases: [(Break, State, &str); 20] = [
        (|f| f.version = Some(json!({"minor": "32+"})), State::Failed, "1.32 does not resize"),
        (|f| f.version = Some(json!({"minor": "33"})), State::Note, "never lowers a memory limit"),
        (|f| f.core = Some(json!({"resources": []})), State::Failed, "does not serve it"),
        (|f| f.kubevirts = Some(Vec::new()), State::Failed, "no KubeVirt object"),
        (|f| kubevirt(f)["status"]["phase"] = "Deploying".into(), State::Failed, "it is Deploying"),
        (
            |f| kubevirt(f)["status"]["observedKubeVirtVersion"] = "v1.3.1".into(),
            State::Note,
            "v1.3.1 is older",
        ),
        (
            |f| kubevirt(f)["spec"]["configuration"] = json!({"vmRolloutStrategy": "Stage"}),
            State::Failed,
            "vmRolloutStrategy is Stage",
        ),
        (
            |f| kubevirt(f)["spec"]["workloadUpdateStrategy"]["workloadUpdateMethods"] = json!(["Evict"]),
            State::Note,
            "is shut down for a change",
        ),
        (
            |f| node(f)["status"]["nodeInfo"]["kubeletVersion"] = "v1.31.0".into(),
            State::Failed,
            "kubelet v1.31.0",
        ),
        (|f| node(f)["status"]["nodeInfo"]["swap"] = json!({"capacity": 1}), State::Note, "it swaps"),
        (
            |f| node(f)["metadata"]["labels"]["cpumanager"] = "true".into(),
            State::Note,
            "CPU manager is static",
        ),
        (
            |f| f.pods.as_mut().unwrap()[0]["status"] = json!({"phase": "Running"}),
            State::Failed,
            "does not report",
        ),
        (|f| f.webhooks = Some(Vec::new()), State::Failed, "not registered"),
        (|f| webhook(f)["clientConfig"]["caBundle"] = "".into(), State::Failed, "no caBundle"),
        (|f| webhook(f)["failurePolicy"] = "Fail".into(), State::Failed, "not Ignore"),
        (|f| f.operators = Some(Vec::new()), State::Failed, "no ready pod behind the Service vs/vs"),
        (|f| f.answered = Some(Err("it passed the patch".into())), State::Failed, "it passed the patch"),
        (|f| f.agents = Some(Vec::new()), State::Failed, "none is ready on 1 of 1 nodes: n1"),
        (
            |f| {
                f.vms.as_mut().unwrap()[0]["metadata"]["annotations"] =
                    json!({crate::policy::FALLBACK: "Evict"});
            },
            State::Failed,
            "d/v is not resized in place",
        ),
        (|f| f.rights[8].allowed = Some(false), State::Failed, "missing: patch pods/resize"),
    ];
    for (make, state, words) in cases {
        let mut facts = healthy();
        make(&mut facts);
        let found = findings(&facts);
        assert_eq!(verdict(&found), state, "{words}: {found:#?}");
        let told = found.iter().find(|finding| finding.what.contains(words));
        assert!(told.is_some_and(|finding| !finding.remedy.is_empty()), "{words}: {found:#?}");
    }
}

fn kubevirt(facts: &mut Facts) -> &mut Value {
    &mut facts.kubevirts.as_mut().unwrap()[0]
}

fn node(facts: &mut Facts) -> &mut Value {
    &mut facts.nodes.as_mut().unwrap()[0]
}

fn webhook(facts: &mut Facts) -> &mut Value {
    &mut facts.webhooks.as_mut().unwrap()[0]["webhooks"][0]
}

#[test]
fn the_grant_and_the_policy_of_a_vm_count() {
    let mut facts = healthy();
    facts.vmis.as_mut().unwrap()[0]["status"]["conditions"] = json!([]);
    assert_eq!(machines(&facts)[0].memory, Vec::<String>::new(), "the operator may declare");
    facts.rights[12].allowed = Some(false);
    let machine = &machines(&facts)[0];
    assert!(machine.memory[0].contains("resize.declareMemory"), "{machine:?}");
    assert!(machine.cpu.is_empty());
    let found = findings(&facts);
    assert_eq!(verdict(&found), State::Note);
}
