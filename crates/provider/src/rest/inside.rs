//! Interfaces, devices, and what leads into the guest.

use std::sync::Arc;

use axum::Extension;
use axum::Json as Answered;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CONNECTION, CONTENT_TYPE, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;

use super::bodies::{At, OrderRequest, Written, lasting, taken};
use super::handlers::{Answer, items, json_of};
use super::problem::Problem;
use super::reading::Json;
use super::routes::{Route, read, socket, write};
use super::{Caller, Service};
use crate::cluster::{Channel, MigrateTo};
use crate::network::{Binding, Change, Effect, Nic, Wish};
use crate::{Error, Kind, VmId, device};

/// What is served here.
pub(super) const ROUTES: &[Route] = &[
    read(
        "/kubevirt/vms/{namespace}/{name}/nics",
        "listNics",
        "Network interfaces of a VM",
        "NicList",
        || get(nics),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics",
        "addNic",
        "Add a network interface; the answer says when it takes effect",
        "NicRequest",
        "NicChange",
        || post(add_nic),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics/{nic}/remove",
        "removeNic",
        "Remove a network interface",
        "OrderRequest",
        "NicChange",
        || post(remove_nic),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/nics/{nic}/link",
        "setLink",
        "The cable of an interface in, or out",
        "LinkRequest",
        "NicChange",
        || post(set_link),
    ),
    write(
        "/kubevirt/vms/{namespace}/{name}/devices",
        "changeDevice",
        "Attach or detach a GPU or another host device, on the next start",
        "DeviceRequest",
        "DeviceChange",
        || post(change_device),
    ),
    read("/kubevirt/vms/{namespace}/{name}/guest", "getGuest", "What the guest agent tells", "Guest", || {
        get(guest)
    }),
    Route {
        kind: "image/png",
        ..read(
            "/kubevirt/vms/{namespace}/{name}/screenshot",
            "screenshot",
            "What is on the screen",
            "Any",
            || get(screenshot),
        )
    },
    socket(
        "/kubevirt/vms/{namespace}/{name}/console",
        "console",
        "The serial console, as a WebSocket",
        || get(console),
    ),
    socket("/kubevirt/vms/{namespace}/{name}/vnc", "vnc", "The screen as RFB, as a WebSocket", || get(vnc)),
    socket(
        "/kubevirt/vms/{namespace}/{name}/portforward/{port}",
        "portForward",
        "A TCP port of the guest, as a WebSocket",
        || get(port),
    ),
];

/// `GET …/nics`
pub(super) async fn nics(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    items(&caller.provider.nics(&VmId::new(&at.0, &at.1)?).await?)
}

lasting! {
    /// What `POST …/nics` takes.
    NicRequest {
        name: String,
        network: String,
        #[serde(default)]
        binding: Binding,
        #[serde(default)]
        mac: Option<String>,
        #[serde(default)]
        model: Option<String>,
        #[serde(default)]
        migrate: bool,
    }
}

/// `POST …/nics`
pub(super) async fn add_nic(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<NicRequest>,
) -> Written {
    let how = request.how();
    let NicRequest { name, network, binding, mac, model, migrate, .. } = request;
    change_nic(&caller, &at, &Wish::Add(Nic { name, network, binding, mac, model }), migrate, how).await
}

/// `POST …/nics/{nic}/remove`
pub(super) async fn remove_nic(
    Extension(caller): Extension<Caller>,
    Path((namespace, vm, name)): Path<(String, String, String)>,
    Json(how): Json<OrderRequest>,
) -> Written {
    change_nic(&caller, &(namespace, vm), &Wish::Remove { name }, false, how).await
}

lasting! {
    /// What `POST …/nics/{nic}/link` takes.
    LinkRequest {
        state: Link,
    }
}

/// The state of a link.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Link {
    Up,
    Down,
}

/// `POST …/nics/{nic}/link`
pub(super) async fn set_link(
    Extension(caller): Extension<Caller>,
    Path((namespace, vm, name)): Path<(String, String, String)>,
    Json(request): Json<LinkRequest>,
) -> Written {
    let wish = Wish::Link { name, up: request.state == Link::Up };
    change_nic(&caller, &(namespace, vm), &wish, false, request.how()).await
}

async fn change_nic(
    caller: &Caller,
    at: &(String, String),
    wish: &Wish,
    migrate: bool,
    how: OrderRequest,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let patience = how.patience()?;
    let change: Change = caller.provider.change_nic(&vm, wish, how.dry_run).await?;
    if migrate && change.effect == Effect::AfterMigration && !how.dry_run {
        caller.provider.migrate(&vm, &MigrateTo::default(), false).await?;
    }
    if let Some(timeout) = patience {
        caller.provider.wait_nic(&vm, wish, &change, timeout, &mut |_| ()).await?;
    }
    Ok((how.status(), json_of(&change)?))
}

