//! Launchers' sockets below kubelet's directory.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// The name of the socket of a launcher that is ready.
const SOCKET: &str = "launcher-sock";

/// The directory with a launcher's sockets: the `emptyDir` volume `sockets` of its pod. Nothing
/// when the uid is none, which could lead out of the directory.
pub fn sockets(pods: &Path, pod_uid: &str) -> Option<PathBuf> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!pod_uid.is_empty() && pod_uid.len() <= 64 && pod_uid.chars().all(fits))
        .then(|| pods.join(pod_uid).join("volumes/kubernetes.io~empty-dir/sockets"))
}

/// Connects to the launcher of a pod. The path may be longer than the 107 bytes of `sun_path` (it
/// is 112 below `/var/lib/kubelet`): the connection goes through a descriptor of the directory.
pub async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let directory = std::fs::File::open(directory)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_stays_in_its_directory() {
        let pods = Path::new("/pods");
        let expected = "/pods/0a-1/volumes/kubernetes.io~empty-dir/sockets";
        assert_eq!(sockets(pods, "0a-1").unwrap(), Path::new(expected));
        for bad in ["", "..", "a/b", "a\0", &"a".repeat(65)] {
            assert_eq!(sockets(pods, bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_path_longer_than_sun_path_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(100)).join("e".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
        let handle = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
        let listener = tokio::net::UnixListener::bind(short).unwrap();
        assert!(UnixStream::connect(deep.join(SOCKET)).await.is_err(), "the plain path is too long");
        let (connected, accepted) = tokio::join!(connect(&deep), listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }
}
