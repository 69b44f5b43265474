//! A sidecar as a process, and as much of virt-launcher as calls one.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "a test may fail this way")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use hook::grpc::frame;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// What anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A sound BIOS ROM of 512 bytes for AMD (`1002:1638`).
pub fn amd_rom(mark: u8) -> Vec<u8> {
    rom_for(0x1002, 0x1638, mark)
}

/// The same for any vendor and device.
pub fn rom_for(vendor: u16, device: u16, mark: u8) -> Vec<u8> {
    let mut rom = vec![0_u8; 512];
    rom[..3].copy_from_slice(&[0x55, 0xaa, 1]);
    rom[0x18] = 0x1c;
    rom[0x1c..0x20].copy_from_slice(b"PCIR");
    rom[0x20..0x22].copy_from_slice(&vendor.to_le_bytes());
    rom[0x22..0x24].copy_from_slice(&device.to_le_bytes());
    rom[0x2c] = 1;
    rom[0x31] = 0x80;
    rom[0x100] = mark;
    rom[0x40] = rom.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    rom
}

pub struct Sidecar {
    pub directory: tempfile::TempDir,
    pub child: Child,
    _given: tempfile::TempDir,
}

impl Sidecar {
    /// Starts the program with a ROM for each device, as the container `hook-sidecar-0`.
    pub async fn start(devices: &[&str], rom: &[u8]) -> Self {
        Self::start_with("vbios", devices, rom, &[]).await
    }

    /// The same with another job and more arguments.
    pub async fn start_with(job: &str, devices: &[&str], rom: &[u8], more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let given = tempfile::tempdir().unwrap();
        let rom_path = given.path().join("vbios.rom");
        std::fs::write(&rom_path, rom).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt-steward-hook"));
        command.arg(job);
        for device in devices {
            command.arg("--rom").arg(format!("{device}={}", rom_path.display()));
        }
        let child = command
            .args(more)
            .env("CONTAINER_NAME", "hook-sidecar-0")
            .env("HOOK_DIRECTORY", directory.path())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let sidecar = Self { directory, child, _given: given };
        sidecar.connect().await;
        sidecar
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("virt-steward-hook-sidecar-0.sock")
    }

    /// A connection, once there is a socket.
    async fn connect(&self) -> UnixStream {
        let connected = async {
            loop {
                if let Ok(stream) = UnixStream::connect(self.socket()).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.unwrap()
    }

    pub async fn call(&self, path: &str, message: &impl prost::Message) -> Result<Vec<u8>, (u16, String)> {
        call(self.connect().await, path, frame::encode(message).unwrap()).await
    }
}

/// One call on a connection of its own, as virt-launcher makes it.
pub async fn call(stream: UnixStream, path: &str, frame: Vec<u8>) -> Result<Vec<u8>, (u16, String)> {
    let exchange = async {
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "60S")
            .body(())
            .unwrap();
        let mut client = client.ready().await.unwrap();
        let (response, mut send) = client.send_request(request, false).unwrap();
        send.send_data(Bytes::from(frame), true).unwrap();
        let response = response.await.unwrap();
        let headers = response.headers().clone();
        let mut body = response.into_body();
        let mut answer = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            answer.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.unwrap().unwrap_or(headers);
        drop(client);
        connection.abort();
        let text = |name: &str| trailers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        match text("grpc-status").parse().unwrap() {
            0 => Ok(frame::decode(&answer).unwrap().to_vec()),
            code => Err((code, text("grpc-message"))),
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

/// Recordings of a real virt-launcher. They are not part of the repository: `GOLDEN_HOOKS` names
/// their directory (`../shared/golden/launcher/hooks` beside the workspace otherwise).
pub fn recordings() -> Option<PathBuf> {
    let named = std::env::var_os("GOLDEN_HOOKS").map(PathBuf::from);
    let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/golden/launcher/hooks");
    named.or_else(|| Some(Path::new(usual).into())).filter(|path| path.is_dir())
}
