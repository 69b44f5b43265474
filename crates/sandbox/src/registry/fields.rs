//! What the compact definitions say of the fields of VMs and of the KubeVirt object: enough for `kubectl explain`, and types that
//! the API server checks. Objects keep every field, whether it is named or not.

use apimachinery::tree::{Value, json};

const TEXT: &str = include_str!("kubevirt_fields.txt");

/// The schema of `spec` of `virtualmachines`, `virtualmachineinstances` and `kubevirts`; of others nothing is said.
pub fn spec(plural: &str) -> Option<Value> {
    let mut spec = open("");
    for (whose, path, kind, description) in lines() {
        let path = match (plural, whose) {
            ("virtualmachines", "spec") => format!("template.spec.{path}"),
            ("virtualmachines", "") | ("virtualmachineinstances", "spec") | ("kubevirts", "kubevirt") => {
                path.to_owned()
            }
            ("virtualmachines" | "virtualmachineinstances" | "kubevirts", _) => continue,
            _ => return None,
        };
        put(&mut spec, &path, kind, description);
    }
    Some(spec)
}

/// Whose spec a field is of (a VM's, `spec`: every VMI's, `kubevirt`), its path, type and description.
fn lines() -> impl Iterator<Item = (&'static str, &'static str, &'static str, &'static str)> {
    TEXT.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (whose, line) =
            line.strip_prefix('@').and_then(|rest| rest.split_once(' ')).unwrap_or(("", line));
        let mut words = line.splitn(3, ' ');
        Some((whose, words.next()?, words.next()?, words.next()?))
    })
}

fn open(description: &str) -> Value {
    let mut schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    if !description.is_empty() {
        schema["description"] = description.into();
    }
    schema
}

fn of_kind(kind: &str, description: &str) -> Value {
    match kind {
        "object" => open(description),
        "quantity" => json!({"anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true, "description": description}),
        _ => json!({"type": kind, "description": description}),
    }
}

/// Puts a field where its path says; those above it are there already.
fn put(spec: &mut Value, path: &str, kind: &str, description: &str) {
    let mut place = spec;
    let mut steps = path.split('.').peekable();
    while let Some(step) = steps.next() {
        let (name, list) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        let field = &mut place["properties"][name];
        if steps.peek().is_none() {
            *field = if list {
                json!({"type": "array", "description": description, "items": of_kind(kind, "")})
            } else {
                of_kind(kind, description)
            };
            if path == "template.metadata" {
                // As in KubeVirt's own definition: Go clients write `creationTimestamp: null` here, or nothing at all.
                field["nullable"] = true.into();
            }
            return;
        }
        place = if list { &mut field["items"] } else { field };
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::schema::Schema;

    use super::*;

    #[test]
    fn every_line_has_its_place() {
        let (vm, vmi) = (spec("virtualmachines").unwrap(), spec("virtualmachineinstances").unwrap());
        for schema in [&vm, &vmi] {
            let whole = json!({"type": "object", "properties": {"spec": schema}});
            assert!(Schema::parse(&whole, "schema").is_ok());
        }
        let cores = "/properties/domain/properties/cpu/properties/cores/type";
        assert_eq!(vmi.pointer(cores).unwrap(), "integer");
        assert_eq!(vm.pointer(&format!("/properties/template/properties/spec{cores}")).unwrap(), "integer");
        assert_eq!(vmi.pointer("/properties/volumes/items/properties/name/type").unwrap(), "string");
        assert!(vmi["properties"].get("template").is_none());
        assert_eq!(spec("virtualmachinesnapshots"), None);
        for (_, path, kind, description) in lines() {
            assert!(["string", "integer", "boolean", "object", "quantity"].contains(&kind), "{path}");
            assert!(description.ends_with('.'), "{path}");
        }
    }
}
