//! Where things are, and the two things that the sidecar does to files: read a ROM, and put it
//! where QEMU can read it.
//!
//! ```text
//!                sidecar sees                          QEMU (container compute) sees
//!  v1.6 and up   /var/run/kubevirt-hooks               /var/run/kubevirt-hooks/<container>
//!  up to v1.5    /var/run/kubevirt-hooks               /var/run/kubevirt-hooks
//!  Plugin        /var/run/kubevirt-plugin/<plugin>     the same
//! ```
//!
//! Both run as user 107 in the same pod, on the same emptyDir. ROMs go to a subdirectory:
//! virt-launcher takes every file beside the socket for a socket (`pkg/hooks/manager.go`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::address::Address;
use crate::rom::MAX_ROM;

/// The directory of hook sidecars' sockets.
const HOOKS: &str = "/var/run/kubevirt-hooks";
/// The directory of plugins' sockets.
const PLUGINS: &str = "/var/run/kubevirt-plugin";
/// ROMs are here, below the directory of the socket.
const ROMS: &str = "vbios";
/// For QEMU to read, for nobody to write.
const ROM_MODE: u32 = 0o444;

/// Where the sidecar works.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    /// The directory of the socket, as we see it.
    pub directory: PathBuf,
    /// The same directory, as QEMU sees it.
    pub seen_by_qemu: String,
    /// The name of the socket. Launchers tell sidecars apart by it, so no two in a pod may have
    /// the same; it does not change when the container is restarted, so a launcher finds it again.
    pub socket: String,
}

impl Layout {
    /// The layout for a container's name (`CONTAINER_NAME`, which KubeVirt sets since v1.6), or
    /// for the flat directory that all sidecars share before. `directory` overrides where the
    /// sidecar sees it, for launchers that are not in a pod.
    pub fn hooks(container: Option<&str>, directory: Option<PathBuf>, arguments: &[String]) -> Self {
        let is_name = |name: &&str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let directory = directory.unwrap_or_else(|| HOOKS.into());
        match container.filter(is_name) {
            Some(name) => Self {
                directory,
                seen_by_qemu: format!("{HOOKS}/{name}"),
                socket: format!("virt-steward-{name}.sock"),
            },
            None => Self {
                directory,
                seen_by_qemu: HOOKS.to_owned(),
                socket: format!("virt-steward-{:016x}.sock", hash(arguments)),
            },
        }
    }

    /// The layout for a Plugin (VEP 190, KubeVirt v1.9).
    pub fn plugin(name: &str, directory: Option<PathBuf>) -> Self {
        let seen_by_qemu = format!("{PLUGINS}/{name}");
        Self {
            directory: directory.unwrap_or_else(|| (&seen_by_qemu).into()),
            seen_by_qemu,
            socket: "virt-steward.sock".to_owned(),
        }
    }

    /// The path of the socket.
    pub fn socket_path(&self) -> PathBuf {
        self.directory.join(&self.socket)
    }

    /// Where QEMU finds the ROM of a device.
    pub fn rom_for_qemu(&self, name: &str) -> String {
        format!("{}/{ROMS}/{name}.rom", self.seen_by_qemu)
    }

    /// Writes the ROM of a device, unless it is there. The file appears whole or not at all: a
    /// guest that starts again may be reading it.
    pub fn write_rom(&self, name: &str, rom: &[u8]) -> io::Result<()> {
        let directory = self.directory.join(ROMS);
        let path = directory.join(format!("{name}.rom"));
        if read_limited(&path).is_ok_and(|there| there == rom) {
            return Ok(());
        }
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let draft = directory.join(format!(".{name}.rom.{}", std::process::id()));
        let written = write_new(&draft, rom).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // it may not have come to be
            drop(fs::remove_file(&draft));
        }
        written
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    // whatever the umask is
    file.set_permissions(fs::Permissions::from_mode(ROM_MODE))
}

/// A file's content, up to one byte more than a ROM may have.
pub fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_ROM as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// Vendor and number of a device on this host, when sysfs says them.
pub fn identity(address: Address) -> Option<(u16, u16)> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/sys/bus/pci/devices/{address}/{name}")).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    Some((read("vendor")?, read("device")?))
}

/// FNV-1a: the same for the same arguments.
fn hash(arguments: &[String]) -> u64 {
    let bytes = arguments.iter().flat_map(|argument| argument.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_of_kubevirt_are_known() {
        let new = Layout::hooks(Some("hook-sidecar-1"), None, &[]);
        assert_eq!(new.socket_path(), Path::new("/var/run/kubevirt-hooks/virt-steward-hook-sidecar-1.sock"));
        assert_eq!(new.rom_for_qemu("ua-a"), "/var/run/kubevirt-hooks/hook-sidecar-1/vbios/ua-a.rom");
        let flat = |argument: &str| Layout::hooks(None, None, &[argument.to_owned()]);
        assert_eq!(flat("a").rom_for_qemu("ua-a"), "/var/run/kubevirt-hooks/vbios/ua-a.rom");
        assert_eq!(flat("a"), flat("a"), "a restarted container has the same socket");
        assert_ne!(flat("a").socket, flat("b").socket, "two sidecars do not share one");
        let plugin = Layout::plugin("vbios", None);
        assert_eq!(plugin.rom_for_qemu("ua-a"), "/var/run/kubevirt-plugin/vbios/vbios/ua-a.rom");
        assert_eq!(Layout::hooks(Some("../x"), None, &[]).seen_by_qemu, HOOKS, "not a container's name");
    }

    #[test]
    fn a_rom_is_written_once_read_only_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::hooks(Some("hook-sidecar-0"), Some(directory.path().into()), &[]);
        let path = directory.path().join("vbios/ua-a.rom");
        let modified = || fs::metadata(&path).unwrap().modified().unwrap();
        layout.write_rom("ua-a", b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        let first = modified();
        layout.write_rom("ua-a", b"one").unwrap();
        assert_eq!(modified(), first, "the same ROM is not written again");
        layout.write_rom("ua-a", b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no drafts are left");
    }
}
