//! A scheduler for pods with `schedulerName: default-scheduler`: one decision at a time, bindings
//! side by side, and what does not fit waits until a node or a pod changes.

mod claims;
mod fit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::tree::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Change};
use super::client::ClientError;
use super::dra;
use super::events::{Note, Recorder};
use super::identity::Identity;
use super::json::{self, text, time};
use super::node::draw_text;
use super::queue::Queue;
use super::requests::{self, Amounts};
use super::resource::PODS;
use super::write::{Op, Write, Writer};
use fit::{Demand, NodeInfo};

const COMPONENT: &str = "default-scheduler";
/// How many bindings are under way at once.
const BINDERS: usize = 16;

/// Binds pods to nodes.
pub struct Scheduler {
    seed: u64,
    who: Identity,
    writer: Writer,
    recorder: Recorder,
    pods: Arc<Cache>,
    queue: Queue,
    state: Mutex<State>,
    /// Who allocates devices; the next one has to see what was given.
    allocating: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, NodeInfo>,
    /// Pods that count on a node, by uid.
    placed: HashMap<String, Placed>,
    /// How many of them have anti-affinity terms.
    repelling: usize,
    /// Keys of pods that fit nowhere.
    waiting: BTreeSet<String>,
}

struct Placed {
    node: String,
    requests: Amounts,
    /// Has anti-affinity of its own.
    repels: bool,
    /// What affinity looks at, as text: it is kept in memory as long as the pod runs, and read rarely.
    outline: Box<[u8]>,
}

impl Placed {
    fn outline(&self) -> Value {
        // What was written here parses.
        serde_json::from_slice(&self.outline).unwrap_or_default()
    }
}

/// The part of a pod that the affinity of others, and anti-affinity, look at.
fn outline(pod: &Value) -> Box<[u8]> {
    let mut outline =
        json!({"metadata": {"namespace": json::namespace(pod), "labels": pod["metadata"]["labels"]}});
    if let Some(others) = pod.pointer("/spec/affinity/podAntiAffinity") {
        outline["spec"] = json!({"affinity": {"podAntiAffinity": others}});
    }
    outline.to_string().as_bytes().into()
}

/// What becomes of a pod.
#[derive(Debug, Eq, PartialEq)]
enum Verdict {
    Bind(String),
    Unschedulable(String),
}

impl State {
    fn place(&mut self, pod: &Value, node: &str) {
        let uid = json::uid(pod).to_owned();
        if let Some(placed) = self.placed.get_mut(&uid) {
            // Launchers get labels when they run, and affinity looks at those.
            placed.outline = outline(pod);
            return;
        }
        let requests = requests::of_pod(pod);
        let info = self.nodes.entry(node.to_owned()).or_default();
        requests::add(&mut info.used, &requests);
        info.pods += 1;
        let repels = !fit::anti_affinity_terms(pod).is_empty();
        self.repelling += usize::from(repels);
        let placed = Placed { node: node.to_owned(), requests, repels, outline: outline(pod) };
        self.placed.insert(uid, placed);
    }

