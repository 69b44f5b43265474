//! The one form in which the program tells what went wrong.

use std::fmt;

/// What was being done to which object, what is wrong, and what to do about it.
///
/// ```text
/// error: reading `vm.yaml`: no such file or directory
///   try: give an existing file, or `-` for standard input
/// ```
#[derive(Debug)]
pub struct Problem {
    doing: String,
    wrong: String,
    remedy: String,
}

impl Problem {
    /// `doing` starts with a verb in -ing and names the object; `remedy` is an instruction.
    pub fn new(doing: impl Into<String>, wrong: impl fmt::Display, remedy: impl Into<String>) -> Self {
        Self { doing: doing.into(), wrong: wrong.to_string(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  try: {}", self.doing, self.wrong, self.remedy)
    }
}

impl std::error::Error for Problem {}
