use std::collections::BTreeMap;

use clap::Parser;
use features::{DeviceNames, ErrorMode, GpuMode, Source};

use super::environment::{SETTINGS, WITHOUT_EFFECT};
use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    operator: OperatorArgs,
}

fn args(flags: &[&str]) -> OperatorArgs {
    Program::parse_from(std::iter::once("virt-steward").chain(flags.iter().copied())).operator
}

fn load(flags: &[&str], env: &[(&str, &str)], yaml: &str) -> Result<Config, Error> {
    let env: BTreeMap<_, _> = env.iter().copied().collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, yaml).unwrap();
    Config::load(&args(flags), &|name| env.get(name).map(|v| (*v).to_owned()), Some(&file))
}

fn from_env(env: &[(&str, &str)]) -> Result<Config, Error> {
    load(&[], env, "")
}

#[test]
fn flags_over_environment_over_file_over_defaults() {
    type Layers<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, u16);
    let cases: &[Layers<'_>] = &[
        (&[], &[], "", 8443),
        (&[], &[], "server: {port: 1}", 1),
        (&[], &[("PORT", "2")], "server: {port: 1}", 2),
        (&["--port", "3"], &[("PORT", "2")], "server: {port: 1}", 3),
        (&["--port=3"], &[], "", 3),
    ];
    for (flags, env, yaml, want) in cases {
        assert_eq!(load(flags, env, yaml).unwrap().server.port, *want, "{flags:?} {env:?} {yaml:?}");
    }
}

#[test]
fn every_flag_of_the_program_before_this_one_is_taken() {
    let config = load(
        &[
            "--port=1234",
            "--cert-dir=/certs",
            "--error-handling=allow",
            "--log-level=debug",
            "--config-source=labels",
            "--metrics-bind-address=:9090",
            "--leader-elect",
        ],
        &[],
        "",
    )
    .unwrap();
    assert_eq!(config.server.port, 1234);
    assert_eq!(config.tls.cert_dir, PathBuf::from("/certs"));
    assert_eq!(config.features.error_handling, ErrorMode::AllowAndLog);
    assert_eq!(config.telemetry.log_level, LogLevel::Debug);
    assert_eq!(config.features.source, Source::Labels);
    assert_eq!(config.metrics_address().unwrap().port(), 9090);
    assert!(config.kubernetes.leader_elect);
    assert!(args(&["--version"]).version);
    assert_eq!(args(&["--leader-elect=false"]).leader_elect, Some(false));
}

