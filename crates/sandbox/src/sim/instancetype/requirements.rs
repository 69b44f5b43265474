//! What a preference requires of a VM (`preference/requirements`, `preference/validation`, v1.9), and the words with which
//! virt-api refuses one that has less.

use apimachinery::quantity::{self, units};
use apimachinery::tree::Value;

use super::apply::{Topology, spread};
use crate::sim::json::{integer, text};

/// A requirement that is not met: the fields that are to blame, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unmet {
    pub field: String,
    pub message: String,
}

const CPU: &str = "spec.template.spec.domain.cpu";

/// Looks at CPU, memory and architecture of a template that has its defaults, in this order.
///
/// # Errors
/// [`Unmet`]
pub fn check(instancetype: Option<&Value>, preference: Option<&Value>, spec: &Value) -> Result<(), Unmet> {
    let Some(preference) = preference.filter(|one| one["requirements"].is_object()) else { return Ok(()) };
    let required = &preference["requirements"];
    if required["cpu"].is_object() {
        cpu(instancetype, preference, spec)?;
    }
    if required["memory"].is_object() {
        memory(instancetype, &required["memory"]["guest"], spec)?;
    }
    if let Some(architecture) = required["architecture"].as_str()
        && architecture != text(spec, "/architecture")
    {
        let has = text(spec, "/architecture");
        let message = format!("preference requires architecture {architecture} but {has} is being requested");
        return Err(Unmet { field: "spec.template.spec.architecture".into(), message });
    }
    Ok(())
}

fn cpu(instancetype: Option<&Value>, preference: &Value, spec: &Value) -> Result<(), Unmet> {
    let required = integer(preference, "/requirements/cpu/guest");
    if let Some(instancetype) = instancetype {
        let given = integer(instancetype, "/cpu/guest");
        let message = format!(
            "insufficient CPU resources of {given} vCPU provided by instance type, preference requires {required} vCPU"
        );
        return if given < required {
            Err(Unmet { field: "spec.instancetype".into(), message })
        } else {
            Ok(())
        };
    }
    let Some(cpu) = spec.pointer("/domain/cpu").filter(|cpu| cpu.is_object()) else {
        let message =
            format!("no CPU resources provided by VirtualMachine, preference requires {required} vCPU");
        return Err(Unmet { field: CPU.into(), message });
    };
    let (fields, words): (&[&str], &str) = match Topology::of(preference) {
        Topology::Threads => (&["threads"], "threads"),
        Topology::Cores => (&["cores"], "cores"),
        Topology::Sockets => (&["sockets"], "sockets"),
        Topology::Any => (&["cores", "sockets", "threads"], "cores, sockets and threads"),
        Topology::Spread => match spread(preference).1 {
            "CoresThreads" => (&["cores", "threads"], "CoresThreads"),
            "SocketsCoresThreads" => (&["sockets", "cores", "threads"], "SocketsCoresThreads"),
            _ => (&["sockets", "cores"], "SocketsCores"),
        },
    };
    let given: i64 =
        fields.iter().map(|field| cpu[*field].as_i64().unwrap_or(0)).fold(1, i64::saturating_mul);
    if given >= required {
        return Ok(());
    }
    let field = fields.iter().map(|field| format!("{CPU}.{field}")).collect::<Vec<_>>().join(", ");
    let message = format!(
        "insufficient CPU resources of {given} vCPU provided by VirtualMachine, preference requires {required} vCPU \
         provided as {words}"
    );
    Err(Unmet { field, message })
}

fn memory(instancetype: Option<&Value>, required: &Value, spec: &Value) -> Result<(), Unmet> {
    let own = spec.pointer("/domain/memory/guest");
    let (field, by, given) = match instancetype {
        Some(instancetype) => ("spec.instancetype", "instance type", instancetype.pointer("/memory/guest")),
        None => ("spec.template.spec.domain.memory", "VirtualMachine", None),
    };
    let nothing = Value::from("0Mi");
    let given = own.or(given).unwrap_or(&nothing);
    if units(given).unwrap_or(0) >= units(required).unwrap_or(0) {
        return Ok(());
    }
    let message = format!(
        "insufficient Memory resources of {} provided by {by}, preference requires {}",
        canonical(given),
        canonical(required)
    );
    Err(Unmet { field: field.into(), message })
}

/// A quantity as Go prints one that it has read: binary ones in their largest unit, nothing as `0`.
fn canonical(value: &Value) -> String {
    let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match units(value) {
        Some(0) => "0".into(),
        Some(bytes) if given.ends_with('i') => quantity::bytes(bytes),
        _ => given,
    }
}

