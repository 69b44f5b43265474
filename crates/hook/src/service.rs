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
    INFO_PATH, MUTATE_DOMAIN_PATH, ON_DEFINE_DOMAIN, PRE_CLOUD_INIT_ISO, SHUTDOWN, V1ALPHA2, V1ALPHA3,
    callback_of,
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

/// The sidecar of one VM.
#[derive(Debug)]
pub struct Sidecar {
    roms: Vec<Rom>,
    layout: Layout,
    shut_down: AtomicBool,
    /// Told once, after the answer to `Shutdown` was sent.
    pub ended: Notify,
}

impl Sidecar {
    /// A sidecar for these arguments.
    pub fn new(arguments: Arguments, layout: Layout) -> Self {
        Self { roms: arguments.roms, layout, shut_down: AtomicBool::new(false), ended: Notify::new() }
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
        let mut edits = Vec::with_capacity(self.roms.len());
        let mut files = Vec::with_capacity(self.roms.len());
        for given in &self.roms {
            let fail = |code, what: String| {
                Status::new(code, format!("virt-steward-hook: give `{}` its ROM: {what}", given.device))
            };
            let found = domain.find(&given.device).map_err(|error| {
                fail(Code::NotFound, format!("{error}; correct the annotation vbios-injection of the VM"))
            })?;
            let content = files::read_limited(&given.path).map_err(|error| {
                fail(Code::FailedPrecondition, format!("read {}: {error}", given.path.display()))
            })?;
            rom::check(&content)
                .and_then(|images| match found.source().and_then(files::vendor) {
                    Some(vendor) => rom::check_vendor(&images, vendor),
                    None => Ok(()),
                })
                .map_err(|error| {
                    fail(Code::FailedPrecondition, format!("{}: {error}; replace it", given.path.display()))
                })?;
            // an address has `:` and `.`, which make a file name that needs no care either
            let name = given.device.to_string();
            let file = self.layout.rom_for_qemu(&name);
            edits.push(Edit::Rom(RomBar { device: given.device.clone(), file }));
            files.push((name, content));
        }
        let edited = edit::apply(&domain, &edits).map_err(|error| {
            let code = match error {
                EditError::NoDevice(_) => Code::NotFound,
                EditError::Overlap => Code::InvalidArgument,
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
            MUTATE_DOMAIN_PATH => {
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
