//! A VMI that a launcher survives.
//!
//! virt-launcher v1.9 dereferences without a check what it needs of a request: a memory request
//! whose VMI lacks `maxGuest` or `guestAtBoot` ends the process and the guest with it, and a CPU
//! request without `spec.domain.cpu` counts as one vCPU and starts to unplug. So a request is made
//! of a [`CompleteVmi`] only, and there is no other way to make one than from a whole VMI.

use resize::quantity::bytes;
use resize::size::Size;
use serde_json::{Value, json};

/// What a VMI lacks to be sent to a launcher.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the VMI lacks {field}, without which virt-launcher would crash or unplug: nothing was sent")]
pub struct Incomplete {
    /// The JSON pointer of the field.
    pub field: &'static str,
}

/// A whole VMI.
#[derive(Clone, Debug)]
pub struct CompleteVmi {
    vmi: Value,
    /// Cores times threads.
    per_socket: u32,
    boot: u64,
}

/// Fields that must hold a text.
const TEXTS: [&str; 3] = ["/metadata/name", "/metadata/namespace", "/metadata/uid"];
/// Fields that must hold a number of at least one.
const NUMBERS: [&str; 3] = ["/spec/domain/cpu/sockets", "/spec/domain/cpu/cores", "/spec/domain/cpu/threads"];
/// Fields that must hold an amount of memory.
const AMOUNTS: [&str; 3] =
    ["/spec/domain/memory/guest", "/spec/domain/memory/maxGuest", "/status/memory/guestAtBoot"];

impl CompleteVmi {
    /// Checks a VMI as the API server has it.
    ///
    /// # Errors
    /// The first field that is missing.
    pub fn new(vmi: Value) -> Result<Self, Incomplete> {
        let missing = |fields: &[&'static str], fits: &dyn Fn(&Value) -> bool| {
            fields
                .iter()
                .find(|field| !vmi.pointer(field).is_some_and(fits))
                .map(|field| Incomplete { field })
        };
        let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        let number =
            |value: &Value| value.as_u64().is_some_and(|number| (1..=u64::from(u16::MAX)).contains(&number));
        let amount = |value: &Value| bytes(value).is_some_and(|bytes| bytes > 0);
        let problem = missing(&TEXTS, &text)
            .or_else(|| missing(&NUMBERS, &number))
            .or_else(|| missing(&AMOUNTS, &amount));
        if let Some(problem) = problem {
            return Err(problem);
        }
        let number = |field: &str| vmi.pointer(field).and_then(Value::as_u64).unwrap_or(1);
        let per_socket = number("/spec/domain/cpu/cores") * number("/spec/domain/cpu/threads");
        let boot = vmi.pointer("/status/memory/guestAtBoot").and_then(bytes).unwrap_or(0);
        Ok(Self { per_socket: u32::try_from(per_socket).unwrap_or(u32::MAX), boot, vmi })
    }

    /// Its uid, which the domain must carry.
    pub fn uid(&self) -> &str {
        self.vmi.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
    }

    /// vCPUs at a size.
    pub fn vcpus(&self, size: Size) -> u32 {
        size.sockets.max(1).saturating_mul(self.per_socket)
    }

    /// Memory that the guest was started with, bytes.
    pub fn boot_memory(&self) -> u64 {
        self.boot
    }

    /// The JSON that a launcher is sent, with another size in its spec.
    pub(crate) fn at(&self, size: Size) -> Vec<u8> {
        let mut vmi = self.vmi.clone();
        for (pointer, value) in [
            ("/spec/domain/cpu/sockets", json!(size.sockets)),
            ("/spec/domain/memory/guest", json!(size.guest.to_string())),
        ] {
            // Both are there: `new` has seen them.
            if let Some(field) = vmi.pointer_mut(pointer) {
                *field = value;
            }
        }
        vmi.to_string().into_bytes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn vmi() -> Value {
        json!({
            "metadata": {"name": "v", "namespace": "n", "uid": "u-1"},
            "spec": {"domain": {"cpu": {"sockets": 2, "cores": 1, "threads": 2, "maxSockets": 4},
                "memory": {"guest": "1Gi", "maxGuest": "4Gi"}}},
            "status": {"nodeName": "node01", "activePods": {"aaaa-1": "node01"},
                "memory": {"guestAtBoot": "1Gi", "guestCurrent": "1Gi"}},
        })
    }

    /// Each of these has killed a launcher, or cost a guest a vCPU.
    #[test]
    fn a_vmi_that_lacks_anything_cannot_be_sent() {
        assert!(CompleteVmi::new(vmi()).is_ok());
        for field in TEXTS.iter().chain(&NUMBERS).chain(&AMOUNTS) {
            let mut broken = vmi();
            let (parent, key) = field.rsplit_once('/').unwrap();
            broken.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
            assert_eq!(CompleteVmi::new(broken.clone()).unwrap_err(), Incomplete { field });
            broken.pointer_mut(parent).unwrap()[key] = Value::Null;
            assert_eq!(CompleteVmi::new(broken.clone()).unwrap_err(), Incomplete { field });
            broken.pointer_mut(parent).unwrap()[key] = json!(0);
            assert_eq!(CompleteVmi::new(broken).unwrap_err(), Incomplete { field });
        }
        assert!(CompleteVmi::new(json!({})).is_err());
    }

    #[test]
    fn nothing_but_the_size_differs_from_what_the_api_server_has() {
        let complete = CompleteVmi::new(vmi()).unwrap();
        let sent: Value = serde_json::from_slice(&complete.at(Size { sockets: 3, guest: 2 << 30 })).unwrap();
        let mut expected = vmi();
        expected["spec"]["domain"]["cpu"]["sockets"] = json!(3);
        expected["spec"]["domain"]["memory"]["guest"] = json!("2147483648");
        assert_eq!(sent, expected);
        assert_eq!(complete.vcpus(Size { sockets: 3, guest: 0 }), 6);
    }
}
