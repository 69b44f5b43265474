//! Which devices a pod's claims get on which node (`k8s.io/dynamic-resource-allocation/structured`), as plain
//! data: the first free devices that class and request select, for all claims of the pod together.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use apimachinery::cel::{Program, Variables};
use apimachinery::tree::{Map, Value, json};

use crate::sim::json::{list, map, text};

/// A device's identity: driver, pool, device.
type Device = (String, String, String);

/// What one claim gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The claim as it was seen.
    pub claim: Value,
    /// `status.allocation`; nothing: it has one already.
    pub allocation: Option<Value>,
}

/// What there is to allocate, and for whom.
pub struct Inventory {
    claims: Vec<Value>,
    in_use: HashSet<Device>,
    classes: Vec<Value>,
    slices: Vec<Value>,
}

impl Inventory {
    /// `own` are the pod's claims, among `claims`, all that there are.
    pub fn new(own: Vec<Value>, claims: &[Value], classes: Vec<Value>, slices: Vec<Value>) -> Self {
        let results = claims.iter().flat_map(|claim| list(claim, "/status/allocation/devices/results"));
        let in_use = results
            .map(|one| (text(one, "/driver").into(), text(one, "/pool").into(), text(one, "/device").into()))
            .collect();
        Self { claims: own, in_use, classes, slices }
    }

    /// The allocations of the pod's claims, by each node that has all of them.
    pub fn by_node(&self) -> BTreeMap<&str, Vec<Allocation>> {
        let nodes: BTreeSet<&str> = self.slices.iter().map(|slice| text(slice, "/spec/nodeName")).collect();
        nodes.into_iter().filter_map(|node| Some((node, self.on(node)?))).collect()
    }

    fn on(&self, node: &str) -> Option<Vec<Allocation>> {
        let mut taken = self.in_use.clone();
        self.claims.iter().map(|claim| self.claim(claim, node, &mut taken)).collect()
    }

    fn claim(&self, claim: &Value, node: &str, taken: &mut HashSet<Device>) -> Option<Allocation> {
        if let Some(allocation) = map(claim, "/status/allocation") {
            let there = allocation.get("nodeSelector").is_none_or(|selector| {
                let fields = list(selector, "/nodeSelectorTerms/0/matchFields/0/values");
                fields.iter().any(|name| name == node)
            });
            return there.then(|| Allocation { claim: claim.clone(), allocation: None });
        }
        let mut results = Vec::new();
        for request in list(claim, "/spec/devices/requests") {
            let exactly = request.get("exactly")?;
            let count = exactly.get("count").and_then(Value::as_u64).unwrap_or(1);
            let selectors = self.selectors(exactly)?;
            let devices = self.slices.iter().filter(|slice| text(slice, "/spec/nodeName") == node);
            let mut free = devices
                .flat_map(|slice| list(slice, "/spec/devices").iter().map(move |device| (slice, device)))
                .filter(|(slice, device)| selectors.iter().all(|one| selects(one, slice, device)));
            for _ in 0..count {
                let (slice, device) = free.find(|(slice, device)| taken.insert(identity(slice, device)))?;
                results.push(json!({"request": request["name"], "driver": slice["spec"]["driver"],
                    "pool": slice["spec"]["pool"]["name"], "device": device["name"]}));
            }
        }
        let only = json!({"nodeSelectorTerms": [{"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": [node]}]}]});
        let allocation = json!({"devices": {"results": results}, "nodeSelector": only});
        Some(Allocation { claim: claim.clone(), allocation: Some(allocation) })
    }

    /// The conditions of a request and its class; nothing when the class is not there or a condition is broken.
    fn selectors(&self, request: &Value) -> Option<Vec<Program>> {
        let class =
            self.classes.iter().find(|class| class["metadata"]["name"] == request["deviceClassName"])?;
        list(class, "/spec/selectors")
            .iter()
            .chain(list(request, "/selectors"))
            .map(|selector| Program::compile(text(selector, "/cel/expression")).ok())
            .collect()
    }
}

fn identity(slice: &Value, device: &Value) -> Device {
    (text(slice, "/spec/driver").into(), text(slice, "/spec/pool/name").into(), text(device, "/name").into())
}

