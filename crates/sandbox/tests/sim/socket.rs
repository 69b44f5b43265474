//! A client of launchers' command sockets that sends whatever it is told to.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// A connection to a launcher's socket.
pub struct Launcher {
    pub socket: PathBuf,
}

impl Launcher {
    /// The launcher in a pod, below what stands for kubelet's directory.
    pub fn of_pod(kubelet_root: &Path, uid: &str) -> Self {
        let sockets = format!("pods/{uid}/volumes/kubernetes.io~empty-dir/sockets/launcher-sock");
        Self { socket: kubelet_root.join(sockets) }
    }

    /// One call: the message of the answer, or the status.
    pub async fn call(&self, method: &str, message: &impl Message) -> Result<Bytes, String> {
        let directory = std::fs::File::open(self.socket.parent().unwrap()).unwrap();
        // The path is longer than `sun_path`.
        let path = format!("/proc/self/fd/{}/launcher-sock", directory.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut body = vec![0];
        let message = message.encode_to_vec();
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let early = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(early);
        let bytes = body.to_bytes();
        match status {
            Some(status) if status == "0" => Ok(bytes.slice(5..)),
            other => Err(format!("{other:?}")),
        }
    }
}
