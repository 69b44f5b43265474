//! The far end of a redirected USB port: says hello as QEMU does (usbredir protocol 0.7), then
//! takes packets and drops them, for the guest has no driver.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// `usb_redir_hello_packet`: type, length, id, version (64 bytes), one word of capabilities.
fn hello() -> Vec<u8> {
    let mut packet = Vec::new();
    for word in [0_u32, 68, 0] {
        packet.extend_from_slice(&word.to_le_bytes());
    }
    let mut version = [0_u8; 64];
    let name = b"QEMU usb-redir guest 9.2.0";
    version[..name.len()].copy_from_slice(name);
    packet.extend_from_slice(&version);
    packet.extend_from_slice(&0_u32.to_le_bytes());
    packet
}

/// Serves one redirected device until it is pulled out.
///
/// # Errors
/// When the connection breaks off.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    stream.write_all(&hello()).await?;
    stream.flush().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_port_says_hello_first() {
        let (mut device, port) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve(port));
        let mut packet = [0; 80];
        device.read_exact(&mut packet).await.unwrap();
        assert_eq!(u32::from_le_bytes(packet[4..8].try_into().unwrap()), 68);
        assert!(packet[12..].starts_with(b"QEMU usb-redir"));
        drop(device);
        serving.await.unwrap().unwrap();
    }
}
