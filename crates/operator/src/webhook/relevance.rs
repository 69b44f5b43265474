//! Which reviews can be answered without reading the objects in them.
//!
//! Everything that a VM can ask of us is spelled with one of a few words: annotations and labels
//! begin with `vm-feature-manager.io`, the cloud-init map is called `x_kubevirt_features`. A JSON
//! text in which none of them occurs cannot ask for anything, **unless** the word is hidden:
//!
//! - by a JSON escape of a letter (`\u0078`): then the text contains `\u`;
//! - by a YAML escape inside cloud-init (`"\x78_kubevirt…"`, or a line broken inside a quoted
//!   key): a backslash in a JSON string is written `\\`;
//! - by base64: `userDataBase64`, or YAML's `!!binary` tag;
//! - in a Secret: `secretRef`.
//!
//! All of these count as "may ask". The other escapes of JSON (`\n`, `\"`, `\/`, …) stand for
//! characters that occur in none of the words.

use std::sync::LazyLock;

use memchr::memmem::Finder;

const WORDS: [&str; 7] =
    ["vm-feature-manager.io", "x_kubevirt_features", "\\u", "\\\\", "userDataBase64", "ecretRef", "binary"];

static FINDERS: LazyLock<[Finder<'static>; 7]> = LazyLock::new(|| WORDS.map(Finder::new));

/// Whether an object in the JSON text could ask for a feature or carry traces of one.
pub fn may_ask(json: &str) -> bool {
    FINDERS.iter().any(|finder| finder.find(json.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use features::{ClusterFacts, Config, Lookups, Request, Source};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::may_ask;

    /// Words and near-words, plain and hidden, in places where VMs carry text.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("vm-feature-manager.io/nested-virt".to_owned()),
            Just("vm-feature-manager.i0/nested-virt".to_owned()),
            Just("#cloud-config\nx_kubevirt_features: {nested_virt: true}\n".to_owned()),
            Just("#cloud-config\n\"x_kubevirt_\\x66eatures\": {nested_virt: true}\n".to_owned()),
            Just("#cloud-config\nx-kubevirt-features: {nested_virt: true}\n".to_owned()),
            Just("I2Nsb3VkLWNvbmZpZwp4X2t1YmV2aXJ0X2ZlYXR1cmVzOiB7bmVzdGVkX3ZpcnQ6IHRydWV9Cg==".to_owned()),
            "\\PC{0,20}",
        ]
    }

    fn vm() -> impl Strategy<Value = Value> {
        let source = prop_oneof![Just("userData"), Just("userDataBase64"), Just("networkData")];
        (text(), text(), text(), source).prop_map(|(annotation, label, data, source)| {
            json!({"metadata": {"name": "a", "annotations": {annotation: "enabled"}, "labels": {label: "enabled"}},
                "spec": {"template": {"spec": {"domain": {"devices": {}},
                    "volumes": [{"name": "ci", "cloudInitNoCloud": {source: data}}]}}}})
        })
    }

    proptest! {
        /// What is answered without being parsed would have been answered the same.
        #[test]
        fn what_may_not_ask_is_left_alone(object in vm(), escape in any::<bool>()) {
            // API servers written in other languages may escape more than they must.
            let json = if escape {
                object.to_string().replace('k', "\\u006b")
            } else {
                object.to_string()
            };
            prop_assert_eq!(&serde_json::from_str::<Value>(&json).unwrap(), &object);
            if !may_ask(&json) {
                for source in [Source::Annotations, Source::Labels, Source::Both] {
                    let config = Config { source, ..Config::default() };
                    let request = Request { namespace: "default", object: &object, old_object: None };
                    prop_assert_eq!(features::needs(&request, &config, &Lookups::new()), vec![]);
                    let verdict = features::admit(&request, &ClusterFacts::default(), &Lookups::new(), &config);
                    prop_assert_eq!(verdict, features::Verdict::default());
                }
            }
        }
    }

    #[test]
    fn hidden_words_count() {
        for (json, want) in [
            (r#"{"metadata":{"name":"a","labels":{"app":"web"}}}"#, false),
            (r##"{"userData":"#cloud-config\nusers: [\"a\"]\n"}"##, false),
            (r#"{"annotations":{"vm-feature-manager.io/nested-virt":"true"}}"#, true),
            (r#"{"annotations":{"\u0076m-feature-manager.io/nested-virt":"true"}}"#, true),
            (r#"{"userData":"x_kubevirt_features: {}"}"#, true),
            (r#"{"userData":"\"\\x78_kubevirt_features\": {}"}"#, true),
            (r#"{"userData":"\"x_kube\\\nvirt_features\": {}"}"#, true),
            (r#"{"userData":"!!binary eF9rdWJldmlydF9mZWF0dXJlcw==: {}"}"#, true),
            (r#"{"cloudInitNoCloud":{"userDataBase64":"eA=="}}"#, true),
            (r#"{"cloudInitNoCloud":{"secretRef":{"name":"a"}}}"#, true),
            (r#"{"cloudInitNoCloud":{"userDataSecretRef":{"name":"a"}}}"#, true),
        ] {
            assert_eq!(may_ask(json), want, "{json}");
        }
    }
}
