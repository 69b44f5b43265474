//! What can go wrong with an export.

use std::path::PathBuf;

/// The result of exporting.
pub type Result<T> = std::result::Result<T, Error>;

/// What was being done when it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API refused or was not reached.
    #[error("{doing}: {source}")]
    Api {
        /// For example `creating VirtualMachineExport default/web`.
        doing: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// An object of the cluster is not as it has to be.
    #[error("{object}: {wrong}")]
    Object {
        /// Kind, namespace and name.
        object: String,
        /// What is wrong, and what to do.
        wrong: String,
    },
    /// A server's answer was not what was asked for.
    #[error("{what}: {wrong}")]
    Answer {
        /// The request.
        what: String,
        /// What was wrong with the answer.
        wrong: String,
        /// Trying again may help.
        again: bool,
    },
    /// A connection could not be made or broke off.
    #[error("{what}: {wrong}")]
    Connection {
        /// The request.
        what: String,
        /// What happened.
        wrong: String,
    },
    /// The disk has another size than it had.
    #[error(
        "{what} has {found} bytes and not {stated} as stated before; the source changed while it was read"
    )]
    SizeChanged {
        /// The disk.
        what: String,
        /// Before.
        stated: u64,
        /// Now.
        found: u64,
    },
    /// A file could not be used.
    #[error("{doing} `{}`: {source}", path.display())]
    File {
        /// For example `writing`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The journal does not fit what is asked for.
    #[error("the journal `{}` {wrong}", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What does not fit, and what to do.
        wrong: String,
    },
    /// The image could not be made.
    #[error("{what}: {}", chain(source))]
    Image {
        /// The disk.
        what: String,
        /// Why.
        source: image::Error,
    },
    /// The result does not hold what was read.
    #[error("{what} does not hold what was read: {wrong}")]
    Verify {
        /// The file or object.
        what: String,
        /// Where it differs.
        wrong: String,
    },
    /// The request makes no sense or cannot be carried out.
    #[error("{0}")]
    Request(String),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether the same request may succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Answer { again, .. } => *again,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => matches!(status.code, 429 | 500 | 502 | 503 | 504),
                kube::Error::HyperError(_) | kube::Error::Service(_) => true,
                _ => false,
            },
            _ => false,
        }
    }

    pub(crate) fn file(doing: &'static str, path: &std::path::Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File { doing, path: path.to_path_buf(), source }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
