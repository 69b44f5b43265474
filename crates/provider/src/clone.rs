//! Copies of VMs: what is asked for, what is created, and how far it is (`clone/v1beta1/types.go`, v1.9).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::network::mac;
use crate::snapshot::named;
use crate::view::{list, text};
use crate::wait::Progress;
use crate::{Error, Kind};

/// The longest serial number (`validateFirmware`, v1.9).
const LONGEST_SERIAL: usize = 256;

/// What a clone is made from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A VM.
    Vm(String),
    /// A snapshot.
    Snapshot(String),
}

/// What the copy is to be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wish {
    /// Its name.
    pub target: String,
    /// Hardware addresses by interface; `KubeVirt` draws those that are not given.
    pub macs: BTreeMap<String, String>,
    /// The serial number that its firmware shows; `KubeVirt` draws one otherwise.
    pub serial: Option<String>,
}

impl Wish {
    /// A copy of this name, with addresses and a serial number that `KubeVirt` draws.
    pub fn named(target: &str) -> Self {
        Self { target: target.into(), ..Self::default() }
    }
}

/// Whether the copy can be as it is wished. `vm` is what is copied, as far as the caller may read it: `KubeVirt`
/// leaves out in silence what is for an interface, or a firmware, that is not there.
pub fn check(wish: &Wish, vm: Option<&Value>, doing: &str) -> Result<(), Error> {
    let wrong = |wrong: String, remedy: &str| Err(Error::new(Kind::InvalidArgument, doing, wrong, remedy));
    let mut seen: BTreeMap<[u8; 6], &str> = BTreeMap::new();
    for (name, text) in &wish.macs {
        let Some(address) = mac(text) else {
            let remedy = "write six bytes as in 02:00:00:12:34:56, the first of them even";
            return wrong(format!("`{text}` is no hardware address of an interface"), remedy);
        };
        if let Some(other) = seen.insert(address, name) {
            let message = format!("interfaces `{other}` and `{name}` would have the same hardware address");
            return wrong(message, "give each its own, or leave them to KubeVirt");
        }
    }
    if let Some(serial) = &wish.serial {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        if serial.is_empty() || serial.len() > LONGEST_SERIAL || !serial.bytes().all(plain) {
            let message = format!("`{serial}` is no serial number that KubeVirt takes");
            return wrong(message, "use at most 256 letters, digits, `_`, `.`, `+` and `-`");
        }
    }
    vm.map_or(Ok(()), |vm| fits(wish, vm, doing))
}

fn fits(wish: &Wish, vm: &Value, doing: &str) -> Result<(), Error> {
    let interfaces = list(vm, "/spec/template/spec/domain/devices/interfaces");
    let names: Vec<&str> = interfaces.iter().map(|one| text(one, "/name")).collect();
    if let Some(name) = wish.macs.keys().find(|name| !names.contains(&name.as_str())) {
        let has =
            if names.is_empty() { "it names none".into() } else { format!("it has {}", names.join(", ")) };
        let message = format!("what is copied has no interface `{name}`; {has}");
        return Err(Error::new(Kind::NotFound, doing, message, "name one of its interfaces"));
    }
    let firmware = vm.pointer("/spec/template/spec/domain/firmware").is_some_and(Value::is_object);
    if wish.serial.is_some() && !firmware {
        let message =
            "what is copied names no firmware, and KubeVirt gives serial numbers only to those that do";
        let remedy = "set spec.template.spec.domain.firmware.serial of the copy while it is off";
        return Err(Error::new(Kind::WrongState, doing, message, remedy));
    }
    Ok(())
}

/// The clone to create: into the same namespace. What is not given, `KubeVirt` draws.
pub fn object(namespace: &str, origin: &Origin, wish: &Wish) -> Value {
    let (group, kind, name) = match origin {
        Origin::Vm(name) => ("kubevirt.io", "VirtualMachine", name),
        Origin::Snapshot(name) => ("snapshot.kubevirt.io", "VirtualMachineSnapshot", name),
    };
    let mut clone = named(
        json!({"apiVersion": "clone.kubevirt.io/v1beta1", "kind": "VirtualMachineClone",
            "metadata": {"namespace": namespace},
            "spec": {"source": {"apiGroup": group, "kind": kind, "name": name},
                "target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": wish.target}}}),
        None,
        &wish.target,
    );
    // The clone becomes a restore with patches, whose admission cuts each of them at its colons and refuses
    // addresses that are written with them (`validatePatches`, vmrestore-admitter.go, v1.9).
    let macs: BTreeMap<&str, String> = wish
        .macs
        .iter()
        .map(|(name, mac)| (name.as_str(), mac.replace(':', "-").to_ascii_lowercase()))
        .collect();
    if !macs.is_empty() {
        clone["spec"]["newMacAddresses"] = json!(macs);
    }
    if let Some(serial) = &wish.serial {
        clone["spec"]["newSMBiosSerial"] = serial.as_str().into();
    }
    clone
}