/// Defect 14: variables that the Go program documented and never read.
#[test]
fn defect_14_every_variable_of_both_schemes_is_wired() {
    type Holds = fn(&Config) -> bool;
    let cases: &[(&str, &str, Holds)] = &[
        ("FEATURE_NESTED_VIRT_ENABLED", "false", |c| !c.features.nested_virtualization.enabled),
        ("NESTED_VIRT_ENABLED", "no", |c| !c.features.nested_virtualization.enabled),
        ("FEATURE_NESTED_VIRT_AUTO_DETECT", "0", |c| !c.features.nested_virtualization.auto_detect),
        ("NESTED_VIRT_ERROR_HANDLING", "strip-label", |c| {
            c.features.nested_virtualization.error_handling == Some(ErrorMode::StripLabel)
        }),
        ("FEATURE_VBIOS_ENABLED", "F", |c| !c.features.vbios_injection.enabled),
        ("VBIOS_INJECTION_ENABLED", "off", |c| !c.features.vbios_injection.enabled),
        ("VBIOS_INJECTION_ERROR_HANDLING", "KeepLabel", |c| {
            c.features.vbios_injection.error_handling == Some(ErrorMode::AllowAndLog)
        }),
        ("VBIOS_HOOK_IMAGE", "r/hook@sha256:0", |c| {
            c.features.vbios_injection.hook_image == "r/hook@sha256:0"
        }),
        ("VBIOS_SIDECAR_IMAGE", "r:5000/hook", |c| c.features.vbios_injection.hook_image == "r:5000/hook"),
        ("VBIOS_DEFAULT_SIDECAR_IMAGE", "r/hook", |c| c.features.vbios_injection.hook_image == "r/hook"),
        ("VBIOS_SIDECAR_IMAGE_OVERRIDE", "r/hook:1", |c| c.features.vbios_injection.hook_image == "r/hook:1"),
        ("VBIOS_SOURCE_CM_KEY", "gop", |c| c.features.vbios_injection.config_map_key == "gop"),
        ("VBIOS_ALLOWED_IMAGES", "a/*, b", |c| c.features.vbios_injection.allowed_images == ["a/*", "b"]),
        ("FEATURE_PCI_PASSTHROUGH_ENABLED", "FALSE", |c| !c.features.pci_passthrough.enabled),
        ("PCI_PASSTHROUGH_ENABLED", "disabled", |c| !c.features.pci_passthrough.enabled),
        ("PCI_PASSTHROUGH_ERROR_HANDLING", "allow-and-log", |c| {
            c.features.pci_passthrough.error_handling == Some(ErrorMode::AllowAndLog)
        }),
        ("PCI_MAX_DEVICES", "3", |c| c.features.pci_passthrough.max_devices == 3),
        ("PCI_DEVICE_NAMES", "raw", |c| c.features.pci_passthrough.device_names == DeviceNames::Raw),
        ("FEATURE_GPU_DEVICE_PLUGIN_ENABLED", "n", |c| !c.features.gpu_device_plugin.enabled),
        ("GPU_DEVICE_PLUGIN_ENABLED", "0", |c| !c.features.gpu_device_plugin.enabled),
        ("GPU_DEVICE_PLUGIN_ERROR_HANDLING", "allow", |c| {
            c.features.gpu_device_plugin.error_handling == Some(ErrorMode::AllowAndLog)
        }),
        ("GPU_ALLOWED_PLUGINS", "nvidia.com/gpu,,amd.com/gpu ", |c| {
            c.features.gpu_device_plugin.allowed_plugins == ["nvidia.com/gpu", "amd.com/gpu"]
        }),
        ("GPU_MODE", "limits", |c| c.features.gpu_device_plugin.mode == GpuMode::Limits),
        ("WEBHOOK_VERSION", "v9", |c| c.telemetry.version() == "v9"),
        ("ADD_TRACKING_ANNOTATIONS", "false", |c| !c.features.add_tracking_annotations),
        ("CONFIG_SOURCE", "labels", |c| c.features.source == Source::Labels),
        ("CONFIG_SOURCE", "both", |c| c.features.source == Source::Both),
        ("ERROR_HANDLING_MODE", "StripLabel", |c| c.features.error_handling == ErrorMode::StripLabel),
        ("LOG_LEVEL", "WARNING", |c| c.telemetry.log_level == LogLevel::Warn),
        ("TLS_CERT_FILE", "", |c| c.tls.cert_file.is_none()),
        ("CERT_DIR", "/x", |c| {
            c.cert_file() == Path::new("/x/tls.crt") && c.key_file() == Path::new("/x/tls.key")
        }),
    ];
    for (name, value, holds) in cases {
        let config = from_env(&[(name, value)]).unwrap();
        assert!(holds(&config), "{name}={value} had no effect");
    }
    let config = from_env(&[("TLS_CERT_FILE", "/a"), ("TLS_KEY_FILE", "/b")]).unwrap();
    assert_eq!((config.cert_file(), config.key_file()), ("/a".into(), "/b".into()));
    for name in WITHOUT_EFFECT {
        let notes = from_env(&[(name, "x")]).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].contains(name), "{notes:?}");
    }
}

/// Defect 18: the old chart's default `StripLabel` and the documented `allow` were unknown modes
/// and silently meant `reject`.
#[test]
fn defect_18_old_spellings_are_known_and_unknown_modes_are_an_error_that_names_the_accepted_ones() {
    for (text, mode) in [
        ("reject", ErrorMode::Reject),
        ("Reject", ErrorMode::Reject),
        ("allow", ErrorMode::AllowAndLog),
        ("allow-and-log", ErrorMode::AllowAndLog),
        ("AllowAndLog", ErrorMode::AllowAndLog),
        ("KeepLabel", ErrorMode::AllowAndLog),
        ("StripLabel", ErrorMode::StripLabel),
        ("strip-label", ErrorMode::StripLabel),
    ] {
        assert_eq!(from_env(&[("ERROR_HANDLING_MODE", text)]).unwrap().features.error_handling, mode);
        assert_eq!(load(&["--error-handling", text], &[], "").unwrap().features.error_handling, mode);
        let yaml = format!("features: {{errorHandling: {text}}}");
        assert_eq!(load(&[], &[], &yaml).unwrap().features.error_handling, mode, "{yaml}");
    }
    for error in [
        from_env(&[("ERROR_HANDLING_MODE", "ignore")]).unwrap_err(),
        load(&["--error-handling", "ignore"], &[], "").unwrap_err(),
        load(&[], &[], "features: {errorHandling: ignore}").unwrap_err(),
    ] {
        let text = error.to_string();
        for accepted in ["ignore", "reject", "allow-and-log", "strip-label"] {
            assert!(text.contains(accepted), "{text}");
        }
    }
}

