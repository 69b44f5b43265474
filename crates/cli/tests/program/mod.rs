//! Runs the built program.

#![allow(clippy::unwrap_used, reason = "a helper of tests: whatever fails here fails the test")]
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What a run of the program left behind.
pub struct Run {
    /// The exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `virt-steward` with arguments and a text on standard input, to its end.
pub fn virt_steward(args: &[&str], input: &str) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
        .args(args)
        .env_remove("KUBECONFIG")
        // help is wrapped to the terminal's width
        .env("COLUMNS", "100")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // a program that ends without reading its input is not an error of the test
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Run {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A running `virt-steward sandbox`, with the operator in it; ends when dropped.
pub struct SandboxProgram {
    child: Child,
    /// Where its kubeconfig is.
    pub kubeconfig: PathBuf,
    _folder: tempfile::TempDir,
}

impl SandboxProgram {
    /// Starts it and waits until it says that it stays up.
    pub fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let mut child = Command::new(env!("CARGO_BIN_EXE_virt-steward"))
            .arg("sandbox")
            .args(args)
            .arg("--kubeconfig-out")
            .arg(&kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let program = Self { child, kubeconfig, _folder: folder };
        let mut lines = output.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("export KUBECONFIG")), "the sandbox ended before it was up");
        // a full pipe would stop it
        std::thread::spawn(move || lines.for_each(drop));
        program
    }
}

impl Drop for SandboxProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
