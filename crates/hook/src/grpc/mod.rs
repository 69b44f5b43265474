//! As much of gRPC as unary calls over a unix socket need (`PROTOCOL-HTTP2.md` of grpc/grpc): one
//! frame in, one frame out, a status in the trailers. `h2` alone keeps the sidecar, of which every
//! VM with a ROM has one, at a few megabytes.

pub mod frame;
pub mod server;
mod status;

pub use status::{Code, Status};