#[test]
fn wrong_values_name_the_variable_and_what_is_accepted() {
    for (name, value, says) in [
        ("PORT", "seventy", "not a number"),
        ("PORT", "70000", "not a number in range"),
        ("PCI_MAX_DEVICES", "-1", "not a number in range"),
        ("FEATURE_VBIOS_ENABLED", "perhaps", "not a boolean"),
        ("CONFIG_SOURCE", "spec", "annotations, labels, both"),
        ("LOG_LEVEL", "loud", "trace, debug, info, warn, error"),
        ("REGISTER", "always", "service, url, none"),
        ("GPU_MODE", "x", "devices, limits"),
        ("TLS_SOURCE", "acme", "files, self-signed"),
    ] {
        let text = from_env(&[(name, value)]).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains(says), "{text}");
    }
    for (yaml, says) in [
        ("server: {prot: 1}", "prot"),
        ("features: {pciPassthrough: {maxDevice: 1}}", "maxDevice"),
        ("register: {timeoutSeconds: 31}", "1 to 30"),
        ("register: {url: 'http://x'}", "https://"),
        ("register: {namespaceSelector: web}", "label selector"),
        ("tls: {certFile: /a}", "together"),
        ("telemetry: {metricsBindAddress: here}", ":PORT"),
        ("telemetry: {otlpEndpoint: 'http://me:secret@x'}", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("features: {pciPassthrough: {maxDevices: 0}}", "enabled: false"),
    ] {
        let text = load(&[], &[], yaml).unwrap_err().to_string();
        assert!(text.contains(says), "{yaml}: {text}");
    }
}

#[test]
fn two_names_of_one_setting_may_agree_and_may_not_differ() {
    let same = from_env(&[("NESTED_VIRT_ENABLED", "false"), ("FEATURE_NESTED_VIRT_ENABLED", "false")]);
    assert!(!same.unwrap().features.nested_virtualization.enabled);
    let text = from_env(&[("NESTED_VIRT_ENABLED", "true"), ("FEATURE_NESTED_VIRT_ENABLED", "false")])
        .unwrap_err()
        .to_string();
    assert!(text.contains("NESTED_VIRT_ENABLED") && text.contains("FEATURE_NESTED_VIRT_ENABLED"), "{text}");
}

#[test]
fn kubevirts_shim_is_not_taken_for_our_hook() {
    let config =
        from_env(&[("VBIOS_SIDECAR_IMAGE", "registry.k8s.io/kubevirt/sidecar-shim:v1.4.0")]).unwrap();
    assert_eq!(config.features.vbios_injection.hook_image, "");
    assert!(config.notes[0].contains("sidecar-shim"), "{:?}", config.notes);
}

#[test]
fn printed_configuration_is_a_configuration() {
    let config = load(
        &["--register", "url", "--otlp-endpoint", "http://127.0.0.1:4318"],
        &[("GPU_ALLOWED_PLUGINS", "a/b"), ("PCI_PASSTHROUGH_ERROR_HANDLING", "allow")],
        "register: {namespaceSelector: {matchLabels: {vm-features: enabled}}}",
    )
    .unwrap();
    let printed = config.to_yaml().unwrap();
    assert_eq!(load(&[], &[], &printed).unwrap(), config, "{printed}");
}

#[test]
fn defaults_are_what_the_documentation_says() {
    insta::assert_snapshot!(Config::default().to_yaml().unwrap());
}

#[test]
fn listens_on_loopback_when_api_servers_are_given_a_url() {
    assert!(load(&["--register=url"], &[], "").unwrap().listen_address().ip().is_loopback());
    assert!(load(&["--register=service"], &[], "").unwrap().listen_address().ip().is_unspecified());
    let config = load(&["--register=url", "--bind-address=10.0.0.1"], &[], "").unwrap();
    assert_eq!(config.listen_address().to_string(), "10.0.0.1:8443");
    assert_eq!(load(&["--register=url"], &[], "").unwrap().tls_source(), TlsSource::SelfSigned);
    assert_eq!(load(&[], &[], "").unwrap().tls_source(), TlsSource::Files);
    assert_eq!(load(&["--metrics-bind-address=0"], &[], "").unwrap().metrics_address(), None);
}

#[test]
fn no_name_appears_twice_in_the_table() {
    let mut seen = std::collections::BTreeSet::new();
    for name in SETTINGS.iter().flat_map(|s| s.names).chain(WITHOUT_EFFECT) {
        assert!(seen.insert(name), "{name}");
    }
}
