//! Protobuf bodies → JSON, for the kinds that kubectl sends that way.
//!
//! kubectl 1.32 and newer encodes what `create configmap`, `create secret`, `auth can-i` and their
//! like make as `application/vnd.kubernetes.protobuf`, and has no second try after a 415. The wire
//! form is `k8s\0` and a `runtime.Unknown` (apimachinery `runtime/generated.proto`) around the
//! message; field numbers are those of each group's `generated.proto`, which never change.
//! Answers are JSON: every client that sends protobuf accepts it.

use apimachinery::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::negotiate::unsupported_media_type;

const MAGIC: &[u8] = b"k8s\0";

/// One field of a message.
struct Field {
    number: u64,
    name: &'static str,
    form: Form,
    repeated: bool,
}

/// How a field is written.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Bytes,
    Flag,
    Int,
    /// A map from texts, each entry a message of key and value.
    Map(&'static Form),
    /// `metav1.Time`: seconds and nanoseconds; JSON has no fraction.
    Time,
    Message(&'static [Field]),
}

const fn one(number: u64, name: &'static str, form: Form) -> Field {
    Field { number, name, form, repeated: false }
}

const fn many(number: u64, name: &'static str, form: Form) -> Field {
    Field { number, name, form, repeated: true }
}

use Form::{Bytes, Flag, Int, Message, Text, Time};

const TEXTS: Form = Form::Map(&Text);

const OWNER: &[Field] = &[
    one(5, "apiVersion", Text),
    one(1, "kind", Text),
    one(3, "name", Text),
    one(4, "uid", Text),
    one(6, "controller", Flag),
    one(7, "blockOwnerDeletion", Flag),
];

const META: &[Field] = &[
    one(1, "name", Text),
    one(2, "generateName", Text),
    one(3, "namespace", Text),
    one(5, "uid", Text),
    one(6, "resourceVersion", Text),
    one(7, "generation", Int),
    one(8, "creationTimestamp", Time),
    one(9, "deletionTimestamp", Time),
    one(10, "deletionGracePeriodSeconds", Int),
    one(11, "labels", TEXTS),
    one(12, "annotations", TEXTS),
    many(13, "ownerReferences", Message(OWNER)),
    many(14, "finalizers", Text),
];

const METADATA: Field = one(1, "metadata", Message(META));

const REFERENCE: &[Field] = &[one(1, "name", Text)];

const RULE: &[Field] = &[
    many(1, "verbs", Text),
    many(2, "apiGroups", Text),
    many(3, "resources", Text),
    many(4, "resourceNames", Text),
    many(5, "nonResourceURLs", Text),
];

const SUBJECT: &[Field] =
    &[one(1, "kind", Text), one(2, "apiGroup", Text), one(3, "name", Text), one(4, "namespace", Text)];

const ROLE_REF: &[Field] = &[one(1, "apiGroup", Text), one(2, "kind", Text), one(3, "name", Text)];

const ROLE: &[Field] = &[METADATA, many(2, "rules", Message(RULE))];

const BINDING: &[Field] =
    &[METADATA, many(2, "subjects", Message(SUBJECT)), one(3, "roleRef", Message(ROLE_REF))];

const PRECONDITIONS: &[Field] = &[one(1, "uid", Text), one(2, "resourceVersion", Text)];

const DELETE_OPTIONS: &[Field] = &[
    one(1, "gracePeriodSeconds", Int),
    one(2, "preconditions", Message(PRECONDITIONS)),
    one(3, "orphanDependents", Flag),
    one(4, "propagationPolicy", Text),
    many(5, "dryRun", Text),
];

const RESOURCE_ATTRIBUTES: &[Field] = &[
    one(1, "namespace", Text),
    one(2, "verb", Text),
    one(3, "group", Text),
    one(4, "version", Text),
    one(5, "resource", Text),
    one(6, "subresource", Text),
    one(7, "name", Text),
];

const PATH_ATTRIBUTES: &[Field] = &[one(1, "path", Text), one(2, "verb", Text)];

const ACCESS: &[Field] = &[
    one(1, "resourceAttributes", Message(RESOURCE_ATTRIBUTES)),
    one(2, "nonResourceAttributes", Message(PATH_ATTRIBUTES)),
];

const RULES: &[Field] = &[one(1, "namespace", Text)];

const BOUND: &[Field] =
    &[one(1, "kind", Text), one(2, "apiVersion", Text), one(3, "name", Text), one(4, "uid", Text)];

const TOKEN: &[Field] =
    &[many(1, "audiences", Text), one(3, "boundObjectRef", Message(BOUND)), one(4, "expirationSeconds", Int)];

const CONFIG_MAP: &[Field] =
    &[METADATA, one(2, "data", TEXTS), one(3, "binaryData", Form::Map(&Bytes)), one(4, "immutable", Flag)];

const SECRET: &[Field] = &[
    METADATA,
    one(2, "data", Form::Map(&Bytes)),
    one(3, "type", Text),
    one(4, "stringData", TEXTS),
    one(5, "immutable", Flag),
];

const NAMESPACE_SPEC: &[Field] = &[many(1, "finalizers", Text)];
const NAMESPACE: &[Field] = &[METADATA, one(2, "spec", Message(NAMESPACE_SPEC))];

const SERVICE_ACCOUNT: &[Field] = &[
    METADATA,
    many(3, "imagePullSecrets", Message(REFERENCE)),
    one(4, "automountServiceAccountToken", Flag),
];

const PRIORITY_CLASS: &[Field] = &[
    METADATA,
    one(2, "value", Int),
    one(3, "globalDefault", Flag),
    one(4, "description", Text),
    one(5, "preemptionPolicy", Text),
];

const EVICTION: &[Field] = &[METADATA, one(2, "deleteOptions", Message(DELETE_OPTIONS))];
const ACCESS_REVIEW: &[Field] = &[METADATA, one(2, "spec", Message(ACCESS))];
const SUBJECT_REVIEW: &[Field] = &[METADATA];
const RULES_REVIEW: &[Field] = &[METADATA, one(2, "spec", Message(RULES))];
const TOKEN_REQUEST: &[Field] = &[METADATA, one(2, "spec", Message(TOKEN))];

/// The messages that are understood.
fn message(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" => NAMESPACE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "Role" | "ClusterRole" => ROLE,
        "RoleBinding" | "ClusterRoleBinding" => BINDING,
        "PriorityClass" => PRIORITY_CLASS,
        "Eviction" => EVICTION,
        "DeleteOptions" => DELETE_OPTIONS,
        "SelfSubjectAccessReview" => ACCESS_REVIEW,
        "SelfSubjectReview" => SUBJECT_REVIEW,
        "SelfSubjectRulesReview" => RULES_REVIEW,
        "TokenRequest" => TOKEN_REQUEST,
        _ => return None,
    })
}

