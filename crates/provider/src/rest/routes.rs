//! What an operation of the service is. Each module has a table of those that it serves; the router and the
//! document are made from the same tables.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::MethodRouter;

use super::{
    Service, audit, document, handlers, inside, inventory, jobs, page, reading, storage, templates, writing,
};

/// An operation of the service.
pub(super) struct Route {
    /// `get` or `post`.
    pub method: &'static str,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Its name in the document.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Parameters of its query, and their types.
    pub query: &'static [(&'static str, &'static str)],
    /// The schema of its body, if it has one.
    pub body: Option<&'static str>,
    /// The status when it went well, and the schema of the answer.
    pub answer: (u16, &'static str),
    /// What the answer is, unless it is JSON.
    pub kind: &'static str,
    /// Whether it needs no identity.
    pub open: bool,
    /// It changes something.
    pub writes: bool,
    /// What serves it, by that method.
    pub serve: Serve,
}

impl Route {
    /// Whether its use is written down: of what changes something, and of what leads into a guest.
    fn is_audited(&self) -> bool {
        self.writes || self.answer.0 == 101
    }
}

type Serve = fn() -> MethodRouter<Arc<Service>>;

/// Of which namespace something is asked.
const PLACE: &[(&str, &str)] = &[("namespace", "string"), ("allNamespaces", "boolean")];

/// For bodies that are objects or files of their own.
pub(super) const DRY_RUN: &[(&str, &str)] = &[("dryRun", "boolean")];

/// Something that is read.
pub(super) const fn read(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    answer: &'static str,
    serve: Serve,
) -> Route {
    Route {
        method: "get",
        path,
        name,
        summary,
        query: &[],
        body: None,
        answer: (200, answer),
        kind: "application/json",
        open: false,
        writes: false,
        serve,
    }
}

/// Something that is read in a namespace or in all.
pub(super) const fn look(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    answer: &'static str,
    serve: Serve,
) -> Route {
    Route { query: PLACE, ..read(path, name, summary, answer, serve) }
}

/// A question that needs a body.
pub(super) const fn ask(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
    serve: Serve,
) -> Route {
    Route { method: "post", body: Some(body), ..read(path, name, summary, answer, serve) }
}

/// A change: it is taken with 202, or with 200 when it is done or was only asked about.
pub(super) const fn write(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    body: &'static str,
    answer: &'static str,
    serve: Serve,
) -> Route {
    Route { writes: true, answer: (202, answer), ..ask(path, name, summary, body, answer, serve) }
}

/// A `WebSocket`.
pub(super) const fn socket(
    path: &'static str,
    name: &'static str,
    summary: &'static str,
    serve: Serve,
) -> Route {
    Route { answer: (101, "Any"), kind: "", ..read(path, name, summary, "Any", serve) }
}

/// Every operation.
pub(super) fn all() -> impl Iterator<Item = &'static Route> {
    let tables = [
        handlers::ROUTES,
        document::ROUTES,
        page::ROUTES,
        inventory::ROUTES,
        reading::ROUTES,
        writing::ROUTES,
        storage::ROUTES,
        inside::ROUTES,
        templates::ROUTES,
        jobs::ROUTES,
    ];
    tables.into_iter().flatten()
}

/// A router with the operations that need an identity, or with the others.
pub(super) fn add(open: bool) -> Router<Arc<Service>> {
    let wanted = all().filter(|route| route.open == open);
    wanted.fold(Router::new(), |router, route| {
        let serving = (route.serve)();
        let audited = if route.is_audited() { serving.layer(from_fn(audit::record)) } else { serving };
        router.route(route.path, audited)
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tower_service::Service as _;

    use super::*;

    /// There is no cluster: an operation is served when something else than its path or its method is wrong.
    #[tokio::test]
    async fn every_operation_of_the_table_is_served() {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let anonymous = crate::cluster::connect_without_identity(nowhere).unwrap();
        let config =
            crate::rest::Config { anonymous, own_identity: None, impersonation: None, prometheus: None };
        let mut router = crate::rest::router(config);
        for route in all() {
            let path = route.path.replace("{port}", "80").replace(['{', '}'], "");
            // each is a caller of its own, so that none asks too often
            let request = Request::builder().method(route.method.to_uppercase().as_str()).uri(path);
            let request = request.header("authorization", format!("Bearer {}", route.name));
            let request = request.body(Body::empty()).unwrap();
            let status = router.call(request).await.unwrap().status();
            let unserved = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
            assert!(!unserved.contains(&status), "{} {}: {status}", route.method, route.path);
        }
    }
}
