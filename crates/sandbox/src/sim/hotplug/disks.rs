//! The hotplugged disks of a guest, and the device nodes that its launcher has for them.
//!
//! ```text
//!  mounted ──plug──► coming ──the guest has noticed──► in ──unplug──► going ──the guest lets go──► (none)
//!                                                       └── the device dies: I/O error, the guest is paused
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::storage::Device;

/// How far a disk is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// The guest notices it then.
    Coming(Timestamp),
    In,
    /// The guest lets go of it then; `None`: never.
    Going(Option<Timestamp>),
}

/// A disk of a guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disk {
    pub device: Device,
    /// The guest's name of it, such as `sda`.
    pub target: String,
    pub stage: Stage,
}

impl Disk {
    /// libvirt has it in the domain.
    pub fn is_in_domain(&self) -> bool {
        !matches!(self.stage, Stage::Coming(_))
    }
}

/// All hotplugged disks of a guest, and what its launcher has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Disks {
    /// Device nodes and bind mounts in the launcher's directory, by volume: made once, never anew (mount.go:429-484).
    pub mounts: BTreeMap<String, Device>,
    /// By volume.
    pub plugged: BTreeMap<String, Disk>,
    /// The volume whose device died first: the guest stands still because of it.
    pub failed: Option<String>,
}

impl Disks {
    /// A free name for a disk, after those of the guest's other disks.
    pub fn free_target(&self, prefix: &str, taken: &[&str]) -> String {
        let used =
            |name: &str| taken.contains(&name) || self.plugged.values().any(|disk| disk.target == name);
        (b'a'..=b'z')
            .map(|letter| format!("{prefix}{}", char::from(letter)))
            .chain((b'a'..=b'z').flat_map(|first| {
                (b'a'..=b'z')
                    .map(move |second| format!("{prefix}{}{}", char::from(first), char::from(second)))
            }))
            .find(|name| !used(name))
            .unwrap_or_default()
    }

    /// Moves on what is due; when the next thing is.
    pub fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        let mut wait = |at: Timestamp| next = Some(next.map_or(at, |have| have.min(at)));
        self.plugged.retain(|_, disk| match disk.stage {
            Stage::Coming(at) if at <= now => {
                disk.stage = Stage::In;
                true
            }
            Stage::Going(Some(at)) if at <= now => false,
            Stage::Coming(at) | Stage::Going(Some(at)) => {
                wait(at);
                true
            }
            Stage::In | Stage::Going(None) => true,
        });
        next
    }

    /// Devices that the guest has open.
    pub fn open(&self) -> impl Iterator<Item = Device> {
        self.plugged.values().map(|disk| disk.device)
    }

    /// A device has died: the volume of the guest that did I/O on it.
    pub fn lose(&mut self, device: Device) -> Option<String> {
        let (volume, _) = self.plugged.iter().find(|(_, disk)| disk.device == device)?;
        let volume = volume.clone();
        self.failed.get_or_insert_with(|| volume.clone());
        Some(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn disk(device: Device, stage: Stage) -> Disk {
        Disk { device, target: format!("sd{}", char::from(b'a' + u8::try_from(device).unwrap())), stage }
    }

    #[test]
    fn disks_come_and_go_when_they_are_due() {
        let mut disks = Disks::default();
        disks.plugged.insert("a".into(), disk(0, Stage::Coming(at(5))));
        disks.plugged.insert("b".into(), disk(1, Stage::Going(Some(at(7)))));
        disks.plugged.insert("c".into(), disk(2, Stage::Going(None)));
        assert_eq!(disks.advance(at(4)), Some(at(5)));
        assert_eq!(disks.advance(at(5)), Some(at(7)));
        assert_eq!(disks.plugged["a"].stage, Stage::In);
        assert_eq!(disks.advance(at(7)), None);
        assert_eq!(disks.plugged.keys().collect::<Vec<_>>(), ["a", "c"], "one lets go, one never does");
    }

    #[test]
    fn the_first_device_that_dies_stops_the_guest() {
        let mut disks = Disks::default();
        disks.plugged.insert("a".into(), disk(0, Stage::In));
        disks.plugged.insert("b".into(), disk(1, Stage::Going(None)));
        assert_eq!(disks.lose(9), None);
        assert_eq!(disks.lose(1).as_deref(), Some("b"));
        assert_eq!(disks.lose(0).as_deref(), Some("a"));
        assert_eq!(disks.failed.as_deref(), Some("b"));
    }

    #[test]
    fn a_name_is_free_when_nobody_has_it() {
        let mut disks = Disks::default();
        disks.plugged.insert("x".into(), disk(0, Stage::In));
        assert_eq!(disks.free_target("sd", &["sdb"]), "sdc");
        assert_eq!(disks.free_target("vd", &[]), "vda");
    }
}
