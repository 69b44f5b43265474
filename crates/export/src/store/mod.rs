//! Object stores that speak the S3 protocol: Amazon S3, Google Cloud Storage through its XML API
//! with HMAC keys, `MinIO`, Ceph and others.
//!
//! ```text
//!  image writer ─► PartSink: part 1 stays in memory, since headers are written last
//!                    │ parts in parallel, each with its SHA-256
//!                    ▼
//!                  multipart upload ─► completed when everything is whole; a broken one stays
//!                                      and its parts are used again
//! ```

mod location;
mod s3;
mod sigv4;
mod sink;
mod storage;

pub use location::{Credentials, Location};
pub use s3::{Part, Store};
pub use sink::PartSink;
pub use storage::ObjectStorage;