    fn release(&mut self, uid: &str) -> bool {
        let Some(placed) = self.placed.remove(uid) else { return false };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            requests::subtract(&mut info.used, &placed.requests);
            info.pods = info.pods.saturating_sub(1);
        }
        self.repelling -= usize::from(placed.repels);
        true
    }

    /// Chooses a node: the best score, and among equals the one that the seed draws. `only` are the nodes
    /// that have the devices which the pod claims.
    fn decide(&self, pod: &Value, only: Option<&HashSet<&str>>, seed: u64) -> Verdict {
        let demand = Demand::of(pod);
        let known = || self.nodes.values().filter(|node| !node.name.is_empty());
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Vec<&str> = Vec::new();
        let mut best_score = i128::MIN;
        let (repelled, attracted) = (self.repelled_nodes(pod), self.attracting_nodes(pod));
        let crowded = self.crowded_nodes(pod);
        for node in known() {
            let mut misfits = fit::misfits(&demand, node);
            if misfits.is_empty()
                && let Some(why) = crowded.get(node.name.as_str())
            {
                misfits.push((*why).into());
            }
            if misfits.is_empty() && repelled.contains(node.name.as_str()) {
                misfits.push("node(s) didn't match pod anti-affinity rules".into());
            }
            if misfits.is_empty()
                && attracted.as_ref().is_some_and(|nodes| !nodes.contains(node.name.as_str()))
            {
                misfits.push("node(s) didn't match pod affinity rules".into());
            }
            if misfits.is_empty() && only.is_some_and(|only| !only.contains(node.name.as_str())) {
                misfits.push("cannot allocate all claims".into());
            }
            if !misfits.is_empty() {
                for reason in misfits {
                    *reasons.entry(reason).or_default() += 1;
                }
                continue;
            }
            let score = fit::score(&demand, node);
            if score > best_score {
                best_score = score;
                best.clear();
            }
            if score == best_score {
                best.push(&node.name);
            }
        }
        if best.is_empty() {
            return Verdict::Unschedulable(fit::unschedulable_message(known().count(), &reasons));
        }
        let drawn = draw_text(seed, json::name(pod)) % best.len() as u64;
        Verdict::Bind(best[usize::try_from(drawn).unwrap_or(0)].to_owned())
    }

    /// The nodes from which anti-affinity, the pod's own or that of pods there, keeps the pod away.
    fn repelled_nodes(&self, pod: &Value) -> HashSet<&str> {
        let own = fit::anti_affinity_terms(pod);
        let mut nodes = HashSet::new();
        if own.is_empty() && self.repelling == 0 {
            return nodes;
        }
        for placed in self.placed.values().filter(|placed| placed.repels || !own.is_empty()) {
            let outline = placed.outline();
            let theirs = fit::anti_affinity_terms(&outline);
            for (terms, owner, other) in [(own, pod, &outline), (theirs, &outline, pod)] {
                for term in terms {
                    if fit::are_about(std::slice::from_ref(term), owner, other) {
                        nodes.extend(self.domain(&placed.node, text(term, "/topologyKey")));
                    }
                }
            }
        }
        nodes
    }

    /// The nodes that the pod's own affinity leaves it, if it has any: near a pod that all terms name. The first of pods
    /// that name each other goes anywhere (`satisfyPodAffinity`).
    fn attracting_nodes(&self, pod: &Value) -> Option<HashSet<&str>> {
        let terms = fit::affinity_terms(pod);
        if terms.is_empty() {
            return None;
        }
        let named =
            |other: &Value| terms.iter().all(|term| fit::are_about(std::slice::from_ref(term), pod, other));
        let near: Vec<&Placed> = self.placed.values().filter(|placed| named(&placed.outline())).collect();
        let mut left: HashSet<&str> = self.nodes.values().map(|node| node.name.as_str()).collect();
        for term in terms {
            let key = text(term, "/topologyKey");
            let nodes: HashSet<&str> = if near.is_empty() && named(pod) {
                let labelled = self.nodes.values().filter(|node| node.labels.contains_key(key));
                labelled.map(|node| node.name.as_str()).collect()
            } else {
                near.iter().flat_map(|placed| self.domain(&placed.node, key)).collect()
            };
            left.retain(|node| nodes.contains(node));
        }
        Some(left)
    }

    /// The nodes that a pod may not go to because it and its like would be spread too unevenly, with the reason.
    fn crowded_nodes(&self, pod: &Value) -> HashMap<&str, &'static str> {
        let mut crowded = HashMap::new();
        let known = || self.nodes.values().filter(|node| !node.name.is_empty());
        for constraint in fit::spread_constraints(pod) {
            let key = text(constraint, "/topologyKey");
            let domain = |node: &NodeInfo| node.labels.get(key).and_then(Value::as_str).map(str::to_owned);
            let mut counts: BTreeMap<String, i64> = BTreeMap::new();
            for node in known().filter(|node| fit::counts_for_spread(constraint, pod, node)) {
                counts.extend(domain(node).map(|domain| (domain, 0)));
            }
            for placed in self.placed.values() {
                let there = self.nodes.get(&placed.node).and_then(domain);
                if let Some(count) = there.and_then(|domain| counts.get_mut(&domain))
                    && fit::is_spread(constraint, pod, &placed.outline())
                {
                    *count += 1;
                }
            }
            let fewest = counts.values().min().copied().unwrap_or(0);
            let enough =
                i64::try_from(counts.len()).unwrap_or(i64::MAX) >= json::integer(constraint, "/minDomains");
            let fewest = if enough { fewest } else { 0 };
            let own = i64::from(fit::is_spread(constraint, pod, pod));
            for node in known() {
                let why = match domain(node) {
                    None => "node(s) didn't match pod topology spread constraints (missing required label)",
                    Some(domain) => {
                        let count = counts.get(&domain).copied().unwrap_or(0);
                        if count + own - fewest <= json::integer(constraint, "/maxSkew") {
                            continue;
                        }
                        "node(s) didn't match pod topology spread constraints"
                    }
                };
                crowded.entry(node.name.as_str()).or_insert(why);
            }
        }
        crowded
    }

    /// The nodes with the same value of a topology label as this one.
    fn domain(&self, node: &str, topology_key: &str) -> Vec<&str> {
        let Some(value) = self.nodes.get(node).and_then(|info| info.labels.get(topology_key)) else {
            return Vec::new();
        };
        let same = |info: &&NodeInfo| info.labels.get(topology_key) == Some(value);
        self.nodes.values().filter(same).map(|info| info.name.as_str()).collect()
    }
}