/// How far a clone is.
pub fn progress(clone: &Value) -> Progress {
    match text(clone, "/status/phase") {
        "Succeeded" => Progress::Done,
        "Failed" => {
            let conditions = list(clone, "/status/conditions");
            let why = conditions.iter().map(|one| text(one, "/message")).find(|text| !text.is_empty());
            Progress::Failed(why.unwrap_or("it failed without a reason").into())
        }
        "" => Progress::Waiting("not seen by KubeVirt yet".into()),
        phase => Progress::Waiting(phase.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(macs: &[(&str, &str)], serial: Option<&str>) -> Wish {
        let macs = macs.iter().map(|(name, mac)| ((*name).to_owned(), (*mac).to_owned())).collect();
        Wish { target: "copy".into(), macs, serial: serial.map(str::to_owned) }
    }

    #[test]
    fn addresses_are_sent_so_that_the_restore_takes_them() {
        let origin = Origin::Snapshot("before".into());
        let plain = object("prod", &origin, &Wish::named("copy"));
        assert_eq!(
            plain["spec"],
            json!({"source": {"apiGroup": "snapshot.kubevirt.io", "kind": "VirtualMachineSnapshot", "name": "before"},
                "target": {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "copy"}})
        );
        assert_eq!(plain["metadata"], json!({"namespace": "prod", "generateName": "copy-"}));
        let given = wish(&[("default", "02:00:00:AB:cd:07")], Some("SN-7"));
        let made = object("prod", &Origin::Vm("web".into()), &given);
        assert_eq!(made["spec"]["newMacAddresses"], json!({"default": "02-00-00-ab-cd-07"}));
        assert_eq!(made["spec"]["newSMBiosSerial"], "SN-7");
    }

    #[test]
    fn what_kubevirt_would_leave_out_in_silence_is_refused() {
        let vm = json!({"spec": {"template": {"spec": {"domain": {"firmware": {"uuid": "x"},
            "devices": {"interfaces": [{"name": "default"}, {"name": "lan"}]}}}}}});
        let bare = json!({"spec": {"template": {"spec": {"domain": {}}}}});
        let good = ("default", "02:00:00:00:00:01");
        for (wish, vm, outcome) in [
            (wish(&[good], Some("a.b_c+d-1")), Some(&vm), Ok(())),
            (wish(&[good], Some("x")), None, Ok(())),
            (wish(&[], None), Some(&bare), Ok(())),
            (wish(&[("wan", good.1)], None), Some(&vm), Err(Kind::NotFound)),
            (wish(&[good], None), Some(&bare), Err(Kind::NotFound)),
            (wish(&[], Some("x")), Some(&bare), Err(Kind::WrongState)),
            (wish(&[("default", "02:00")], None), Some(&vm), Err(Kind::InvalidArgument)),
            (wish(&[("default", "03:00:00:00:00:01")], None), Some(&vm), Err(Kind::InvalidArgument)),
            (wish(&[good, ("lan", "02-00-00-00-00-01")], None), Some(&vm), Err(Kind::InvalidArgument)),
            (wish(&[], Some("a:b")), Some(&vm), Err(Kind::InvalidArgument)),
            (wish(&[], Some("")), Some(&vm), Err(Kind::InvalidArgument)),
        ] {
            let found = check(&wish, vm, "x").map_err(|error| error.kind);
            assert_eq!(found, outcome, "{wish:?}");
        }
    }

    #[test]
    fn progress_is_read_from_the_phase() {
        let of = |phase: &str| progress(&json!({"status": {"phase": phase}}));
        assert_eq!(of("Succeeded"), Progress::Done);
        assert!(matches!(of("Failed"), Progress::Failed(_)));
        assert_eq!(of("RestoreInProgress"), Progress::Waiting("RestoreInProgress".into()));
        assert_eq!(progress(&json!({})), Progress::Waiting("not seen by KubeVirt yet".into()));
    }
}
