//! Templates.

use axum::Extension;
use axum::Json as Answered;
use axum::extract::Path;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;

use super::Caller;
use super::bodies::{At, DryRun, Written, deleted, lasting, taken};
use super::handlers::{Answer, PlaceQuery, items, json_of, place};
use super::reading::Json;
use super::routes::{Route, ask, look, read, write};
use crate::VmId;
use crate::cluster::Parameters;
use crate::template::Template;

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    look("/kubevirt/templates", "listTemplates", "Templates", "TemplateList", || get(list)),
    read("/kubevirt/templates/{namespace}/{name}", "getTemplate", "A template", "Template", || get(one)),
    ask(
        "/kubevirt/templates/{namespace}/{name}/process",
        "processTemplate",
        "Fill a template in",
        "ProcessRequest",
        "Processed",
        || post(process),
    ),
    write(
        "/kubevirt/templates/{namespace}/{name}/create",
        "createFromTemplate",
        "Create a VM from a template",
        "CreateFromTemplate",
        "Processed",
        || post(create),
    ),
    write(
        "/kubevirt/templates/{namespace}/{name}/delete",
        "deleteTemplate",
        "Delete a template",
        "DryRun",
        "Deleted",
        || post(delete),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/template",
        "templateVm",
        "Make a template from it",
        "TemplateRequest",
        "Underway",
        || post(make),
    ),
];

/// `GET /kubevirt/templates`
pub(super) async fn list(Extension(caller): Extension<Caller>, query: PlaceQuery) -> Answer {
    let place = place(query)?.of(&caller);
    items(&caller.provider.templates(place.as_deref()).await?)
}

/// `GET /kubevirt/templates/{namespace}/{name}`
pub(super) async fn one(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    json_of(&Template::of(&caller.provider.template_object(&VmId::new(&at.0, &at.1)?).await?))
}

/// What `process` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ProcessRequest {
    parameters: Parameters,
}

/// `POST …/process`
pub(super) async fn process(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<ProcessRequest>,
) -> Answer {
    let template = VmId::new(&at.0, &at.1)?;
    json_of(&caller.provider.process_template(&template, &request.parameters).await?)
}

/// What `create` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CreateFromTemplate {
    parameters: Parameters,
    dry_run: bool,
}

/// `POST …/create`
pub(super) async fn create(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<CreateFromTemplate>,
) -> Written {
    let template = VmId::new(&at.0, &at.1)?;
    let CreateFromTemplate { parameters, dry_run } = request;
    let done = caller.provider.create_from_template(&template, &parameters, dry_run).await?;
    Ok((taken(dry_run), json_of(&done)?))
}

/// `POST …/delete`
pub(super) async fn delete(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DryRun>,
) -> Written {
    caller.provider.delete_template(&VmId::new(&at.0, &at.1)?, request.dry_run).await?;
    deleted(&at, request.dry_run)
}

lasting! {
    /// What `POST …/template` takes.
    TemplateRequest {
        name: String,
    }
}

/// `POST /kubevirt/vms/{namespace}/{name}/template`
pub(super) async fn make(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<TemplateRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let how = request.how();
    let patience = how.patience()?;
    let made = caller.provider.make_template(&vm, &request.name, how.dry_run).await?;
    if let Some(timeout) = patience {
        caller.provider.wait_template(&made, timeout, &mut |_| ()).await?;
    }
    let answer = json!({"namespace": made.namespace(), "name": made.name(), "vm": vm.name()});
    Ok((how.status(), Answered(answer)))
}
