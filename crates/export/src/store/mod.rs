//! Object stores: those that speak the S3 protocol (Amazon S3, Google Cloud Storage through its XML API
//! with HMAC keys, `MinIO`, Ceph and others), Azure Blob Storage, and plain HTTP servers that take `PUT`.
//!
//! ```text
//!  image writer ─► PartSink: part 1 stays in memory, since headers are written last
//!                    │ parts in parallel, each with its checksum
//!                    ▼
//!                  S3: multipart upload   ─► completed when everything is whole; a broken one stays
//!                  Azure: blocks          ─┘ and its parts are used again
//!
//!  image writer ─► Web: one PUT, front to back; qcow2 and OVA in two passes
//! ```

mod azure;
mod crc64;
mod location;
mod md5;
mod request;
mod s3;
mod sigv4;
mod sink;
mod storage;
mod web;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use self::request::Protocol;
use crate::Result;
use crate::sums::{hex, sha256};

pub use azure::Azure;
pub use location::{Checks, Credentials, Location};
pub use request::elements;
pub use s3::S3;
pub use sink::PartSink;
pub use storage::{ObjectStorage, Place};
pub use web::{Put, Web};

/// A part of an upload that the store has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    /// What the store calls its content; it is given back at the end.
    pub tag: String,
    /// The digest that the store keeps of it, if it keeps one.
    pub digest: Option<PartDigest>,
}

/// A digest of a part, in the form of its store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PartDigest {
    /// SHA-256 in base64: Amazon's checksums, and names of blocks at Azure.
    Sha256(String),
    /// MD5 in hexadecimal: `ETag`s of Google's parts.
    Md5(String),
}

impl Part {
    /// Whether it is known to hold these bytes.
    pub fn holds(&self, data: &[u8]) -> bool {
        match &self.digest {
            None => false,
            Some(PartDigest::Sha256(digest)) => *digest == BASE64_STANDARD.encode(sha256(data)),
            Some(PartDigest::Md5(digest)) => *digest == hex(&md5::md5(data)),
        }
    }
}

/// A store that takes objects in parts.
#[derive(Debug)]
pub enum Store {
    /// Amazon's protocol.
    S3(Box<S3>),
    /// Microsoft's.
    Azure(Box<Azure>),
}

impl From<S3> for Store {
    fn from(store: S3) -> Self {
        Self::S3(Box::new(store))
    }
}

impl Store {
    /// The store that a URL names (`s3://`, `gs://`, `az://`), with keys from the environment.
    ///
    /// # Errors
    /// When it is no such URL, or there are no keys.
    pub fn open(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        if url.starts_with("az://") {
            return Azure::open(url, env).map(|store| Self::Azure(Box::new(store)));
        }
        let location = Location::parse(url, env)?;
        S3::new(location, Credentials::read(url, env)?).map(Self::from)
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> String {
        match self {
            Self::S3(store) => store.location.key(name),
            Self::Azure(store) => store.key(name),
        }
    }

    /// Begins an upload; answers its id.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn begin(&self, key: &str) -> Result<String> {
        match self {
            Self::S3(store) => store.begin(key).await,
            Self::Azure(_) => Ok(String::new()),
        }
    }

    /// The last upload to a key that was begun and not ended.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn unfinished(&self, key: &str) -> Result<Option<String>> {
        match self {
            Self::S3(store) => store.unfinished(key).await,
            Self::Azure(store) => Ok((!store.parts(key).await?.is_empty()).then(String::new)),
        }
    }

    /// The parts of an upload that the store has.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn parts(&self, key: &str, upload: &str) -> Result<BTreeMap<u32, Part>> {
        match self {
            Self::S3(store) => store.parts(key, upload).await,
            Self::Azure(store) => store.parts(key).await,
        }
    }

    /// Uploads a part; the store checks its checksum.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn put_part(&self, key: &str, upload: &str, number: u32, data: Bytes) -> Result<Part> {
        match self {
            Self::S3(store) => store.put_part(key, upload, number, data).await,
            Self::Azure(store) => store.put_part(key, number, data).await,
        }
    }

    /// Makes an object of the parts.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn complete(&self, key: &str, upload: &str, parts: &BTreeMap<u32, Part>) -> Result<()> {
        match self {
            Self::S3(store) => store.complete(key, upload, parts).await,
            Self::Azure(store) => store.complete(key, parts).await,
        }
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn put(&self, key: &str, data: Bytes) -> Result<()> {
        match self {
            Self::S3(store) => store.put(key, data).await,
            Self::Azure(store) => store.put(key, data).await,
        }
    }

    /// The size of an object; `None`: it is not there.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        match self {
            Self::S3(store) => store.size(key).await,
            Self::Azure(store) => store.size(key).await,
        }
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    /// What the store refuses, and fewer bytes than there should be.
    pub async fn read(&self, key: &str, start: u64, length: u64) -> Result<Bytes> {
        match self {
            Self::S3(store) => store.read(key, start, length).await,
            Self::Azure(store) => store.read(key, start, length).await,
        }
    }

    /// The keys that begin with a prefix.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        match self {
            Self::S3(store) => store.list(prefix).await,
            Self::Azure(store) => store.list(prefix).await,
        }
    }

    /// Removes an object.
    ///
    /// # Errors
    /// What the store refuses.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self {
            Self::S3(store) => store.delete(key).await,
            Self::Azure(store) => store.delete(key).await,
        }
    }
}
