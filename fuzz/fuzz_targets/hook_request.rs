//! Any request on the sidecar's socket gets an answer or a status. The first byte chooses the method.
#![no_main]

use std::sync::LazyLock;

use hook::arguments::Arguments;
use hook::files::Layout;
use hook::grpc::frame;
use hook::grpc::server::Service;
use hook::service::Sidecar;
use libfuzzer_sys::fuzz_target;

static SIDECAR: LazyLock<Sidecar> = LazyLock::new(|| {
    let list = ["edit", "--hide-kvm", "--igd", "ua-gpu-a", "--qemu-arg", "-no-hpet"];
    let arguments = Arguments::parse(list).expect("arguments");
    Sidecar::new(arguments, Layout::hooks(Some("hook-sidecar-0"), Some("/nowhere".into()), &[]))
});

fuzz_target!(|data: &[u8]| {
    let Some((method, body)) = data.split_first() else { return };
    let paths = [
        "/kubevirt.hooks.info.Info/Info",
        "/kubevirt.hooks.v1alpha3.Callbacks/OnDefineDomain",
        "/kubevirt.hooks.v1alpha2.Callbacks/PreCloudInitIso",
        "/kubevirt.hooks.v1alpha3.Callbacks/Shutdown",
        "/kubevirt.hooks.plugins.v1alpha1.DomainHookService/MutateDomain",
        "/kubevirt.hooks.plugins.v1alpha1.LauncherHookService/GuestDefinition",
        "/",
    ];
    let path = paths[usize::from(*method) % paths.len()];
    match frame::decode(body).and_then(|message| SIDECAR.call(path, message)) {
        Ok(answer) => assert!(frame::decode(&answer).is_ok()),
        Err(status) => assert!(status.header().is_ascii()),
    }
});
