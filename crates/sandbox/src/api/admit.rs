//! Where requests meet admission.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::tree::{Value, json};
use tokio::time::Instant;

use super::{Api, Call};
use crate::admission::{Notes, Operation, Request, Reservation};
use crate::attributes::Attributes;

/// A request is given up after this.
const DEADLINE: Duration = Duration::from_mins(1);

/// The resolved request, in the words of admission and authorisation.
pub fn attributes(call: &Call, verb: &str) -> Attributes {
    Attributes {
        user: call.user.clone(),
        verb: verb.into(),
        group: call.kind.group.clone(),
        version: call.kind.version.clone(),
        resource: call.kind.plural.clone(),
        subresource: call.target.subresource.clone(),
        namespace: if call.kind.namespaced || call.kind.is("", "namespaces") {
            call.target.namespace.clone()
        } else {
            String::new()
        },
        name: call.target.name.clone(),
        path: String::new(),
        dry_run: call.dry_run,
    }
}

/// One write on its way through admission.
pub struct Admitted<'a> {
    api: &'a Api,
    attributes: Attributes,
    operation: Operation,
    options: Value,
    deadline: Instant,
}

impl<'a> Admitted<'a> {
    /// Prepares the question.
    pub fn new(api: &'a Arc<Api>, call: &Call, operation: Operation, options: Value) -> Self {
        let verb = match operation {
            Operation::Create => "create",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Connect => "connect",
        };
        Self {
            api,
            attributes: attributes(call, verb),
            operation,
            options,
            deadline: Instant::now() + DEADLINE,
        }
    }

    fn request<'b>(&'b self, old: Option<&'b Value>) -> Request<'b> {
        Request {
            attributes: &self.attributes,
            operation: self.operation,
            old,
            options: &self.options,
            deadline: self.deadline,
        }
    }

    /// The mutating half; says whether it may have changed the object.
    ///
    /// # Errors
    /// The refusal.
    pub async fn mutate(
        &self,
        object: Value,
        old: Option<&Value>,
        call: &mut Call,
    ) -> Result<(Value, bool), Status> {
        let mut notes = Notes::default();
        let result = self.api.admission.mutate(&self.request(old), object, &mut notes).await;
        take(call, notes);
        result
    }

    /// The validating half. What it returns is kept until the write is done.
    ///
    /// # Errors
    /// The refusal.
    pub async fn validate(
        &self,
        object: &Value,
        old: Option<&Value>,
        call: &mut Call,
    ) -> Result<Reservation, Status> {
        let mut notes = Notes::default();
        let result = self.api.admission.validate(&self.request(old), object, &mut notes).await;
        take(call, notes);
        result
    }
}

fn take(call: &mut Call, notes: Notes) {
    for warning in notes.warnings() {
        if !call.warnings.contains(&warning) {
            call.warnings.push(warning);
        }
    }
    call.annotations.extend(notes.audit_annotations);
}

/// `CreateOptions`, `UpdateOptions` or `PatchOptions` as reviews show them.
pub fn options(call: &Call, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if call.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    for key in ["fieldManager", "fieldValidation"] {
        if let Some(value) = call.query.get(key) {
            options[key] = value.into();
        }
    }
    if call.query.flag("force") {
        options["force"] = true.into();
    }
    options
}

impl Api {
    /// Admission of an action that creates no object of its own: bindings, evictions. What it
    /// returns is kept until the action is done.
    ///
    /// # Errors
    /// The refusal.
    pub async fn admit_action(
        self: &Arc<Self>,
        call: &mut Call,
        object: &Value,
    ) -> Result<Reservation, Status> {
        let options = options(call, "CreateOptions");
        let admitted = Admitted::new(self, call, Operation::Create, options);
        let (object, _) = admitted.mutate(object.clone(), None, call).await?;
        admitted.validate(&object, None, call).await
    }
}
