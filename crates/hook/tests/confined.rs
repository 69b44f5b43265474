//! As a pod runs it: user 107, no capability, no new privileges, and none of the system calls that the container
//! runtimes' default seccomp profile refuses. Needs root, `setpriv` and `python3`; says aloud when it is skipped.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;

use common::{PATIENCE, amd_rom, call};
use hook::grpc::frame;
use hook_api::callbacks::{OnDefineDomainParams, OnDefineDomainResult, ShutdownParams};
use hook_api::{ON_DEFINE_DOMAIN, SHUTDOWN, V1ALPHA3, callback_path};
use prost::Message as _;
use tokio::net::UnixStream;

/// Kills the process at a system call that `RuntimeDefault` refuses without capabilities (containerd and CRI-O, 2026:
/// `contrib/seccomp/seccomp_default.go`), then becomes the program. Numbers are those of `x86_64`.
const FILTER: &str = r#"
import ctypes, os, struct, sys
denied = [101, 134, 135, 136, 139, 153, 154, 155, 156, 159, 161, 163, 164, 165, 166, 167, 168, 169, 172, 173, 174, 175,
          176, 177, 178, 179, 180, 212, 227, 246, 248, 249, 250, 256, 272, 279, 298, 300, 303, 304, 308, 310, 311, 312,
          313, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 433, 442]
rules = [(0x20, 0, 0, 0)]
for number in denied:
    rules += [(0x15, 0, 1, number), (0x06, 0, 0, 0x80000000)]
rules += [(0x06, 0, 0, 0x7fff0000)]
code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
buffer = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
program = Program(len(rules), ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execvp(sys.argv[1], sys.argv[1:])
"#;

fn has(program: &str) -> bool {
    let mut found = std::process::Command::new(program);
    found.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    found.status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn it_runs_as_user_107_without_any_right_or_unusual_system_call() {
    let home = tempfile::tempdir().unwrap();
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root || !cfg!(target_arch = "x86_64") || !has("setpriv") || !has("python3") {
        eprintln!("skipped: it takes root on x86_64, setpriv and python3");
        return;
    }
    // everything that the user has to reach, where it can
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = home.path().join("virt-steward-hook");
    std::fs::copy(env!("CARGO_BIN_EXE_virt-steward-hook"), &program).unwrap();
    let rom = home.path().join("vbios.rom");
    std::fs::write(&rom, amd_rom(1)).unwrap();
    let sockets = home.path().join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    std::os::unix::fs::chown(&sockets, Some(107), Some(107)).unwrap();
    let mut child = tokio::process::Command::new("python3")
        .args(["-c", FILTER, "setpriv"])
        .args([
            "--reuid=107",
            "--regid=107",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
        ])
        .arg(&program)
        .args(["edit", "--hide-kvm", "--rom", &format!("ua-a={}", rom.display())])
        .env("CONTAINER_NAME", "hook-sidecar-0")
        .env("HOOK_DIRECTORY", &sockets)
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let socket = sockets.join("virt-steward-hook-sidecar-0.sock");
    let connect = async || {
        loop {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                return stream;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let domain = "<domain><devices><hostdev><alias name='ua-a'/></hostdev></devices></domain>";
    for _ in 0..2 {
        let asked = OnDefineDomainParams { domain_xml: domain.into(), vmi: b"{}".to_vec() };
        let stream = tokio::time::timeout(PATIENCE, connect()).await.unwrap();
        let path = callback_path(V1ALPHA3, ON_DEFINE_DOMAIN);
        let answer = call(stream, &path, frame::encode(&asked).unwrap()).await.unwrap();
        let xml = String::from_utf8(OnDefineDomainResult::decode(&*answer).unwrap().domain_xml).unwrap();
        assert!(xml.contains("<rom bar='on'") && xml.contains("<hidden state='on'/>"), "{xml}");
    }
    let written = std::fs::metadata(sockets.join("vbios/ua-a.rom")).unwrap();
    assert_eq!((written.uid(), written.permissions().mode() & 0o777), (107, 0o444));
    let shutdown = frame::encode(&ShutdownParams {}).unwrap();
    call(connect().await, &callback_path(V1ALPHA3, SHUTDOWN), shutdown).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}
