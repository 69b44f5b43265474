//! Which VMs somebody means, and in which order they want them.

use serde::{Deserialize, Serialize};

use crate::view::VmSummary;

/// Which VMs. The API server applies namespace and label selector, we the rest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selection {
    /// Only this namespace; none: all.
    pub namespace: Option<String>,
    /// Only VMs whose labels match, in kubectl's syntax.
    pub label_selector: Option<String>,
    /// Only names that match a pattern of `*` and `?`.
    pub name: Option<String>,
    /// Only these states, as KubeVirt spells them, in any case.
    pub status: Vec<String>,
    /// Only what runs on this node.
    pub node: Option<String>,
}

impl Selection {
    /// Whether a VM is meant, by what the API server has not looked at.
    pub fn takes(&self, vm: &VmSummary) -> bool {
        self.name.as_ref().is_none_or(|pattern| matches(pattern, &vm.name))
            && (self.status.is_empty() || self.status.iter().any(|one| one.eq_ignore_ascii_case(&vm.status)))
            && self.node.as_ref().is_none_or(|node| vm.node.as_ref() == Some(node))
    }
}

/// Whether a text matches a pattern of `*` (any run) and `?` (one character), in time that is at most
/// the product of both lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // where the last star stands, and how much of the text it has swallowed
    let mut star: Option<(usize, usize)> = None;
    while let Some(character) = text.get(seen) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == character => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((place, swallowed)) => {
                    star = Some((place, swallowed + 1));
                    at = place + 1;
                    seen = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == '*')
}

/// What a list is sorted by; ties by namespace and name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SortBy {
    /// Name, then namespace.
    Name,
    /// State.
    Status,
    /// Node; what is on none comes last.
    Node,
    /// Youngest first.
    Age,
    /// Most virtual CPUs first.
    Cpu,
    /// Most memory first.
    Memory,
}

/// Sorts a list.
pub fn sort(vms: &mut [VmSummary], by: SortBy) {
    vms.sort_by(|a, b| {
        let order = match by {
            SortBy::Name => a.name.cmp(&b.name),
            SortBy::Status => a.status.cmp(&b.status),
            SortBy::Node => (a.node.is_none(), &a.node).cmp(&(b.node.is_none(), &b.node)),
            // RFC 3339 in UTC sorts as text
            SortBy::Age => b.created.cmp(&a.created),
            SortBy::Cpu => b.vcpus.cmp(&a.vcpus),
            SortBy::Memory => b.memory_bytes.cmp(&a.memory_bytes),
        };
        order.then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vm(name: &str, status: &str, node: &str, memory: &str) -> VmSummary {
        let vm = json!({"metadata": {"namespace": "default", "name": name}, "status": {"printableStatus": status},
            "spec": {"template": {"spec": {"domain": {"memory": {"guest": memory}}}}}});
        let vmi = json!({"status": {"nodeName": node}});
        VmSummary::of(&vm, Some(&vmi))
    }

    #[test]
    fn patterns_match_as_a_shells_do() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("web", "web", true),
            ("web", "web1", false),
            ("web*", "web-1", true),
            ("*-db", "a-db", true),
            ("*-db", "a-db1", false),
            ("w?b", "web", true),
            ("w?b", "wb", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("**a", "bba", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // no exponential time
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn selections_narrow_by_what_a_list_shows() {
        let web = vm("web-1", "Running", "n1", "1Gi");
        let takes = |text: &str| serde_json::from_str::<Selection>(text).unwrap().takes(&web);
        assert!(takes(r"{}") && takes(r#"{"status": ["running"]}"#) && takes(r#"{"node": "n1"}"#));
        assert!(!takes(r#"{"status": ["Stopped"]}"#) && !takes(r#"{"node": "n2"}"#));
        assert!(!takes(r#"{"name": "db*"}"#));
        assert!(serde_json::from_str::<Selection>(r#"{"nodes": "n1"}"#).is_err());
    }

    #[test]
    fn lists_are_sorted() {
        let mut all = vec![
            vm("b", "Running", "n2", "1Gi"),
            vm("a", "Stopped", "", "2Gi"),
            vm("c", "Running", "n1", "1Gi"),
        ];
        let mut by = |by: SortBy| {
            sort(&mut all, by);
            all.iter().map(|vm| vm.name.as_str()).collect::<String>()
        };
        assert_eq!((by(SortBy::Name), by(SortBy::Node)), ("abc".into(), "cba".into()));
        assert_eq!((by(SortBy::Status), by(SortBy::Memory)), ("bca".into(), "abc".into()));
    }
}
