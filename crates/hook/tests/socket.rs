//! The program over its real socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail this way")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::{PATIENCE, Sidecar, amd_rom, recordings};
use hook_api::callbacks::{
    OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams, PreCloudInitIsoResult, ShutdownParams,
};
use hook_api::info::{InfoParams, InfoResult};
use hook_api::plugins::{MutateDomainRequest, MutateDomainResponse};
use hook_api::{
    INFO_PATH, MUTATE_DOMAIN_PATH, ON_DEFINE_DOMAIN, PRE_CLOUD_INIT_ISO, SHUTDOWN, V1ALPHA2, V1ALPHA3,
    callback_path,
};
use prost::Message as _;

const DOMAIN: &str = "<domain type='kvm'>\n\t<devices>\n\t\t<hostdev type=\"pci\" managed=\"no\">\n\t\t\t<alias name=\"ua-hostdevice-igpu\"></alias>\n\t\t</hostdev>\n\t</devices>\n</domain>";

fn on_define_domain() -> String {
    callback_path(V1ALPHA3, ON_DEFINE_DOMAIN)
}

fn define(xml: &[u8]) -> OnDefineDomainParams {
    OnDefineDomainParams { domain_xml: xml.to_vec(), vmi: b"{}".to_vec() }
}

fn edited(answer: &[u8]) -> String {
    String::from_utf8(OnDefineDomainResult::decode(answer).unwrap().domain_xml).unwrap()
}

#[tokio::test]
async fn a_sidecar_says_who_it_is_before_it_touches_a_file() {
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let info = InfoResult::decode(&*sidecar.call(INFO_PATH, &InfoParams {}).await.unwrap()).unwrap();
    assert_eq!(info.versions, ["v1alpha3", "v1alpha2"]);
    let points: Vec<_> = info.hook_points.iter().map(|point| point.name.as_str()).collect();
    assert_eq!(points, ["OnDefineDomain", "Shutdown"]);
    // a launcher dials every file that it finds, so there is none but the socket
    let files: Vec<_> =
        std::fs::read_dir(sidecar.directory.path()).unwrap().map(|one| one.unwrap().path()).collect();
    assert_eq!(files, [sidecar.socket()]);
    assert_eq!(std::fs::metadata(sidecar.socket()).unwrap().permissions().mode() & 0o777, 0o666);
}