impl Scheduler {
    /// Starts scheduling what the caches show.
    pub fn start(
        seed: u64,
        writer: Writer,
        recorder: Recorder,
        pods: &Arc<Cache>,
        nodes: &Arc<Cache>,
        stop: &CancellationToken,
    ) {
        let scheduler = Arc::new(Self {
            seed,
            who: Identity::scheduler(),
            writer,
            recorder,
            pods: pods.clone(),
            queue: Queue::default(),
            state: Mutex::default(),
            allocating: tokio::sync::Mutex::default(),
        });
        let on_pod = scheduler.clone();
        pods.on_change(move |change| on_pod.pod_changed(change));
        let on_node = scheduler.clone();
        nodes.on_change(move |change| on_node.node_changed(change));
        let queue = scheduler.queue.clone();
        queue.run("scheduler", BINDERS, stop, move |key| {
            let scheduler = scheduler.clone();
            async move { scheduler.reconcile(&key).await }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pod_changed(&self, change: &Change<'_>) {
        let uid = json::uid(change.object());
        let Some(pod) = change.new.filter(|pod| requests::holds(pod)) else {
            let mut state = self.state();
            state.waiting.remove(change.key);
            if state.release(uid) {
                self.wake(&mut state);
            }
            return;
        };
        let node = text(pod, "/spec/nodeName");
        if !node.is_empty() {
            self.state().place(pod, node);
        } else if text(pod, "/spec/schedulerName") == COMPONENT && !json::is_deleting(pod) {
            let claims = "/status/resourceClaimStatuses";
            let fresh = change
                .old
                .is_none_or(|old| old["spec"] != pod["spec"] || old.pointer(claims) != pod.pointer(claims));
            if fresh && !gated(pod) {
                self.queue.add(change.key);
            }
        }
    }

    fn node_changed(&self, change: &Change<'_>) {
        let mut state = self.state();
        if let Some(node) = change.new {
            let same = |pointer| change.old.is_some_and(|old| old.pointer(pointer) == node.pointer(pointer));
            if ["/metadata/labels", "/spec", "/status/allocatable"].into_iter().all(same) {
                return;
            }
            state.nodes.entry(json::name(node).to_owned()).or_default().describe(node);
            self.wake(&mut state);
        } else if let Some(info) = state.nodes.get_mut(json::name(change.object())) {
            // What is placed there stays counted until the pods go.
            info.name.clear();
        }
    }

    fn wake(&self, state: &mut State) {
        for key in std::mem::take(&mut state.waiting) {
            self.queue.add(&key);
        }
    }

    async fn reconcile(&self, key: &str) -> Result<Option<Duration>, ClientError> {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        if !text(&pod, "/spec/nodeName").is_empty() || json::is_deleting(&pod) || !requests::holds(&pod) {
            return Ok(None);
        }
        if dra::asks(&pod) {
            return self.with_claims(key, &pod).await;
        }
        match self.choose(key, &pod, None) {
            None => Ok(None),
            Some(Verdict::Bind(node)) => self.bind(&pod, &node).await,
            Some(Verdict::Unschedulable(message)) => self.report(&pod, &message).await,
        }
    }

    /// Decides about a pod and counts it where it goes; nothing when that was done before.
    fn choose(&self, key: &str, pod: &Arc<Value>, only: Option<&HashSet<&str>>) -> Option<Verdict> {
        let mut state = self.state();
        if state.placed.contains_key(json::uid(pod)) {
            // Bound already; the watch has not shown it yet.
            return None;
        }
        let verdict = state.decide(pod, only, self.seed);
        match &verdict {
            Verdict::Bind(node) => state.place(pod, node),
            Verdict::Unschedulable(_) => {
                state.waiting.insert(key.to_owned());
            }
        }
        Some(verdict)
    }

    async fn bind(&self, pod: &Value, node: &str) -> Result<Option<Duration>, ClientError> {
        let (namespace, name) = (json::namespace(pod), json::name(pod));
        let binding = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": json::uid(pod)},
            "target": {"kind": "Node", "name": node}});
        let write = Write::to(&PODS, pod, "binding", Op::Create(binding));
        if let Err(error) = self.writer.write(&self.who, &write).await {
            self.state().release(json::uid(pod));
            // The pod is gone or bound already: nothing is left to do.
            return if matches!(error.code(), 404 | 409) { Ok(None) } else { Err(error) };
        }
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.recorder.note(&self.who, COMPONENT, Note::normal(pod, "Scheduled", message));
        Ok(None)
    }

    async fn report(&self, pod: &Value, message: &str) -> Result<Option<Duration>, ClientError> {
        self.recorder.note(&self.who, COMPONENT, Note::warning(pod, "FailedScheduling", message));
        let known = json::condition(pod, "/status/conditions", "PodScheduled")
            .is_some_and(|condition| text(condition, "/message") == message);
        if !known {
            let now = time(self.writer.client.now());
            let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": message, "lastProbeTime": null, "lastTransitionTime": now});
            let body = json!({"status": {"conditions": [condition]}});
            let write = Write::to(&PODS, pod, "status", Op::StrategicPatch(body));
            match self.writer.write(&self.who, &write).await {
                Err(error) if error.code() != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn gated(pod: &Value) -> bool {
    !json::list(pod, "/spec/schedulingGates").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(nodes: &[(&str, &str)]) -> State {
        let mut state = State::default();
        for (name, zone) in nodes {
            state.nodes.entry((*name).into()).or_default().describe(&json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": zone}},
                "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"}},
            }));
        }
        state
    }

    fn pod(name: &str, cpu: &str, away_from: Option<&str>) -> Arc<Value> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "x"}},
            "spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        if let Some(key) = away_from {
            pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": "x"}}}]);
        }
        Arc::new(pod)
    }

    #[test]
    fn pods_spread_until_nothing_fits_and_a_release_makes_room() {
        let mut state = state(&[("a", "1"), ("b", "1")]);
        let mut nodes = Vec::new();
        for name in ["p1", "p2"] {
            let pod = pod(name, "2", None);
            let Verdict::Bind(node) = state.decide(&pod, None, 1) else { panic!("{name} fits") };
            state.place(&pod, &node);
            nodes.push(node);
        }
        nodes.sort();
        assert_eq!(nodes, ["a", "b"]);
        let third = pod("p3", "1", None);
        let Verdict::Unschedulable(message) = state.decide(&third, None, 1) else { panic!("full") };
        assert!(message.starts_with("0/2 nodes are available: 2 Insufficient cpu."), "{message}");
        assert!(state.release("p1"));
        assert!(!state.release("p1"), "once");
        assert!(matches!(state.decide(&third, None, 1), Verdict::Bind(_)));
    }

    #[test]
    fn anti_affinity_works_in_both_directions_and_by_topology() {
        let mut state = state(&[("a", "1"), ("b", "1"), ("c", "2")]);
        state.place(&pod("shy", "1", Some("zone")), "a");
        assert_eq!(
            state.decide(&pod("plain", "1", None), None, 1),
            Verdict::Bind("c".into()),
            "repelled from zone 1"
        );
        state.place(&pod("plain", "1", None), "c");
        let Verdict::Unschedulable(message) = state.decide(&pod("shy2", "1", Some("zone")), None, 1) else {
            panic!("both zones are taken")
        };
        assert!(message.contains("3 node(s) didn't match pod anti-affinity rules"), "{message}");
    }

    #[test]
    fn affinity_leaves_the_nodes_of_the_pods_that_it_names() {
        let mut state = state(&[("a", "1"), ("b", "1"), ("c", "2")]);
        let mut near = pod("near", "1", None).as_ref().clone();
        near["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}]);
        let first = state.decide(&near, None, 1);
        assert!(matches!(first, Verdict::Bind(_)), "the first of those that want to be together: {first:?}");
        near["metadata"]["labels"]["app"] = "y".into();
        let Verdict::Unschedulable(message) = state.decide(&near, None, 1) else { panic!("nobody is there") };
        assert!(message.contains("3 node(s) didn't match pod affinity rules"), "{message}");
        state.place(&pod("first", "1", None), "b");
        assert_eq!(state.decide(&near, None, 1), Verdict::Bind("b".into()));
    }

    #[test]
    fn pods_are_spread_as_evenly_as_they_ask_for() {
        let mut state = state(&[("a", "1"), ("b", "1"), ("c", "2")]);
        let spread = |name: &str, key: &str, extra: Value| {
            let mut pod = pod(name, "1m", None).as_ref().clone();
            let mut constraint = json!({"topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "x"}}});
            for (key, value) in extra.as_object().into_iter().flatten() {
                constraint[key] = value.clone();
            }
            pod["spec"]["topologySpreadConstraints"] = json!([constraint]);
            pod
        };
        state.place(&pod("p1", "1m", None), "a");
        // Zone 1 has one already.
        let second = spread("p2", "zone", json!({}));
        assert_eq!(state.decide(&second, None, 1), Verdict::Bind("c".into()));
        state.place(&pod("p2", "1m", None), "c");
        let mut third = spread("p3", "kubernetes.io/hostname", json!({}));
        assert_eq!(state.decide(&third, None, 1), Verdict::Bind("b".into()));
        // The nodes that it cannot go to do not count, unless it says so.
        third["spec"]["nodeSelector"] = json!({"zone": "2"});
        assert_eq!(state.decide(&third, None, 1), Verdict::Bind("c".into()));
        third["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = "Ignore".into();
        let Verdict::Unschedulable(message) = state.decide(&third, None, 1) else {
            panic!("c has one, b none")
        };
        let [elsewhere, crowded] = [
            "2 node(s) didn't match Pod's node affinity/selector",
            "1 node(s) didn't match pod topology spread constraints",
        ];
        assert!(message.contains(elsewhere) && message.contains(crowded), "{message}");
        let nowhere = spread("p4", "rack", json!({}));
        let Verdict::Unschedulable(message) = state.decide(&nowhere, None, 1) else { panic!("no racks") };
        assert!(
            message
                .contains("3 node(s) didn't match pod topology spread constraints (missing required label)")
        );
        let wide = spread("p5", "zone", json!({"minDomains": 3}));
        assert!(matches!(state.decide(&wide, None, 1), Verdict::Unschedulable(_)), "both zones have one");
        let soft = spread("p6", "rack", json!({"whenUnsatisfiable": "ScheduleAnyway"}));
        assert!(matches!(state.decide(&soft, None, 1), Verdict::Bind(_)));
    }

    #[test]
    fn the_seed_alone_decides_among_equal_nodes() {
        let state = state(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
        let choices = |seed| {
            (0..8).map(|i| state.decide(&pod(&format!("p{i}"), "1", None), None, seed)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }
}
