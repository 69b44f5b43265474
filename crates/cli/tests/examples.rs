//! The examples hold what they promise.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod program;

use std::path::{Path, PathBuf};

use program::virt_steward;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// The YAML files of a folder, by name.
fn files(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(name)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "no examples in {name}");
    files
}

fn objects(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn admit(file: &str, more: &[&str], input: &str) -> program::Run {
    let fact = |name: &str| folder("cluster").join(name).display().to_string();
    let config = folder("config").join("operator.yaml").display().to_string();
    let (nodes, kubevirt) = (fact("nodes.yaml"), fact("kubevirt.yaml"));
    let mut args = vec!["admit", "-f", file, "--facts", &nodes, "--facts", &kubevirt];
    if !more.contains(&"--config") {
        args.extend(["--config", &config]);
    }
    args.extend(more);
    virt_steward(&args, input)
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

#[test]
fn each_vm_is_admitted_as_recorded() {
    for path in files("vms") {
        let result = admit(path.to_str().unwrap(), &[], "");
        assert_eq!(result.status, 0, "{}: {}{}", path.display(), result.stdout, result.stderr);
        insta::assert_snapshot!(format!("admit-{}", stem(&path)), result.stdout);
    }
}

#[test]
fn admission_of_what_was_admitted_changes_nothing() {
    for path in files("vms") {
        let first = admit(path.to_str().unwrap(), &["-o", "yaml"], "");
        let again = admit("-", &["-o", "patch"], &first.stdout);
        assert_eq!(
            (again.status, again.stdout.as_str()),
            (0, "[]\n"),
            "{}: {}",
            path.display(),
            again.stderr
        );
    }
}

#[test]
fn the_denied_vm_is_denied_with_what_there_is_instead() {
    for path in files("denied") {
        let result = admit(path.to_str().unwrap(), &[], "");
        assert_eq!(result.status, 2, "{}: {}{}", path.display(), result.stdout, result.stderr);
        insta::assert_snapshot!(format!("admit-{}", stem(&path)), result.stdout);
        let yaml = admit(path.to_str().unwrap(), &["-o", "yaml"], "");
        assert_eq!((yaml.status, yaml.stdout.as_str()), (2, ""));
    }
}

#[test]
fn labels_count_when_the_configuration_says_so() {
    let vm = folder("vms").join("labels.yaml").display().to_string();
    let by_default = tempfile::NamedTempFile::new().unwrap();
    let unread = admit(&vm, &["--config", by_default.path().to_str().unwrap(), "-o", "patch"], "");
    assert_eq!((unread.status, unread.stdout.as_str()), (0, "[]\n"), "{}", unread.stderr);
    for file in ["labels.yaml", "operator.yaml"] {
        let config = folder("config").join(file).display().to_string();
        let result = admit(&vm, &["--config", &config, "-o", "json"], "");
        let report: Value = serde_json::from_str(&result.stdout).unwrap();
        assert_eq!(report["admissions"][0]["outcomes"][0]["result"], "applied", "{file}: {report}");
    }
}

#[test]
fn an_update_without_the_wish_is_decided_against_the_stored_vm() {
    let vm = folder("vms").join("nested-virt.yaml").display().to_string();
    let stored = admit(&vm, &["-o", "yaml"], "").stdout;
    let old = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(old.path(), &stored).unwrap();
    let wish = "    vm-feature-manager.io/nested-virt: enabled\n";
    assert!(stored.contains(wish), "{stored}");
    let update = ["--old", old.path().to_str().unwrap(), "-o", "yaml"];
    let updated = admit("-", &update, &stored.replace(wish, ""));
    assert_eq!(updated.status, 0, "{}", updated.stderr);
    assert!(
        !updated.stdout.contains("vm-feature-manager.io") && !updated.stdout.contains("svm"),
        "{}",
        updated.stdout
    );
    assert!(updated.stdout.contains("cores: 2"), "{}", updated.stdout);
}

/// Reads KubeVirt's own `CustomResourceDefinitions` from the folder that `KUBEVIRT_CRDS` names:
/// `virtualmachines.kubevirt.io.yaml` and `kubevirts.kubevirt.io.yaml` of a release. They are too
/// large to be kept here; `.ci/kubevirt-fields.txt` guards the names of fields without them.
#[test]
fn kubevirts_schema_accepts_the_examples() {
    let Some(crds) = std::env::var_os("KUBEVIRT_CRDS").map(PathBuf::from) else {
        println!("skipped: KUBEVIRT_CRDS names no folder with KubeVirt's CustomResourceDefinitions");
        return;
    };
    let schema = |crd: &str| {
        let definition = objects(&crds.join(crd)).remove(0);
        let mut versions = definition["spec"]["versions"].as_array().unwrap().iter();
        versions.find(|version| version["name"] == "v1").unwrap()["schema"]["openAPIV3Schema"].clone()
    };
    let (machine, kubevirt) =
        (schema("virtualmachines.kubevirt.io.yaml"), schema("kubevirts.kubevirt.io.yaml"));
    for path in [files("vms"), files("denied"), files("cluster")].concat() {
        let mut documents = objects(&path);
        if files("vms").contains(&path) {
            let admitted = admit(path.to_str().unwrap(), &["-o", "yaml"], "").stdout;
            documents.extend(serde_saphyr::from_multiple::<Value>(&admitted).unwrap());
        }
        for document in documents {
            let schema = match document["kind"].as_str() {
                Some("VirtualMachine") => &machine,
                Some("KubeVirt") => &kubevirt,
                _ => continue,
            };
            let mut wrong = Vec::new();
            check(schema, &document, "", &mut wrong);
            assert!(wrong.is_empty(), "{}: {wrong:#?}", path.display());
        }
    }
}

/// The part of structural schemas (OpenAPI v3 as in apiextensions v1) that KubeVirt's use.
fn check(schema: &Value, value: &Value, path: &str, wrong: &mut Vec<String>) {
    let of_type = match schema["type"].as_str() {
        _ if schema["x-kubernetes-int-or-string"] == true => value.is_string() || value.is_i64(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !of_type {
        wrong.push(format!("{path}: {value} is not of type {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !allowed.contains(value)) {
        wrong.push(format!("{path}: {value} is not one of {}", schema["enum"]));
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(required).is_none() {
            wrong.push(format!("{path}: {required} is missing"));
        }
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match (schema["properties"].get(key), schema.get("additionalProperties")) {
            (Some(property), _) => check(property, inner, &path, wrong),
            (None, Some(any)) => check(any, inner, &path, wrong),
            // ObjectMeta is checked by the API server itself
            (None, None) if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
            (None, None) if schema.get("properties").is_none() && schema["type"] == "object" => {}
            (None, None) => wrong.push(format!("{path}: no such field")),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), wrong);
    }
}