/// Whether a condition holds for a device. Attributes without a domain are the driver's own.
fn selects(selector: &Program, slice: &Value, device: &Value) -> bool {
    let driver = text(slice, "/spec/driver");
    let by_domain = |members: Option<&Map>, value: &dyn Fn(&Value) -> Value| {
        let mut domains = Map::new();
        for (name, member) in members.into_iter().flatten() {
            let (domain, name) = name.split_once('/').unwrap_or((driver, name));
            let entry = domains.entry(domain).or_insert_with(|| json!({}));
            entry[name] = value(member);
        }
        Value::Object(domains)
    };
    let only = |member: &Value| {
        member.as_object().and_then(|kinds| kinds.values().next()).cloned().unwrap_or_default()
    };
    let mut variables = Variables::default();
    variables.bind(
        "device",
        &json!({"driver": driver, "attributes": by_domain(map(device, "/attributes"), &only),
            "capacity": by_domain(map(device, "/capacity"), &only)}),
    );
    selector.evaluate_bool(&variables).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(node: &str, devices: &[(&str, &str)]) -> Value {
        let devices: Vec<Value> = devices
            .iter()
            .map(|(name, model)| json!({"name": name, "attributes": {"model": {"string": model}}}))
            .collect();
        json!({"spec": {"driver": "d.io", "nodeName": node, "pool": {"name": node}, "devices": devices}})
    }

    fn claim(name: &str, count: u64, model: Option<&str>) -> Value {
        let selectors: Vec<Value> = model
            .map(|model| json!({"cel": {"expression": format!("device.attributes['d.io'].model == '{model}'")}}))
            .into_iter()
            .collect();
        json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"devices": {"requests": [
            {"name": "gpu", "exactly": {"deviceClassName": "any", "count": count, "selectors": selectors}}]}}})
    }

    fn class() -> Value {
        json!({"metadata": {"name": "any"}, "spec": {"selectors": [{"cel": {"expression": "device.driver == 'd.io'"}}]}})
    }

    fn devices(inventory: &Inventory) -> BTreeMap<&str, Vec<String>> {
        let name = |result: &Value| text(result, "/device").to_owned();
        let of = |all: Vec<Allocation>| {
            let given = all.iter().filter_map(|one| one.allocation.as_ref());
            given.flat_map(|one| list(one, "/devices/results")).map(name).collect()
        };
        inventory.by_node().into_iter().map(|(node, all)| (node, of(all))).collect()
    }

    #[test]
    fn all_claims_of_a_pod_are_met_on_one_node_or_not_there() {
        let slices = vec![slice("a", &[("g0", "x"), ("g1", "x")]), slice("b", &[("g0", "y")])];
        let of =
            |own: Vec<Value>, others: &[Value]| Inventory::new(own, others, vec![class()], slices.clone());
        let node = |name: &'static str, devices: &[&str]| {
            (name, devices.iter().map(|one| (*one).to_owned()).collect())
        };
        for (own, expected) in [
            (vec![claim("c", 1, None)], vec![node("a", &["g0"]), node("b", &["g0"])]),
            (vec![claim("c", 2, None)], vec![node("a", &["g0", "g1"])]),
            (vec![claim("c", 1, None), claim("d", 1, None)], vec![node("a", &["g0", "g1"])]),
            (vec![claim("c", 1, Some("y"))], vec![node("b", &["g0"])]),
            (vec![claim("c", 1, Some("z"))], vec![]),
        ] {
            assert_eq!(devices(&of(own.clone(), &[])), expected.into_iter().collect(), "{own:?}");
        }
        let mut used = claim("other", 1, None);
        used["status"]["allocation"]["devices"]["results"] =
            json!([{"driver": "d.io", "pool": "b", "device": "g0"}]);
        assert_eq!(devices(&of(vec![claim("c", 1, None)], &[used])), [node("a", &["g0"])].into());
    }

    #[test]
    fn an_allocated_claim_stays_where_it_is() {
        let slices = vec![slice("a", &[("g0", "x")]), slice("b", &[("g0", "y")])];
        let first = Inventory::new(vec![claim("c", 1, None)], &[], vec![class()], slices.clone());
        let mut given = claim("c", 1, None);
        given["status"]["allocation"] = first.by_node()["b"][0].allocation.clone().unwrap();
        let again = Inventory::new(vec![given.clone()], std::slice::from_ref(&given), vec![class()], slices);
        assert_eq!(again.by_node().into_keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(again.by_node()["b"][0].allocation, None);
    }

    #[test]
    fn a_class_that_is_not_there_or_broken_gives_nothing() {
        let slices = vec![slice("a", &[("g0", "x")])];
        let mut broken = class();
        broken["spec"]["selectors"][0]["cel"]["expression"] = "device.".into();
        for classes in [vec![], vec![broken]] {
            let inventory = Inventory::new(vec![claim("c", 1, None)], &[], classes, slices.clone());
            assert!(inventory.by_node().is_empty());
        }
    }
}
