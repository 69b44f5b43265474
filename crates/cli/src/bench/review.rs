//! The request that is sent over and over, and what its answer must look like
//! (`admission.k8s.io/v1`).

use serde::Deserialize;
use serde_json::{Value, json};

/// Stands where each request has its own uid; as long as one.
const PLACE: &str = "00000000-0000-4000-8000-000000000000";

/// An `AdmissionReview`, ready to be sent with any uid.
#[derive(Clone, Debug)]
pub struct Review {
    before: String,
    after: String,
}

/// What an answer said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Allowed with a patch.
    Patched,
    /// Allowed as it is.
    Unchanged,
    /// Denied.
    Denied,
}

impl Review {
    /// The creation of a VM in a namespace, as an API server shows it to a webhook.
    pub fn of_creation(vm: &Value, namespace: &str) -> Self {
        let resource = json!({"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"});
        let kind = json!({"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"});
        let object = vm.to_string();
        let request = json!({
            "kind": kind,
            "requestKind": kind,
            "resource": resource,
            "requestResource": resource,
            "name": vm["metadata"]["name"],
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "kubernetes-admin", "groups": ["system:masters", "system:authenticated"]},
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        });
        // written out so that a uid in the VM cannot be taken for the place
        let before = r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":""#;
        let rest = request.to_string();
        let after = format!(r#"","object":{object},{}}}"#, &rest[1..]);
        Self { before: before.to_owned(), after }
    }

    /// The body and uid of request number `n`.
    pub fn body(&self, n: u64) -> (String, String) {
        let uid = format!("{}{n:012x}", &PLACE[..24]);
        (format!("{}{uid}{}", self.before, self.after), uid)
    }
}

/// Reads an answer; the error says what is wrong with it.
pub fn read_answer(body: &[u8], uid: &str) -> Result<Answer, &'static str> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        response: Option<Response<'a>>,
    }
    #[derive(Deserialize)]
    struct Response<'a> {
        uid: &'a str,
        allowed: bool,
        patch: Option<&'a str>,
    }
    let envelope: Envelope<'_> =
        serde_json::from_slice(body).map_err(|_| "answer is not an AdmissionReview")?;
    let response = envelope.response.ok_or("answer without response")?;
    if response.uid != uid {
        return Err("answer to another request");
    }
    Ok(match (response.allowed, response.patch) {
        (false, _) => Answer::Denied,
        (true, Some(_)) => Answer::Patched,
        (true, None) => Answer::Unchanged,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_its_own_uid() {
        let review = Review::of_creation(&json!({"metadata": {"name": "a", "uid": PLACE}}), "ns");
        let (body, uid) = review.body(0x2a);
        let read: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(uid, "00000000-0000-4000-8000-00000000002a");
        assert_eq!(read["request"]["uid"], uid.as_str());
        assert_eq!(read["request"]["object"]["metadata"]["uid"], PLACE);
        assert_eq!(read["request"]["namespace"], "ns");
        assert_eq!(read["request"]["operation"], "CREATE");
    }

    #[test]
    fn answers_are_checked() {
        let cases: [(&str, Result<Answer, &str>); 6] = [
            (r#"{"response":{"uid":"u","allowed":true}}"#, Ok(Answer::Unchanged)),
            (r#"{"response":{"uid":"u","allowed":true,"patch":"W10="}}"#, Ok(Answer::Patched)),
            (r#"{"response":{"uid":"u","allowed":false}}"#, Ok(Answer::Denied)),
            (r#"{"response":{"uid":"v","allowed":true}}"#, Err("answer to another request")),
            (r"{}", Err("answer without response")),
            (r"<html>", Err("answer is not an AdmissionReview")),
        ];
        for (body, expected) in cases {
            assert_eq!(read_answer(body.as_bytes(), "u"), expected, "{body}");
        }
    }
}
