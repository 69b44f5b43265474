//! What the sidecar answers. Calls change files only when a domain is defined: a launcher that
//! looks for its sidecars must get its answer at once, and dials every file that it finds.

use std::sync::atomic::{AtomicBool, Ordering};

use hook_api::callbacks::{
    OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams, PreCloudInitIsoResult, ShutdownParams,
    ShutdownResult,
};
use hook_api::info::{HookPoint, InfoResult};
use hook_api::plugins::{MutateDomainRequest, MutateDomainResponse};
use hook_api::{
    GUEST_DEFINITION_PATH, INFO_PATH, MUTATE_DOMAIN_PATH, ON_DEFINE_DOMAIN, PRE_CLOUD_INIT_ISO, SHUTDOWN,
    V1ALPHA2, V1ALPHA3, callback_of,
};
use prost::Message;
use tokio::sync::Notify;

use crate::arguments::{Arguments, Rom};
use crate::domain::{Domain, DomainError};
use crate::edit::{self, Edit, EditError, RomBar};
use crate::files::{self, Layout};
use crate::grpc::frame;
use crate::grpc::server::Service;
use crate::grpc::{Code, Status};
use crate::rom;

/// The name of a ROM's file, and what is in it.
type RomFile = (String, Vec<u8>);

/// The sidecar of one VM.
#[derive(Debug)]
pub struct Sidecar {
    arguments: Arguments,
    layout: Layout,
    shut_down: AtomicBool,
    /// Told once, after the answer to `Shutdown` was sent.
    pub ended: Notify,
}

impl Sidecar {
    /// A sidecar for these arguments.
    pub fn new(arguments: Arguments, layout: Layout) -> Self {
        Self { arguments, layout, shut_down: AtomicBool::new(false), ended: Notify::new() }
    }

    /// The domain with its ROMs, after the ROMs were put in their place. All that can be refused is
    /// refused before the first file is written.
    pub fn define(&self, xml: &[u8]) -> Result<Vec<u8>, Status> {
        let domain = Domain::parse(xml).map_err(|error| {
            let code = match error {
                DomainError::TooLarge => Code::ResourceExhausted,
                _ => Code::InvalidArgument,
            };
            Status::new(code, format!("virt-steward-hook: read the domain: {error}"))
        })?;
        let (mut edits, files) = self.roms(&domain)?;
        let Arguments { hide_kvm, igd, qemu_args, .. } = &self.arguments;
        edits.extend(hide_kvm.then_some(Edit::HideKvm));
        edits.extend(igd.clone().map(Edit::Igd));
        if !qemu_args.is_empty() {
            edits.push(Edit::QemuArguments(qemu_args.clone()));
        }
        let edited = edit::apply(&domain, &edits).map_err(|error| {
            let code = match error {
                EditError::NoDevice(_) => Code::NotFound,
                EditError::Overlap | EditError::NoAlias(_) => Code::InvalidArgument,
                EditError::Broken(_) => Code::Internal,
            };
            Status::new(code, format!("virt-steward-hook: edit the domain: {error}"))
        })?;
        for (name, content) in files {
            self.layout.write_rom(&name, &content).map_err(|error| {
                let place = self.layout.directory.display();
                Status::new(
                    Code::Internal,
                    format!("virt-steward-hook: write the ROM of `{name}` below {place}: {error}"),
                )
            })?;
        }
        Ok(edited.into_bytes())
    }