#[tokio::test]
async fn a_domain_gets_its_rom_every_time_and_the_file_once() {
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let expected = DOMAIN.replace(
        "</hostdev>",
        "<rom bar='on' file='/var/run/kubevirt-hooks/hook-sidecar-0/vbios/ua-hostdevice-igpu.rom'/></hostdev>",
    );
    for path in [V1ALPHA3, V1ALPHA2].map(|version| callback_path(version, ON_DEFINE_DOMAIN)) {
        assert_eq!(edited(&sidecar.call(&path, &define(DOMAIN.as_bytes())).await.unwrap()), expected);
        // with the ROM in it nothing changes
        assert_eq!(edited(&sidecar.call(&path, &define(expected.as_bytes())).await.unwrap()), expected);
    }
    let rom = sidecar.directory.path().join("vbios/ua-hostdevice-igpu.rom");
    assert_eq!(std::fs::read(&rom).unwrap(), amd_rom(1));
    assert_eq!(std::fs::metadata(&rom).unwrap().permissions().mode() & 0o777, 0o444);
    let plugin = MutateDomainRequest {
        domain_type: "libvirt".into(),
        domain: DOMAIN.as_bytes().to_vec(),
        vmi: b"{}".to_vec(),
        sidecar_context: None,
    };
    let answer = sidecar.call(MUTATE_DOMAIN_PATH, &plugin).await.unwrap();
    assert_eq!(MutateDomainResponse::decode(&*answer).unwrap().domain, expected.as_bytes());
    let (code, text) = sidecar
        .call(MUTATE_DOMAIN_PATH, &MutateDomainRequest { domain_type: "xen".into(), ..plugin })
        .await
        .unwrap_err();
    assert_eq!((code, text.contains("type `xen`")), (3, true), "{text}");
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_nothing_is_written() {
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu", "ua-gpu-a10"], &amd_rom(1)).await;
    let refused = |code: u16, text: &str, got: (u16, String)| {
        assert_eq!((code, got.1.contains(text)), (got.0, true), "{got:?}");
    };
    let absent = sidecar.call(&on_define_domain(), &define(DOMAIN.as_bytes())).await.unwrap_err();
    refused(5, "no host device `ua-gpu-a10`; host devices: ua-hostdevice-igpu", absent);
    let broken = sidecar.call(&on_define_domain(), &define(b"<domain>")).await.unwrap_err();
    refused(3, "not XML", broken);
    let unknown =
        sidecar.call("/kubevirt.hooks.v1alpha9.Callbacks/OnDefineDomain", &InfoParams {}).await.unwrap_err();
    refused(12, "no method", unknown);
    assert!(!sidecar.directory.path().join("vbios").exists());
    let garbage = Sidecar::start(&["ua-hostdevice-igpu"], b"VaqAAAAA").await;
    let wrong = garbage.call(&on_define_domain(), &define(DOMAIN.as_bytes())).await.unwrap_err();
    refused(9, "not an option ROM", wrong);
    // and it answers on
    assert!(garbage.call(INFO_PATH, &InfoParams {}).await.is_ok());
}

#[tokio::test]
async fn every_edit_goes_over_the_socket_and_a_second_call_changes_nothing() {
    let more = ["--hide-kvm", "--igd", "ua-hostdevice-igpu", "--qemu-arg", "-no-hpet"];
    let sidecar = Sidecar::start_with("edit", &["ua-hostdevice-igpu"], &amd_rom(1), &more).await;
    let first = edited(&sidecar.call(&on_define_domain(), &define(DOMAIN.as_bytes())).await.unwrap());
    for part in [
        "<features><kvm><hidden state='on'/></kvm></features>",
        "/vbios/ua-hostdevice-igpu.rom'/>",
        "<qemu:property name='x-igd-opregion' type='bool' value='true'/>",
        "slot='0x02' function='0x0'/></hostdev>",
        "<qemu:arg value='-no-hpet'/>",
    ] {
        assert!(first.contains(part), "{part} in {first}");
    }
    let second = edited(&sidecar.call(&on_define_domain(), &define(first.as_bytes())).await.unwrap());
    assert_eq!(second, first);
}

/// Kubelet ends the containers of Plugins so.
#[tokio::test]
async fn a_sidecar_ends_at_sigterm_and_takes_its_socket_along() {
    let mut sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let id = sidecar.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let status = tokio::time::timeout(PATIENCE, sidecar.child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    assert!(!sidecar.socket().exists());
}

/// Releases after v1.9 call the same thing by another name.
#[tokio::test]
async fn the_hook_of_a_plugin_is_known_by_both_names() {
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let asked = MutateDomainRequest {
        domain_type: "libvirt".into(),
        domain: DOMAIN.as_bytes().to_vec(),
        vmi: b"{}".to_vec(),
        sidecar_context: None,
    };
    let old = sidecar.call(MUTATE_DOMAIN_PATH, &asked).await.unwrap();
    assert_eq!(sidecar.call(hook_api::GUEST_DEFINITION_PATH, &asked).await.unwrap(), old);
}

#[tokio::test]
async fn cloud_init_passes_through() {
    let sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let asked = PreCloudInitIsoParams {
        cloud_init_no_cloud_source: b"{\"userData\":\"x\"}".to_vec(),
        vmi: b"{}".to_vec(),
        cloud_init_data: b"{\"noCloudMetaData\":{}}".to_vec(),
    };
    for path in [V1ALPHA3, V1ALPHA2].map(|version| callback_path(version, PRE_CLOUD_INIT_ISO)) {
        let answer = PreCloudInitIsoResult::decode(&*sidecar.call(&path, &asked).await.unwrap()).unwrap();
        assert_eq!(answer.cloud_init_no_cloud_source, asked.cloud_init_no_cloud_source);
        assert_eq!(answer.cloud_init_data, asked.cloud_init_data);
    }
}

#[tokio::test]
async fn a_sidecar_ends_after_it_answered_shutdown() {
    let mut sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    assert_eq!(sidecar.call(&callback_path(V1ALPHA3, SHUTDOWN), &ShutdownParams {}).await, Ok(Vec::new()));
    let status = tokio::time::timeout(PATIENCE, sidecar.child.wait()).await.unwrap().unwrap();
    assert!(status.success());
    assert!(!sidecar.socket().exists());
}

#[tokio::test]
async fn a_restarted_sidecar_takes_its_socket_over_and_a_second_one_does_not() {
    let mut sidecar = Sidecar::start(&["ua-hostdevice-igpu"], &amd_rom(1)).await;
    let again = |directory: &std::path::Path| {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward-hook"))
            .args(["vbios", "--rom", "ua-hostdevice-igpu=/nowhere"])
            .env("CONTAINER_NAME", "hook-sidecar-0")
            .env("HOOK_DIRECTORY", directory)
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let second = again(sidecar.directory.path()).wait_with_output();
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another sidecar"));
    sidecar.child.kill().await.unwrap();
    assert!(sidecar.socket().exists(), "a killed process leaves its socket");
    let _restarted = again(sidecar.directory.path());
    assert!(sidecar.call(INFO_PATH, &InfoParams {}).await.is_ok());
}

#[tokio::test]
async fn wrong_arguments_end_the_program_before_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["vbios"][..], &["vbios", "--hook-type", "onDefineDomain"], &[]] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_virt-steward-hook"))
            .args(arguments)
            .env("HOOK_DIRECTORY", directory.path())
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// What a real virt-launcher sent and took: for the case with ROMs we answer what was taken there,
/// byte for byte; for VMs without host devices we say that there is none.
#[tokio::test]
async fn recorded_exchanges_replay() {
    let Some(recordings) = recordings() else {
        eprintln!("skipped: no recordings (set GOLDEN_HOOKS)");
        return;
    };
    let mut replayed = 0;
    for case in std::fs::read_dir(&recordings).unwrap().map(|one| one.unwrap().path()) {
        for round in 1..=2 {
            let file = |kind: &str| std::fs::read(case.join(format!("ondefine-{round}.{kind}")));
            let Ok(xml) = file("in.xml") else { continue };
            let domain = hook::domain::Domain::parse(&xml).unwrap();
            let aliases: Vec<_> = domain.host_devices().filter_map(|device| device.alias()).collect();
            let asked = OnDefineDomainParams { domain_xml: xml.clone(), vmi: file("vmi.json").unwrap() };
            let nothing = hook::edit::apply(&domain, &[]).unwrap();
            assert_eq!(nothing.as_bytes(), xml, "{} {round}", case.display());
            let devices = if aliases.is_empty() { vec!["ua-hostdevice-igpu"] } else { aliases.clone() };
            let sidecar = Sidecar::start(&devices, &amd_rom(1)).await;
            let answer = sidecar.call(&on_define_domain(), &asked).await;
            if aliases.is_empty() {
                let (code, text) = answer.unwrap_err();
                assert!(code == 5 && text.contains("host devices: none"), "{text}");
            } else {
                // the recording has one ROM for all
                let ours = aliases.iter().fold(edited(&answer.unwrap()), |text, alias| {
                    text.replace(&format!("vbios/{alias}.rom"), "vbios/x.rom")
                });
                assert_eq!(ours.as_bytes(), file("out.xml").unwrap(), "{}", case.display());
            }
            replayed += 1;
        }
    }
    assert!(replayed >= 20, "only {replayed} exchanges were found");
}

/// Domains as KubeVirt's converter writes them, and as libvirt shows the running ones: without an edit they stay as
/// they are, and a ROM is put where the one stood that libvirt's own define took.
#[test]
fn recorded_domains_take_a_rom_as_libvirt_took_it() {
    let Some(recordings) = recordings() else {
        eprintln!("skipped: no recordings (set GOLDEN_HOOKS)");
        return;
    };
    let folder = |name: &str| recordings.parent().unwrap().join(name);
    let mut read = 0;
    for path in ["converter", "xml"].iter().flat_map(|name| std::fs::read_dir(folder(name)).unwrap()) {
        let path = path.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let xml = std::fs::read(&path).unwrap();
        let same = hook::edit::apply(&hook::domain::Domain::parse(&xml).unwrap(), &[]).unwrap();
        assert_eq!(same.as_bytes(), xml, "{}", path.display());
        read += 1;
    }
    assert!(read >= 20, "only {read} domains were found");
    let text = |name: &str| std::fs::read(folder("converter").join(name)).unwrap();
    let (before, taken) = (text("full.converter.xml"), text("full.rom-injected.xml"));
    let file = "/var/run/kubevirt-hooks/hook-sidecar-0/vbios/x.rom".to_owned();
    let device = hook::arguments::Device::Alias("ua-hostdevice-igpu".into());
    let edits = [hook::edit::Edit::Rom(hook::edit::RomBar { device, file })];
    let ours = hook::edit::apply(&hook::domain::Domain::parse(&before).unwrap(), &edits).unwrap();
    assert_eq!(ours.as_bytes(), taken);
}