/// What `POST …/devices` takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceRequest {
    name: String,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    sort: device::Sort,
    #[serde(default)]
    on_next_start: bool,
    #[serde(default)]
    dry_run: bool,
}

/// `POST …/devices`
pub(super) async fn change_device(
    Extension(caller): Extension<Caller>,
    Path(at): At,
    Json(request): Json<DeviceRequest>,
) -> Written {
    let vm = VmId::new(&at.0, &at.1)?;
    let DeviceRequest { name, device, sort, on_next_start, dry_run } = request;
    let wish = device::Wish { name, device, sort, on_next_start };
    let change = caller.provider.change_device(&vm, &wish, dry_run).await?;
    Ok((taken(dry_run), json_of(&change)?))
}

/// `GET …/guest`
pub(super) async fn guest(Extension(caller): Extension<Caller>, Path(at): At) -> Answer {
    let vm = VmId::new(&at.0, &at.1)?;
    let provider = &caller.provider;
    let (os, users, file_systems) =
        futures::join!(provider.guest_os(&vm), provider.guest_users(&vm), provider.guest_file_systems(&vm));
    Ok(Answered(json!({"os": os?, "users": users?, "fileSystems": file_systems?})))
}

/// `GET …/screenshot`
pub(super) async fn screenshot(
    Extension(caller): Extension<Caller>,
    Path(at): At,
) -> Result<Response, Problem> {
    let picture = caller.provider.screenshot(&VmId::new(&at.0, &at.1)?).await?;
    Ok(([(CONTENT_TYPE, "image/png")], picture).into_response())
}

/// `GET …/console`
pub(super) async fn console(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Path(at): At,
    request: Request,
) -> Result<Response, Problem> {
    proxy(&service, &caller, &VmId::new(&at.0, &at.1)?, Channel::Console, request).await
}

/// `GET …/vnc`
pub(super) async fn vnc(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Path(at): At,
    request: Request,
) -> Result<Response, Problem> {
    proxy(&service, &caller, &VmId::new(&at.0, &at.1)?, Channel::Vnc, request).await
}

/// `GET …/portforward/{port}`
pub(super) async fn port(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Path((namespace, name, port)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let vm = VmId::new(&namespace, &name)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        let doing = format!("connecting to a port of VM `{vm}`");
        let wrong = format!("`{port}` is no port");
        Error::new(Kind::InvalidArgument, doing, wrong, "give a number from 1 to 65535")
    })?;
    proxy(&service, &caller, &vm, Channel::Port(port), request).await
}

/// Passes a handshake on to the API server and couples the two connections, byte by byte: what is said in
/// them is none of ours.
async fn proxy(
    service: &Arc<Service>,
    caller: &Caller,
    vm: &VmId,
    channel: Channel,
    mut request: Request,
) -> Result<Response, Problem> {
    let key = handshake(request.headers()).ok_or_else(|| {
        let doing = format!("opening a connection to VM `{vm}`");
        let (wrong, remedy) = ("the request is no WebSocket handshake", "connect with a WebSocket client");
        Error::new(Kind::InvalidArgument, doing, wrong, remedy)
    })?;
    let slot = service.streams.clone().try_acquire_owned().map_err(|_| {
        let doing = format!("opening a connection to VM `{vm}`");
        let wrong = "too many consoles are open";
        Error::new(Kind::TooManyRequests, doing, wrong, "close one, then try again")
    })?;
    let key = key.clone();
    let protocols = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
    let far = caller.provider.upgrade(vm, channel, &key, protocols.as_ref()).await?;
    let mut answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL] {
        if let Some(value) = far.headers().get(&name) {
            answer = answer.header(name, value);
        }
    }
    let near = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _slot = slot;
        let (near, far) = match futures::future::try_join(near, hyper::upgrade::on(far)).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a console was not opened"),
        };
        if let Err(error) =
            tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await
        {
            tracing::debug!(%error, "a console broke off");
        }
    });
    answer.body(Body::empty()).map_err(|error| {
        Error::refused("answering a WebSocket handshake", 500, "", &error.to_string()).into()
    })
}

/// The key of an opening handshake (RFC 6455, section 4.2.1).
fn handshake(headers: &HeaderMap) -> Option<&axum::http::HeaderValue> {
    let lists = |name: &HeaderName, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
    };
    let version = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let fits = lists(&CONNECTION, "upgrade") && lists(&UPGRADE, "websocket") && version;
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| fits)
}
