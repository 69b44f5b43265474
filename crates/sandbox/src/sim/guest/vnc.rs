//! The guest's screen over RFB 3.8 (RFC 6143): no authentication, raw rectangles of 32 bits a
//! pixel, keys and pointer read and ignored, as QEMU's VNC server behind virt-handler.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::screen::{HEIGHT, WIDTH, pixel};

/// What a client may paste at once.
const CUT_TEXT: u32 = 1 << 20;

/// Serves one viewer until it goes. `paused` tells how the guest is at the moment.
///
/// # Errors
/// When the viewer goes, or says something that RFC 6143 does not know.
pub async fn serve<S>(mut stream: S, name: &str, paused: impl Fn() -> bool) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    handshake(&mut stream, name).await?;
    loop {
        match stream.read_u8().await? {
            // SetPixelFormat: only our own is served.
            0 => skip(&mut stream, 19).await?,
            // SetEncodings
            2 => {
                stream.read_u8().await?;
                let count = stream.read_u16().await?;
                skip(&mut stream, u64::from(count) * 4).await?;
            }
            // FramebufferUpdateRequest
            3 => {
                stream.read_u8().await?;
                let (x, y) = (stream.read_u16().await?, stream.read_u16().await?);
                let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
                stream.write_all(&update((x, y), (width, height), paused())).await?;
                stream.flush().await?;
            }
            // KeyEvent, PointerEvent
            4 => skip(&mut stream, 7).await?,
            5 => skip(&mut stream, 5).await?,
            // ClientCutText
            6 => {
                skip(&mut stream, 3).await?;
                let length = stream.read_u32().await?;
                if length > CUT_TEXT {
                    return Err(io::Error::other("the pasted text is too long"));
                }
                skip(&mut stream, u64::from(length)).await?;
            }
            unknown => return Err(io::Error::other(format!("unknown RFB message {unknown}"))),
        }
    }
}

async fn handshake<S>(stream: &mut S, name: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(b"RFB 003.008\n").await?;
    stream.flush().await?;
    let mut version = [0; 12];
    stream.read_exact(&mut version).await?;
    if !version.starts_with(b"RFB 003.") {
        return Err(io::Error::other("the viewer does not speak RFB 3"));
    }
    // One security type: none.
    stream.write_all(&[1, 1]).await?;
    stream.flush().await?;
    if stream.read_u8().await? != 1 {
        return Err(io::Error::other("the viewer wants an authentication that is not offered"));
    }
    stream.write_all(&[0, 0, 0, 0]).await?;
    stream.flush().await?;
    // ClientInit: whether others may watch too; they may.
    stream.read_u8().await?;
    let mut init = Vec::new();
    init.extend_from_slice(&WIDTH.to_be_bytes());
    init.extend_from_slice(&HEIGHT.to_be_bytes());
    // 32 bits, depth 24, little endian, true colour, 255 each, shifts 16, 8, 0.
    init.extend_from_slice(&[32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    let name = format!("QEMU ({name})");
    init.extend_from_slice(&u32::try_from(name.len()).unwrap_or_default().to_be_bytes());
    init.extend_from_slice(name.as_bytes());
    stream.write_all(&init).await?;
    stream.flush().await
}

async fn skip<S: AsyncRead + Unpin>(stream: &mut S, count: u64) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut stream.take(count), &mut tokio::io::sink()).await?;
    if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// `FramebufferUpdate` with one raw rectangle, cut at the edges of the screen.
fn update((x, y): (u16, u16), (width, height): (u16, u16), paused: bool) -> Vec<u8> {
    let (left, top) = (x.min(WIDTH), y.min(HEIGHT));
    let (width, height) = (width.min(WIDTH - left), height.min(HEIGHT - top));
    let mut message = vec![0, 0, 0, 1];
    for number in [left, top, width, height] {
        message.extend_from_slice(&number.to_be_bytes());
    }
    message.extend_from_slice(&0_i32.to_be_bytes());
    for row in top..top + height {
        for column in left..left + width {
            let [red, green, blue] = pixel(column, row, paused);
            message.extend_from_slice(&[blue, green, red, 0]);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_viewer_shakes_hands_and_gets_the_screen() {
        let (mut viewer, server) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(async move { serve(server, "default/web", || false).await });
        let mut version = [0; 12];
        viewer.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"RFB 003.008\n");
        viewer.write_all(&version).await.unwrap();
        assert_eq!(viewer.read_u16().await.unwrap(), 0x0101);
        viewer.write_all(&[1]).await.unwrap();
        assert_eq!(viewer.read_u32().await.unwrap(), 0);
        viewer.write_all(&[1]).await.unwrap();
        let mut init = [0; 24];
        viewer.read_exact(&mut init).await.unwrap();
        assert_eq!(&init[..4], &[1, 64, 0, 200]);
        let mut name = vec![0; usize::try_from(u32::from_be_bytes(init[20..].try_into().unwrap())).unwrap()];
        viewer.read_exact(&mut name).await.unwrap();
        assert_eq!(name, b"QEMU (default/web)");
        // SetEncodings, a key, then a request that reaches over the edge.
        viewer.write_all(&[2, 0, 0, 1, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 65]).await.unwrap();
        viewer.write_all(&[3, 0, 1, 62, 0, 199, 0, 10, 0, 10]).await.unwrap();
        let mut head = [0; 16];
        viewer.read_exact(&mut head).await.unwrap();
        assert_eq!(head, [0, 0, 0, 1, 1, 62, 0, 199, 0, 2, 0, 1, 0, 0, 0, 0]);
        let mut pixels = [0; 8];
        viewer.read_exact(&mut pixels).await.unwrap();
        assert_eq!(pixels, [16, 16, 16, 0, 16, 16, 16, 0]);
        viewer.write_all(&[99]).await.unwrap();
        assert!(serving.await.unwrap().is_err(), "an unknown message ends the session");
    }
}
