//! `virt-steward-hook`: see the crate's documentation and ADR 5 for its arguments.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use hook::arguments::Arguments;
use hook::files::Layout;
use hook::serve::{listen, serve};
use hook::service::Sidecar;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
virt-steward-hook: gives passed-through devices of a KubeVirt VM their ROMs, and makes other edits of
its libvirt domain for which KubeVirt has no field.

KubeVirt starts it inside of a VM's pod; virt-steward writes its arguments (annotations
vm-feature-manager.io/vbios-injection, igd-opregion and qemu-arguments of the VM).

Usage:
  virt-steward-hook vbios --rom <device>=<path> [--rom <device>=<path>]... [--plugin <name>]
  virt-steward-hook edit [--rom <device>=<path>]... [--hide-kvm] [--igd <device>]
                         [--qemu-arg <text>]... [--plugin <name>]

  <device>           the alias of the device in the domain (ua-hostdevice-igpu), or its PCI address
                     on the host (0000:07:00.0)
  <path>             the ROM in this container
  --hide-kvm         the guest does not see that it runs in KVM
  --igd <device>     an Intel GPU gets its OpRegion, and slot 2 of the guest
  --qemu-arg <text>  one more argument for QEMU; repeated, in order
  --plugin <name>    serve as the domain hook of this Plugin (KubeVirt v1.9, gate Plugins)

Environment:
  CONTAINER_NAME     set by KubeVirt since v1.6
  HOOK_DIRECTORY     where the socket goes instead of /var/run/kubevirt-hooks

Exit codes: 0 the VM has shut down, 1 the socket failed, 2 wrong arguments.";

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|one: OsString| one.to_string_lossy().into_owned()).collect();
    match arguments.first().map(String::as_str) {
        Some("--help" | "-h" | "help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("--version" | "version") => {
            println!("virt-steward-hook {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let parsed = match Arguments::parse(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("virt-steward-hook: {error} (--help says more)");
            return ExitCode::from(2);
        }
    };
    let directory = std::env::var_os("HOOK_DIRECTORY").map(Into::into);
    let container = std::env::var("CONTAINER_NAME").ok();
    let layout = match &parsed.plugin {
        Some(name) => Layout::plugin(name, directory),
        None => Layout::hooks(container.as_deref(), directory, &arguments),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(parsed, layout)),
        Err(error) => Err(format!("start: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virt-steward-hook: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments, layout: Layout) -> Result<(), String> {
    let mut terminated =
        signal(SignalKind::terminate()).map_err(|error| format!("wait for SIGTERM: {error}"))?;
    let path = layout.socket_path();
    let listener = listen(&path).await.map_err(|error| error.to_string())?;
    eprintln!("virt-steward-hook: listening on {}", path.display());
    let stop = async move {
        let _ = terminated.recv().await;
    };
    let served = serve(listener, Arc::new(Sidecar::new(arguments, layout)), stop).await;
    // gone already when the pod's directory is
    drop(std::fs::remove_file(&path));
    served.map_err(|error| error.to_string())
}