/// vCPUs that cannot be spread as the preference wants (`CheckSpreadCPUTopology`): why.
pub fn uneven(instancetype: Option<&Value>, preference: Option<&Value>) -> Option<String> {
    const THREADS: i64 = 2;
    let preference = preference.filter(|one| Topology::of(one) == Topology::Spread)?;
    let vcpus = integer(instancetype?, "/cpu/guest");
    let (ratio, across) = spread(preference);
    let given = format!("{vcpus} vCPUs provided by the instance type are not divisible by");
    match across {
        "CoresThreads" => {
            (vcpus % ratio > 0).then(|| format!("{given} the number of threads per core {ratio}"))
        }
        "SocketsCoresThreads" => (vcpus % THREADS > 0 || (vcpus / THREADS) % ratio > 0).then(|| {
            format!(
                "{given} the number of threads per core {THREADS} and Spec.PreferSpreadSocketToCoreRatio or \
                 Spec.CPU.PreferSpreadOptions.Ratio of {ratio}"
            )
        }),
        "SocketsCores" => (vcpus % ratio > 0).then(|| {
            format!(
                "{given} the Spec.PreferSpreadSocketToCoreRatio or Spec.CPU.PreferSpreadOptions.Ratio of {ratio} \
                 provided by the preference"
            )
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::tree::json;

    use super::*;

    #[test]
    fn less_than_a_preference_requires_is_named_with_who_gives_it() {
        let big = json!({"requirements": {"cpu": {"guest": 4}, "memory": {"guest": "2Gi"}}});
        let spread =
            json!({"requirements": {"cpu": {"guest": 4}}, "cpu": {"preferredCPUTopology": "spread"}});
        let arm = json!({"requirements": {"architecture": "arm64"}});
        let type_of =
            |vcpus: i64, memory: &str| json!({"cpu": {"guest": vcpus}, "memory": {"guest": memory}});
        let own = |sockets: i64, memory: &str| {
            json!({"architecture": "amd64", "domain": {"cpu": {"sockets": sockets, "cores": 1, "threads": 1},
                "memory": {"guest": memory}}})
        };
        let laid_over = json!({"domain": {"memory": {"guest": "1Gi"}}});
        for (instancetype, preference, spec, expected) in [
            (None, &big, own(4, "2Gi"), None),
            (
                Some(type_of(2, "2Gi")),
                &big,
                own(2, "2Gi"),
                Some((
                    "spec.instancetype",
                    "insufficient CPU resources of 2 vCPU provided by instance type, preference requires 4 vCPU",
                )),
            ),
            (
                None,
                &big,
                own(2, "2Gi"),
                Some((
                    "spec.template.spec.domain.cpu.sockets",
                    "insufficient CPU resources of 2 vCPU provided by VirtualMachine, preference requires 4 vCPU \
                     provided as sockets",
                )),
            ),
            (
                None,
                &spread,
                own(2, "2Gi"),
                Some((
                    "spec.template.spec.domain.cpu.sockets, spec.template.spec.domain.cpu.cores",
                    "insufficient CPU resources of 2 vCPU provided by VirtualMachine, preference requires 4 vCPU \
                     provided as SocketsCores",
                )),
            ),
            (
                None,
                &big,
                json!({"domain": {}}),
                Some((CPU, "no CPU resources provided by VirtualMachine, preference requires 4 vCPU")),
            ),
            (
                None,
                &big,
                own(4, "1024Mi"),
                Some((
                    "spec.template.spec.domain.memory",
                    "insufficient Memory resources of 1Gi provided by VirtualMachine, preference requires 2Gi",
                )),
            ),
            (
                Some(type_of(4, "1Gi")),
                &big,
                laid_over,
                Some((
                    "spec.instancetype",
                    "insufficient Memory resources of 1Gi provided by instance type, preference requires 2Gi",
                )),
            ),
            (
                None,
                &arm,
                own(1, "1Gi"),
                Some((
                    "spec.template.spec.architecture",
                    "preference requires architecture arm64 but amd64 is being requested",
                )),
            ),
        ] {
            let found = check(instancetype.as_ref(), Some(preference), &spec).err();
            let expected =
                expected.map(|(field, message)| Unmet { field: field.into(), message: message.into() });
            assert_eq!(found, expected, "{preference} {spec}");
        }
    }

    #[test]
    fn vcpus_that_do_not_divide_are_not_spread() {
        let preference =
            |options: Value| json!({"cpu": {"preferredCPUTopology": "spread", "spreadOptions": options}});
        let vcpus = |count: i64| json!({"cpu": {"guest": count}});
        for (count, options, uneven_for) in [
            (4, json!({}), false),
            (3, json!({}), true),
            (6, json!({"across": "CoresThreads", "ratio": 4}), true),
            (8, json!({"across": "SocketsCoresThreads"}), false),
            (6, json!({"across": "SocketsCoresThreads"}), true),
        ] {
            let found = uneven(Some(&vcpus(count)), Some(&preference(options.clone())));
            assert_eq!(found.is_some(), uneven_for, "{count} {options}: {found:?}");
        }
        assert_eq!(uneven(Some(&vcpus(3)), Some(&json!({}))), None, "sockets take any number");
    }
}