    /// The edits that give devices their ROMs, and the files that go with them. A ROM that cannot be
    /// for its device is refused.
    fn roms(&self, domain: &Domain<'_>) -> Result<(Vec<Edit>, Vec<RomFile>), Status> {
        let mut edits = Vec::with_capacity(self.arguments.roms.len());
        let mut files: Vec<RomFile> = Vec::with_capacity(self.arguments.roms.len());
        for Rom { device, path } in &self.arguments.roms {
            let fail = |code, what: String| {
                Status::new(code, format!("virt-steward-hook: give `{device}` its ROM: {what}"))
            };
            let found = domain.find(device).map_err(|error| {
                fail(Code::NotFound, format!("{error}; correct the annotation vbios-injection of the VM"))
            })?;
            let content = files::read_limited(path).map_err(|error| {
                fail(Code::FailedPrecondition, format!("read {}: {error}", path.display()))
            })?;
            let known = found.source().and_then(files::identity);
            rom::check(&content)
                .and_then(|images| {
                    let Some((vendor, number)) = known else { return Ok(()) };
                    rom::check_vendor(&images, vendor)?;
                    if !rom::names_device(&content, &images, vendor, number) {
                        eprintln!(
                            "virt-steward-hook: the ROM of `{device}` does not name device {vendor:04x}:{number:04x}; it is given all the same"
                        );
                    }
                    Ok(())
                })
                .map_err(|error| {
                    fail(Code::FailedPrecondition, format!("{}: {error}; replace it", path.display()))
                })?;
            // an address has `:` and `.`, which make a file name that needs no care either
            let name = device.to_string();
            let file = self.layout.rom_for_qemu(&name);
            edits.push(Edit::Rom(RomBar { device: device.clone(), file }));
            files.push((name, content));
        }
        Ok((edits, files))
    }
}

/// What a launcher may call us for. `PreCloudInitIso` is answered but not offered: launchers ask
/// only the first sidecar that offers it (`pkg/hooks/manager.go`, v1.9), which must be one that
/// has something to say.
fn info() -> InfoResult {
    let point = |name: &str| HookPoint { name: name.to_owned(), priority: 0 };
    InfoResult {
        name: "virt-steward".to_owned(),
        hook_points: vec![point(ON_DEFINE_DOMAIN), point(SHUTDOWN)],
        versions: vec![V1ALPHA3.to_owned(), V1ALPHA2.to_owned()],
    }
}

impl Service for Sidecar {
    fn call(&self, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        match path {
            INFO_PATH => return frame::encode(&info()),
            MUTATE_DOMAIN_PATH | GUEST_DEFINITION_PATH => {
                let asked: MutateDomainRequest = read(message)?;
                if asked.domain_type != "libvirt" {
                    let kind: String = asked.domain_type.chars().take(64).collect();
                    let text =
                        format!("virt-steward-hook: the domain is of type `{kind}`, only libvirt is known");
                    return Err(Status::new(Code::InvalidArgument, text));
                }
                return frame::encode(&MutateDomainResponse { domain: self.define(&asked.domain)? });
            }
            _ => {}
        }
        match callback_of(path) {
            Some((V1ALPHA2 | V1ALPHA3, ON_DEFINE_DOMAIN)) => {
                let asked: OnDefineDomainParams = read(message)?;
                frame::encode(&OnDefineDomainResult { domain_xml: self.define(&asked.domain_xml)? })
            }
            Some((V1ALPHA2 | V1ALPHA3, PRE_CLOUD_INIT_ISO)) => {
                let asked: PreCloudInitIsoParams = read(message)?;
                frame::encode(&PreCloudInitIsoResult {
                    cloud_init_no_cloud_source: asked.cloud_init_no_cloud_source,
                    cloud_init_data: asked.cloud_init_data,
                })
            }
            Some((V1ALPHA3, SHUTDOWN)) => {
                let _: ShutdownParams = read(message)?;
                self.shut_down.store(true, Ordering::Release);
                frame::encode(&ShutdownResult {})
            }
            _ => {
                let path: String = path.chars().take(128).collect();
                Err(Status::new(Code::Unimplemented, format!("virt-steward-hook: there is no method {path}")))
            }
        }
    }

    fn answered(&self, path: &str) {
        if callback_of(path) == Some((V1ALPHA3, SHUTDOWN)) && self.shut_down.load(Ordering::Acquire) {
            self.ended.notify_one();
        }
    }
}

fn read<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("virt-steward-hook: the request cannot be read: {error}"))
    })
}
