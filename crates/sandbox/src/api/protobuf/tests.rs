use apimachinery::tree::json;
use proptest::prelude::*;

use super::*;

/// What kubectl 1.32 sends for `create configmap x --from-literal=a=b`.
const SENT: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01x\x12\0\x1a\0\x22\0\x2a\0\x32\08\0B\0\x12\x06\x0a\x01a\x12\x01b\x1a\0\x22\0";

/// `create deployment d --image=x --replicas=0`
const DEPLOYMENT: &[u8] =
    b"k8s\0\n\x15\n\x07apps/v1\x12\nDeployment\x12\x9b\x01\n\x1b\n\x01d\x12\0\x1a\0\"\0*\x002\08\0B\0Z\x08\n\
    \x03app\x12\x01d\x12n\x08\0\x12\n\n\x08\n\x03app\x12\x01d\x1aV\n\x1a\n\0\x12\0\x1a\0\"\0*\x002\08\0B\0\
    Z\x08\n\x03app\x12\x01d\x128\x12\x1a\n\x01x\x12\x01x*\0B\0j\0r\0\x80\x01\0\x88\x01\0\x90\x01\0\xa2\
    \x01\0\x1a\x002\0B\0J\0R\0X\0`\0h\0\x82\x01\0\x8a\x01\0\x9a\x01\0\xc2\x01\0\"\x02\n\0(\08\0\x1a\x0c\
    \x08\0\x10\0\x18\0 \0(\08\0\x1a\0\"\0";

/// `create pdb p --selector=app=x --min-available=0`
const BUDGET: &[u8] =
    b"k8s\0\n \n\x09policy/v1\x12\x13PodDisruptionBudget\x125\n\x11\n\x01p\x12\0\x1a\0\"\0*\x002\08\0B\0\x12\
    \x14\n\x06\x08\0\x10\0\x1a\0\x12\n\n\x08\n\x03app\x12\x01x\x1a\n\x08\0\x18\0 \0(\x000\0\x1a\0\"\0";

/// `create cronjob c --image=b --schedule='* * * * *' -- date`
const CRON_JOB: &[u8] =
    b"k8s\0\n\x13\n\x08batch/v1\x12\x07CronJob\x12\x99\x01\n\x11\n\x01c\x12\0\x1a\0\"\0*\x002\08\0B\0\x12\
    \x81\x01\n\x09* * * * *\x1a\0*r\n\x11\n\x01c\x12\0\x1a\0\"\0*\x002\08\0B\0\x12]2[\n\x10\n\0\x12\0\x1a\
    \0\"\0*\x002\08\0B\0\x12G\x12 \n\x01c\x12\x01b\x1a\x04date*\0B\0j\0r\0\x80\x01\0\x88\x01\0\x90\x01\0\
    \xa2\x01\0\x1a\x09OnFailure2\0B\0J\0R\0X\0`\0h\0\x82\x01\0\x8a\x01\0\x9a\x01\0\xc2\x01\0\x1a\0\x1a\0\
    \"\0";

/// `create ingress i --rule=foo/bar=svc:80`
const INGRESS: &[u8] =
    b"k8s\0\n\x1f\n\x14networking.k8s.io/v1\x12\x07Ingress\x12B\n\x11\n\x01i\x12\0\x1a\0\"\0*\x002\08\0B\0\
    \x12)\x1a'\n\x03foo\x12 \n\x1e\n\x1c\n\x04/bar\x12\x0d\"\x0b\n\x03svc\x12\x04\n\0\x10P\x1a\x05Exact\
    \x1a\x02\n\0\x1a\0\"\0";

/// A message of the fields given, each number with its bytes.
fn message_of(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, value) in fields {
        bytes.extend([number << 3 | 2, u8::try_from(value.len()).unwrap()]);
        bytes.extend(*value);
    }
    bytes
}

fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = message_of(&[(1, version.as_bytes()), (2, kind.as_bytes())]);
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
    let secret = enveloped(
        "v1",
        "Secret",
        &message_of(&[(1, &message_of(&[(1, b"s")])), (2, &entry), (3, b"Opaque")]),
    );
    let expected = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"password": "aHVudGVyMg=="}, "type": "Opaque"});
    assert_eq!(decode(&secret).unwrap(), expected);

    let rule = message_of(&[(1, b"get"), (2, b""), (3, b"pods")]);
    let role =
        decode(&enveloped("rbac.authorization.k8s.io/v1", "Role", &message_of(&[(2, &rule)]))).unwrap();
    assert_eq!(role["rules"], json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
}

#[test]
fn what_kubectl_creates_is_understood() {
    let labels = json!({"app": "d"});
    let container = json!({"name": "x", "image": "x"});
    assert_eq!(
        decode(DEPLOYMENT).unwrap(),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}})
    );
    assert_eq!(
        decode(BUDGET).unwrap(),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p"},
            "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "x"}}}})
    );
    let container = json!({"name": "c", "image": "b", "command": ["date"]});
    let pod = json!({"containers": [container], "restartPolicy": "OnFailure"});
    assert_eq!(
        decode(CRON_JOB).unwrap()["spec"],
        json!({"schedule": "* * * * *",
            "jobTemplate": {"metadata": {"name": "c"}, "spec": {"template": {"spec": pod}}}})
    );
    let backend = json!({"service": {"name": "svc", "port": {"number": 80}}});
    assert_eq!(
        decode(INGRESS).unwrap()["spec"]["rules"],
        json!([{"host": "foo", "http": {"paths": [{"path": "/bar", "pathType": "Exact", "backend": backend}]}}])
    );
}

#[test]
fn fields_of_a_message_within_are_those_of_the_message_around_it() {
    // a volume with `emptyDir: {}`, in which nothing is set
    let volume = message_of(&[(1, b"scratch"), (2, &message_of(&[(2, b"")]))]);
    let pod = decode(&enveloped("v1", "Pod", &message_of(&[(2, &message_of(&[(1, &volume)]))]))).unwrap();
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "scratch", "emptyDir": {}}]));
}

#[test]
fn quantities_times_and_json_are_written_as_in_json() {
    let hard = message_of(&[(1, b"pods"), (2, &message_of(&[(1, b"10")]))]);
    let quota =
        decode(&enveloped("v1", "ResourceQuota", &message_of(&[(2, &message_of(&[(1, &hard)]))]))).unwrap();
    assert_eq!(quota["spec"], json!({"hard": {"pods": "10"}}));

    // 1 700 000 000 s and 5 ms
    let time = b"\x08\x80\xe2\xcf\xaa\x06\x10\xc0\x96\xb1\x02";
    let event = decode(&enveloped("v1", "Event", &message_of(&[(6, time), (10, time)]))).unwrap();
    assert_eq!(event["firstTimestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(event["eventTime"], "2023-11-14T22:13:20.005000Z");
}

#[test]
fn every_built_in_kind_but_definitions_and_services_of_apis_is_understood() {
    let kinds = crate::registry::Registry::new().kinds();
    let unknown: Vec<_> = kinds
        .iter()
        .filter(|kind| message(&kind.api_version(), &kind.kind).is_none())
        .map(|kind| kind.kind.as_str())
        .collect();
    assert_eq!(unknown, ["APIService", "CustomResourceDefinition"]);
    for fields in TABLE.messages.values().flatten() {
        let mut form = &fields.form;
        while let Form::List(inner) | Form::Map(inner) = form {
            form = inner;
        }
        if let Form::Message(message) = form {
            assert!(TABLE.messages.contains_key(message.as_str()), "{message} is not in the table");
        }
    }
}

#[test]
fn other_kinds_are_an_unsupported_media_type_and_other_bytes_a_bad_request() {
    assert_eq!(decode(&enveloped("v1", "Unicorn", b"")).unwrap_err().code, 415);
    for body in [&b""[..], b"{}", b"k8s\0\x0a", b"k8s\0\x0a\x7f\x01", &SENT[..40]] {
        assert_eq!(decode(body).unwrap_err().code, 400, "{body:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..60_usize) {
        for sent in [SENT, DEPLOYMENT] {
            let mut body = sent.to_vec();
            body.splice(at.min(body.len()).., bytes.iter().copied());
            let _ = decode(&body);
        }
    }
}
