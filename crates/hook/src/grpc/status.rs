use std::fmt::Write as _;

/// Status codes that we answer with, and their numbers on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// The request is wrong.
    InvalidArgument = 3,
    /// There is no such device.
    NotFound = 5,
    /// It is too large.
    ResourceExhausted = 8,
    /// The ROM or the host is not in the state that the call needs.
    FailedPrecondition = 9,
    /// There is no such method.
    Unimplemented = 12,
    /// A file could not be written.
    Internal = 13,
}

/// A call that failed. KubeVirt puts the text into the condition of the VMI, so it is for users.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// What was being done, what is wrong, what to do.
    pub message: String,
}

impl Status {
    /// A status.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The message as the header `grpc-message` carries it: percent-encoded UTF-8, cut to what
    /// launchers accept as headers.
    pub fn header(&self) -> String {
        let mut text = String::with_capacity(self.message.len());
        for byte in self.message.bytes().take(2048) {
            match byte {
                b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
                // writing to a String does not fail
                other => drop(write!(text, "%{other:02X}")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_headers_whatever_is_in_them() {
        let header = |text: &str| Status::new(Code::Internal, text).header();
        assert_eq!(header("plain, `x`"), "plain, `x`");
        assert_eq!(header("50%\n→"), "50%25%0A%E2%86%92");
        assert!(header(&"é".repeat(9000)).len() <= 2048 * 3);
    }
}
