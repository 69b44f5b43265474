//! A user's first hours with the real kubectl, against the sandbox with the operator in it.
//!
//! A session is a text of comments (`## `), commands (`$ `) and what they printed. Each command
//! runs in a shell; what it prints, normalised, has to be what the text says. After a wanted change:
//!
//! ```text
//! UPDATE_SESSIONS=1 cargo test -p cli --test kubectl_session
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod program;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use program::SandboxProgram;
use regex::Regex;

/// How long one command may take, in seconds.
const PATIENCE: &str = "60";

#[test]
fn first_hour() {
    play("first-hour");
}

#[test]
fn objects() {
    play("objects");
}

#[test]
fn lists() {
    play("lists");
}

#[test]
fn creations() {
    play("creations");
}

#[test]
fn workbench() {
    play("workbench");
}

#[test]
fn drain() {
    play("drain");
}

#[test]
fn nodes() {
    play("nodes");
}

#[test]
fn subresources() {
    play("subresources");
}

#[test]
fn usage() {
    play("usage");
}

fn play(session: &str) {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        println!("SKIPPED: kubectl is not installed, the session `{session}` was not played");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sessions/{session}.txt"));
    let expected = std::fs::read_to_string(&path).unwrap();
    let sandbox = SandboxProgram::start(&["--nodes", "3", "--seed", "1"]);
    let home = tempfile::tempdir().unwrap();
    let normaliser = Normaliser::new();
    let mut actual = String::new();
    for line in expected.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            actual.push_str(line);
            actual.push('\n');
            actual.push_str(&normaliser.apply(&run(command, &sandbox.kubeconfig, home.path())));
            actual.push('\n');
        } else if line.starts_with("## ") {
            actual.push_str(line);
            actual.push('\n');
        }
    }
    if actual == expected {
        return;
    }
    if std::env::var_os("UPDATE_SESSIONS").is_some() {
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let diff = similar::TextDiff::from_lines(&expected, &actual);
    let diff = diff.unified_diff().header("recorded", "printed now").to_string();
    panic!("the session `{session}` went differently; UPDATE_SESSIONS=1 records it anew\n{diff}");
}

/// Runs a command in the root of the repository, as a user with an empty home would.
fn run(command: &str, kubeconfig: &Path, home: &Path) -> String {
    let output = Command::new("timeout")
        .args([PATIENCE, "sh", "-c", &format!("{command}\n")])
        .current_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", home)
        .env("TZ", "UTC")
        .env("PATH", format!("{}:{}", program_folder().display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !output.status.success() {
        writeln!(text, "[exit {}]", output.status.code().unwrap()).unwrap();
    }
    text
}

fn program_folder() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_virt-steward")).parent().unwrap()
}

/// Replaces what differs from run to run: times, ages, ids, versions of objects, addresses.
struct Normaliser {
    rules: Vec<(Regex, &'static str)>,
}

impl Normaliser {
    fn new() -> Self {
        let rules = [
            (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uid>"),
            (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
            (r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000", "<time>"),
            (r#"((?i:resource ?version):\s+)"?\d+"?"#, "${1}<version>"),
            (r"((?i:generation):\s+)\d+", "${1}<n>"),
            (r"(127\.0\.0\.1:)\d+", "${1}<port>"),
            (r"\b(10|198)\.\d+\.\d+\.\d+\b", "<ip>"),
            (r"\b(virt-launcher-[a-z0-9-]+-)[bcdfghjklmnpqrstvwxz2456789]{5}\b", "${1}<id>"),
            (r"^[EIW]\d{4} [\d:.]+ +\d+ \S+\] ", "[kubectl log] "),
            // ages in columns, and in events: 5s, 2m10s, <invalid>
            (r"(^|  )(\d+[smhd]){1,2}( |$)", "${1}<age>${3}"),
            (r"(^|  )<invalid>( |$)", "${1}<age>${2}"),
            (r"\b\d+(\.\d+)?(ms|s) ago\b", "<age> ago"),
        ];
        Self { rules: rules.map(|(pattern, with)| (Regex::new(pattern).unwrap(), with)).into() }
    }

    fn apply(&self, text: &str) -> String {
        let spaces = Regex::new(r"(\S) {2,}").unwrap();
        let mut normal = String::new();
        for line in text.lines() {
            let mut line = line.to_owned();
            for (pattern, with) in &self.rules {
                line = pattern.replace_all(&line, *with).into_owned();
            }
            // the width of a column depends on what was replaced in it
            normal.push_str(spaces.replace_all(&line, "$1   ").trim_end());
            normal.push('\n');
        }
        normal
    }
}

#[test]
fn what_differs_from_run_to_run_is_replaced() {
    let normaliser = Normaliser::new();
    for (text, normal) in [
        ("a    12s   b", "a   <age>   b\n"),
        ("vm   2m10s", "vm   <age>\n"),
        ("  uid: 8f14e45f-ceea-467f-9c0e-3a5a1b2c3d4e", "  uid: <uid>\n"),
        ("  resourceVersion: \"1234\"", "  resourceVersion: <version>\n"),
        ("  creationTimestamp: \"2026-11-21T07:00:00Z\"", "  creationTimestamp: \"<time>\"\n"),
        ("virt-launcher-nested-virt-x2bcd   1/1", "virt-launcher-nested-virt-<id>   1/1\n"),
        ("memory: 16Gi 3s-thing", "memory: 16Gi 3s-thing\n"),
    ] {
        assert_eq!(normaliser.apply(text), normal);
    }
}