/// Reads a body.
///
/// # Errors
/// 400 for what is no such message, 415 for kinds whose messages are not known here.
pub fn decode(body: &[u8]) -> Result<Value, Status> {
    let wrong = || Status::bad_request("the body is not a protobuf message of Kubernetes");
    let unknown = body.strip_prefix(MAGIC).ok_or_else(wrong)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(unknown);
    while let Some((number, value)) = reader.next().map_err(|_| wrong())? {
        match (number, value) {
            (1, Wire::Bytes(meta)) => {
                let meta =
                    fields(meta, &[one(1, "apiVersion", Text), one(2, "kind", Text)]).ok_or_else(wrong)?;
                let text = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                (version, kind) = (text("apiVersion"), text("kind"));
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let known = message(&kind).ok_or_else(unsupported_media_type)?;
    let mut object = fields(raw, known).ok_or_else(wrong)?;
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// The fields of a message that are known; what is empty is left out, as `omitempty` does.
fn fields(bytes: &[u8], known: &[Field]) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next().ok()? {
        let Some(field) = known.iter().find(|field| field.number == number) else { continue };
        if let Form::Map(form) = field.form {
            let (key, value) = entry(wire, *form)?;
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            map.as_object_mut()?.insert(key, value);
            continue;
        }
        let value = read(wire, field.form)?;
        if field.repeated {
            object.entry(field.name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?.push(value);
        } else if !is_empty(&value) {
            object.insert(field.name.to_owned(), value);
        }
    }
    Some(object)
}

fn entry(wire: Wire<'_>, form: Form) -> Option<(String, Value)> {
    let Wire::Bytes(bytes) = wire else { return None };
    let (mut key, mut value) = (String::new(), read(Wire::Bytes(&[]), form)?);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next().ok()? {
        match number {
            1 => read(wire, Text)?.as_str()?.clone_into(&mut key),
            2 => value = read(wire, form)?,
            _ => {}
        }
    }
    Some((key, value))
}

fn read(wire: Wire<'_>, form: Form) -> Option<Value> {
    Some(match (wire, form) {
        (Wire::Number(number), Flag) => (number != 0).into(),
        // int32 and int64 are written in two's complement
        (Wire::Number(number), Int) => number.cast_signed().into(),
        (Wire::Bytes(bytes), Text) => std::str::from_utf8(bytes).ok()?.into(),
        (Wire::Bytes(bytes), Bytes) => STANDARD.encode(bytes).into(),
        (Wire::Bytes(bytes), Time) => match fields(bytes, &[one(1, "seconds", Int)])?.get("seconds") {
            Some(seconds) => jiff::Timestamp::from_second(seconds.as_i64()?).ok()?.to_string().into(),
            None => Value::Null,
        },
        (Wire::Bytes(bytes), Message(known)) => Value::Object(fields(bytes, known)?),
        _ => return None,
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The bytes are no message.
struct Malformed;

/// Takes a message apart, field by field.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Malformed> {
        if self.0.is_empty() { Ok(None) } else { self.field().map(Some).ok_or(Malformed) }
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What kubectl 1.32 sends for `create configmap x --from-literal=a=b`.
    const SENT: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01x\x12\0\x1a\0\x22\0\x2a\0\x32\08\0B\0\x12\x06\x0a\x01a\x12\x01b\x1a\0\x22\0";

    /// A message of the fields given, each number with its bytes.
    fn message_of(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in fields {
            bytes.extend([number << 3 | 2, u8::try_from(value.len()).unwrap()]);
            bytes.extend(*value);
        }
        bytes
    }

    fn enveloped(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = message_of(&[(1, b"v1"), (2, kind.as_bytes())]);
        [MAGIC, &message_of(&[(1, &meta), (2, raw)])].concat()
    }

    #[test]
    fn a_config_map_as_kubectl_sends_it() {
        let expected =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}});
        assert_eq!(decode(SENT).unwrap(), expected);
    }

    #[test]
    fn secrets_hold_base64_and_lists_keep_empty_texts() {
        let entry = message_of(&[(1, b"password"), (2, b"hunter2")]);
        let secret =
            enveloped("Secret", &message_of(&[(1, &message_of(&[(1, b"s")])), (2, &entry), (3, b"Opaque")]));
        let expected = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "data": {"password": "aHVudGVyMg=="}, "type": "Opaque"});
        assert_eq!(decode(&secret).unwrap(), expected);

        let rule = message_of(&[(1, b"get"), (2, b""), (3, b"pods")]);
        let role = decode(&enveloped("Role", &message_of(&[(2, &rule)]))).unwrap();
        assert_eq!(role["rules"], json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
    }

    #[test]
    fn other_kinds_are_an_unsupported_media_type_and_other_bytes_a_bad_request() {
        assert_eq!(decode(&enveloped("Pod", b"")).unwrap_err().code, 415);
        for body in [&b""[..], b"{}", b"k8s\0\x0a", b"k8s\0\x0a\x7f\x01", &SENT[..40]] {
            assert_eq!(decode(body).unwrap_err().code, 400, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..60_usize) {
            let mut body = SENT.to_vec();
            body.splice(at.min(body.len()).., bytes);
            let _ = decode(&body);
        }
    }
}
