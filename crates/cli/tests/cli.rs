//! The program as a user meets it: help texts, errors, exit status.

mod program;

use program::virt_steward;

#[test]
fn help_texts() {
    for verb in [
        "",
        "admit",
        "bench",
        "bench admission",
        "completion",
        "image",
        "image convert",
        "image info",
        "image verify",
        "operator",
        "sandbox",
        "sandbox hotplug-storm",
        "volume",
        "volume add",
        "volume remove",
        "volume swap",
        "volume status",
    ] {
        let mut args: Vec<&str> = verb.split_whitespace().collect();
        args.push("--help");
        let result = virt_steward(&args, "");
        assert_eq!(result.status, 0);
        insta::assert_snapshot!(
            format!("help-{}", verb.replace(' ', "-")).trim_end_matches('-'),
            result.stdout
        );
    }
}

#[test]
fn usage_errors_exit_with_1_because_2_means_denied() {
    for args in [&[][..], &["admit"], &["admit", "-f", "x", "-o", "toml"], &["nothing"]] {
        let result = virt_steward(args, "");
        assert_eq!(result.status, 1, "{args:?}: {}", result.stderr);
        assert_eq!(result.stdout, "");
    }
}

#[test]
fn version_is_that_of_the_package() {
    let expected = format!("virt-steward {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(virt_steward(&["version"], "").stdout, expected);
    assert_eq!(virt_steward(&["--version"], "").stdout, expected);
}

#[test]
fn completion_scripts_ask_the_program() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let result = virt_steward(&["completion", shell], "");
        assert_eq!(result.status, 0, "{shell}");
        assert!(result.stdout.contains("VIRT_STEWARD_COMPLETE"), "{shell}: {}", result.stdout);
    }
}

#[test]
fn errors_say_what_was_done_what_is_wrong_and_what_to_do() {
    let result = virt_steward(&["admit", "-f", "/no/such/file"], "");
    assert_eq!(result.status, 1);
    insta::assert_snapshot!(result.stderr, @r"
    error: reading `/no/such/file`: No such file or directory (os error 2)
      try: give a readable file of UTF-8 text, or `-` for standard input
    ");

    let result = virt_steward(&["admit", "-f", "-"], "kind: ConfigMap\napiVersion: v1\n");
    assert_eq!(result.status, 1);
    insta::assert_snapshot!(result.stderr, @r"
    error: looking for VirtualMachines in the files: there is none of apiVersion `kubevirt.io/…`
      try: give a file with a VirtualMachine with `-f`
    ");
}

#[test]
fn the_operator_prints_a_configuration_that_it_reads_again() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/config/operator.yaml");
    let printed = virt_steward(&["operator", "--config", example, "--print-config"], "");
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    assert!(printed.stdout.contains("hookImage: registry.example.com/virt-steward-hook:0.1.0"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &printed.stdout).unwrap();
    let again = virt_steward(&["operator", "--config", file.path().to_str().unwrap(), "--print-config"], "");
    assert_eq!(again.stdout, printed.stdout);

    let refused = virt_steward(&["operator", "--port", "1", "--register", "maybe"], "");
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.starts_with("error: configuring the operator: flag --register: "),
        "{}",
        refused.stderr
    );
}

#[test]
fn bench_measures_an_operator_of_its_own() {
    let args = ["bench", "admission", "--self", "--requests", "50", "--connections", "2", "-o", "json"];
    let result = virt_steward(&args, "");
    assert_eq!(result.status, 0, "{}{}", result.stdout, result.stderr);
    let report: serde_json::Value = serde_json::from_str(&result.stdout).unwrap();
    assert_eq!(report["answered"], 50, "{report}");
    assert_eq!(report["verdicts"]["patched"], 50, "{report}");
    assert!(report["server"]["rss"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let program = env!("CARGO_BIN_EXE_virt-steward");
    let script = format!("'{program}' completion bash | true; exit ${{PIPESTATUS[0]}}");
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Both sides of the same seeds in one run; the same run again says the same.
#[test]
fn a_storm_breaks_vms_without_the_program_and_none_with_it_in_one_run() {
    let args = ["--seeds", "2", "--vms", "30", "--kubevirt-version", "1.3.1", "--kubevirt-version", "main"];
    let storm = |output: &str| {
        let mut all = vec!["sandbox", "hotplug-storm", "-o", output];
        all.extend(args);
        let result = virt_steward(&all, "");
        assert_eq!(result.status, 0, "{}", result.stderr);
        result.stdout
    };
    let text = storm("json");
    assert_eq!(text, storm("json"), "the seeds decide");
    let releases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = releases.iter().filter_map(|one| one["kubevirt"].as_str()).collect();
    assert_eq!(names, ["1.3.1", "main"]);
    for release in &releases {
        let (without, with) = (&release["without"], &release["with"]);
        assert!(without["ioErrors"].as_u64() > Some(0), "{release}");
        assert_eq!((&without["vms"], &with["vms"]), (&60.into(), &60.into()));
        for kind in ["broken", "ioErrors", "wedged", "unfinished"] {
            assert_eq!(with[kind], 0, "{kind}: {release}");
        }
    }
    let table = storm("table");
    assert!(table.contains("without") && table.contains("I/O-ERROR"), "{table}");
}
